//! Tables of drains and migrations.

use crate::fixture::{Cluster, dead, fact, host, moved, node};
use crate::leader::Plan;
use crate::model::ids::{Epoch, HostId, InstanceId};
use crate::model::records::{Origin, Phase};

/// `alice/exec-1` leaves a draining host: the migration is written.
fn migrating_out(hosts: usize) -> (Cluster, HostId, HostId, InstanceId) {
    let mut cluster = Cluster::of(hosts).with(&["alice/exec-1"]);
    let (from, instance) = cluster.primary("alice/exec-1");
    cluster.seen(from.as_str()).intent.drain = true;
    cluster.step();
    let to = cluster.record("alice/exec-1").migration.as_ref().unwrap().to.clone();
    (cluster, from, to, instance)
}

fn arrive(cluster: &mut Cluster, to: &HostId, instance: InstanceId, epoch: Epoch) {
    let arrived = fact(Phase::Ready, Some(node("alice/exec-1")), epoch);
    cluster.facts(to.as_str()).instances.insert(instance, arrived);
}

fn is_promotion(plan: &Plan) -> bool {
    plan.assignments.iter().any(|assignment| assignment.record.incarnation > Epoch(1))
}

#[test]
fn a_migration_is_written_before_anything_moves_and_raises_the_epoch_alone() {
    let (cluster, from, to, instance) = migrating_out(3);
    let record = cluster.record("alice/exec-1");
    let migration = record.migration.as_ref().unwrap();
    assert_ne!(from, to);
    assert_eq!((&migration.from, migration.epoch, migration.abandoned), (&from, Epoch(2), false));
    assert_eq!((record.epoch, record.incarnation), (Epoch(2), Epoch(1)));
    assert_eq!(record.primary.as_ref().unwrap().instance, Some(instance), "it stays primary");
}

#[test]
fn it_is_primary_on_its_new_host_once_that_host_reports_it_under_the_epoch() {
    let (mut cluster, _, to, instance) = migrating_out(3);
    arrive(&mut cluster, &to, instance, Epoch(1));
    assert!(!cluster.plan().assignments.iter().any(|one| one.record.migration.is_none()), "older epoch");
    arrive(&mut cluster, &to, instance, Epoch(2));
    cluster.step();
    let record = cluster.record("alice/exec-1");
    assert_eq!(record.migration, None);
    let primary = record.primary.as_ref().unwrap();
    assert_eq!((&primary.host, primary.instance, primary.origin), (&to, Some(instance), Origin::Migrated));
    assert_eq!((record.epoch, record.incarnation), (Epoch(2), Epoch(1)), "windows and sessions survive it");
    assert_eq!(record.incident, None);
}

#[test]
fn what_arrived_in_a_later_lease_of_the_destination_has_not_arrived() {
    let (mut cluster, _, to, instance) = migrating_out(3);
    cluster.reopen(to.as_str());
    arrive(&mut cluster, &to, instance, Epoch(2));
    let plan = cluster.step();
    assert!(!is_promotion(&plan));
    let record = cluster.record("alice/exec-1");
    assert_ne!(record.primary.as_ref().unwrap().host, to);
}

#[test]
fn a_failed_migration_is_over_once_the_destination_gave_up_and_another_host_is_tried() {
    let (mut cluster, from, to, instance) = migrating_out(4);
    cluster.report_primary("alice/exec-1", |fact| {
        fact.migration_failed = Some((Epoch(2), "no route".to_owned()));
    });
    cluster.step();
    let record = cluster.record("alice/exec-1");
    assert_eq!(record.cooldowns[0].host, to);
    assert!(record.migration.as_ref().unwrap().abandoned, "the destination may have all of it");
    assert!(cluster.step().is_empty());
    let given_up = fact(dead("is not on this host"), None, Epoch(2));
    cluster.facts(to.as_str()).instances.insert(instance, given_up);
    cluster.step();
    let record = cluster.record("alice/exec-1");
    assert_eq!(record.primary.as_ref().unwrap().host, from);
    let again = record.migration.as_ref().unwrap();
    assert_ne!(again.to, to, "another host is tried");
    assert_eq!((again.epoch, again.abandoned), (Epoch(3), false));
    assert_eq!(record.cooldowns.len(), 1);
}

