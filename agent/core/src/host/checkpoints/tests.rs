//! Tables of the checkpoints that a host takes, and what holds of them whatever happens.

mod properties;

use std::time::Duration;

use super::*;
use crate::bounds::{COPY_LATE, COPY_RATE, COPY_STALL, COPY_TOGETHER};
use crate::fixture::{Cluster, host, node};
use crate::host::input::Recorded;
use crate::model::ids::InstanceId;
use crate::model::records::{CheckpointRecord, Member, Origin};
use crate::model::units::UnixMillis;
use crate::model::view::Versioned;

const NODE: &str = "alice/exec-1";
const BYTES: u64 = 64 << 20;

/// A node's checkpoints on the host of its primary, with two backups.
struct Rig {
    cluster: Cluster,
    machine: Checkpoints,
    me: HostId,
    instance: InstanceId,
    id: CheckpointId,
    seen: Vec<Effect>,
    over: Vec<Over>,
}

impl Rig {
    fn new() -> Self {
        let mut cluster = Cluster::of(5);
        cluster.add(&[NODE]);
        cluster.edit(NODE, |record| drop(record.spec.labels.insert("backups".to_owned(), "2".to_owned())));
        cluster.settle();
        let (me, instance) = cluster.primary(NODE);
        let id = CheckpointId { epoch: Epoch(1), sequence: 1 };
        Self {
            cluster,
            machine: Checkpoints::default(),
            me,
            instance,
            id,
            seen: Vec::new(),
            over: Vec::new(),
        }
    }

    fn backups(&self) -> [HostId; 2] {
        let hosts: Vec<HostId> = self.cluster.backup_hosts(NODE).iter().map(|name| host(name)).collect();
        hosts.try_into().unwrap()
    }

    /// To all of the backups.
    fn begin(&mut self) {
        let revision = self.cluster.view.nodes[&node(NODE)].revision;
        self.id = self.machine.count(&node(NODE), Epoch(1), &self.cluster.view);
        let resting = self.machine.resting(self.cluster.now.boottime);
        let base = |host: &HostId| {
            let known = self.machine.bases.get(&(node(NODE), host.clone()));
            known.filter(|(_, lease)| *lease == 1).map(|(id, _)| *id)
        };
        let to = self.backups().map(|host| Destination {
            lease: 1,
            api: format!("{host}:7000"),
            base: base(&host),
            host,
        });
        let to = to.into_iter().filter(|to| !resting.contains(&(node(NODE), to.host.clone()))).collect();
        let now = self.cluster.now.boottime;
        let old = self.machine.begin(&node(NODE), self.instance, (self.id, revision), to, now);
        assert_eq!(old, None);
    }

    fn saved(&mut self) {
        let saved = Saved { taken: UnixMillis(7), pause_ms: 5, bytes: BYTES };
        self.machine.saved(&node(NODE), self.id, Some(saved), self.cluster.now.boottime);
        self.review();
    }

    fn begun() -> Self {
        let mut rig = Self::new();
        rig.begin();
        rig.saved();
        rig
    }

    fn hear(&mut self, event: CopyEvent) {
        self.machine.hear(&node(NODE), self.id, event, self.cluster.now.boottime);
        self.review();
    }

    fn durable(&mut self, host: &HostId) {
        self.hear(CopyEvent::Durable(host.clone()));
    }

    fn refused(&mut self, host: &HostId) {
        self.hear(CopyEvent::Failed { host: host.clone(), fault: refusal() });
    }

    fn pass(&mut self, time: Duration) {
        self.cluster.pass(time);
        self.review();
    }

    fn review(&mut self) {
        let (view, now) = (&self.cluster.view, self.cluster.now.boottime);
        let reviewed = self.machine.review(view, &self.me, &self.cluster.bounds, now);
        self.seen.extend(reviewed.effects);
        self.over.extend(reviewed.over.into_iter().map(|(_, over)| over));
    }

