//! What holds of every leadership, whatever the store does with its writes and whatever it shows when.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::rig::{Rig, me, set};
use crate::keys::Key;
use crate::leader::leadership::{BidOutcome, Effect, Input, Notice, Subject, WriteOutcome, WriteRequest};
use crate::leader::{Policies, Reply};
use crate::model::ids::Term;
use crate::model::records::LeaderRecord;
use crate::model::view::Versioned;
use crate::sets::PolicySetRecord;

#[derive(Debug, Clone)]
enum Happens {
    /// And how long after it, in milliseconds, somebody looks in vain.
    Look(u64),
    Show,
    Pass(u64),
    Renew,
    LeaseOpen(bool),
    EndBid(Fate),
    EndWrite(usize, Fate),
    /// A write of which the outcome was not known comes after all.
    Late(usize),
    Answer(usize),
    Depose,
    Resigned,
    Propose,
    Ready(bool),
    Asks(bool),
}

/// What becomes of a request, and what is heard of it.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Done,
    /// It arrives and its answer does not.
    AnswerLost,
    /// It has not arrived yet.
    Late,
}

fn happens() -> impl Strategy<Value = Happens> {
    let fate = prop_oneof![6 => Just(Fate::Done), 1 => Just(Fate::AnswerLost), 1 => Just(Fate::Late)];
    prop_oneof![
        12 => (0..20_000_u64).prop_map(Happens::Look),
        8 => Just(Happens::Show),
        2 => (0..8_000_u64).prop_map(Happens::Pass),
        4 => Just(Happens::Renew),
        1 => any::<bool>().prop_map(Happens::LeaseOpen),
        8 => fate.clone().prop_map(Happens::EndBid),
        8 => (any::<usize>(), fate).prop_map(|(which, fate)| Happens::EndWrite(which, fate)),
        3 => any::<usize>().prop_map(Happens::Late),
        4 => any::<usize>().prop_map(Happens::Answer),
        1 => Just(Happens::Depose),
        2 => Just(Happens::Resigned),
        1 => Just(Happens::Propose),
        3 => any::<bool>().prop_map(Happens::Ready),
        1 => any::<bool>().prop_map(Happens::Asks),
    ]
}

/// What is under way beside the rig's writes, and what must not be decided any more.
struct Course {
    rig: Rig,
    /// The bid under way.
    bid: Option<Option<Versioned<LeaderRecord>>>,
    resigning: bool,
    /// Writes of unknown outcome that may come yet.
    late: Vec<WriteRequest>,
    /// Terms that are over, for this agent.
    over: BTreeSet<Term>,
    /// The sets that an assignment under way was decided by.
    generation: u64,
}

impl Course {
    fn new() -> Self {
        let (late, over) = (Vec::new(), BTreeSet::new());
        Self { rig: Rig::new(), bid: None, resigning: false, late, over, generation: 0 }
    }

    fn happen(&mut self, what: Happens) {
        match what {
            Happens::Look(after) => {
                let before = self.rig.writes.len();
                let effects = self.rig.look();
                self.judge(&effects, before);
                self.rests_until_due(after);
            }
            Happens::Show => self.rig.show(),
            Happens::Pass(millis) => self.rig.pass(Duration::from_millis(millis)),
            Happens::Renew => self.rig.renew_all_but("host3"),
            Happens::LeaseOpen(open) => self.rig.lease_open = open,
            Happens::EndBid(fate) => self.end_bid(fate),
            Happens::EndWrite(which, fate) => self.end_write(which, fate),
            Happens::Late(which) => {
                if !self.late.is_empty() {
                    let request = self.late.remove(which % self.late.len());
                    let outcome = self.rig.commit(&request.transaction);
                    let new_term = request
                        .id
                        .term
                        .is_some_and(|term| self.rig.leadership.term().is_some_and(|leads| leads > term));
                    let applied = matches!(outcome, WriteOutcome::Applied(_));
                    assert!(
                        !(new_term && applied),
                        "a write of an earlier term comes after a new one: {request:?}"
                    );
                }
            }
            Happens::Answer(which) => {
                if !self.rig.asked.is_empty() {
                    let which = which % self.rig.asked.len();
                    let (asking, question) = self.rig.asked.remove(which);
                    self.hear(Input::Reply(asking, Reply::unavailable(question)));
                }
            }
            Happens::Depose => self.rig.depose("host2"),
            Happens::Resigned => {
                if std::mem::take(&mut self.resigning) {
                    self.hear(Input::Resigned);
                }
            }
            Happens::Propose => {
                if self.rig.read::<PolicySetRecord>(&Key::PolicyCandidate).is_none() {
                    self.generation += 1;
                    self.rig.put(Key::PolicyCandidate, &set(self.generation));
                }
            }
            Happens::Ready(ready) => {
                let number = self.generation;
                self.rig.all_have(number);
                if ready {
                    self.rig.sets.ready.insert(number);
                } else {
                    self.rig.sets.ready.clear();
                }
            }
            Happens::Asks(asks) => {
                let version = self.rig.policies.version + 1;
                self.rig.policies = Policies { placement: asks, backup_count: asks, version };
            }
        }
    }

    fn end_bid(&mut self, fate: Fate) {
        let Some(previous) = self.bid.take() else { return };
        let outcome = match fate {
            Fate::Done => self.rig.bid(&me(), previous.as_ref()),
            Fate::AnswerLost => {
                let _applied = self.rig.bid(&me(), previous.as_ref());
                BidOutcome::Failed
            }
            Fate::Late => BidOutcome::Failed,
        };
        self.hear(Input::BidEnded(outcome));
    }

