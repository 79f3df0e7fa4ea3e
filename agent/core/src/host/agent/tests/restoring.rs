//! State that is on this host's disk is not given up for a passing error (SAFE-9, S6).

use super::*;
use crate::model::ids::HostId;

/// alice's execution node is to be restored here from its checkpoint.
fn restoring() -> (Rig, InstanceId) {
    let mut cluster = Cluster::of(2).with(&["alice/exec-1"]);
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let (me, instance) = cluster.primary("alice/exec-1");
    let mut rig = Rig::new(cluster, me.as_str(), 0);
    rig.tick();
    assert_eq!(rig.under_way(), ["Restore"]);
    assert_eq!(rig.phase(instance), Some("restoring"));
    (rig, instance)
}

#[test]
fn a_passing_error_is_reported_and_tried_again_for_as_long_as_it_takes() {
    let (mut rig, instance) = restoring();
    for _ in 0..50 {
        rig.end(Outcome::Failed("the guard does not answer".to_owned()));
        assert_eq!(rig.phase(instance), Some("restoring"));
        let reported = rig.condition(Condition::Restores);
        assert!(
            reported.contains("alice/exec-1") && reported.contains("the guard does not answer"),
            "{reported}"
        );
        rig.pass(10_000);
        assert_eq!(rig.under_way(), ["Restore"]);
    }
    rig.end(Outcome::Loaded { address: Some([10, 0, 0, 7].into()) });
    rig.tick();
    assert_eq!((rig.under_way(), rig.phase(instance)), (vec!["Resume".to_owned()], Some("restoring")));
    rig.end(Outcome::Done);
    let local = &rig.agent.local[&instance];
    assert_eq!((local.fact.phase.clone(), local.paused), (Phase::Ready, false));
    assert_eq!(local.fact.address, Some([10, 0, 0, 7].into()));
    assert_eq!(rig.condition(Condition::Restores), "");
}

#[test]
fn the_end_of_what_a_try_left_is_no_death_whenever_it_is_heard() {
    let (mut rig, instance) = restoring();
    rig.exits(instance);
    rig.end(failed());
    rig.exits(instance);
    assert_eq!(rig.phase(instance), Some("restoring"));
    rig.pass(200);
    // Of the try before.
    rig.exits(instance);
    rig.end(Outcome::Loaded { address: None });
    rig.tick();
    rig.exits(instance);
    rig.seen.clear();
    rig.end(Outcome::Done);
    assert_eq!(rig.phase(instance), Some("ready"));
    assert!(rig.asked(&Effect::LookFor(instance)), "it may be of this one");
    rig.say(Input::Looked { instance, there: Some(true) });
    assert_eq!(rig.phase(instance), Some("ready"));
}

#[test]
fn a_try_that_may_run_on_is_destroyed_before_the_next_one() {
    let (mut rig, instance) = restoring();
    rig.end(Outcome::Unsure("libvirtd hangs".to_owned()));
    rig.pass(10_000);
    assert_eq!(rig.under_way(), ["Destroy"]);
    rig.end(failed());
    rig.pass(10_000);
    assert_eq!((rig.under_way(), rig.death(instance)), (vec!["Destroy".to_owned()], None));
    rig.end(Outcome::Done);
    rig.pass(10_000);
    assert_eq!((rig.under_way(), rig.death(instance)), (vec!["Restore".to_owned()], None));
}

#[test]
fn an_operator_may_have_it_given_up_while_it_is_tried() {
    let (mut rig, instance) = restoring();
    rig.end(Outcome::Unsure("libvirtd hangs".to_owned()));
    let epoch = rig.cluster.record("alice/exec-1").epoch;
    let failovers = BTreeMap::from([(node("alice/exec-1"), epoch)]);
    let view = rig.cluster.view.clone();
    rig.say(Input::Records(Box::new(Records { view, failovers, unreadable: false })));
    rig.tick();
    rig.end(Outcome::Done);
    assert!(matches!(rig.death(instance), Some(Death::Destroyed { .. })), "{:?}", rig.phase(instance));
    assert_eq!(rig.condition(Condition::Restores), "");
}

