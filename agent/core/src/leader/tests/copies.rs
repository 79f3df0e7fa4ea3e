//! What hosts are asked of a dead primary's checkpoints, what is decided without an answer, and when they are asked again.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::bounds::{ASK, ASK_AGAIN, NEWER_STATE, STATE_WAIT};
use crate::fixture::{Cluster, host, node};
use crate::leader::{AskCopies, Assignment, Decisions, Input, Leader, Outcome, Plan};
use crate::model::ids::{Epoch, HostId, InstanceId};
use crate::model::records::Kept;
use crate::model::units::MiB;

const NODE: &str = "alice/exec-1";

/// A leader that follows a cluster in which NODE has two backups, both with its newest checkpoint.
struct Rig {
    cluster: Cluster,
    leader: Leader,
    backups: [String; 2],
    asked: Vec<AskCopies>,
}

impl Rig {
    fn new() -> Self {
        let mut cluster = Cluster::of(4);
        cluster.add(&[NODE]);
        cluster.edit(NODE, |record| drop(record.spec.labels.insert("backups".to_owned(), "2".to_owned())));
        cluster.settle();
        let backups: [String; 2] = cluster.backup_hosts(NODE).try_into().unwrap();
        let mut rig = Self { leader: Leader::new(cluster.bounds), cluster, backups, asked: Vec::new() };
        rig.look();
        assert!(rig.asked.is_empty(), "nobody asks while the primary lives");
        rig
    }

    fn dead() -> Self {
        let mut rig = Self::new();
        rig.cluster.kill_primary(NODE);
        rig
    }

    fn handle(&mut self, input: Input) {
        let Decisions { expiries, assignments, copies, .. } = self.leader.handle(input, self.cluster.now);
        assert!(expiries.is_empty());
        self.asked.extend(copies);
        self.write(assignments);
    }

    fn write(&mut self, assignments: Vec<Assignment>) {
        for assignment in assignments {
            let node = assignment.node.clone();
            self.cluster.apply(&Plan { expiries: Vec::new(), assignments: vec![assignment] });
            let outcome = Outcome::Applied(self.cluster.view.nodes[&node].revision);
            self.handle(Input::Written(node, outcome));
        }
    }

    fn look(&mut self) {
        self.handle(Input::View(self.cluster.view.clone()));
    }

    fn pass(&mut self, time: Duration) {
        self.cluster.pass(time);
        self.look();
    }

    /// Who was asked since the last time.
    fn asked(&mut self) -> BTreeSet<HostId> {
        let asked = std::mem::take(&mut self.asked);
        let hosts: BTreeSet<HostId> = asked.iter().map(|ask| ask.host.clone()).collect();
        assert_eq!(hosts.len(), asked.len(), "nobody is asked twice: {asked:?}");
        hosts
    }

    fn answer(&mut self, name: &str) {
        let lease = self.cluster.seen(name).lease.value.number;
        self.answer_under(name, lease, self.cluster.kept(name, NODE));
    }

    fn answer_under(&mut self, name: &str, lease: u64, said: Kept) {
        self.answer_of(self.epoch(), name, lease, said);
    }

    fn answer_of(&mut self, epoch: Epoch, name: &str, lease: u64, said: Kept) {
        let instance = self.cluster.record(NODE).state_of().unwrap();
        let (node, host, api) = (node(NODE), host(name), String::new());
        self.handle(Input::Copies(AskCopies { node, epoch, instance, host, lease, api }, said));
    }

    /// Where it is restored, if it is.
    fn restored(&self) -> Option<String> {
        let primary = self.cluster.record(NODE).primary.clone().unwrap();
        primary.origin.restored().map(|_| primary.host.to_string())
    }

    fn epoch(&self) -> Epoch {
        self.cluster.record(NODE).epoch
    }
}

#[test]
fn all_that_may_have_a_copy_are_asked_at_once_and_the_last_answer_decides() {
    let mut rig = Rig::dead();
    rig.look();
    let [one, other] = rig.backups.clone();
    assert_eq!(rig.asked(), BTreeSet::from([host(&one), host(&other)]));
    rig.answer(&other);
    assert_eq!((rig.epoch(), rig.asked().len()), (Epoch(1), 0), "the other may have a newer one");
    rig.answer(&one);
    assert_eq!((rig.epoch(), rig.restored()), (Epoch(2), Some(one)));
    rig.pass(ASK_AGAIN * 2);
    assert!(rig.asked().is_empty());
}

