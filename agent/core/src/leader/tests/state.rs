//! What is waited for rather than that a state is given up, and for how long (SAFE-9).

use std::time::Duration;

use crate::bounds::{NEWER_STATE, STATE_WAIT};
use crate::death::{Cooldown, CooldownCause, Death};
use crate::fixture::{Cluster, deploy_failed, died, fact, host, node};
use crate::leader::{Decisions, Input, Leader, Outcome, Plan, plan};
use crate::model::ids::{Epoch, HostId};
use crate::model::records::{CheckpointId, Origin, Service, StateKept, StateWait};
use crate::model::units::{MiB, UnixMillis};

const NODE: &str = "alice/exec-1";

fn origin(cluster: &Cluster) -> Origin {
    cluster.record(NODE).primary.as_ref().unwrap().origin
}

fn restored(cluster: &Cluster) -> Option<CheckpointId> {
    match origin(cluster) {
        Origin::Restored(id) => Some(id),
        Origin::Idle | Origin::Created | Origin::Promoted | Origin::Migrated | Origin::Reserved => None,
    }
}

fn notes(cluster: &Cluster) -> String {
    cluster.report.notes.get(&node(NODE)).map(|notes| notes.join(" ")).unwrap_or_default()
}

/// A node of which the primary is dead and the only copy of the state is on a host that is lost.
fn waiting() -> (Cluster, String) {
    let mut cluster = Cluster::of(4).with(&[NODE]);
    let held = cluster.backup_hosts(NODE)[0].clone();
    cluster.lose(&held);
    cluster.kill_primary(NODE);
    cluster.step();
    (cluster, held)
}

/// Plans once a second for so long. When the node got another primary, from the beginning of that time.
fn until_decided(cluster: &mut Cluster, longest: Duration) -> Option<u64> {
    let epoch = cluster.record(NODE).epoch;
    for second in 0..=longest.as_secs() {
        cluster.step();
        if cluster.record(NODE).epoch > epoch {
            return Some(second);
        }
        cluster.pass(Duration::from_secs(1));
    }
    None
}

#[test]
fn a_lost_host_with_the_only_copy_is_waited_for_and_its_return_ends_the_wait() {
    let (mut cluster, held) = waiting();
    assert_eq!(cluster.record(NODE).epoch, Epoch(1), "nothing is given up");
    assert_eq!(cluster.record(NODE).state_wait, Some(StateWait::started(cluster.now.wall)));
    assert!(cluster.report.lacks[&node(NODE)].state);
    for part in [
        // The fixture's clock stands at 00:16:40.
        "until 00:21:40 UTC",
        &format!("it may be on {held}, which is lost"),
        "understudy node start-afresh alice/exec-1",
    ] {
        assert!(notes(&cluster).contains(part), "{part} is not in {}", notes(&cluster));
    }
    assert_eq!(until_decided(&mut cluster, STATE_WAIT - Duration::from_secs(30)), None);
    cluster.reopen(&held);
    cluster.step();
    assert_eq!(cluster.primary_host(NODE), held);
    assert!(restored(&cluster).is_some());
    assert!(!matches!(cluster.record(NODE).incident.as_ref().unwrap().state, StateKept::Lost));
    assert!(cluster.record(NODE).state_wait.is_some(), "it may fail yet");
    cluster.settle();
    assert_eq!(cluster.record(NODE).state_wait, None);
    assert!(!cluster.report.lacks.contains_key(&node(NODE)));
}

#[test]
fn the_wait_has_an_end_and_then_it_starts_afresh_and_says_that_the_state_is_lost() {
    let (mut cluster, _) = waiting();
    assert_eq!(until_decided(&mut cluster, STATE_WAIT * 2), Some(STATE_WAIT.as_secs()));
    let record = cluster.record(NODE);
    assert_eq!((restored(&cluster), &record.state_wait), (None, &None));
    assert_eq!(record.incident.as_ref().unwrap().state, StateKept::Lost);
    assert_eq!(record.keepers.len(), 0, "it never comes back");
}

#[test]
fn an_operators_word_ends_the_wait_at_once() {
    let (mut cluster, _) = waiting();
    cluster.edit(NODE, |record| record.state_wait.as_mut().unwrap().given_up = true);
    cluster.step();
    assert_eq!((cluster.record(NODE).epoch, restored(&cluster)), (Epoch(2), None));
    assert_eq!(cluster.record(NODE).state_wait, None);
}

