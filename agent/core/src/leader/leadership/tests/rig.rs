//! An agent's leadership over a small store: three hosts with open leases, two nodes that have to be placed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fixture::{Cluster, host};
use crate::keys::{CLUSTER, Key, decode, encode};
use crate::leader::leadership::{
    Asking, BidOutcome, Effect, FailedPolicy, Input, Leadership, Seen, WriteOutcome, WriteRequest,
};
use crate::leader::{Policies, Question};
use crate::model::ids::{HostId, Term};
use crate::model::records::{HostFacts, LeaderRecord, LeaseExpiry, LeaseRecord, RenewalRecord};
use crate::model::units::Now;
use crate::model::view::Versioned;
use crate::sets::{PolicySetRecord, SetFacts};
use crate::store_cache::{Change, StoreCache, Stored};
use crate::transaction::{Transaction, Write};

const HOSTS: [&str; 3] = ["host1", "host2", "host3"];

#[derive(Clone)]
pub(super) struct Rig {
    pub(super) leadership: Leadership,
    pub(super) cache: StoreCache,
    pub(super) now: Now,
    pub(super) lease_open: bool,
    pub(super) policies: Policies,
    pub(super) sets: SetFacts,
    pub(super) failed: Vec<FailedPolicy>,
    /// What is being written, and what was asked.
    pub(super) writes: Vec<WriteRequest>,
    pub(super) asked: Vec<(Asking, Question)>,
    store: BTreeMap<String, (Vec<u8>, u64)>,
    revision: u64,
    /// Changes that the cache does not show yet.
    unseen: Vec<Unseen>,
}

/// The changes of one revision.
#[derive(Clone)]
struct Unseen {
    revision: u64,
    /// Each key with its new value; none where it was removed.
    changes: Vec<(String, Option<Vec<u8>>)>,
}

pub(super) fn me() -> HostId {
    host("host1")
}

pub(super) fn set(generation: u64) -> PolicySetRecord {
    PolicySetRecord {
        generation,
        components: BTreeMap::from([("spread".to_owned(), "aa".to_owned())]),
        settings: String::new(),
        suspended: BTreeMap::new(),
        restored: BTreeMap::new(),
        by: host("host2"),
    }
}

impl Rig {
    pub(super) fn new() -> Self {
        let mut cluster = Cluster::of(3);
        cluster.add(&["alice/display", "alice/exec-1"]);
        let mut rig = Self {
            leadership: Leadership::new(me(), cluster.bounds),
            cache: StoreCache::default(),
            now: cluster.now,
            lease_open: true,
            policies: Policies::default(),
            sets: SetFacts::default(),
            failed: Vec::new(),
            writes: Vec::new(),
            asked: Vec::new(),
            store: BTreeMap::new(),
            revision: 0,
            unseen: Vec::new(),
        };
        rig.list(true);
        for (host, seen) in &cluster.view.hosts {
            rig.put(Key::Lease(host.clone()), &seen.lease.value);
            rig.put(Key::Facts(host.clone()), seen.facts.as_deref().unwrap());
        }
        for (node, known) in cluster.view.nodes.iter() {
            rig.put(Key::Node(node.clone()), &known.value);
        }
        rig.show();
        rig
    }

    /// Leads in its first term, and the cache shows it.
    pub(super) fn leading() -> Self {
        let mut rig = Self::new();
        rig.win();
        rig.show();
        rig
    }

    pub(super) fn put<T: Serialize>(&mut self, key: Key, record: &T) -> u64 {
        assert!(matches!(self.commit(&Transaction::new().put(key, record)), WriteOutcome::Applied(_)));
        self.revision
    }

    pub(super) fn delete(&mut self, key: Key) {
        assert!(matches!(self.commit(&Transaction::new().delete(key)), WriteOutcome::Applied(_)));
    }

    pub(super) fn read<T: DeserializeOwned>(&self, key: &Key) -> Option<Versioned<T>> {
        let (value, revision) = self.store.get(&key.to_string())?;
        Some(Versioned { value: decode("", value).unwrap(), revision: *revision })
    }

    pub(super) fn report(&mut self, name: &str, edit: impl FnOnce(&mut HostFacts)) {
        let key = Key::Facts(host(name));
        let mut facts: HostFacts = self.read(&key).unwrap().value;
        edit(&mut facts);
        self.put(key, &facts);
    }

    /// Every host reports that it has a set of policies ready.
    pub(super) fn all_have(&mut self, generation: u64) {
        for name in HOSTS {
            self.report(name, |facts| {
                facts.policies.ready.insert(generation);
            });
        }
    }

    /// What the store makes of a transaction.
    pub(super) fn commit(&mut self, txn: &Transaction) -> WriteOutcome {
        let at = |key: &Key| self.store.get(&key.to_string()).map(|(_, revision)| *revision);
        let fails = txn.conditions.iter().filter(|condition| at(&condition.key) != condition.revision);
        let failed: Vec<String> = fails.map(|condition| condition.key.to_string()).collect();
        if !failed.is_empty() {
            return WriteOutcome::refused(&failed);
        }
        self.revision += 1;
        let mut changes = Vec::new();
        for write in &txn.writes {
            match write {
                Write::Put(key, value) => {
                    self.store.insert(key.to_string(), (value.clone(), self.revision));
                    changes.push((key.to_string(), Some(value.clone())));
                }
                Write::Delete(key) => {
                    self.store.remove(&key.to_string());
                    changes.push((key.to_string(), None));
                }
            }
        }
        self.unseen.push(Unseen { revision: self.revision, changes });
        WriteOutcome::Applied(self.revision)
    }

