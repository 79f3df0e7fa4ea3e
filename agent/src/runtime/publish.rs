//! Owns what leaves the runtime: the facts for the store, the directory for the gateway, the snapshot for the API.
//!
//! Promises: facts carry the lease in which they hold; they are written when they changed, over the revision that this agent
//! knows of: a write that was not answered may still come, and never comes after a newer one. Where core owes a report they
//! are written although they did not change, and core is told of each that stands. Store, metrics and snapshot
//! get the same facts. Must not do: judge, or write itself (`effects::store` does).
//!
//! Cost of an event: the facts once, O(instances of this host). They are not kept for the next event: each hands the time
//! to the host's agent, which may change any of its instances. Where it was more than a renewal, also what the gateway's
//! directory takes for the screens that are open here. View, facts and report are shared with the snapshot, not copied.

use std::sync::Arc;
use std::time::Duration;

use understudy_core::host::Input;
use understudy_core::model::records::HostFacts;
use understudy_core::model::units::{Boottime, Now};
use understudy_core::model::view::View;
use understudy_store::Revision;

use super::effects::store;
use super::{Runtime, Snapshot, now};

/// Before facts that could not be written are tried again.
const RETRY: Duration = Duration::from_millis(300);
/// A change of load below this many thousandths of a processor is not worth a write.
const LOAD_STEP: u32 = 250;

/// What was written last, and at which revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub(super) facts: Arc<HostFacts>,
    pub(super) at: Revision,
}

impl Runtime {
    /// What this host reports. What runs under a lease that goes on is, until it was looked at, what was reported of it.
    pub(super) fn facts(&self) -> HostFacts {
        let config = &self.parts.config;
        let reported = self.cache.facts(&config.host);
        let reported = reported.filter(|facts| !self.has_recovered && facts.lease == self.lease_number);
        let capacity = self.capacity.or_else(|| reported.map(|facts| facts.capacity));
        let last = self.published.as_ref().map_or(0, |published| published.facts.load_milli);
        let load_milli = if self.load_milli.abs_diff(last) >= LOAD_STEP { self.load_milli } else { last };
        HostFacts {
            lease: self.lease_number,
            capacity: capacity.unwrap_or_default(),
            labels: config.labels.clone(),
            api: config.peer_address(),
            gateway: if config.gateway_listen.is_some() {
                config.gateway_advertise.clone()
            } else {
                String::new()
            },
            migration_uri: config.migration_uri.clone(),
            migration_data_uri: config.migration_data_uri.clone(),
            load_milli,
            instances: self.agent.instances(),
            conditions: self.conditions.values().cloned().collect(),
            unable: self.agent.unable(),
            copy_faults: self.agent.copy_faults(),
            protection: self.agent.protection(),
            policies: self.policy_facts.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    pub(super) fn publish_facts(&mut self, facts: &Arc<HostFacts>, now: Now) {
        let me = &self.parts.config.host;
        let heard = self.cache.facts_at(me).map(Revision);
        let own = self.published.as_ref().filter(|own| heard.is_none_or(|heard| own.at >= heard));
        let (known, at) = match own {
            Some(own) => (Some(own.facts.as_ref()), Some(own.at)),
            None => (self.cache.facts(me).filter(|_| !self.cache.has_quarantined_facts(me)), heard),
        };
        let is_known = known == Some(facts) && !self.agent.owes_report();
        if self.publishing || now.boottime < self.publish_after || is_known {
            return;
        }
        self.publishing = true;
        store::write_facts(&self.parts, self.sender.clone(), (facts.clone(), at));
    }

    pub(super) fn published(&mut self, written: Option<Box<Published>>) {
        self.publishing = false;
        self.published = written.map(|written| *written);
        match &self.published {
            Some(published) => self.inform(Input::Reported { lease: published.facts.lease }),
            None => self.publish_after = now().boottime + RETRY,
        }
    }

    /// Before the store was read there is nothing to show but what is missing.
    pub(super) fn publish_waiting(&self) {
        let conditions = self.conditions.values().cloned().collect();
        self.snapshots.send_replace(Arc::new(Snapshot { conditions, ..Snapshot::default() }));
    }

    pub(super) fn publish_state(&mut self, view: View, facts: Arc<HostFacts>, now: Boottime) {
        // Pages leave a gateway whose host is cut off: what it knows may be old.
        let shown = (self.cache.changes(), self.lease.is_open(now));
        if self.shown != Some(shown) {
            self.shown = Some(shown);
            let shown = if shown.1 { view.clone() } else { View::default() };
            for refused in self.directory.publish(shown) {
                tracing::warn!(terminal = %refused.terminal, stands = %refused.stands, offered = %refused.offered, "an older display epoch was refused");
            }
        }
        let remaining =
            self.lease.until.filter(|_| self.lease.is_open(now)).map(|deadline| deadline.since(now));
        let (report, leading) = (self.leadership.report(), self.leadership.term().is_some());
        let me = &self.parts.config.host;
        self.parts.metrics.cluster_seen((&view, me), &report, leading, remaining, &facts);
        self.snapshots.send_replace(Arc::new(Snapshot {
            synced: true,
            conditions: self.conditions.values().cloned().collect(),
            leader: self
                .cache
                .leader
                .as_ref()
                .and_then(|leader| leader.value.host.as_ref())
                .map(ToString::to_string),
            leading,
            report,
            lease_remaining: remaining,
            facts: Some(facts),
            deciding: self.parts.policies.deciding(&self.cache.policies),
            sets: self.cache.policies.clone(),
            view,
        }));
    }
}