/// A host that is there is not given up by itself, whatever it lacks: only an operator does so.
#[test]
fn a_host_that_is_there_is_waited_for_without_end_where_nobody_else_has_a_copy() {
    let mut cluster = Cluster::of(3).with(&[NODE]);
    let held = cluster.backup_hosts(NODE)[0].clone();
    cluster.facts(&held).unable.insert(Service::Guard);
    cluster.kill_primary(NODE);
    assert_eq!(until_decided(&mut cluster, STATE_WAIT * 2), None);
    assert!(cluster.step().is_empty(), "nothing is written any more");
    assert!(notes(&cluster).contains("whose guard does not answer"), "{}", notes(&cluster));
    cluster.edit(NODE, |record| record.state_wait.as_mut().unwrap().given_up = true);
    cluster.step();
    assert_eq!((cluster.record(NODE).epoch, restored(&cluster)), (Epoch(2), None));
}

/// Its reboot is what mends it: the time of before is no part of the wait for that.
#[test]
fn a_host_that_was_waited_for_without_end_is_waited_for_anew_once_it_is_lost() {
    for lost_before in [false, true] {
        let mut cluster = Cluster::of(3).with(&[NODE]);
        let held = cluster.backup_hosts(NODE)[0].clone();
        let closed = cluster.seen(&held).lease.clone();
        if lost_before {
            cluster.lose(&held);
        }
        cluster.kill_primary(NODE);
        if lost_before {
            assert_eq!(until_decided(&mut cluster, STATE_WAIT / 2), None);
            cluster.seen(&held).lease = closed;
        }
        cluster.facts(&held).unable.insert(Service::Guard);
        assert_eq!(until_decided(&mut cluster, STATE_WAIT * 2), None, "it is there");
        cluster.lose(&held);
        // One step may be counted that was none.
        let waited = until_decided(&mut cluster, STATE_WAIT * 2).unwrap();
        assert!((270..=300).contains(&waited), "{waited} s, lost before: {lost_before}");
    }
}

#[test]
fn a_host_without_room_is_there_and_is_waited_for_without_end() {
    let mut cluster = Cluster::of(3).with(&[NODE]);
    let held = cluster.backup_hosts(NODE)[0].clone();
    cluster.edit(NODE, |record| record.keepers.extend(record.backups.drain(..).map(|backup| backup.host)));
    cluster.facts(&held).capacity.memory = MiB(256);
    cluster.kill_primary(NODE);
    assert_eq!(until_decided(&mut cluster, STATE_WAIT * 2), None);
    assert!(notes(&cluster).contains("free of"), "{}", notes(&cluster));
    cluster.facts(&held).capacity.memory = MiB(4096);
    cluster.step();
    assert_eq!(cluster.primary_host(NODE), held);
    assert!(restored(&cluster).is_some());
}

/// Its record was written by another version, and the leader has read the store anew since.
#[test]
fn a_host_whose_lease_cannot_be_read_is_not_unknown() {
    let mut cluster = Cluster::of(4).with(&[NODE]);
    let held = host(&cluster.backup_hosts(NODE)[0]);
    let seen = cluster.view.hosts.get(&held).unwrap().clone();
    cluster.view.hosts.remove(&held);
    cluster.view.unread_hosts.insert(held.clone());
    cluster.kill_primary(NODE);
    assert_eq!(until_decided(&mut cluster, STATE_WAIT * 2), None);
    assert!(notes(&cluster).contains("whose lease cannot be read"), "{}", notes(&cluster));
    cluster.view.hosts.insert(held.clone(), seen);
    cluster.view.unread_hosts.clear();
    cluster.step();
    assert_eq!(cluster.primary(NODE).0, held);
    assert!(restored(&cluster).is_some());
}

/// It is back, with a lease of another version, while the one that is known of it has expired; or that one is open still.
#[test]
fn a_lease_that_cannot_be_read_counts_more_than_the_one_before_it() {
    for expired in [true, false] {
        let mut cluster = Cluster::of(4).with(&[NODE]);
        let held = cluster.backup_hosts(NODE)[0].clone();
        if expired {
            cluster.lose(&held);
        }
        cluster.view.unread_hosts.insert(host(&held));
        cluster.kill_primary(NODE);
        assert_eq!(until_decided(&mut cluster, STATE_WAIT * 2), None, "expired: {expired}");
        assert!(notes(&cluster).contains("whose lease cannot be read"), "{}", notes(&cluster));
    }
}

