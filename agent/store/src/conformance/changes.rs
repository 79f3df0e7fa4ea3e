//! Checks of watches.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::{LIMIT, Rig, applied, batch, list, next, put, watch};
use crate::{Batch, Change, Committed, Entry, Listing, Revision, Store, StoreError, Txn, WatchError};

type Records = BTreeMap<String, Entry>;

fn records(listing: Listing) -> Records {
    listing.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect()
}

/// Applies a batch and checks that it can only be the next one.
fn follow(records: &mut Records, seen: &mut Revision, batch: &Batch) {
    assert!(batch.revision > *seen, "revision {} after {seen}", batch.revision);
    assert!(!batch.changes.is_empty());
    assert!(batch.changes.is_sorted_by(|a, b| a.key() < b.key()), "{batch:?}");
    *seen = batch.revision;
    for change in &batch.changes {
        match change {
            Change::Put(entry) => {
                assert_eq!(entry.modified, batch.revision);
                records.insert(entry.key.clone(), entry.clone());
            }
            Change::Deleted { key, revision } => {
                assert_eq!(*revision, batch.revision);
                assert!(records.remove(key).is_some(), "'{key}' was removed twice, or never seen");
            }
        }
    }
}

/// Writes, rewrites and removes records, some together; gives the revisions of what was surely applied.
/// Commits that fail while the store is disturbed are tried again: the watch must show what came of them.
fn scribble(store: Arc<dyn Store>, prefix: &'static str, commits: usize) -> JoinHandle<Vec<Revision>> {
    tokio::spawn(async move {
        let mut revisions = Vec::new();
        for n in 0..commits {
            let key = |n: usize| format!("{prefix}{}", n % 7);
            let txn = match n % 3 {
                0 => Txn::new().put(key(n), n.to_string()),
                1 => Txn::new().put(key(n), n.to_string()).delete(key(n + 3)),
                _ => Txn::new().put(key(n), n.to_string()).put(key(n + 1), n.to_string()),
            };
            let started = tokio::time::Instant::now();
            loop {
                match store.commit(&txn).await {
                    Ok(Committed::Applied { revision }) => {
                        revisions.push(revision);
                        break;
                    }
                    Ok(Committed::Refused { .. }) => panic!("a commit without conditions was refused"),
                    Err(StoreError::Ambiguous { .. } | StoreError::Unavailable { .. })
                        if started.elapsed() < LIMIT => {}
                    Err(error) => panic!("{}", crate::chain(&error)),
                }
            }
        }
        revisions
    })
}

/// Two writers and three watches, one of which begins in the past, while the store is disturbed. What a watch
/// gives, applied to the listing it began at, is what the store holds.
pub async fn a_watch_gives_each_change_once_and_in_order(rig: &dyn Rig) {
    let store = rig.connect().await;
    let start = list(&*store, "once/").await.revision;
    let past = scribble(rig.connect().await, "once/", 10).await.expect("the writer ends well");
    let middle = list(&*store, "once/").await;
    let writers = [scribble(rig.connect().await, "once/", 60), scribble(rig.connect().await, "once/", 60)];
    let mut watches = Vec::new();
    for (from, base) in [
        (start, Records::new()),
        (middle.revision, records(middle.clone())),
        (middle.revision, records(middle)),
    ] {
        watches.push((watch(&*rig.connect().await, "once/", from).await, base, from, Vec::new()));
    }
    rig.disturb().await;
    let mut known = past;
    for writer in writers {
        known.extend(writer.await.expect("the writer ends well"));
    }
    rig.heal().await;
    let end = put(&*store, "once/end", "end").await;
    known.push(end);
    let expected = records(list(&*store, "once/").await);
    for (watch, mut base, mut seen, mut revisions) in watches {
        let mut watch = watch;
        let from = seen;
        while seen < end {
            let next = batch(&mut watch).await;
            follow(&mut base, &mut seen, &next);
            revisions.push(seen);
        }
        assert_eq!(base, expected, "from {from}");
        for revision in known.iter().filter(|revision| **revision > from) {
            assert!(revisions.binary_search(revision).is_ok(), "revision {revision} from {from}");
        }
    }
}

