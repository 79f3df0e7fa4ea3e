//! Checks of reads, listings and single commits.

use super::{Rig, applied, get, list, put, refused, unchanged};
use crate::{
    Committed, Condition, InvalidRequest, Revision, StoreError, TXN_OPERATIONS_MAX, Txn, VALUE_BYTES_MAX,
};

/// Values are bytes; `modified` is the revision of the commit; other connections see it at once.
pub async fn a_record_is_read_as_it_was_written(rig: &dyn Rig) {
    let (one, two) = (rig.connect().await, rig.connect().await);
    assert_eq!(get(&*one, "rw/none").await, None);
    for value in [&b""[..], b"text", &[0, 255, 10, 0]] {
        let revision = applied(&*one, Txn::new().put("rw/key", value)).await;
        let entry = get(&*two, "rw/key").await.expect("the record is there");
        assert_eq!((entry.key.as_str(), &*entry.value, entry.modified), ("rw/key", value, revision));
    }
    let before = get(&*one, "rw/key").await.expect("the record is there").modified;
    let deleted = applied(&*one, Txn::new().delete("rw/key")).await;
    assert!(deleted > before, "{deleted} after {before}");
    assert_eq!(get(&*two, "rw/key").await, None);
    let again = put(&*two, "rw/key", "again").await;
    assert!(again > deleted, "{again} after {deleted}");
}

/// A prefix is a text, not a path; keys come in the order of their bytes.
pub async fn a_listing_has_its_prefix_and_its_order(rig: &dyn Rig) {
    let store = rig.connect().await;
    for key in ["ls/b", "ls/a/2", "ls/a/10", "ls/ab", "lsx", "ls/ä", "lr/z"] {
        put(&*store, key, key).await;
    }
    let last = put(&*store, "ls/a", "ls/a").await;
    let table: [(&str, &[&str]); 5] = [
        ("ls/", &["ls/a", "ls/a/10", "ls/a/2", "ls/ab", "ls/b", "ls/ä"]),
        ("ls/a", &["ls/a", "ls/a/10", "ls/a/2", "ls/ab"]),
        ("ls/a/", &["ls/a/10", "ls/a/2"]),
        ("ls/c", &[]),
        ("lsx", &["lsx"]),
    ];
    for (prefix, expected) in table {
        let listing = list(&*store, prefix).await;
        let keys: Vec<&str> = listing.entries.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(keys, expected, "prefix {prefix:?}");
        assert!(listing.entries.iter().all(|entry| entry.key.as_bytes() == entry.value), "{listing:?}");
        assert!(listing.revision >= last, "{} is not before {last}", listing.revision);
    }
    let everything = list(&*store, "").await;
    assert!(everything.entries.iter().any(|entry| entry.key == "lr/z"));
    assert!(everything.entries.iter().all(|entry| !entry.key.starts_with('.')), "nothing of the adapter's");
}

/// Every condition, on a record that is there, was changed, and is absent.
pub async fn each_condition_is_judged_for_its_key(rig: &dyn Rig) {
    let store = rig.connect().await;
    let old = put(&*store, "cond/there", "1").await;
    let new = put(&*store, "cond/there", "2").await;
    let there = || "cond/there".to_owned();
    let absent = || "cond/absent".to_owned();
    let table = [
        (Condition::Present(there()), true),
        (Condition::Absent(there()), false),
        (Condition::Unchanged(there(), new), true),
        (Condition::Unchanged(there(), old), false),
        (Condition::Unchanged(there(), Revision(new.0 + 1)), false),
        (Condition::Present(absent()), false),
        (Condition::Absent(absent()), true),
        (Condition::Unchanged(absent(), new), false),
    ];
    for (condition, holds) in table {
        let txn = Txn::new().when(condition.clone()).put("cond/result", format!("{condition:?}"));
        if holds {
            applied(&*store, txn).await;
        } else {
            assert_eq!(refused(&*store, txn).await, [condition.key()], "{condition:?}");
        }
    }
}

/// All conditions must hold; the refusal names those that did not; nothing is written.
pub async fn a_refused_commit_changes_nothing(rig: &dyn Rig) {
    let store = rig.connect().await;
    put(&*store, "atom/a", "1").await;
    put(&*store, "atom/b", "1").await;
    let before = list(&*store, "atom/").await;
    let txn = Txn::new()
        .when(unchanged(&before.entries[0]))
        .when(Condition::Absent("atom/b".into()))
        .when(Condition::Present("atom/c".into()))
        .put("atom/a", "2")
        .delete("atom/b")
        .put("atom/c", "2");
    let mut failed = refused(&*store, txn).await;
    failed.sort();
    assert_eq!(failed, ["atom/b", "atom/c"]);
    assert_eq!(list(&*store, "atom/").await.entries, before.entries);
}

