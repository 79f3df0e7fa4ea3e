//! Tables of both fallback orders.

use std::time::Duration;

use crate::death::Death;
use crate::fixture::{Cluster, dead, deploy_failed, fact, host, node};
use crate::model::ids::{Epoch, HostId};
use crate::model::records::{Checkpoint, Origin, Phase, StateKept};
use crate::model::units::{MiB, UnixMillis};

#[test]
fn primary_and_backups_are_assigned_together() {
    let mut cluster = Cluster::of(3);
    cluster.add(&["alice/display", "alice/exec-1"]);
    let plan = cluster.step();
    assert_eq!(plan.assignments.len(), 2);
    for name in ["alice/display", "alice/exec-1"] {
        let record = cluster.record(name);
        assert!(record.primary.is_some(), "{name}");
        assert_eq!(record.backups.len(), 1, "{name}");
        assert_eq!((record.epoch, record.incarnation), (Epoch(1), Epoch(1)));
        assert_eq!(record.incident, None, "a first placement is no failover");
    }
    let reserved = &cluster.record("alice/exec-1").backups[0];
    assert_eq!((reserved.instance, reserved.origin), (None, Origin::Reserved));
    assert!(cluster.record("alice/display").backups[0].instance.is_some());
}

#[test]
fn an_idle_instance_is_deployed_before_a_new_one_is_created() {
    let mut cluster = Cluster::of(3);
    cluster.idle("host3", 1);
    cluster.add(&["alice/display"]);
    cluster.step();
    let primary = cluster.record("alice/display").primary.clone().unwrap();
    assert_eq!((primary.host, primary.origin), (host("host3"), Origin::Idle));
    assert_eq!(cluster.record("alice/display").backups[0].origin, Origin::Created);
}

#[test]
fn an_idle_instance_that_was_guarded_for_a_node_is_nobody_elses() {
    let mut cluster = Cluster::of(1);
    cluster.idle("host1", 1);
    for fact in cluster.facts("host1").instances.values_mut() {
        fact.epoch = Epoch(7);
    }
    cluster.add(&["alice/display"]);
    cluster.step();
    assert_eq!(cluster.record("alice/display").primary.as_ref().unwrap().origin, Origin::Created);
}

#[test]
fn a_killed_display_is_replaced_by_its_ready_backup_and_the_deficit_made_good() {
    let mut cluster = Cluster::of(3).with(&["alice/display"]);
    let backup = cluster.record("alice/display").backups[0].clone();
    cluster.kill_primary("alice/display");
    let plan = cluster.step();
    let record = cluster.record("alice/display");
    let primary = record.primary.as_ref().unwrap();
    assert_eq!(
        (&primary.host, primary.instance, primary.origin),
        (&backup.host, backup.instance, Origin::Promoted)
    );
    assert_eq!((record.epoch, record.incarnation), (Epoch(2), Epoch(2)));
    assert_eq!(record.backups.len(), 1);
    let incident = record.incident.as_ref().unwrap();
    assert_eq!((incident.cause.to_string().as_str(), &incident.state), ("killed", &StateKept::NotNeeded));
    assert!(plan.assignments[0].reasons[0].contains("promoted"), "{:?}", plan.assignments[0].reasons);
}

#[test]
fn a_display_without_a_ready_backup_takes_an_idle_instance_then_a_new_one() {
    for (idle, origin) in [(1, Origin::Idle), (0, Origin::Created)] {
        let mut cluster = Cluster::of(3).with(&["alice/display"]);
        let backup = cluster.record("alice/display").backups[0].clone();
        cluster.facts(backup.host.as_str()).instances.get_mut(&backup.instance.unwrap()).unwrap().phase =
            Phase::Deploying;
        for name in ["host1", "host2", "host3"] {
            cluster.idle(name, idle);
        }
        cluster.kill_primary("alice/display");
        cluster.step();
        let record = cluster.record("alice/display");
        assert_eq!(record.primary.as_ref().unwrap().origin, origin);
        assert_eq!(record.backups[0].instance, backup.instance, "the backup goes on becoming one");
    }
}

#[test]
fn an_unprotected_execution_node_follows_the_same_fallback_order_and_says_that_its_state_is_lost() {
    let mut cluster = Cluster::of(3);
    cluster.add(&["alice/exec-1"]);
    cluster.edit("alice/exec-1", |record| record.spec.protected = false);
    cluster.settle();
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let record = cluster.record("alice/exec-1");
    assert_eq!(record.primary.as_ref().unwrap().origin, Origin::Promoted);
    assert_eq!(record.incident.as_ref().unwrap().state, StateKept::Lost);
}

