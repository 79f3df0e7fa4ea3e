//! Owns the model of the daemon's leading: the bid, answers of a policy that says anything, and the writing of what the
//! leader's machine decides.
//!
//! Promises: the machine is the one that ships. Must not do: decide what to write.

use std::collections::VecDeque;

use understudy_core::ids::HostId;
use understudy_core::invariants::broken_by;
use understudy_core::leader::{
    Assignment, CheckpointChange, Decisions, Input, Leader, Outcome, Policies, Question, Reply, SessionEnding,
};
use understudy_core::policy::{BackupCountAnswer, Pick, PlacementAnswer};
use understudy_core::records::LeaderRecord;
use understudy_core::sets::Verdict;
use understudy_core::units::Now;
use understudy_core::view::{Answer as Said, View};

use super::{Agent, Tag};
use crate::Weakness;
use crate::store::{Key, Txn, Value};
use crate::world::{Answer, Body, World};

impl Agent {
    pub(super) fn lead(&mut self, world: &mut World, me: &HostId, view: View, now: Now) {
        if !self.may_lead(world, me, &view) {
            return;
        }
        let Some(mirror) = &self.mirror else { return };
        let (seen, sets) = (mirror.revision, mirror.sets.clone());
        let newer = mirror.leader.as_ref().map_or(0, |leader| leader.revision);
        if self.leading.is_some_and(|(revision, _)| newer > revision) {
            self.stop_leading();
        }
        match self.leading {
            // What is under way was decided by the set of before.
            Some((leadership, _)) if seen >= self.planned_at && !self.settling => {
                let settles = sets.judge(&view.hosts, now.wall);
                let settles = settles.is_some_and(|verdict| !matches!(verdict, Verdict::Waits(_)));
                match (settles, self.writing) {
                    (true, 0) => self.settle_sets(world, me, (&view, leadership), now),
                    (true, _) => {}
                    (false, _) => self.decide(world, me, (view, leadership), now),
                }
            }
            Some(_) => {}
            None => self.bid(world, me, &view),
        }
    }

    fn bid(&mut self, world: &mut World, me: &HostId, view: &View) {
        let clock = world.machine(me).boottime(world.now);
        let Some(mirror) = &self.mirror else { return };
        let (vacant, revision, term) = match &mirror.leader {
            None => (true, 0, 1),
            Some(known) => {
                let host = &known.value.host;
                let gone = view.hosts.get(host).is_none_or(|seen| {
                    !seen.is_open() || seen.silent_for(clock) >= world.bounds.session_end_after()
                });
                (host == me || gone, known.revision, known.value.term + 1)
            }
        };
        if !vacant || self.bidding {
            return;
        }
        self.bidding = true;
        let record = LeaderRecord { host: me.clone(), term };
        let txn = Txn {
            when: vec![(Key::Leader, revision)],
            writes: vec![(Key::Leader, Some(Value::Leader(record)))],
        };
        self.send(world, me, Tag::Bid { term }, Body::Commit(txn));
    }

    /// Tells the machine what the store holds by now, and has done what it wants.
    fn decide(&mut self, world: &mut World, me: &HostId, (view, leadership): (View, u64), now: Now) {
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
            self.carry_out(world, me, leadership, decisions);
        }
    }

    fn carry_out(&mut self, world: &mut World, me: &HostId, leadership: u64, decisions: Decisions) {
        for ending in &decisions.endings {
            self.writing += 1;
            let txn = ending_txn(leadership, ending);
            self.send(world, me, Tag::Ended { leadership, host: ending.host.clone() }, Body::Commit(txn));
        }
        for assignment in &decisions.assignments {
            if let Some(machine) = &self.machine {
                for broken in broken_by(machine.decided_from(), assignment) {
                    world.fail(format!("the plan of {me} breaks {broken}"));
                }
            }
            self.writing += 1;
            world.decided(&assignment.node, &assignment.record, &assignment.reasons);
            let txn = assignment_txn(world.weakness, leadership, assignment);
            self.send(
                world,
                me,
                Tag::Assigned { leadership, node: assignment.node.clone() },
                Body::Commit(txn),
            );
        }
    }

    /// A write that the leader wanted has an outcome.
    pub(super) fn written(
        &mut self,
        world: &mut World,
        me: &HostId,
        leadership: u64,
        (answer, input): (&Answer, impl FnOnce(Outcome) -> Input),
    ) {
        self.writing -= 1;
        if self.leading.map(|(revision, _)| revision) != Some(leadership) {
            return;
        }
        let outcome = match answer {
            Answer::Applied(revision) => Outcome::Applied(*revision),
            // It may still be applied: a new term keeps it from coming after what is planned next.
            Answer::Refused(Key::Leader) | Answer::Unavailable => return self.stop_leading(),
            Answer::Refused(_) | Answer::Read(_) => Outcome::Refused,
        };
        let clock = world.machine(me).boottime(world.now);
        let now = Now { boottime: clock, wall: world.machine(me).wall(world.now) };
        let Some(decisions) = self.machine.as_mut().map(|machine| machine.handle(input(outcome), now)) else {
            return;
        };
        self.carry_out(world, me, leadership, decisions);
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

fn ending_txn(leadership: u64, ending: &SessionEnding) -> Txn {
    let key = Key::Session(ending.host.clone());
    Txn {
        when: vec![(Key::Leader, leadership), (key.clone(), ending.revision)],
        writes: vec![(key, Some(Value::Session(ending.record.clone())))],
    }
}

fn assignment_txn(weakness: Option<Weakness>, leadership: u64, assignment: &Assignment) -> Txn {
    let node = Key::Node(assignment.node.clone());
    let checkpoint = Key::Checkpoint(assignment.node.clone());
    let mut txn = Txn {
        when: vec![(Key::Leader, leadership), (node.clone(), assignment.revision)],
        writes: vec![(node, Some(Value::Node(Box::new(assignment.record.clone()))))],
    };
    for (host, revision) in &assignment.sessions {
        txn.when.push((Key::Session(host.clone()), *revision));
    }
    match &assignment.checkpoint {
        CheckpointChange::Keep => {}
        CheckpointChange::Replace(revision, record) => {
            txn.when.push((checkpoint.clone(), *revision));
            txn.writes.push((checkpoint, Some(Value::Checkpoint(record.clone()))));
        }
        CheckpointChange::Delete(revision) => {
            txn.when.push((checkpoint.clone(), *revision));
            txn.writes.push((checkpoint, None));
        }
    }
    if weakness == Some(Weakness::BlindWrites) {
        txn.when.clear();
    }
    txn
}
