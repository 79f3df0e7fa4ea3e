//! Owns the bookkeeping of jobs: starts what core asks for, and takes the results into what the agent knows.

use std::collections::{BTreeMap, BTreeSet};

use understudy_core::death::Death;
use understudy_core::host::{HostAction, Lane, Local, Situation, converge, forsaken};
use understudy_core::ids::{Epoch, HostId, InstanceId, NodeId};
use understudy_core::records::{CheckpointId, InstanceFact, Phase, WindowsSent};
use understudy_core::units::{MiB, Now, UnixMillis, Vcpus};
use understudy_core::view::View;
use uuid::Uuid;

use super::{Agent, Busy, jobs::Job};
use crate::Weakness;
use crate::machine::{Domain, Stage};
use crate::world::{POOL, World};

/// First and longest wait before a failed job is tried again.
const RETRY_MS: (u64, u64) = (200, 10_000);
const FILL_RETRY_MS: u64 = 5_000;
/// Before what could not be ended is tried again.
const END_RETRY_MS: u64 = 500;

/// How a job ended.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Done,
    Failed,
    Died(String),
    /// It failed, and may run on.
    Unsure(String),
    Guarded(Epoch),
    WindowsSent(WindowsSent),
    Restored,
    Moved,
    Gone,
    Stayed(String),
    Arrived(Box<InstanceFact>),
}

impl Agent {
    pub(super) fn work(&mut self, world: &mut World, me: &HostId, view: &View) {
        let clock = world.machine(me).boottime(world.now);
        let busy: BTreeSet<(InstanceId, Lane)> = self
            .busy
            .iter()
            .filter(|(_, busy)| match busy {
                Busy::Running => true,
                Busy::Waiting { until, .. } => *until > world.now,
            })
            .map(|(&lane, _)| lane)
            .chain(self.ending.iter().map(|&instance| (instance, Lane::Domain)))
            .collect();
        let images: BTreeSet<NodeId> = world.machine(me).images.keys().cloned().collect();
        let situation = Situation {
            me,
            session: self.lease.status().is_open(clock).then_some(self.number),
            draining: view.hosts.get(me).is_some_and(|host| host.intent.drain),
            nodes: &view.nodes,
            hosts: &view.hosts,
            checkpoints: &view.checkpoints,
            unreadable: self.mirror.as_ref().is_some_and(|mirror| !mirror.unread.is_empty()),
            local: &self.local,
            busy: &busy,
            images: &images,
            taken: &self.taken,
            checkpoint_interval: world.bounds.checkpoint_interval,
            pool: POOL,
            filling: self.filling || self.fill_after > world.now,
            free: self.free_memory(world, me, view),
            now: Now { boottime: clock, wall: world.machine(me).wall(world.now) },
            windows_first: world.bounds.windows_first,
        };
        let (actions, forsaken) = (converge(&situation), forsaken(&situation));
        for action in actions {
            self.start(world, me, action, view);
        }
        for instance in forsaken {
            let deploys = matches!(self.busy.get(&(instance, Lane::Domain)), Some(Busy::Running));
            if deploys {
                let reason = "no node names it as a member any more".to_owned();
                self.end(world, me, instance, Death::Destroyed { reason });
            }
        }
        for instance in self.asked_for(me) {
            let reason = "an operator asked for a failover".to_owned();
            self.end(world, me, instance, Death::Destroyed { reason });
        }
        self.end_what_is_left(world, me);
    }

    /// Primaries of this host that operators want replaced.
    fn asked_for(&self, me: &HostId) -> Vec<InstanceId> {
        let Some(mirror) = &self.mirror else { return Vec::new() };
        let records =
            mirror.failovers.iter().filter_map(|(node, epoch)| Some((mirror.nodes.get(node)?, epoch)));
        records
            .filter(|(known, epoch)| known.value.epoch == **epoch && known.value.migration.is_none())
            .filter_map(|(known, _)| known.value.primary.as_ref().filter(|primary| &primary.host == me))
            .filter_map(|primary| primary.instance)
            .filter(|instance| self.local.get(instance).is_some_and(|local| !local.fact.phase.is_dead()))
            .collect()
    }

    fn end(&mut self, world: &mut World, me: &HostId, instance: InstanceId, death: Death) {
        if self.ending.insert(instance) {
            self.spawn(world, me, HostAction::Destroy { instance, death }, instance);
        }
    }

