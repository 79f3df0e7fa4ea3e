//! Owns the model of the daemon's leading: the bid, planning with answers of a policy that says anything, writing.

use understudy_core::ids::HostId;
use understudy_core::invariants::broken_by;
use understudy_core::plan::{Assignment, CheckpointChange, Plan, Report, SessionEnding, plan};
use understudy_core::policy::{BackupCountAnswer, Pick, PlacementAnswer};
use understudy_core::records::LeaderRecord;
use understudy_core::units::Now;
use understudy_core::view::{Answer as Said, View};

use super::{Agent, Tag};
use crate::Weakness;
use crate::store::{Key, Txn, Value};
use crate::world::{Body, World};

const ROUNDS_MAX: u32 = 300;

impl Agent {
    pub(super) fn lead(&mut self, world: &mut World, me: &HostId, view: View, now: Now) {
        if !self.may_lead(world, me, &view) {
            return;
        }
        let Some(mirror) = &self.mirror else { return };
        let newer = mirror.leader.as_ref().map_or(0, |leader| leader.revision);
        if self.leading.is_some_and(|(revision, _)| newer > revision) {
            self.leading = None;
        }
        match self.leading {
            Some((leadership, _)) if self.writing == 0 && mirror.revision >= self.planned_at => {
                if !self.settle_sets(world, me, (&view, leadership), now) {
                    self.plan(world, me, (view, leadership), now);
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

    fn plan(&mut self, world: &mut World, me: &HostId, (mut view, leadership): (View, u64), now: Now) {
        view.deficits = self.report.deficits();
        // As the daemon does: what waits for no answer is written first.
        self.asks_its_set(world, me, &view);
        let first = plan(&view, &world.bounds, now);
        let plan = first.0.before_answers().unwrap_or_else(|| {
            let (plan, report) = answered(world, &mut view, first, now);
            self.report = report;
            plan
        });
        for ending in &plan.endings {
            self.writing += 1;
            let txn = ending_txn(leadership, ending);
            self.send(world, me, Tag::Planned, Body::Commit(txn));
        }
        for assignment in &plan.assignments {
            for broken in broken_by(&view, assignment) {
                world.fail(format!("the plan of {me} breaks {broken}"));
            }
            self.writing += 1;
            world.decided(&assignment.node, &assignment.record, &assignment.reasons);
            let txn = assignment_txn(world.weakness, leadership, assignment);
            self.send(world, me, Tag::Planned, Body::Commit(txn));
        }
    }
}

/// Asks and plans again until the plan wants to know nothing.
fn answered(world: &mut World, view: &mut View, mut planned: (Plan, Report), now: Now) -> (Plan, Report) {
    for _ in 0..ROUNDS_MAX {
        if !planned.0.has_questions() {
            return planned;
        }
        let (placements, backup_counts) = (planned.0.placements, planned.0.backup_counts);
        for question in placements {
            let answer = if world.policy_is_mad() && world.rng.chance(700) {
                let count = world.rng.below(5);
                let pick = |index: u64| Pick { index: u32::try_from(index).unwrap_or(0), reason: None };
                let picks = (0..count).map(|_| pick(world.rng.below(6))).collect();
                Said::Given(PlacementAnswer { picks })
            } else {
                Said::Unavailable
            };
            view.placements.insert(question, answer);
        }
        for question in backup_counts {
            let answer = if world.policy_is_mad() && world.rng.chance(200) {
                let backups = u32::try_from(world.rng.below(20)).unwrap_or(0);
                let primaries = u32::try_from(world.rng.below(3)).unwrap_or(0);
                Said::Given(BackupCountAnswer { primaries, backups, reason: None })
            } else {
                Said::Unavailable
            };
            view.backup_counts.insert(question, answer);
        }
        planned = plan(view, &world.bounds, now);
    }
    world.fail("the plan never stops asking".to_owned());
    (Plan::default(), Report::default())
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
