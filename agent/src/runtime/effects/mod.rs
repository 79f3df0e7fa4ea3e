//! Owns the doing: each action of core as a job that blocks on a thread of its own and ends with an outcome, and each step
//! of a live migration likewise. The modules are named for what they talk to.
//!
//! Promises: a job may be repeated; what it had begun before it failed is undone, found again by the next try, or told, for
//! core to end; nothing that an older epoch decided is brought to life after a newer one was heard of (the permits keep the
//! highest epoch). Jobs act by an instance's name: that none does beside a newer life of it is core's to see to.
//! Must not do: change the runtime's state, but for the list of images that are on their way (`checkpoint::Copies`).

pub(super) mod checkpoint;
pub(super) mod domain;
pub(super) mod fence;
mod guest;
mod migration;
pub(super) mod store;

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use understudy_core::host::{HostAction, Job, Lane, MigrationAnswer, MigrationStep, Outcome};
use understudy_core::model::ids::{Epoch, InstanceId};

use super::Parts;
use super::event::Event;

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
        HostAction::Guard { epoch, .. } => fence::guard(parts, whose, *epoch, address),
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
