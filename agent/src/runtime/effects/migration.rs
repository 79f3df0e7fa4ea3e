//! Owns the carrying out of each step of a live migration, on either side.
//!
//! Promises: a step does what it says and no more, and its answer is what was seen; what lands is registered with the guard
//! before it may run; the permit is revoked before what is here is destroyed. Must not do: decide what is next (core does),
//! wait for anybody.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use understudy_core::host::{HostAction, Job, Landed, MigrationAnswer, MigrationStep, Outcome, Presence};
use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_hypervisor::{
    InstanceFact, InstanceState, Liveness, MigrationOutcome, MigrationTarget, PauseCause, process,
};

use super::super::Parts;
use super::domain::withdraw;
use super::{Whose, fence};
use crate::exit::chain;

pub(super) fn step(parts: &Parts, job: &Job, step: MigrationStep) -> MigrationAnswer {
    let whose = (job.instance, job.lease);
    match (step, &job.action) {
        (MigrationStep::Look, _) => look(parts, job.instance),
        (MigrationStep::Permit { lasts }, HostAction::Accept { epoch, .. }) => {
            let granted = parts.permits.grant(job.instance, *epoch, process::boottime(), lasts);
            done(granted.map_err(|error| chain(&error)))
        }
        (MigrationStep::Land, HostAction::Accept { epoch, .. }) => land(parts, whose, *epoch),
        (MigrationStep::Withdraw, _) => match withdraw(parts, job.instance) {
            Outcome::Failed(why) => MigrationAnswer::Failed(why),
            _ => MigrationAnswer::Done,
        },
        (MigrationStep::Transfer { lasts }, HostAction::MigrateOut { uri, data_uri, .. }) => {
            transfer(parts, job.instance, (uri, data_uri.as_deref()), lasts)
        }
        (MigrationStep::Resume, _) => {
            done(parts.hypervisor.resume(job.instance).map_err(|error| chain(&error)))
        }
        (MigrationStep::Permit { .. } | MigrationStep::Land | MigrationStep::Transfer { .. }, _) => {
            MigrationAnswer::Failed("it is a step of another job".to_owned())
        }
    }
}

fn done(result: Result<(), String>) -> MigrationAnswer {
    result.map_or_else(MigrationAnswer::Failed, |()| MigrationAnswer::Done)
}

/// On the way in libvirt calls it paused for migration; once its state is complete, paused as asked.
fn look(parts: &Parts, instance: InstanceId) -> MigrationAnswer {
    let liveness = match parts.hypervisor.liveness(instance) {
        Ok(liveness) => liveness,
        Err(error) => return MigrationAnswer::Failed(chain(&error)),
    };
    MigrationAnswer::Seen(match liveness {
        Liveness::Gone => Presence::Gone,
        Liveness::ProcessOnly(_) => Presence::Process,
        Liveness::Known(InstanceState::Running) => Presence::Running,
        Liveness::Known(InstanceState::Paused(PauseCause::Asked)) => Presence::Paused,
        Liveness::Known(InstanceState::Paused(_)) => Presence::Held,
        Liveness::Known(_) => Presence::Other,
    })
}

/// What it is like is asked last: until it is resumed the guest stands still.
fn land(parts: &Parts, whose: Whose, epoch: Epoch) -> MigrationAnswer {
    let (instance, _) = whose;
    if let Err(reason) = fence::register(parts, whose, epoch) {
        return MigrationAnswer::Failed(reason);
    }
    if let Err(error) = parts.hypervisor.resume(instance) {
        return MigrationAnswer::Failed(chain(&error));
    }
    if let Err(error) = parts.permits.revoke(instance) {
        tracing::warn!(%instance, error = %chain(&error), "cannot revoke the permit, it lapses by itself");
    }
    let here = parts.hypervisor.instances().unwrap_or_default();
    let fact = here.iter().find(|fact| fact.id == instance);
    MigrationAnswer::Landed(fact.map(|fact| Landed {
        memory: fact.memory,
        vcpus: fact.vcpus,
        address: address(fact),
    }))
}

fn address(fact: &InstanceFact) -> Option<Ipv4Addr> {
    match fact.note.address {
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(_)) | None => None,
    }
}

/// A call that did not begin says nothing of what an earlier one, of which nobody heard the end, has done since.
fn transfer(
    parts: &Parts,
    instance: InstanceId,
    (uri, data_uri): (&str, Option<&str>),
    lasts: Duration,
) -> MigrationAnswer {
    let target = MigrationTarget {
        uri: uri.to_owned(),
        tls: parts.config.migration_tls,
        tls_name: None,
        data_uri: data_uri.map(str::to_owned),
        bandwidth: None,
    };
    match parts.hypervisor.migrate(instance, &target, lasts) {
        Ok(MigrationOutcome::Moved { took }) => {
            tracing::info!(%instance, to = uri, ?took, "instance has left by live migration");
            MigrationAnswer::Moved
        }
        Ok(MigrationOutcome::StayedHere { why }) => MigrationAnswer::Stayed(why),
        Ok(MigrationOutcome::Unknown { why, .. }) => MigrationAnswer::Failed(why),
        Err(error) => MigrationAnswer::Failed(chain(&error)),
    }
}
