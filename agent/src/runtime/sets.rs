//! Owns what the runtime reports to the manager of the policies, and what it keeps of its answers.
//!
//! Promises: the manager is notified of every change but renewals, and of restores before anything else follows from them. Must not
//! do: load, ask or judge (the manager, `policies` and core do), or write (`lead` does what core's `Leadership` wants).

use std::sync::Arc;

use understudy_core::model::records::HostFacts;
use understudy_core::model::units::Now;
use understudy_core::model::view::{HostView, View, diff};
use understudy_core::sets::Verdict;

use super::Runtime;
use crate::policy_manager::{ManagerStatus, Seen};

impl Runtime {
    /// What the manager reports.
    pub(super) fn policies_reported(&mut self, status: ManagerStatus) {
        self.policy_facts = status.facts;
        match status.condition {
            Some(condition) => self.raise("policies", condition),
            None => self.clear("policies"),
        }
    }

    /// Notifies the manager of what stands. Cost: what has changed; where a host came, went or has another address, O(hosts).
    pub(super) fn notify_manager(&mut self, view: &View) {
        let changes = Some(self.cache.changes());
        if std::mem::replace(&mut self.notified, changes) == changes {
            return;
        }
        self.parts.policies.apply_restores(&self.cache.policies);
        let before = std::mem::replace(&mut self.notified_hosts, view.hosts.clone());
        let moved = diff(&before, &view.hosts)
            .any(|(_, was, is)| was.map(|seen| standing(seen)) != is.map(|seen| standing(seen)));
        let same_sets = {
            let seen = self.seen.borrow();
            seen.synced && seen.sets == self.cache.policies
        };
        if !moved && same_sets {
            return;
        }
        let me = &self.parts.config.host;
        let api = |facts: &HostFacts| Some(facts.api.clone()).filter(|api| !api.is_empty());
        let peers = view
            .hosts
            .iter()
            .filter(|(host, seen)| *host != me && seen.is_open())
            .filter_map(|(host, seen)| Some((host.clone(), seen.facts.as_deref().and_then(api)?)))
            .collect();
        let open = view.hosts.iter().filter(|(_, seen)| seen.is_open());
        let open = open.map(|(host, seen)| (host.clone(), seen.lease.value.number)).collect();
        let seen = Seen { synced: true, sets: self.cache.policies.clone(), peers, open };
        self.seen.send_if_modified(|old| {
            let changed = **old != seen;
            if changed {
                *old = Arc::new(seen);
            }
            changed
        });
    }
}

/// What the manager hears of a host.
fn standing(seen: &HostView) -> (bool, u64, Option<&str>) {
    (seen.is_open(), seen.lease.value.number, seen.facts.as_ref().map(|facts| facts.api.as_str()))
}

/// Hosts that a candidate waits for, for status.
pub(crate) fn waits(sets: &understudy_core::sets::PolicySets, view: &View, now: Now) -> Vec<String> {
    match sets.judge(&view.hosts, now.wall) {
        Some(Verdict::Waits(hosts)) => hosts.iter().map(ToString::to_string).collect(),
        Some(Verdict::Activate(_) | Verdict::Refuse(_)) | None => Vec::new(),
    }
}
