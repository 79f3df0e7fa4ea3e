//! Tables of one host's reconciliation.

use std::collections::BTreeMap;

use super::{HostAction, Lane, Local, orphaned, reconcile, source_released};
use crate::fixture::{Cluster, MEMBER, Rest, dead, fact, host, node};
use crate::model::ids::{Epoch, HostId, InstanceId};
use crate::model::records::{Origin, Phase, WindowsSent};
use crate::model::units::{MiB, UnixMillis};

mod images;
mod unreadable;
mod waiting;

type Locals = BTreeMap<InstanceId, Local>;

fn actions(cluster: &Cluster, me: &str, local: &Locals, rest: &Rest) -> Vec<HostAction> {
    let me = host(me);
    reconcile(&cluster.situation(&me, local, rest))
}

/// The actions on the host of a node's primary, which knows of its own instances what it reports.
fn on_primary(cluster: &Cluster, name: &str) -> Vec<HostAction> {
    let me = cluster.primary_host(name);
    let local = cluster.local(&me);
    actions(cluster, &me, &local, &fresh(cluster))
}

/// No checkpoint is due.
fn fresh(cluster: &Cluster) -> Rest {
    let last_checkpoint =
        cluster.view.nodes.keys().map(|node| (node.clone(), cluster.now.boottime)).collect();
    Rest { last_checkpoint, ..Rest::default() }
}

fn letters(actions: &[HostAction]) -> Vec<String> {
    let word = |action: &HostAction| {
        let text = format!("{action:?}");
        text.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
    };
    actions.iter().map(word).collect()
}

#[test]
fn nothing_is_done_without_a_lease() {
    let mut cluster = Cluster::of(2);
    cluster.add(&["alice/display"]);
    cluster.step();
    let me = host(&cluster.primary_host("alice/display"));
    let (local, rest) = (Locals::new(), Rest::default());
    let mut situation = cluster.situation(&me, &local, &rest);
    assert!(!reconcile(&situation).is_empty());
    situation.lease = None;
    assert_eq!(reconcile(&situation), Vec::new());
}

#[test]
fn a_new_member_is_created_guarded_deployed_and_then_left_alone() {
    let mut cluster = Cluster::of(1);
    cluster.add(&["alice/display"]);
    cluster.step();
    let instance = cluster.primary("alice/display").1;
    let mut local = Locals::new();
    let rest = Rest::default();
    assert_eq!(letters(&actions(&cluster, "host1", &local, &rest)), ["Create"]);
    let stages = [
        (Phase::Booting, 0, vec![]),
        (Phase::Idle, 0, vec!["Guard"]),
        (Phase::Idle, 1, vec!["Deploy"]),
        // A deployment that was cut short is taken up again.
        (Phase::Deploying, 1, vec!["Deploy"]),
        (Phase::Ready, 0, vec!["Guard"]),
        (Phase::Ready, 1, vec![]),
        (dead("killed"), 1, vec![]),
    ];
    for (phase, epoch, expected) in stages {
        let seen = fact(phase.clone(), Some(node("alice/display")), Epoch(epoch));
        local.insert(instance, Local::of(seen));
        assert_eq!(letters(&actions(&cluster, "host1", &local, &rest)), expected, "{phase:?} {epoch}");
    }
}

#[test]
fn what_was_deployed_for_another_node_is_destroyed_and_not_taken_for_this_one() {
    let mut cluster = Cluster::of(1);
    cluster.idle("host1", 1);
    cluster.add(&["alice/display"]);
    cluster.step();
    let instance = cluster.primary("alice/display").1;
    for (phase, owner, epoch, expected) in [
        (Phase::Ready, Some("bob/display"), 1, "Destroy"),
        (Phase::Deploying, Some("bob/display"), 0, "Destroy"),
        (Phase::Idle, None, 3, "Destroy"),
        (Phase::Idle, None, 0, "Guard"),
    ] {
        let seen = fact(phase.clone(), owner.map(node), Epoch(epoch));
        let local = Locals::from([(instance, Local::of(seen.clone()))]);
        let found = actions(&cluster, "host1", &local, &Rest::default());
        assert_eq!(letters(&found), [expected], "{phase:?} {owner:?}");
        cluster.facts("host1").instances.insert(instance, seen);
        let record = cluster.record("alice/display");
        assert!(!cluster.view.is_ready(record, record.primary.as_ref().unwrap()), "{phase:?}");
    }
}

