//! Tables of the invariants.

use super::{Acting, Invariant, broken_by, broken_in, broken_in_world};
use crate::bounds::{STATE_WAIT, STATE_WAIT_STEP};
use crate::fixture::{Cluster, host, node};
use crate::leader::Assignment;
use crate::model::ids::{Epoch, HostId};
use crate::model::records::{Kept, Member, Migration, NodeRecord, Origin, Service};
use crate::model::units::MiB;

/// A decision that nobody made, about a healthy node.
fn decision(cluster: &Cluster, name: &str, edit: impl FnOnce(&mut NodeRecord)) -> Assignment {
    let known = &cluster.view.nodes[&node(name)];
    let mut record = known.value.clone();
    edit(&mut record);
    Assignment { node: node(name), revision: known.revision, record, leases: Vec::new(), reasons: Vec::new() }
}

fn found(cluster: &Cluster, assignment: &Assignment) -> Vec<Invariant> {
    let mut ids: Vec<Invariant> = broken_by(&cluster.view, &cluster.heard(&assignment.node), assignment)
        .iter()
        .map(|broken| broken.id)
        .collect();
    ids.dedup();
    ids
}

fn free_host(cluster: &Cluster, name: &str) -> HostId {
    cluster.view.hosts.keys().find(|host| !cluster.record(name).touches(host)).unwrap().clone()
}

#[test]
fn each_guarantee_has_one_id_everywhere() {
    for (number, invariant) in [1, 2, 3, 4, 5, 6, 7, 9].into_iter().zip(Invariant::ALL) {
        assert_eq!(invariant.as_str(), format!("SAFE-{number}"));
        assert_eq!(serde_json::to_string(&invariant).unwrap(), format!("\"{invariant}\""));
    }
}

#[test]
fn two_acting_members_of_a_node_break_safe_1() {
    let cluster = Cluster::of(3).with(&["alice/display", "alice/exec-1"]);
    let acting =
        |name: &str, at: &str| Acting { node: node(name), host: host(at), instance: cluster.primary(name).1 };
    let healthy = [acting("alice/display", "host1"), acting("alice/exec-1", "host1")];
    assert_eq!(broken_in_world(&healthy), Vec::new());
    let split = [acting("alice/exec-1", "host1"), acting("alice/exec-1", "host2")];
    assert_eq!(broken_in_world(&split)[0].id, Invariant::OnePrimary);
}

#[test]
fn a_promotion_over_a_living_primary_breaks_safe_2() {
    let cluster = Cluster::of(3).with(&["alice/display"]);
    let promote = |record: &mut NodeRecord| {
        record.epoch = record.epoch.next();
        record.incarnation = record.epoch;
        record.primary = record.backups.pop();
    };
    let assignment = decision(&cluster, "alice/display", promote);
    assert_eq!(found(&cluster, &assignment), [Invariant::KnownDead]);
    let mut dead = cluster.clone();
    dead.kill_primary("alice/display");
    assert_eq!(found(&dead, &assignment), []);
    let mut lost = cluster;
    let at = lost.primary_host("alice/display");
    lost.lose(&at);
    assert_eq!(found(&lost, &assignment), [Invariant::KnownDead], "it must be conditional on that very end");
    let conditional = Assignment { leases: vec![(host(&at), lost.seen(&at).lease.revision)], ..assignment };
    assert_eq!(found(&lost, &conditional), []);
}

#[test]
fn a_restore_of_what_its_host_does_not_say_that_it_has_breaks_safe_3() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let held = cluster.backup_hosts("alice/exec-1")[0].clone();
    cluster.kill_primary("alice/exec-1");
    let right = cluster.plan().assignments.remove(0);
    assert_eq!(found(&cluster, &right), []);
    type Edit = fn(&mut Kept);
    let of_another: Edit =
        |kept| kept.complete[0].instance = crate::model::ids::InstanceId::from_uuid(uuid::Uuid::nil());
    let another: Edit = |kept| kept.complete[0].id.sequence += 1;
    let arriving: Edit = |kept| *kept = Kept { arriving: true, ..Kept::default() };
    for edit in [of_another, another, arriving] {
        let mut said = cluster.clone();
        edit(said.disks.get_mut(&host(&held)).unwrap().get_mut(&node("alice/exec-1")).unwrap());
        assert_eq!(found(&said, &right), [Invariant::CompleteCheckpoint]);
    }
    let mut silent = cluster.clone();
    silent.silent.insert(host(&held));
    assert_eq!(found(&silent, &right), [Invariant::CompleteCheckpoint]);
    let mut elsewhere = right.clone();
    elsewhere.record.primary.as_mut().unwrap().host = free_host(&cluster, "alice/exec-1");
    elsewhere.record.backups.clear();
    assert!(found(&cluster, &elsewhere).contains(&Invariant::CompleteCheckpoint));
    let mut an_earlier_lease = right;
    an_earlier_lease.record.primary.as_mut().unwrap().lease = 0;
    assert_eq!(found(&cluster, &an_earlier_lease), [Invariant::CompleteCheckpoint]);
}