    /// The write that was asked for is done by the store as it stands.
    fn written(&mut self) -> CheckpointRecord {
        let effects = std::mem::take(&mut self.seen);
        let records = effects.into_iter().filter_map(|effect| match effect {
            Effect::Record { revision, replaces, record, .. } => Some((revision, replaces, *record)),
            _ => None,
        });
        let [(revision, replaces, record)] = <[_; 1]>::try_from(records.collect::<Vec<_>>()).unwrap();
        let known = self.cluster.view.checkpoints.get(&node(NODE)).map(|known| known.revision);
        assert_eq!((revision, replaces), (self.cluster.view.nodes[&node(NODE)].revision, known));
        let revision = self.cluster.bump();
        let new = Versioned { value: record.clone(), revision };
        self.cluster.view.checkpoints.insert(node(NODE), new.into());
        self.hear(CopyEvent::Recorded(Recorded::Written(revision)));
        record
    }

    fn took(&mut self, effect: &str) -> bool {
        std::mem::take(&mut self.seen).iter().any(|seen| format!("{seen:?}").starts_with(effect))
    }

    /// One whole attempt in which this one alone takes it.
    fn taken_by(&mut self, takes: &HostId, misses: &HostId) -> CheckpointRecord {
        self.begin();
        self.saved();
        self.durable(takes);
        self.refused(misses);
        let record = self.written();
        self.pass(self.cluster.bounds.checkpoint_interval);
        record
    }
}

fn refusal() -> CopyFault {
    CopyFault::Refused { detail: "no room".to_owned() }
}

#[test]
fn copies_that_are_complete_at_about_the_same_time_are_recorded_by_one_write() {
    let mut rig = Rig::begun();
    let [one, other] = rig.backups();
    assert_eq!(rig.seen.iter().filter(|effect| matches!(effect, Effect::Send { .. })).count(), 2);
    rig.durable(&one);
    assert!(!rig.took("Record"), "the other may be as fast");
    rig.pass(COPY_TOGETHER - Duration::from_millis(1));
    rig.durable(&other);
    let record = rig.written();
    assert_eq!((record.hosts, record.earlier, record.id), (vec![one, other], None, rig.id));
    assert_eq!(rig.over, [Over::Taken]);
    assert!(rig.took("Checkpointed"));
}

/// S4: all had to take it, or none counted.
#[test]
fn a_copy_counts_for_each_backup_that_has_it_and_the_one_before_stays_with_those_that_have_that() {
    let mut rig = Rig::new();
    let [one, other] = rig.backups();
    let first = rig.cluster.view.checkpoints[&node(NODE)].value.clone();
    assert_eq!(first.hosts, [one.clone(), other.clone()]);
    let second = rig.taken_by(&one, &other);
    assert_eq!((&second.hosts, second.id), (&vec![one.clone()], rig.id));
    let earlier = second.earlier.unwrap();
    assert_eq!((earlier.id, &earlier.hosts), (first.id, &vec![other.clone()]));
    let third = rig.taken_by(&one, &other);
    assert_eq!(third.earlier.unwrap().id, first.id, "that is what the other has still");
    let fourth = rig.taken_by(&other, &one);
    assert_eq!((&fourth.hosts, fourth.earlier.as_ref().unwrap().id), (&vec![other.clone()], third.id));
    rig.begin();
    rig.saved();
    rig.durable(&one);
    rig.durable(&other);
    assert_eq!(rig.written().earlier, None, "nobody needs it any more");
}

#[test]
fn where_no_host_takes_it_the_record_stays_and_the_next_one_is_due_after_the_interval() {
    let mut rig = Rig::begun();
    let began = rig.cluster.now.boottime;
    for backup in rig.backups() {
        rig.refused(&backup);
    }
    assert!(!rig.took("Record"));
    assert_eq!(rig.over, [Over::NotTaken]);
    assert_eq!(rig.machine.last_checkpoint[&node(NODE)], began);
}