    fn is_being_made(&self, instance: InstanceId) -> bool {
        self.jobs.iter().any(|job| job.instance == instance && job.makes())
    }

    fn end_what_is_left(&mut self, world: &mut World, me: &HostId) {
        let due = self.again.extract_if(.., |_, (at, _)| *at <= world.now).collect::<Vec<_>>();
        for (instance, (_, death)) in due {
            self.spawn(world, me, HostAction::Destroy { instance, death }, instance);
        }
    }

    fn free_memory(&self, world: &World, me: &HostId, view: &View) -> MiB {
        let touching = view.nodes.values().filter(|node| node.value.touches(me));
        let promised: MiB = touching.map(|node| node.value.spec.memory).sum();
        let spare = |local: &&Local| local.fact.node.is_none() && !local.fact.phase.is_dead();
        let idle: MiB = self.local.values().filter(spare).map(|local| local.fact.memory).sum();
        world.machine(me).memory.saturating_sub(promised + idle)
    }

    fn start(&mut self, world: &mut World, me: &HostId, action: HostAction, view: &View) {
        match action {
            HostAction::CreateIdle(pool) => {
                let instance = InstanceId::from_uuid(Uuid::from_u128(u128::from(world.rng.draw()) << 64 | 7));
                self.filling = true;
                self.make(world, me, instance, None, (pool.memory, pool.vcpus));
                self.spawn(world, me, action, instance);
            }
            HostAction::Create { ref node, instance, memory, vcpus, .. } => {
                self.make(world, me, instance, Some(node.clone()), (memory, vcpus));
                self.spawn(world, me, action, instance);
            }
            HostAction::Forget { instance } => {
                self.local.remove(&instance);
                self.busy.retain(|(of, _), _| *of != instance);
                self.ending.remove(&instance);
                self.again.remove(&instance);
            }
            HostAction::Missing { ref node, instance, epoch } => {
                world.machine_mut(me).domains.remove(&instance);
                self.dead_in_epoch(world, me, instance, Some(node.clone()), epoch, Death::NotHere);
            }
            HostAction::Destroy { instance, death } => self.end(world, me, instance, death),
            HostAction::DropImages { node } => {
                world.machine_mut(me).images.remove(&node);
                world.verbose(|| format!("{me} drops the images of {node}"));
            }
            action => self.start_on(world, me, action, view),
        }
    }

    /// A domain that begins to boot.
    fn make(
        &mut self,
        world: &mut World,
        me: &HostId,
        instance: InstanceId,
        node: Option<NodeId>,
        (memory, vcpus): (MiB, Vcpus),
    ) {
        let domain = Domain {
            life: world.next_life(),
            node: None,
            memory,
            stage: Stage::Booting { until: world.now + world.duration(500, 3_000) },
            deployed: false,
            acts: false,
            token: String::new(),
            generation: 0,
            counter: 0,
            admitted: BTreeMap::new(),
            windows: None,
        };
        self.watched.insert(instance, domain.life);
        let fact = booting(world.machine(me).wall(world.now), node, memory, vcpus);
        self.local.insert(instance, Local { fact, paused: false });
        world.machine_mut(me).domains.insert(instance, domain);
    }

    fn start_on(&mut self, world: &mut World, me: &HostId, action: HostAction, view: &View) {
        let Some((instance, _)) = action.lane() else { return };
        let wall = world.machine(me).wall(world.now);
        match &action {
            HostAction::Deploy { node, .. } => {
                self.change(wall, instance, Phase::Deploying);
                self.edit(instance, |local| local.fact.node = Some(node.clone()));
            }
            HostAction::Restore { node, epoch, .. } => {
                let spec = view.nodes.get(node).map(|known| &known.value.spec);
                let (memory, vcpus) = spec.map_or((MiB(0), Vcpus(0)), |spec| (spec.memory, spec.vcpus));
                let fact = InstanceFact {
                    phase: Phase::Restoring,
                    epoch: *epoch,
                    ..booting(wall, Some(node.clone()), memory, vcpus)
                };
                self.local.insert(instance, Local { fact, paused: true });
            }
            HostAction::MigrateOut { .. } => {
                self.leaving.insert(instance);
            }
            HostAction::Checkpoint { node, epoch, .. } => {
                self.taken.insert(node.clone(), world.machine(me).boottime(world.now));
                let known = view.checkpoints.get(node).filter(|known| known.value.id.epoch == *epoch);
                let newest = known.map_or(0, |known| known.value.id.sequence);
                let tried =
                    self.sequences.get(node).filter(|(of, _)| of == epoch).map_or(0, |(_, tried)| *tried);
                self.sequences.insert(node.clone(), (*epoch, newest.max(tried) + 1));
            }
            HostAction::Destroy { .. }
            | HostAction::CreateIdle(_)
            | HostAction::Create { .. }
            | HostAction::Guard { .. }
            | HostAction::Admit { .. }
            | HostAction::SendWindows(_)
            | HostAction::Accept { .. }
            | HostAction::Forget { .. }
            | HostAction::Missing { .. }
            | HostAction::DropImages { .. } => {}
        }
        self.spawn(world, me, action, instance);
    }

