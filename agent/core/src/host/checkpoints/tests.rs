//! Tables of the checkpoints that a host takes, and what holds of them whatever happens.

mod properties;
mod reported;

use std::time::Duration;

use super::*;
use crate::bounds::{COPY_LATE, COPY_RATE, COPY_STALL};
use crate::fixture::{Cluster, host, node};
use crate::model::ids::InstanceId;
use crate::model::records::{Member, Origin};
use crate::model::units::UnixMillis;

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
        self.id = self.machine.count(&node(NODE), Epoch(1), self.cluster.now.boottime);
        let resting = self.machine.resting(self.cluster.now.boottime);
        let base = |host: &HostId| {
            let known = self.machine.bases.get(&(node(NODE), host.clone()));
            known.filter(|base| base.lease == 1).map(|base| base.id)
        };
        let place = |host: &HostId| {
            let record = self.cluster.record(NODE);
            record.backups.iter().find(|backup| &backup.host == host).unwrap().place
        };
        let to = self.backups().map(|host| Destination {
            lease: 1,
            api: format!("{host}:7000"),
            base: base(&host),
            place: place(&host),
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

    /// Whether it was told since the last time that there is a new checkpoint.
    fn told(&mut self) -> bool {
        self.took("Checkpointed")
    }

    /// What is reported of each host.
    fn ages(&self) -> BTreeMap<HostId, Age> {
        let (view, now) = (&self.cluster.view, self.cluster.now.boottime);
        let mut all = self.machine.protection(view, &self.cluster.bounds, now);
        let hosts = all.remove(&node(NODE)).map(|known| known.hosts).unwrap_or_default();
        hosts.into_iter().map(|(host, held)| (host, held.age)).collect()
    }

    fn took(&mut self, effect: &str) -> bool {
        std::mem::take(&mut self.seen).iter().any(|seen| format!("{seen:?}").starts_with(effect))
    }

    /// One whole attempt in which this one alone takes it.
    fn taken_by(&mut self, takes: &HostId, misses: &HostId) -> CheckpointId {
        self.begin();
        self.saved();
        self.durable(takes);
        self.refused(misses);
        assert!(self.told());
        self.pass(self.cluster.bounds.checkpoint_interval);
        self.id
    }
}

fn refusal() -> CopyFault {
    CopyFault::Refused { detail: "no room".to_owned() }
}

/// S4: all had to take it, or none counted.
#[test]
fn a_copy_counts_for_each_backup_from_when_it_has_it() {
    let mut rig = Rig::begun();
    let [one, other] = rig.backups();
    assert_eq!(rig.seen.iter().filter(|effect| matches!(effect, Effect::Send { .. })).count(), 2);
    assert!(rig.ages().is_empty());
    rig.durable(&one);
    assert!(rig.told());
    assert_eq!((rig.ages(), rig.over.len()), (BTreeMap::from([(one.clone(), Age::Fresh)]), 0));
    rig.durable(&other);
    assert_eq!(rig.ages(), BTreeMap::from([(one, Age::Fresh), (other, Age::Fresh)]));
    assert_eq!(rig.over, [Over::Taken]);
    assert!(!rig.told(), "once");
}

/// An agent that restarts knows nothing of what the one before it took, and asks nobody.
#[test]
fn numbers_grow_whatever_happens_to_the_agent() {
    let mut rig = Rig::new();
    let now = rig.cluster.now.boottime;
    let first = rig.machine.count(&node(NODE), Epoch(1), now);
    let second = rig.machine.count(&node(NODE), Epoch(1), now);
    assert!(second > first, "in the same moment");
    let mut another = Checkpoints::default();
    assert!(another.count(&node(NODE), Epoch(1), now + Duration::from_secs(1)) > second);
}

#[test]
fn where_no_host_takes_it_the_next_one_is_due_after_the_interval() {
    let mut rig = Rig::begun();
    let began = rig.cluster.now.boottime;
    for backup in rig.backups() {
        rig.refused(&backup);
    }
    assert!(!rig.told());
    assert_eq!(rig.over, [Over::NotTaken]);
    assert_eq!(rig.machine.last_checkpoint[&node(NODE)], began);
}

#[test]
fn a_host_that_stands_still_is_given_up_and_the_other_counts_meanwhile() {
    let mut rig = Rig::begun();
    let [one, other] = rig.backups();
    rig.durable(&one);
    rig.hear(CopyEvent::Accepted { host: other.clone(), bytes: 4 << 20, of: BYTES });
    assert!(rig.told());
    assert_eq!(rig.ages(), BTreeMap::from([(one, Age::Fresh)]));
    rig.pass(COPY_STALL - Duration::from_millis(1));
    assert!(!rig.took("CancelSend"));
    // The same number again is no progress.
    rig.hear(CopyEvent::Accepted { host: other.clone(), bytes: 4 << 20, of: BYTES });
    rig.pass(Duration::from_millis(1));
    let fault = Some(CopyFault::Stalled);
    let cancel = Effect::CancelSend { node: node(NODE), id: rig.id, host: other.clone(), fault };
    assert!(rig.seen.contains(&cancel), "{:?}", rig.seen);
    assert_eq!(rig.over, [Over::Taken]);
    rig.durable(&other);
    assert!(!rig.ages().contains_key(&other), "it was given up");
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
        }
        assert_eq!(passed, given_up);
        assert_eq!(rig.machine.troubles[&(node(NODE), other)].fault, CopyFault::Slow);
    }
}

/// D2: a backup that moved while a copy was under way has dropped its image.
#[test]
fn nothing_is_sent_on_once_the_nodes_record_has_changed() {
    type Edit = fn(&mut NodeRecord);
    let moves: Edit = |record| {
        let host = host("host9");
        record.backups[0] = Member { host, lease: 1, instance: None, origin: Origin::Reserved, place: 0 };
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
        assert_eq!(rig.over, [Over::Void]);
        assert_eq!(rig.machine.last_checkpoint.get(&node(NODE)), None, "the next one is due at once");
        assert!(rig.machine.troubles.is_empty());
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
        assert_eq!(
            (rig.over.as_slice(), rig.ages()),
            (&[Over::Taken][..], BTreeMap::from([(one, Age::Fresh)]))
        );
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
    assert_eq!(rig.over.last(), Some(&Over::Taken), "the other gets none");
    rig.pass(rig.cluster.bounds.cooldown);
    rig.begin();
    rig.saved();
    rig.durable(&one);
    rig.durable(&other);
    assert_eq!(rig.ages(), BTreeMap::from([(one, Age::Fresh), (other, Age::Fresh)]));
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
    rig.pass(COPY_STALL);
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
    rig.backups().map(|host| rig.machine.bases.get(&(node(NODE), host)).map(|base| base.id.sequence))
}

#[test]
fn a_host_gets_what_changed_since_the_newest_that_it_said_it_has() {
    let mut rig = Rig::new();
    let [first, second] = rig.backups();
    assert_eq!(bases(&rig), [None, None], "nothing is known: all of it goes");
    let one = rig.taken_by(&first, &second).sequence;
    assert_eq!(bases(&rig), [Some(one), None]);
    let two = rig.taken_by(&second, &first).sequence;
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