    fn end_write(&mut self, which: usize, fate: Fate) {
        if self.rig.writes.is_empty() {
            return;
        }
        let request = self.rig.writes.remove(which % self.rig.writes.len());
        let outcome = match fate {
            Fate::Done => self.rig.commit(&request.transaction),
            Fate::AnswerLost => {
                let _applied = self.rig.commit(&request.transaction);
                WriteOutcome::Unknown
            }
            Fate::Late => {
                self.late.push(request.clone());
                WriteOutcome::Unknown
            }
        };
        if outcome == WriteOutcome::Unknown {
            self.over.extend(request.id.term);
        }
        self.hear(Input::Written(request.id, outcome));
    }

    /// What comes back decides nothing by itself.
    fn hear(&mut self, input: Input<'_>) {
        let effects = self.rig.tell(input);
        assert!(effects.iter().all(|effect| matches!(effect, Effect::Notice(_))), "{effects:?}");
        self.over.extend(effects.iter().filter_map(ended));
    }

    /// Where nothing happens, nothing is to be done before it says that it is due.
    fn rests_until_due(&self, after: u64) {
        // A candidate waits by the wall clock.
        if self.rig.cache.policies.candidate.is_some() {
            return;
        }
        let due = self.rig.leadership.due(&self.rig.cache);
        assert!(due.is_none_or(|due| due > self.rig.now.boottime), "it would be looked at for ever: {due:?}");
        let mut later = self.rig.clone();
        let until = due.map(|due| due.since(self.rig.now.boottime).saturating_sub(Duration::from_nanos(1)));
        let wait = Duration::from_millis(after);
        later.pass(until.map_or(wait, |until| until.min(wait)));
        let effects = later.look();
        assert!(effects.is_empty(), "due {due:?}, and before it, at {:?}: {effects:?}", later.now);
    }

    fn judge(&mut self, effects: &[Effect], writes_before: usize) {
        let (earlier, new) = self.rig.writes.split_at(writes_before);
        let is_set = |request: &WriteRequest| request.id.subject == Subject::Sets;
        let is_node = |request: &WriteRequest| matches!(request.id.subject, Subject::Node(_));
        let leads = self.rig.leadership.term();
        self.over.extend(effects.iter().filter_map(ended));
        let decides = |term: &Term| {
            assert_eq!(leads, Some(*term), "a decision of another term");
            assert!(!self.over.contains(term), "a decision in a term that is over");
            let shown = self.rig.cache.leader.as_ref().unwrap();
            assert_eq!((shown.value.host.as_ref(), shown.value.term), (Some(&me()), *term));
            assert!(self.rig.lease_open, "a decision without a lease");
            assert!(!earlier.iter().any(is_set), "a decision while a set is being settled");
        };
        for effect in effects {
            match effect {
                Effect::Ask(asking, _) => decides(&asking.term),
                Effect::Judged(term, _) | Effect::AskCopies(term, _) => decides(term),
                Effect::Write(request) => {
                    let term = request.id.term.unwrap();
                    decides(&term);
                    let leadership = &request.transaction.conditions[0];
                    let shown = self.rig.cache.leader.as_ref().unwrap();
                    assert_eq!((&leadership.key, leadership.revision), (&Key::Leader, Some(shown.revision)));
                    // A lease that was renewed meanwhile is expired over another revision; the first write is refused.
                    let same = |one: &&WriteRequest| is_node(one) && one.id == request.id;
                    assert!(self.rig.writes.iter().filter(same).count() <= 1, "written twice: {request:?}");
                    if is_set(request) {
                        let under_way = |one: &WriteRequest| is_node(one) && one.id.term == Some(term);
                        assert!(!earlier.iter().any(under_way) && new.len() == 1);
                    }
                }
                Effect::Bid(previous) => {
                    assert!(self.bid.is_none() && !self.resigning && leads.is_none());
                    assert!(is_vacant(&self.rig), "a bid for what is not vacant");
                    assert_eq!(*previous, self.rig.cache.leader);
                    self.bid = Some(previous.clone());
                }
                Effect::Resign(own) => {
                    assert!(self.bid.is_none() && !self.resigning && leads.is_none());
                    assert_eq!(own.value.host, Some(me()));
                    self.resigning = true;
                }
                Effect::Notice(_) => {}
            }
        }
    }
}

/// The term that is over by this.
fn ended(effect: &Effect) -> Option<Term> {
    match effect {
        Effect::Notice(
            Notice::AnotherLeads(term)
            | Notice::Deposed(term)
            | Notice::OutcomeUnknown(term)
            | Notice::NotReady(term),
        ) => Some(*term),
        Effect::Notice(Notice::Leads(_) | Notice::Broken(..) | Notice::AnswerRefused(..))
        | Effect::Bid(_)
        | Effect::Resign(_)
        | Effect::Ask(..)
        | Effect::AskCopies(..)
        | Effect::Write(_)
        | Effect::Judged(..) => None,
    }
}

/// As the store cache shows it, in words of its own.
fn is_vacant(rig: &Rig) -> bool {
    let Some(Versioned { value: LeaderRecord { host: Some(host), .. }, .. }) = &rig.cache.leader else {
        return true;
    };
    let lease = rig.cache.view().hosts.get(host);
    let over = lease.is_none_or(|seen| seen.lease.value.expired.is_some());
    let silent = |since| rig.now.boottime.since(since) >= Duration::from_secs(7);
    let silent = lease.and_then(|seen| seen.silent_since).is_some_and(silent);
    *host == me() || over || silent
}

proptest! {
    #[test]
    fn terms_are_never_mixed_and_only_what_is_vacant_is_bid_for(all in prop::collection::vec(happens(), 0..120)) {
        let mut course = Course::new();
        for what in all {
            course.happen(what);
        }
    }
}
