//! Owns the following of the store: a listing, then every change that this connection's watch shows, in core's store cache.
//!
//! Promises: what is heard is what the product's store double holds and the product's keys and forms say; an agent of another
//! version cannot read the records of some things, and hears that they are there. Must not do: interpret, keep time; the
//! world says up to which revision a watch has come.
//!
//! Cost: each agent reads each change once; at a step without changes nothing is asked.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use understudy_core::keys::{ALL, CLUSTER, Key};
use understudy_core::model::units::Boottime;
use understudy_core::store_cache::{Change, StoreCache, Stored};
use understudy_store::{Batch, Condition, MemoryStore, Revision, Store, Watch, WatchError};

/// A record as another version writes it.
const FOREIGN: &[u8] = b"{\"newer\":true}";

/// What an agent cannot read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Foreign {
    /// The keys of the records that are of another version.
    pub(crate) keys: BTreeSet<String>,
    /// With the protection switched off it takes such a record for none.
    pub(crate) forgotten: bool,
}

/// What somebody has heard of the store: all of it up to one revision.
#[derive(Debug)]
pub(crate) struct CachedStore {
    connection: MemoryStore,
    watch: Watch,
    foreign: Foreign,
    cache: StoreCache,
}

impl CachedStore {
    /// Lists the store as it is, with the renewals of leases or without, and watches it from there.
    pub(crate) fn new(store: &MemoryStore, foreign: Foreign, renewals: bool, now: Boottime) -> Self {
        let (connection, what) = (store.another(), if renewals { ALL } else { CLUSTER });
        let listing = ready(connection.list(what)).expect("this connection is never cut off");
        let watch = ready(connection.watch(what, listing.revision)).expect("nor is its watch");
        let mut cache = StoreCache::default();
        let records = listing.entries.iter().filter_map(|entry| foreign.read(Stored::from(entry)));
        cache.replace((listing.revision.0, renewals), records, now);
        Self { connection, watch, foreign, cache }
    }

    /// Hears of the changes up to a revision; whether there were any.
    ///
    /// # Errors
    /// When the store does not keep them any more: it has to be listed anew.
    pub(crate) fn hear(&mut self, up_to: Revision, now: Boottime) -> Result<bool, WatchError> {
        let before = self.cache.revision;
        if up_to.0 > before {
            self.connection.show_up_to(Some(up_to));
        }
        while self.cache.revision < up_to.0 {
            let Some(batch) = poll(self.watch.next()).transpose()? else { break };
            self.take(&batch, now);
        }
        Ok(self.cache.revision > before)
    }

    /// The next change, for who follows without lag and takes each in by itself.
    pub(crate) fn next(&mut self) -> Option<Batch> {
        poll(self.watch.next()).map(|batch| batch.expect("who follows without lag never falls behind"))
    }

    pub(crate) fn take(&mut self, batch: &Batch, now: Boottime) {
        let foreign = &self.foreign;
        let changes = batch.changes.iter().filter_map(|change| match Change::from(change) {
            Change::Put(record) => foreign.read(record).map(Change::Put),
            Change::Deleted(key) => Some(Change::Deleted(key)),
        });
        self.cache.apply(batch.revision.0, changes, now);
    }
}

impl Deref for CachedStore {
    type Target = StoreCache;

    fn deref(&self) -> &StoreCache {
        &self.cache
    }
}

impl Foreign {
    /// A record as it is read, or nothing for one that is taken for none.
    fn read<'a>(&self, record: Stored<'a>) -> Option<Stored<'a>> {
        let hidden = self.keys.contains(record.key);
        match (hidden, self.forgotten) {
            (false, _) => Some(record),
            (true, false) => Some(Stored { value: FOREIGN, ..record }),
            (true, true) => None,
        }
    }
}

/// Holds while the record under a key is at the revision that was read; 0 stands for absent.
pub(crate) fn unchanged(key: &Key, revision: u64) -> Condition {
    match revision {
        0 => Condition::Absent(key.to_string()),
        revision => Condition::Unchanged(key.to_string(), Revision(revision)),
    }
}

/// What comes of a call to the store. No runtime is needed: its calls are ready at once, because it keeps everything in
/// memory under a lock that nobody holds; only a watch waits, for what it does not show yet.
pub(crate) fn ready<T>(call: impl Future<Output = T>) -> T {
    poll(call).expect("a store in memory waits in a watch only")
}

fn poll<T>(call: impl Future<Output = T>) -> Option<T> {
    match pin!(call).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