    /// The cache shows all that is written.
    pub(super) fn show(&mut self) {
        for Unseen { revision, changes } in std::mem::take(&mut self.unseen) {
            let changes = changes.iter().map(|(key, value)| match value {
                Some(value) => Change::Put(Stored { key, value, revision }),
                None => Change::Deleted(key),
            });
            assert!(self.cache.apply(revision, changes, self.now.boottime).is_empty());
        }
    }

    /// The store is listed anew, with the renewals or without.
    pub(super) fn list(&mut self, renewals: bool) {
        self.unseen.clear();
        let records = self.store.iter().filter(|(key, _)| renewals || key.starts_with(CLUSTER));
        let records = records.map(|(key, (value, revision))| Stored { key, value, revision: *revision });
        assert!(self.cache.replace((self.revision, renewals), records, self.now.boottime).is_empty());
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now = Now { boottime: self.now.boottime + time, wall: self.now.wall + time };
    }

    /// All hosts but one are heard of.
    pub(super) fn renew_all_but(&mut self, silent: &str) {
        for name in HOSTS.into_iter().filter(|name| *name != silent) {
            let record = RenewalRecord { number: 1, at: self.now.wall };
            self.put(Key::Renewal(host(name)), &record);
        }
    }

    pub(super) fn expire(&mut self, name: &str) {
        let key = Key::Lease(host(name));
        let mut record: LeaseRecord = self.read(&key).unwrap().value;
        let at = self.now.wall;
        record.expired = Some(LeaseExpiry { reason: "silent".to_owned(), silent_since: at, at });
        self.put(key, &record);
    }

    pub(super) fn look(&mut self) -> Vec<Effect> {
        let seen = Seen {
            cache: &self.cache,
            lease_open: self.lease_open,
            policies: self.policies,
            sets: &self.sets,
            failed: &self.failed,
        };
        let effects = self.leadership.handle(Input::Seen(seen), self.now);
        self.keep(&effects);
        effects
    }

    pub(super) fn tell(&mut self, input: Input<'_>) -> Vec<Effect> {
        let effects = self.leadership.handle(input, self.now);
        self.keep(&effects);
        effects
    }

    fn keep(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Write(request) => self.writes.push((**request).clone()),
                Effect::Ask(asking, question) => self.asked.push((*asking, question.clone())),
                Effect::Bid(_)
                | Effect::Resign(_)
                | Effect::AskCopies(..)
                | Effect::Judged(..)
                | Effect::Notice(_) => {}
            }
        }
    }

    /// The record of the term after this leadership, as the store takes it, or not.
    pub(super) fn bid(&mut self, by: &HostId, previous: Option<&Versioned<LeaderRecord>>) -> BidOutcome {
        let term = Term(previous.map_or(1, |previous| previous.value.term.0 + 1));
        let value = LeaderRecord { host: Some(by.clone()), term };
        let txn = Transaction::new()
            .when(Key::Leader, previous.map(|previous| previous.revision))
            .put(Key::Leader, &value);
        match self.commit(&txn) {
            WriteOutcome::Applied(revision) => BidOutcome::Won(Versioned { value, revision }),
            WriteOutcome::Refused { .. } | WriteOutcome::Unknown => BidOutcome::Lost,
        }
    }

    /// Bids and wins. The cache does not show it yet.
    pub(super) fn win(&mut self) -> Term {
        let effects = self.look();
        let [.., Effect::Bid(previous)] = effects.as_slice() else { panic!("no bid: {effects:?}") };
        let won = self.bid(&me(), previous.as_ref());
        self.tell(Input::BidEnded(won));
        self.leadership.term().unwrap()
    }

    /// Another agent takes the leadership, whatever stands.
    pub(super) fn depose(&mut self, by: &str) {
        let known = self.read::<LeaderRecord>(&Key::Leader);
        assert!(matches!(self.bid(&host(by), known.as_ref()), BidOutcome::Won(_)));
    }

    /// The first write under way ends.
    pub(super) fn end_write(&mut self, outcome: WriteOutcome) -> Vec<Effect> {
        let request = self.writes.remove(0);
        self.tell(Input::Written(request.id, outcome))
    }

    /// Every write under way is tried, and its outcome told.
    pub(super) fn end_all_writes(&mut self) {
        while let Some(request) = self.writes.first().cloned() {
            let outcome = self.commit(&request.transaction);
            self.end_write(outcome);
        }
    }

    pub(super) fn written(&self, key: &Key) -> Vec<u8> {
        self.store.get(&key.to_string()).map(|(value, _)| value.clone()).unwrap_or_default()
    }

    pub(super) fn holds<T: Serialize>(&self, key: &Key, record: &T) -> bool {
        self.written(key) == encode(record)
    }
}