#[test]
fn a_damaged_image_is_given_up_at_once_and_one_that_is_refused_again_and_again_counts_as_damaged() {
    let (mut rig, instance) = restoring();
    rig.end(Outcome::Damaged("its manifest is damaged".to_owned()));
    let expected = Death::DeployFailed { detail: "its manifest is damaged".to_owned() };
    assert_eq!(rig.death(instance), Some(expected));
    assert_eq!(rig.agent.local[&instance].fact.epoch, Epoch(2), "of this life");

    let (mut rig, instance) = restoring();
    let refused = || Outcome::Refused("qemu: load of migration failed".to_owned());
    for outcome in [refused(), refused(), refused(), failed(), refused(), refused(), refused()] {
        rig.end(outcome);
        assert_eq!(
            rig.phase(instance),
            Some("restoring"),
            "an error of another sort says nothing of the image"
        );
        rig.pass(10_000);
    }
    rig.end(refused());
    assert!(matches!(rig.death(instance), Some(Death::DeployFailed { .. })));
}

/// The guard restarts between the two halves: the wait grows as for one work.
#[test]
fn a_restore_that_cannot_be_resumed_is_loaded_once_more_after_a_wait_that_grows() {
    let (mut rig, instance) = restoring();
    for wait in [200, 400, 800] {
        rig.end(Outcome::Loaded { address: None });
        rig.tick();
        assert_eq!(rig.under_way(), ["Resume"]);
        rig.end(Outcome::Failed("the guard does not answer".to_owned()));
        rig.pass(wait - 1);
        assert_eq!((rig.under_way(), rig.phase(instance)), (Vec::new(), Some("restoring")), "{wait}");
        rig.pass(1);
        assert_eq!(rig.under_way(), ["Restore"]);
    }
}

/// alice's execution node was restored here, paused, after its primary died so.
fn restored_paused(dies: impl FnOnce(&mut Cluster)) -> Rig {
    let mut cluster = Cluster::of(4).with(&["alice/display", "alice/exec-1"]);
    cluster.report_primary("alice/display", |fact| {
        fact.admitted.insert(node("alice/exec-1"), Epoch(1));
    });
    assert_ne!(cluster.primary_host("alice/display"), cluster.primary_host("alice/exec-1"));
    dies(&mut cluster);
    cluster.step();
    let me = cluster.primary_host("alice/exec-1");
    assert_eq!(cluster.record("alice/exec-1").epoch, Epoch(2));
    let mut rig = Rig::new(cluster, &me, 0);
    rig.tick();
    let at = rig.jobs.iter().position(|job| matches!(job.action, HostAction::Restore { .. })).unwrap();
    let job = Box::new(rig.jobs.remove(at));
    rig.say(Input::Finished { job, outcome: Outcome::Loaded { address: None } });
    rig.tick();
    rig
}

fn resumes(rig: &Rig) -> bool {
    rig.under_way().contains(&"Resume".to_owned())
}

fn lose_host(cluster: &mut Cluster) {
    let at = cluster.primary_host("alice/exec-1");
    cluster.lose(&at);
}

/// Nothing of the dead primary may come in beside it (SAFE-4); but a display that is dying too holds it up for two seconds
/// at the most.
#[test]
fn what_was_restored_waits_for_its_display_to_let_it_in_but_not_for_long() {
    for lets_in in [false, true] {
        let mut rig = restored_paused(lose_host);
        rig.pass(1_999);
        assert!(!resumes(&rig), "it lets epoch 1 in");
        if lets_in {
            rig.cluster.report_primary("alice/display", |fact| {
                fact.admitted.insert(node("alice/exec-1"), Epoch(2));
            });
            rig.records();
            let display = rig.cluster.primary("alice/display").1;
            if let Some(local) = rig.agent.local.get_mut(&display) {
                local.fact.admitted.insert(node("alice/exec-1"), Epoch(2));
            }
            rig.tick();
        } else {
            rig.pass(1);
        }
        assert!(resumes(&rig));
    }
}

/// The process was seen to end: nothing of it can come in, and a terminal that is dark waits for nobody.
#[test]
fn what_was_restored_after_an_end_that_was_seen_does_not_wait_for_its_display() {
    let killed = |cluster: &mut Cluster| cluster.kill_primary("alice/exec-1");
    assert!(resumes(&restored_paused(killed)));
    // One stood in for it meanwhile, and may still be heard: its host is lost.
    let lost_since = |cluster: &mut Cluster| {
        cluster.kill_primary("alice/exec-1");
        cluster.step();
        cluster.edit("alice/exec-1", |record| {
            record.incident.as_mut().unwrap().last = Some(Death::HostLost { reason: "silent".to_owned() });
        });
    };
    assert!(!resumes(&restored_paused(lost_since)));
}