/// A question to hosts, unlike one to a policy, rests on nothing that is decided of others.
#[test]
fn a_host_that_does_not_answer_holds_up_its_node_for_a_second_and_others_for_no_longer() {
    let mut rig = Rig::dead();
    rig.look();
    let [one, other] = rig.backups.clone();
    rig.answer(&other);
    let due = rig.leader.next_due().unwrap();
    assert!(due <= rig.cluster.now.boottime + ASK, "it looks again by itself");
    rig.pass(ASK - Duration::from_millis(1));
    assert_eq!(rig.epoch(), Epoch(1));
    rig.pass(Duration::from_millis(1));
    assert_eq!((rig.epoch(), rig.restored()), (Epoch(2), Some(other)));
    assert!(rig.cluster.record(NODE).keepers.contains(&host(&one)), "it may have it, and keeps it");
}

#[test]
fn while_nobody_answers_nothing_is_given_up_and_whoever_is_there_is_asked_every_few_seconds() {
    let mut rig = Rig::dead();
    rig.look();
    let [one, other] = rig.backups.clone();
    rig.asked();
    let mut times = 0;
    let mut spent = Duration::ZERO;
    while spent < STATE_WAIT * 2 {
        rig.pass(Duration::from_millis(500));
        spent += Duration::from_millis(500);
        times += usize::from(!rig.asked().is_empty());
        assert_eq!(rig.epoch(), Epoch(1));
    }
    let most = usize::try_from((STATE_WAIT * 2).as_secs() / ASK_AGAIN.as_secs()).unwrap();
    assert!((most - 2..=most).contains(&times), "{times} times in {spent:?}");
    let notes = rig.leader.report().notes[&node(NODE)].join(" ");
    for part in [&format!("it may be on {one}, whose agent does not say what it has"), "start-afresh"] {
        assert!(notes.contains(part), "{part} is not in {notes}");
    }
    // Late, and not for a question that is just under way.
    rig.pass(Duration::from_secs(2));
    rig.answer(&other);
    assert_eq!((rig.epoch(), rig.restored()), (Epoch(2), Some(other)));
}

#[test]
fn who_has_nothing_is_not_waited_for_and_who_is_still_getting_it_is() {
    for arriving in [false, true] {
        let mut rig = Rig::dead();
        rig.cluster.disks.clear();
        rig.look();
        let [one, other] = rig.backups.clone();
        rig.asked();
        rig.answer(&other);
        rig.answer_under(&one, 1, Kept { arriving, ..Kept::default() });
        assert_eq!((rig.epoch() == Epoch(1), rig.restored()), (arriving, None));
        if arriving {
            rig.pass(ASK_AGAIN);
            assert_eq!(rig.asked().len(), 2);
            rig.answer_under(&one, 1, Kept::default());
            assert_eq!((rig.epoch(), rig.restored()), (Epoch(2), None), "it did not come");
        }
    }
}

/// What cannot be read is no proof that there is nothing.
#[test]
fn a_host_that_cannot_read_all_that_it_keeps_is_waited_for_where_nobody_else_has_any() {
    let mut rig = Rig::dead();
    let [one, other] = rig.backups.clone();
    rig.look();
    let kept = rig.cluster.kept(&other, NODE);
    rig.answer_under(&one, 1, Kept { unsure: true, ..Kept::default() });
    rig.answer_under(&other, 1, Kept::default());
    assert_eq!(rig.epoch(), Epoch(1));
    let notes = rig.leader.report().notes[&node(NODE)].join(" ");
    assert!(
        notes.contains(&format!("it may be on {one}, which cannot read all of what it keeps")),
        "{notes}"
    );
    rig.answer_under(&other, 1, kept);
    rig.look();
    assert_eq!((rig.epoch(), rig.restored()), (Epoch(2), Some(other)));
}

/// A rack has its power back, the primary's host first: it knows nothing of who got its copies.
#[test]
fn whoever_has_said_nothing_is_waited_for_shortly_where_nobody_knows_who_got_the_newest() {
    let mut rig = Rig::new();
    let [one, other] = rig.backups.clone();
    let at = rig.cluster.primary_host(NODE);
    rig.cluster.reopen(&at);
    rig.cluster.facts(&at).protection.clear();
    rig.cluster.facts(&one).lease = 0;
    rig.look();
    rig.answer(&other);
    assert_eq!(rig.epoch(), Epoch(1));
    rig.pass(NEWER_STATE);
    rig.answer(&other);
    assert_eq!((rig.epoch(), rig.restored()), (Epoch(2), Some(other)));
}