#[test]
fn a_source_that_dies_after_its_migration_failed_is_not_replaced_before_the_destination_gave_up() {
    let (mut cluster, ..) = migrating_out(3);
    cluster.report_primary("alice/exec-1", |fact| {
        fact.migration_failed = Some((Epoch(2), "the end of it was not heard".to_owned()));
    });
    cluster.step();
    cluster.kill_primary("alice/exec-1");
    assert!(!is_promotion(&cluster.step()));
    assert!(cluster.record("alice/exec-1").migration.is_some());
}

#[test]
fn an_older_failure_says_nothing_of_this_migration() {
    let (mut cluster, ..) = migrating_out(3);
    cluster.report_primary("alice/exec-1", |fact| {
        fact.migration_failed = Some((Epoch(1), "long ago".to_owned()));
    });
    assert!(cluster.plan().is_empty());
}

#[test]
fn with_the_source_dead_the_destination_is_authoritative_and_nothing_is_promoted() {
    let (mut cluster, ..) = migrating_out(3);
    cluster.kill_primary("alice/exec-1");
    let plan = cluster.step();
    assert!(!is_promotion(&plan));
    assert!(cluster.record("alice/exec-1").migration.as_ref().unwrap().abandoned);
    assert!(cluster.report.lacks[&node("alice/exec-1")].primary);
    assert!(cluster.step().is_empty(), "it waits");
}

#[test]
fn dead_at_both_ends_it_is_restored() {
    let (mut cluster, _, to, instance) = migrating_out(3);
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let missing = fact(dead("is not on this host"), None, Epoch(2));
    cluster.facts(to.as_str()).instances.insert(instance, missing);
    let plan = cluster.step();
    assert!(is_promotion(&plan));
    let record = cluster.record("alice/exec-1");
    assert_eq!(record.migration, None);
    assert!(matches!(record.primary.as_ref().unwrap().origin, Origin::Restored(_)));
}

#[test]
fn a_death_on_the_destination_in_an_older_epoch_is_not_the_second_death() {
    let (mut cluster, _, to, instance) = migrating_out(3);
    let older = fact(dead("another life"), None, Epoch(1));
    cluster.facts(to.as_str()).instances.insert(instance, older);
    cluster.kill_primary("alice/exec-1");
    assert!(!is_promotion(&cluster.step()));
    assert!(!is_promotion(&cluster.step()));
}

#[test]
fn it_may_arrive_after_it_was_abandoned() {
    let (mut cluster, _, to, instance) = migrating_out(3);
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    arrive(&mut cluster, &to, instance, Epoch(2));
    cluster.step();
    let record = cluster.record("alice/exec-1");
    assert_eq!((&record.primary.as_ref().unwrap().host, record.incarnation), (&to, Epoch(1)));
    assert_eq!(record.migration, None);
}

#[test]
fn a_source_that_says_it_has_moved_abandons_nothing() {
    let (mut cluster, _, to, instance) = migrating_out(3);
    cluster.report_primary("alice/exec-1", |fact| fact.phase = moved(&to));
    assert!(cluster.step().is_empty(), "the destination is about to report it");
    let missing = fact(dead("qemu ended"), None, Epoch(2));
    cluster.facts(to.as_str()).instances.insert(instance, missing);
    let plan = cluster.step();
    assert!(is_promotion(&plan), "moved and dead there");
    let incident = cluster.record("alice/exec-1").incident.clone().unwrap();
    assert_eq!(incident.cause.to_string(), "qemu ended");
}

/// What qemu or an operator writes of an end may read like a move.
#[test]
fn an_end_whose_text_reads_like_a_move_is_no_move() {
    let (mut cluster, _, to, instance) = migrating_out(3);
    cluster.report_primary("alice/exec-1", |fact| fact.phase = dead("moved away from its disk, says qemu"));
    cluster.step();
    assert!(cluster.record("alice/exec-1").migration.as_ref().unwrap().abandoned);
    let given_up = fact(dead("is not on this host"), None, Epoch(2));
    cluster.facts(to.as_str()).instances.insert(instance, given_up);
    assert!(is_promotion(&cluster.step()), "both ends are dead");
    let incident = cluster.record("alice/exec-1").incident.clone().unwrap();
    assert_eq!(incident.cause.to_string(), "moved away from its disk, says qemu");
}

