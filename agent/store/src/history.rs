//! Owns the recent changes of a store that lives in this process, and the watches that read them.
//!
//! Promises: a watch reads each kept batch once and in order, whatever its pace; one that fell behind what is
//! kept is told so instead of losing changes in silence. Must not grow without bound.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::error::WatchError;
use crate::types::{Batch, Change, Revision};

/// How much of the past is kept for watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// The most commits.
    pub batches_max: usize,
    /// The most bytes of keys and values.
    pub bytes_max: usize,
}

impl Default for HistoryLimits {
    /// Some minutes of a busy cluster: an agent that was away longer lists anew, which costs it one read.
    fn default() -> Self {
        Self { batches_max: 4096, bytes_max: 32 * 1024 * 1024 }
    }
}

struct Ring {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    /// Changes up to and including this revision are not kept.
    floor: Revision,
    latest: Revision,
}

/// The recent changes.
pub(crate) struct History {
    ring: Mutex<Ring>,
    limits: HistoryLimits,
    updates: watch::Sender<Revision>,
}

impl History {
    /// A history that begins after `latest`.
    pub(crate) fn new(latest: Revision, limits: HistoryLimits) -> Self {
        let ring = Ring { batches: VecDeque::new(), bytes: 0, floor: latest, latest };
        Self { ring: Mutex::new(ring), limits, updates: watch::Sender::new(latest) }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // Every change of the ring below leaves it whole, so a poisoned lock still guards a sound ring.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what a commit changed. Revisions must come in order: the caller holds its own write lock.
    pub(crate) fn push(&self, batch: Batch) {
        let mut ring = self.lock();
        debug_assert!(batch.revision > ring.latest, "commits are published in order");
        ring.latest = batch.revision;
        ring.bytes += weight(&batch);
        ring.batches.push_back(Arc::new(batch));
        while ring.batches.len() > self.limits.batches_max || ring.bytes > self.limits.bytes_max {
            let Some(oldest) = ring.batches.pop_front() else { break };
            ring.bytes -= weight(&oldest);
            ring.floor = oldest.revision;
        }
        let latest = ring.latest;
        drop(ring);
        self.updates.send_replace(latest);
    }

    /// Forgets every change up to `revision`.
    pub(crate) fn compact(&self, revision: Revision) {
        let mut ring = self.lock();
        while ring.batches.front().is_some_and(|batch| batch.revision <= revision) {
            if let Some(oldest) = ring.batches.pop_front() {
                ring.bytes -= weight(&oldest);
            }
        }
        ring.floor = ring.floor.max(revision);
        ring.latest = ring.latest.max(revision);
        let latest = ring.latest;
        drop(ring);
        self.updates.send_replace(latest);
    }

    fn after(&self, cursor: Revision, prefix: &str) -> Next {
        let ring = self.lock();
        if cursor > ring.latest {
            return Next::Rewound(ring.latest);
        }
        if cursor < ring.floor {
            return Next::Gone(ring.floor);
        }
        let start = ring.batches.partition_point(|batch| batch.revision <= cursor);
        for batch in ring.batches.range(start..) {
            let changes: Vec<Change> =
                batch.changes.iter().filter(|change| change.key().starts_with(prefix)).cloned().collect();
            if !changes.is_empty() {
                return Next::Batch(Batch { revision: batch.revision, changes });
            }
        }
        Next::NothingUpTo(ring.latest)
    }
}

enum Next {
    Batch(Batch),
    NothingUpTo(Revision),
    Gone(Revision),
    Rewound(Revision),
}

fn weight(batch: &Batch) -> usize {
    let change = |change: &Change| match change {
        Change::Put(entry) => entry.key.len() + entry.value.len(),
        Change::Deleted { key, .. } => key.len(),
    };
    batch.changes.iter().map(change).sum()
}

/// Reads a history from a revision on.
pub(crate) struct Reader {
    history: Arc<History>,
    updates: watch::Receiver<Revision>,
    prefix: String,
    cursor: Revision,
}

impl Reader {
    pub(crate) fn new(history: &Arc<History>, prefix: &str, from: Revision) -> Self {
        let updates = history.updates.subscribe();
        Self { history: Arc::clone(history), updates, prefix: prefix.to_owned(), cursor: from }
    }

    /// The next batch, which stays the next until [`Reader::taken`].
    pub(crate) async fn peek(&mut self) -> Result<Batch, WatchError> {
        loop {
            self.updates.mark_unchanged();
            match self.history.after(self.cursor, &self.prefix) {
                Next::Batch(batch) => return Ok(batch),
                Next::NothingUpTo(latest) => self.cursor = latest,
                Next::Gone(floor) => {
                    let oldest = Revision(floor.0 + 1);
                    return Err(WatchError::Compacted { wanted: self.cursor, oldest });
                }
                Next::Rewound(current) => return Err(WatchError::Rewound { seen: self.cursor, current }),
            }
            // The sender lives in the history that this reader holds, so the channel cannot close.
            let _ = self.updates.changed().await;
        }
    }

    /// Steps over the batch of `revision`.
    pub(crate) fn taken(&mut self, revision: Revision) {
        self.cursor = revision;
    }
}
