//! Owns what is done to a simulated host from outside: its set-up, its permits, its faults, and looks at what really runs.
//!
//! Promises: a look changes nothing and needs no libvirt. Must not do: anything that a hypervisor's caller could do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_core::model::units::Boottime;

use super::guest::Memory;
use super::host::{Host, Instance};
use super::{FakeHypervisor, Fault, Operation};
use crate::event::{EventKind, StopCause, WatchdogAction};
use crate::process::Pid;
use crate::types::{InstanceState, PauseCause};

impl<G: Memory> FakeHypervisor<G> {
    /// The next operation of this group fails so. Faults of one group are used up in order.
    pub fn inject(&self, operation: Operation, fault: Fault) {
        self.with(|host, _| host.faults.push_back((operation, fault)));
    }

    /// Operations of this group fail so from here on, or not any more. What was put there by [`Self::inject`] comes first.
    pub fn set_failing(&self, operation: Operation, fault: Option<Fault>) {
        self.with(|host, _| match fault {
            Some(fault) => host.failing.insert(operation, fault),
            None => host.failing.remove(&operation),
        });
    }

    /// Puts a role disk onto the host: a whole one, or one that is damaged as said.
    pub fn put_role_disk(&self, path: &Path, state: Result<(), String>) {
        self.with(|host, _| host.role_disks.insert(path.to_owned(), state));
    }

    /// Guests that are created here from now on boot for so long, and are silent until then.
    pub fn set_boot_time(&self, takes: Duration) {
        self.with(|host, _| host.boots_for = takes);
    }

    /// Installs the permit hook: from here on nothing comes to life without a permit.
    pub fn require_permits(&self) {
        self.with(|host, _| {
            host.permits.get_or_insert_default();
        });
    }

    /// Lets an instance come to life once, in an epoch.
    pub fn permit(&self, id: InstanceId, epoch: Epoch) {
        self.with(|host, _| host.permits.get_or_insert_default().insert(id, epoch));
    }

    /// Takes an unused permit back. None is fine.
    pub fn revoke(&self, id: InstanceId) {
        self.with(|host, _| host.permits.as_mut().map(|permits| permits.remove(&id)));
    }

    /// Kills the process that runs an instance, whatever it resists.
    pub fn kill(&self, id: InstanceId) {
        self.with(|host, clock| host.end(clock, id, StopCause::Failed));
    }

    /// The guest's kernel panics; the process stays for a look.
    pub fn panic_guest(&self, id: InstanceId) {
        self.on(id, |instance| {
            instance.fact.state = InstanceState::Crashed;
            instance.agent_answers = false;
            Some(EventKind::Panicked { id })
        });
    }

    /// A disk of the guest does not do as asked; `stops`: the guest stands still for it.
    pub fn fail_disk(&self, id: InstanceId, device: &str, stops: bool) {
        self.on(id, |instance| {
            if stops {
                instance.pause(PauseCause::IoError);
            }
            Some(EventKind::IoError { id, device: device.to_owned(), paused: stops })
        });
    }

    /// The guest hangs and does not feed its watchdog.
    pub fn hang_guest(&self, id: InstanceId) {
        self.on(id, |instance| {
            instance.agent_answers = false;
            Some(EventKind::Watchdog { id, action: WatchdogAction::None })
        });
    }

    /// The guest's agent answers no more, or again.
    pub fn set_agent_answers(&self, id: InstanceId, answers: bool) {
        self.on(id, |instance| {
            instance.agent_answers = answers;
            None
        });
    }

    /// The process that runs an instance hangs in the kernel and outlives every signal, or not any more.
    pub fn set_unkillable(&self, id: InstanceId, hangs: bool) {
        self.on(id, |instance| {
            instance.hangs = hangs;
            None
        });
    }

    /// The same of all processes of this host, whenever they began.
    pub fn set_all_unkillable(&self, hang: bool) {
        self.with(|host, _| host.resists = hang);
    }

