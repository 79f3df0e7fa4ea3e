//! Owns what becomes of a job's outcome: the state of the instances.
//!
//! Promises: each change of an instance's phase is said once; a job of a lease that is over changes nothing; a dead
//! instance stays dead; a restore is given up only for its image, or to another host with a copy, and tried again for
//! anything else (SAFE-9). Must not do: start jobs.

use std::net::Ipv4Addr;

use super::starts::booting;
use super::{
    Busy, Condition, Death, Effect, Epoch, HostAction, HostAgent, Job, Lane, Loaded, Local, Outcome, RETRY,
    Retry,
};
use crate::bounds::{FILL_RETRY, RESTORE_PATIENCE};
use crate::model::ids::{HostId, InstanceId, NodeId};
use crate::model::records::{InstanceFact, Phase};
use crate::model::units::{MiB, Vcpus};

/// How often in a row, and for [`RESTORE_PATIENCE`] at least, an image may be refused without a word on whether it is
/// damaged, before it counts as damaged: a hypervisor that restarts refuses too, and so does one without its bridge yet.
const REFUSALS: u32 = 4;

/// What comes after a job on its lane.
pub(super) enum Next {
    Free,
    /// The second half of a work that counts as one.
    Half,
    /// The same once more.
    Again,
}

impl HostAgent {
    pub(super) fn finish(&mut self, job: Job, outcome: Outcome) {
        if job.makes() {
            self.starting.remove(&(job.instance, job.lease));
        }
        let acts = |(instance, lease): &(InstanceId, u64)| (*instance, *lease) == (job.instance, job.lease);
        if job.acts()
            && let Some(at) = self.acting.iter().position(acts)
        {
            self.acting.swap_remove(at);
        }
        let destroys = matches!(job.action, HostAction::Destroy { .. });
        // Without a lease only what is being ended is gone on with.
        if job.lease != self.lease || (!self.standing.has_lease() && !destroys) {
            self.outlived(&job, &outcome);
            return;
        }
        if matches!(job.action, HostAction::Checkpoint { .. }) {
            return self.checkpoint_saved(&job, outcome);
        }
        if let Some(lane) = job.action.lane().filter(|_| !destroys) {
            let restores = matches!(job.action, HostAction::Restore { .. } | HostAction::Resume { .. });
            let next = match outcome {
                Outcome::Failed(_) | Outcome::Refused(_) => Next::Again,
                Outcome::Unsure(_) if restores => Next::Again,
                Outcome::Loaded { .. } => Next::Half,
                _ => Next::Free,
            };
            self.release(lane, next);
        }
        let instance = job.instance;
        self.concluded(job, outcome);
        self.look_for_what_exited(instance);
    }

    /// The lane is free, at once or after a wait that grows with each failure in a row.
    pub(super) fn release(&mut self, lane: (InstanceId, Lane), next: Next) {
        let tries = match self.lanes.remove(&lane) {
            Some(Busy::Running { tries } | Busy::Waiting { tries, .. }) => tries,
            None => 0,
        };
        let now = self.now.boottime;
        let waits = match next {
            Next::Free => return,
            Next::Half => Busy::Waiting { until: now, tries },
            Next::Again => Busy::Waiting { until: now + RETRY.wait(tries), tries: tries.saturating_add(1) },
        };
        self.lanes.insert(lane, waits);
    }