/// The one that follows hears of it without looking at everything anew.
#[test]
fn a_lease_that_can_be_read_again_has_the_waiting_nodes_looked_at() {
    let mut cluster = Cluster::of(4).with(&[NODE]);
    let held = host(&cluster.backup_hosts(NODE)[0]);
    cluster.view.hosts.remove(&held);
    cluster.view.unread_hosts.insert(held);
    cluster.kill_primary(NODE);
    let mut leader = Leader::new(cluster.bounds);
    let first = leader.handle(Input::View(cluster.view.clone()), cluster.now).assignments;
    assert!(first.iter().all(|one| one.record.epoch == Epoch(1)), "it waits");
    cluster.apply(&Plan { expiries: Vec::new(), assignments: first });
    let written = Outcome::Applied(cluster.view.nodes[&node(NODE)].revision);
    leader.handle(Input::Written(node(NODE), written), cluster.now);
    // It is deleted: nobody knows that host.
    cluster.view.unread_hosts.clear();
    let then = leader.handle(Input::View(cluster.view.clone()), cluster.now).assignments;
    assert!(then.iter().any(|one| one.record.epoch == Epoch(2)), "{then:?}");
}

/// A rack has its power back: the host with the older copy reports a moment before the other.
#[test]
fn a_newer_copy_is_waited_for_after_a_long_wait_too() {
    let (mut cluster, backups, ids) = older_elsewhere(false);
    for lost in &backups {
        cluster.lose(lost);
    }
    assert_eq!(until_decided(&mut cluster, Duration::from_secs(120)), None);
    for back in &backups {
        cluster.reopen(back);
    }
    let reported = cluster.seen(&backups[0]).facts.take();
    assert_eq!(until_decided(&mut cluster, NEWER_STATE - Duration::from_secs(1)), None);
    cluster.seen(&backups[0]).facts = reported;
    cluster.step();
    assert_eq!((cluster.primary_host(NODE), restored(&cluster)), (backups[0].clone(), Some(ids[0])));
}

/// What kept a live migration from coming in says nothing of the copy that is there.
#[test]
fn an_older_copy_does_not_win_because_a_migration_failed_to_reach_the_newest() {
    let (mut cluster, backups, ids) = older_elsewhere(false);
    let cause = CooldownCause::MigrationFailed { epoch: Epoch(1), reason: "timeout".to_owned() };
    let cooldown = Cooldown { host: host(&backups[0]), cause, at: cluster.now.wall };
    cluster.edit(NODE, |record| record.cooldowns.push(cooldown));
    cluster.step();
    assert_eq!((cluster.primary_host(NODE), restored(&cluster)), (backups[0].clone(), Some(ids[0])));
}

/// Unprotected nodes have nothing to wait for.
#[test]
fn nodes_without_a_state_do_not_wait() {
    let mut cluster = Cluster::of(4);
    cluster.add(&["alice/display", NODE]);
    cluster.edit(NODE, |record| record.spec.protected = false);
    cluster.settle();
    for name in ["alice/display", NODE] {
        let held = cluster.backup_hosts(name)[0].clone();
        if cluster.seen(&held).is_open() {
            cluster.lose(&held);
        }
    }
    for name in ["alice/display", NODE] {
        let at = cluster.primary_host(name);
        if cluster.seen(&at).is_open() {
            cluster.kill_primary(name);
        }
    }
    cluster.step();
    for name in ["alice/display", NODE] {
        assert_eq!(
            (cluster.record(name).epoch, &cluster.record(name).state_wait),
            (Epoch(2), &None),
            "{name}"
        );
    }
}

/// A leader that changes, or a clock that is set, neither cuts the wait short nor begins it anew.
#[test]
fn the_wait_survives_leaders_and_clocks() {
    for jump in [0, 86_400_000, -900_000_i64] {
        let (mut cluster, _) = waiting();
        assert_eq!(until_decided(&mut cluster, Duration::from_secs(99)), None);
        // Every plan of the fixture is a new leader's. This one has another clock.
        cluster.now.wall = UnixMillis(cluster.now.wall.0.checked_add_signed(jump).unwrap());
        let took = 100 + until_decided(&mut cluster, STATE_WAIT * 2).expect("the wait ends");
        let (least, most) = (STATE_WAIT.as_secs() - 30, STATE_WAIT.as_secs() + 30);
        assert!((least..=most).contains(&took), "{took} s after a jump of {jump} ms");
    }
}

/// What a leader decides once all that it asks is answered.
fn handle(leader: &mut Leader, cluster: &Cluster, input: Input) -> Decisions {
    let mut decisions = leader.handle(input, cluster.now);
    while let Some(ask) = decisions.copies.pop() {
        let said = cluster.says(&ask).expect("it answers");
        let more = leader.handle(Input::Copies(ask, said), cluster.now);
        decisions.assignments.extend(more.assignments);
        decisions.copies.extend(more.copies);
    }
    decisions
}

