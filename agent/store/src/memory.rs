//! A store in memory, for the simulator and for tests: deterministic, and it fails as it is told.
//!
//! Owns one set of records shared by any number of handles. Each handle stands for one host's connection and
//! has faults of its own: cut off, commits whose answers are lost, watches that lag.
//!
//! Promises: no clock, no randomness, no waiting except where a fault asks for it. Must not be used to keep
//! anything.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Store;
use crate::error::{BoxError, StoreError};
use crate::history::{History, HistoryLimits, Reader};
use crate::rules::{check_key, check_prefix, check_txn, describe, holds};
use crate::types::{Batch, Change, Committed, Entry, Listing, Revision, Txn, Write};
use crate::watch::Watch;

/// What happens to one commit of a handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFault {
    /// It is not sent: `Unavailable`.
    Refused,
    /// It is lost on its way: `Ambiguous`, and never applied.
    RequestLost,
    /// It is applied (or refused by its conditions) but the answer is lost: `Ambiguous`.
    AnswerLost,
    /// It is on its way: `Ambiguous` at first, decided at [`MemoryStore::deliver_late`].
    Late,
}

/// An injected fault as the cause of an error.
#[derive(Debug, thiserror::Error)]
#[error("injected: {0}")]
struct Injected(&'static str);

struct Cluster {
    records: BTreeMap<String, (Revision, Vec<u8>)>,
    revision: Revision,
    late: VecDeque<Txn>,
}

struct Shared {
    cluster: Mutex<Cluster>,
    history: Arc<History>,
}

struct Handle {
    cut_off: bool,
    faults: VecDeque<CommitFault>,
}

/// One connection to a store in memory.
pub struct MemoryStore {
    shared: Arc<Shared>,
    handle: Mutex<Handle>,
    gate: watch::Sender<GateState>,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("revision", &lock(&self.shared.cluster).revision)
            .finish_non_exhaustive()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing below panics between two changes that belong together.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::with_history(HistoryLimits::default())
    }

    /// An empty store that keeps only so much for its watches.
    #[must_use]
    pub fn with_history(limits: HistoryLimits) -> Self {
        let cluster = Cluster { records: BTreeMap::new(), revision: Revision(0), late: VecDeque::new() };
        let history = Arc::new(History::new(Revision(0), limits));
        Self::of(Arc::new(Shared { cluster: Mutex::new(cluster), history }))
    }

    fn of(shared: Arc<Shared>) -> Self {
        let handle = Mutex::new(Handle { cut_off: false, faults: VecDeque::new() });
        Self { shared, handle, gate: watch::Sender::new(GateState::default()) }
    }

    /// Another connection to the same records, without faults.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::of(Arc::clone(&self.shared))
    }

    /// Cuts this connection off, or restores it. While it is cut off, its calls fail as `Unavailable` and its
    /// watches see nothing.
    pub fn cut_off(&self, cut: bool) {
        lock(&self.handle).cut_off = cut;
        self.gate.send_modify(|gate| gate.cut_off = cut);
    }

    /// Lets the next commits of this connection fail, one fault each, in this order.
    pub fn fail_commits(&self, faults: impl IntoIterator<Item = CommitFault>) {
        lock(&self.handle).faults.extend(faults);
    }

    /// Holds back this connection's watches, or lets them go on: they then see all that they missed, in order.
    pub fn hold_watches(&self, held: bool) {
        self.gate.send_modify(|gate| gate.held = held);
    }

    /// Lets this connection's watches see nothing after `revision` until it is raised; `None` ends that. For a caller with a
    /// time of its own, who knows when each revision was written.
    pub fn show_up_to(&self, revision: Option<Revision>) {
        self.gate.send_modify(|gate| gate.shown = revision);
    }

    /// Delays each batch of this connection's watches by so much time of the runtime's clock.
    pub fn delay_watches(&self, delay: Duration) {
        self.gate.send_modify(|gate| gate.delay = delay);
    }

    /// Ends every fault of this connection; commits under way stay so.
    pub fn heal(&self) {
        *lock(&self.handle) = Handle { cut_off: false, faults: VecDeque::new() };
        self.gate.send_replace(GateState::default());
    }

    /// Delivers the commits that were [`CommitFault::Late`], of all connections, in the order of their
    /// sending. Their conditions are looked at now.
    pub fn deliver_late(&self) -> Vec<Committed> {
        let mut cluster = lock(&self.shared.cluster);
        let late: Vec<Txn> = cluster.late.drain(..).collect();
        late.iter().map(|txn| cluster.apply(txn, &self.shared.history)).collect()
    }

    /// Forgets every change up to `revision`: watches that still need one end as compacted.
    pub fn compact(&self, revision: Revision) {
        let newest = lock(&self.shared.cluster).revision;
        self.shared.history.compact(revision.min(newest));
    }

    fn admitted(&self, attempted: &dyn Fn() -> String) -> Result<(), StoreError> {
        if lock(&self.handle).cut_off {
            return Err(StoreError::Unavailable { attempted: attempted(), source: injected("cut off") });
        }
        Ok(())
    }
}

