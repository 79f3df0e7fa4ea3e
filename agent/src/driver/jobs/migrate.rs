//! Owns both ends of a live migration.
//!
//! Promises: what arrives stays paused until its source has let go of it and this host's guard has acknowledged it; the
//! source is called gone only on the word of both sides. Must not do: decide when
//! (core does).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use understudy_core::host::{Arrival, ArrivalStep, Come, Outcome};
use understudy_core::ids::{Epoch, InstanceId, NodeId};
use understudy_hypervisor::{
    InstanceFact, InstanceState, LifeSign, MigrationOutcome, MigrationTarget, PauseCause, process,
};

use super::super::{Parts, Snapshot};
use super::Whose;
use super::domain::withdraw;
use crate::exit::chain;

/// Between two looks at whether the source has let go. It stands still for half of this on average.
const LOOK: Duration = Duration::from_millis(5);

pub(super) fn leave(parts: &Parts, instance: InstanceId, uri: &str, data_uri: Option<&str>) -> Outcome {
    match parts.hypervisor.life(instance) {
        Ok(LifeSign::Gone) => {
            // An earlier try ended without a clear word. If it has arrived, the destination's word comes first.
            return Outcome::Gone;
        }
        Ok(LifeSign::Known(_) | LifeSign::ProcessOnly(_)) => {}
        Err(error) => return Outcome::Failed(chain(&error)),
    }
    let target = MigrationTarget {
        uri: uri.to_owned(),
        tls: parts.config.migration_tls,
        tls_name: None,
        data_uri: data_uri.map(str::to_owned),
        bandwidth: None,
    };
    match parts.hypervisor.migrate(instance, &target, parts.config.bounds.migration) {
        Ok(MigrationOutcome::Moved { took }) => {
            tracing::info!(%instance, to = uri, ?took, "instance has left by live migration");
            Outcome::Moved
        }
        Ok(MigrationOutcome::StayedHere { why }) => match parts.hypervisor.life(instance) {
            Ok(LifeSign::Gone) => Outcome::Died(format!("qemu ended in the middle of a migration: {why}")),
            Ok(LifeSign::Known(InstanceState::Paused(_))) => match parts.hypervisor.resume(instance) {
                Ok(()) => Outcome::Stayed(why),
                Err(error) => Outcome::Failed(format!("{why}; and {}", chain(&error))),
            },
            Ok(LifeSign::Known(_) | LifeSign::ProcessOnly(_)) => Outcome::Stayed(why),
            Err(error) => Outcome::Failed(format!("{why}; and {}", chain(&error))),
        },
        Ok(MigrationOutcome::Unknown { why, .. }) => Outcome::Failed(why),
        Err(error) => Outcome::Stayed(chain(&error)),
    }
}

pub(super) fn accept(
    parts: &Parts,
    cluster: &watch::Receiver<Arc<Snapshot>>,
    node: &NodeId,
    whose: Whose,
    epoch: Epoch,
) -> Outcome {
    let (instance, session) = whose;
    let patience = parts.config.bounds.migration;
    if let Err(error) = parts.permits.grant(instance, epoch, process::boottime(), patience) {
        return Outcome::Failed(chain(&error));
    }
    let mut arrival = Arrival::new(parts.config.host.clone(), session, node.clone(), instance, epoch);
    let until = Instant::now() + patience;
    while Instant::now() < until {
        let view = cluster.borrow().view.clone();
        let come = if arrival.needs_a_look(&view) { look(parts, instance) } else { None };
        match arrival.step(&view, come, process::boottime()) {
            ArrivalStep::Wait => {}
            ArrivalStep::Withdraw => return withdraw(parts, instance),
            ArrivalStep::Lost => return give_up(parts, instance),
            ArrivalStep::Land => {
                if let Some(fact) = here(parts, instance) {
                    return land(parts, &fact, session, epoch);
                }
            }
        }
        std::thread::sleep(LOOK);
    }
    Outcome::Failed(format!("instance {instance} did not arrive within {patience:?}"))
}

/// On the way in libvirt calls it paused for migration; once its state is complete, paused as asked.
fn look(parts: &Parts, instance: InstanceId) -> Option<Come> {
    parts.hypervisor.life(instance).ok().map(|life| match life {
        LifeSign::Known(InstanceState::Running | InstanceState::Paused(PauseCause::Asked)) => Come::Whole,
        LifeSign::Known(_) => Come::Part,
        LifeSign::ProcessOnly(_) => Come::Process,
        LifeSign::Gone => Come::Nothing,
    })
}

/// Permit and whatever is here first, and only then it is called lost.
fn give_up(parts: &Parts, instance: InstanceId) -> Outcome {
    match withdraw(parts, instance) {
        Outcome::Done => Outcome::Died("it left its source and did not arrive".to_owned()),
        failed => failed,
    }
}

fn here(parts: &Parts, instance: InstanceId) -> Option<InstanceFact> {
    parts.hypervisor.instances().ok()?.into_iter().find(|fact| fact.id == instance)
}

fn land(parts: &Parts, fact: &InstanceFact, session: u64, epoch: Epoch) -> Outcome {
    if let Err(reason) = super::register(parts, (fact.id, session), epoch) {
        return Outcome::Failed(reason);
    }
    if let Err(error) = parts.hypervisor.resume(fact.id) {
        return Outcome::Failed(chain(&error));
    }
    let _ = parts.permits.revoke(fact.id);
    Outcome::Arrived { memory: fact.memory, vcpus: fact.vcpus, address: address(fact) }
}

fn address(fact: &InstanceFact) -> Option<Ipv4Addr> {
    match fact.note.address {
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(_)) | None => None,
    }
}
