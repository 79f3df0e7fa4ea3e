//! Owns leading: when to bid, what ends a term, and the `Leader` machine within one.
//!
//! Promises: it bids only for a leadership that is vacant, and decides only in a term that it won and that the store cache
//! shows; every write carries its term and is conditional on it; after a write of unknown outcome nothing is decided before
//! a new term is won, so that the first cannot come after what is decided next; what breaks an invariant is not written;
//! while a set of policies is being settled nothing is decided, and it is settled only while no assignment is being written.
//! Must not do: write, ask, read a clock.
//!
//! Everything is decided in `look`. Outcomes and replies are taken in as they come; an outcome of another term is dropped, and
//! so is a reply of another term or of policies that do not decide any more. The suspension of a policy belongs to no term:
//! where its outcome is not known it is tried again before anything is decided.
//!
//! Cost: a look without changes O(1), but for `judge` over the hosts while there is a candidate; with changes, what the machine
//! costs; an assignment, the encoding of its record.
//!
//! ```text
//!                  vacant: Bid             won
//!   Following ──────────────▶ Bidding ────────────▶ Leading (one term)
//!    ▲  ▲  ▲ │                   │                    │  │
//!    │  │  └─┼── lost, failed ───┘                    │  │
//!    │  │    │                                        │  │
//!    │  └────┼─ another leads, a write was refused ───┘  │ policies not ready,
//!    │       │  for that, or has no known outcome        │ or the agent stops: Resign
//!    │       │                                           ▼
//!    │       └─ policies not ready, and the store ─▶ Resigning
//!    │          shows its own earlier leadership         │
//!    └───────────────────────── written, or not ─────────┘
//! ```

mod input;
mod transactions;

use std::collections::BTreeMap;
use std::time::Duration;

use super::{AskCopies, Assignment, Decisions, Input as LeaderInput, Leader, Outcome, Report};
use crate::bounds::Bounds;
use crate::invariants::broken_by;
use crate::model::ids::{HostId, Term};
use crate::model::records::LeaderRecord;
use crate::model::units::{Boottime, Now};
use crate::model::view::Versioned;
use crate::policy::Judged;
use crate::sets::Verdict;
use crate::store_cache::StoreCache;
use crate::transaction::Transaction;

pub use input::{
    Asking, BidOutcome, Effect, FailedPolicy, Input, Notice, Seen, Subject, What, WriteId, WriteOutcome,
    WriteRequest,
};

use transactions::{activation_txn, assignment_txn, expiry_txn, refusal_txn, suspension_txn};

/// Where this agent stands.
#[derive(Debug, Clone)]
enum State {
    Following,
    Bidding,
    Leading(Box<Leading>),
    Resigning,
}

/// One term.
#[derive(Debug, Clone)]
struct Leading {
    held: Versioned<LeaderRecord>,
    /// None before the store cache shows this term.
    machine: Option<Leader>,
    /// The revision of the store that the machine has taken in last.
    seen: u64,
    /// The machine has taken in something that it has not decided about.
    undecided: bool,
}

/// The leadership, as one agent has to do with it. See the head of this file.
#[derive(Debug, Clone)]
pub struct Leadership {
    me: HostId,
    bounds: Bounds,
    state: State,
    /// A change of the sets of policies is being written, in this term or before it.
    settling: bool,
    /// The revision of the last such change. Nothing is decided before the store cache shows it.
    settled_at: u64,
    /// When it was looked at last.
    looked: Boottime,
    /// No bid before then: the last one had no answer.
    bid_after: Boottime,
}

/// Before a bid without an answer is made again, and before what broke an invariant is decided again.
const AGAIN: Duration = Duration::from_millis(250);

impl Leadership {
    /// The leadership for the agent of a host, which does not lead.
    #[must_use]
    pub fn new(me: HostId, bounds: Bounds) -> Self {
        Self {
            me,
            bounds,
            state: State::Following,
            settling: false,
            settled_at: 0,
            looked: Boottime::default(),
            bid_after: Boottime::default(),
        }
    }

    /// The term in which this agent leads, whether the store cache shows it yet or not.
    #[must_use]
    pub fn term(&self) -> Option<Term> {
        self.leading().map(|leading| leading.held.value.term)
    }

    /// The machine that decides, once it has seen the cluster.
    #[must_use]
    pub fn machine(&self) -> Option<&Leader> {
        self.leading().and_then(|leading| leading.machine.as_ref())
    }

    /// What cannot be done, and what is lacking. Empty on an agent that does not lead.
    #[must_use]
    pub fn report(&self) -> Report {
        self.machine().map(|machine| machine.report().clone()).unwrap_or_default()
    }

