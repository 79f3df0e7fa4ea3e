//! What this host reports is written over what it knows of, and never over anything newer.

use understudy_core::model::records::HostFacts;
use understudy_core::sets::SetFacts;
use understudy_store::{Committed, Txn};

use super::super::LeaseEvent;
use super::*;

impl Rig {
    async fn reported(&self) -> Option<HostFacts> {
        let key = Key::Facts(me()).to_string();
        let entry = self.runtime.parts.store.get(&key).await.unwrap()?;
        Some(crate::keys::decode(&key, &entry.value).unwrap())
    }

    /// Reports what has changed, and hears how that ended.
    async fn reports(&mut self) -> bool {
        self.runtime.publish_after = Default::default();
        let facts = Arc::new(self.runtime.facts());
        self.runtime.publish_facts(&facts, now());
        let heard = tokio::time::timeout(LIMIT, self.runtime.receiver.recv()).await.unwrap().unwrap();
        let Event::Published(written) = heard else { panic!("{heard:?}") };
        self.runtime.published(written.clone());
        written.is_some()
    }
}

/// D4: a write that was not answered came after a newer one.
#[tokio::test]
async fn a_report_is_written_over_the_one_that_this_agent_knows_of() {
    let mut rig = Rig::new();
    assert!(rig.reports().await, "there is none");
    rig.runtime.load_milli = 5_000;
    assert!(rig.reports().await, "over its own, which it has not heard of yet");
    // An earlier write of this host comes late.
    let late = HostFacts { load_milli: 7, ..rig.reported().await.unwrap() };
    let txn = Txn::new().put(Key::Facts(me()).to_string(), encode(&late));
    let done = rig.runtime.parts.store.commit(&txn).await.unwrap();
    let Committed::Applied { revision } = done else { panic!("{done:?}") };
    rig.runtime.load_milli = 9_000;
    assert!(!rig.reports().await);
    assert_eq!(rig.reported().await, Some(late.clone()));
    // It hears of it, and says what is so.
    let entry = Entry { key: Key::Facts(me()).to_string(), value: encode(&late), modified: revision };
    rig.entries.push(entry);
    rig.runtime
        .take(Event::Listed { listing: Listing { revision, entries: rig.entries.clone() }, renewals: true });
    assert!(rig.reports().await);
    assert_eq!(rig.reported().await.unwrap().load_milli, 9_000);
}

/// The facts of an event are worked out once, for store, metrics and snapshot.
#[tokio::test]
async fn what_is_published_is_what_is_so_whatever_came_before() {
    let mut rig = Rig::new();
    let mut shown = rig.runtime.snapshots.subscribe();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    for _ in 0..300 {
        match below(6) {
            0 => rig.runtime.take(Event::Load(u32::try_from(below(40)).unwrap() * 100)),
            1 => {
                let text = (below(2) == 0).then(|| format!("wrong {}", below(3)));
                rig.runtime.take(Event::Condition { about: "libvirt", text });
            }
            2 => {
                let phases = [Phase::Idle, Phase::Booting, Phase::Ready];
                let phase = phases[usize::try_from(below(3)).unwrap()].clone();
                rig.knows(instance(u128::from(below(3)) + 1), phase, None);
            }
            3 => {
                let ready = BTreeSet::from([below(3)]);
                rig.runtime.policy_facts = SetFacts { ready, ..SetFacts::default() };
            }
            4 => {
                let fault = (below(2) == 0).then(|| "gone".to_owned());
                rig.runtime.take(Event::Lease(LeaseEvent::Guard(fault)));
            }
            _ => {
                let heard = tokio::time::timeout(Duration::from_millis(1), rig.runtime.receiver.recv()).await;
                if let Ok(Some(event)) = heard {
                    rig.runtime.take(event);
                }
            }
        }
        rig.runtime.advance();
        assert_eq!(shown.borrow_and_update().facts.as_deref(), Some(&rig.runtime.facts()));
    }
    let started = std::time::Instant::now();
    while rig.reported().await != Some(rig.runtime.facts()) {
        assert!(started.elapsed() < LIMIT, "{:#?}", rig.reported().await);
        let heard = tokio::time::timeout(Duration::from_millis(50), rig.runtime.receiver.recv()).await;
        if let Ok(Some(event)) = heard {
            rig.runtime.take(event);
        }
        rig.runtime.advance();
    }
}