#[test]
fn a_protected_execution_node_is_restored_from_its_newest_checkpoint_and_the_age_is_kept() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let instance = cluster.primary("alice/exec-1").1;
    let reserved = cluster.backup_hosts("alice/exec-1")[0].clone();
    let checkpoint = cluster.kept(&reserved, "alice/exec-1").complete.remove(0);
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let record = cluster.record("alice/exec-1");
    let primary = record.primary.as_ref().unwrap();
    assert_eq!((primary.host.to_string(), primary.instance), (reserved, Some(instance)));
    assert_eq!(primary.origin, Origin::Restored(checkpoint.id));
    let found = UnixMillis(1_000_500);
    let age_ms = u64::try_from(found.since(checkpoint.taken).as_millis()).unwrap();
    let incident = record.incident.as_ref().unwrap();
    assert_eq!(incident.state, StateKept::Checkpoint { id: checkpoint.id, age_ms });
    assert!(age_ms >= 2_000, "{age_ms}");
    assert_eq!(record.keepers, [primary.host.clone()].into(), "a second failure may come at once");
    assert_eq!(record.backups.len(), 1, "its own place is filled and another is reserved");
}

#[test]
fn the_age_of_a_checkpoint_counts_also_where_nobody_saw_the_death() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    cluster.pass(Duration::from_secs(60));
    let at = cluster.primary_host("alice/exec-1");
    cluster.reopen(&at);
    cluster.step();
    let state = &cluster.record("alice/exec-1").incident.as_ref().unwrap().state;
    let StateKept::Checkpoint { age_ms, .. } = state else { panic!("{state:?}") };
    assert!(*age_ms >= 60_000, "{age_ms}");
}

#[test]
fn a_checkpoint_on_a_host_that_is_no_backup_is_used_where_there_is_room_and_room_is_waited_for() {
    for room in [true, false] {
        let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
        let reserved = cluster.backup_hosts("alice/exec-1")[0].clone();
        cluster.edit("alice/exec-1", |record| {
            record.keepers.extend(record.backups.drain(..).map(|backup| backup.host));
        });
        if !room {
            cluster.facts(&reserved).capacity.memory = MiB(256);
        }
        cluster.kill_primary("alice/exec-1");
        cluster.step();
        let restored = |cluster: &Cluster| {
            matches!(cluster.record("alice/exec-1").primary.as_ref().unwrap().origin, Origin::Restored(_))
        };
        assert_eq!(restored(&cluster), room);
        if !room {
            let notes = &cluster.report.notes[&node("alice/exec-1")];
            assert!(notes[0].contains("which has 256 MiB free of 512 MiB needed"), "{notes:?}");
            cluster.facts(&reserved).capacity.memory = MiB(1024);
            cluster.step();
            assert!(restored(&cluster));
        }
    }
}

/// alice's execution node with two backups, of which the second missed the newest checkpoint.
fn missed() -> (Cluster, [String; 2], [Checkpoint; 2]) {
    let mut cluster = Cluster::of(4);
    cluster.add(&["alice/exec-1"]);
    cluster.edit("alice/exec-1", |record| {
        record.spec.labels.insert("backups".to_owned(), "2".to_owned());
    });
    cluster.settle();
    let backups: [String; 2] = cluster.backup_hosts("alice/exec-1").try_into().unwrap();
    cluster.miss_copy("alice/exec-1", &backups[1]);
    let newest = |at: &String| cluster.kept(at, "alice/exec-1").complete.pop().unwrap();
    let checkpoints = [newest(&backups[0]), newest(&backups[1])];
    (cluster, backups, checkpoints)
}

/// SAFE-9: an older state is better than none.
#[test]
fn where_nobody_who_has_the_newest_is_left_the_checkpoint_before_it_is_restored() {
    for newest_is_lost in [false, true] {
        let (mut cluster, backups, [newest, older]) = missed();
        if newest_is_lost {
            cluster.lose(&backups[0]);
        }
        cluster.kill_primary("alice/exec-1");
        cluster.step();
        let (at, id) = if newest_is_lost { (&backups[1], older.id) } else { (&backups[0], newest.id) };
        let record = cluster.record("alice/exec-1");
        let primary = record.primary.as_ref().unwrap();
        assert_eq!((primary.host.as_str(), primary.origin), (&**at, Origin::Restored(id)));
        let keepers: Vec<&str> = record.keepers.iter().map(HostId::as_str).collect();
        let mut both = backups.each_ref().map(String::as_str);
        both.sort_unstable();
        assert_eq!(keepers, both, "it may turn out to be damaged");
    }
}

