//! Owns the destroying of instances: each is tried until the instance is known to be gone.
//!
//! Promises: an instance that is to be destroyed stays what it was until the hypervisor or its process says that it is gone
//! (SAFE-2), and until nothing brings it to life any more; it is never forgotten before; what keeps it from being destroyed is a
//! condition. Must not do: decide who is to be destroyed.

use std::collections::btree_map::Entry;
use std::time::Duration;

use super::{Boottime, Condition, Death, HostAction, HostAgent, InstanceId, Outcome, RETRY};

/// An instance that is to be destroyed.
#[derive(Debug)]
pub(super) struct Destroy {
    death: Death,
    /// It is no death, but has to be gone before it is made once more.
    anew: bool,
    tries: u32,
    /// When it is tried again; none while a try is under way.
    again: Option<Boottime>,
    /// What the last try ran into.
    failure: Option<String>,
}

impl HostAgent {
    /// Destroys an instance for this reason.
    pub(super) fn destroy(&mut self, instance: InstanceId, reason: &str) {
        self.destroy_as(instance, Death::Destroyed { reason: reason.to_owned() });
    }

    /// Destroys an instance for good, beside whatever else is under way with it.
    pub(super) fn destroy_as(&mut self, instance: InstanceId, death: Death) {
        self.begin_to_destroy(instance, death, false);
    }

    /// Destroys what a try left, so that the next one can begin.
    pub(super) fn destroy_before_another_try(&mut self, instance: InstanceId, death: Death) {
        self.begin_to_destroy(instance, death, true);
    }

    fn begin_to_destroy(&mut self, instance: InstanceId, death: Death, anew: bool) {
        match self.destroys.entry(instance) {
            Entry::Vacant(vacant) => {
                let entry = Destroy { death: death.clone(), anew, tries: 0, again: None, failure: None };
                vacant.insert(entry);
                self.try_to_destroy(instance, death);
            }
            // Nobody wants it any more: it is not made once more.
            Entry::Occupied(mut occupied) if occupied.get().anew && !anew => {
                let entry = occupied.get_mut();
                (entry.death, entry.anew) = (death, false);
            }
            Entry::Occupied(_) => {}
        }
    }

    fn try_to_destroy(&mut self, instance: InstanceId, death: Death) {
        let job = self.job(HostAction::Destroy { instance, death }, instance);
        self.begin_job(job);
    }

    /// Tries again what could not be destroyed.
    pub(super) fn retry_destroys(&mut self) {
        let mut due = Vec::new();
        for (&instance, entry) in &mut self.destroys {
            if entry.again.is_some_and(|again| again <= self.now.boottime) {
                entry.again = None;
                due.push((instance, entry.death.clone()));
            }
        }
        for (instance, death) in due {
            self.try_to_destroy(instance, death);
        }
    }

    /// When each of them is tried again.
    pub(super) fn destroys_due(&self) -> impl Iterator<Item = Boottime> {
        self.destroys.values().filter_map(|entry| entry.again)
    }

    /// A try to destroy it is over.
    pub(super) fn destroy_finished(&mut self, instance: InstanceId, outcome: Outcome) {
        match outcome {
            // Its process was seen to end; what libvirt has of it still is no instance.
            Outcome::Failed(failure) if !self.exited.contains(&instance) => {
                self.not_destroyed(instance, failure);
            }
            // What makes it had not come to that yet, and may still. A try while it does stops it.
            _ if self.starting.iter().any(|(made, _)| *made == instance) => {
                self.destroy_later(instance, RETRY.first);
            }
            _ => match self.destroys.remove(&instance) {
                Some(entry) if entry.anew => {
                    self.exited.remove(&instance);
                    self.local.remove(&instance);
                }
                Some(entry) => self.dead(instance, None, entry.death),
                None => {}
            },
        }
        self.show_destroys();
    }

    fn not_destroyed(&mut self, instance: InstanceId, failure: String) {
        let Some(entry) = self.destroys.get_mut(&instance) else { return };
        let wait = RETRY.wait(entry.tries);
        entry.tries += 1;
        entry.failure = Some(failure);
        self.destroy_later(instance, wait);
    }

    fn destroy_later(&mut self, instance: InstanceId, wait: Duration) {
        let again = self.now.boottime + wait;
        if let Some(entry) = self.destroys.get_mut(&instance) {
            entry.again = Some(again);
        }
    }

    pub(super) fn show_destroys(&mut self) {
        let shown = |(instance, entry): (&InstanceId, &Destroy)| {
            let failure = entry.failure.as_ref()?;
            Some(format!(
                "instance {instance} is to be destroyed ({}) and may run on, it is tried again: {failure}: see systemctl \
                 status libvirtd",
                entry.death
            ))
        };
        let left: Vec<String> = self.destroys.iter().filter_map(shown).collect();
        if left.is_empty() {
            self.clear(Condition::Destroys);
        } else {
            self.raise(Condition::Destroys, left.join("\n"));
        }
    }
}
