//! Owns both ends of a live migration.
//!
//! Promises: what arrives stays paused until its source has let go of it and this host's guard has acknowledged it; the
//! source is called gone only on the word of both sides. Must not do: choose.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use understudy_core::host::source_let_go;
use understudy_core::ids::{Epoch, InstanceId, NodeId};
use understudy_core::view::View;
use understudy_hypervisor::{
    InstanceFact, InstanceState, LifeSign, MigrationOutcome, MigrationTarget, PauseCause, process,
};

use super::super::event::Outcome;
use super::super::work::ipv4;
use super::super::{Parts, Snapshot};
use super::Whose;
use super::domain::withdraw;
use crate::exit::chain;

/// Between two looks at whether the source has let go. It stands still for half of this on average.
const LOOK: Duration = Duration::from_millis(5);

/// How long what has come is given to be whole once its source has let go; libvirt's last step takes milliseconds.
const SETTLED: Duration = Duration::from_secs(30);

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

/// What the destination does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Nothing yet: it is on its way, or the source may still go on with it.
    Wait,
    /// All of it is here and the source has let go.
    Land,
    /// The source has let go, and nothing is here, or only a part that nothing is added to any more.
    Lost,
    /// The migration was abandoned or is over: nothing may stay.
    Withdraw,
}

/// On the way in libvirt calls it paused for migration; once its state is complete, paused as asked. Both ends may have
/// all of it then, and a source that did not hear of the end goes on: only its own word lets this end run (SAFE-7).
///
/// `settled` says that what is here has been seen for so long, with its source gone, that it stays what it is.
fn next(wanted: bool, let_go: bool, seen: Option<LifeSign>, settled: bool) -> Next {
    match seen {
        _ if !wanted => Next::Withdraw,
        Some(LifeSign::Known(InstanceState::Running | InstanceState::Paused(PauseCause::Asked)))
            if let_go =>
        {
            Next::Land
        }
        Some(LifeSign::Gone) if let_go => Next::Lost,
        Some(LifeSign::Known(_)) if let_go && settled => Next::Lost,
        Some(LifeSign::Known(_) | LifeSign::ProcessOnly(_) | LifeSign::Gone) | None => Next::Wait,
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
    let until = Instant::now() + patience;
    let mut partly_since: Option<Instant> = None;
    while Instant::now() < until {
        let view = cluster.borrow().clone();
        let wanted = still_wanted(&view.view, instance);
        let let_go = source_let_go(&view.view, node, instance);
        // As long as the source may go on, what is here is looked at by nobody: looking takes a part of the processors
        // from the very migration.
        let seen = if wanted && !let_go { None } else { parts.hypervisor.life(instance).ok() };
        let partly = let_go && matches!(seen, Some(LifeSign::Known(_)));
        partly_since = partly_since.filter(|_| partly).or_else(|| partly.then(Instant::now));
        let settled = partly_since.is_some_and(|since| since.elapsed() >= SETTLED);
        match next(wanted, let_go, seen, settled) {
            Next::Wait => {}
            Next::Withdraw => return withdraw(parts, instance),
            Next::Lost => return give_up(parts, instance),
            Next::Land => {
                if let Some(fact) = here(parts, instance) {
                    return land(parts, &fact, session, epoch);
                }
            }
        }
        std::thread::sleep(LOOK);
    }
    Outcome::Failed(format!("instance {instance} did not arrive within {patience:?}"))
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
    Outcome::Arrived { memory: fact.memory, vcpus: fact.vcpus, address: ipv4(fact.note.address) }
}

fn still_wanted(view: &View, instance: InstanceId) -> bool {
    view.nodes.values().any(|node| {
        let primary = node.value.primary.as_ref().and_then(|primary| primary.instance);
        primary == Some(instance)
            && node.value.migration.as_ref().is_some_and(|migration| !migration.abandoned)
    })
}

#[cfg(test)]
mod tests {
    use understudy_hypervisor::Pid;

    use super::*;

    #[test]
    fn what_has_arrived_runs_only_once_the_source_has_let_go() {
        let complete = LifeSign::Known(InstanceState::Paused(PauseCause::Asked));
        let coming = LifeSign::Known(InstanceState::Paused(PauseCause::Migration));
        for (wanted, let_go, seen, settled, expected) in [
            (true, false, Some(complete), false, Next::Wait),
            (true, true, Some(complete), false, Next::Land),
            (true, true, Some(coming), false, Next::Wait),
            (true, true, Some(coming), true, Next::Lost),
            (true, false, Some(coming), true, Next::Wait),
            (true, true, Some(complete), true, Next::Land),
            (true, true, None, true, Next::Wait),
            (true, false, Some(LifeSign::Gone), false, Next::Wait),
            (true, true, Some(LifeSign::Gone), false, Next::Lost),
            (true, true, None, false, Next::Wait),
            (true, true, Some(LifeSign::ProcessOnly(Pid(7))), false, Next::Wait),
            (false, true, Some(complete), false, Next::Withdraw),
            (false, false, Some(LifeSign::Gone), false, Next::Withdraw),
        ] {
            assert_eq!(next(wanted, let_go, seen, settled), expected, "{wanted} {let_go} {seen:?} {settled}");
        }
    }
}
