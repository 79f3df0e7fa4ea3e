//! Owns the translation between the host's agent in core and this machine: what the hypervisor says becomes an input, an
//! effect becomes a job, a look, a log line or a condition.
//!
//! Promises: every effect is carried out, and every job's end comes back. Must not do: decide, or ask the hypervisor in the
//! runtime's own task.

use std::collections::BTreeMap;

use understudy_core::host::{
    DomainEvent, Effect, HostAction, Input, Job, MigrationAnswer, MigrationStep, Outcome, Records, Saved,
    Shown,
};
use understudy_core::model::ids::{InstanceId, NodeId};
use understudy_core::model::units::Now;
use understudy_hypervisor::{
    CallError, EventKind, Hypervisor, HypervisorEvent, InstanceState, ListError, Liveness, PauseCause,
    WatchdogAction,
};

use super::event::Event;
use super::{Runtime, effects, now};
use crate::connect;
use crate::exit::chain;

/// What a condition about the emulation of instances goes under.
const ACCELERATOR: &str = "accelerator";

impl Runtime {
    /// Hands the host's agent an input, and has carried out what follows.
    pub(super) fn inform(&mut self, input: Input) {
        for effect in self.agent.handle(input, now()) {
            self.perform_effect(effect);
        }
    }

    pub(super) fn inform_of_records(&mut self) {
        self.inform(Input::Records(Box::new(Records::from(&self.cache))));
    }

    pub(super) fn work(&mut self, now: Now) {
        self.inform(Input::Tick { open: self.lease.is_open(now.boottime) });
    }

    pub(super) fn job_ended(&mut self, job: Box<Job>, outcome: Outcome) {
        log_outcome(&job, &outcome);
        if matches!(job.action, HostAction::Restore { .. }) {
            // It may have found one of its checkpoints damaged.
            effects::checkpoint::tell(&self.parts, &self.sender);
        }
        self.inform(Input::Finished { job, outcome });
    }

    pub(super) fn step_taken(&mut self, job: Box<Job>, step: MigrationStep, answer: MigrationAnswer) {
        tracing::debug!(instance = %job.instance, ?step, ?answer, "step of a live migration taken");
        self.inform(Input::Stepped { job, answer });
    }

