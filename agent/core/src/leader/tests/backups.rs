//! Tables of the backups' repair.

use crate::fixture::{Cluster, deploy_failed, fact, host, node};
use crate::model::ids::Epoch;
use crate::model::records::{Origin, Phase};
use crate::model::units::MiB;

#[test]
fn a_dead_backup_is_replaced_and_a_failed_deployment_held_against_its_host() {
    let mut cluster = Cluster::of(3).with(&["alice/display"]);
    let backup = cluster.record("alice/display").backups[0].clone();
    let id = backup.instance.unwrap();
    let facts = cluster.facts(backup.host.as_str());
    facts.instances.get_mut(&id).unwrap().phase = deploy_failed("no role disk");
    cluster.step();
    let record = cluster.record("alice/display");
    assert_eq!(record.backups.len(), 1);
    assert_ne!(record.backups[0].host, backup.host);
    assert_eq!(record.cooldowns[0].host, backup.host);
    assert_eq!(record.epoch.0, 1, "a backup is no reason for an epoch");
}

#[test]
fn the_deficit_is_reported_until_the_backup_could_take_over() {
    let mut cluster = Cluster::of(3);
    cluster.add(&["alice/display", "alice/exec-1"]);
    cluster.step();
    cluster.plan();
    for name in ["alice/display", "alice/exec-1"] {
        assert_eq!(cluster.report.lacks[&node(name)].backups, 1, "{name}");
        assert_eq!(cluster.report.wanted[&node(name)], 1, "{name}");
    }
    cluster.obey();
    cluster.plan();
    assert!(cluster.report.lacks.is_empty(), "{:?}", cluster.report.lacks);
}

#[test]
fn a_reserved_place_without_the_newest_state_is_no_whole_backup() {
    let whole = Cluster::of(3).with(&["alice/exec-1"]);
    let held = whole.backup_hosts("alice/exec-1")[0].clone();
    let primary = whole.primary_host("alice/exec-1");
    let (mut behind, mut without, mut of_before) = (whole.clone(), whole.clone(), whole);
    behind.fall_behind("alice/exec-1", &held);
    without.facts(&primary).protection.clear();
    let known = of_before.facts(&primary).protection.get_mut(&node("alice/exec-1")).unwrap();
    known.incarnation = Epoch(0);
    for mut cluster in [behind, without, of_before] {
        cluster.plan();
        assert_eq!(cluster.report.lacks[&node("alice/exec-1")].backups, 1);
    }
}

/// Its state is older than nothing: whoever had the node's checkpoints before keeps them until the new backup has one.
#[test]
fn a_host_that_was_a_backup_keeps_the_state_until_every_backup_has_a_newer_one() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let old = cluster.backup_hosts("alice/exec-1")[0].clone();
    cluster.refuse_copies("alice/exec-1", &old, true);
    cluster.step();
    let keepers = |cluster: &Cluster| -> Vec<String> {
        cluster.record("alice/exec-1").keepers.iter().map(ToString::to_string).collect()
    };
    assert_ne!(cluster.backup_hosts("alice/exec-1"), std::slice::from_ref(&old));
    assert_eq!(keepers(&cluster), std::slice::from_ref(&old));
    assert!(cluster.step().is_empty(), "nothing has changed");
    cluster.obey();
    let mut dead = cluster.clone();
    dead.kill_primary("alice/exec-1");
    for name in ["host1", "host2", "host3"] {
        dead.facts(name).unable.insert(crate::service::Service::Guard);
    }
    dead.step();
    assert_eq!(keepers(&dead), std::slice::from_ref(&old), "it waits for its state");
    cluster.step();
    assert!(keepers(&cluster).is_empty());
    assert!(cluster.step().is_empty());
}

#[test]
fn with_too_few_hosts_no_backup_shares_the_primarys() {
    let mut cluster = Cluster::of(1).with(&["alice/display"]);
    assert_eq!(cluster.record("alice/display").backups, Vec::new());
    assert!(cluster.report.lacks.is_empty(), "one host is asked for none: {:?}", cluster.report.lacks);
    cluster.edit("alice/display", |record| {
        record.spec.labels.insert("backups".to_owned(), "1".to_owned());
    });
    cluster.plan();
    let notes = cluster.report.notes[&node("alice/display")].join(" ");
    assert!(notes.contains("no host can take another backup: host1 has a member of this node"), "{notes}");
}

