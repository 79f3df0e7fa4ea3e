//! Owns the model of the daemon's leading: the bid, answers of a policy that says anything, and the writing of what the
//! leader's machine decides.
//!
//! Promises: the machine is the one that ships. Must not do: decide what to write.

use std::collections::VecDeque;

use understudy_core::ids::HostId;
use understudy_core::invariants::broken_by;
use understudy_core::keys::{Key, LEADER, encode};
use understudy_core::leader::{
    Assignment, CheckpointChange, Decisions, Input, Leader, Outcome, Policies, Question, Reply, SessionEnding,
};
use understudy_core::policy::{BackupCountAnswer, Pick, PlacementAnswer};
use understudy_core::sets::Verdict;
use understudy_core::units::Now;
use understudy_core::view::{Answer as Said, View};
use understudy_store::Txn;
use understudy_store::election::{Leadership, Term};

use super::{Agent, Tag};
use crate::Weakness;
use crate::mirror::unchanged;
use crate::world::{Answer, Body, World};

impl Agent {
    pub(super) fn lead(&mut self, world: &mut World, me: &HostId, view: View, now: Now) {
        if !self.may_lead(world, me, &view) {
            return;
        }
        let Some(mirror) = &self.mirror else { return };
        let (seen, sets) = (mirror.revision, mirror.policies.clone());
        let newer = mirror.leader.as_ref().map_or(0, |leader| leader.revision);
        if self.leading.as_ref().is_some_and(|mine| newer > mine.revision().0) {
            self.stop_leading();
        }
        match self.leading.clone() {
            // What is under way was decided by the set of before.
            Some(mine) if seen >= self.planned_at && !self.settling => {
                let settles = sets.judge(&view.hosts, now.wall);
                let settles = settles.is_some_and(|verdict| !matches!(verdict, Verdict::Waits(_)));
                match (settles, self.writing) {
                    (true, 0) => self.settle_sets(world, me, (&view, &mine), now),
                    (true, _) => {}
                    (false, _) => self.decide(world, me, (view, &mine), now),
                }
            }
            Some(_) => {}
            None => self.bid(world, me, &view),
        }
    }

    fn bid(&mut self, world: &mut World, me: &HostId, view: &View) {
        let clock = world.machine(me).boottime(world.now);
        let Some(mirror) = &self.mirror else { return };
        let vacant = match mirror.leader.as_ref().and_then(|known| known.value.host.as_ref()) {
            None => true,
            Some(host) if host == me => true,
            Some(host) => view.hosts.get(host).is_none_or(|seen| {
                !seen.is_open() || seen.silent_for(clock) >= world.bounds.session_end_after()
            }),
        };
        if !vacant || self.bidding {
            return;
        }
        let previous = mirror.leader.as_ref().map(|known| Leadership::seen(LEADER, known));
        self.bidding = true;
        self.send(world, me, Tag::Bid, Body::Bid(previous));
    }

    /// Tells the machine what the store holds by now, and has done what it wants.
    fn decide(&mut self, world: &mut World, me: &HostId, (view, mine): (View, &Leadership), now: Now) {
        self.asks_its_set(world, me, &view);
        let generation = self.sets.planned;
        let asks = world.policy_is_mad();
        let asked = Policies { placement: asks, backup_count: asks, version: generation };
        let mut inputs = VecDeque::from([Input::Policies(asked), Input::View(view)]);
        while let Some(input) = inputs.pop_front() {
            let machine = self.machine.get_or_insert_with(|| Leader::new(world.bounds));
            let decisions = machine.handle(input, now);
            inputs
                .extend(decisions.questions.iter().map(|asked| Input::Reply(answered(world, asked.clone()))));
            self.carry_out(world, me, mine, decisions);
        }
    }