#[test]
fn state_that_was_given_up_and_may_come_back_breaks_safe_3() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    cluster.kill_primary("alice/exec-1");
    let right = cluster.plan().assignments.remove(0);
    let mut another = right.clone();
    let instance = Some(crate::model::ids::InstanceId::from_uuid(uuid::Uuid::nil()));
    another.record.primary.as_mut().unwrap().instance = instance;
    assert_eq!(found(&cluster, &another), [Invariant::CompleteCheckpoint]);
    let mut afresh = right;
    afresh.record.primary.as_mut().unwrap().origin = Origin::Created;
    let broken = [Invariant::CompleteCheckpoint, Invariant::State];
    assert_eq!(found(&cluster, &afresh), broken, "the old state could come back");
}

/// Whoever is named by nobody drops what it has.
#[test]
fn a_host_that_is_forgotten_before_others_have_newer_state_breaks_safe_9() {
    let mut cluster = Cluster::of(4).with(&["alice/exec-1"]);
    let (left, free) = (host(&cluster.backup_hosts("alice/exec-1")[0]), free_host(&cluster, "alice/exec-1"));
    let moves = |record: &mut NodeRecord| record.backups[0].host = free.clone();
    let keeps = |record: &mut NodeRecord| {
        record.backups[0].host = free.clone();
        record.keepers.insert(left.clone());
    };
    assert_eq!(found(&cluster, &decision(&cluster, "alice/exec-1", moves)), [Invariant::State]);
    assert_eq!(found(&cluster, &decision(&cluster, "alice/exec-1", keeps)), []);
    cluster.edit("alice/exec-1", keeps);
    let lets_go = |cluster: &Cluster| decision(cluster, "alice/exec-1", |record| record.keepers.clear());
    assert_eq!(found(&cluster, &lets_go(&cluster)), [Invariant::State]);
    cluster.obey();
    assert_eq!(found(&cluster, &lets_go(&cluster)), [], "the new one has the next checkpoint");
    let mut dead = cluster.clone();
    dead.kill_primary("alice/exec-1");
    assert_eq!(found(&dead, &lets_go(&dead)), [Invariant::State], "its successor is decided by it");
    cluster.fall_behind("alice/exec-1", free.as_str());
    assert_eq!(found(&cluster, &lets_go(&cluster)), [Invariant::State]);
    // A restore that leaves out a host of which nothing is known.
    cluster.silent.insert(free.clone());
    cluster.kill_primary("alice/exec-1");
    cluster.edit("alice/exec-1", |_| {});
    let mut plan = cluster.plan();
    let mut right = plan.assignments.remove(0);
    if right.record.epoch == Epoch(1) {
        cluster.edit("alice/exec-1", |record| record.state_wait = right.record.state_wait);
        cluster.pass(crate::bounds::NEWER_STATE);
        plan = cluster.plan();
        right = plan.assignments.remove(0);
    }
    assert_eq!(found(&cluster, &right), []);
    right.record.backups.clear();
    right.record.keepers.remove(&free);
    assert_eq!(found(&cluster, &right), [Invariant::State]);
}

#[test]
fn a_falling_epoch_or_a_new_primary_under_the_old_one_breaks_safe_4() {
    let mut cluster = Cluster::of(3).with(&["alice/display"]);
    cluster.kill_primary("alice/display");
    let falls = decision(&cluster, "alice/display", |record| record.epoch = Epoch(0));
    assert!(found(&cluster, &falls).contains(&Invariant::Epochs));
    let same = decision(&cluster, "alice/display", |record| record.primary = record.backups.pop());
    assert_eq!(found(&cluster, &same), [Invariant::Epochs]);
}