#[test]
fn a_host_that_takes_no_more_copies_is_restored_from_what_it_took_before() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let old = cluster.backup_hosts("alice/exec-1")[0].clone();
    cluster.refuse_copies("alice/exec-1", &old, true);
    cluster.step();
    assert_ne!(cluster.backup_hosts("alice/exec-1"), std::slice::from_ref(&old));
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let primary = cluster.record("alice/exec-1").primary.as_ref().unwrap();
    assert!(matches!(primary.origin, Origin::Restored(_)), "{primary:?}");
    assert_eq!(primary.host.as_str(), old);
}

#[test]
fn the_state_is_not_given_up_while_a_host_that_keeps_it_has_yet_to_report() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let reserved = cluster.backup_hosts("alice/exec-1")[0].clone();
    cluster.facts(&reserved).lease = 0;
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    assert_eq!(cluster.record("alice/exec-1").epoch, Epoch(1));
    let notes = &cluster.report.notes[&node("alice/exec-1")];
    assert!(notes[0].contains("has not reported yet"), "{notes:?}");
    assert!(cluster.report.lacks[&node("alice/exec-1")].primary);
    cluster.facts(&reserved).lease = 1;
    cluster.step();
    let origin = cluster.record("alice/exec-1").primary.as_ref().unwrap().origin;
    assert!(matches!(origin, Origin::Restored(_)), "{origin:?}");
}

#[test]
fn without_a_host_that_keeps_the_state_it_starts_afresh_and_what_was_saved_before_is_void() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let reserved = cluster.backup_hosts("alice/exec-1")[0].clone();
    cluster.view.hosts.remove(&host(&reserved));
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let record = cluster.record("alice/exec-1");
    assert_eq!(record.primary.as_ref().unwrap().origin, Origin::Created);
    assert_eq!(record.incident.as_ref().unwrap().state, StateKept::Lost);
    assert_eq!(record.keepers.len(), 0);
}

#[test]
fn places_reserved_on_all_hosts_that_are_left_do_not_keep_the_primary_out() {
    let mut cluster = Cluster::of(2).with(&["alice/exec-1"]);
    let (dead, reserved) =
        (cluster.primary_host("alice/exec-1"), cluster.backup_hosts("alice/exec-1")[0].clone());
    cluster.disks.clear();
    cluster.lose(&dead);
    cluster.facts(&reserved).capacity.memory = MiB(512);
    cluster.step();
    let record = cluster.record("alice/exec-1");
    assert_eq!((cluster.primary_host("alice/exec-1"), &record.backups), (reserved, &Vec::new()));
    assert_eq!(record.incident.as_ref().unwrap().state, StateKept::Lost);
}

#[test]
fn a_checkpoint_of_an_earlier_life_is_never_restored() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    cluster.edit("alice/exec-1", |record| {
        record.epoch = Epoch(5);
        record.incarnation = Epoch(5);
    });
    let held = host(&cluster.backup_hosts("alice/exec-1")[0]);
    let kept = cluster.disks.get_mut(&held).unwrap().get_mut(&node("alice/exec-1")).unwrap();
    kept.complete[0].instance = crate::model::ids::InstanceId::from_uuid(uuid::Uuid::nil());
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    assert_eq!(cluster.record("alice/exec-1").incident.as_ref().unwrap().state, StateKept::Lost);
}

#[test]
fn a_silent_lease_is_expired_first_and_the_promotion_is_conditional_on_that_very_expiry() {
    let mut cluster = Cluster::of(3).with(&["alice/display"]);
    let at = cluster.primary_host("alice/display");
    let revision = cluster.seen(&at).lease.revision;
    cluster.silence(&at, cluster.bounds.lease_expire_after() - Duration::from_millis(1));
    assert!(cluster.plan().is_empty(), "not yet");
    cluster.silence(&at, cluster.bounds.lease_expire_after());
    let plan = cluster.step();
    assert_eq!(plan.assignments, Vec::new());
    assert_eq!((&plan.expiries[0].host, plan.expiries[0].revision), (&host(&at), revision));
    let ended = cluster.seen(&at).lease.revision;
    let plan = cluster.step();
    assert_eq!(plan.assignments[0].leases, vec![(host(&at), ended)]);
    let incident = cluster.record("alice/display").incident.as_ref().unwrap();
    assert!(matches!(incident.cause, Death::HostLost { .. }), "{}", incident.cause);
}

