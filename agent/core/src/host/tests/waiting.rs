//! Tables of what waits for something else: checkpoints for their time, repairs for the windows.

use super::*;
use crate::model::records::Migration;

#[test]
fn a_checkpoint_is_due_after_the_interval_for_live_backups_and_not_while_it_moves() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let me = cluster.primary_host("alice/exec-1");
    let taken = fresh(&cluster);
    let due = |cluster: &Cluster| {
        let found = actions(cluster, &me, &cluster.local(&me), &taken);
        found.into_iter().find_map(|action| match action {
            HostAction::Checkpoint { to, epoch, .. } => {
                Some((to.into_iter().map(|to| to.host).collect::<Vec<HostId>>(), epoch))
            }
            _ => None,
        })
    };
    assert_eq!(due(&cluster), None);
    cluster.pass(cluster.bounds.checkpoint_interval);
    let backup = host(&cluster.backup_hosts("alice/exec-1")[0]);
    assert_eq!(due(&cluster), Some((vec![backup.clone()], Epoch(1))));
    let mut lost = cluster.clone();
    lost.lose(backup.as_str());
    assert_eq!(due(&lost), None);
    let mut silent = cluster.clone();
    silent.seen(backup.as_str()).facts = None;
    assert_eq!(due(&silent), None, "where it is reached is not known");
    let mut beside = cluster.clone();
    beside.add(&["bob/display"]);
    beside.edit("bob/display", |record| {
        let (from, to) = (host("host9"), host(&me));
        let (epoch, started) = (Epoch(2), UnixMillis(0));
        record.migration = Some(Migration { from, to, to_lease: 1, epoch, abandoned: false, started });
    });
    assert_eq!(due(&beside), None, "another comes here");
    let mut leaving = cluster.clone();
    leaving.seen(&me).intent.drain = true;
    assert_eq!(due(&leaving), None, "it is to leave in a moment");
    for mut waiting in [beside, leaving] {
        waiting.pass(waiting.bounds.checkpoint_interval * 2);
        assert!(due(&waiting).is_some(), "three intervals at the most");
    }
    cluster.seen(&me).intent.drain = true;
    cluster.step();
    assert_eq!(due(&cluster), None);
}

#[test]
fn a_backup_is_made_once_the_windows_are_back_or_the_wait_is_over() {
    let mut cluster = Cluster::of(3);
    for each in ["host1", "host2", "host3"] {
        cluster.idle(each, 1);
    }
    let mut cluster = cluster.with(&["alice/display", "alice/exec-1"]);
    cluster.kill_primary("alice/display");
    cluster.step();
    let backup = cluster.record("alice/display").backups.last().unwrap().clone();
    let (me, instance) = (backup.host.to_string(), backup.instance.unwrap());
    let idle = fact(Phase::Idle, None, Epoch(0));
    let local = Locals::from([(instance, Local::of(idle))]);
    let mut rest = fresh(&cluster);
    rest.pool.idle = 2;
    let made = |cluster: &Cluster| letters(&actions(cluster, &me, &local, &rest));
    assert_eq!(made(&cluster), [""; 0], "somebody waits for windows");
    let later = |cluster: &Cluster, ms: u64| {
        let mut later = cluster.clone();
        later.now.wall = UnixMillis(later.now.wall.0 + ms);
        made(&later)
    };
    assert_eq!(later(&cluster, 14_999), [""; 0]);
    assert_eq!(later(&cluster, 15_000), ["Guard", "CreateIdle"], "they may never come");
    // Accepted after one second, they are drawn after four.
    let mut accepted = cluster.clone();
    accepted.edit("alice/display", |record| {
        let incident = record.incident.as_mut().unwrap();
        incident.windows = Some(UnixMillis(incident.decided.0 + 1_000));
    });
    assert_eq!(later(&accepted, 3_999), [""; 0]);
    assert_eq!(later(&accepted, 4_000), ["Guard", "CreateIdle"]);
}

#[test]
fn the_pool_is_filled_once_no_migration_comes_or_leaves() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let (from, _) = cluster.primary("alice/exec-1");
    cluster.seen(from.as_str()).intent.drain = true;
    cluster.step();
    let to = cluster.record("alice/exec-1").migration.as_ref().unwrap().to.clone();
    let beside = ["host1", "host2", "host3"].map(host).into_iter().find(|name| *name != from && *name != to);
    let mut rest = fresh(&cluster);
    rest.pool.idle = 1;
    let fills = |cluster: &Cluster, me: &HostId| {
        let found = actions(cluster, me.as_str(), &Locals::new(), &rest);
        found.iter().any(|action| matches!(action, HostAction::CreateIdle(_)))
    };
    assert!(!fills(&cluster, &to), "an instance that boots takes the processors of the one that comes");
    assert!(fills(&cluster, &beside.unwrap()));
    cluster.edit("alice/exec-1", |record| record.migration = None);
    assert!(fills(&cluster, &to));
}