#[test]
fn a_place_that_cannot_be_had_breaks_safe_5() {
    let cluster = Cluster::of(3).with(&["alice/display"]);
    let free = free_host(&cluster, "alice/display");
    let backup = |host: &HostId| Member {
        host: host.clone(),
        lease: 1,
        instance: None,
        origin: Origin::Reserved,
        place: 0,
    };
    let add = |cluster: &Cluster, host: &HostId| {
        let assignment = decision(cluster, "alice/display", |record| record.backups.push(backup(host)));
        found(cluster, &assignment)
    };
    assert_eq!(add(&cluster, &free), []);
    assert_eq!(add(&cluster, &cluster.primary("alice/display").0), [Invariant::Placement], "the same host");
    assert_eq!(add(&cluster, &host("host9")), [Invariant::Placement], "unknown");
    let mut drained = cluster.clone();
    drained.seen(free.as_str()).intent.drain = true;
    assert_eq!(add(&drained, &free), [Invariant::Placement], "draining");
    let mut lost = cluster.clone();
    lost.lose(free.as_str());
    assert_eq!(add(&lost, &free), [Invariant::Placement], "lost");
    let mut full = cluster;
    full.facts(free.as_str()).capacity.memory = MiB(511);
    assert_eq!(add(&full, &free), [Invariant::Placement], "full");
}

#[test]
fn an_instance_in_two_nodes_breaks_safe_6() {
    let mut cluster = Cluster::of(3).with(&["alice/display", "bob/display"]);
    let stolen = cluster.record("bob/display").primary.clone().unwrap();
    let free = free_host(&cluster, "alice/display");
    let steal = |record: &mut NodeRecord| record.backups.push(Member { host: free, ..stolen.clone() });
    let assignment = decision(&cluster, "alice/display", steal);
    assert_eq!(found(&cluster, &assignment), [Invariant::OneNode]);
    cluster.edit("alice/display", |record| *record = assignment.record.clone());
    assert_eq!(broken_in(&cluster.view)[0].id, Invariant::OneNode);
}

#[test]
fn an_instance_that_an_unread_record_may_name_breaks_safe_6() {
    let mut cluster = Cluster::of(3).with(&["alice/display"]);
    let free = free_host(&cluster, "alice/display");
    cluster.idle(free.as_str(), 1);
    let (&idle, _) = cluster.facts(free.as_str()).instances.first_key_value().unwrap();
    let model = cluster.record("alice/display").primary.clone().unwrap();
    let take = |record: &mut NodeRecord| {
        record.backups.push(Member { host: free, instance: Some(idle), ..model });
    };
    let assignment = decision(&cluster, "alice/display", take);
    assert_eq!(found(&cluster, &assignment), []);
    cluster.view.quarantined.insert(node("bob/display"));
    assert_eq!(found(&cluster, &assignment), [Invariant::OneNode]);
}

#[test]
fn a_migration_cut_short_breaks_safe_7() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let from = cluster.primary_host("alice/exec-1");
    cluster.seen(&from).intent.drain = true;
    cluster.step();
    let forgets = decision(&cluster, "alice/exec-1", |record| record.migration = None);
    assert_eq!(found(&cluster, &forgets), [Invariant::Migration]);
    let mut failed = cluster.clone();
    failed.report_primary("alice/exec-1", |fact| fact.migration_failed = Some((Epoch(2), "no".to_owned())));
    assert_eq!(found(&failed, &forgets), [Invariant::Migration], "the destination may have all of it");
    let to = failed.record("alice/exec-1").migration.as_ref().unwrap().to.clone();
    failed.reopen(to.as_str());
    assert_eq!(found(&failed, &forgets), []);
    cluster.kill_primary("alice/exec-1");
    let promotes = decision(&cluster, "alice/exec-1", |record| {
        record.epoch = record.epoch.next();
        record.incarnation = record.epoch;
        record.migration = None;
        let primary = record.primary.as_mut().unwrap();
        primary.host = record.backups.pop().unwrap().host;
        primary.origin = Origin::Created;
    });
    assert!(found(&cluster, &promotes).contains(&Invariant::Migration), "dead at one end only");
    let healthy = Cluster::of(3).with(&["alice/exec-1"]);
    let to = free_host(&healthy, "alice/exec-1");
    let unwritten = decision(&healthy, "alice/exec-1", |record| {
        record.migration = Some(Migration {
            from: record.primary.as_ref().unwrap().host.clone(),
            to,
            to_lease: 1,
            epoch: record.epoch,
            abandoned: false,
            started: crate::model::units::UnixMillis(0),
        });
    });
    assert_eq!(found(&healthy, &unwritten), [Invariant::Migration], "without an epoch of its own");
}