#[test]
fn nothing_is_promoted_while_the_primary_may_live() {
    let alive = [Phase::Booting, Phase::Idle, Phase::Deploying, Phase::Restoring, Phase::Ready];
    for phase in alive {
        let mut cluster = Cluster::of(3).with(&["alice/display"]);
        cluster.report_primary("alice/display", |fact| fact.phase = phase.clone());
        assert!(cluster.plan().is_empty(), "{phase:?}");
    }
}

#[test]
fn not_in_the_list_is_no_death() {
    let mut cluster = Cluster::of(3).with(&["alice/display"]);
    let (at, instance) = cluster.primary("alice/display");
    cluster.facts(at.as_str()).instances.remove(&instance);
    assert!(cluster.plan().is_empty());
    cluster.seen(at.as_str()).facts = None;
    assert!(cluster.plan().is_empty());
}

#[test]
fn a_host_that_is_not_known_any_more_proves_nothing() {
    let mut cluster = Cluster::of(3).with(&["alice/display"]);
    let at = cluster.primary("alice/display").0;
    cluster.view.hosts.remove(&at);
    assert!(cluster.plan().assignments.is_empty());
}

#[test]
fn facts_of_an_earlier_lease_prove_nothing() {
    let mut cluster = Cluster::of(3).with(&["alice/display"]);
    let at = cluster.primary_host("alice/display");
    cluster.kill_primary("alice/display");
    cluster.facts(&at).lease = 0;
    assert!(cluster.plan().is_empty());
}

#[test]
fn the_death_of_an_earlier_life_is_not_taken_for_that_of_the_restored_one() {
    let mut cluster = Cluster::of(2).with(&["alice/exec-1"]);
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let (at, instance) = cluster.primary("alice/exec-1");
    let old = fact(dead("long ago"), Some(node("alice/exec-1")), Epoch(1));
    cluster.facts(at.as_str()).instances.insert(instance, old);
    assert!(cluster.plan().is_empty());
    cluster.report_primary("alice/exec-1", |fact| fact.epoch = Epoch(2));
    assert!(!cluster.plan().is_empty());
}

#[test]
fn a_host_where_the_deployment_failed_is_avoided_for_a_while() {
    let mut cluster = Cluster::of(2);
    cluster.add(&["alice/display"]);
    cluster.edit("alice/display", |record| {
        record.spec.labels.insert("backups".to_owned(), "0".to_owned());
    });
    cluster.settle();
    let first = cluster.primary_host("alice/display");
    cluster.report_primary("alice/display", |fact| fact.phase = deploy_failed("no role disk"));
    cluster.step();
    cluster.obey();
    let second = cluster.primary_host("alice/display");
    assert_ne!(first, second);
    cluster.report_primary("alice/display", |fact| fact.phase = deploy_failed("no role disk"));
    cluster.step();
    assert_eq!(cluster.record("alice/display").epoch, Epoch(2), "both failed a moment ago");
    assert!(cluster.step().is_empty());
    let notes = cluster.report.notes[&node("alice/display")].join(" ");
    assert!(notes.contains("host1 failed with it a moment ago"), "{notes}");
    cluster.pass(cluster.bounds.cooldown);
    cluster.step();
    assert_eq!(cluster.record("alice/display").epoch, Epoch(3));
}

/// S5: the incident said what QEMU made of a damaged image, instead of what had happened to the node.
#[test]
fn an_incident_keeps_its_cause_while_no_successor_was_ready_and_tells_of_the_tries() {
    let mut cluster = Cluster::of(2).with(&["alice/exec-1"]);
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let first = cluster.record("alice/exec-1").incident.clone().unwrap();
    let (at, instance) = cluster.primary("alice/exec-1");
    let failed = fact(deploy_failed("load of migration failed"), Some(node("alice/exec-1")), Epoch(2));
    cluster.facts(at.as_str()).instances.insert(instance, failed);
    cluster.pass(std::time::Duration::from_secs(5));
    cluster.step();
    let second = cluster.record("alice/exec-1").incident.clone().unwrap();
    assert_eq!((&second.cause, second.found), (&first.cause, first.found));
    assert_eq!((second.epoch, &second.state), (Epoch(3), &StateKept::Lost));
    assert!(
        second.action.ends_with(", after deployment failed: load of migration failed"),
        "{}",
        second.action
    );
    // Once one was ready, its death is a failure of its own.
    cluster.obey();
    cluster.step();
    assert!(cluster.record("alice/exec-1").incident.as_ref().unwrap().ready.is_some());
    cluster.report_primary("alice/exec-1", |fact| fact.phase = dead("killed once more"));
    cluster.step();
    let third = cluster.record("alice/exec-1").incident.clone().unwrap();
    assert_eq!(third.cause.to_string(), "killed once more");
}

