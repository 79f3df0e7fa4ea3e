//! Owns the carrying out of what the host's agent in core wants: inputs go in, effects become jobs and looks.
//!
//! Promises: no rule of core is repeated here. Must not do: decide.

use std::collections::{BTreeMap, VecDeque};

use understudy_core::host::{DomainEvent, Effect, HostSettings, Input, Records, Shown};
use understudy_core::model::ids::{HostId, InstanceId};
use understudy_core::model::units::Now;
use understudy_hypervisor::{EventKind, Hypervisor, InstanceState, Liveness, PauseCause, WatchdogAction};
use uuid::Uuid;

use super::{Agent, jobs::Job};
use crate::world::{POOL, World};

impl Agent {
    /// Hands core's agent an input, and carries out what follows.
    pub(super) fn inform(&mut self, world: &mut World, me: &HostId, input: Input) {
        let machine = world.machine(me);
        let now = Now { boottime: machine.boottime(world.now), wall: machine.wall(world.now) };
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for effect in self.host.handle(input, now) {
                inputs.extend(self.perform_effect(world, me, effect));
            }
        }
    }

    fn perform_effect(&mut self, world: &mut World, me: &HostId, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Start(job) => {
                self.next_job += 1;
                let job = Job::new(world, me, self, self.next_job, *job);
                self.jobs.push(job);
                None
            }
            Effect::Step { job, step } => self.begin_step(world, me, *job, step),
            Effect::List => {
                let here = world.machine(me).hypervisor.instances().ok();
                let shown =
                    here.map(|here| here.into_iter().map(|fact| (fact.id, shown(fact.state))).collect());
                Some(Input::Listed(shown))
            }
            Effect::LookFor(instance) => {
                let life = world.machine(me).hypervisor.liveness(instance);
                Some(Input::Looked { instance, there: life.ok().map(|life| life != Liveness::Gone) })
            }
            Effect::Send { node, id, revision, to } => {
                self.copies.begin(world, (node, id), revision, to);
                None
            }
            Effect::CancelSend { node, id, host, fault } => {
                world.verbose(|| format!("{me} ends the copy {id} of {node} to {host}: {fault:?}"));
                self.copies.cancel(node, id, &host);
                None
            }
            Effect::Discard { node, id } => {
                self.copies.discard(world, me, node, id);
                None
            }
            Effect::DropImages { node, .. } => {
                world.drop_images(me, &node);
                world.verbose(|| format!("{me} drops the images of {node}"));
                None
            }
            Effect::Raise(condition, text) => {
                self.conditions.insert(condition, text);
                None
            }
            Effect::Clear(condition) => {
                self.conditions.remove(&condition);
                None
            }
            Effect::Ended { .. }
            | Effect::Changed { .. }
            | Effect::DeathSeen
            | Effect::Checkpointed { .. } => None,
        }
    }

    pub(super) fn inform_of_records(&mut self, world: &mut World, me: &HostId) {
        let Some(cache) = &self.cache else { return };
        let records = Records::from(&**cache);
        self.inform(world, me, Input::Records(Box::new(records)));
    }

    /// All that it heard, then the time: core acts on it.
    pub(super) fn work(&mut self, world: &mut World, me: &HostId) {
        self.inform_of_records(world, me);
        let images = world.machine(me).images.keys().cloned().collect();
        self.inform(world, me, Input::Images(images));
        let open = self.lease.status().is_open(world.machine(me).boottime(world.now));
        self.inform(world, me, Input::Tick { open });
    }

    /// The connection to libvirtd.
    pub(super) fn watch_libvirtd(&mut self, world: &mut World, me: &HostId) {
        let lacks = world.lacks_libvirtd(me);
        if std::mem::replace(&mut self.lacks_libvirtd, lacks) != lacks {
            self.dirty = true;
            let event = if lacks { DomainEvent::Lost } else { DomainEvent::Regained };
            self.inform(world, me, Input::Hypervisor(event));
        }
    }

    /// What libvirt tells of guests.
    pub(super) fn watch_guests(&mut self, world: &mut World, me: &HostId) {
        while let Ok(event) = self.events.try_recv() {
            let event = match event.kind {
                EventKind::Panicked { id } => DomainEvent::Panicked(id),
                EventKind::Watchdog { id, action: WatchdogAction::None | WatchdogAction::Paused } => {
                    DomainEvent::Hangs(id)
                }
                EventKind::IoError { id, device, paused } => {
                    DomainEvent::DiskFailed { instance: id, device, paused }
                }
                // The pidfds and the connection are looked at by themselves.
                EventKind::Died { .. }
                | EventKind::ConnectionLost
                | EventKind::ConnectionRegained
                | EventKind::Emulates { .. }
                | EventKind::Lifecycle { .. }
                | EventKind::Agent { .. }
                | EventKind::Watchdog { action: WatchdogAction::Ended, .. } => continue,
            };
            self.dirty = true;
            self.inform(world, me, Input::Hypervisor(event));
        }
    }

    /// The pidfds: a process that has ended is known dead at once.
    pub(super) fn watch_processes(&mut self, world: &mut World, me: &HostId) {
        for instance in world.machine(me).hypervisor.ended(&self.watched) {
            self.watched.remove(&instance);
            self.dirty = true;
            let exited = DomainEvent::Exited { instance, detail: "qemu ended".to_owned() };
            self.inform(world, me, Input::Hypervisor(exited));
        }
    }

    /// Watches the process that runs an instance, if there is one.
    pub(super) fn watch(&mut self, world: &World, me: &HostId, instance: InstanceId) {
        let process = world.machine(me).hypervisor.process_of(instance);
        self.watched.extend(process.map(|process| (instance, process)));
    }
}

/// What an agent is set to. Each run of one names what it makes differently.
pub(super) fn settings(world: &mut World, me: &HostId) -> HostSettings {
    let number = world.machines.keys().position(|host| host == me).unwrap_or_default();
    let number = u8::try_from(number).unwrap_or(u8::MAX);
    HostSettings {
        me: me.clone(),
        memory: world.machine(me).memory,
        pool: POOL,
        addresses: [10, 0, number, 1].into()..=[10, 0, number, 254].into(),
        bounds: world.bounds,
        names: Uuid::from_u128(u128::from(world.rng.draw()) << 64 | 7),
    }
}

fn shown(state: InstanceState) -> Shown {
    match state {
        InstanceState::Crashed | InstanceState::Paused(PauseCause::Panicked) => Shown::Panicked,
        InstanceState::Paused(PauseCause::Watchdog) => Shown::Hangs,
        InstanceState::Paused(PauseCause::IoError) => Shown::DiskFailed,
        InstanceState::Paused(_)
        | InstanceState::Running
        | InstanceState::ShuttingDown
        | InstanceState::Off => Shown::Well,
    }
}

/// Nothing is wrong yet.
pub(super) type Conditions = BTreeMap<understudy_core::host::Condition, String>;