    /// The checkpoint that a job takes.
    pub(super) fn sequence(&self, node: &NodeId, epoch: Epoch) -> CheckpointId {
        let sequence = self.sequences.get(node).map_or(1, |(_, sequence)| *sequence);
        CheckpointId { epoch, sequence }
    }

    fn spawn(&mut self, world: &mut World, me: &HostId, action: HostAction, instance: InstanceId) {
        if let Some(lane) = action.lane() {
            let running = match self.busy.get(&lane) {
                Some(Busy::Waiting { tries, .. }) => Busy::Waiting { until: u64::MAX, tries: *tries },
                Some(Busy::Running) | None => Busy::Running,
            };
            self.busy.insert(lane, running);
        }
        self.next_job += 1;
        let job = Job::new(world, me, self, self.next_job, action, instance);
        self.jobs.push(job);
    }

    /// What failed is tried again after a growing while.
    fn release(&mut self, world: &World, job: &Job, outcome: &Outcome) {
        let Some(lane) = job.action.lane() else { return };
        let tries = match self.busy.remove(&lane) {
            Some(Busy::Waiting { tries, .. }) => tries,
            Some(Busy::Running) | None => 0,
        };
        if matches!(outcome, Outcome::Failed) {
            let wait = (RETRY_MS.0 << tries.min(8)).min(RETRY_MS.1);
            self.busy.insert(lane, Busy::Waiting { until: world.now + wait, tries: tries + 1 });
        }
    }