#[test]
fn what_is_under_way_is_not_asked_for_again() {
    let mut cluster = Cluster::of(1);
    cluster.add(&["alice/display"]);
    cluster.step();
    let instance = cluster.primary("alice/display").1;
    let mut rest = Rest::default();
    rest.busy.insert((instance, Lane::Domain));
    assert_eq!(actions(&cluster, "host1", &Locals::new(), &rest), Vec::new());
}

#[test]
fn a_member_of_an_earlier_lease_is_nobodys() {
    let mut cluster = Cluster::of(2).with(&["alice/display"]);
    let at = cluster.primary_host("alice/display");
    let local = cluster.local(&at);
    cluster.reopen(&at);
    assert_eq!(letters(&actions(&cluster, &at, &local, &Rest::default())), ["Destroy"]);
}

#[test]
fn a_protected_node_is_restored_under_its_new_epoch_also_where_it_has_died_before() {
    let mut cluster = Cluster::of(2).with(&["alice/exec-1"]);
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let (at, instance) = cluster.primary("alice/exec-1");
    let rest = fresh(&cluster);
    let mut local = Locals::new();
    let restore = actions(&cluster, at.as_str(), &local, &rest);
    let HostAction::Restore { epoch, checkpoint, .. } = &restore[0] else { panic!("{restore:?}") };
    assert_eq!((*epoch, checkpoint.epoch), (Epoch(2), Epoch(1)));
    let of = |phase, epoch| Local::of(fact(phase, Some(node("alice/exec-1")), epoch));
    local.insert(instance, of(dead("an earlier life"), Epoch(1)));
    assert_eq!(actions(&cluster, at.as_str(), &local, &rest), [HostAction::Forget { instance }]);
    local.insert(instance, of(Phase::Restoring, Epoch(2)));
    assert_eq!(letters(&actions(&cluster, at.as_str(), &local, &rest)), ["Restore"], "taken up again");
    local.insert(instance, of(dead("this life"), Epoch(2)));
    assert_eq!(actions(&cluster, at.as_str(), &local, &rest), Vec::new());
}

#[test]
fn a_named_instance_that_is_not_here_is_missing_unless_it_was_never_made() {
    for (origin, expected) in [
        (Origin::Idle, "Missing"),
        (Origin::Promoted, "Missing"),
        (Origin::Migrated, "Missing"),
        (Origin::Created, "Create"),
    ] {
        let mut cluster = Cluster::of(1).with(&["alice/display"]);
        cluster.edit("alice/display", |record| record.primary.as_mut().unwrap().origin = origin);
        let found = actions(&cluster, "host1", &Locals::new(), &Rest::default());
        assert_eq!(letters(&found), [expected], "{origin:?}");
    }
}

/// `alice/exec-1` is leaving a draining host.
fn migrating_out() -> (Cluster, HostId, HostId, InstanceId) {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let (from, instance) = cluster.primary("alice/exec-1");
    cluster.seen(from.as_str()).intent.drain = true;
    cluster.step();
    let to = cluster.record("alice/exec-1").migration.as_ref().unwrap().to.clone();
    (cluster, from, to, instance)
}

#[test]
fn the_source_moves_it_and_does_not_guard_it_anew_meanwhile() {
    let (mut cluster, _, to, _) = migrating_out();
    for name in ["host1", "host2", "host3"] {
        cluster.facts(name).migration_data_uri = Some(format!("tcp://{name}.storage"));
    }
    let found = on_primary(&cluster, "alice/exec-1");
    let HostAction::MigrateOut { to: target, epoch, uri, data_uri, .. } = &found[0] else {
        panic!("{found:?}")
    };
    assert_eq!((target, *epoch, uri.as_str()), (&to, Epoch(2), format!("qemu://{to}").as_str()));
    // Both addresses are the destination's own.
    assert_eq!(data_uri.as_deref(), Some(format!("tcp://{to}.storage").as_str()));
    assert_eq!(found.len(), 1);
}

#[test]
fn a_failed_migration_is_not_tried_again_under_the_same_epoch() {
    let (mut cluster, ..) = migrating_out();
    cluster.report_primary("alice/exec-1", |fact| fact.migration_failed = Some((Epoch(2), "no".to_owned())));
    assert_eq!(on_primary(&cluster, "alice/exec-1"), Vec::new());
}