/// Conditions alone are a question; to delete what is not there changes no record.
pub async fn a_check_without_writes_changes_nothing(rig: &dyn Rig) {
    let store = rig.connect().await;
    let revision = put(&*store, "check/a", "1").await;
    let holds = Txn::new().when(Condition::Unchanged("check/a".into(), revision));
    assert!(applied(&*store, holds).await >= revision);
    let fails = Txn::new().when(Condition::Absent("check/a".into()));
    assert_eq!(refused(&*store, fails).await, ["check/a"]);
    applied(&*store, Txn::new().delete("check/none")).await;
    applied(&*store, Txn::new()).await;
    let after = list(&*store, "check/").await;
    assert_eq!(after.entries.len(), 1);
    assert_eq!(after.entries[0].modified, revision);
}

/// Bad requests are refused by their own kind, before they change anything.
pub async fn wrong_requests_are_refused(rig: &dyn Rig) {
    let store = rig.connect().await;
    let big = vec![7; VALUE_BYTES_MAX + 1];
    let many = (0..=TXN_OPERATIONS_MAX).fold(Txn::new(), |txn, n| txn.put(format!("bad/{n}"), "x"));
    type Expected = fn(&InvalidRequest) -> bool;
    let table: [(Txn, Expected); 6] = [
        (Txn::new().put("", "x"), |e| matches!(e, InvalidRequest::Key(_))),
        (Txn::new().put(".bad", "x"), |e| matches!(e, InvalidRequest::Key(_))),
        (Txn::new().when(Condition::Absent("a\0".into())), |e| matches!(e, InvalidRequest::Key(_))),
        (
            Txn::new().put("bad/a", big),
            |e| matches!(e, InvalidRequest::Value { key, bytes } if key == "bad/a" && *bytes == VALUE_BYTES_MAX + 1),
        ),
        (many, |e| matches!(e, InvalidRequest::TxnOperations(_))),
        (Txn::new().put("bad/a", "x").delete("bad/a"), |e| matches!(e, InvalidRequest::WrittenTwice(_))),
    ];
    for (number, (txn, expected)) in table.into_iter().enumerate() {
        let result = store.commit(&txn).await;
        assert!(matches!(&result, Err(StoreError::Invalid(e)) if expected(e)), "case {number}: {result:?}");
    }
    assert!(matches!(store.get("").await, Err(StoreError::Invalid(_))));
    assert!(matches!(store.list(".").await, Err(StoreError::Invalid(_))));
    assert!(matches!(store.watch(".", Revision(0)).await, Err(StoreError::Invalid(_))));
    assert!(list(&*store, "bad/").await.entries.is_empty());
}

/// Values and transactions at the limits; a listing beyond gRPC's usual 4 MiB.
pub async fn the_biggest_requests_work(rig: &dyn Rig) {
    let store = rig.connect().await;
    for n in 0..6_u8 {
        applied(&*store, Txn::new().put(format!("big/{n}"), vec![n; VALUE_BYTES_MAX])).await;
    }
    let listing = list(&*store, "big/").await;
    assert_eq!(listing.entries.len(), 6);
    for (n, entry) in (0..6_u8).zip(&listing.entries) {
        assert!(entry.value.len() == VALUE_BYTES_MAX && entry.value.iter().all(|&byte| byte == n), "{n}");
    }
    let key = |n| format!("wide/{n:03}");
    let wide = (0..TXN_OPERATIONS_MAX)
        .fold(Txn::new(), |txn, n| txn.when(Condition::Absent(key(n))).put(key(n), "x"));
    applied(&*store, wide.clone()).await;
    assert_eq!(refused(&*store, wide).await.len(), TXN_OPERATIONS_MAX);
    assert_eq!(list(&*store, "wide/").await.entries.len(), TXN_OPERATIONS_MAX);
}

/// First and last of 300 records are always written together; no listing shows them apart.
pub async fn a_listing_of_many_pages_is_of_one_revision(rig: &dyn Rig) {
    let (store, writer) = (rig.connect().await, rig.connect().await);
    let key = |n: usize| format!("page/{n:03}");
    for hundred in 0..3 {
        let txn = (0..100).fold(Txn::new(), |txn, n| txn.put(key(hundred * 100 + n), "0"));
        applied(&*store, txn).await;
    }
    let (first, last) = (key(0), key(299));
    let writing = tokio::spawn(async move {
        for n in 1..=100 {
            let both = Txn::new().put(&*first, n.to_string()).put(&*last, n.to_string());
            let committed = writer.commit(&both).await.expect("the commit is answered");
            assert!(matches!(committed, Committed::Applied { .. }));
        }
    });
    let mut listings = 0;
    while !writing.is_finished() || listings == 0 {
        let listing = list(&*store, "page/").await;
        assert_eq!(listing.entries.len(), 300);
        let (first, last) = (&listing.entries[0], &listing.entries[299]);
        assert_eq!(first.value, last.value, "at revision {}", listing.revision);
        assert!(last.modified <= listing.revision);
        listings += 1;
    }
    writing.await.expect("the writer ends well");
}
