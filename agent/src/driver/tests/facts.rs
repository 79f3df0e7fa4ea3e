//! What this host reports is written over what it knows of, and never over anything newer.

use understudy_core::records::HostFacts;
use understudy_store::{Committed, Txn};

use super::*;

impl Rig {
    async fn reported(&self) -> Option<HostFacts> {
        let key = Key::Facts(me()).to_string();
        let entry = self.driver.parts.store.get(&key).await.unwrap()?;
        Some(crate::keys::decode(&key, &entry.value).unwrap())
    }

    /// Reports what has changed, and hears how that ended.
    async fn reports(&mut self) -> bool {
        self.driver.publish_after = Default::default();
        self.driver.publish_facts(now());
        let heard = tokio::time::timeout(LIMIT, self.driver.receiver.recv()).await.unwrap().unwrap();
        let Event::Published(written) = heard else { panic!("{heard:?}") };
        self.driver.published(written.clone());
        written.is_some()
    }
}

/// D4: a write that was not answered came after a newer one.
#[tokio::test]
async fn a_report_is_written_over_the_one_that_this_agent_knows_of() {
    let mut rig = Rig::new();
    assert!(rig.reports().await, "there is none");
    rig.driver.load_milli = 5_000;
    assert!(rig.reports().await, "over its own, which it has not heard of yet");
    // An earlier write of this host comes late.
    let late = HostFacts { load_milli: 7, ..rig.reported().await.unwrap() };
    let txn = Txn::new().put(Key::Facts(me()).to_string(), encode(&late));
    let done = rig.driver.parts.store.commit(&txn).await.unwrap();
    let Committed::Applied { revision } = done else { panic!("{done:?}") };
    rig.driver.load_milli = 9_000;
    assert!(!rig.reports().await);
    assert_eq!(rig.reported().await, Some(late.clone()));
    // It hears of it, and says what is so.
    let entry = Entry { key: Key::Facts(me()).to_string(), value: encode(&late), modified: revision };
    rig.entries.push(entry);
    rig.driver
        .take(Event::Listed { listing: Listing { revision, entries: rig.entries.clone() }, renewals: true });
    assert!(rig.reports().await);
    assert_eq!(rig.reported().await.unwrap().load_milli, 9_000);
}