/// A deletion has its own revision; a deletion of nothing is no change.
pub async fn a_watch_sees_deletions(rig: &dyn Rig) {
    let store = rig.connect().await;
    let put_at = put(&*store, "del/a", "1").await;
    let mut watch = watch(&*store, "del/", put_at).await;
    let deleted = applied(&*store, Txn::new().delete("del/a")).await;
    let gone = Change::Deleted { key: "del/a".into(), revision: deleted };
    assert_eq!(batch(&mut watch).await, Batch { revision: deleted, changes: vec![gone] });
    applied(&*store, Txn::new().delete("del/a")).await;
    let again = put(&*store, "del/a", "2").await;
    assert_eq!(batch(&mut watch).await.revision, again);
}

/// Changes beside the prefix are not seen, not even in a batch that has others.
pub async fn a_watch_sees_only_its_prefix(rig: &dyn Rig) {
    let store = rig.connect().await;
    let from = put(&*store, "side/start", "x").await;
    let mut watch = watch(&*store, "side/in/", from).await;
    put(&*store, "side/in", "x").await;
    put(&*store, "side/inn", "x").await;
    let revision = applied(&*store, Txn::new().put("side/in/a", "1").put("side/out", "1")).await;
    let seen = batch(&mut watch).await;
    assert_eq!(seen.revision, revision);
    assert_eq!(seen.changes.iter().map(Change::key).collect::<Vec<_>>(), ["side/in/a"]);
}

/// What was committed together is seen together.
pub async fn a_transaction_is_one_batch(rig: &dyn Rig) {
    let store = rig.connect().await;
    let from = put(&*store, "one/z", "x").await;
    let mut watch = watch(&*store, "one/", from).await;
    let txn = Txn::new().put("one/c", "1").delete("one/z").put("one/a", "2");
    let revision = applied(&*store, txn).await;
    let seen = batch(&mut watch).await;
    assert_eq!(seen.revision, revision);
    assert_eq!(seen.changes.iter().map(Change::key).collect::<Vec<_>>(), ["one/a", "one/c", "one/z"]);
    assert!(matches!(&seen.changes[2], Change::Deleted { .. }), "{seen:?}");
}

/// A caller that ended its watch goes on from the last revision it saw.
pub async fn a_watch_goes_on_where_another_ended(rig: &dyn Rig) {
    let store = rig.connect().await;
    let mut from = put(&*store, "resume/start", "x").await;
    let mut written = Vec::new();
    for n in 0..6 {
        written.push(put(&*store, &format!("resume/{}", n % 2), &n.to_string()).await);
    }
    for revision in written {
        let mut watch = watch(&*store, "resume/", from).await;
        from = batch(&mut watch).await.revision;
        assert_eq!(from, revision);
    }
}

/// The caller learns that changes are gone; a new listing and a watch from it work.
pub async fn a_compacted_watch_is_told_so(rig: &dyn Rig) {
    let store = rig.connect().await;
    let from = put(&*store, "comp/a", "1").await;
    let last = put(&*store, "comp/a", "2").await;
    rig.compact().await;
    let mut late = watch(&*store, "comp/", from).await;
    let error = next(&mut late).await.expect_err("the change is gone");
    assert!(
        matches!(error, WatchError::Compacted { wanted, oldest } if wanted == from && oldest > wanted),
        "{error:?}"
    );
    let listing = list(&*store, "comp/").await;
    assert_eq!(listing.entries[0].modified, last);
    let mut anew = watch(&*store, "comp/", listing.revision).await;
    let change = put(&*store, "comp/a", "3").await;
    assert_eq!(batch(&mut anew).await.revision, change);
}

/// A store that is behind what the caller has seen was restored or replaced: no silent wait.
pub async fn a_watch_ahead_of_the_store_is_told_so(rig: &dyn Rig) {
    let store = rig.connect().await;
    let now = put(&*store, "ahead/a", "1").await;
    let from = Revision(now.0 + 1_000_000);
    let error = next(&mut watch(&*store, "ahead/", from).await).await.expect_err("it cannot be known");
    assert!(
        matches!(error, WatchError::Rewound { seen, current } if seen == from && current >= now),
        "{error:?}"
    );
}