/// The leader that follows looks again by itself at each step of the wait, and when it is over.
#[test]
fn a_waiting_node_has_a_due_time() {
    let (mut cluster, _) = waiting();
    let mut leader = Leader::new(cluster.bounds);
    let mut looks = 0;
    loop {
        let decisions = handle(&mut leader, &cluster, Input::View(cluster.view.clone()));
        let fresh = plan(&cluster.view, &cluster.bounds, cluster.now, |ask| cluster.says(ask)).0;
        assert_eq!(decisions.assignments, fresh.assignments);
        let is_written = !decisions.assignments.is_empty();
        cluster.apply(&Plan { expiries: Vec::new(), assignments: decisions.assignments });
        if is_written {
            let outcome = Outcome::Applied(cluster.view.nodes[&node(NODE)].revision);
            leader.handle(Input::Written(node(NODE), outcome), cluster.now);
        }
        if cluster.record(NODE).epoch > Epoch(1) {
            break;
        }
        handle(&mut leader, &cluster, Input::View(cluster.view.clone()));
        let due = leader.waiting_due().expect("it is to be looked at again");
        cluster.pass(due.since(cluster.now.wall));
        looks += 1;
        assert!(looks < 20, "{:?}", cluster.record(NODE).state_wait);
    }
    assert_eq!(looks, 10, "a step at a time");
    assert_eq!(cluster.now.wall, UnixMillis(1_000_000) + STATE_WAIT);
}

/// The newest is on a host that waits for its guard, and an older one elsewhere.
fn older_elsewhere(newest_unable: bool) -> (Cluster, [String; 2], [CheckpointId; 2]) {
    let mut cluster = Cluster::of(4);
    cluster.add(&[NODE]);
    cluster.edit(NODE, |record| {
        record.spec.labels.insert("backups".to_owned(), "2".to_owned());
    });
    cluster.settle();
    let backups: [String; 2] = cluster.backup_hosts(NODE).try_into().unwrap();
    cluster.miss_copy(NODE, &backups[1]);
    cluster.fall_behind(NODE, &backups[1]);
    let ids = backups.each_ref().map(|at| cluster.kept(at, NODE).complete.last().unwrap().id);
    if newest_unable {
        cluster.facts(&backups[0]).unable.insert(Service::Guard);
    }
    cluster.kill_primary(NODE);
    (cluster, backups, ids)
}

#[test]
fn a_newer_copy_is_waited_for_shortly_where_an_older_one_can_be_had() {
    let (mut cluster, backups, ids) = older_elsewhere(true);
    assert_eq!(until_decided(&mut cluster, STATE_WAIT), Some(NEWER_STATE.as_secs()));
    assert_eq!((cluster.primary_host(NODE), restored(&cluster)), (backups[1].clone(), Some(ids[1])));
    let incident = cluster.record(NODE).incident.clone().unwrap();
    assert!(matches!(incident.state, StateKept::Checkpoint { id, .. } if id == ids[1]), "{incident:?}");
    assert!(incident.action.contains(&format!("older than {}", ids[0])), "{}", incident.action);
    // In time.
    let (mut cluster, backups, ids) = older_elsewhere(true);
    cluster.step();
    cluster.pass(NEWER_STATE - Duration::from_secs(1));
    cluster.facts(&backups[0]).unable.clear();
    cluster.step();
    assert_eq!((cluster.primary_host(NODE), restored(&cluster)), (backups[0].clone(), Some(ids[0])));
}

/// The restore of a node's state fails for good on the host that was to do it.
fn fail_restore(cluster: &mut Cluster) {
    let (at, instance) = cluster.primary(NODE);
    let failed = fact(deploy_failed("the image is damaged"), Some(node(NODE)), cluster.record(NODE).epoch);
    cluster.facts(at.as_str()).instances.insert(instance, failed);
}

#[test]
fn a_damaged_copy_gives_way_to_the_one_before_it_and_is_never_tried_again() {
    let (mut cluster, backups, ids) = older_elsewhere(false);
    cluster.step();
    assert_eq!((cluster.primary_host(NODE), restored(&cluster)), (backups[0].clone(), Some(ids[0])));
    fail_restore(&mut cluster);
    cluster.step();
    assert_eq!((cluster.primary_host(NODE), restored(&cluster)), (backups[1].clone(), Some(ids[1])));
    fail_restore(&mut cluster);
    cluster.step();
    // Its own generation before it.
    assert_eq!((cluster.primary_host(NODE), restored(&cluster)), (backups[0].clone(), Some(ids[1])));
    fail_restore(&mut cluster);
    assert_eq!(until_decided(&mut cluster, STATE_WAIT), Some(0), "nothing is left to wait for");
    assert_eq!(restored(&cluster), None);
    assert_eq!(cluster.record(NODE).incident.as_ref().unwrap().state, StateKept::Lost);
}