    fn concluded(&mut self, job: Job, outcome: Outcome) {
        let instance = job.instance;
        match (job.action, outcome) {
            (HostAction::Destroy { .. }, outcome) => self.destroy_finished(instance, outcome),
            // It is to be destroyed, which says more than what became of its making.
            (HostAction::Create { .. } | HostAction::Restore { .. } | HostAction::Resume { .. }, _)
                if self.destroys.contains_key(&instance) => {}
            (HostAction::CreateIdle(_), outcome) => self.idle_made(instance, outcome),
            (HostAction::Create { .. }, Outcome::Done) => self.change(instance, Phase::Idle, "booted"),
            (HostAction::Create { .. }, Outcome::Failed(detail) | Outcome::Unsure(detail)) => {
                self.destroy_as(instance, Death::DeployFailed { detail });
            }
            (HostAction::Guard { .. }, Outcome::Guarded(epoch)) => {
                self.edit(instance, |local| {
                    local.fact.epoch = epoch;
                    local.unguarded = false;
                });
            }
            (HostAction::Deploy { .. }, Outcome::Done) => {
                self.change(instance, Phase::Ready, "its role reported ready");
            }
            (HostAction::Create { node, .. }, Outcome::Died(detail)) => {
                self.dead(instance, Some(node), Death::DeployFailed { detail });
            }
            // One that was destroyed meanwhile, because nobody wanted it any more, may be forgotten already.
            (HostAction::Deploy { node, .. }, Outcome::Died(detail))
                if self.local.contains_key(&instance) =>
            {
                self.dead(instance, Some(node), Death::DeployFailed { detail });
            }
            (HostAction::Deploy { .. }, Outcome::Unsure(detail)) if self.local.contains_key(&instance) => {
                self.destroy_as(instance, Death::DeployFailed { detail });
            }
            (HostAction::Admit { node, incarnation, .. }, Outcome::Done) => self.edit(instance, |local| {
                local.fact.admitted.insert(node, incarnation);
            }),
            (HostAction::SendWindows(_), Outcome::WindowsSent(sent)) => {
                self.edit(instance, |local| local.fact.windows = Some(sent));
            }
            (HostAction::Restore { node, epoch, .. } | HostAction::Resume { node, epoch, .. }, outcome) => {
                self.restored(instance, node, epoch, outcome);
            }
            (HostAction::MigrateOut { node, to, .. }, Outcome::Moved) => {
                self.moved(instance, Some(node), Death::Moved { to });
            }
            (HostAction::MigrateOut { node, to, .. }, Outcome::Gone) => {
                self.moved(instance, Some(node), Death::MaybeMoved { to });
            }
            (HostAction::MigrateOut { epoch, .. }, Outcome::Stayed(why)) => {
                self.edit(instance, |local| local.fact.migration_failed = Some((epoch, why)));
            }
            // What the destination may have of it is newer than any checkpoint: its word decides.
            (HostAction::MigrateOut { node, to, .. }, Outcome::Died(_)) => {
                self.moved(instance, Some(node), Death::MaybeMoved { to });
            }
            (HostAction::Accept { node, epoch, from, .. }, Outcome::Arrived { memory, vcpus, address }) => {
                let fresh = booting(self.now.wall, None, address, memory, vcpus);
                self.arrived(instance, node, epoch, &from, fresh);
            }
            (HostAction::Accept { node, epoch, .. }, Outcome::Died(_)) => {
                self.dead_in_epoch(instance, Some(node), epoch, Death::NotArrived);
            }
            (HostAction::Missing { node, epoch, .. }, Outcome::Done) => {
                self.dead_in_epoch(instance, Some(node), epoch, Death::NotHere);
            }
            (_, _) => {}
        }
    }

    /// A job of a lease that is over: what is here was looked at since, so what the job may have made is known or has no
    /// place here.
    fn outlived(&mut self, job: &Job, outcome: &Outcome) {
        let withdrawn = matches!(job.action, HostAction::Accept { .. }) && *outcome == Outcome::Done;
        let brings = job.makes()
            || matches!(job.action, HostAction::Accept { .. } | HostAction::Resume { .. }) && !withdrawn;
        if brings && !self.local.contains_key(&job.instance) {
            self.destroy(job.instance, "it was made under a lease that is over");
        }
    }