#[test]
fn a_kill_is_not_held_against_the_host() {
    let mut cluster = Cluster::of(1).with(&["alice/display"]);
    cluster.kill_primary("alice/display");
    cluster.step();
    assert_eq!(cluster.primary_host("alice/display"), "host1");
    assert_eq!(cluster.record("alice/display").cooldowns, Vec::new());
}

#[test]
fn on_a_full_host_the_dead_primarys_own_room_is_enough() {
    let mut cluster = Cluster::of(1).with(&["alice/display"]);
    cluster.facts("host1").capacity.memory = MiB(512);
    cluster.kill_primary("alice/display");
    cluster.step();
    assert_eq!(cluster.record("alice/display").epoch, Epoch(2), "{:?}", cluster.report);
}

#[test]
fn without_room_the_report_says_host_by_host_what_is_missing() {
    let mut cluster = Cluster::of(2);
    for name in ["host1", "host2"] {
        cluster.facts(name).capacity.memory = MiB(256);
    }
    cluster.add(&["alice/display"]);
    assert!(cluster.step().is_empty());
    let notes = cluster.report.notes[&node("alice/display")].join(" ");
    for part in ["host1 has 256 MiB free of 512 MiB needed", "host2 has 256 MiB free of 512 MiB needed"] {
        assert!(notes.contains(part), "{notes}");
    }
}

#[test]
fn what_one_node_gives_up_is_not_given_to_another_in_the_same_plan() {
    let mut cluster = Cluster::of(2).with(&["alice/display"]);
    cluster.facts("host1").capacity.memory = MiB(512);
    cluster.facts("host2").capacity.memory = MiB(512);
    // The backup is no longer wanted, and another node waits for room.
    cluster.edit("alice/display", |record| {
        record.spec.labels.insert("backups".to_owned(), "0".to_owned());
    });
    cluster.add(&["bob/display"]);
    cluster.step();
    assert_eq!(cluster.record("bob/display").primary, None);
    cluster.obey();
    cluster.step();
    assert!(cluster.record("bob/display").primary.is_some());
}

#[test]
fn an_idle_instance_gives_way_to_a_member_that_cannot_use_it() {
    let mut cluster = Cluster::of(2);
    for name in ["host1", "host2"] {
        cluster.facts(name).capacity.memory = MiB(512);
        cluster.idle(name, 1);
    }
    cluster.add(&["alice/exec-1"]);
    cluster.step();
    let record = cluster.record("alice/exec-1");
    assert_eq!(record.primary.as_ref().unwrap().origin, Origin::Idle);
    assert_eq!(record.backups[0].origin, Origin::Reserved);
}

#[test]
fn an_instance_that_runs_for_a_node_that_is_no_more_takes_room_all_the_same() {
    let mut cluster = Cluster::of(1);
    cluster.facts("host1").capacity.memory = MiB(512);
    cluster.idle("host1", 1);
    for fact in cluster.facts("host1").instances.values_mut() {
        fact.phase = Phase::Booting;
        fact.node = Some(node("gone/display"));
    }
    cluster.add(&["alice/display"]);
    cluster.step();
    assert_eq!(cluster.record("alice/display").primary, None);
}

#[test]
fn a_failover_is_over_when_the_successor_is_ready_and_every_window_is_back() {
    let mut cluster = Cluster::of(3).with(&["alice/display", "alice/exec-1"]);
    cluster.kill_primary("alice/display");
    cluster.step();
    cluster.obey();
    cluster.settle();
    let incident = cluster.record("alice/display").incident.clone().unwrap();
    assert!(incident.ready.is_some());
    assert_eq!(incident.windows, None);
    let (screen, incarnation) =
        (cluster.primary("alice/display").1, cluster.record("alice/display").incarnation);
    let at = UnixMillis(cluster.now.wall.0 + 100);
    cluster.report_primary("alice/exec-1", |fact| {
        let sent = crate::model::records::WindowsSent {
            display: screen,
            display_incarnation: incarnation,
            incarnation: Epoch(1),
            at,
        };
        fact.windows = Some(sent);
    });
    cluster.step();
    assert_eq!(cluster.record("alice/display").incident.as_ref().unwrap().windows, Some(at));
}