/// It is not damaged: the copy counts again once the others are no better.
#[test]
fn a_copy_that_a_host_could_not_restore_for_a_while_comes_after_the_others() {
    let (mut cluster, backups, ids) = older_elsewhere(false);
    cluster.step();
    let (at, instance) = cluster.primary(NODE);
    let late = fact(died(Death::NotRestored { detail: "EIO".to_owned() }), Some(node(NODE)), Epoch(2));
    cluster.facts(at.as_str()).instances.insert(instance, late);
    cluster.step();
    assert_eq!((cluster.primary_host(NODE), restored(&cluster)), (backups[1].clone(), Some(ids[1])));
    fail_restore(&mut cluster);
    cluster.step();
    assert_eq!((cluster.primary_host(NODE), restored(&cluster)), (backups[0].clone(), Some(ids[0])));
}

/// The same checkpoint on a host that was lost when the restore was decided.
#[test]
fn a_damaged_copy_gives_way_to_the_same_one_on_a_host_that_comes_back() {
    let (mut cluster, backups, _) = older_elsewhere(false);
    let newest = cluster.kept(&backups[0], NODE).complete.pop().unwrap();
    let id = newest.id;
    for at in &backups {
        cluster.disks.get_mut(&host(at)).unwrap().get_mut(&node(NODE)).unwrap().complete =
            vec![newest.clone()];
    }
    cluster.lose(&backups[1]);
    cluster.step();
    assert_eq!(cluster.primary_host(NODE), backups[0]);
    fail_restore(&mut cluster);
    assert_eq!(until_decided(&mut cluster, Duration::from_secs(60)), None);
    cluster.reopen(&backups[1]);
    cluster.step();
    assert_eq!((cluster.primary_host(NODE), restored(&cluster)), (backups[1].clone(), Some(id)));
    assert_eq!(cluster.record(NODE).keepers, [host(&backups[1])].into(), "what is damaged is forgotten");
}

/// Whoever is restored on a host that falls silent then is not the last of the state.
#[test]
fn the_other_copy_stands_in_where_the_host_of_a_restore_is_lost() {
    let (mut cluster, backups, ids) = older_elsewhere(false);
    cluster.step();
    cluster.lose(&backups[0]);
    cluster.step();
    assert_eq!((cluster.primary_host(NODE), restored(&cluster)), (backups[1].clone(), Some(ids[1])));
}

/// A host that is avoided for another reason is better than nothing.
#[test]
fn the_state_is_not_given_up_for_a_host_that_is_avoided_for_a_while() {
    let mut cluster = Cluster::of(3).with(&[NODE]);
    let held: HostId = host(&cluster.backup_hosts(NODE)[0]);
    let cause = CooldownCause::MigrationFailed { epoch: Epoch(1), reason: "timeout".to_owned() };
    let cooldown = Cooldown { host: held.clone(), cause, at: cluster.now.wall };
    cluster.edit(NODE, |record| record.cooldowns.push(cooldown));
    cluster.kill_primary(NODE);
    cluster.step();
    assert_eq!(cluster.primary(NODE).0, held);
    assert!(restored(&cluster).is_some());
}

/// Who stood in and was never ready is no failure of its own; how it ended counts for what may still be heard of it.
#[test]
fn an_incident_says_how_the_last_that_stood_in_died() {
    let (mut cluster, backups, _) = older_elsewhere(false);
    cluster.step();
    let incident = cluster.record(NODE).incident.clone().unwrap();
    assert_eq!((incident.cause.is_seen(), &incident.last), (true, &None));
    cluster.lose(&backups[0]);
    cluster.step();
    let incident = cluster.record(NODE).incident.clone().unwrap();
    assert!(matches!(incident.cause, Death::Exited { .. }), "{incident:?}");
    assert!(matches!(incident.last, Some(Death::HostLost { .. })), "{incident:?}");
}

#[test]
fn a_death_that_was_not_seen_stays_on_record_until_the_node_is_ready_again() {
    let (mut cluster, backups, _) = older_elsewhere(false);
    let at = cluster.primary_host(NODE);
    cluster.lose(&at);
    cluster.step();
    assert_eq!(cluster.primary_host(NODE), backups[0]);
    cluster.lose(&backups[0]);
    cluster.step();
    fail_restore(&mut cluster);
    cluster.reopen(&backups[0]);
    cluster.step();
    let incident = cluster.record(NODE).incident.clone().unwrap();
    assert!(matches!(incident.last, Some(Death::HostLost { .. })), "{incident:?}");
}
