//! Owns the driver's part in the sets of policies: it tells the keeper what stands in the store, keeps who may not lead
//! from leading, writes a policy that failed here into the record, and as leader what becomes of a candidate.
//!
//! Promises: every write rests on the records that it was decided from, what becomes of a candidate on the leadership as
//! well. Who is set aside is one fact of the cluster: any host writes it, and heeds it before anything else. Must not do:
//! load, ask or judge (the keeper, `policies` and core do).

use std::sync::Arc;

use understudy_core::records::HostFacts;
use understudy_core::sets::{PolicySetRecord, RefusedSet, Verdict};
use understudy_core::units::Now;
use understudy_core::view::View;
use understudy_store::election::{Leadership, resign};
use understudy_store::{Committed, Txn};

use super::event::Event;
use super::{Driver, Parts};
use crate::exit::chain;
use crate::keys::{Key, encode};
use crate::policies::{Seen, Told, unchanged};

impl Driver {
    /// What the keeper says.
    pub(super) fn policies_told(&mut self, told: Told) {
        self.policy_facts = told.facts;
        match told.complaint {
            Some(complaint) => self.complain("policies", complaint),
            None => self.content("policies"),
        }
    }

    /// Tells the keeper what stands.
    pub(super) fn tell_keeper(&mut self, view: &View) {
        let changes = Some(self.cluster.changes());
        if std::mem::replace(&mut self.told, changes) == changes {
            return;
        }
        self.parts.policies.heed(&self.cluster.policies);
        let me = &self.parts.config.host;
        let api = |facts: &HostFacts| Some(facts.api.clone()).filter(|api| !api.is_empty());
        let peers = view
            .hosts
            .iter()
            .filter(|(host, seen)| *host != me && seen.is_open())
            .filter_map(|(host, seen)| Some((host.clone(), seen.facts.as_deref().and_then(api)?)))
            .collect();
        let open = view.hosts.iter().filter(|(_, seen)| seen.is_open());
        let open = open.map(|(host, seen)| (host.clone(), seen.session.value.number)).collect();
        let seen = Seen { synced: true, sets: self.cluster.policies.clone(), peers, open };
        self.seen.send_if_modified(|old| {
            let changed = **old != seen;
            if changed {
                *old = Arc::new(seen);
            }
            changed
        });
    }

    /// Whether this agent may lead by its policies. One that may not and has the leadership, or had it in an earlier
    /// life, gives it up: nobody else would bid while its session is open.
    pub(super) fn may_lead(&mut self, view: &View) -> bool {
        if self.cluster.policies.may_lead(&self.policy_facts, &view.hosts) {
            return true;
        }
        let me = &self.parts.config.host;
        let recorded = self.seen_leadership().filter(|leader| leader.host() == Some(me));
        if let Some(mine) = self.stop_leading().or(recorded)
            && !self.bidding
        {
            tracing::warn!(term = %mine.term(), "this agent gives up the leadership: the policies that decide are not ready on this host");
            self.bidding = true;
            let (parts, sender) = (self.parts.clone(), self.sender.clone());
            self.parts.tasks.spawn("resignation", async move {
                if let Err(error) = resign(parts.store.as_ref(), &mine).await {
                    tracing::warn!(error = %chain(&error), "cannot resign the leadership");
                }
                let _ = sender.send(Event::Resigned);
            });
        }
        false
    }

    /// A policy that failed too often here is set aside for the cluster, whoever leads: an admission asks on any host.
    pub(super) fn set_aside_what_failed(&mut self) {
        if self.settling || !self.sets_are_seen() {
            return;
        }
        let sets = &self.cluster.policies;
        let failed = self.parts.policies.failed();
        let aside = failed.iter().find_map(|(name, digest, reason)| sets.aside(name, digest, reason));
        if let Some(record) = aside {
            self.settle(self.put_active(&record));
        }
    }

    /// As leader: what becomes of the candidate.
    ///
    /// What is under way was decided by the set of before, and comes first. Whether nothing more is to be decided until then.
    pub(super) fn settle_sets(&mut self, view: &View, mine: &Leadership, now: Now) -> bool {
        if self.settling {
            return true;
        }
        let is_writing = self.leading.as_ref().is_some_and(|leading| leading.is_writing());
        let txn = match self.cluster.policies.judge(&view.hosts, now.wall) {
            Some(Verdict::Activate(_) | Verdict::Refuse(_)) if is_writing => return true,
            Some(Verdict::Activate(record)) => {
                tracing::info!(generation = record.generation, by = %record.by, "every open host has the set of policies: it decides from here on");
                self.put_active(&record).delete(Key::PolicyCandidate.to_string())
            }
            Some(Verdict::Refuse(refused)) => self.refuse(&refused),
            Some(Verdict::Waits(_)) | None => return false,
        };
        let candidate = self.cluster.policies.candidate.as_ref().map(|set| set.revision);
        self.settle(txn.when(mine.condition()).when(unchanged(&Key::PolicyCandidate, candidate)));
        true
    }

    fn settle(&mut self, txn: Txn) {
        self.settling = true;
        let (parts, sender) = (self.parts.clone(), self.sender.clone());
        self.parts.tasks.spawn("change of policies", async move {
            let written = write(&parts, &txn).await;
            let _ = sender.send(Event::Settled(written));
        });
    }

    fn put_active(&self, record: &PolicySetRecord) -> Txn {
        let active = self.cluster.policies.active.as_ref().map(|set| set.revision);
        Txn::new()
            .when(unchanged(&Key::PolicyActive, active))
            .put(Key::PolicyActive.to_string(), encode(record))
    }

    fn refuse(&self, refused: &RefusedSet) -> Txn {
        tracing::warn!(generation = refused.generation, by = %refused.by, reason = refused.reason, "a set of policies is refused, what decided before goes on");
        Txn::new()
            .put(Key::PolicyRefused.to_string(), encode(refused))
            .delete(Key::PolicyCandidate.to_string())
    }

    /// What was written has to come back before more is decided.
    pub(super) fn sets_settled(&mut self, written: Option<understudy_store::Revision>) {
        self.settling = false;
        if let Some(revision) = written {
            self.settled_at = revision;
        }
    }

    /// Whether the mirror shows what was last written.
    pub(super) fn sets_are_seen(&self) -> bool {
        self.cluster.revision >= self.settled_at.0
    }
}

async fn write(parts: &Parts, txn: &Txn) -> Option<understudy_store::Revision> {
    match parts.store.commit(txn).await {
        Ok(Committed::Applied { revision }) => Some(revision),
        Ok(Committed::Refused { failed, .. }) => {
            tracing::debug!(?failed, "a change of the set of policies was overtaken");
            None
        }
        Err(error) => {
            tracing::warn!(error = %chain(&error), "a change of the set of policies could not be written");
            None
        }
    }
}

/// Hosts that a candidate waits for, for status.
pub(crate) fn waits(sets: &understudy_core::sets::PolicySets, view: &View, now: Now) -> Vec<String> {
    match sets.judge(&view.hosts, now.wall) {
        Some(Verdict::Waits(hosts)) => hosts.iter().map(ToString::to_string).collect(),
        Some(Verdict::Activate(_) | Verdict::Refuse(_)) | None => Vec::new(),
    }
}