/// It was rebooted between the question and the answer, or has another one by now.
#[test]
fn an_answer_counts_under_the_lease_that_was_asked() {
    let mut rig = Rig::dead();
    rig.look();
    let [one, other] = rig.backups.clone();
    rig.asked();
    rig.answer(&other);
    let said = rig.cluster.kept(&one, NODE);
    rig.answer_under(&one, 7, said);
    assert_eq!(rig.epoch(), Epoch(1));
    rig.cluster.reopen(&one);
    rig.look();
    assert_eq!(rig.asked(), BTreeSet::from([host(&one)]), "it is asked anew");
    let said = rig.cluster.kept(&one, NODE);
    rig.answer_under(&one, 1, said);
    assert_eq!(rig.epoch(), Epoch(1), "that is of before");
    let said = rig.cluster.kept(&one, NODE);
    rig.answer_of(Epoch(0), &one, 2, said);
    assert_eq!(rig.epoch(), Epoch(1), "so is that: the node has gone on");
    rig.answer(&one);
    assert_eq!((rig.epoch(), rig.restored()), (Epoch(2), Some(one)));
}

/// A word that is some seconds old may be of a copy that is gone by now.
#[test]
fn a_node_that_waits_hears_what_has_become_of_its_copies() {
    let mut rig = Rig::dead();
    let [one, other] = rig.backups.clone();
    rig.cluster.lose(&other);
    // No room for it: it waits there.
    rig.cluster.edit(NODE, |record| {
        record.keepers.extend(record.backups.drain(..).map(|backup| backup.host));
    });
    rig.cluster.facts(&one).capacity.memory = MiB(256);
    rig.look();
    rig.answer(&one);
    assert!(rig.leader.report().notes[&node(NODE)].join(" ").contains("free of"));
    rig.asked();
    rig.pass(ASK_AGAIN);
    assert!(rig.asked().contains(&host(&one)));
    // A place was reserved meanwhile, with nothing in it.
    for backup in rig.cluster.backup_hosts(NODE) {
        rig.answer(&backup);
    }
    // The old word counts until the new one is there.
    rig.cluster.facts(&one).capacity.memory = MiB(4096);
    rig.look();
    assert_eq!((rig.epoch(), rig.restored()), (Epoch(2), Some(one)));
}

/// Whoever got the newest to the last is waited for shortly, whatever is known of its number.
#[test]
fn a_silent_host_that_had_the_newest_is_waited_for_where_the_other_was_behind() {
    for (behind, waits) in [(false, false), (true, true)] {
        let mut rig = Rig::new();
        let [one, other] = rig.backups.clone();
        if behind {
            rig.cluster.fall_behind(NODE, &other);
        }
        rig.cluster.kill_primary(NODE);
        rig.look();
        rig.answer(&other);
        rig.pass(ASK);
        assert_eq!(rig.epoch() == Epoch(1), waits);
        let mut spent = Duration::ZERO;
        while rig.epoch() == Epoch(1) {
            rig.pass(Duration::from_millis(250));
            spent += Duration::from_millis(250);
            if rig.asked().contains(&host(&other)) {
                rig.answer(&other);
            }
            assert!(spent <= NEWER_STATE);
        }
        assert_eq!((rig.restored(), spent == NEWER_STATE), (Some(other), waits), "{one} {spent:?}");
    }
}

/// An earlier life of the node, or a deleted one of its name, left its copies on a host that was away all the time; some of
/// their numbers may be greater.
#[test]
fn what_was_given_up_for_a_fresh_start_never_comes_back() {
    let mut rig = Rig::dead();
    let [one, other] = rig.backups.clone();
    for at in [&one, &other] {
        let kept = rig.cluster.disks.get_mut(&host(at)).unwrap().get_mut(&node(NODE)).unwrap();
        let mut earlier = kept.complete[0].clone();
        earlier.instance = InstanceId::from_uuid(uuid::Uuid::nil());
        earlier.id.epoch = Epoch(9);
        kept.complete.push(earlier);
    }
    rig.look();
    rig.answer(&one);
    rig.answer(&other);
    let origin = rig.cluster.record(NODE).primary.as_ref().unwrap().origin;
    assert_eq!(origin.restored().map(|id| id.epoch), Some(Epoch(1)), "the one of its own life");
    let mut rig = Rig::dead();
    for at in [&one, &other] {
        let kept = rig.cluster.disks.get_mut(&host(at)).unwrap().get_mut(&node(NODE)).unwrap();
        kept.complete[0].instance = InstanceId::from_uuid(uuid::Uuid::nil());
    }
    rig.look();
    rig.answer(&one);
    rig.answer(&other);
    assert_eq!((rig.epoch(), rig.restored()), (Epoch(2), None));
}