#[test]
fn what_has_left_is_never_made_again_at_its_source() {
    let (mut cluster, from, to, instance) = migrating_out();
    assert_eq!(cluster.record("alice/exec-1").primary.as_ref().unwrap().origin, Origin::Created);
    let (gone, rest) = (Locals::new(), fresh(&cluster));
    assert_eq!(
        actions(&cluster, from.as_str(), &gone, &rest),
        Vec::new(),
        "the destination is authoritative"
    );
    let after_fail = |cluster: &Cluster| letters(&actions(cluster, from.as_str(), &gone, &rest));
    let missing = fact(dead("is not on this host"), None, Epoch(2));
    let mut died = cluster.clone();
    died.facts(to.as_str()).instances.insert(instance, missing);
    assert_eq!(after_fail(&died), ["Missing"]);
    let mut lost = cluster.clone();
    lost.lose(to.as_str());
    assert_eq!(after_fail(&lost), ["Missing"]);
    cluster.edit("alice/exec-1", |record| record.migration = None);
    assert_eq!(after_fail(&cluster), ["Missing"]);
}

#[test]
fn the_destination_accepts_only_in_the_lease_that_was_chosen() {
    let (mut cluster, from, to, instance) = migrating_out();
    let rest = fresh(&cluster);
    let accept = HostAction::Accept { node: node("alice/exec-1"), instance, epoch: Epoch(2), from };
    assert_eq!(actions(&cluster, to.as_str(), &Locals::new(), &rest), std::slice::from_ref(&accept));
    let half = Local {
        fact: fact(Phase::Ready, Some(node("alice/exec-1")), Epoch(1)),
        paused: true,
        unguarded: false,
    };
    let here = Locals::from([(instance, half)]);
    assert_eq!(actions(&cluster, to.as_str(), &here, &rest), [accept], "taken up again");
    cluster.reopen(to.as_str());
    assert_eq!(letters(&actions(&cluster, to.as_str(), &Locals::new(), &rest)), Vec::<String>::new());
    assert_eq!(letters(&actions(&cluster, to.as_str(), &here, &rest)), ["Destroy"]);
}

#[test]
fn the_destination_gives_up_an_abandoned_migration_and_says_so() {
    let (mut cluster, _, to, instance) = migrating_out();
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let rest = fresh(&cluster);
    let missing = HostAction::Missing { node: node("alice/exec-1"), instance, epoch: Epoch(2) };
    assert_eq!(actions(&cluster, to.as_str(), &Locals::new(), &rest), [missing]);
    for (epoch, expected) in [(1, vec!["Destroy"]), (2, vec![])] {
        let here = fact(Phase::Ready, Some(node("alice/exec-1")), Epoch(epoch));
        let local = Locals::from([(instance, Local { fact: here, paused: epoch == 1, unguarded: false })]);
        let found = letters(&actions(&cluster, to.as_str(), &local, &rest));
        assert_eq!(found, expected, "what runs already has arrived");
    }
}

#[test]
fn the_destination_lets_it_run_only_once_the_source_has_released_it() {
    let (cluster, from, to, instance) = migrating_out();
    let go = |cluster: &Cluster| source_released(&cluster.view, &node("alice/exec-1"), instance);
    assert!(!go(&cluster));
    let mut gone = cluster.clone();
    gone.facts(from.as_str()).instances.remove(&instance);
    assert!(!go(&gone), "not in the list is no word");
    let mut moved = cluster.clone();
    moved.report_primary("alice/exec-1", |fact| fact.phase = crate::fixture::moved(&to));
    assert!(go(&moved));
    let mut lost = cluster;
    lost.lose(from.as_str());
    assert!(go(&lost));
    let mut failed = lost.clone();
    failed.report_primary("alice/exec-1", |fact| fact.migration_failed = Some((Epoch(2), "no".to_owned())));
    assert!(!go(&failed), "the source went on");
    lost.edit("alice/exec-1", |record| record.migration.as_mut().unwrap().abandoned = true);
    assert!(!go(&lost), "the destination is to give up");
    let mut over = moved;
    over.edit("alice/exec-1", |record| record.migration = None);
    assert!(!go(&over));
}

/// alice with a display and an execution node, both ready, nothing handed over yet.
fn screen() -> (Cluster, InstanceId, InstanceId) {
    let cluster = Cluster::of(3).with(&["alice/display", "alice/exec-1"]);
    let (display, sender) = (cluster.primary("alice/display").1, cluster.primary("alice/exec-1").1);
    (cluster, display, sender)
}