#[test]
fn the_expiries_of_both_leases_are_conditions() {
    let (mut cluster, from, to, _) = migrating_out(3);
    cluster.lose(from.as_str());
    cluster.step();
    assert!(cluster.record("alice/exec-1").migration.as_ref().unwrap().abandoned);
    cluster.lose(to.as_str());
    let plan = cluster.step();
    let mut hosts: Vec<&HostId> = plan.assignments[0].leases.iter().map(|(host, _)| host).collect();
    hosts.sort();
    let mut both = vec![&from, &to];
    both.sort();
    assert_eq!(hosts, both);
}

#[test]
fn with_the_destination_lost_the_living_source_is_authoritative_again() {
    let (mut cluster, from, to, _) = migrating_out(3);
    cluster.lose(to.as_str());
    let plan = cluster.step();
    assert!(!is_promotion(&plan));
    let record = cluster.record("alice/exec-1");
    assert_eq!(record.primary.as_ref().unwrap().host, from);
    assert!(record.migration.as_ref().is_none_or(|migration| migration.to != to));
}

#[test]
fn one_instance_at_a_time_leaves_a_host() {
    let mut cluster = Cluster::of(3);
    cluster.seen("host2").intent.drain = true;
    cluster.seen("host3").intent.drain = true;
    cluster.add(&["alice/display", "alice/exec-1"]);
    cluster.settle();
    for name in ["host2", "host3"] {
        cluster.seen(name).intent.drain = false;
    }
    cluster.settle();
    cluster.seen("host1").intent.drain = true;
    cluster.step();
    let migrating = |cluster: &Cluster| {
        ["alice/display", "alice/exec-1"]
            .into_iter()
            .filter(|name| cluster.record(name).migration.is_some())
            .collect::<Vec<_>>()
    };
    assert_eq!(migrating(&cluster), ["alice/display"]);
    let notes = cluster.report.notes[&node("alice/exec-1")].join(" ");
    assert!(notes.contains("waits on draining host1 for the migration before it"), "{notes}");
    let (from, instance) = cluster.primary("alice/display");
    let migration = cluster.record("alice/display").migration.clone().unwrap();
    let arrived = fact(Phase::Ready, Some(node("alice/display")), migration.epoch);
    cluster.facts(from.as_str()).instances.remove(&instance);
    cluster.facts(migration.to.as_str()).instances.insert(instance, arrived);
    cluster.step();
    assert_eq!(migrating(&cluster), ["alice/exec-1"]);
}

#[test]
fn a_backup_gives_way_where_only_its_host_is_left() {
    let before = Cluster::of(2).with(&["alice/exec-1"]);
    assert_eq!(before.record("alice/exec-1").backups.len(), 1, "what is to give way is there");
    let (cluster, from, to, _) = migrating_out(2);
    let record = cluster.record("alice/exec-1");
    assert_eq!(record.backups, Vec::new());
    assert_ne!(from, to);
    let mut cluster = Cluster::of(1).with(&["alice/display"]);
    cluster.seen("host1").intent.drain = true;
    assert!(cluster.step().is_empty(), "nowhere to go");
    let notes = cluster.report.notes[&node("alice/display")].join(" ");
    assert!(notes.contains("cannot leave draining host1: host1 is draining"), "{notes}");
}

#[test]
fn what_is_not_ready_does_not_move() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let at = cluster.primary_host("alice/exec-1");
    cluster.report_primary("alice/exec-1", |fact| fact.phase = Phase::Deploying);
    cluster.seen(&at).intent.drain = true;
    assert!(cluster.step().is_empty());
    let notes = cluster.report.notes[&node("alice/exec-1")].join(" ");
    assert!(notes.contains("until it is ready"), "{notes}");
}

#[test]
fn nothing_comes_to_a_draining_host() {
    let mut cluster = Cluster::of(3);
    cluster.seen("host2").intent.drain = true;
    cluster.add(&["alice/display", "alice/exec-1", "alice/exec-2"]);
    cluster.settle();
    for name in ["alice/display", "alice/exec-1", "alice/exec-2"] {
        assert!(cluster.record(name).members().all(|member| member.host != host("host2")), "{name}");
    }
}
