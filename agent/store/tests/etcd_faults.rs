//! What the etcd store does when members are frozen, silent or dead.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cluster;

use std::time::Duration;

use cluster::proxy::{Mode, Proxy};
use cluster::{Cluster, LIMIT};
use tokio::time::{Instant, timeout};
use understudy_store::{Committed, Condition, Etcd, EtcdConfig, Revision, Store, StoreError, Timeouts, Txn};

/// For a call that must go to another member: a first attempt that is in vain, etcd's own election (1 to
/// 1.5 s), an attempt after it; twice that on a busy machine.
const FAILOVER: Duration = Duration::from_secs(5);

async fn put(store: &Etcd, key: &str, value: &str) -> Revision {
    match store.commit(&Txn::new().put(key, value)).await.unwrap() {
        Committed::Applied { revision } => revision,
        refused @ Committed::Refused { .. } => panic!("{refused:?}"),
    }
}

/// The cluster's configuration with this member first.
fn starting_at(cluster: &Cluster, index: usize, client: &str) -> EtcdConfig {
    let mut config = cluster.config(client);
    config.endpoints.rotate_left(index);
    config
}

/// Commits what counts up, and says how long each took; checks that none was applied twice.
async fn count_up(store: &Etcd, last: Revision, times: u32) -> (Revision, Duration) {
    let mut last = last;
    let mut slowest = Duration::ZERO;
    for n in 0..times {
        let started = Instant::now();
        let txn = Txn::new().when(Condition::Unchanged("count".into(), last)).put("count", n.to_string());
        // A sending that was applied and then repeated without the marker would be refused by its own write.
        match store.commit(&txn).await {
            Ok(Committed::Applied { revision }) => last = revision,
            other => panic!("{other:?} after {:?}", started.elapsed()),
        }
        slowest = slowest.max(started.elapsed());
    }
    (last, slowest)
}

#[tokio::test]
#[ignore = "needs etcd, setpriv"]
async fn a_frozen_leader_costs_one_failover_and_its_thaw_changes_nothing() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let store = Etcd::open(starting_at(&cluster, leader, "alpha")).await.unwrap();
    let first = put(&store, "count", "start").await;
    let mut watch = store.watch("count", first).await.unwrap();
    let (last, _) = count_up(&store, first, 1).await;
    assert_eq!(watch.next().await.unwrap().revision, last);

    cluster.freeze(leader);
    let frozen = Instant::now();
    let (last, slowest) = count_up(&store, last, 10).await;
    assert!(slowest < FAILOVER, "a commit took {slowest:?}");
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        seen.push(timeout(LIMIT, watch.next()).await.expect("the watch goes on").unwrap().revision);
    }
    eprintln!("frozen leader: slowest commit {slowest:?}, watch complete after {:?}", frozen.elapsed());
    assert_eq!(seen.len(), 10, "{seen:?}");
    let entry = timeout(FAILOVER, store.get("count")).await.expect("reads go on").unwrap().unwrap();
    assert_eq!(entry.modified, last);

    // What the frozen member still held when it fell silent arrives late, and must not be applied.
    cluster.thaw(leader);
    let (last, _) = count_up(&store, last, 10).await;
    assert_eq!(store.get("count").await.unwrap().unwrap().modified, last);
}