    fn carry_out(&mut self, world: &mut World, me: &HostId, mine: &Leadership, decisions: Decisions) {
        let term = mine.term();
        for ending in &decisions.endings {
            self.writing += 1;
            let txn = ending_txn(mine, ending);
            self.send(world, me, Tag::Ended { term, host: ending.host.clone() }, Body::Commit(txn));
        }
        for assignment in &decisions.assignments {
            if let Some(machine) = &self.machine {
                for broken in broken_by(machine.decided_from(), assignment) {
                    world.fail(format!("the plan of {me} breaks {broken}"));
                }
            }
            self.writing += 1;
            world.decided(&assignment.node, &assignment.record, &assignment.reasons);
            let txn = assignment_txn(world.weakness, mine, assignment);
            let tag = Tag::Assigned { term, node: assignment.node.clone() };
            self.send(world, me, tag, Body::Commit(txn));
        }
    }

    /// A write that the leader wanted has an outcome.
    pub(super) fn written(
        &mut self,
        world: &mut World,
        me: &HostId,
        term: Term,
        (answer, input): (&Answer, impl FnOnce(Outcome) -> Input),
    ) {
        self.writing -= 1;
        let Some(mine) = self.leading.clone().filter(|mine| mine.term() == term) else { return };
        let outcome = match answer {
            Answer::Applied(revision) => Outcome::Applied(*revision),
            // It may still be applied: a new term keeps it from coming after what is planned next.
            Answer::Refused { deposed: true } | Answer::Unavailable => return self.stop_leading(),
            Answer::Refused { deposed: false } | Answer::Read(_) | Answer::Bid(_) => Outcome::Refused,
        };
        let clock = world.machine(me).boottime(world.now);
        let now = Now { boottime: clock, wall: world.machine(me).wall(world.now) };
        let Some(decisions) = self.machine.as_mut().map(|machine| machine.handle(input(outcome), now)) else {
            return;
        };
        self.carry_out(world, me, &mine, decisions);
    }

    pub(super) fn stop_leading(&mut self) {
        self.leading = None;
        self.machine = None;
    }
}

/// What a policy says: anything, where it is mad.
fn answered(world: &mut World, question: Question) -> Reply {
    match question {
        Question::Placement(question) => {
            let answer = if world.policy_is_mad() && world.rng.chance(700) {
                let count = world.rng.below(5);
                let pick = |index: u64| Pick { index: u32::try_from(index).unwrap_or(0), reason: None };
                let picks = (0..count).map(|_| pick(world.rng.below(6))).collect();
                Said::Given(PlacementAnswer { picks })
            } else {
                Said::Unavailable
            };
            Reply::Placement(question, answer)
        }
        Question::BackupCount(question) => {
            let answer = if world.policy_is_mad() && world.rng.chance(200) {
                let backups = u32::try_from(world.rng.below(20)).unwrap_or(0);
                let primaries = u32::try_from(world.rng.below(3)).unwrap_or(0);
                Said::Given(BackupCountAnswer { primaries, backups, reason: None })
            } else {
                Said::Unavailable
            };
            Reply::BackupCount(question, answer)
        }
    }
}

fn ending_txn(mine: &Leadership, ending: &SessionEnding) -> Txn {
    let key = Key::Session(ending.host.clone());
    Txn::new()
        .when(mine.condition())
        .when(unchanged(&key, ending.revision))
        .when(unchanged(&Key::Renewal(ending.host.clone()), ending.renewed))
        .put(key.to_string(), encode(&ending.record))
}

fn assignment_txn(weakness: Option<Weakness>, mine: &Leadership, assignment: &Assignment) -> Txn {
    let node = Key::Node(assignment.node.clone());
    let checkpoint = Key::Checkpoint(assignment.node.clone());
    let mut txn = Txn::new()
        .when(mine.condition())
        .when(unchanged(&node, assignment.revision))
        .put(node.to_string(), encode(&assignment.record));
    for (host, revision) in &assignment.sessions {
        txn = txn.when(unchanged(&Key::Session(host.clone()), *revision));
    }
    txn = match &assignment.checkpoint {
        CheckpointChange::Keep => txn,
        CheckpointChange::Replace(revision, record) => {
            txn.when(unchanged(&checkpoint, *revision)).put(checkpoint.to_string(), encode(record))
        }
        CheckpointChange::Delete(revision) => {
            txn.when(unchanged(&checkpoint, *revision)).delete(checkpoint.to_string())
        }
    };
    if weakness == Some(Weakness::BlindWrites) {
        txn.conditions.clear();
    }
    txn
}