/// It is not the only one who has the state: a terminal must not stay dark for its disk.
#[test]
fn a_restore_that_does_not_come_about_is_left_to_another_host_that_has_a_copy() {
    for (elsewhere, able) in [(true, true), (true, false), (false, true)] {
        let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
        cluster.kill_primary("alice/exec-1");
        cluster.step();
        let (me, instance) = cluster.primary("alice/exec-1");
        let other = cluster.view.hosts.keys().find(|host| **host != me).unwrap().clone();
        if elsewhere {
            cluster.edit("alice/exec-1", |record| record.keepers.extend([other.clone()]));
        }
        if !able {
            cluster.facts(other.as_str()).unable.insert(crate::service::Service::Guard);
        }
        let mut rig = Rig::new(cluster, me.as_str(), 0);
        rig.tick();
        let mut waited = 0;
        while rig.death(instance).is_none() && waited < 60 {
            rig.end(failed());
            rig.pass(10_000);
            waited += 10;
        }
        let left = matches!(rig.death(instance), Some(Death::NotRestored { .. }));
        assert_eq!((left, waited < 60), (elsewhere && able, elsewhere && able), "{elsewhere} {able}");
        assert_eq!(rig.condition(Condition::Restores).is_empty(), left);
    }
}

/// alice's execution node is to be restored here, and another host that can do its part has a copy too; its name.
fn restoring_with_a_copy_elsewhere() -> (Rig, InstanceId, HostId) {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let (me, instance) = cluster.primary("alice/exec-1");
    let other = cluster.view.hosts.keys().find(|host| **host != me).unwrap().clone();
    cluster.edit("alice/exec-1", |record| record.keepers.extend([other.clone()]));
    let mut rig = Rig::new(cluster, me.as_str(), 0);
    rig.tick();
    (rig, instance, other)
}

/// What each try leaves is destroyed before the next: it is one restore nevertheless, and its patience is one.
#[test]
fn tries_that_may_run_on_use_up_the_patience_too() {
    let (mut rig, instance, _) = restoring_with_a_copy_elsewhere();
    for waited in [0, 6, 12] {
        assert_eq!(rig.under_way(), ["Restore"], "after {waited} s");
        rig.end(Outcome::Unsure("libvirtd hangs".to_owned()));
        assert_eq!(rig.under_way(), ["Destroy"]);
        assert_eq!(rig.death(instance), None, "it may run on");
        let shown = rig.condition(Condition::Restores);
        assert!(waited == 12 || shown.contains("libvirtd hangs"), "{shown}");
        rig.end(Outcome::Done);
        rig.pass(6_000);
    }
    let expected = Death::NotRestored { detail: "libvirtd hangs".to_owned() };
    assert_eq!(rig.death(instance), Some(expected));
    assert_eq!(rig.condition(Condition::Restores), "");
}

/// A node that is wanted elsewhere is nothing to report here any more.
#[test]
fn a_restore_that_is_wanted_elsewhere_is_no_condition() {
    let (mut rig, instance, other) = restoring_with_a_copy_elsewhere();
    rig.end(Outcome::Unsure("libvirtd hangs".to_owned()));
    rig.end(Outcome::Done);
    assert!(rig.condition(Condition::Restores).contains("libvirtd hangs"));
    rig.cluster.edit("alice/exec-1", |record| {
        let primary = record.primary.as_mut().unwrap();
        assert_eq!(primary.instance, Some(instance));
        primary.host = other.clone();
    });
    rig.records();
    assert_eq!(rig.condition(Condition::Restores), "");
}

/// Each move costs an epoch and is no nearer to a primary: whoever failed with it a moment ago is not asked again so soon.
#[test]
fn two_hosts_that_both_cannot_restore_it_do_not_pass_it_to_each_other() {
    let (mut rig, instance, other) = restoring_with_a_copy_elsewhere();
    let death = Death::NotRestored { detail: "no room".to_owned() };
    let cause = crate::death::CooldownCause::Died { death, epoch: Epoch(1), from: None };
    let (cooldown, at) = (rig.cluster.bounds.cooldown, rig.cluster.now.wall);
    rig.cluster.edit("alice/exec-1", |record| {
        record.cooldowns.push(crate::death::Cooldown { host: other, cause, at });
    });
    rig.records();
    let mut waited = Duration::ZERO;
    while rig.death(instance).is_none() && waited < 3 * cooldown {
        rig.end(failed());
        rig.pass(10_000);
        waited += Duration::from_secs(10);
    }
    assert!(waited >= cooldown && waited < 3 * cooldown, "{waited:?}");
}