#[test]
fn a_backup_of_a_draining_host_leaves_only_when_its_replacement_could_take_over() {
    let mut cluster = Cluster::of(3).with(&["alice/display"]);
    let old = cluster.backup_hosts("alice/display")[0].clone();
    cluster.seen(&old).intent.drain = true;
    cluster.step();
    assert_eq!(cluster.record("alice/display").backups.len(), 2, "the replacement comes first");
    assert!(cluster.plan().is_empty(), "it is not ready yet");
    cluster.obey();
    cluster.step();
    let left = cluster.backup_hosts("alice/display");
    assert_eq!(left.len(), 1);
    assert_ne!(left[0], old);
}

#[test]
fn backups_leave_a_draining_host_after_its_primaries() {
    let mut cluster = Cluster::of(3);
    cluster.add(&["alice/display", "alice/exec-1", "alice/exec-2"]);
    cluster.settle();
    let draining = cluster.backup_hosts("alice/display")[0].clone();
    let leaving = ["alice/exec-1", "alice/exec-2"]
        .into_iter()
        .find(|name| cluster.primary_host(name) == draining)
        .expect("the three primaries and the display's backup share three hosts");
    let mut unready = cluster.clone();
    cluster.seen(&draining).intent.drain = true;
    cluster.step();
    let migration = cluster.record(leaving).migration.clone().unwrap();
    assert_eq!(
        cluster.backup_hosts("alice/display"),
        std::slice::from_ref(&draining),
        "the primary moves first"
    );

    let instance = cluster.record(leaving).primary.as_ref().unwrap().instance.unwrap();
    let arrived = fact(Phase::Ready, Some(node(leaving)), migration.epoch);
    cluster.facts(migration.to.as_str()).instances.insert(instance, arrived);
    cluster.step();
    assert_eq!(cluster.record(leaving).migration, None);
    assert_eq!(cluster.backup_hosts("alice/display").len(), 2, "then the backup is replaced");

    // A primary that cannot move yet keeps nobody back.
    unready.report_primary(leaving, |fact| fact.phase = Phase::Booting);
    unready.seen(&draining).intent.drain = true;
    unready.step();
    assert_eq!(unready.backup_hosts("alice/display").len(), 2);
    unready.obey();
    unready.step();
    assert!(unready.record(leaving).migration.is_some());
    assert_eq!(unready.backup_hosts("alice/display").len(), 2, "the replaced one leaves after the primaries");
}

#[test]
fn a_dead_backup_is_replaced_while_primaries_leave() {
    let mut cluster = Cluster::of(4);
    cluster.add(&["alice/display", "alice/exec-1", "alice/exec-2"]);
    cluster.settle();
    let lost = cluster.backup_hosts("alice/display")[0].clone();
    let draining = cluster.primary_host("alice/display");
    cluster.lose(&lost);
    cluster.seen(&draining).intent.drain = true;
    cluster.step();
    assert!(cluster.record("alice/display").migration.is_some());
    assert_eq!(cluster.backup_hosts("alice/display").len(), 1);
    assert_ne!(cluster.backup_hosts("alice/display")[0], lost);
}

#[test]
fn a_backup_that_no_host_can_replace_leaves_a_draining_host_while_another_could_take_over() {
    let mut cluster = Cluster::of(3);
    cluster.add(&["alice/display"]);
    cluster.edit("alice/display", |record| {
        record.spec.labels.insert("backups".to_owned(), "2".to_owned());
    });
    cluster.settle();
    for left in [1, 1] {
        let draining = cluster.backup_hosts("alice/display")[0].clone();
        cluster.seen(&draining).intent.drain = true;
        cluster.step();
        assert_eq!(cluster.backup_hosts("alice/display").len(), left, "the last one stays");
    }
}

#[test]
fn a_surplus_gives_up_first_what_could_not_take_over() {
    let mut cluster = Cluster::of(3);
    cluster.add(&["alice/display"]);
    cluster.edit("alice/display", |record| {
        record.spec.labels.insert("backups".to_owned(), "2".to_owned());
    });
    cluster.settle();
    let first = cluster.record("alice/display").backups[0].clone();
    let id = first.instance.unwrap();
    cluster.facts(first.host.as_str()).instances.get_mut(&id).unwrap().phase = Phase::Deploying;
    cluster.edit("alice/display", |record| {
        record.spec.labels.insert("backups".to_owned(), "1".to_owned());
    });
    cluster.step();
    let left = cluster.backup_hosts("alice/display");
    assert_eq!(left.len(), 1);
    assert_ne!(left[0], first.host.to_string());
}

