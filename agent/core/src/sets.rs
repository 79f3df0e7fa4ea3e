//! Owns the decision which set of policies decides for the cluster, and what hosts have of it.
//!
//! ```text
//! folder of a host changes ──▶ candidate ──every open host has it ready──▶ active
//!                                  │
//!                                  └──a host cannot load it, or nobody has it──▶ refused (the reason is kept)
//!                                  ▲                                                │
//!                                  └───────────the reason may be gone───────────────┘
//! ```
//!
//! Promises: a set becomes active only when every open host could lead with it, so that a leader change never changes
//! who decides; generations only grow; what failed stays suspended until its component changes or an operator restores
//! it. Must not do: load anything, or judge answers.

mod refusal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::ids::HostId;
use crate::model::units::UnixMillis;
use crate::model::view::{HostView, Hosts, Versioned};

pub use refusal::{OpenHosts, Refusal};

/// A set of policies. The same generation means the same components and settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySetRecord {
    /// Counts the sets that were ever proposed, from 1.
    pub generation: u64,
    /// The policies by name, each with the BLAKE3 of its component in hex.
    pub components: BTreeMap<String, String>,
    /// The text of `policies.toml`.
    pub settings: String,
    /// Policies that decide nothing because they failed too often, and how.
    pub suspended: BTreeMap<String, String>,
    /// How often operators restored which policy. Failures that a host saw before the last time do not count any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub restored: BTreeMap<String, u64>,
    /// The host whose folder it came from.
    pub by: HostId,
}

/// A set that was proposed and did not become active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusedSet {
    /// Its generation.
    pub generation: u64,
    /// The host whose folder it came from.
    pub by: HostId,
    /// Why, for people.
    pub reason: String,
    /// When.
    pub at: UnixMillis,
    /// The hosts that it was refused for, each with its lease at that moment; none of a host that was not open.
    #[serde(default)]
    pub refusers: BTreeMap<HostId, Option<u64>>,
}

/// Why a host does not have a set ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum SetFault {
    /// Nobody that it can reach has all the components. It goes on asking.
    Missing(String),
    /// It cannot be used here.
    Unusable(String),
}

impl SetFault {
    /// The reason, for people.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Missing(reason) | Self::Unusable(reason) => reason,
        }
    }
}

/// What a host reports of the sets that stand in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetFacts {
    /// Generations with which it could decide at this moment.
    pub ready: BTreeSet<u64>,
    /// Generations with which it could not, and why. One that is being loaded is in neither.
    pub faults: BTreeMap<u64, SetFault>,
}

/// The records of the sets, as the store holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicySets {
    /// The one that decides.
    pub active: Option<Versioned<PolicySetRecord>>,
    /// The one that is to take its place.
    pub candidate: Option<Versioned<PolicySetRecord>>,
    /// The last one that was refused.
    pub refused: Option<Versioned<RefusedSet>>,
}

/// What becomes of the candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It waits, for these hosts.
    Waits(Vec<HostId>),
    /// It takes the active one's place.
    Activate(PolicySetRecord),
    /// It is deleted, and this is remembered.
    Refuse(RefusedSet),
}

/// A change that an operator made in the folder of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderState {
    /// The policies by name, each with the BLAKE3 of its component in hex.
    pub components: BTreeMap<String, String>,
    /// The text of `policies.toml`; none without that file.
    pub settings: Option<String>,
}

impl PolicySets {
    /// The newest generation that anybody ever heard of.
    #[must_use]
    pub fn newest(&self) -> u64 {
        let active = self.active.as_ref().map_or(0, |set| set.value.generation);
        let candidate = self.candidate.as_ref().map_or(0, |set| set.value.generation);
        active.max(candidate).max(self.refused.as_ref().map_or(0, |set| set.value.generation))
    }

    /// The set that a change is made to: the one that will be active if nothing goes wrong.
    #[must_use]
    pub fn base(&self) -> Option<&PolicySetRecord> {
        self.candidate.as_ref().or(self.active.as_ref()).map(|set| &set.value)
    }

    /// The set that a change in `by`'s folder asks for: the base with what was added, changed and removed between two
    /// looks at that folder. What another host's folder brought stays. None where that changes nothing.
    #[must_use]
    pub fn changed_by(
        &self,
        by: &HostId,
        before: &FolderState,
        after: &FolderState,
    ) -> Option<PolicySetRecord> {
        let mut components = self.base().map(|set| set.components.clone()).unwrap_or_default();
        let mut settings = self.base().map(|set| set.settings.clone()).unwrap_or_default();
        let (was, is) = (&before.components, &after.components);
        components.retain(|name, _| !was.contains_key(name) || is.contains_key(name));
        for (name, digest) in is.iter().filter(|(name, digest)| was.get(*name) != Some(digest)) {
            components.insert(name.clone(), digest.clone());
        }
        if before.settings != after.settings {
            settings = after.settings.clone().unwrap_or_default();
        }
        let same = self.base().map_or(components.is_empty() && settings.is_empty(), |set| {
            set.components == components && set.settings == settings
        });
        (!same).then(|| PolicySetRecord {
            generation: self.newest() + 1,
            components,
            settings,
            suspended: BTreeMap::new(),
            restored: BTreeMap::new(),
            by: by.clone(),
        })
    }