fn let_in(cluster: &mut Cluster, incarnation: Epoch) {
    cluster.report_primary("alice/display", |fact| {
        fact.admitted.insert(node("alice/exec-1"), incarnation);
    });
}

fn handed_over(cluster: &mut Cluster, display: InstanceId) {
    let (display_incarnation, incarnation) =
        (cluster.record("alice/display").incarnation, cluster.record("alice/exec-1").incarnation);
    cluster.report_primary("alice/exec-1", |fact| {
        fact.windows = Some(WindowsSent { display, display_incarnation, incarnation, at: UnixMillis(1) });
    });
}

fn sends(cluster: &Cluster) -> bool {
    letters(&on_primary(cluster, "alice/exec-1")).contains(&"SendWindows".to_owned())
}

#[test]
fn a_display_lets_in_each_execution_node_and_so_does_its_backup() {
    let (cluster, _, _) = screen();
    let members = cluster.record("alice/display").members().cloned().collect::<Vec<_>>();
    for member in members {
        let local = cluster.local(member.host.as_str());
        let found = actions(&cluster, member.host.as_str(), &local, &fresh(&cluster));
        assert!(found.contains(&HostAction::Admit {
            instance: member.instance.unwrap(),
            node: node("alice/exec-1"),
            incarnation: Epoch(1),
            token: "token".to_owned(),
        }));
    }
}

#[test]
fn windows_are_sent_once_to_a_display_that_lets_them_in() {
    let (mut cluster, display, _) = screen();
    assert!(!sends(&cluster), "not let in yet");
    let_in(&mut cluster, Epoch(1));
    assert!(sends(&cluster));
    handed_over(&mut cluster, display);
    assert!(!sends(&cluster), "handed over");
}

#[test]
fn windows_are_sent_again_after_a_display_change() {
    let (mut cluster, display, _) = screen();
    let_in(&mut cluster, Epoch(1));
    handed_over(&mut cluster, display);
    cluster.kill_primary("alice/display");
    cluster.step();
    let_in(&mut cluster, Epoch(1));
    assert!(sends(&cluster));
    let next = cluster.primary("alice/display").1;
    handed_over(&mut cluster, next);
    assert!(!sends(&cluster));
}

#[test]
fn windows_are_sent_again_after_a_restore_once_the_new_epoch_is_let_in() {
    let (mut cluster, display, _) = screen();
    let_in(&mut cluster, Epoch(1));
    handed_over(&mut cluster, display);
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    cluster.obey();
    assert!(!sends(&cluster), "the display lets in epoch 1 only");
    let_in(&mut cluster, Epoch(2));
    assert!(sends(&cluster));
}

#[test]
fn windows_are_not_sent_again_after_a_live_migration() {
    let (mut cluster, display, sender) = screen();
    let_in(&mut cluster, Epoch(1));
    handed_over(&mut cluster, display);
    let at = cluster.primary_host("alice/exec-1");
    let moved = cluster.facts(&at).instances[&sender].clone();
    cluster.seen(&at).intent.drain = true;
    for _ in 0..10 {
        cluster.step();
        if cluster.record("alice/exec-1").migration.is_some() {
            break;
        }
        cluster.obey();
    }
    let migration = cluster.record("alice/exec-1").migration.clone().unwrap();
    let arrived = crate::model::records::InstanceFact { epoch: migration.epoch, ..moved };
    cluster.facts(&at).instances.remove(&sender);
    cluster.facts(migration.to.as_str()).instances.insert(sender, arrived);
    cluster.step();
    assert_eq!(cluster.record("alice/exec-1").primary.as_ref().unwrap().origin, Origin::Migrated);
    assert!(!sends(&cluster));
}

