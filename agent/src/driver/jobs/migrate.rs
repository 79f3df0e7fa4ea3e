//! Owns both ends of a live migration.
//!
//! Promises: what arrives stays paused until this host's guard has acknowledged it; the source is called gone only on
//! the word of both sides. Must not do: choose.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use understudy_core::ids::{Epoch, InstanceId};
use understudy_hypervisor::{
    InstanceFact, InstanceState, LifeSign, MigrationOutcome, MigrationTarget, PauseCause, process,
};

use super::super::event::Outcome;
use super::super::work::ipv4;
use super::super::{Parts, Snapshot};
use crate::exit::chain;

/// Between two looks at whether it has arrived. It stands still for half of this on average.
const LOOK: Duration = Duration::from_millis(10);

pub(super) fn leave(parts: &Parts, instance: InstanceId, uri: &str) -> Outcome {
    match parts.hypervisor.life(instance) {
        Ok(LifeSign::Gone) => {
            // An earlier try ended without a clear word. If it has arrived, the destination's word comes first.
            return Outcome::Died("it left in a migration whose end is not known".to_owned());
        }
        Ok(LifeSign::Known(_) | LifeSign::ProcessOnly(_)) => {}
        Err(error) => return Outcome::Failed(chain(&error)),
    }
    let target = MigrationTarget {
        uri: uri.to_owned(),
        tls: parts.config.migration_tls,
        tls_name: None,
        data_uri: None,
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
    instance: InstanceId,
    epoch: Epoch,
) -> Outcome {
    let patience = parts.config.bounds.migration;
    if let Err(error) = parts.permits.grant(instance, epoch, process::boottime(), patience) {
        return Outcome::Failed(chain(&error));
    }
    let until = Instant::now() + patience;
    while Instant::now() < until {
        if !still_wanted(cluster, instance) {
            let _ = parts.permits.revoke(instance);
            return match parts.hypervisor.destroy(instance) {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Failed(chain(&error)),
            };
        }
        if has_landed(parts, instance)
            && let Some(fact) = here(parts, instance)
        {
            return land(parts, &fact, epoch);
        }
        std::thread::sleep(LOOK);
    }
    Outcome::Failed(format!("instance {instance} did not arrive within {patience:?}"))
}

fn here(parts: &Parts, instance: InstanceId) -> Option<InstanceFact> {
    parts.hypervisor.instances().ok()?.into_iter().find(|fact| fact.id == instance)
}

/// On the way in libvirt calls it paused for migration; once its state is complete, paused as asked.
fn has_landed(parts: &Parts, instance: InstanceId) -> bool {
    let complete = |state| matches!(state, InstanceState::Running | InstanceState::Paused(PauseCause::Asked));
    matches!(parts.hypervisor.life(instance), Ok(LifeSign::Known(state)) if complete(state))
}

fn land(parts: &Parts, fact: &InstanceFact, epoch: Epoch) -> Outcome {
    if let Err(reason) = super::register(parts, fact.id, epoch) {
        return Outcome::Failed(reason);
    }
    if let Err(error) = parts.hypervisor.resume(fact.id) {
        return Outcome::Failed(chain(&error));
    }
    let _ = parts.permits.revoke(fact.id);
    Outcome::Arrived { memory: fact.memory, vcpus: fact.vcpus, address: ipv4(fact.note.address) }
}

fn still_wanted(cluster: &watch::Receiver<Arc<Snapshot>>, instance: InstanceId) -> bool {
    cluster.borrow().view.nodes.values().any(|node| {
        let primary = node.value.primary.as_ref().and_then(|primary| primary.instance);
        primary == Some(instance)
            && node.value.migration.as_ref().is_some_and(|migration| !migration.abandoned)
    })
}