#[tokio::test]
#[ignore = "needs etcd, setpriv"]
async fn a_member_that_falls_silent_is_passed_by_within_one_attempt() {
    let cluster = Cluster::start(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    let proxy = Proxy::to(&cluster.endpoint(follower)).await;
    let mut config = starting_at(&cluster, follower, "alpha");
    config.endpoints[0] = proxy.endpoint();
    let attempt = config.timeouts.attempt;
    let store = Etcd::open(config).await.unwrap();
    let first = put(&store, "count", "start").await;
    let mut watch = store.watch("count", first).await.unwrap();
    let (last, _) = count_up(&store, first, 1).await;
    assert_eq!(watch.next().await.unwrap().revision, last);
    assert_eq!(proxy.accepted(), 2, "one connection for calls, one for the watch");

    proxy.set(Mode::Silent);
    let silent = Instant::now();
    let (last, slowest) = count_up(&store, last, 1).await;
    let seen = timeout(LIMIT, watch.next()).await.expect("the watch goes on").unwrap();
    eprintln!("silent member: commit {slowest:?}, watch {:?}", silent.elapsed());
    assert!(slowest >= attempt && slowest < FAILOVER, "{slowest:?}");
    assert_eq!(seen.revision, last);
    // The silent member is asked last from then on.
    let (_, slowest) = count_up(&store, last, 5).await;
    assert!(slowest < attempt, "{slowest:?}");
}

/// A store whose first member is behind a proxy, with one connection and one marker in use.
async fn proxied(cluster: &Cluster) -> (Proxy, Etcd, Revision) {
    let proxy = Proxy::to(&cluster.endpoint(0)).await;
    let mut config = cluster.config("alpha");
    config.endpoints[0] = proxy.endpoint();
    let store = Etcd::open(config).await.unwrap();
    let first = put(&store, "a", "first").await;
    (proxy, store, first)
}

#[tokio::test]
#[ignore = "needs etcd, setpriv"]
async fn a_commit_whose_answer_was_lost_is_answered_by_what_became_of_it() {
    let cluster = Cluster::start(3).await;
    let (proxy, store, first) = proxied(&cluster).await;
    let mut watch = store.watch("", first).await.unwrap();
    proxy.set(Mode::AnswersLost);
    // Applied at the first sending: the second one's condition no longer holds, by the commit's own doing.
    let txn = Txn::new().when(Condition::Unchanged("a".into(), first)).put("a", "second");
    let started = Instant::now();
    let Ok(Committed::Applied { revision }) = store.commit(&txn).await else { panic!("it was applied") };
    assert!(started.elapsed() >= Timeouts::default().attempt, "its first answer was lost");
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.modified), (&b"second"[..], revision));
    // Without a condition it would be written twice.
    assert_eq!(watch.next().await.unwrap().revision, revision);
    let last = put(&store, "b", "end").await;
    assert_eq!(watch.next().await.unwrap().revision, last);
}

#[tokio::test]
#[ignore = "needs etcd, setpriv"]
async fn a_commit_that_arrives_late_changes_nothing_more() {
    let cluster = Cluster::start(3).await;
    for refused_first in [false, true] {
        let (proxy, store, _) = proxied(&cluster).await;
        let control = Proxy::to(&cluster.endpoint(0)).await;
        let mut raw = cluster.admin_at(&control.endpoint()).await;
        raw.get("x", None).await.unwrap();
        // Held back at the first member, decided at the second: applied, or refused by its condition.
        let value = vec![b'v'; 8192];
        let txn = match refused_first {
            false => Txn::new().put("a", value.clone()),
            true => Txn::new().when(Condition::Absent("a".into())).put("a", value.clone()),
        };
        proxy.set(Mode::Silent);
        control.set(Mode::Silent);
        let (outcome, (), ()) =
            tokio::join!(store.commit(&txn), deaf_once_held(&proxy, value.len()), async {
                let put = raw.put("control", value.clone(), None);
                tokio::select! {
                    answer = put => panic!("{answer:?}"),
                    () = deaf_once_held(&control, value.len()) => {}
                }
            });
        let outcome = outcome.unwrap();
        assert_eq!(matches!(outcome, Committed::Refused { .. }), refused_first, "{outcome:?}");
        // From here on it would have an effect: its condition would hold, its write would be seen.
        // (Not removed through the store, whose next commit moves the marker in any case.)
        let mut admin = cluster.admin(1).await;
        admin.delete(format!("{}a", cluster::ROOT), None).await.unwrap();
        proxy.set(Mode::Late);
        control.set(Mode::Late);
        // What was held back does arrive: the control, sent without the store, is applied.
        let started = Instant::now();
        while admin.get("control", None).await.unwrap().kvs().is_empty() {
            assert!(started.elapsed() < LIMIT, "the control did not arrive");
        }
        admin.delete("control", None).await.unwrap();
        for _ in 0..5 {
            admin.put("fence", "", None).await.unwrap();
        }
        assert_eq!(store.get("a").await.unwrap(), None, "applied late; refused first: {refused_first}");
    }
}

/// Waits until so much is held back, then lets nothing more in.
async fn deaf_once_held(proxy: &Proxy, bytes: usize) {
    while proxy.held() < bytes {
        tokio::task::yield_now().await;
    }
    proxy.set(Mode::Deaf);
}

