//! Owns what becomes of what the hypervisor says: deaths, guests that cannot go on, disks, libvirt itself, and what it has
//! that nobody knows.
//!
//! Promises: a guest that cannot go on is destroyed, idle or not, and so is one that stopped while nobody heard; a job that
//! knows more of an end is authoritative for it, and where it knows nothing after all the end is looked for; what no record names and
//! nothing here knows does not stay (LIVE-4). Must not do: ask the hypervisor.

use std::collections::BTreeMap;

use super::{Boottime, Busy, Condition, Death, Effect, HostAgent, InstanceId, Lane, RETRY};
use crate::bounds::LOOK;
use crate::host::input::{DomainEvent, Shown};
use crate::model::records::{NodeRecord, Phase, Service};

/// What is told of a libvirtd that is away, with what to do.
pub const LIBVIRTD_AWAY: &str =
    "libvirtd does not answer, this host takes no work: see systemctl status libvirtd";
/// What a disk is called whose failure was not told but found.
const SOME_DISK: &str = "of which libvirt does not say the name";

impl HostAgent {
    pub(super) fn domain_event(&mut self, event: DomainEvent) {
        match event {
            DomainEvent::Exited { instance, detail } => self.exited(instance, detail),
            DomainEvent::Panicked(instance) if self.lives(instance) => {
                self.destroy(instance, "the guest's kernel panicked");
            }
            DomainEvent::Hangs(instance) if self.lives(instance) => {
                self.destroy(instance, "the guest hangs: it did not feed its watchdog");
            }
            DomainEvent::DiskFailed { instance, device, paused } if self.lives(instance) => {
                self.disk_failed(instance, device, paused);
            }
            DomainEvent::Panicked(_) | DomainEvent::Hangs(_) | DomainEvent::DiskFailed { .. } => {}
            DomainEvent::Lost => {
                self.service(Service::Libvirtd, false);
                self.raise(Condition::Libvirt, format!("{LIBVIRTD_AWAY}; instances run on"));
            }
            DomainEvent::Regained => {
                self.service(Service::Libvirtd, true);
                self.clear(Condition::Libvirt);
                self.list();
            }
        }
    }

    fn exited(&mut self, instance: InstanceId, detail: String) {
        let Some(phase) = self.local.get(&instance).map(|local| local.fact.phase.clone()) else { return };
        if phase.is_dead() {
            return;
        }
        if self.has_a_job_on_its_end(instance) {
            self.exited.insert(instance);
            return;
        }
        // Between two tries of a restore nothing of it is here: it was the process of the last one.
        if phase == Phase::Restoring {
            return;
        }
        self.effect(Effect::DeathSeen);
        match self.leaves_for(instance) {
            // Whether it has arrived the destination knows: to call it dead would have the destination destroy what may be
            // the only copy.
            Some(to) => self.moved(instance, None, Death::MaybeMoved { to }),
            None => self.dead(instance, None, Death::Exited { detail }),
        }
    }

    /// Whether something is under way with it that knows how to read the end of its process: the source of a migration ends
    /// when the instance has moved, and what is made, or destroyed, ends in the hands of its job.
    fn has_a_job_on_its_end(&self, instance: InstanceId) -> bool {
        let running = matches!(self.lanes.get(&(instance, Lane::Domain)), Some(Busy::Running { .. }));
        let phase = self.local.get(&instance).map(|local| &local.fact.phase);
        let starts = matches!(phase, Some(Phase::Booting | Phase::Deploying | Phase::Restoring));
        self.departures.contains_key(&instance)
            || self.destroys.contains_key(&instance)
            || (running && starts)
    }

    /// The job that had the word on an end is over, and the instance lives as far as the job says. It may have said so
    /// before the process ended, or have no word at all.
    pub(super) fn look_for_what_exited(&mut self, instance: InstanceId) {
        if !self.has_a_job_on_its_end(instance) && self.exited.remove(&instance) && self.lives(instance) {
            self.look_for(instance);
        }
    }

    pub(super) fn look_for(&mut self, instance: InstanceId) {
        self.looks.insert(instance, None);
        self.effect(Effect::LookFor(instance));
    }

