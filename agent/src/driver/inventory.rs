//! Owns the taking stock of this host when a session is opened or adopted.
//!
//! Promises: an instance that goes on is one whose state is known; what was half-way is ended; what a migration brings,
//! or may bring by a record that cannot be read, is left to it; what should be here and is not is reported dead only by
//! the standard of SAFE-2. Must not do: create anything.

use std::collections::{BTreeMap, BTreeSet};

use understudy_core::death::Death;
use understudy_core::host::{Input, Local};
use understudy_core::ids::{HostId, InstanceId};
use understudy_core::records::{HostFacts, InstanceFact, Phase};
use understudy_hypervisor::{DestroyError, InstanceState, LifeSign, ListError};

use super::{Driver, Parts, now};

/// One instance that goes on, or that is known dead.
#[derive(Debug, Clone)]
pub struct Found {
    /// The instance.
    pub instance: InstanceId,
    /// Its state.
    pub local: Local,
}

/// Why stock could not be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum InventoryError {
    /// The instances are not known.
    #[error("cannot list this host's instances")]
    List(#[from] ListError),
    /// What was half-way could not be ended.
    #[error("cannot end what an earlier agent left half-way")]
    Destroy(#[from] DestroyError),
}

/// Instances that live migrations bring to this host or take from it.
#[derive(Debug, Default)]
pub(super) struct Passing {
    arriving: BTreeSet<InstanceId>,
    /// With where they go.
    leaving: BTreeMap<InstanceId, HostId>,
    /// Whether a record that cannot be read may bring others.
    unread: bool,
}

/// What goes on. `previous` are the facts that this host reported in the same session; `adopting` says that the
/// session goes on, so that members do too.
pub(super) fn take(
    parts: &Parts,
    previous: Option<&HostFacts>,
    passing: &Passing,
    adopting: bool,
) -> Result<Vec<Found>, InventoryError> {
    let here = parts.hypervisor.instances()?;
    let mut found = Vec::new();
    for instance in &here {
        let fact = previous.and_then(|facts| facts.instances.get(&instance.id));
        let runs = instance.state == InstanceState::Running;
        let goes_on = fact.is_some_and(|fact| match fact.phase {
            Phase::Idle => runs && (adopting || fact.node.is_none()),
            Phase::Ready => adopting && runs,
            Phase::Booting | Phase::Deploying | Phase::Restoring | Phase::Dead { .. } => false,
        });
        match fact {
            Some(fact) if goes_on => {
                found.push(Found {
                    instance: instance.id,
                    local: Local { fact: fact.clone(), paused: false },
                });
            }
            _ if adopting && passing.arriving.contains(&instance.id) => {}
            None if adopting && passing.unread => {}
            _ => {
                tracing::info!(instance = %instance.id, "ending an instance that an earlier agent left half-way or that has no place");
                parts.hypervisor.destroy(instance.id)?;
            }
        }
    }
    if let Some(previous) = previous.filter(|_| adopting) {
        found.extend(missing(parts, previous, passing, &found)?);
    }
    Ok(found)
}

/// Instances that were reported and are not there any more.
fn missing(
    parts: &Parts,
    previous: &HostFacts,
    passing: &Passing,
    found: &[Found],
) -> Result<Vec<Found>, InventoryError> {
    let mut dead = Vec::new();
    for (&instance, fact) in &previous.instances {
        if found.iter().any(|found| found.instance == instance) {
            continue;
        }
        if parts.hypervisor.life(instance)? == LifeSign::Gone {
            let phase = match &fact.phase {
                dead @ Phase::Dead { .. } => dead.clone(),
                _ => {
                    let left = passing.leaving.get(&instance).map(|to| Death::MaybeMoved { to: to.clone() });
                    let found = || Death::Exited { detail: "found dead when the agent started".to_owned() };
                    Phase::Dead { death: left.unwrap_or_else(found), at: now().wall }
                }
            };
            let fact = InstanceFact { phase, ..fact.clone() };
            dead.push(Found { instance, local: Local { fact, paused: false } });
        }
    }
    Ok(dead)
}

impl Driver {
    /// Instances that migrations bring here or take away. What this host reported of them tells which failed.
    pub(super) fn passing(&self) -> Passing {
        let me = &self.parts.config.host;
        let reported = self.cluster.facts(me).map(|facts| &facts.instances);
        let mut passing = Passing { unread: self.cluster.hides_nodes(), ..Passing::default() };
        for record in self.cluster.nodes() {
            let instance = record.primary.as_ref().and_then(|primary| primary.instance);
            let (Some(migration), Some(instance)) = (&record.migration, instance) else { continue };
            let source = reported.and_then(|all| all.get(&instance));
            if &migration.to == me {
                passing.arriving.insert(instance);
            } else if &migration.from == me && migration.stands(source) {
                passing.leaving.insert(instance, migration.to.clone());
            }
        }
        passing
    }

    /// Goes on with what was found.
    pub(super) fn adopt(&mut self, found: Vec<Found>) {
        let found = found.into_iter().map(|found| (found.instance, found.local)).collect();
        self.adopted = true;
        self.inform(Input::Recovered { session: self.session_number, found });
    }
}
