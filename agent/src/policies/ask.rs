//! Owns the asking of a set: one round of planning with all its questions, from the first to the verdicts of core.
//!
//! Promises: a policy that overran its deadline is not asked again in the same round, nor for a while after, so that a
//! failover is later by one deadline at most; one that is set aside is not asked. Must not do: judge answers.

use std::time::Duration;

use understudy_core::plan::Plan;
use understudy_core::policy::{
    BackupCountAnswer, BackupCountQuestion, BuiltIn, Interface, Judged, PlacementAnswer, PlacementQuestion,
};
use understudy_core::units::UnixMillis;
use understudy_core::view::Answer;
use understudy_policy::{Asked, By, Outcome, PolicyFault, Standing};

use super::recorder::{Batch, Item};
use super::records::{Fault, PolicyId, Said};
use super::{Deciding, Policies, lock};
use crate::driver::now;
use crate::exit::chain;

/// Answers to the questions of one plan.
pub(crate) type Answers = (
    Vec<(PlacementQuestion, Answer<PlacementAnswer>)>,
    Vec<(BackupCountQuestion, Answer<BackupCountAnswer>)>,
);

/// What was asked and said, with who is to be held to it.
struct Exchange<Q, A> {
    question: Q,
    by: Option<By>,
    said: Said<A>,
}

/// One round of planning: the set that it asks, and what was said so far.
pub(crate) struct Round {
    deciding: Deciding,
    at: UnixMillis,
    term: Option<u64>,
    placements: Vec<Exchange<PlacementQuestion, PlacementAnswer>>,
    backup_counts: Vec<Exchange<BackupCountQuestion, BackupCountAnswer>>,
}

impl Round {
    /// A round that asks `deciding`; `term` of the leadership, none for an admission.
    pub(crate) fn new(deciding: Deciding, term: Option<u64>) -> Self {
        Self { deciding, at: now().wall, term, placements: Vec::new(), backup_counts: Vec::new() }
    }

    /// Asks what a plan wants to know. Blocks for as long as the policies compute.
    pub(crate) fn ask(&mut self, policies: &Policies, plan: Plan) -> Answers {
        let (mut placements, mut counts) = (Vec::new(), Vec::new());
        for question in plan.placements {
            let set = &self.deciding.set;
            let (by, said) =
                policies.ask(&self.deciding, Interface::Placement, || set.ask_placement(&question));
            placements.push((question.clone(), answer(&said)));
            self.placements.push(Exchange { question, by, said });
        }
        for question in plan.backup_counts {
            let set = &self.deciding.set;
            let (by, said) =
                policies.ask(&self.deciding, Interface::BackupCount, || set.ask_backup_count(&question));
            counts.push((question.clone(), answer(&said)));
            self.backup_counts.push(Exchange { question, by, said });
        }
        (placements, counts)
    }

    /// Takes what core made of the answers: holds policies to it, counts it and has it recorded.
    pub(crate) fn conclude(self, policies: &Policies, judged: Judged) {
        let Judged { placements: verdicts, backup_counts: count_verdicts } = judged;
        let mut items = Vec::new();
        for Exchange { question, by, said } in self.placements {
            let made = verdicts.iter().find(|(other, _)| *other == question).map(|(_, made)| made.clone());
            if let Some(made) = &made {
                for pick in &made.refused {
                    policies.metrics.policies.pick_refused(pick.why);
                }
                let picks: Vec<String> = made.refused.iter().map(ToString::to_string).collect();
                policies.judged(by, Interface::Placement, made.built_in, || picks.join(", "));
            }
            items.push(Item::Placement { question, said, made });
        }
        for Exchange { question, by, said } in self.backup_counts {
            let made =
                count_verdicts.iter().find(|(other, _)| *other == question).map(|(_, made)| made.clone());
            if let Some(made) = &made {
                policies.judged(by, Interface::BackupCount, made.built_in, || {
                    "numbers that cannot be had".to_owned()
                });
            }
            items.push(Item::BackupCount { question, said, made });
        }
        if !items.is_empty() {
            let Deciding { generation, set, aside, ready: _ } = self.deciding;
            policies.recorder.take(Batch { at: self.at, generation, term: self.term, set, aside, items });
        }
    }
}