fn injected(what: &'static str) -> BoxError {
    Box::new(Injected(what))
}

impl Cluster {
    fn apply(&mut self, txn: &Txn, history: &History) -> Committed {
        let modified = |key: &str| self.records.get(key).map(|(modified, _)| *modified);
        let failed: Vec<String> = txn
            .conditions
            .iter()
            .filter(|condition| !holds(condition, modified(condition.key())))
            .map(|condition| condition.key().to_owned())
            .collect();
        if !failed.is_empty() {
            return Committed::Refused { revision: self.revision, failed };
        }
        let revision = Revision(self.revision.0 + 1);
        let mut changes = Vec::new();
        for write in &txn.writes {
            match write {
                Write::Put(key, value) => {
                    self.records.insert(key.clone(), (revision, value.clone()));
                    let entry = Entry { key: key.clone(), value: value.clone(), modified: revision };
                    changes.push(Change::Put(entry));
                }
                Write::Delete(key) => {
                    if self.records.remove(key).is_some() {
                        changes.push(Change::Deleted { key: key.clone(), revision });
                    }
                }
            }
        }
        if !changes.is_empty() {
            changes.sort_by(|a, b| a.key().cmp(b.key()));
            self.revision = revision;
            history.push(Batch { revision, changes });
        }
        Committed::Applied { revision: self.revision }
    }
}

fn entry(key: &str, (modified, value): &(Revision, Vec<u8>)) -> Entry {
    Entry { key: key.to_owned(), value: value.clone(), modified: *modified }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        self.admitted(&|| format!("read '{key}'"))?;
        Ok(lock(&self.shared.cluster).records.get(key).map(|record| entry(key, record)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        check_prefix(prefix)?;
        self.admitted(&|| format!("list '{prefix}'"))?;
        let cluster = lock(&self.shared.cluster);
        let from = cluster.records.range(prefix.to_owned()..);
        let entries = from
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, record)| entry(key, record))
            .collect();
        Ok(Listing { revision: cluster.revision, entries })
    }

    async fn commit(&self, txn: &Txn) -> Result<Committed, StoreError> {
        check_txn(txn)?;
        self.admitted(&|| format!("commit {}", describe(txn)))?;
        let fault = lock(&self.handle).faults.pop_front();
        let mut cluster = lock(&self.shared.cluster);
        let lost = match fault {
            None => return Ok(cluster.apply(txn, &self.shared.history)),
            Some(CommitFault::Refused) => {
                let attempted = format!("commit {}", describe(txn));
                return Err(StoreError::Unavailable { attempted, source: injected("not sent") });
            }
            Some(CommitFault::RequestLost) => "request lost",
            Some(CommitFault::AnswerLost) => {
                let _ = cluster.apply(txn, &self.shared.history);
                "answer lost"
            }
            Some(CommitFault::Late) => {
                cluster.late.push_back(txn.clone());
                "late"
            }
        };
        Err(StoreError::Ambiguous { attempted: describe(txn), source: injected(lost) })
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        check_prefix(prefix)?;
        self.admitted(&|| format!("watch '{prefix}'"))?;
        let reader = Reader::new(&self.shared.history, prefix, from);
        let gate = WatchGate { state: self.gate.subscribe(), due: None };
        Ok(Watch::local(reader, Some(gate)))
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct GateState {
    cut_off: bool,
    held: bool,
    /// Nothing after it is seen.
    shown: Option<Revision>,
    delay: Duration,
}

/// Holds back the batches of one watch.
pub(crate) struct WatchGate {
    state: watch::Receiver<GateState>,
    /// When the batch of this revision may pass: kept, so that a caller that asks again does not wait anew.
    due: Option<(Revision, Instant)>,
}

impl WatchGate {
    pub(crate) async fn pass(&mut self, revision: Revision) {
        loop {
            // An error means that the connection is gone; what it had seen may still be read.
            let shown = |gate: &GateState| gate.shown.is_none_or(|shown| revision <= shown);
            let open = self.state.wait_for(|gate| !gate.cut_off && !gate.held && shown(gate)).await;
            let Ok(delay) = open.map(|gate| gate.delay) else { return };
            if delay.is_zero() {
                return;
            }
            let due = match self.due {
                Some((of, due)) if of == revision => due,
                _ => Instant::now() + delay,
            };
            self.due = Some((revision, due));
            if Instant::now() >= due {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

#[cfg(test)]
mod tests;
