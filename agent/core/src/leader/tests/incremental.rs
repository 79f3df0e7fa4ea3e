//! The leader that follows a cluster decides as one that sees it for the first time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::properties::{Event, NODES, apply, event};
use super::sums;
use crate::fixture::{BuiltIn, Cluster, Policy, reply};
use crate::leader::{
    AskCopies, Decisions, Input, Leader, Outcome, Policies, Question, Reply, plan, plan_asking,
};
use crate::model::ids::{Epoch, InstanceId};
use crate::model::view::Answer;
use crate::policy::{BackupCountAnswer, BackupCountQuestion, Pick, PlacementAnswer, PlacementQuestion};

/// A policy of which the answer follows from the node and the purpose alone, so that it does not matter who asks when.
#[derive(Clone, Copy)]
struct Steady(u64);

impl Steady {
    fn draw(self, text: &str, below: u64) -> u64 {
        let mixed = text
            .bytes()
            .fold(self.0, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(17));
        (mixed >> 20) % below
    }
}

impl Policy for Steady {
    fn place(&mut self, question: &PlacementQuestion) -> Answer<PlacementAnswer> {
        let text = format!("{} {:?} {:?}", question.node, question.purpose, question.members);
        let hosts = u64::try_from(question.hosts.len()).unwrap();
        let pick = |number: u64| {
            let index = u32::try_from(self.draw(&format!("{text} {number}"), hosts + 1)).unwrap();
            Pick { index, reason: None }
        };
        match self.draw(&text, 4) {
            0 => Answer::Unavailable,
            count => Answer::Given(PlacementAnswer { picks: (0..count).map(pick).collect() }),
        }
    }
    fn count(&mut self, question: &BackupCountQuestion) -> Answer<BackupCountAnswer> {
        let text = format!("{} {}", question.node, question.cluster.hosts_ready);
        match u32::try_from(self.draw(&text, 5)).unwrap() {
            0 => Answer::Unavailable,
            backups => Answer::Given(BackupCountAnswer { primaries: 1, backups: backups - 1, reason: None }),
        }
    }
}

/// A cluster, and a leader that follows it.
struct Followed {
    cluster: Cluster,
    leader: Leader,
    policy: Option<Steady>,
}

impl Followed {
    fn new(hosts: usize, policy: Option<Steady>) -> Self {
        let mut cluster = Cluster::of(hosts);
        cluster.add(&NODES);
        let mut leader = Leader::new(cluster.bounds);
        let asked = policy.is_some();
        leader.handle(
            Input::Policies(Policies { placement: asked, backup_count: asked, version: 1 }),
            cluster.now,
        );
        Self { cluster, leader, policy }
    }

    fn answer(&self) -> impl FnMut(Question) -> Reply + use<> {
        let policy = self.policy;
        move |question| match policy {
            Some(mut steady) => reply(&mut steady, question),
            None => reply(&mut BuiltIn, question),
        }
    }

    /// Hosts that were asked say what they have by now.
    fn hear(&mut self) {
        let Self { leader, cluster, .. } = self;
        leader.words.hear_all(|node, host| {
            let (node, host, api) = (node.clone(), host.clone(), String::new());
            let instance = InstanceId::from_uuid(uuid::Uuid::nil());
            let ask = AskCopies { node, epoch: Epoch(0), instance, host, lease: 0, api };
            cluster.says(&ask)
        });
    }

    /// Both come to the same, whatever there is to decide.
    fn agree(&mut self) -> Result<(), TestCaseError> {
        let now = self.cluster.now;
        self.leader.take(Input::View(self.cluster.view.clone()), now);
        sums::check(&self.leader);
        self.hear();
        let deficits = self.leader.deficits.clone();
        let reported = self.cluster.view.nodes.keys().map(|node| (node.clone(), deficits.of(node)));
        let reported = reported.filter(|(_, short)| *short > 0).collect();
        let copies = |ask: &AskCopies| self.cluster.says(ask);
        let (followed, so_far) = self.leader.clone().all(now, self.answer(), copies);
        let (fresh, at_once) = match self.policy {
            Some(_) => {
                plan_asking(&self.cluster.view, &reported, &self.cluster.bounds, now, self.answer(), copies)
            }
            None => plan(&self.cluster.view, &self.cluster.bounds, now, copies),
        };
        prop_assert_eq!(&followed.expiries, &fresh.expiries);
        let reported = |plan: &crate::leader::Plan| -> Vec<String> {
            plan.assignments.iter().map(|one| format!("{}: {:?}", one.node, one.reasons)).collect()
        };
        prop_assert_eq!(reported(&followed), reported(&fresh));
        prop_assert_eq!(followed.assignments, fresh.assignments);
        prop_assert_eq!(so_far.wanted, at_once.wanted);
        prop_assert_eq!(so_far.lacks, at_once.lacks);
        Ok(())
    }