#[test]
fn a_reserved_place_counts_as_memory() {
    let mut cluster = Cluster::of(2);
    cluster.facts("host2").capacity.memory = MiB(512);
    cluster.add(&["alice/exec-1"]);
    cluster.step();
    assert_eq!(cluster.view.free_memory(&host("host2")), MiB(0));
    let record = cluster.record("alice/exec-1");
    assert!(record.members().any(|member| member.host == host("host2")));
    assert_eq!(record.backups[0].origin, Origin::Reserved);
}

#[test]
fn a_lost_hosts_backups_are_made_good_elsewhere() {
    let mut cluster = Cluster::of(3).with(&["alice/display", "alice/exec-1"]);
    for name in ["alice/display", "alice/exec-1"] {
        let lost = cluster.backup_hosts(name)[0].clone();
        cluster.lose(&lost);
        cluster.step();
        assert_eq!(cluster.record(name).backups.len(), 1, "{name}");
        assert_ne!(cluster.backup_hosts(name)[0], lost, "{name}");
        cluster.reopen(&lost);
        cluster.obey();
        cluster.settle();
    }
}

/// S4: a full disk on one backup's host blocked the node's protection for good.
#[test]
fn a_backup_that_takes_no_copies_is_replaced_on_another_host_and_its_own_avoided_for_a_while() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let old = cluster.backup_hosts("alice/exec-1")[0].clone();
    cluster.refuse_copies("alice/exec-1", &old, true);
    cluster.step();
    let record = cluster.record("alice/exec-1");
    assert_eq!((record.backups.len(), record.epoch.0), (1, 1), "a backup is no reason for an epoch");
    assert_ne!(record.backups[0].host.as_str(), old);
    assert_eq!(
        (record.cooldowns[0].host.as_str(), record.cooldowns[0].cause.bars_a_restore()),
        (&*old, false)
    );
    assert!(cluster.plan().is_empty());
    let new = cluster.backup_hosts("alice/exec-1")[0].clone();
    cluster.refuse_copies("alice/exec-1", &new, true);
    assert!(cluster.step().is_empty(), "not the first one again so soon");
    let notes = cluster.report.notes[&node("alice/exec-1")].join(" ");
    assert!(notes.contains(&format!("its backup on {new} takes no checkpoints")), "{notes}");
    cluster.pass(cluster.bounds.cooldown);
    cluster.step();
    assert_eq!(cluster.backup_hosts("alice/exec-1"), [old]);
}

#[test]
fn without_another_host_a_backup_that_takes_no_copies_keeps_what_it_has() {
    let mut cluster = Cluster::of(2).with(&["alice/exec-1"]);
    let backup = cluster.backup_hosts("alice/exec-1")[0].clone();
    cluster.refuse_copies("alice/exec-1", &backup, true);
    assert!(cluster.step().is_empty());
    assert!(cluster.report.notes.contains_key(&node("alice/exec-1")));
    cluster.add_host("host3", MiB(4096));
    cluster.step();
    assert_eq!(cluster.backup_hosts("alice/exec-1"), ["host3"]);
}

#[test]
fn only_the_primarys_own_host_says_who_takes_no_copies() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let backup = host(&cluster.backup_hosts("alice/exec-1")[0]);
    let faults = &mut cluster.facts(backup.as_str()).copy_faults;
    faults.entry(node("alice/exec-1")).or_default().insert(backup.clone(), crate::death::CopyFault::Slow);
    assert!(cluster.step().is_empty());
}

#[test]
fn a_backup_that_missed_the_newest_state_is_reported_as_lacking() {
    let mut cluster = Cluster::of(3);
    cluster.add(&["alice/exec-1"]);
    cluster.edit("alice/exec-1", |record| {
        record.spec.labels.insert("backups".to_owned(), "2".to_owned());
    });
    cluster.settle();
    let backups = cluster.backup_hosts("alice/exec-1");
    cluster.fall_behind("alice/exec-1", &backups[1]);
    cluster.plan();
    assert_eq!(cluster.report.lacks[&node("alice/exec-1")].backups, 1);
}