    /// What becomes of the candidate. None where there is none.
    #[must_use]
    pub fn judge(&self, hosts: &Hosts, now: UnixMillis) -> Option<Verdict> {
        let candidate = &self.candidate.as_ref()?.value;
        let generation = candidate.generation;
        let refuse = |reason: String, refusers| {
            Verdict::Refuse(RefusedSet { generation, by: candidate.by.clone(), reason, at: now, refusers })
        };
        let open = || hosts.iter().filter(|(_, seen)| seen.is_open());
        let lease = |(host, seen): (&HostId, &Arc<HostView>)| (host.clone(), Some(seen.lease.value.number));
        let fault = |seen: &HostView| {
            seen.current_facts().and_then(|facts| facts.policies.faults.get(&generation)).cloned()
        };
        let unusable = |seen: &HostView| match fault(seen) {
            Some(SetFault::Unusable(reason)) => Some(reason),
            Some(SetFault::Missing(_)) | None => None,
        };
        let first = open().find_map(|(host, seen)| Some(format!("{host}: {}", unusable(seen)?)));
        if let Some(reason) = first {
            return Some(refuse(
                reason,
                open().filter(|(_, seen)| unusable(seen).is_some()).map(lease).collect(),
            ));
        }
        let waits: Vec<HostId> =
            open().filter(|(_, seen)| !is_ready(seen, generation)).map(|(host, _)| host.clone()).collect();
        let nobody = open().next().is_some() && open().all(|(_, seen)| fault(seen).is_some());
        Some(if nobody {
            let gone = (candidate.by.clone(), None);
            refuse(
                format!("no open host has its components, and {} is gone with them", candidate.by),
                std::iter::once(gone).chain(open().map(lease)).collect(),
            )
        } else if waits.is_empty() && open().next().is_some() {
            Verdict::Activate(self.activated(candidate))
        } else {
            Verdict::Waits(waits)
        })
    }

    /// The candidate as the active set: what failed stays suspended unless its component is another. Restores stay counted,
    /// also of a name that has gone: it may come back while some host still knows what it did.
    fn activated(&self, candidate: &PolicySetRecord) -> PolicySetRecord {
        let old = self.active.as_ref().map(|set| &set.value);
        let suspended = old.into_iter().flat_map(|old| {
            let same = |name: &&String| candidate.components.get(*name) == old.components.get(*name);
            old.suspended
                .iter()
                .filter(move |(name, _)| candidate.components.contains_key(*name) && same(name))
        });
        let suspended = suspended.map(|(name, reason)| (name.clone(), reason.clone())).collect();
        let restored = old.map(|old| old.restored.clone()).unwrap_or_default();
        PolicySetRecord { suspended, restored, ..candidate.clone() }
    }

    /// Whether `me` may lead: it has the active set ready, or there is none, or nobody who is open can have it, so that
    /// no choice of a leader keeps who decides. With that last one the built-in rules decide in the set's place.
    #[must_use]
    pub fn may_lead(&self, me: &SetFacts, hosts: &Hosts) -> bool {
        let Some(active) = &self.active else { return true };
        let generation = active.value.generation;
        let cannot = |seen: &Arc<HostView>| {
            seen.current_facts().is_some_and(|facts| facts.policies.faults.contains_key(&generation))
        };
        let mut open = hosts.values().filter(|seen| seen.is_open());
        me.ready.contains(&generation) || (me.faults.contains_key(&generation) && open.all(cannot))
    }

    /// The active set with a policy suspended. None where it is already, or does not belong to it.
    #[must_use]
    pub fn suspend(&self, policy: &str, digest: &str, reason: &str) -> Option<PolicySetRecord> {
        let active = &self.active.as_ref()?.value;
        let same = active.components.get(policy).is_some_and(|known| known == digest);
        if !same || active.suspended.contains_key(policy) {
            return None;
        }
        let mut record = active.clone();
        record.suspended.insert(policy.to_owned(), reason.to_owned());
        Some(record)
    }

    /// The active set with a policy back in its place, on every host. None where it does not belong to the set.
    #[must_use]
    pub fn restored(&self, policy: &str) -> Option<PolicySetRecord> {
        let mut record = self.active.as_ref()?.value.clone();
        record.components.get(policy)?;
        record.suspended.remove(policy);
        let count = record.restored.entry(policy.to_owned()).or_default();
        *count = count.saturating_add(1);
        Some(record)
    }
}

fn is_ready(seen: &HostView, generation: u64) -> bool {
    seen.current_facts().is_some_and(|facts| facts.policies.ready.contains(&generation))
}