    /// Has done what the leader wants, as far as `refused` lets it: each write that it names by a bit comes too late.
    fn step(&mut self, refused: u64) {
        let now = self.cluster.now;
        self.hear();
        let mut decisions = self.leader.handle(Input::View(self.cluster.view.clone()), now);
        sums::check(&self.leader);
        let mut answer = self.answer();
        loop {
            let Decisions { expiries, assignments, questions, copies, .. } = decisions;
            let (mut outcomes, decided_from) = (Vec::new(), self.leader.decided_from().clone());
            let heard: BTreeMap<_, _> =
                assignments.iter().map(|one| (one.node.clone(), self.leader.heard(&one.node))).collect();
            for expiry in &expiries {
                let plan = crate::leader::Plan { expiries: vec![expiry.clone()], assignments: Vec::new() };
                self.cluster.apply(&plan);
                outcomes.push(Input::Expired(expiry.host.clone(), Outcome::Applied(0)));
            }
            for (number, assignment) in assignments.iter().enumerate() {
                if refused >> (number % 64) & 1 == 1 {
                    outcomes.push(Input::Written(assignment.node.clone(), Outcome::Refused));
                    continue;
                }
                let heard = heard.get(&assignment.node).cloned().unwrap_or_default();
                let broken = crate::invariants::broken_by(&decided_from, &heard, assignment);
                assert_eq!(broken, Vec::new(), "{assignment:?}");
                let plan =
                    crate::leader::Plan { expiries: Vec::new(), assignments: vec![assignment.clone()] };
                self.cluster.apply(&plan);
                let revision = self.cluster.view.nodes[&assignment.node].revision;
                outcomes.push(Input::Written(assignment.node.clone(), Outcome::Applied(revision)));
            }
            outcomes.extend(questions.into_iter().map(|question| Input::Reply(answer(question))));
            for ask in copies {
                if let Some(said) = self.cluster.says(&ask) {
                    outcomes.push(Input::Copies(ask, said));
                } else {
                    self.leader.words.give_up((&ask.node, &ask.host));
                    self.leader.look_at(&ask.node);
                    outcomes.push(Input::Tick);
                }
            }
            if outcomes.is_empty() {
                break;
            }
            decisions = Decisions::default();
            for outcome in outcomes {
                let more = self.leader.handle(outcome, now);
                sums::check(&self.leader);
                decisions.expiries.extend(more.expiries);
                decisions.assignments.extend(more.assignments);
                decisions.questions.extend(more.questions);
                decisions.copies.extend(more.copies);
            }
        }
        // What was refused is tried again a moment later.
        self.cluster.pass(std::time::Duration::from_secs(1));
    }
}

fn agree_always(hosts: usize, policy: Option<Steady>, events: &[Event]) -> Result<(), TestCaseError> {
    let mut followed = Followed::new(hosts, policy);
    followed.agree()?;
    for event in events {
        match event {
            Event::Step(refused) => {
                followed.step(if refused % 3 == 0 { *refused } else { 0 });
            }
            event => apply(&mut followed.cluster, event),
        }
        followed.agree()?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_leader_that_follows_decides_as_one_from_nothing(
        hosts in 1..6_usize,
        events in prop::collection::vec(event(), 0..50),
    ) {
        agree_always(hosts, None, &events)?;
    }

    #[test]
    fn so_it_does_where_policies_are_asked(
        hosts in 1..6_usize,
        seed in any::<u64>(),
        events in prop::collection::vec(event(), 0..30),
    ) {
        agree_always(hosts, Some(Steady(seed)), &events)?;
    }
}

/// A question was under way about a node of which a part was handed out already. The answer came after that and was kept:
/// once the write was refused, the node was decided with it before others that come first.
#[test]
fn what_is_answered_of_a_node_after_it_was_handed_out_is_void() {
    let events = [
        Event::Forget(3),
        Event::Step(8_281_791_903_557_437_834),
        Event::Reopen(4),
        Event::Obey,
        Event::Step(647_920_890_505_924),
        Event::Reopen(1),
        Event::Kill(3),
        Event::Step(13_119_707_644_233_445_413),
    ];
    agree_always(4, Some(Steady(2_659_317_862_937_413_979)), &events).unwrap();
    let events = [
        Event::Step(507_973_729_074_045_754),
        Event::Drain(0, true),
        Event::Reopen(4),
        Event::Obey,
        Event::Step(1_039_699_126_454_065_342),
        Event::Obey,
        Event::Step(13_048_539_012_589_823_211),
        Event::Lose(1),
        Event::Move(1),
    ];
    agree_always(5, Some(Steady(14_342_272_620_119_004_013)), &events).unwrap();
}