    /// When a look may have something to do although nothing happens until then, as things stand after the last one.
    ///
    /// A set of policies waits by the wall clock, and is not in it.
    #[must_use]
    pub fn due(&self, cache: &StoreCache) -> Option<Boottime> {
        let due = match &self.state {
            State::Following => self.vacant_at(cache).map(|at| at.max(self.bid_after)),
            State::Leading(leading) if leading.undecided => Some(self.looked + AGAIN),
            State::Leading(leading) => leading.machine.as_ref().and_then(Leader::next_due),
            State::Bidding | State::Resigning => None,
        };
        due.filter(|due| *due > self.looked)
    }

    /// Takes what happened, and says what to do.
    pub fn handle(&mut self, input: Input<'_>, now: Now) -> Vec<Effect> {
        match input {
            Input::Seen(seen) => self.look(&seen, now),
            Input::BidEnded(outcome) => self.bid_ended(outcome, now.boottime),
            Input::Written(id, outcome) => self.written(id, outcome, now),
            Input::Reply(asking, reply) => {
                if self.awaits(asking)
                    && let Some(leading) = self.leading_in(Some(asking.term))
                {
                    leading.take(LeaderInput::Reply(reply), now);
                }
                Vec::new()
            }
            Input::Copies(term, ask, said) => {
                if let Some(leading) = self.leading_in(Some(term)) {
                    leading.take(LeaderInput::Copies(ask, said), now);
                }
                Vec::new()
            }
            Input::Resigned => {
                if matches!(self.state, State::Resigning) {
                    self.state = State::Following;
                }
                Vec::new()
            }
            Input::Stop => match std::mem::replace(&mut self.state, State::Resigning) {
                State::Leading(leading) => vec![Effect::Resign(leading.held)],
                State::Following | State::Bidding | State::Resigning => Vec::new(),
            },
        }
    }

    /// Whether what was asked so may still be answered: in this term, by those who decide.
    #[must_use]
    pub fn awaits(&self, asking: Asking) -> bool {
        self.term() == Some(asking.term)
            && self.machine().is_some_and(|machine| machine.asked.policies.version == asking.version)
    }

    fn look(&mut self, seen: &Seen<'_>, now: Now) -> Vec<Effect> {
        self.looked = now.boottime;
        let mut effects = Vec::new();
        // Also on an agent that may not lead, for whatever reason: nobody may go on to take it for a leader.
        if let State::Leading(leading) = &self.state
            && leading.is_over(seen.cache)
        {
            effects.extend(self.stop(Notice::AnotherLeads));
        }
        self.suspend_failed(seen, &mut effects);
        // Who does not see renewals knows of nobody's silence.
        if !seen.lease_open || !seen.cache.follows_renewals() {
            return effects;
        }
        if !seen.cache.policies.may_lead(seen.sets, &seen.cache.view().hosts) {
            self.give_up(seen.cache, &mut effects);
            return effects;
        }
        match &self.state {
            State::Following if self.may_bid(seen.cache, now.boottime) => {
                self.state = State::Bidding;
                effects.push(Effect::Bid(seen.cache.leader.clone()));
            }
            State::Leading(leading) if leading.is_shown(seen.cache) => {
                if !self.settle_sets(seen, now, &mut effects) {
                    self.decide(seen, now, &mut effects);
                }
            }
            State::Following | State::Leading(_) | State::Bidding | State::Resigning => {}
        }
        effects
    }

    fn may_bid(&self, cache: &StoreCache, now: Boottime) -> bool {
        now >= self.bid_after && self.vacant_at(cache).is_some_and(|at| now >= at)
    }

    /// From when on the leadership is vacant, if nothing changes: nobody leads, the leader's lease is over or silent for too
    /// long, or the leader is this agent's earlier life or earlier term.
    fn vacant_at(&self, cache: &StoreCache) -> Option<Boottime> {
        let at_once = Some(Boottime::default());
        let Some(host) = cache.leader.as_ref().and_then(|leader| leader.value.host.as_ref()) else {
            return at_once;
        };
        match cache.view().hosts.get(host) {
            Some(seen) if *host != self.me && seen.is_open() => {
                seen.silent_since.map(|since| since + self.bounds.lease_expire_after())
            }
            Some(_) | None => at_once,
        }
    }