#[test]
fn a_host_that_stands_still_is_given_up_and_the_record_does_not_wait_for_it() {
    let mut rig = Rig::begun();
    let [one, other] = rig.backups();
    rig.durable(&one);
    rig.hear(CopyEvent::Accepted { host: other.clone(), bytes: 4 << 20, of: BYTES });
    rig.pass(COPY_TOGETHER);
    assert_eq!(rig.written().hosts, [one]);
    rig.pass(COPY_STALL - COPY_TOGETHER - Duration::from_millis(1));
    assert!(!rig.took("CancelSend"));
    // The same number again is no progress.
    rig.hear(CopyEvent::Accepted { host: other.clone(), bytes: 4 << 20, of: BYTES });
    rig.pass(Duration::from_millis(1));
    let fault = Some(CopyFault::Stalled);
    let cancel = Effect::CancelSend { node: node(NODE), id: rig.id, host: other.clone(), fault };
    assert!(rig.seen.contains(&cancel), "{:?}", rig.seen);
    assert_eq!(rig.over, [Over::Taken]);
    rig.durable(&other);
    assert!(!rig.took("Record"), "it was given up");
}

#[test]
fn a_copy_that_goes_on_is_given_up_by_its_size_and_sooner_where_another_host_has_it() {
    let longest = COPY_STALL + Duration::from_secs(BYTES / COPY_RATE);
    for (another, given_up) in [(false, longest), (true, Duration::from_secs(5) + COPY_LATE)] {
        let mut rig = Rig::begun();
        let [one, other] = rig.backups();
        if another {
            rig.durable(&one);
        } else {
            rig.refused(&one);
        }
        let mut passed = Duration::ZERO;
        while rig.over.is_empty() {
            rig.pass(Duration::from_millis(500));
            passed += Duration::from_millis(500);
            let bytes = u64::try_from(passed.as_millis()).unwrap();
            rig.hear(CopyEvent::Accepted { host: other.clone(), bytes, of: BYTES });
            if rig.seen.iter().any(|effect| matches!(effect, Effect::Record { .. })) {
                rig.written();
            }
        }
        assert_eq!(passed, given_up);
        assert_eq!(rig.machine.troubles[&(node(NODE), other)].fault, CopyFault::Slow);
    }
}

#[test]
fn one_that_is_later_than_the_others_is_added_to_the_record() {
    let mut rig = Rig::begun();
    let [one, other] = rig.backups();
    let first = rig.cluster.view.checkpoints[&node(NODE)].value.id;
    rig.durable(&one);
    rig.pass(COPY_TOGETHER);
    let record = rig.written();
    assert_eq!((record.earlier.unwrap().id, rig.over.len()), (first, 0));
    rig.durable(&other);
    let record = rig.written();
    assert_eq!((record.id, record.hosts, record.earlier), (rig.id, vec![one, other], None));
    assert_eq!(rig.over, [Over::Taken]);
}

/// D2: a backup that moved while a copy was under way has dropped its image.
#[test]
fn nothing_is_recorded_and_nothing_sent_on_once_the_nodes_record_has_changed() {
    type Edit = fn(&mut NodeRecord);
    let moves: Edit = |record| {
        let host = host("host9");
        record.backups[0] = Member { host, lease: 1, instance: None, origin: Origin::Reserved };
    };
    let leaves: Edit = |record| record.epoch = record.epoch.next();
    let anything: Edit = |record| record.token = "another".to_owned();
    for edit in [moves, leaves, anything] {
        let mut rig = Rig::begun();
        let [one, other] = rig.backups();
        rig.durable(&one);
        rig.cluster.edit(NODE, edit);
        rig.durable(&other);
        assert!(rig.seen.contains(&Effect::Discard { node: node(NODE), id: rig.id }));
        assert!(!rig.took("Record"));
        assert_eq!(rig.over, [Over::Void]);
        assert_eq!(rig.machine.last_checkpoint.get(&node(NODE)), None, "the next one is due at once");
        assert!(rig.machine.troubles.is_empty());
    }
    let mut rig = Rig::begun();
    for backup in rig.backups() {
        rig.durable(&backup);
    }
    rig.hear(CopyEvent::Recorded(Recorded::Refused));
    assert_eq!(rig.over, [], "the store knows more, which this host is to hear first");
    rig.cluster.edit(NODE, moves);
    rig.review();
    assert_eq!(rig.over, [Over::Void]);
}

