//! Owns one simulated host: its instances, permits and role disks, what goes wrong on it, and who listens.
//!
//! Promises: what happens is told as libvirt and the watch on processes tell it. Must not do: know of other hosts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_core::model::units::Boottime;

use super::guest::Memory;
use super::{Fault, Operation, Snapshots};
use crate::event::{EventKind, Hub, HypervisorEvent, Lifecycle, StartCause, StopCause};
use crate::process::Pid;
use crate::types::{Capacity, InstanceFact, InstanceSpec, InstanceState, MacAddress, PauseCause};

pub(super) struct Host<G> {
    pub(super) capacity: Capacity,
    pub(super) up: bool,
    /// Everything on it stands still.
    pub(super) frozen: bool,
    pub(super) libvirt_up: bool,
    /// No process here ends for being told to by [`crate::Hypervisor::destroy`].
    pub(super) resists: bool,
    /// How long guests that are created here boot.
    pub(super) boots_for: Duration,
    pub(super) instances: BTreeMap<InstanceId, Instance<G>>,
    /// Unused permits; `None` when no hook is installed.
    pub(super) permits: Option<BTreeMap<InstanceId, Epoch>>,
    pub(super) role_disks: BTreeMap<PathBuf, Result<(), String>>,
    pub(super) snapshots: Snapshots,
    /// Of which the next snapshot breaks off.
    pub(super) breaking: BTreeSet<InstanceId>,
    pub(super) faults: VecDeque<(Operation, Fault)>,
    /// Faults that last.
    pub(super) failing: BTreeMap<Operation, Fault>,
    pub(super) hub: Hub,
}

/// A qemu process and what is in it, as nobody but its user sees it: from outside.
#[derive(Clone)]
pub struct Instance<G> {
    pub(super) fact: InstanceFact,
    pub(super) ram_only: bool,
    pub(super) agent_answers: bool,
    pub(super) hangs: bool,
    /// Its processors wait for a page for ever, and libvirt says that they run.
    pub(super) stuck: bool,
    /// Its guest boots until then.
    pub(super) boots_until: Option<Boottime>,
    /// Only a part of it has come, by a migration that goes on.
    pub(super) arrives: bool,
    pub(super) memory: G,
}

#[derive(Clone)]
pub(super) struct Image<G> {
    pub(super) instance: Instance<G>,
    pub(super) whole: bool,
}

impl<G: Memory> Instance<G> {
    pub(super) fn booted(spec: &InstanceSpec, boots_until: Option<Boottime>) -> Self {
        let fact = InstanceFact {
            id: spec.id,
            name: spec.name.clone(),
            state: InstanceState::Running,
            pid: None,
            note: spec.note,
            memory: spec.memory,
            vcpus: spec.vcpus,
            mac: Some(spec.mac.unwrap_or_else(|| MacAddress::derived(spec.id))),
            link_up: true,
            agent_connected: boots_until.is_none(),
            role_disk: None,
        };
        let ram_only = spec.template.ram_only();
        let memory = G::default();
        Self {
            fact,
            ram_only,
            agent_answers: true,
            hangs: false,
            stuck: false,
            boots_until,
            arrives: false,
            memory,
        }
    }

    /// What libvirt says of it.
    #[must_use]
    pub fn fact(&self) -> &InstanceFact {
        &self.fact
    }

    /// What its guest keeps in its memory.
    #[must_use]
    pub fn memory(&self) -> &G {
        &self.memory
    }

    /// Whether its guest has booted and its processors run.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.fact.state == InstanceState::Running && self.boots_until.is_none() && !self.stuck
    }

    pub(super) fn pause(&mut self, cause: PauseCause) {
        self.fact.state = InstanceState::Paused(cause);
    }
}

impl<G: Memory> Host<G> {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            up: true,
            frozen: false,
            libvirt_up: true,
            resists: false,
            boots_for: Duration::ZERO,
            instances: BTreeMap::new(),
            permits: None,
            role_disks: BTreeMap::new(),
            snapshots: Snapshots::default(),
            breaking: BTreeSet::new(),
            faults: VecDeque::new(),
            failing: BTreeMap::new(),
            hub: Hub::default(),
        }
    }

    pub(super) fn runs(&self) -> bool {
        self.up && !self.frozen
    }

    /// Whether its libvirt answers whoever can reach it.
    pub(super) fn answers(&self) -> bool {
        self.runs() && self.libvirt_up
    }

    /// Time has passed here.
    pub(super) fn run(&mut self, clock: Boottime, by: Duration) {
        for (&id, instance) in &mut self.instances {
            match instance.boots_until {
                Some(until) if until <= clock => {
                    (instance.boots_until, instance.fact.agent_connected) = (None, true);
                    if self.libvirt_up {
                        let kind = EventKind::Agent { id, connected: true };
                        self.hub.send(&HypervisorEvent { at: clock, kind });
                    }
                }
                Some(_) => {}
                None if instance.runs() => instance.memory.run(by),
                None => {}
            }
        }
    }

    /// A new process, as `pid`, of an instance that is permitted here, or nothing.
    pub(super) fn begin(
        &mut self,
        clock: Boottime,
        mut instance: Instance<G>,
        (pid, cause): (Pid, StartCause),
    ) -> Option<InstanceFact> {
        let (id, own) = (instance.fact.id, instance.fact.note.epoch);
        if !self.uses_permit(id, own) {
            return None;
        }
        instance.fact.pid = Some(pid);
        self.tell_change(clock, id, Lifecycle::Started(cause));
        if let InstanceState::Paused(cause) = instance.fact.state {
            self.tell_change(clock, id, Lifecycle::Suspended(cause));
        }
        if instance.runs() {
            self.tell(clock, EventKind::Agent { id, connected: true });
        }
        let fact = instance.fact.clone();
        // Another process: what hung was the one that it comes from.
        (instance.hangs, instance.stuck) = (false, false);
        self.instances.insert(id, instance);
        Some(fact)
    }

    /// Ends the process of an instance, if there is one.
    pub(super) fn end(&mut self, clock: Boottime, id: InstanceId, cause: StopCause) {
        let Some(instance) = self.instances.remove(&id) else { return };
        if let Some(pid) = instance.fact.pid {
            self.tell(clock, EventKind::Died { id, pid });
        }
        self.tell_change(clock, id, Lifecycle::Stopped(cause));
    }

    pub(super) fn tell(&self, at: Boottime, kind: EventKind) {
        self.hub.send(&HypervisorEvent { at, kind });
    }

    pub(super) fn tell_change(&self, at: Boottime, id: InstanceId, change: Lifecycle) {
        if self.libvirt_up {
            self.tell(at, EventKind::Lifecycle { id, change });
        }
    }

    /// Uses up a permit for an instance that carries `own` as its epoch.
    fn uses_permit(&mut self, id: InstanceId, own: Epoch) -> bool {
        match &mut self.permits {
            None => true,
            Some(permits) => {
                let fresh = permits.get(&id).is_some_and(|&epoch| epoch >= own);
                if fresh {
                    permits.remove(&id);
                }
                fresh
            }
        }
    }

    pub(super) fn fault(&mut self, operation: Operation) -> Option<Fault> {
        match self.faults.iter().position(|&(hit, _)| hit == operation) {
            Some(at) => self.faults.remove(at).map(|(_, fault)| fault),
            None => self.failing.get(&operation).copied(),
        }
    }
}