    fn idle_made(&mut self, instance: InstanceId, outcome: Outcome) {
        self.filling = false;
        let reason = match outcome {
            Outcome::Died(reason) => {
                self.local.remove(&instance);
                reason
            }
            Outcome::Failed(reason) | Outcome::Unsure(reason) => {
                self.destroy(instance, &reason);
                reason
            }
            Outcome::Done => {
                self.clear(Condition::Pool);
                return self.change(instance, Phase::Idle, "booted");
            }
            _ => return,
        };
        self.fill_after = self.now.boottime + FILL_RETRY;
        self.raise(Condition::Pool, format!("cannot make an idle instance: {reason}"));
    }

    /// The state is on this host's disk. Only what is wrong with the image itself ends it: a guard, a libvirtd or a disk
    /// that does not answer is there again later, and so is room under /run.
    fn restored(&mut self, instance: InstanceId, node: NodeId, epoch: Epoch, outcome: Outcome) {
        let now = self.now.boottime;
        let (refusals, since) =
            self.restores.get(&instance).map_or((0, now), |retry| (retry.refusals, retry.since));
        let patient = now.since(since) < RESTORE_PATIENCE || !self.others_may_restore(&node);
        let (reason, refusals) = match outcome {
            Outcome::Loaded { address } => {
                self.loaded.insert(instance, Loaded { since: self.now.boottime, address });
                return;
            }
            Outcome::Done => {
                let address = self.loaded.remove(&instance).and_then(|loaded| loaded.address);
                self.edit(instance, |local| {
                    local.paused = false;
                    local.fact.address = address;
                });
                self.change(instance, Phase::Ready, "restored");
                self.restores.remove(&instance);
                return self.show_restores();
            }
            Outcome::Damaged(detail) | Outcome::Died(detail) => {
                return self.dead_in_epoch(instance, Some(node), epoch, Death::DeployFailed { detail });
            }
            Outcome::Refused(detail) if refusals + 1 >= REFUSALS && now.since(since) >= RESTORE_PATIENCE => {
                return self.dead_in_epoch(instance, Some(node), epoch, Death::DeployFailed { detail });
            }
            Outcome::Refused(reason) => (reason, refusals + 1),
            // Until nothing of the try is left the node is not restored elsewhere.
            Outcome::Unsure(detail) if !patient => {
                return self.destroy_as(instance, Death::NotRestored { detail });
            }
            Outcome::Unsure(reason) => {
                self.destroy_before_another_try(instance, Death::DeployFailed { detail: reason.clone() });
                (reason, 0)
            }
            Outcome::Failed(detail) if !patient => {
                return self.dead_in_epoch(instance, Some(node), epoch, Death::NotRestored { detail });
            }
            Outcome::Failed(reason) => (reason, 0),
            _ => return,
        };
        // What the last try left is gone, or will be.
        self.loaded.remove(&instance);
        self.exited.remove(&instance);
        self.restores.insert(instance, Retry { node, reason, refusals, since });
        self.show_restores();
    }

    /// Whether another host that can do its part has a copy of a node's state as far as the leader knew, and did not fail to restore it a moment ago: two
    /// that both lack room do not pass it to each other.
    fn others_may_restore(&self, node: &NodeId) -> bool {
        let (view, now, bounds) = (&self.records.view, self.now.wall, &self.settings.bounds);
        let record = view.nodes.get(node).map(|known| &known.value);
        let failed = |host: &HostId| {
            let mut cooldowns = record.into_iter().flat_map(|record| &record.cooldowns);
            // One that lies ahead is of a leader with another clock.
            cooldowns.any(|one| one.bars_a_restore_on(host) && now.since(one.at) < bounds.cooldown)
        };
        let has_room = |host: &HostId| {
            record.is_some_and(|record| record.touches(host) || view.room(host) >= record.spec.memory)
        };
        let able = |host: &HostId| view.hosts.get(host).is_some_and(|seen| seen.is_able()) && has_room(host);
        let mut others = record.into_iter().flat_map(|record| &record.keepers);
        others.any(|host| *host != self.settings.me && able(host) && !failed(host))
    }