/// A write that was not answered may come at any time: what it names must not be dropped for a later one.
#[test]
fn a_write_without_an_answer_is_asked_for_again_and_nothing_else_until_its_outcome_is_known() {
    for comes_late in [false, true] {
        let mut rig = Rig::begun();
        for backup in rig.backups() {
            rig.durable(&backup);
        }
        let is_record = |effect: &Effect| matches!(effect, Effect::Record { .. });
        let first = rig.seen.iter().find(|effect| is_record(effect)).cloned().unwrap();
        rig.seen.clear();
        rig.hear(CopyEvent::Recorded(Recorded::Unknown("no answer".to_owned())));
        rig.pass(Duration::from_millis(199));
        assert_eq!((rig.seen.len(), rig.over.len()), (0, 0));
        rig.pass(Duration::from_millis(1));
        assert_eq!(rig.seen, std::slice::from_ref(&first), "the very same");
        if comes_late {
            let Effect::Record { record, .. } = first else { panic!("it is a record") };
            rig.hear(CopyEvent::Recorded(Recorded::Refused));
            assert_eq!(rig.over, []);
            let revision = rig.cluster.bump();
            let known = Versioned { value: *record, revision };
            rig.cluster.view.checkpoints.insert(node(NODE), known.into());
            rig.review();
        } else {
            rig.written();
        }
        assert_eq!(rig.over, [Over::Taken]);
    }
}

#[test]
fn what_is_being_saved_as_the_record_changes_is_waited_for_and_not_sent() {
    let mut rig = Rig::new();
    rig.begin();
    rig.cluster.edit(NODE, |record| record.epoch = record.epoch.next());
    rig.review();
    assert!(rig.took("Discard"));
    assert_eq!(rig.over, []);
    rig.saved();
    assert!(!rig.took("Send"));
    assert_eq!(rig.over, [Over::Void]);
}

#[test]
fn a_backups_host_that_is_gone_is_not_waited_for_and_nothing_is_held_against_it() {
    type Happens = fn(&mut Cluster, &str);
    let lost: Happens = |cluster, name| cluster.lose(name);
    let back: Happens = |cluster, name| cluster.reopen(name);
    for happens in [lost, back] {
        let mut rig = Rig::begun();
        let [one, other] = rig.backups();
        rig.durable(&one);
        happens(&mut rig.cluster, other.as_str());
        rig.review();
        let cancel = Effect::CancelSend { node: node(NODE), id: rig.id, host: other, fault: None };
        assert!(rig.seen.contains(&cancel), "{:?}", rig.seen);
        assert_eq!(rig.written().hosts, [one]);
        assert!(rig.machine.troubles.is_empty());
    }
}

#[test]
fn a_host_that_takes_none_for_a_while_is_named_and_left_alone_until_it_is_tried_again() {
    let mut rig = Rig::new();
    let [one, other] = rig.backups();
    for attempt in 1..=4 {
        assert!(rig.machine.faults().is_empty(), "{attempt}");
        rig.taken_by(&one, &other);
    }
    assert_eq!(rig.machine.faults()[&node(NODE)][&other], refusal());
    rig.begin();
    rig.saved();
    rig.durable(&one);
    assert_eq!(rig.written().hosts, std::slice::from_ref(&one), "the other gets none");
    rig.pass(rig.cluster.bounds.cooldown);
    rig.begin();
    rig.saved();
    rig.durable(&one);
    rig.durable(&other);
    assert_eq!(rig.written().hosts, [one, other]);
    assert!(rig.machine.faults().is_empty());
}

#[test]
fn what_was_held_against_a_host_is_over_with_its_lease_or_its_part() {
    type Happens = fn(&mut Cluster, &str);
    let back: Happens = |cluster, name| cluster.reopen(name);
    let moved: Happens = |cluster, _| cluster.edit(NODE, |record| drop(record.backups.pop()));
    let elsewhere: Happens = |cluster, _| {
        cluster.edit(NODE, |record| record.primary.as_mut().unwrap().host = host("host9"));
    };
    for happens in [back, moved, elsewhere] {
        let mut rig = Rig::new();
        let [one, other] = rig.backups();
        for _ in 0..4 {
            rig.taken_by(&one, &other);
        }
        assert!(!rig.machine.faults().is_empty());
        happens(&mut rig.cluster, other.as_str());
        rig.review();
        assert!(rig.machine.faults().is_empty());
    }
}

