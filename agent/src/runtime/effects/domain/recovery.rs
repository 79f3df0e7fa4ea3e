//! Owns the discovery of this host's instances, and the destroying and resuming that core makes of it.
//!
//! Promises: what is destroyed is gone before anything goes on; what could not be looked at, destroyed or resumed is tried
//! again as a whole, and until then nothing is given up. Must not do: decide what goes on (core does), create anything.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use understudy_core::host::Local;
use understudy_core::host::recovery::{self, Discovery, Recovery, Reported, Seen};
use understudy_core::model::ids::InstanceId;
use understudy_core::model::records::{Phase, Service};
use understudy_guard::ClientError;
use understudy_hypervisor::{
    ControlError, DestroyError, InstanceFact, InstanceState, ListError, Liveness, PauseCause,
};

use crate::runtime::effects::fence::{self, Guarded};
use crate::runtime::lease::{Known, Records};
use crate::runtime::{Parts, now};

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
pub(in crate::runtime) enum RecoveryError {
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

impl RecoveryError {
    /// What did not do its part.
    pub(in crate::runtime) fn service(&self) -> Service {
        match self {
            Self::Guard(_) => Service::Guard,
            Self::List(_) | Self::Destroy(_) | Self::Resume(_) => Service::Libvirtd,
        }
    }
}

/// Looks at this host and brings it to what core makes of it.
pub(in crate::runtime) fn recover(parts: &Parts, records: &Records) -> Result<Vec<Recovered>, RecoveryError> {
    recover_guarded(parts, records, &fence::guarded(parts)?)
}

pub(in crate::runtime) fn recover_guarded(
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
        gone: &gone(parts, records, reported, &here)?,
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
                dead.map(|fact| Local::of(*fact))
            }
            Recovery::Dead(fact) => Some(Local::of(fact)),
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

/// Instances that are to be looked for and are known to be gone. "Not in libvirt's list" is no death.
fn gone(
    parts: &Parts,
    records: &Records,
    reported: Reported<'_>,
    here: &[InstanceFact],
) -> Result<BTreeSet<InstanceId>, RecoveryError> {
    let sought = recovery::sought(reported, &records.names);
    let mut gone = BTreeSet::new();
    for instance in sought.into_iter().filter(|id| !here.iter().any(|fact| fact.id == *id)) {
        if parts.hypervisor.liveness(instance)? == Liveness::Gone {
            gone.insert(instance);
        }
    }
    Ok(gone)
}
