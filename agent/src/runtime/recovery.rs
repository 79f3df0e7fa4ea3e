//! Owns the discovery of this host's instances, and the doing of what core makes of them.
//!
//! Promises: what is destroyed is gone before anything goes on; what could not be looked at, destroyed or resumed is tried
//! again as a whole, and until then nothing is given up. Must not do: decide what goes on (core does), create anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use understudy_core::host::recovery::{self, Discovery, Naming, Recovery, Reported, Seen};
use understudy_core::host::{Input, Local};
use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_core::model::records::{HostFacts, Phase};
use understudy_guard::{Client, ClientError};
use understudy_hypervisor::{
    ControlError, DestroyError, InstanceFact, InstanceState, ListError, Liveness, PauseCause,
};
use uuid::Uuid;

use super::effects::{GUARD_PATIENCE, set_clock};
use super::{Driver, Parts, now};

/// One instance that goes on, or that is known dead.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// The instance.
    pub instance: InstanceId,
    /// Its state.
    pub local: Local,
    /// Its restore was cut short before its clock was set.
    pub set_clock: bool,
}

/// Why this host could not be recovered.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecoveryError {
    /// The instances are not known.
    #[error("cannot list this host's instances")]
    List(#[from] ListError),
    /// What has no place here could not be destroyed.
    #[error("cannot destroy what has no place on this host")]
    Destroy(#[from] DestroyError),
    /// What stands still could not be let run.
    #[error("cannot resume what an earlier agent left standing still")]
    Resume(#[from] ControlError),
    /// The guard does not say what it holds.
    #[error("cannot ask the guard what it holds")]
    Guard(#[from] ClientError),
}

/// What this host reported, as far as it can be read.
#[derive(Debug, Clone)]
pub(super) enum Known {
    Nothing,
    Facts(Arc<HostFacts>),
    Unreadable,
}

/// What the store says of this host's instances.
#[derive(Debug, Clone)]
pub(super) struct Records {
    pub(super) resumed: bool,
    pub(super) known: Known,
    pub(super) names: BTreeMap<InstanceId, Naming>,
    pub(super) unreadable: bool,
}

/// What the guard holds, in which epoch.
pub(super) type Guarded = BTreeMap<InstanceId, Epoch>;

/// Looks at this host and brings it to what core makes of it.
pub(super) fn recover(parts: &Parts, records: &Records) -> Result<Vec<Recovered>, RecoveryError> {
    let status =
        Client::connect(&parts.config.guard_socket, GUARD_PATIENCE).and_then(|mut guard| guard.status())?;
    let held = |entry: &understudy_guard::Entry| {
        (InstanceId::from_uuid(Uuid::from_bytes(entry.uuid)), Epoch(entry.epoch))
    };
    let guarded = status.entries.iter().filter(|entry| !entry.dying).map(held).collect();
    recover_guarded(parts, records, &guarded)
}

pub(super) fn recover_guarded(
    parts: &Parts,
    records: &Records,
    guarded: &Guarded,
) -> Result<Vec<Recovered>, RecoveryError> {
    let here = parts.hypervisor.instances()?;
    let reported = match &records.known {
        Known::Nothing => Reported::Nothing,
        Known::Facts(facts) => Reported::Facts(facts),
        Known::Unreadable => Reported::Unreadable,
    };
    let discovery = Discovery {
        resumed: records.resumed,
        reported,
        found: &here.iter().map(|fact| (fact.id, found(fact))).collect(),
        gone: &gone(parts, records, &here)?,
        guarded,
        names: &records.names,
        unreadable: records.unreadable,
        now: now().wall,
    };
    let mut recovered = Vec::new();
    for (instance, outcome) in recovery::recover(&discovery) {
        let local = match outcome {
            Recovery::GoesOn(local) => Some(local),
            Recovery::Resume(local) => {
                tracing::info!(%instance, "resuming an instance that an earlier agent left standing still");
                parts.hypervisor.set_link(instance, true)?;
                parts.hypervisor.resume(instance)?;
                Some(local)
            }
            Recovery::Destroy { reason, dead } => {
                tracing::info!(%instance, reason, "destroying an instance");
                parts.hypervisor.destroy(instance)?;
                dead.map(|fact| Local { fact: *fact, paused: false })
            }
            Recovery::Dead(fact) => Some(Local { fact, paused: false }),
            Recovery::Leave => None,
        };
        let set_clock = match &records.known {
            Known::Facts(facts) => {
                facts.instances.get(&instance).is_some_and(|fact| fact.phase == Phase::Restoring)
            }
            Known::Nothing | Known::Unreadable => false,
        };
        recovered.extend(local.map(|local| Recovered { instance, local, set_clock }));
    }
    Ok(recovered)
}

fn ipv4(address: Option<IpAddr>) -> Option<Ipv4Addr> {
    match address {
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(_)) | None => None,
    }
}

fn found(fact: &InstanceFact) -> recovery::Found {
    let seen = match fact.state {
        InstanceState::Running | InstanceState::ShuttingDown => Seen::Running,
        InstanceState::Paused(
            PauseCause::Asked | PauseCause::Saving | PauseCause::Changing | PauseCause::Unknown,
        ) => Seen::Paused,
        InstanceState::Paused(PauseCause::Migration) => Seen::Incoming,
        InstanceState::Paused(PauseCause::IoError | PauseCause::Watchdog | PauseCause::Panicked)
        | InstanceState::Crashed => Seen::Failed,
        InstanceState::Off => Seen::Off,
    };
    let (epoch, address) = (fact.note.epoch, ipv4(fact.note.address));
    recovery::Found { seen, epoch, address, memory: fact.memory, vcpus: fact.vcpus }
}

/// Instances that were reported and are known to be gone. "Not in libvirt's list" is no death.
fn gone(
    parts: &Parts,
    records: &Records,
    here: &[InstanceFact],
) -> Result<BTreeSet<InstanceId>, RecoveryError> {
    let Known::Facts(facts) = &records.known else { return Ok(BTreeSet::new()) };
    let mut gone = BTreeSet::new();
    for &instance in facts.instances.keys().filter(|id| !here.iter().any(|fact| fact.id == **id)) {
        if parts.hypervisor.liveness(instance)? == Liveness::Gone {
            gone.insert(instance);
        }
    }
    Ok(gone)
}

impl Driver {
    /// What the store says of this host's instances, for the lease that goes on under this number.
    pub(super) fn records_of(&self, number: u64) -> Records {
        Records { resumed: true, ..self.records(Some(number), number) }
    }

    /// The same before the next lease; `previous` was the one of this boot before.
    pub(super) fn records_before(&self, previous: Option<u64>) -> Records {
        // No lease has the number 0: whatever is named is named under another.
        Records { resumed: false, ..self.records(previous, 0) }
    }

    fn records(&self, reported: Option<u64>, number: u64) -> Records {
        let me = &self.parts.config.host;
        let facts = self.cache.facts(me).filter(|facts| Some(facts.lease) == reported);
        let known = match facts {
            _ if reported.is_none() => Known::Nothing,
            _ if self.cache.has_quarantined_facts(me) => Known::Unreadable,
            Some(facts) => Known::Facts(Arc::new(facts.clone())),
            None => Known::Nothing,
        };
        let nodes = self.cache.view().nodes.iter().map(|(node, known)| (node, &known.value));
        let names = recovery::names(me, number, nodes, facts);
        Records { resumed: false, known, names, unreadable: self.cache.has_quarantined_nodes() }
    }

    /// Goes on with what was found.
    pub(super) fn finish_recovery(&mut self, found: Vec<Recovered>) {
        self.set_clocks(found.iter().filter(|found| found.set_clock).map(|found| found.instance).collect());
        let found = found.into_iter().map(|found| (found.instance, found.local)).collect();
        self.has_recovered = true;
        self.inform(Input::Recovered { lease: self.lease_number, found });
    }

    fn set_clocks(&self, instances: Vec<InstanceId>) {
        for instance in instances {
            let parts = self.parts.clone();
            self.parts.tasks.block("clock of a guest", move || {
                if let Err(error) = set_clock(&parts, instance) {
                    tracing::warn!(%instance, error = %crate::exit::chain(&error), "the restored guest's clock could not be set");
                }
            });
        }
    }
}
