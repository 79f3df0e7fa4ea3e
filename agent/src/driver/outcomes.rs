//! Owns what becomes of a job's outcome: the state of the instances.
//!
//! Promises: each change of an instance's phase is logged once; a job of a session that is over changes nothing; a dead
//! instance stays dead. Must not do: the work itself.

use std::net::Ipv4Addr;

use understudy_core::death::Death;
use understudy_core::host::{HostAction, Lane, Local};
use understudy_core::ids::{Epoch, HostId, InstanceId, NodeId};
use understudy_core::records::{InstanceFact, Phase};
use understudy_core::units::{MiB, Vcpus};

use super::event::Outcome;
use super::jobs::Job;
use super::work::{FILL_RETRY, RETRY, booting};
use super::{Busy, Driver, now};

impl Driver {
    pub(super) fn finish(&mut self, job: Job, outcome: Outcome) {
        if job.makes() {
            self.making.remove(&(job.instance, job.session));
        }
        if job.session != self.session_number {
            self.outlived(&job);
            return;
        }
        let ends = matches!(job.action, HostAction::Destroy { .. });
        if let Some(lane) = job.action.lane().filter(|_| !ends) {
            self.release(lane, &outcome);
        }
        if let Outcome::Died(reason) = &outcome {
            tracing::warn!(instance = %job.instance, %reason, "job failed for good");
        }
        if let Outcome::Failed(reason) = &outcome {
            tracing::warn!(instance = %job.instance, action = ?job.action.lane(), %reason, "job failed, trying again");
        }
        let instance = job.instance;
        match (job.action, outcome) {
            // It is to end, which says more than what became of its making.
            (HostAction::Create { .. } | HostAction::Restore { .. }, _)
                if self.ending.contains_key(&instance) => {}
            (HostAction::CreateIdle(_), outcome) => self.idle_made(instance, outcome),
            (HostAction::Create { .. }, Outcome::Done) => self.change(instance, Phase::Idle, "booted"),
            (HostAction::Create { node, .. }, Outcome::Died(reason)) => {
                self.dead(instance, Some(node), Death::DeployFailed { detail: reason });
            }
            (HostAction::Create { .. }, Outcome::Failed(reason) | Outcome::Unsure(reason))
            | (HostAction::Restore { .. }, Outcome::Unsure(reason)) => {
                self.end(instance, Death::DeployFailed { detail: reason });
            }
            (HostAction::Guard { .. }, Outcome::Guarded(epoch)) => {
                self.edit(instance, |local| local.fact.epoch = epoch);
            }
            (HostAction::Deploy { .. }, Outcome::Done) => {
                self.change(instance, Phase::Ready, "its role reported ready");
            }
            // One that was ended meanwhile, because nobody wanted it any more, may be forgotten already.
            (HostAction::Deploy { node, .. }, Outcome::Died(reason))
                if self.local.contains_key(&instance) =>
            {
                self.dead(instance, Some(node), Death::DeployFailed { detail: reason });
            }
            (HostAction::Deploy { .. }, Outcome::Unsure(reason)) if self.local.contains_key(&instance) => {
                self.end(instance, Death::DeployFailed { detail: reason });
            }
            (HostAction::Admit { node, begun, .. }, Outcome::Done) => {
                self.edit(instance, |local| {
                    local.fact.admitted.insert(node, begun);
                });
            }
            (HostAction::SendWindows(_), Outcome::WindowsSent(sent)) => {
                self.edit(instance, |local| local.fact.windows = Some(sent));
            }
            (HostAction::Restore { .. }, Outcome::Restored { address }) => {
                self.edit(instance, |local| {
                    local.paused = false;
                    local.fact.address = address;
                });
                self.change(instance, Phase::Ready, "restored");
            }
            (HostAction::Restore { node, epoch, .. }, Outcome::Died(reason)) => {
                self.dead_in_epoch(instance, Some(node), epoch, Death::DeployFailed { detail: reason });
            }
            (HostAction::MigrateOut { node, to, .. }, Outcome::Moved) => {
                self.leaving.remove(&instance);
                self.moved(instance, Some(node), Death::Moved { to });
            }
            (HostAction::MigrateOut { node, to, .. }, Outcome::Gone) => {
                self.leaving.remove(&instance);
                self.moved(instance, Some(node), Death::MaybeMoved { to });
            }
            (HostAction::MigrateOut { epoch, .. }, Outcome::Stayed(why)) => {
                self.leaving.remove(&instance);
                self.edit(instance, |local| local.fact.migration_failed = Some((epoch, why)));
            }
            (HostAction::MigrateOut { node, .. }, Outcome::Died(reason)) => {
                self.leaving.remove(&instance);
                self.dead(instance, Some(node), Death::Exited { detail: reason });
            }
            (HostAction::Accept { node, epoch, from, .. }, Outcome::Arrived { memory, vcpus, address }) => {
                self.arrived(
                    instance,
                    node,
                    epoch,
                    &from,
                    booting(None, address.unwrap_or(Ipv4Addr::UNSPECIFIED), memory, vcpus),
                );
            }
            (HostAction::Accept { node, epoch, .. }, Outcome::Died(_)) => {
                self.dead_in_epoch(instance, Some(node), epoch, Death::NotArrived);
            }
            (HostAction::Destroy { death, .. }, outcome) => self.ended(instance, death, outcome),
            (HostAction::Missing { node, epoch, .. }, Outcome::Done) => {
                self.dead_in_epoch(instance, Some(node), epoch, Death::NotHere);
            }
            (HostAction::Checkpoint { node, .. }, Outcome::Checkpointed { id, taken, pause_ms, bytes }) => {
                tracing::debug!(%node, checkpoint = %id, pause_ms, bytes, "checkpoint complete");
                self.parts.metrics.checkpoint_done(&node, taken, pause_ms, bytes);
            }
            (_, _) => {}
        }
    }