    /// libvirtd is stopped or started. Instances run on; their deaths are told meanwhile.
    pub fn set_libvirt_up(&self, up: bool) {
        self.with(|host, clock| {
            if host.libvirt_up != up {
                host.libvirt_up = up;
                host.tell(clock, if up { EventKind::ConnectionRegained } else { EventKind::ConnectionLost });
            }
        });
    }

    /// KVM turns out not to work here, for this reason.
    pub fn fall_back(&self, reason: &str) {
        self.with(|host, clock| host.tell(clock, EventKind::Emulates { reason: reason.to_owned() }));
    }

    /// The host loses its power, and everything that ran on it; nobody is told.
    pub fn power_off(&self) {
        self.with(|host, _| {
            (host.up, host.frozen) = (false, false);
            host.instances.clear();
            host.permits = host.permits.as_ref().map(|_| Default::default());
        });
    }

    /// The host is powered on again, empty.
    pub fn power_on(&self) {
        self.with(|host, _| (host.up, host.libvirt_up) = (true, true));
    }

    /// Everything on the host stands still and answers nobody, or goes on where it was.
    pub fn set_frozen(&self, frozen: bool) {
        self.with(|host, _| host.frozen = frozen);
    }

    /// The instances that a process of this host runs, seen from outside.
    #[must_use]
    pub fn running(&self) -> BTreeSet<InstanceId> {
        self.with(|host, _| host.instances.keys().copied().collect())
    }

    /// The process that runs an instance.
    #[must_use]
    pub fn process_of(&self, id: InstanceId) -> Option<Pid> {
        self.with(|host, _| host.instances.get(&id).and_then(|instance| instance.fact.pid))
    }

    /// Which of these processes have ended: what a watch on them tells.
    #[must_use]
    pub fn ended(&self, watched: &BTreeMap<InstanceId, Pid>) -> Vec<InstanceId> {
        self.with(|host, _| {
            let runs = |id: &InstanceId, process: Pid| {
                host.instances.get(id).is_some_and(|instance| instance.fact.pid == Some(process))
            };
            watched.iter().filter(|(id, process)| !runs(id, **process)).map(|(&id, _)| id).collect()
        })
    }

    /// Looks at every instance, in their order. What looks may not call this site.
    pub fn each(&self, mut look: impl FnMut(InstanceId, &Instance<G>)) {
        self.with(|host, _| host.instances.iter().for_each(|(&id, instance)| look(id, instance)));
    }

    /// Looks at an instance, if there is one. What looks may not call this site.
    pub fn look<T>(&self, id: InstanceId, look: impl FnOnce(&Instance<G>) -> T) -> Option<T> {
        self.with(|host, _| host.instances.get(&id).map(look))
    }

    /// Changes what a guest keeps in its memory, if there is one. What changes it may not call this site.
    pub fn change_memory<T>(&self, id: InstanceId, change: impl FnOnce(&mut G) -> T) -> Option<T> {
        self.with(|host, _| host.instances.get_mut(&id).map(|instance| change(&mut instance.memory)))
    }

    /// The same with every guest, in the order of the instances.
    pub fn change_memories(&self, mut change: impl FnMut(InstanceId, &mut G)) {
        self.with(|host, _| {
            host.instances.iter_mut().for_each(|(&id, instance)| change(id, &mut instance.memory));
        });
    }

    /// Something happens to an instance, and libvirt tells of it.
    fn on(&self, id: InstanceId, happens: impl FnOnce(&mut Instance<G>) -> Option<EventKind>) {
        self.with(|host, clock| {
            let reported = host.instances.get_mut(&id).and_then(happens);
            if let Some(kind) = reported.filter(|_| host.libvirt_up) {
                host.tell(clock, kind);
            }
        });
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Host<G>, Boottime) -> T) -> T {
        let mut world = self.site.world();
        let clock = world.clock;
        work(world.here(&self.uri), clock)
    }
}