#[tokio::test]
#[ignore = "needs etcd, setpriv"]
async fn without_a_quorum_reads_are_unavailable_and_commits_say_what_is_known() {
    let mut cluster = Cluster::start(3).await;
    let request = Duration::from_secs(3);
    let mut config = cluster.config("alpha");
    config.timeouts = Timeouts { request, ..Timeouts::default() };
    let store = Etcd::open(config).await.unwrap();
    let base = put(&store, "lone", "start").await;
    cluster.freeze(0);
    cluster.freeze(1);
    let guarded = |value: &str| {
        Txn::new().when(Condition::Unchanged("lone".into(), base)).put("lone", value.to_owned())
    };
    let started = Instant::now();
    let error = store.commit(&guarded("unclear")).await.unwrap_err();
    assert!(matches!(error, StoreError::Ambiguous { .. }), "{error:?}");
    let error = store.get("lone").await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    let both = started.elapsed();
    assert!(both < 2 * request + Duration::from_secs(2), "{both:?}");

    // After the thaw the unclear commit was applied or not; the same write under the same condition decides it.
    cluster.thaw(0);
    cluster.thaw(1);
    let started = Instant::now();
    let outcome = loop {
        match store.commit(&guarded("again")).await {
            Ok(outcome) => break outcome,
            Err(StoreError::Ambiguous { .. } | StoreError::Unavailable { .. })
                if started.elapsed() < LIMIT => {}
            Err(error) => panic!("{error:?}"),
        }
    };
    let value = String::from_utf8(store.get("lone").await.unwrap().unwrap().value).unwrap();
    match outcome {
        Committed::Applied { .. } => assert_eq!(value, "again"),
        Committed::Refused { .. } => assert!(["unclear", "again"].contains(&value.as_str()), "{value}"),
    }

    // A member that is gone refuses connections: nothing was sent, and the error says so.
    for index in 0..3 {
        cluster.kill(index);
    }
    let fresh = Etcd::open(cluster.config("beta")).await.unwrap();
    let error = fresh.commit(&guarded("never")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    let said = understudy_store::chain(&error);
    assert!(said.contains("refused"), "{said}");
    // An operator with several clusters is told which one.
    assert!(cluster.endpoints().iter().all(|endpoint| said.contains(endpoint)), "{said}");
}

#[tokio::test]
#[ignore = "needs etcd, setpriv"]
async fn a_watch_outlives_a_cluster_that_was_away_altogether() {
    let mut cluster = Cluster::start(3).await;
    let store = cluster.store("alpha").await;
    let first = put(&store, "a", "1").await;
    let mut watch = store.watch("", first).await.unwrap();
    for index in 0..3 {
        cluster.kill(index);
    }
    assert!(timeout(Duration::from_secs(1), watch.next()).await.is_err(), "nothing changes meanwhile");
    for index in 0..3 {
        cluster.restart(index);
    }
    let started = Instant::now();
    let revision = loop {
        match store.commit(&Txn::new().put("a", "2")).await {
            Ok(Committed::Applied { revision }) => break revision,
            Err(StoreError::Unavailable { .. } | StoreError::Ambiguous { .. })
                if started.elapsed() < LIMIT => {}
            other => panic!("{other:?}"),
        }
    };
    loop {
        let seen = timeout(LIMIT, watch.next()).await.expect("the watch goes on").unwrap();
        // An unclear commit before may have been applied as a change of its own.
        assert!(seen.revision > first && seen.revision <= revision, "{seen:?}");
        if seen.revision == revision {
            break;
        }
    }
}

#[tokio::test]
#[ignore = "needs etcd, setpriv"]
async fn two_processes_under_one_name_cannot_confuse_each_others_commits() {
    let cluster = Cluster::start(1).await;
    let (one, two) = (cluster.store("alpha").await, cluster.store("alpha").await);
    let mut last = put(&one, "count", "start").await;
    for _ in 0..10 {
        last = count_up(&one, last, 1).await.0;
        last = count_up(&two, last, 1).await.0;
    }
    assert_eq!(one.get("count").await.unwrap().unwrap().modified, last);
}

#[tokio::test]
#[ignore = "needs etcd, setpriv"]
async fn latencies_leave_room_below_the_attempts_limit() {
    let cluster = Cluster::start(3).await;
    let store = cluster.store("alpha").await;
    let first = put(&store, "measure", "0").await;
    let mut watch = store.watch("measure", first).await.unwrap();
    let (mut gets, mut commits, mut deliveries) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..100 {
        let started = Instant::now();
        let revision = put(&store, "measure", &n.to_string()).await;
        commits.push(started.elapsed());
        assert_eq!(watch.next().await.unwrap().revision, revision);
        deliveries.push(started.elapsed());
        let started = Instant::now();
        store.get("measure").await.unwrap();
        gets.push(started.elapsed());
    }
    for (what, times) in [("get", gets), ("commit", commits), ("commit to watch", deliveries)] {
        let mut times = times;
        times.sort();
        let (min, median, max) = (times[0], times[50], times[99]);
        eprintln!("{what}: min {min:?}, median {median:?}, max {max:?}");
        assert!(median < Timeouts::default().attempt / 2, "{what}: {median:?}");
    }
}