    /// A job of a session that is over: stock was taken since, so what it may have made is known or has no place here.
    fn outlived(&mut self, job: &Job) {
        let makes = matches!(
            job.action,
            HostAction::CreateIdle(_)
                | HostAction::Create { .. }
                | HostAction::Restore { .. }
                | HostAction::Accept { .. }
        );
        if makes && !self.local.contains_key(&job.instance) {
            self.destroy(job.instance, "it was made under a session that is over");
        }
    }

    fn idle_made(&mut self, instance: InstanceId, outcome: Outcome) {
        self.filling = false;
        let gone = matches!(outcome, Outcome::Died(_));
        match outcome {
            Outcome::Done => {
                self.content("pool");
                self.change(instance, Phase::Idle, "booted");
            }
            Outcome::Failed(reason) | Outcome::Died(reason) | Outcome::Unsure(reason) => {
                if gone {
                    self.local.remove(&instance);
                } else {
                    self.destroy(instance, &reason);
                }
                self.fill_after = now().boottime + FILL_RETRY;
                self.complain("pool", format!("cannot make an idle instance: {reason}"));
            }
            _ => {}
        }
    }

    /// This host's word that it has let go: the destination may let it run. What is known of its windows goes with it.
    pub(super) fn moved(&mut self, instance: InstanceId, node: Option<NodeId>, death: Death) {
        let windows = self.local.get(&instance).and_then(|local| local.fact.windows);
        self.dead(instance, node, death);
        self.edit(instance, |local| local.fact.windows = windows);
    }

    /// Windows and admissions survive a live migration: what the source reported of them stays true.
    fn arrived(
        &mut self,
        instance: InstanceId,
        node: NodeId,
        epoch: Epoch,
        from: &HostId,
        fresh: InstanceFact,
    ) {
        let reported = self.cluster.facts(from).and_then(|facts| facts.instances.get(&instance)).cloned();
        let fact = InstanceFact {
            phase: Phase::Ready,
            node: Some(node),
            epoch,
            since: now().wall,
            migration_failed: None,
            ..reported.unwrap_or(fresh)
        };
        tracing::info!(%instance, to = "ready", reason = "arrived by live migration", "instance changes");
        // Its newest checkpoint is good for it still: the next one is due as after one that was taken here.
        if let Some(node) = fact.node.clone() {
            self.taken.insert(node, now().boottime);
        }
        self.fallen.remove(&instance);
        self.local.insert(instance, Local { fact, paused: false });
    }

    fn release(&mut self, lane: (InstanceId, Lane), outcome: &Outcome) {
        let tries = match self.busy.remove(&lane) {
            Some(Busy::Waiting { tries, .. }) => tries,
            Some(Busy::Running) | None => 0,
        };
        if let Outcome::Failed(_) = outcome {
            let wait = RETRY.0.saturating_mul(1 << tries.min(8)).min(RETRY.1);
            self.busy.insert(lane, Busy::Waiting { until: now().boottime + wait, tries: tries + 1 });
        }
    }

    pub(super) fn edit(&mut self, instance: InstanceId, edit: impl FnOnce(&mut Local)) {
        if let Some(local) = self.local.get_mut(&instance) {
            edit(local);
        }
    }

    pub(super) fn change(&mut self, instance: InstanceId, to: Phase, reason: &str) {
        let Some(local) = self.local.get_mut(&instance) else { return };
        if local.fact.phase.is_dead() {
            return;
        }
        tracing::info!(%instance, from = local.fact.phase.as_str(), to = to.as_str(), reason, "instance changes");
        local.fact.phase = to;
        local.fact.since = now().wall;
    }

    pub(super) fn dead(&mut self, instance: InstanceId, node: Option<NodeId>, death: Death) {
        let epoch = self.local.get(&instance).map_or(Epoch(0), |local| local.fact.epoch);
        self.dead_in_epoch(instance, node, epoch, death);
    }

    pub(super) fn dead_in_epoch(
        &mut self,
        instance: InstanceId,
        node: Option<NodeId>,
        epoch: Epoch,
        death: Death,
    ) {
        let at = now().wall;
        let local = self.local.entry(instance).or_insert_with(|| Local {
            fact: InstanceFact {
                address: None,
                ..booting(node.clone(), Ipv4Addr::UNSPECIFIED, MiB(0), Vcpus(0))
            },
            paused: false,
        });
        if local.fact.phase.is_dead() && local.fact.epoch >= epoch {
            return;
        }
        tracing::info!(%instance, from = local.fact.phase.as_str(), to = "dead", reason = %death, "instance changes");
        local.fact.phase = Phase::Dead { death, at };
        local.fact.epoch = local.fact.epoch.max(epoch);
        local.fact.node = node.or_else(|| local.fact.node.clone());
        local.fact.since = at;
        local.fact.windows = None;
    }
}