    fn bid_ended(&mut self, outcome: BidOutcome, now: Boottime) -> Vec<Effect> {
        if !matches!(self.state, State::Bidding) {
            return Vec::new();
        }
        match outcome {
            BidOutcome::Won(held) => {
                let term = held.value.term;
                self.state = State::Leading(Box::new(Leading::new(held)));
                vec![Effect::Notice(Notice::Leads(term))]
            }
            BidOutcome::Lost => {
                self.state = State::Following;
                Vec::new()
            }
            BidOutcome::Failed => {
                (self.state, self.bid_after) = (State::Following, now + AGAIN);
                Vec::new()
            }
        }
    }

    /// Gives up what this agent has, or had in an earlier life: nobody else would bid while its host's lease is open.
    fn give_up(&mut self, cache: &StoreCache, effects: &mut Vec<Effect>) {
        let own = match &self.state {
            State::Leading(leading) => Some(leading.held.clone()),
            State::Following => {
                cache.leader.clone().filter(|leader| leader.value.host.as_ref() == Some(&self.me))
            }
            State::Bidding | State::Resigning => None,
        };
        if let Some(own) = own {
            self.state = State::Resigning;
            effects.extend([Effect::Notice(Notice::NotReady(own.value.term)), Effect::Resign(own)]);
        }
    }

    fn written(&mut self, id: WriteId, outcome: WriteOutcome, now: Now) -> Vec<Effect> {
        if id.subject == Subject::Sets {
            self.settling = false;
            if let WriteOutcome::Applied(revision) = outcome {
                self.settled_at = self.settled_at.max(revision);
            }
        }
        let Some(leading) = self.leading_in(id.term) else { return Vec::new() };
        let outcome = match outcome {
            WriteOutcome::Applied(revision) => Outcome::Applied(revision),
            WriteOutcome::Refused { deposed: false } => Outcome::Refused,
            WriteOutcome::Refused { deposed: true } => return self.stop(Notice::Deposed),
            WriteOutcome::Unknown => return self.stop(Notice::OutcomeUnknown),
        };
        match id.subject {
            Subject::Node(node) => leading.take(LeaderInput::Written(node, outcome), now),
            Subject::Lease(host) => leading.take(LeaderInput::Expired(host, outcome), now),
            Subject::Sets => {}
        }
        Vec::new()
    }

    /// Nothing of this term counts any more. What is under way is conditional on it.
    fn stop(&mut self, notice: impl FnOnce(Term) -> Notice) -> Vec<Effect> {
        let term = self.term();
        self.state = State::Following;
        term.map(|term| Effect::Notice(notice(term))).into_iter().collect()
    }

    /// A policy that failed too often here is suspended for the cluster, whoever leads.
    fn suspend_failed(&mut self, seen: &Seen<'_>, effects: &mut Vec<Effect>) {
        if self.waits_for_sets(seen.cache) {
            return;
        }
        let sets = &seen.cache.policies;
        let suspended = seen.failed.iter().find_map(|one| sets.suspend(&one.name, &one.digest, &one.reason));
        if let Some(record) = suspended {
            self.settling = true;
            let id = WriteId { term: None, subject: Subject::Sets };
            effects.push(write(id, suspension_txn(sets, &record), What::Suspend(record)));
        }
    }

    /// A change of the sets is being written, or not shown yet.
    fn waits_for_sets(&self, cache: &StoreCache) -> bool {
        self.settling || cache.revision < self.settled_at
    }

    /// What becomes of the candidate. Whether nothing is to be decided until then: what is being written was decided by the
    /// set of before, and comes first.
    fn settle_sets(&mut self, seen: &Seen<'_>, now: Now, effects: &mut Vec<Effect>) -> bool {
        if self.waits_for_sets(seen.cache) {
            return true;
        }
        let State::Leading(leading) = &self.state else { return true };
        let (held, sets) = (&leading.held, &seen.cache.policies);
        let (transaction, what) = match sets.judge(&seen.cache.view().hosts, now.wall) {
            Some(Verdict::Activate(_) | Verdict::Refuse(_)) if leading.is_writing() => return true,
            Some(Verdict::Activate(record)) => (activation_txn(held, sets, &record), What::Activate(record)),
            Some(Verdict::Refuse(refused)) => (refusal_txn(held, sets, &refused), What::Refuse(refused)),
            Some(Verdict::Waits(_)) | None => return false,
        };
        let id = WriteId { term: Some(held.value.term), subject: Subject::Sets };
        effects.push(write(id, transaction, what));
        self.settling = true;
        true
    }

    fn decide(&mut self, seen: &Seen<'_>, now: Now, effects: &mut Vec<Effect>) {
        let bounds = self.bounds;
        if let State::Leading(leading) = &mut self.state {
            leading.decide(seen, bounds, now, effects);
        }
    }