    pub(super) fn show_restores(&mut self) {
        // What a try left is destroyed and forgotten between two tries: they are tries of one restore.
        let (local, destroys, nodes) = (&self.local, &self.destroys, &self.records.view.nodes);
        let wanted = |instance: InstanceId, node: &NodeId| {
            let primary = nodes.get(node).and_then(|known| known.value.primary.as_ref());
            primary
                .is_some_and(|primary| primary.instance == Some(instance) && primary.host == self.settings.me)
        };
        self.restores.retain(|instance, retry| match local.get(instance) {
            Some(local) => !local.fact.phase.is_dead(),
            None => destroys.contains_key(instance) || wanted(*instance, &retry.node),
        });
        let shown = |(instance, retry): (&InstanceId, &Retry)| {
            let Retry { node, reason, .. } = retry;
            format!(
                "instance {instance} of {node} cannot be restored yet, its checkpoint is kept and it is tried again: \
                 {reason}: see systemctl status understudy-guard libvirtd, and the room on this host's disks"
            )
        };
        let shown: Vec<String> = self.restores.iter().map(shown).collect();
        if shown.is_empty() {
            self.clear(Condition::Restores);
        } else {
            self.raise(Condition::Restores, shown.join("\n"));
        }
    }

    /// This host's word that it has released it: the destination may let it run. What is known of its windows goes with it.
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
        let source = self.records.view.hosts.get(from).and_then(|host| host.facts.as_ref());
        let reported = source.and_then(|facts| facts.instances.get(&instance)).cloned();
        // Its newest checkpoint is good for it still: the next one is due as after one that was taken here.
        self.checkpoints.last_checkpoint.insert(node.clone(), self.now.boottime);
        let fact = InstanceFact {
            phase: Phase::Ready,
            node: Some(node),
            epoch,
            since: self.now.wall,
            migration_failed: None,
            ..reported.unwrap_or(fresh)
        };
        self.changed(instance, None, &Phase::Ready, "arrived by live migration");
        self.exited.remove(&instance);
        self.local.insert(instance, Local::of(fact));
        // It has run since it was resumed, and its end is told once: nothing knew it then.
        self.look_for(instance);
    }

    pub(super) fn edit(&mut self, instance: InstanceId, edit: impl FnOnce(&mut Local)) {
        if let Some(local) = self.local.get_mut(&instance) {
            edit(local);
        }
    }

    pub(super) fn change(&mut self, instance: InstanceId, to: Phase, reason: &str) {
        let Some(from) = self.local.get(&instance).map(|local| local.fact.phase.clone()) else { return };
        if from.is_dead() {
            return;
        }
        self.changed(instance, Some(&from), &to, reason);
        let since = self.now.wall;
        self.edit(instance, |local| {
            local.fact.phase = to;
            local.fact.since = since;
        });
    }

    pub(super) fn changed(&mut self, instance: InstanceId, from: Option<&Phase>, to: &Phase, reason: &str) {
        let (from, to, reason) = (from.map(Phase::as_str), to.as_str(), reason.to_owned());
        self.effect(Effect::Changed { instance, from, to, reason });
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
        let at = self.now.wall;
        let known = self.local.get(&instance).map(|local| (local.fact.phase.clone(), local.fact.epoch));
        if known.as_ref().is_some_and(|(phase, of)| phase.is_dead() && *of >= epoch) {
            return;
        }
        let phase = Phase::Dead { death: death.clone(), at };
        self.changed(instance, known.as_ref().map(|(phase, _)| phase), &phase, &death.to_string());
        let fresh = || booting(at, node.clone(), None::<Ipv4Addr>, MiB(0), Vcpus(0));
        let local = self.local.entry(instance).or_insert_with(|| Local::of(fresh()));
        local.fact.phase = phase;
        local.fact.epoch = local.fact.epoch.max(epoch);
        local.fact.node = node.or_else(|| local.fact.node.clone());
        local.fact.since = at;
        local.fact.windows = None;
        self.loaded.remove(&instance);
        self.show_restores();
    }
}