#[test]
fn a_lease_that_is_lost_ends_all_of_it() {
    let mut rig = Rig::begun();
    assert_eq!(rig.machine.stop(), [Effect::Discard { node: node(NODE), id: rig.id }]);
    let backups = rig.backups();
    rig.seen.clear();
    rig.durable(&backups[0]);
    rig.pass(COPY_TOGETHER);
    assert_eq!(rig.seen, []);
}

#[test]
fn an_image_that_cannot_be_read_here_says_nothing_of_the_backups() {
    let mut rig = Rig::begun();
    for host in rig.backups() {
        rig.hear(CopyEvent::Unreadable { host, detail: "input/output error".to_owned() });
    }
    assert_eq!(rig.over, [Over::NotTaken]);
    assert!(rig.machine.troubles.is_empty());
}

fn bases(rig: &Rig) -> [Option<u64>; 2] {
    rig.backups().map(|host| rig.machine.bases.get(&(node(NODE), host)).map(|(id, _)| id.sequence))
}

#[test]
fn a_host_gets_what_changed_since_the_newest_that_it_said_it_has() {
    let mut rig = Rig::new();
    let [first, second] = rig.backups();
    assert_eq!(bases(&rig), [None, None], "nothing is known: all of it goes");
    let one = rig.taken_by(&first, &second).id.sequence;
    assert_eq!(bases(&rig), [Some(one), None]);
    let two = rig.taken_by(&second, &first).id.sequence;
    // What was refused left what was there before.
    assert_eq!(bases(&rig), [Some(one), Some(two)]);
    // Another lease: what it had may be gone.
    rig.cluster.reopen(first.as_str());
    rig.review();
    assert_eq!(bases(&rig), [None, Some(two)]);
}

#[test]
fn a_host_that_lacks_what_is_added_to_gets_the_whole_at_once_and_is_not_blamed() {
    let mut rig = Rig::new();
    let [first, second] = rig.backups();
    let lacks = |host: &HostId| CopyEvent::Lacks { host: host.clone(), detail: "nothing".to_owned() };
    rig.taken_by(&first, &second);
    let taken = rig.machine.last_checkpoint[&node(NODE)];
    rig.begin();
    rig.saved();
    rig.hear(lacks(&first));
    rig.refused(&second);
    assert_eq!((rig.over.last(), bases(&rig)), (Some(&Over::Lacked), [None, None]));
    assert_eq!(rig.machine.last_checkpoint[&node(NODE)], taken, "it is no reason to wait");
    // Whoever gets the whole lacks nothing: it is one that takes none.
    for _ in 0..COPY_ATTEMPTS {
        rig.pass(rig.cluster.bounds.checkpoint_interval.max(COPY_PATIENCE));
        rig.begin();
        rig.saved();
        rig.hear(lacks(&first));
        rig.durable(&second);
        rig.written();
    }
    assert_eq!(
        rig.machine.faults()[&node(NODE)][&first],
        CopyFault::Refused { detail: "nothing".to_owned() }
    );
}

/// How much of it there is for this host is its own figure, not that of the largest.
#[test]
fn a_copy_that_was_accepted_whole_does_not_stand_still() {
    let mut rig = Rig::begun();
    let [first, _] = rig.backups();
    rig.hear(CopyEvent::Accepted { host: first.clone(), bytes: 4096, of: 4096 });
    rig.pass(COPY_STALL);
    assert!(
        !rig.seen.iter().any(|effect| matches!(effect, Effect::CancelSend { host, .. } if *host == first))
    );
    rig.pass(Duration::from_millis(BYTES * 1_000 / COPY_RATE));
    assert!(rig.took("CancelSend"));
}