    pub(super) fn finish(&mut self, world: &mut World, me: &HostId, job: Job, outcome: Outcome) {
        self.dirty = true;
        self.release(world, &job, &outcome);
        let wall = world.machine(me).wall(world.now);
        let instance = job.instance;
        let failed = |detail: String| Death::DeployFailed { detail };
        match (job.action, outcome) {
            // It is to end, which says more than what became of its making.
            (HostAction::Create { .. } | HostAction::Restore { .. }, _)
                if self.ending.contains(&instance) => {}
            (HostAction::CreateIdle(_), Outcome::Done) => {
                self.filling = false;
                self.change(wall, instance, Phase::Idle);
            }
            (HostAction::CreateIdle(_), _) => {
                self.filling = false;
                self.fill_after = world.now + FILL_RETRY_MS;
                self.local.remove(&instance);
            }
            (HostAction::Create { .. }, Outcome::Done) => self.change(wall, instance, Phase::Idle),
            (HostAction::Create { node, .. } | HostAction::Deploy { node, .. }, Outcome::Died(reason)) => {
                self.dead(world, me, instance, Some(node), failed(reason));
            }
            (HostAction::Guard { .. }, Outcome::Guarded(epoch)) => {
                self.edit(instance, |local| local.fact.epoch = epoch);
            }
            (HostAction::Deploy { .. }, Outcome::Done) => self.change(wall, instance, Phase::Ready),
            (HostAction::Admit { node, begun, .. }, Outcome::Done) => self.edit(instance, |local| {
                local.fact.admitted.insert(node, begun);
            }),
            (HostAction::SendWindows(_), Outcome::WindowsSent(sent)) => {
                self.edit(instance, |local| local.fact.windows = Some(sent));
            }
            (HostAction::Restore { .. }, Outcome::Restored) => {
                self.edit(instance, |local| local.paused = false);
                self.change(wall, instance, Phase::Ready);
            }
            (HostAction::Restore { node, epoch, .. }, Outcome::Died(reason)) => {
                self.dead_in_epoch(world, me, instance, Some(node), epoch, failed(reason));
            }
            (HostAction::MigrateOut { node, to, .. }, Outcome::Moved) => {
                self.leaving.remove(&instance);
                self.watched.remove(&instance);
                self.dead(world, me, instance, Some(node), Death::Moved { to });
            }
            (HostAction::MigrateOut { node, to, .. }, Outcome::Gone) => {
                self.leaving.remove(&instance);
                self.watched.remove(&instance);
                self.dead(world, me, instance, Some(node), Death::MaybeMoved { to });
            }
            (HostAction::MigrateOut { epoch, .. }, Outcome::Stayed(why)) => {
                self.leaving.remove(&instance);
                self.edit(instance, |local| local.fact.migration_failed = Some((epoch, why)));
            }
            (HostAction::MigrateOut { node, .. }, Outcome::Died(reason)) => {
                self.leaving.remove(&instance);
                self.dead(world, me, instance, Some(node), Death::Exited { detail: reason });
            }
            (HostAction::Accept { node, .. }, Outcome::Arrived(fact)) => {
                self.taken.insert(node, world.machine(me).boottime(world.now));
                self.local.insert(instance, Local { fact: *fact, paused: false });
            }
            (HostAction::Accept { node, epoch, .. }, Outcome::Died(_)) => {
                self.dead_in_epoch(world, me, instance, Some(node), epoch, Death::NotArrived);
            }
            (
                HostAction::Create { .. } | HostAction::Deploy { .. } | HostAction::Restore { .. },
                Outcome::Unsure(why),
            ) => {
                self.end(world, me, instance, failed(why));
            }
            // It stays what it was until it is known to be gone (SAFE-2), and what makes it may not have come to that yet.
            (HostAction::Destroy { death, .. }, outcome)
                if (matches!(outcome, Outcome::Failed) || self.is_being_made(instance))
                    && world.weakness != Some(Weakness::TrustsEnds) =>
            {
                self.again.insert(instance, (world.now + END_RETRY_MS, death));
            }
            (HostAction::Destroy { death, .. }, _) => {
                self.ending.remove(&instance);
                self.dead(world, me, instance, None, death);
            }
            (_, _) => {}
        }
    }

    pub(super) fn edit(&mut self, instance: InstanceId, edit: impl FnOnce(&mut Local)) {
        if let Some(local) = self.local.get_mut(&instance) {
            edit(local);
        }
    }

    fn change(&mut self, wall: UnixMillis, instance: InstanceId, to: Phase) {
        self.edit(instance, |local| {
            if !local.fact.phase.is_dead() {
                local.fact.phase = to;
                local.fact.since = wall;
            }
        });
    }

    pub(super) fn watch(&mut self, instance: InstanceId, life: u64) {
        self.watched.insert(instance, life);
    }

    pub(super) fn dead(
        &mut self,
        world: &World,
        me: &HostId,
        instance: InstanceId,
        node: Option<NodeId>,
        death: Death,
    ) {
        let epoch = self.local.get(&instance).map_or(Epoch(0), |local| local.fact.epoch);
        self.dead_in_epoch(world, me, instance, node, epoch, death);
    }

    fn dead_in_epoch(
        &mut self,
        world: &World,
        me: &HostId,
        instance: InstanceId,
        node: Option<NodeId>,
        epoch: Epoch,
        death: Death,
    ) {
        let at = world.machine(me).wall(world.now);
        let local = self
            .local
            .entry(instance)
            .or_insert_with(|| Local { fact: booting(at, node.clone(), MiB(0), Vcpus(0)), paused: false });
        if local.fact.phase.is_dead() && local.fact.epoch >= epoch {
            return;
        }
        local.fact.phase = Phase::Dead { death, at };
        local.fact.epoch = local.fact.epoch.max(epoch);
        local.fact.node = node.or_else(|| local.fact.node.clone());
        local.fact.since = at;
        self.dirty = true;
    }
}

pub(super) fn booting(since: UnixMillis, node: Option<NodeId>, memory: MiB, vcpus: Vcpus) -> InstanceFact {
    InstanceFact {
        phase: Phase::Booting,
        node,
        epoch: Epoch(0),
        address: Some([10, 0, 0, 1].into()),
        memory,
        vcpus,
        since,
        windows: None,
        admitted: BTreeMap::new(),
        migration_failed: None,
    }
}
