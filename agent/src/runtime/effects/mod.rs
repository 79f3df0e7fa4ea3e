//! Owns the doing: each action of core as a job that blocks on a thread of its own and ends with an outcome, and each step
//! of a live migration likewise.
//!
//! Promises: a job may be repeated; what it had begun before it failed is undone or found again by the next try;
//! nothing that an older epoch decided is done after a newer one was heard of (the permits keep the highest epoch).
//! Must not do: change the driver's state.

mod checkpoint;
mod domain;
mod guest;
mod migration;

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use understudy_core::host::{HostAction, Job, Lane, MigrationAnswer, MigrationStep, Outcome};
use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_guard::{Class, Client, Registration};
use understudy_hypervisor::{Note, process};

use super::Parts;
use super::event::Event;
use crate::exit::chain;
pub(super) use checkpoint::save;
pub(super) use domain::set_clock;

/// How long the guard may take to answer; it is a local process that does nothing else.
pub(super) const GUARD_PATIENCE: std::time::Duration = std::time::Duration::from_millis(500);

/// An instance, and the lease of this host under which it is brought to life.
type Whose = (InstanceId, u64);

/// Starts the job; its end comes as [`Event::Job`].
pub(super) fn spawn(parts: Arc<Parts>, sender: UnboundedSender<Event>, job: Job) {
    let tasks = parts.tasks.clone();
    tasks.spawn("job", async move {
        let (task_parts, action, whose) = (parts.clone(), job.action.clone(), (job.instance, job.lease));
        let address = job.address;
        let task = move || run(&task_parts, &action, whose, address);
        let outcome = match tokio::task::spawn_blocking(task).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Failed(format!("the job ended early: {error}")),
        };
        if matches!(outcome, Outcome::Done) && job.action.lane().is_some_and(|(_, lane)| lane == Lane::Domain)
        {
            tracing::debug!(instance = %job.instance, action = ?job.action, "job done");
        }
        let _ = sender.send(Event::Job { job: Box::new(job), outcome });
    });
}

/// Takes a step of a live migration; how it went comes as [`Event::Step`].
pub(super) fn take_step(
    parts: Arc<Parts>,
    sender: UnboundedSender<Event>,
    job: Box<Job>,
    step: MigrationStep,
) {
    let tasks = parts.tasks.clone();
    tasks.spawn("step of a migration", async move {
        let taken = job.clone();
        let task = move || migration::step(&parts, &taken, step);
        let answer = match tokio::task::spawn_blocking(task).await {
            Ok(answer) => answer,
            Err(error) => MigrationAnswer::Failed(format!("the step ended early: {error}")),
        };
        let _ = sender.send(Event::Step { job, step, answer });
    });
}

fn run(parts: &Parts, action: &HostAction, whose: Whose, address: Option<Ipv4Addr>) -> Outcome {
    let (instance, _) = whose;
    match action {
        HostAction::CreateIdle(pool) => {
            domain::create(parts, instance, Epoch(0), address, pool.memory, pool.vcpus)
        }
        HostAction::Create { epoch, memory, vcpus, .. } => {
            domain::create(parts, instance, *epoch, address, *memory, *vcpus)
        }
        HostAction::Guard { epoch, .. } => guard(parts, whose, *epoch, address),
        HostAction::Deploy { node, spec, .. } => guest::deploy(parts, instance, node, spec, address),
        HostAction::Admit { node, incarnation, token, .. } => {
            guest::admit(parts, instance, node, *incarnation, token)
        }
        HostAction::SendWindows(send) => guest::send_windows(parts, send),
        HostAction::Restore { node, epoch, checkpoint, environment, .. } => {
            domain::restore(parts, node, instance, (*epoch, *checkpoint), environment)
        }
        HostAction::Resume { epoch, .. } => domain::resume(parts, whose, *epoch),
        HostAction::Destroy { death, .. } => domain::destroy(parts, instance, death),
        HostAction::Missing { .. } => domain::withdraw(parts, instance),
        // Saved as `save`, taken step by step as `take_step`, or nothing that a job does.
        HostAction::Checkpoint { .. }
        | HostAction::MigrateOut { .. }
        | HostAction::Accept { .. }
        | HostAction::Forget { .. }
        | HostAction::DropImages { .. } => Outcome::Done,
    }
}

/// Has the guard acknowledge the instance's process, then notes the epoch on the domain.
fn guard(parts: &Parts, whose: Whose, epoch: Epoch, address: Option<Ipv4Addr>) -> Outcome {
    let (instance, _) = whose;
    match register(parts, whose, epoch) {
        Ok(()) => {}
        Err(reason) => return Outcome::Failed(reason),
    }
    let note = Note { epoch, address: address.map(Into::into) };
    if let Err(error) = parts.hypervisor.set_note(instance, &note) {
        // The note is for people and for the hook; the guard's word is what counts.
        tracing::warn!(%instance, error = %chain(&error), "cannot note the epoch on the domain");
    }
    Outcome::Guarded(epoch)
}

fn register(parts: &Parts, (instance, lease): Whose, epoch: Epoch) -> Result<(), String> {
    let describe = |what: &str, error: &dyn std::error::Error| format!("{what}: {}", chain(error));
    parts
        .permits
        .raise(instance, epoch)
        .map_err(|error| describe("cannot keep the highest epoch", &error))?;
    let pid = process::process_of(instance)
        .map_err(|error| describe("cannot look for the instance's process", &error))?
        .ok_or_else(|| "no process runs the instance".to_owned())?;
    let pid = u32::try_from(pid.0).map_err(|error| describe("impossible process id", &error))?;
    let pidfd =
        understudy_guard::pidfd_open(pid).map_err(|error| describe("cannot watch the process", &error))?;
    // Held before it may run: what is not held is not killed when the lease is lost.
    let held = pidfd.try_clone().map_err(|error| describe("cannot hold the process", &error))?;
    parts.members.hold(instance, held);
    let registration = Registration {
        uuid: *instance.uuid().as_bytes(),
        epoch: epoch.0,
        lease,
        pid,
        pidfd: pidfd.as_fd(),
        class: Class::RamOnly,
    };
    Client::connect(&parts.config.guard_socket, GUARD_PATIENCE)
        .and_then(|mut guard| guard.register(&registration))
        .map_err(|error| describe("the guard did not acknowledge the instance", &error))
}
