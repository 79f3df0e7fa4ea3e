//! Owns the asking of a set: one question of the leader, from the asking to the verdict of core.
//!
//! Promises: a policy that overran its deadline is not asked again for a while after, so that a failover is later by one
//! deadline at most; one that is suspended is not asked. Must not do: judge answers.

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_core::leader::{Question, Reply};
use understudy_core::model::ids::NodeId;
use understudy_core::model::units::UnixMillis;
use understudy_core::model::view::Answer;
use understudy_core::policy::{
    BackupCountQuestion, BuiltIn, CountVerdict, Interface, Judged, PlacementQuestion, PlacementVerdict,
};
use understudy_policy::{Asked, By, Outcome, PolicyFault, Standing};

use super::recorder::{Batch, Item};
use super::records::{Fault, PolicyId, Said};
use super::{Deciding, Policies, lock};
use crate::exit::chain;
use crate::runtime::now;

/// A question that was put, with who is to be held to the answer.
#[derive(Debug)]
pub(crate) struct Exchange {
    deciding: Deciding,
    at: UnixMillis,
    by: Option<By>,
    item: Item,
}

impl Exchange {
    /// Puts a question, and waits as long as the policy computes.
    pub(crate) fn put(policies: &Policies, deciding: Deciding, question: Question) -> (Reply, Self) {
        let at = now().wall;
        match question {
            Question::Placement(question) => {
                let ask = || deciding.set.ask_placement(&question);
                let (by, said) = policies.ask(&deciding, Interface::Placement, ask);
                let reply = Reply::Placement(question.clone(), answer(&said));
                (reply, Self { deciding, at, by, item: Item::Placement { question, said, made: None } })
            }
            Question::BackupCount(question) => {
                let ask = || deciding.set.ask_backup_count(&question);
                let (by, said) = policies.ask(&deciding, Interface::BackupCount, ask);
                let reply = Reply::BackupCount(question.clone(), answer(&said));
                (reply, Self { deciding, at, by, item: Item::BackupCount { question, said, made: None } })
            }
        }
    }
}

/// Questions that were put and that core has made nothing of yet.
#[derive(Debug, Default)]
pub(crate) struct Open {
    placements: BTreeMap<(NodeId, u32), Exchange>,
    backup_counts: BTreeMap<NodeId, Exchange>,
}

impl Open {
    /// Keeps an exchange until core has made something of it. One before it about the same came to nothing.
    pub(crate) fn keep(&mut self, policies: &Policies, term: Option<u64>, exchange: Exchange) {
        let before = match &exchange.item {
            Item::Placement { question, .. } => {
                self.placements.insert((question.node.clone(), question.wanted), exchange)
            }
            Item::BackupCount { question, .. } => self.backup_counts.insert(question.node.clone(), exchange),
        };
        policies.record(term, before);
    }

    /// Takes what core made of answers, with and without a policy's: holds policies to it, counts it and has it recorded.
    pub(crate) fn conclude(
        &mut self,
        policies: &Policies,
        deciding: &Deciding,
        term: Option<u64>,
        judged: Judged,
    ) {
        for (question, verdict) in judged.placements {
            let key = (question.node.clone(), question.wanted);
            let known = self.placements.remove(&key).filter(|known| known.is_placement(&question));
            let mut exchange = known.unwrap_or_else(|| {
                let (by, said) = policies.silent(deciding, Interface::Placement);
                let item = Item::Placement { question, said, made: None };
                Exchange { deciding: deciding.clone(), at: now().wall, by, item }
            });
            exchange.place(policies, verdict);
            policies.record(term, Some(exchange));
        }
        for (question, verdict) in judged.backup_counts {
            let known = self.backup_counts.remove(&question.node).filter(|known| known.is_count(&question));
            let mut exchange = known.unwrap_or_else(|| {
                let (by, said) = policies.silent(deciding, Interface::BackupCount);
                let item = Item::BackupCount { question, said, made: None };
                Exchange { deciding: deciding.clone(), at: now().wall, by, item }
            });
            exchange.count(policies, verdict);
            policies.record(term, Some(exchange));
        }
    }
}

impl Exchange {
    fn is_placement(&self, asked: &PlacementQuestion) -> bool {
        matches!(&self.item, Item::Placement { question, .. } if question == asked)
    }

    fn is_count(&self, asked: &BackupCountQuestion) -> bool {
        matches!(&self.item, Item::BackupCount { question, .. } if question.node == asked.node)
    }

    fn place(&mut self, policies: &Policies, verdict: PlacementVerdict) {
        let Item::Placement { made, .. } = &mut self.item else { return };
        for pick in &verdict.refused {
            policies.metrics.policies.pick_refused(pick.why);
        }
        let picks: Vec<String> = verdict.refused.iter().map(ToString::to_string).collect();
        policies.judged(self.by.clone(), Interface::Placement, verdict.built_in, || picks.join(", "));
        *made = Some(verdict);
    }

    fn count(&mut self, policies: &Policies, verdict: CountVerdict) {
        let Item::BackupCount { made, .. } = &mut self.item else { return };
        let refusal = || "numbers that cannot be had".to_owned();
        policies.judged(self.by.clone(), Interface::BackupCount, verdict.built_in, refusal);
        *made = Some(verdict);
    }
}

fn answer<A: Clone>(said: &Said<A>) -> Answer<A> {
    said.answer.clone().map_or(Answer::Unavailable, Answer::Given)
}

impl Policies {
    fn record(&self, term: Option<u64>, exchange: Option<Exchange>) {
        let Some(Exchange { deciding, at, by: _, item }) = exchange else { return };
        let Deciding { generation, set, suspended, ready: _ } = deciding;
        self.recorder.take(Batch { at, generation, term, set, suspended, items: vec![item] });
    }

    /// What is said where nobody is to be asked.
    fn silent<A>(&self, deciding: &Deciding, interface: Interface) -> (Option<By>, Said<A>) {
        let by = deciding.by(interface);
        let said = |kind: &str, message: String| {
            let fault = Some(Fault { kind: kind.to_owned(), message });
            Said { policy: by.as_ref().map(policy_id), took_us: 0, answer: None, fault }
        };
        let said = match by.as_ref().and_then(|by| deciding.suspended.get(&by.name)) {
            Some(reason) => said("suspended", reason.clone()),
            None => said("unavailable", format!("no policy answers {interface}")),
        };
        (by, said)
    }

    /// Asks whoever decides, unless it is not to be asked.
    fn ask<A>(
        &self,
        deciding: &Deciding,
        interface: Interface,
        put: impl FnOnce() -> Asked<A>,
    ) -> (Option<By>, Said<A>) {
        if !deciding.asks(interface) {
            return self.silent(deciding, interface);
        }
        let by = deciding.by(interface);
        let silent = |kind: &str, message: String| {
            let fault = Some(Fault { kind: kind.to_owned(), message });
            Said { policy: by.as_ref().map(policy_id), took_us: 0, answer: None, fault }
        };
        let Some(asked) = &by else { return self.silent(deciding, interface) };
        match lock(&self.breaker).standing(asked, now().boottime) {
            Standing::Asked => {}
            Standing::HeldOff { .. } => {
                let said = silent("held-off", "it overran its deadline a while ago".to_owned());
                return (by, said);
            }
            Standing::Suspended { reason } => {
                let said = silent("suspended", reason);
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
        let reason = lock(&self.breaker).note(by, interface, outcome, now().boottime);
        if let Some(reason) = reason {
            tracing::warn!(policy = by.name, digest = %by.digest, %reason, "a policy is suspended, the built-in rule decides until its file changes or `understudy policy restore`");
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
