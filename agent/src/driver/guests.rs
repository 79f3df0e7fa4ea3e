//! Owns what becomes of what the hypervisor tells of its own accord: deaths, guests that cannot go on, disks, libvirt itself.
//!
//! Promises: a guest that cannot go on is ended, idle or not, and so is one that stopped while nobody was told; a job that
//! knows more of an end has the word on it. Must not do: ask the hypervisor in the driver's own task.

use understudy_core::death::Death;
use understudy_core::ids::{HostId, InstanceId};
use understudy_core::records::Service;
use understudy_hypervisor::{
    CallError, EventKind, Hypervisor, HypervisorEvent, InstanceState, ListError, PauseCause, WatchdogAction,
    process,
};

use super::Driver;
use super::event::Event;
use crate::exit::chain;

/// What a complaint about instances' disks goes under.
const DISKS: &str = "disks";
/// What a disk is called whose failure was not told but found.
const SOME_DISK: &str = "of which libvirt does not say the name";

impl Driver {
    pub(super) fn hypervisor_event(&mut self, event: HypervisorEvent) {
        match event.kind {
            EventKind::Died { id, pid } => self.died(id, format!("qemu process {pid} ended")),
            EventKind::Panicked { id } if self.lives(id) => self.destroy(id, "the guest's kernel panicked"),
            EventKind::Watchdog { id, action: WatchdogAction::None | WatchdogAction::Paused }
                if self.lives(id) =>
            {
                self.destroy(id, "the guest hangs: it did not feed its watchdog");
            }
            EventKind::IoError { id, device, paused } if self.lives(id) => {
                self.disk_failed(id, device, paused);
            }
            EventKind::ConnectionLost => {
                self.unable.insert(Service::Libvirtd);
                self.complain(
                    "libvirt",
                    "libvirtd does not answer, this host takes no work: see systemctl status libvirtd; instances run on"
                        .to_owned(),
                );
            }
            EventKind::ConnectionRegained => {
                self.unable.remove(&Service::Libvirtd);
                self.content("libvirt");
                self.look_at_states();
            }
            EventKind::Lifecycle { .. }
            | EventKind::Agent { .. }
            | EventKind::Watchdog { .. }
            | EventKind::Panicked { .. }
            | EventKind::IoError { .. } => {}
        }
    }

    fn lives(&self, id: InstanceId) -> bool {
        self.local.get(&id).is_some_and(|local| !local.fact.phase.is_dead())
    }

    fn died(&mut self, id: InstanceId, detail: String) {
        if !self.lives(id) {
            return;
        }
        // The source of a migration ends when the instance has moved: its job knows how to read that.
        if self.leaving.contains(&id) || self.ending.contains_key(&id) || self.is_in_the_making(id) {
            self.fallen.insert(id);
            return;
        }
        self.parts.metrics.death_seen();
        match self.leaves_for(id) {
            // Whether it has arrived the destination knows: to call it dead would have the destination end what may be the
            // only copy.
            Some(to) => self.moved(id, None, Death::MaybeMoved { to }),
            None => self.dead(id, None, Death::Exited { detail }),
        }
    }

    /// Where a live migration takes an instance of this host, as far as it is known to stand.
    pub(super) fn leaves_for(&self, id: InstanceId) -> Option<HostId> {
        let me = &self.parts.config.host;
        let migration = self.cluster.nodes().find_map(|record| {
            let of_it = record.primary.as_ref().is_some_and(|primary| primary.instance == Some(id));
            record.migration.as_ref().filter(|migration| of_it && &migration.from == me)
        })?;
        let stands = migration.stands(self.local.get(&id).map(|local| &local.fact));
        stands.then(|| migration.to.clone())
    }

    /// A guest that stands still for its disk serves nobody; one that goes on is for people to judge.
    fn disk_failed(&mut self, id: InstanceId, device: String, paused: bool) {
        tracing::warn!(instance = %id, %device, paused, "a disk of an instance failed");
        if paused {
            self.destroy(id, &format!("the guest stands still for an error of its disk {device}"));
        }
        self.disks.insert(id, device);
        self.tell_of_disks();
    }

    /// Said as long as the instance is known here.
    pub(super) fn tell_of_disks(&mut self) {
        let local = &self.local;
        self.disks.retain(|id, _| local.contains_key(id));
        let told = |(id, device): (&InstanceId, &String)| {
            format!(
                "instance {id}: error of its disk {device}: see this host's kernel log (journalctl -k) and \
                 /var/log/libvirt/qemu, check the storage that it lies on, and drain the host if it lasts"
            )
        };
        let told: Vec<String> = self.disks.iter().map(told).collect();
        if told.is_empty() {
            self.content(DISKS);
        } else {
            self.complain(DISKS, told.join("\n"));
        }
    }

    /// What stopped while libvirt told nobody is told by its state. libvirt that is down is looked at when it is back.
    pub(super) fn look_at_states(&self) {
        let (hypervisor, sender) = (self.parts.hypervisor.clone(), self.sender.clone());
        self.parts.tasks.block("look at states", move || {
            for event in missed(hypervisor.as_ref()) {
                let _ = sender.send(Event::Hypervisor(event));
            }
        });
    }
}

fn missed(hypervisor: &dyn Hypervisor) -> Vec<HypervisorEvent> {
    loop {
        match hypervisor.instances() {
            Ok(all) => {
                let missed = all.iter().filter_map(|instance| told_by(instance.id, instance.state));
                return missed.map(|kind| HypervisorEvent { at: process::boottime(), kind }).collect();
            }
            // Each try takes its deadline; one that hangs for good is found to be down.
            Err(ListError::List(CallError::TimedOut { .. })) => {}
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot look for instances that stopped unheard");
                return Vec::new();
            }
        }
    }
}

fn told_by(id: InstanceId, state: InstanceState) -> Option<EventKind> {
    match state {
        InstanceState::Crashed | InstanceState::Paused(PauseCause::Panicked) => {
            Some(EventKind::Panicked { id })
        }
        InstanceState::Paused(PauseCause::Watchdog) => {
            Some(EventKind::Watchdog { id, action: WatchdogAction::Paused })
        }
        InstanceState::Paused(PauseCause::IoError) => {
            Some(EventKind::IoError { id, device: SOME_DISK.to_owned(), paused: true })
        }
        InstanceState::Paused(
            PauseCause::Asked
            | PauseCause::Migration
            | PauseCause::Saving
            | PauseCause::Changing
            | PauseCause::Unknown,
        )
        | InstanceState::Running
        | InstanceState::ShuttingDown
        | InstanceState::Off => None,
    }
}
