//! Owns the place of live migrations in the host's agent: which are under way here, and what their end means for the lane.
//!
//! Promises: one side of one migration per instance, and nothing else on its domain meanwhile; what was to come under a lease
//! that is lost is withdrawn; what goes away when one is lost is killed with the others, and nothing lets it run again. Must
//! not do: decide about one (`host/migration` does).
//!
//! Cost: nothing while none is under way; else a change of the records takes a few look-ups for each that comes.

use super::{Effect, HostAction, HostAgent, Job};
use crate::host::migration::{Arrival, Departure, Known, MigrationAnswer, MigrationStep, Next};
use crate::model::ids::InstanceId;

impl HostAgent {
    /// Begins this host's side of a live migration.
    pub(super) fn begin_migration(&mut self, job: Job) {
        let (me, patience, now) =
            (self.settings.me.clone(), self.settings.bounds.migration, self.now.boottime);
        let instance = job.instance;
        let begun = if matches!(job.action, HostAction::Accept { .. }) {
            let begun = Arrival::begin(me, job.clone(), patience, now);
            begun.map(|(arrival, step)| {
                self.arrivals.insert(instance, arrival);
                step
            })
        } else {
            let begun = Departure::begin(job.clone(), patience);
            begun.map(|(departure, step)| {
                self.departures.insert(instance, departure);
                step
            })
        };
        if let Some(step) = begun {
            self.take_step(job, step);
        }
    }

    /// A step went so. One of a migration that is over, or was given up with its lease, says nothing any more.
    pub(super) fn stepped(&mut self, job: &Job, answer: MigrationAnswer) {
        let instance = job.instance;
        let known = Known { records: &self.records, lease: self.lease(), now: self.now.boottime };
        let next = match &job.action {
            HostAction::Accept { .. } => {
                let arrival = self.arrivals.get_mut(&instance).filter(|arrival| arrival.job() == job);
                arrival.map(|arrival| arrival.answered(answer, known))
            }
            _ => {
                let departure = self.departures.get_mut(&instance).filter(|leaving| leaving.job() == job);
                departure.map(|departure| departure.answered(answer))
            }
        };
        if let Some(next) = next {
            self.go_on(instance, job.clone(), next);
        }
    }

    /// The records have changed, time has passed, or the lease is over: for what comes here that may mean something.
    pub(super) fn review_arrivals(&mut self) {
        if self.arrivals.is_empty() {
            return;
        }
        let known = Known { records: &self.records, lease: self.lease(), now: self.now.boottime };
        let next: Vec<(InstanceId, Job, Next)> = self
            .arrivals
            .iter_mut()
            .map(|(&instance, arrival)| {
                let next = arrival.review(known);
                (instance, arrival.job().clone(), next)
            })
            .collect();
        for (instance, job, next) in next {
            self.go_on(instance, job, next);
        }
    }

    fn go_on(&mut self, instance: InstanceId, job: Job, next: Next) {
        match next {
            Next::Wait => {}
            Next::Take(step) => self.take_step(job, step),
            Next::End(outcome) => {
                self.arrivals.remove(&instance);
                self.departures.remove(&instance);
                self.effect(Effect::Ended { job: Box::new(job.clone()), outcome: outcome.clone() });
                self.finish(job, outcome);
            }
        }
    }

    fn take_step(&mut self, job: Job, step: MigrationStep) {
        self.effect(Effect::Step { job: Box::new(job), step });
    }

    /// The lease that this host has, if it has not lost it.
    fn lease(&self) -> Option<u64> {
        self.standing.is_recovered().then_some(self.lease)
    }
}