fn answer<A: Clone>(said: &Said<A>) -> Answer<A> {
    said.answer.clone().map_or(Answer::Unavailable, Answer::Given)
}

impl Policies {
    /// Asks whoever decides, unless it is not to be asked.
    fn ask<A>(
        &self,
        deciding: &Deciding,
        interface: Interface,
        put: impl FnOnce() -> Asked<A>,
    ) -> (Option<By>, Said<A>) {
        let by = deciding
            .set
            .deciding(interface)
            .map(|info| By { name: info.name.clone(), digest: info.digest.clone() });
        let silent = |kind: &str, message: String| {
            let fault = Some(Fault { kind: kind.to_owned(), message });
            Said { policy: by.as_ref().map(policy_id), took_us: 0, answer: None, fault }
        };
        let Some(asked) = &by else {
            return (None, silent("unavailable", format!("no policy answers {interface}")));
        };
        if let Some(reason) = deciding.aside.get(&asked.name) {
            let said = silent("set-aside", reason.clone());
            return (by, said);
        }
        match lock(&self.conduct).standing(asked, now().boottime) {
            Standing::Asked => {}
            Standing::HeldOff { .. } => {
                let said = silent("held-off", "it overran its deadline a while ago".to_owned());
                return (by, said);
            }
            Standing::SetAside { reason } => {
                let said = silent("set-aside", reason);
                return (by, said);
            }
        }
        let Asked { outcome, took, .. } = put();
        self.metrics.policies.asked(interface, took);
        if let Err(fault) = &outcome {
            self.metrics.policies.failed(interface, fault.kind());
            tracing::warn!(%interface, problem = %chain(fault), "a policy did not answer, the built-in rule decides");
            self.note(asked, interface, &Outcome::Failed(fault.clone()));
        }
        let said = said(by.as_ref(), outcome, took);
        (by, said)
    }

    /// What core made of an answer.
    fn judged(
        &self,
        by: Option<By>,
        interface: Interface,
        built_in: Option<BuiltIn>,
        refusal: impl FnOnce() -> String,
    ) {
        if let Some(why) = built_in {
            self.metrics.policies.built_in(interface, why);
        }
        let Some(by) = by else { return };
        match built_in {
            None => self.note(&by, interface, &Outcome::Used),
            Some(why) if why.is_refusal() => {
                let reason = format!("core refused its answer: {}", refusal());
                self.note(&by, interface, &Outcome::Refused(reason));
            }
            Some(_) => {}
        }
    }

    fn note(&self, by: &By, interface: Interface, outcome: &Outcome) {
        self.metrics.policies.became(&by.name, interface, outcome);
        let reason = lock(&self.conduct).note(by, interface, outcome, now().boottime);
        if let Some(reason) = reason {
            tracing::warn!(policy = by.name, digest = %by.digest, %reason, "a policy is set aside, the built-in rule decides until its file changes or `understudy policy restore`");
            lock(&self.failed).insert(by.name.clone(), (by.digest.to_string(), reason));
        }
    }
}

/// The form of records.
pub(super) fn said<A>(by: Option<&By>, outcome: Result<A, PolicyFault>, took: Duration) -> Said<A> {
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let (answer, fault) = match outcome {
        Ok(answer) => (Some(answer), None),
        Err(fault) => (None, Some(Fault { kind: fault.kind().to_owned(), message: chain(&fault) })),
    };
    Said { policy: by.map(policy_id), took_us, answer, fault }
}

fn policy_id(by: &By) -> PolicyId {
    PolicyId { name: by.name.clone(), digest: by.digest.to_string() }
}
