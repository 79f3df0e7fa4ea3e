//! Checks of many clients at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use understudy_core::model::ids::HostId;

use super::{LIMIT, Rig, applied, get, list, put, refused};
use crate::election::{Bid, ElectionError, Term, lead, observe, resign};
use crate::{Committed, Condition, Store, StoreError, Txn};

fn host(n: usize) -> HostId {
    format!("host-{n}").parse().expect("a valid host name")
}

#[derive(Debug, Default)]
struct Tally {
    sure: u64,
    unclear: u64,
}

/// Adds one, over and over, by compare-and-swap.
async fn increment(store: Arc<dyn Store>, times: u64) -> Tally {
    let mut tally = Tally::default();
    let started = tokio::time::Instant::now();
    while tally.sure < times {
        assert!(started.elapsed() < LIMIT, "{tally:?}");
        let Ok(entry) = store.get("race/count").await else { continue };
        let (condition, value) = match &entry {
            None => (Condition::Absent("race/count".into()), 0),
            Some(entry) => {
                let text = String::from_utf8_lossy(&entry.value);
                (super::unchanged(entry), text.parse::<u64>().expect("a number"))
            }
        };
        let txn = Txn::new().when(condition).put("race/count", (value + 1).to_string());
        match store.commit(&txn).await {
            Ok(Committed::Applied { .. }) => tally.sure += 1,
            Ok(Committed::Refused { failed, .. }) => assert_eq!(failed, ["race/count"]),
            Err(StoreError::Ambiguous { .. }) => tally.unclear += 1,
            Err(StoreError::Unavailable { .. }) => {}
            Err(error) => panic!("{}", crate::chain(&error)),
        }
    }
    tally
}

/// Eight clients count together while the store is disturbed. The sum lies between what was surely applied and
/// that with what was unclear.
pub async fn racing_increments_are_neither_lost_nor_doubled(rig: &dyn Rig) {
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(tokio::spawn(increment(rig.connect().await, 12)));
    }
    rig.disturb().await;
    let mut sum = Tally::default();
    for client in clients {
        let tally = client.await.expect("the client ends well");
        sum.sure += tally.sure;
        sum.unclear += tally.unclear;
    }
    rig.heal().await;
    let entry = get(&*rig.connect().await, "race/count").await.expect("somebody counted");
    let count: u64 = String::from_utf8_lossy(&entry.value).parse().expect("a number");
    assert!(count >= sum.sure && count <= sum.sure + sum.unclear, "{count} for {sum:?}");
}

/// Five contenders take the lead from each other. Each term is won once, each holder's writes are its own.
pub async fn a_term_has_one_holder(rig: &dyn Rig) {
    let won: Arc<Mutex<BTreeMap<Term, Vec<usize>>>> = Arc::default();
    let mut contenders = Vec::new();
    for n in 0..5 {
        let (store, won) = (rig.connect().await, Arc::clone(&won));
        contenders.push(tokio::spawn(async move { contend(&*store, n, &won).await }));
    }
    rig.disturb().await;
    for contender in contenders {
        contender.await.expect("the contender ends well");
    }
    rig.heal().await;
    let won = std::mem::take(&mut *won.lock().expect("nobody panicked"));
    for (term, holders) in &won {
        assert_eq!(holders.len(), 1, "term {term}: {holders:?}");
    }
    // Each write under a leadership carries its term; the terms of the writes never go back.
    let store = rig.connect().await;
    let writes = list(&*store, "elect/write/").await;
    let mut in_order: Vec<_> = writes.entries.iter().collect();
    in_order.sort_by_key(|entry| entry.modified);
    assert!(!in_order.is_empty());
    assert!(in_order.is_sorted_by_key(|entry| &entry.value), "{in_order:?}");
}

async fn contend(store: &dyn Store, me: usize, won: &Mutex<BTreeMap<Term, Vec<usize>>>) {
    let mut wins = 0;
    let started = tokio::time::Instant::now();
    while wins < 6 {
        assert!(started.elapsed() < LIMIT, "contender {me} won only {wins} times");
        let previous = match observe(store, "elect/leader").await {
            Ok(previous) => previous,
            Err(ElectionError::Store(StoreError::Unavailable { .. })) => continue,
            Err(error) => panic!("{}", crate::chain(&error)),
        };
        match lead(store, "elect/leader", &host(me), previous.as_ref()).await {
            Ok(Bid::Won(mine)) => {
                wins += 1;
                won.lock().expect("nobody panicked").entry(mine.term()).or_default().push(me);
                // Fixed width, so that the order of the texts is the order of the numbers.
                let (key, value) = (format!("elect/write/{me}-{wins}"), format!("{:08}", mine.term().0));
                match store.commit(&Txn::new().when(mine.condition()).put(key, value)).await {
                    Ok(_) | Err(StoreError::Ambiguous { .. } | StoreError::Unavailable { .. }) => {}
                    Err(error) => panic!("{}", crate::chain(&error)),
                }
            }
            Ok(Bid::Lost(_))
            | Err(ElectionError::Store(StoreError::Ambiguous { .. } | StoreError::Unavailable { .. })) => {}
            Err(error) => panic!("{}", crate::chain(&error)),
        }
    }
}

/// The first leader, overthrown, can neither write nor lead on, nor confirm that it leads.
pub async fn a_former_leader_can_only_lose(rig: &dyn Rig) {
    let (one, two) = (rig.connect().await, rig.connect().await);
    let key = "former/leader";
    let Ok(Bid::Won(first)) = lead(&*one, key, &host(1), None).await else { panic!("the first bid wins") };
    assert_eq!((first.term(), first.host()), (Term(1), Some(&host(1))));
    applied(&*one, Txn::new().when(first.condition()).put("former/x", "1")).await;
    let Ok(Bid::Lost(Some(stands))) = lead(&*two, key, &host(2), None).await else { panic!("it stands") };
    assert_eq!(stands, first);
    let Ok(Bid::Won(second)) = lead(&*two, key, &host(2), Some(&stands)).await else {
        panic!("a bid over it wins")
    };
    assert_eq!(second.term(), Term(2));
    let late = Txn::new().when(first.condition()).put("former/x", "late");
    assert_eq!(refused(&*one, late).await, [key]);
    assert_eq!(refused(&*one, Txn::new().when(first.condition())).await, [key]);
    let lost = lead(&*one, key, &host(1), Some(&first)).await;
    assert!(matches!(&lost, Ok(Bid::Lost(Some(stands))) if *stands == second), "{lost:?}");
    assert_eq!(get(&*two, "former/x").await.expect("written once").value, b"1");
}

/// A resigned leadership stands without a host, and the next term follows on it.
pub async fn a_leadership_can_be_given_up(rig: &dyn Rig) {
    let store = rig.connect().await;
    let key = "resign/leader";
    let Ok(Bid::Won(mine)) = lead(&*store, key, &host(1), None).await else { panic!("the first bid wins") };
    assert!(resign(&*store, &mine).await.expect("it is answered"));
    assert!(!resign(&*store, &mine).await.expect("it is answered"), "it no longer stands");
    let vacant = observe(&*store, key).await.expect("it is read").expect("it stands");
    assert_eq!((vacant.host(), vacant.term()), (None, Term(1)));
    let Ok(Bid::Won(next)) = lead(&*store, key, &host(2), Some(&vacant)).await else { panic!("a bid wins") };
    assert_eq!(next.term(), Term(2));
    put(&*store, key, "no record").await;
    let unreadable = observe(&*store, key).await;
    assert!(matches!(&unreadable, Err(ElectionError::Unreadable { key: named, .. }) if named == key));
}