    fn perform_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Start(job) if matches!(job.action, HostAction::Checkpoint { .. }) => self.save(*job),
            Effect::Start(job) => {
                tracing::debug!(action = ?job.action, "job starts");
                effects::spawn(self.parts.clone(), self.sender.clone(), *job);
            }
            Effect::Step { job, step } => {
                effects::take_step(self.parts.clone(), self.sender.clone(), job, step);
            }
            Effect::Ended { job, outcome } => log_outcome(&job, &outcome),
            Effect::List => self.look(|hypervisor| Input::Listed(list(hypervisor))),
            Effect::LookFor(instance) => self.look(move |hypervisor| {
                let there = hypervisor.liveness(instance).ok().map(|liveness| liveness != Liveness::Gone);
                Input::Looked { instance, there }
            }),
            Effect::Send { node, id, revision, to } => self.send(node, id, revision, to),
            Effect::CancelSend { node, id, host, fault } => self.cancel_send(node, id, &host, fault),
            Effect::Discard { node, id } => self.discard(node, id),
            Effect::Checkpointed { node, id, saved } => {
                let Saved { taken, pause_ms, bytes } = saved;
                tracing::debug!(%node, checkpoint = %id, pause_ms, bytes, "checkpoint complete");
                self.parts.metrics.checkpoint_done(&node, (id, taken), pause_ms, bytes);
            }
            Effect::DropImages { node, forget } => self.drop_images(node, forget),
            Effect::Raise(condition, text) => self.raise(condition.as_str(), text),
            Effect::Clear(condition) => self.clear(condition.as_str()),
            Effect::Changed { instance, from, to, reason } => {
                tracing::info!(%instance, from, to, reason, "instance changes");
            }
            Effect::DeathSeen => self.parts.metrics.death_seen(),
        }
    }

    /// Asks the hypervisor on a thread that may block.
    fn look(&self, ask: impl FnOnce(&dyn Hypervisor) -> Input + Send + 'static) {
        let (hypervisor, sender) = (self.parts.hypervisor.clone(), self.sender.clone());
        self.parts.tasks.block("look at the hypervisor", move || {
            let _ = sender.send(Event::Host(Box::new(ask(hypervisor.as_ref()))));
        });
    }

    fn drop_images(&self, node: NodeId, forget: bool) {
        let (images, ready) = (self.parts.images.clone(), self.parts.ready_images.clone());
        self.parts.tasks.block("deletion of images", move || {
            ready.forget(&node);
            let dropped = if forget { images.forget(&node) } else { images.drop_images(&node) };
            // What was made ready between the two.
            ready.forget(&node);
            if let Err(error) = dropped {
                tracing::warn!(%node, error = %chain(&error), "cannot delete checkpoint images");
            }
        });
    }

    pub(super) fn hypervisor_event(&mut self, event: HypervisorEvent) {
        let event = match event.kind {
            EventKind::Died { id, pid } => {
                DomainEvent::Exited { instance: id, detail: format!("qemu process {pid} ended") }
            }
            EventKind::Panicked { id } => DomainEvent::Panicked(id),
            EventKind::Watchdog { id, action: WatchdogAction::None | WatchdogAction::Paused } => {
                DomainEvent::Hangs(id)
            }
            EventKind::IoError { id, device, paused } => {
                tracing::warn!(instance = %id, %device, paused, "a disk of an instance failed");
                DomainEvent::DiskFailed { instance: id, device, paused }
            }
            EventKind::Emulates { reason } => {
                self.parts.metrics.emulates();
                return self.raise(ACCELERATOR, connect::emulation(&self.parts.config, &reason));
            }
            EventKind::ConnectionLost => DomainEvent::Lost,
            EventKind::ConnectionRegained => DomainEvent::Regained,
            EventKind::Lifecycle { .. }
            | EventKind::Agent { .. }
            | EventKind::Watchdog { action: WatchdogAction::Ended, .. } => return,
        };
        self.inform(Input::Hypervisor(event));
    }
}

fn log_outcome(job: &Job, outcome: &Outcome) {
    match outcome {
        Outcome::Died(reason) | Outcome::Damaged(reason) => {
            tracing::warn!(instance = %job.instance, %reason, "job failed for good");
        }
        Outcome::Failed(reason) | Outcome::Refused(reason) => {
            let action = job.action.lane();
            tracing::warn!(instance = %job.instance, ?action, %reason, "job failed, trying again");
        }
        Outcome::Unsure(reason) => {
            let action = job.action.lane();
            tracing::warn!(instance = %job.instance, ?action, %reason, "job failed, ending what there is of it");
        }
        Outcome::Done
        | Outcome::Guarded(_)
        | Outcome::WindowsSent(_)
        | Outcome::Saved(_)
        | Outcome::Loaded { .. }
        | Outcome::Arrived { .. }
        | Outcome::Moved
        | Outcome::Gone
        | Outcome::Stayed(_) => {}
    }
}

fn list(hypervisor: &dyn Hypervisor) -> Option<BTreeMap<InstanceId, Shown>> {
    loop {
        match hypervisor.instances() {
            Ok(all) => {
                return Some(all.iter().map(|instance| (instance.id, shown(instance.state))).collect());
            }
            // Each try takes its deadline; one that hangs for good is found to be down.
            Err(ListError::List(CallError::TimedOut { .. })) => {}
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot look for instances that stopped unheard");
                return None;
            }
        }
    }
}

fn shown(state: InstanceState) -> Shown {
    match state {
        InstanceState::Crashed | InstanceState::Paused(PauseCause::Panicked) => Shown::Panicked,
        InstanceState::Paused(PauseCause::Watchdog) => Shown::Hangs,
        InstanceState::Paused(PauseCause::IoError) => Shown::DiskFailed,
        InstanceState::Paused(
            PauseCause::Asked
            | PauseCause::Migration
            | PauseCause::Saving
            | PauseCause::Changing
            | PauseCause::Unknown,
        )
        | InstanceState::Running
        | InstanceState::ShuttingDown
        | InstanceState::Off => Shown::Well,
    }
}