#[test]
fn an_orphan_is_destroyed_and_its_remains_forgotten() {
    let cluster = Cluster::of(1);
    let instance = InstanceId::derived(&node("bob/display"), Epoch(1), &host("host1"), 0);
    let rest =
        Rest { pool: crate::host::PoolSettings { idle: 1, ..Rest::default().pool }, ..Rest::default() };
    let of = |phase: Phase, name: Option<&str>, epoch| {
        let seen = fact(phase, name.map(node), Epoch(epoch));
        Locals::from([(instance, Local::of(seen))])
    };
    for (phase, name, epoch, expected) in [
        (Phase::Ready, Some("bob/display"), 1, vec!["Destroy", "CreateIdle"]),
        (Phase::Deploying, Some("bob/display"), 1, vec!["Destroy", "CreateIdle"]),
        (Phase::Idle, Some("bob/display"), 0, vec!["Destroy", "CreateIdle"]),
        (Phase::Idle, None, 3, vec!["Destroy", "CreateIdle"]),
        (dead("killed"), Some("bob/display"), 1, vec!["Forget", "CreateIdle"]),
        (Phase::Idle, None, 0, vec![]),
        (Phase::Booting, None, 0, vec![]),
    ] {
        let local = of(phase.clone(), name, epoch);
        assert_eq!(
            letters(&actions(&cluster, "host1", &local, &rest)),
            expected,
            "{phase:?} {name:?} {epoch}"
        );
    }
}

#[test]
fn the_pool_is_filled_one_by_one_where_there_is_room_and_emptied_on_a_draining_host() {
    let mut cluster = Cluster::of(1);
    let me = host("host1");
    let mut rest = Rest::default();
    rest.pool.idle = 2;
    cluster.idle("host1", 1);
    let local = cluster.local("host1");
    let mut situation = cluster.situation(&me, &local, &rest);
    assert_eq!(reconcile(&situation), [HostAction::CreateIdle(rest.pool)]);
    situation.filling = true;
    assert_eq!(reconcile(&situation), Vec::new());
    situation.filling = false;
    situation.free = MEMBER.saturating_sub(MiB(1));
    assert_eq!(reconcile(&situation), Vec::new());
    situation.free = MEMBER;
    situation.draining = true;
    assert_eq!(letters(&reconcile(&situation)), ["Destroy"]);
}

#[test]
fn a_draining_host_destroys_its_idle_instances_once_its_primaries_have_left() {
    let mut cluster = Cluster::of(2).with(&["alice/exec-1"]);
    let me = cluster.primary_host("alice/exec-1");
    cluster.idle(&me, 1);
    cluster.seen(&me).intent.drain = true;
    let ended = |cluster: &Cluster| {
        let found = actions(cluster, &me, &cluster.local(&me), &fresh(cluster));
        found.iter().filter(|action| matches!(action, HostAction::Destroy { .. })).count()
    };
    assert_eq!(ended(&cluster), 0, "to end a process takes the processors of what moves");
    cluster.edit("alice/exec-1", |record| record.primary = None);
    assert_eq!(ended(&cluster), 2, "the idle instance, and what no node names any more");
}

#[test]
fn an_instance_that_is_deployed_for_nobody_any_more_is_orphaned() {
    let mut cluster = Cluster::of(2).with(&["alice/display"]);
    let (me, instance) = cluster.primary("alice/display");
    let mut local = cluster.local(me.as_str());
    let rest = fresh(&cluster);
    for (phase, named, expected) in [
        (Phase::Deploying, true, false),
        (Phase::Deploying, false, true),
        (Phase::Ready, false, false),
        (Phase::Booting, false, false),
        (dead("gone"), false, false),
    ] {
        local.get_mut(&instance).unwrap().fact.phase = phase.clone();
        if !named {
            cluster.edit("alice/display", |record| record.primary = None);
        }
        let mut situation = cluster.situation(&me, &local, &rest);
        let seen: Vec<InstanceId> = expected.then_some(instance).into_iter().collect();
        assert_eq!(orphaned(&situation), seen, "{phase:?} {named}");
        situation.lease = None;
        assert_eq!(orphaned(&situation), Vec::new());
    }
}

#[test]
fn an_idle_instance_gives_way_when_its_memory_is_promised() {
    let mut cluster = Cluster::of(2);
    for name in ["host1", "host2"] {
        cluster.facts(name).capacity.memory = MiB(1024);
    }
    cluster.add(&["alice/exec-1", "alice/exec-2"]);
    cluster.settle();
    cluster.idle("host1", 1);
    let local = cluster.local("host1");
    let found = actions(&cluster, "host1", &local, &fresh(&cluster));
    assert!(letters(&found).contains(&"Destroy".to_owned()), "{found:?}");
    cluster.facts("host1").capacity.memory = MiB(1536);
    assert!(!letters(&actions(&cluster, "host1", &local, &fresh(&cluster))).contains(&"Destroy".to_owned()));
}
