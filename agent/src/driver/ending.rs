//! Owns the ends of instances: each is tried until the instance is known to be gone.
//!
//! Promises: an instance that is to be ended stays what it was until libvirt or its process says that it is gone (SAFE-2),
//! and until nothing brings it to life any more; it is never forgotten before; what keeps it from ending stands in the
//! status. Must not do: decide who is to be ended.

use std::collections::btree_map::Entry;
use std::time::Duration;

use understudy_core::death::Death;
use understudy_core::host::HostAction;
use understudy_core::ids::InstanceId;
use understudy_core::units::Boottime;

use super::event::Outcome;
use super::work::RETRY;
use super::{Driver, now};

/// What a complaint about instances that do not end goes under.
const ENDING: &str = "ending";

/// An instance that is to be ended.
#[derive(Debug)]
pub(super) struct Ending {
    death: Death,
    tries: u32,
    /// When it is tried again; none while a try is under way.
    again: Option<Boottime>,
    /// What the last try ran into.
    failure: Option<String>,
}

impl Ending {
    /// Whether a try is over, and another one to come.
    #[cfg(test)]
    pub(super) fn waits(&self) -> bool {
        self.again.is_some()
    }
}

impl Driver {
    /// Ends an instance for good, beside whatever else is under way with it.
    pub(super) fn end(&mut self, instance: InstanceId, death: Death) {
        if let Entry::Vacant(vacant) = self.ending.entry(instance) {
            vacant.insert(Ending { death: death.clone(), tries: 0, again: None, failure: None });
            self.try_to_end(instance, death);
        }
    }

    /// Ends an instance for this reason.
    pub(super) fn destroy(&mut self, instance: InstanceId, reason: &str) {
        self.end(instance, Death::Destroyed { reason: reason.to_owned() });
    }

    fn try_to_end(&mut self, instance: InstanceId, death: Death) {
        self.launch(self.job(HostAction::Destroy { instance, death }, instance));
    }

    /// Tries again what could not be ended.
    pub(super) fn end_what_is_left(&mut self, now: Boottime) {
        let mut due = Vec::new();
        for (&instance, ending) in &mut self.ending {
            if ending.again.is_some_and(|again| again <= now) {
                ending.again = None;
                due.push((instance, ending.death.clone()));
            }
        }
        for (instance, death) in due {
            self.try_to_end(instance, death);
        }
    }

    /// A try to end it is over.
    pub(super) fn ended(&mut self, instance: InstanceId, death: Death, outcome: Outcome) {
        match outcome {
            // Its process was seen to end; what libvirt has of it still is no instance.
            Outcome::Failed(failure) if !self.fallen.contains(&instance) => self.not_ended(instance, failure),
            // What makes it had not come to that yet, and may still. A try while it does stops it.
            _ if self.is_being_made(instance) => self.end_later(instance, RETRY.0),
            _ => {
                self.ending.remove(&instance);
                self.dead(instance, None, death);
            }
        }
        self.tell_what_does_not_end();
    }

    fn is_being_made(&self, instance: InstanceId) -> bool {
        self.making.iter().any(|(made, _)| *made == instance)
    }

    fn not_ended(&mut self, instance: InstanceId, failure: String) {
        let Some(ending) = self.ending.get_mut(&instance) else { return };
        let wait: Duration = RETRY.0.saturating_mul(1 << ending.tries.min(8)).min(RETRY.1);
        ending.tries += 1;
        ending.failure = Some(failure);
        self.end_later(instance, wait);
    }

    fn end_later(&mut self, instance: InstanceId, wait: Duration) {
        if let Some(ending) = self.ending.get_mut(&instance) {
            ending.again = Some(now().boottime + wait);
        }
    }

    pub(super) fn tell_what_does_not_end(&mut self) {
        let told = |(instance, ending): (&InstanceId, &Ending)| {
            let failure = ending.failure.as_ref()?;
            Some(format!(
                "instance {instance} is to be ended ({}) and may run on, it is tried again: {failure}: see systemctl \
                 status libvirtd",
                ending.death
            ))
        };
        let left: Vec<String> = self.ending.iter().filter_map(told).collect();
        if left.is_empty() {
            self.content(ENDING);
        } else {
            self.complain(ENDING, left.join("\n"));
        }
    }
}