/// D8: what is dead is read here without the reading that decisions are made by.
#[test]
fn a_death_is_the_end_of_its_lease_or_the_word_of_that_very_lease_about_that_life() {
    let promoted = |record: &mut NodeRecord| {
        record.epoch = record.epoch.next();
        record.incarnation = record.epoch;
        let backup = record.backups.remove(0);
        record.primary = Some(Member { origin: Origin::Promoted, ..backup });
    };
    type Edit = fn(&mut Cluster, &str);
    let reported_dead: Edit = |cluster, _| cluster.kill_primary("alice/display");
    let cases: [(&str, Edit, bool); 7] = [
        ("healthy", |_, _| {}, false),
        ("reported dead", reported_dead, true),
        ("lease ended", |cluster, at| cluster.lose(at), true),
        ("a later lease", |cluster, at| cluster.reopen(at), true),
        (
            "dead by the facts of an earlier lease",
            |cluster, at| {
                cluster.kill_primary("alice/display");
                cluster.facts(at).lease = 0;
            },
            false,
        ),
        (
            "not in the list",
            |cluster, at| {
                let instance = cluster.primary("alice/display").1;
                cluster.facts(at).instances.remove(&instance);
            },
            false,
        ),
        ("a host that is not known", |cluster, at| drop(cluster.view.hosts.remove(&host(at))), false),
    ];
    for (what, edit, dead) in cases {
        let mut cluster = Cluster::of(3).with(&["alice/display"]);
        let at = cluster.primary_host("alice/display");
        edit(&mut cluster, &at);
        let mut assignment = decision(&cluster, "alice/display", promoted);
        if let Some(seen) = cluster.view.hosts.get(&host(&at)) {
            assignment.leases.push((host(&at), seen.lease.revision));
        }
        let reported = found(&cluster, &assignment);
        assert_eq!(!reported.contains(&Invariant::KnownDead), dead, "{what}: {reported:?}");
    }
}

#[test]
fn a_fresh_start_while_the_state_may_still_be_had_breaks_safe_9() {
    let mut cluster = Cluster::of(4).with(&["alice/exec-1"]);
    let held = cluster.backup_hosts("alice/exec-1")[0].clone();
    cluster.lose(&held);
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    // The leader's own decision once the wait is over.
    let mut waited = cluster.clone();
    for _ in 0..STATE_WAIT.as_secs() / STATE_WAIT_STEP.as_secs() - 1 {
        waited.pass(STATE_WAIT_STEP);
        waited.step();
    }
    waited.pass(STATE_WAIT_STEP);
    let right = waited.plan().assignments.remove(0);
    assert_eq!(found(&waited, &right), []);
    let early = |edit: fn(&mut NodeRecord)| {
        let mut early = waited.clone();
        early.edit("alice/exec-1", edit);
        let revision = early.view.nodes[&node("alice/exec-1")].revision;
        (early, Assignment { revision, ..right.clone() })
    };
    let (before, soon) = early(|record| record.state_wait.as_mut().unwrap().waited_ms -= 1);
    assert_eq!(found(&before, &soon), [Invariant::State]);
    let (before, never) = early(|record| record.state_wait = None);
    assert_eq!(found(&before, &never), [Invariant::State]);
    let (before, wanted) = early(|record| {
        let wait = record.state_wait.as_mut().unwrap();
        (wait.waited_ms, wait.given_up) = (0, true);
    });
    assert_eq!(found(&before, &wanted), []);
    // A host that is there is not given up for want of a service, however long it has been waited for.
    let mut there = waited.clone();
    there.reopen(&held);
    there.facts(&held).unable.insert(Service::Guard);
    assert_eq!(found(&there, &right), [Invariant::State]);
    let mut unknown = cluster;
    unknown.view.hosts.remove(&host(&held));
    assert_eq!(found(&unknown, &right), []);
}