    pub(super) fn looked(&mut self, instance: InstanceId, there: Option<bool>) {
        match there {
            Some(true) => drop(self.looks.remove(&instance)),
            Some(false) => {
                self.looks.remove(&instance);
                self.exited(instance, "nothing of it was found on its host".to_owned());
            }
            None => {
                let again = self.now.boottime + RETRY.longest;
                self.looks.entry(instance).and_modify(|look| *look = Some(again));
            }
        }
    }

    /// Looks again where the answer was none.
    pub(super) fn look_again(&mut self) {
        let now = self.now.boottime;
        let due =
            |(&instance, at): (&InstanceId, &Option<Boottime>)| at.filter(|at| *at <= now).map(|_| instance);
        let due: Vec<InstanceId> = self.looks.iter().filter_map(due).collect();
        for instance in due {
            self.look_for(instance);
        }
    }

    /// A guest that stands still for its disk serves nobody; one that goes on is for people to judge.
    fn disk_failed(&mut self, instance: InstanceId, device: String, paused: bool) {
        if paused {
            self.destroy(instance, &format!("the guest stands still for an error of its disk {device}"));
        }
        self.disks.insert(instance, device);
        self.show_disks();
    }

    /// Said as long as the instance is known here.
    pub(super) fn show_disks(&mut self) {
        let local = &self.local;
        self.disks.retain(|instance, _| local.contains_key(instance));
        let shown = |(instance, device): (&InstanceId, &String)| {
            format!(
                "instance {instance}: error of its disk {device}: see this host's kernel log (journalctl -k) and \
                 /var/log/libvirt/qemu, check the storage that it lies on, and drain the host if it lasts"
            )
        };
        let shown: Vec<String> = self.disks.iter().map(shown).collect();
        if shown.is_empty() {
            self.clear(Condition::Disks);
        } else {
            self.raise(Condition::Disks, shown.join("\n"));
        }
    }

    pub(super) fn list(&mut self) {
        if !self.listing {
            self.listing = true;
            self.effect(Effect::List);
        }
    }

    /// What stopped while libvirt told nobody is told by its state, and what nobody knows goes.
    pub(super) fn listed(&mut self, shown: Option<BTreeMap<InstanceId, Shown>>) {
        self.listing = false;
        self.list_at = self.now.boottime + LOOK;
        for (instance, shown) in shown.into_iter().flatten() {
            match shown {
                Shown::Panicked => self.domain_event(DomainEvent::Panicked(instance)),
                Shown::Hangs => self.domain_event(DomainEvent::Hangs(instance)),
                Shown::DiskFailed => self.domain_event(DomainEvent::DiskFailed {
                    instance,
                    device: SOME_DISK.to_owned(),
                    paused: true,
                }),
                Shown::Well => {}
            }
            if self.is_unknown(instance) {
                self.destroy(instance, "nothing here knows it and no record names it");
            }
        }
    }

    /// What an earlier agent's job left, or what arrived late. Nothing is one while a record cannot be read that may name
    /// it, nor what a record names here or a migration brings, nor what a job works on.
    fn is_unknown(&self, instance: InstanceId) -> bool {
        let me = &self.settings.me;
        let names = |record: &NodeRecord| {
            let comes = record.migration.as_ref().is_some_and(|migration| &migration.to == me)
                && record.primary.as_ref().is_some_and(|primary| primary.instance == Some(instance));
            comes || record.members().any(|member| &member.host == me && member.instance == Some(instance))
        };
        let running = |(lane, busy): (&(InstanceId, Lane), &Busy)| {
            lane.0 == instance && matches!(busy, Busy::Running { .. })
        };
        let busy =
            || self.lanes.iter().any(running) || self.starting.iter().any(|(made, _)| *made == instance);
        let nodes = &self.records.view.nodes;
        let named = || nodes.on_host(me).any(|(_, known)| names(&known.value));
        self.standing.is_recovered()
            && !self.records.unreadable
            && !self.local.contains_key(&instance)
            && !busy()
            && !named()
    }
}
