//! What the store in memory can be made to do wrong.

use std::time::Duration;

use super::*;
use crate::types::Condition;

fn put(value: &str) -> Txn {
    Txn::new().put("k", value)
}

async fn value(store: &MemoryStore) -> Option<Vec<u8>> {
    store.get("k").await.unwrap().map(|entry| entry.value)
}

#[tokio::test]
async fn each_fault_gives_its_error_and_its_outcome() {
    let table = [
        (CommitFault::Refused, false, false),
        (CommitFault::RequestLost, true, false),
        (CommitFault::AnswerLost, true, true),
        (CommitFault::Late, true, false),
    ];
    for (fault, ambiguous, applied) in table {
        let store = MemoryStore::new();
        store.fail_commits([fault]);
        let error = store.commit(&put("new")).await.unwrap_err();
        assert_eq!(matches!(error, StoreError::Ambiguous { .. }), ambiguous, "{fault:?}: {error}");
        assert_eq!(value(&store).await.is_some(), applied, "{fault:?}");
        assert!(matches!(store.commit(&put("next")).await, Ok(Committed::Applied { .. })), "{fault:?}");
    }
}

#[tokio::test]
async fn a_late_commit_is_judged_by_the_conditions_of_its_arrival() {
    let store = MemoryStore::new();
    store.fail_commits([CommitFault::Late, CommitFault::Late]);
    let guarded = put("late").when(Condition::Absent("k".into()));
    assert!(store.commit(&guarded).await.is_err());
    assert!(store.commit(&Txn::new().put("other", "late")).await.is_err());
    let _ = store.commit(&put("first")).await.unwrap();
    let outcomes = store.deliver_late();
    assert!(matches!(outcomes[0], Committed::Refused { .. }), "{outcomes:?}");
    assert!(matches!(outcomes[1], Committed::Applied { .. }), "{outcomes:?}");
    assert_eq!(value(&store).await.unwrap(), b"first");
    assert!(store.deliver_late().is_empty());
}

#[tokio::test]
async fn one_connection_cut_off_leaves_the_others_working() {
    let (a, b) = {
        let a = MemoryStore::new();
        let b = a.another();
        (a, b)
    };
    a.cut_off(true);
    assert!(matches!(a.get("k").await, Err(StoreError::Unavailable { .. })));
    assert!(matches!(a.list("").await, Err(StoreError::Unavailable { .. })));
    assert!(matches!(a.commit(&put("x")).await, Err(StoreError::Unavailable { .. })));
    assert!(matches!(a.watch("", Revision(0)).await, Err(StoreError::Unavailable { .. })));
    let _ = b.commit(&put("x")).await.unwrap();
    a.cut_off(false);
    assert_eq!(value(&a).await.unwrap(), b"x");
}

#[tokio::test(start_paused = true)]
async fn a_held_or_delayed_watch_sees_everything_later_and_in_order() {
    let store = MemoryStore::new();
    let writer = store.another();
    let mut watch = store.watch("", Revision(0)).await.unwrap();
    store.hold_watches(true);
    for n in 1..=3 {
        let _ = writer.commit(&put(&n.to_string())).await.unwrap();
    }
    let hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(hour, watch.next()).await.is_err(), "held");
    store.hold_watches(false);
    assert_eq!(watch.next().await.unwrap().revision, Revision(1));
    store.delay_watches(Duration::from_secs(10));
    let before = Instant::now();
    // A caller that gives up and asks again does not begin the delay anew.
    assert!(tokio::time::timeout(Duration::from_secs(6), watch.next()).await.is_err());
    assert_eq!(watch.next().await.unwrap().revision, Revision(2));
    assert_eq!(before.elapsed().as_secs(), 10);
    store.delay_watches(Duration::ZERO);
    assert_eq!(watch.next().await.unwrap().revision, Revision(3));
}

/// For a caller with a time of its own and no runtime: what is not shown is waited for, and nothing is lost.
#[tokio::test]
async fn a_watch_sees_nothing_after_what_it_is_shown() {
    let (writer, reader) = {
        let store = MemoryStore::new();
        (store.another(), store)
    };
    let mut watch = reader.watch("", Revision(0)).await.unwrap();
    for value in ["first", "second"] {
        assert!(writer.commit(&put(value)).await.is_ok());
    }
    for shown in [0, 1, 2] {
        reader.show_up_to(Some(Revision(shown)));
        let seen = async { watch.next().await.unwrap().revision };
        let seen = tokio::time::timeout(Duration::ZERO, seen).await.ok();
        assert_eq!(seen, (shown > 0).then_some(Revision(shown)));
    }
    assert!(writer.commit(&put("third")).await.is_ok());
    reader.heal();
    assert_eq!(watch.next().await.unwrap().revision, Revision(3));
}

#[tokio::test]
async fn a_watch_behind_a_short_history_is_told_so() {
    let store = MemoryStore::with_history(HistoryLimits { batches_max: 2, bytes_max: 1024 });
    let mut watch = store.watch("", Revision(0)).await.unwrap();
    for n in 0..5 {
        let _ = store.commit(&put(&n.to_string())).await.unwrap();
    }
    let error = watch.next().await.unwrap_err();
    let expected = (Revision(0), Revision(4));
    assert!(
        matches!(error, crate::WatchError::Compacted { wanted, oldest } if (wanted, oldest) == expected),
        "{error}"
    );
    let _ = store.commit(&Txn::new().put("k", vec![0; 2000])).await.unwrap();
    let mut watch = store.watch("", Revision(5)).await.unwrap();
    assert!(watch.next().await.is_err(), "a batch over the limit in bytes is not kept");
}