/// Nobody would take it there: it would come back here, an epoch later.
#[test]
fn a_restore_is_not_left_to_a_host_without_room_nor_to_one_that_another_clock_saw_fail() {
    for ahead in [false, true] {
        let (mut rig, instance, other) = restoring_with_a_copy_elsewhere();
        let death = Death::NotRestored { detail: "no room".to_owned() };
        let cause = crate::death::CooldownCause::Died { death, epoch: Epoch(1), from: None };
        let at = rig.cluster.now.wall + Duration::from_secs(600);
        rig.cluster.edit("alice/exec-1", |record| {
            record.backups.clear();
            if ahead {
                record.cooldowns.push(crate::death::Cooldown { host: other.clone(), cause, at });
            }
        });
        if !ahead {
            rig.cluster.facts(other.as_str()).capacity.memory = MiB(64);
        }
        rig.records();
        for _ in 0..6 {
            rig.end(failed());
            rig.pass(10_000);
        }
        assert_eq!(rig.phase(instance), Some("restoring"), "ahead: {ahead}");
    }
}

/// The guard was started anew without its table, and then the agent was: it dies before it is registered anew. That is the
/// death of this life, and no reason to restore the image that it once came from.
#[test]
fn a_death_of_one_that_the_guard_has_lost_is_of_its_life() {
    let (mut rig, instance) = restoring();
    rig.end(Outcome::Loaded { address: None });
    rig.tick();
    rig.end(Outcome::Done);
    let lost = |local: &mut Local| local.unguarded = true;
    rig.agent.local.get_mut(&instance).into_iter().for_each(lost);
    rig.tick();
    assert_eq!(rig.under_way(), ["Guard"]);
    rig.end(failed());
    rig.exits(instance);
    assert!(matches!(rig.death(instance), Some(Death::Exited { .. })), "{:?}", rig.phase(instance));
    assert_eq!(rig.agent.local[&instance].fact.epoch, Epoch(2));
    rig.pass(10_000);
    assert!(rig.under_way().is_empty(), "{:?}", rig.under_way());
    // Registered anew it is as any other.
    let (mut rig, instance) = restoring();
    rig.end(Outcome::Loaded { address: None });
    rig.tick();
    rig.end(Outcome::Done);
    rig.agent.local.get_mut(&instance).into_iter().for_each(lost);
    rig.tick();
    rig.end(Outcome::Guarded(Epoch(2)));
    assert!(!rig.agent.local[&instance].unguarded);
    rig.pass(1_000);
    assert!(!rig.under_way().contains(&"Guard".to_owned()));
}

/// Jobs that stood still over the end of the lease act by the instance's name.
#[test]
fn no_life_begins_beside_a_job_of_a_lease_that_is_over() {
    let (mut rig, instance) = restoring();
    rig.agent.destroy(instance, "an operator asked for a failover");
    rig.say(Input::LeaseLost);
    let (me, lease) = (rig.agent.settings.me.clone(), rig.agent.lease + 1);
    let view = &mut rig.cluster.view;
    let mut seen = (*view.hosts[&me]).clone();
    seen.lease.value.number = lease;
    view.hosts.insert(me, std::sync::Arc::new(seen));
    rig.cluster.edit("alice/exec-1", |record| {
        record.epoch = record.epoch.next();
        record.incarnation = record.epoch;
        record.primary.as_mut().unwrap().lease = lease;
    });
    rig.records();
    rig.say(Input::Recovered { lease, found: BTreeMap::new() });
    rig.pass(60_000);
    assert_eq!(rig.under_way(), ["Restore", "Destroy"], "those of the lease before");
    rig.jobs.swap(0, 1);
    rig.end(Outcome::Done);
    rig.pass(60_000);
    assert_eq!(rig.under_way(), ["Restore"], "the other is not over");
    rig.end(failed());
    rig.pass(60_000);
    assert_eq!(rig.under_way(), ["Destroy"], "whatever it has made");
    rig.end(Outcome::Done);
    rig.tick();
    rig.tick();
    assert_eq!((rig.under_way(), rig.phase(instance)), (vec!["Restore".to_owned()], Some("restoring")));
    assert_eq!(rig.jobs[0].lease, lease);
}