    fn leading(&self) -> Option<&Leading> {
        match &self.state {
            State::Leading(leading) => Some(leading),
            State::Following | State::Bidding | State::Resigning => None,
        }
    }

    /// The term that is led in, if it is this one.
    fn leading_in(&mut self, term: Option<Term>) -> Option<&mut Leading> {
        match &mut self.state {
            State::Leading(leading) if Some(leading.held.value.term) == term => Some(leading),
            State::Leading(_) | State::Following | State::Bidding | State::Resigning => None,
        }
    }
}

impl Leading {
    fn new(held: Versioned<LeaderRecord>) -> Self {
        Self { held, machine: None, seen: 0, undecided: false }
    }

    /// The store cache shows this term.
    fn is_shown(&self, cache: &StoreCache) -> bool {
        cache.leader.as_ref().is_some_and(|leader| leader.revision == self.held.revision)
    }

    /// The store cache has come to this term, and shows something else. One that is behind it says nothing.
    fn is_over(&self, cache: &StoreCache) -> bool {
        cache.revision >= self.held.revision && !self.is_shown(cache)
    }

    fn is_writing(&self) -> bool {
        self.machine.as_ref().is_some_and(Leader::is_writing)
    }

    /// Takes what came of something, to be decided about at the next look.
    fn take(&mut self, input: LeaderInput, now: Now) {
        if let Some(machine) = &mut self.machine {
            machine.take(input, now);
            self.undecided = true;
        }
    }

    /// Gives the machine what is new, and hands out what it decides.
    fn decide(&mut self, seen: &Seen<'_>, bounds: Bounds, now: Now, effects: &mut Vec<Effect>) {
        let machine = self.machine.get_or_insert_with(|| Leader::new(bounds));
        let mut is_new = std::mem::take(&mut self.undecided);
        if machine.asked.policies != seen.policies {
            machine.take(LeaderInput::Policies(seen.policies), now);
            is_new = true;
        }
        if self.seen != seen.cache.revision {
            self.seen = seen.cache.revision;
            machine.take(LeaderInput::View(seen.cache.view().clone()), now);
            is_new = true;
        }
        if is_new || machine.next_due().is_some_and(|due| due <= now.boottime) {
            let decisions = machine.handle(LeaderInput::Tick, now);
            self.hand_out(decisions, now, effects);
        }
    }

    fn hand_out(&mut self, decisions: Decisions, now: Now, effects: &mut Vec<Effect>) {
        let term = self.held.value.term;
        let version = self.machine.as_ref().map_or(0, |machine| machine.asked.policies.version);
        let Decisions { expiries, assignments, questions, copies, refusals, judged } = decisions;
        let refused = |(interface, reason)| Effect::Notice(Notice::AnswerRefused(interface, reason));
        effects.extend(refusals.into_iter().map(refused));
        if judged != Judged::default() {
            effects.push(Effect::Judged(term, judged));
        }
        let asking = Asking { term, version };
        effects.extend(questions.into_iter().map(|question| Effect::Ask(asking, question)));
        let mut by_host = BTreeMap::<(HostId, u64), Vec<AskCopies>>::new();
        for ask in copies {
            by_host.entry((ask.host.clone(), ask.lease)).or_default().push(ask);
        }
        effects.extend(by_host.into_values().map(|asks| Effect::AskCopies(term, asks)));
        for expiry in expiries {
            let id = WriteId { term: Some(term), subject: Subject::Lease(expiry.host.clone()) };
            effects.push(write(id, expiry_txn(&self.held, &expiry), What::Expire(expiry)));
        }
        for assignment in assignments {
            effects.extend(self.assign(assignment, now));
        }
    }

    fn assign(&mut self, assignment: Assignment, now: Now) -> Option<Effect> {
        let machine = self.machine.as_mut()?;
        let (node, view) = (assignment.node.clone(), machine.decided_from());
        let broken = broken_by(view, &machine.heard(&node), &assignment);
        if !broken.is_empty() {
            machine.take(LeaderInput::Written(node.clone(), Outcome::Refused), now);
            self.undecided = true;
            return Some(Effect::Notice(Notice::Broken(node, broken)));
        }
        let before = view.nodes.get(&node).cloned();
        let id = WriteId { term: Some(self.held.value.term), subject: Subject::Node(node) };
        let transaction = assignment_txn(&self.held, &assignment);
        Some(write(id, transaction, What::Assign { assignment, before }))
    }
}

fn write(id: WriteId, transaction: Transaction, what: What) -> Effect {
    Effect::Write(Box::new(WriteRequest { id, transaction, what }))
}

#[cfg(test)]
mod tests;
