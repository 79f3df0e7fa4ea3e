//! Owns what status says of the policies: who decides, who only looks on, who is suspended, what is wrong with what.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use understudy_core::model::ids::HostId;
use understudy_core::policy::Interface;
use understudy_core::sets::RefusedSet;

use super::Policies;
use super::load::settings;
use crate::runtime::{Snapshot, now, waits};

/// The policies, as one host sees them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PoliciesStatus {
    /// Generation of the set that decides; 0 where there is none.
    pub generation: u64,
    /// The host whose folder the set came from.
    pub by: Option<HostId>,
    /// Who decides, by interface. Where nobody does, the built-in rule.
    pub deciding: BTreeMap<String, Option<String>>,
    /// The policies of the set.
    pub policies: Vec<PolicyStatus>,
    /// The set that is to take over.
    pub candidate: Option<CandidateStatus>,
    /// The last set that was refused, while nothing newer was proposed.
    pub refused: Option<RefusedSet>,
    /// Whether this host could lead with the set that decides.
    pub ready: bool,
    /// What is wrong with which file of this host's folder, or with a set on this host.
    pub faults: Vec<String>,
    /// Files of this host's folder that are not what decides.
    pub differs: Vec<String>,
    /// Those of them that lie there and that nothing proposes, unless an operator wants it.
    #[serde(default)]
    pub unproposed: Vec<String>,
}

/// One policy of the set that decides.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Its name.
    pub name: String,
    /// BLAKE3 of its component, in hex.
    pub digest: String,
    /// `decide`, `shadow` or `off`.
    pub mode: String,
    /// What it can answer. Empty where it is off, or not loaded on this host.
    pub exports: Vec<String>,
    /// What it decides.
    pub decides: Vec<String>,
    /// What it is asked beside the one that decides, with what came of it on this host.
    pub shadows: Vec<ShadowStatus>,
    /// Why it decides nothing: it failed too often.
    pub suspended: Option<String>,
    /// The longest that one question may take, in milliseconds.
    pub deadline_ms: u64,
    /// Memory of one question in MiB.
    pub memory_mib: u64,
}

/// How a shadow policy compares, since this agent started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShadowStatus {
    /// What it is asked.
    pub interface: String,
    /// Questions that it was asked.
    pub answers: u64,
    /// Those that it would have decided otherwise.
    pub differences: u64,
}

/// The set that is to take over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CandidateStatus {
    /// Its generation.
    pub generation: u64,
    /// The host whose folder it came from.
    pub by: HostId,
    /// Open hosts that do not have it ready yet.
    pub waits: Vec<String>,
}

impl PoliciesStatus {
    pub(crate) fn of(snapshot: &Snapshot, policies: &Policies) -> Self {
        let sets = &snapshot.sets;
        let deciding = &snapshot.deciding;
        let active = sets.active.as_ref().map(|set| &set.value);
        let standing = policies.standing();
        let loaded: BTreeMap<&str, _> =
            deciding.set.policies().map(|info| (info.name.as_str(), info)).collect();
        // What failed on this host is not asked here before that has come into the record.
        let failed = policies
            .failed()
            .into_iter()
            .filter(|(name, digest, _)| active.is_some_and(|set| set.components.get(name) == Some(digest)));
        let mut suspended: BTreeMap<_, _> = failed.map(|(name, _, reason)| (name, reason)).collect();
        suspended.extend(deciding.suspended.clone());
        let own =
            active.and_then(|set| settings(&set.settings, policies.defaults()).ok()).unwrap_or_default();
        let shown = active.into_iter().flat_map(|set| &set.components).map(|(name, digest)| {
            let info = loaded.get(name.as_str());
            let suspended = suspended.get(name).cloned();
            let words =
                |of: &std::collections::BTreeSet<Interface>| of.iter().map(ToString::to_string).collect();
            let shadows = info.into_iter().flat_map(|info| &info.shadows).map(|interface| {
                let (answers, differences) = policies.metrics.policies.differences(*interface, name);
                ShadowStatus { interface: interface.to_string(), answers, differences }
            });
            let limits = own.of(name).limits;
            PolicyStatus {
                name: name.clone(),
                digest: digest.clone(),
                mode: own.of(name).mode.to_string(),
                exports: info.map(|info| words(&info.exports)).unwrap_or_default(),
                decides: match (&suspended, info) {
                    (None, Some(info)) => words(&info.decides),
                    (_, _) => Vec::new(),
                },
                shadows: if suspended.is_some() { Vec::new() } else { shadows.collect() },
                suspended,
                deadline_ms: u64::try_from(limits.deadline.as_millis()).unwrap_or(u64::MAX),
                memory_mib: limits.memory.0,
            }
        });
        let decider = |interface: &Interface| {
            let name = deciding.set.deciding(*interface).map(|info| info.name.clone());
            (interface.to_string(), name.filter(|name| !suspended.contains_key(name)))
        };
        let newest = sets.newest();
        Self {
            generation: deciding.generation,
            by: active.map(|set| set.by.clone()),
            deciding: Interface::ALL.iter().map(decider).collect(),
            policies: shown.collect(),
            candidate: sets.candidate.as_ref().map(|set| CandidateStatus {
                generation: set.value.generation,
                by: set.value.by.clone(),
                waits: waits(sets, &snapshot.view, now()),
            }),
            refused: sets
                .refused
                .as_ref()
                .map(|set| set.value.clone())
                .filter(|set| set.generation == newest),
            ready: deciding.ready,
            faults: standing.faults,
            differs: standing.differs,
            unproposed: standing.unproposed,
        }
    }
}
