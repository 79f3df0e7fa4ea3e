//! Who leads: one record, changed by compare-and-swap.
//!
//! Owns the changes of the leadership record (whose form is core's). Promises: a term has at most one holder, because only a commit
//! that was answered as applied makes one; terms only grow while the record stands. A holder proves itself in
//! each of its writes with [`Leadership::condition`], so that a second leader can only lose.
//!
//! Must not keep time: when a leader counts as gone is decided by the caller, who then names the leadership
//! that it found gone.

use understudy_core::keys::{decode, encode};
use understudy_core::model::ids::HostId;
pub use understudy_core::model::ids::Term;
use understudy_core::model::records::LeaderRecord;
use understudy_core::model::view::Versioned;

use crate::Store;
use crate::error::{BoxError, StoreError};
use crate::types::{Committed, Condition, Entry, Revision, Txn};

/// A leadership as the store holds it: one's own, or another's that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    key: String,
    record: LeaderRecord,
    revision: Revision,
}

impl Leadership {
    /// Who leads; `None` if the last leader resigned.
    #[must_use]
    pub fn host(&self) -> Option<&HostId> {
        self.record.host.as_ref()
    }

    /// The term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.record.term
    }

    /// The revision of the record, which belongs to this term alone.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Holds in a commit as long as this leadership stands. A leader puts it into each of its commits.
    #[must_use]
    pub fn condition(&self) -> Condition {
        Condition::Unchanged(self.key.clone(), self.revision)
    }

    /// Reads a leadership from a record that a listing or watch gave.
    pub fn of(entry: &Entry) -> Result<Self, ElectionError> {
        let record = decode(&entry.key, &entry.value).map_err(|fault| {
            let source: BoxError = Box::new(fault.source);
            ElectionError::Unreadable { key: fault.key, source }
        })?;
        Ok(Self { key: entry.key.clone(), record, revision: entry.modified })
    }

    /// The same as a store cache shows it.
    #[must_use]
    pub fn known(&self) -> Versioned<LeaderRecord> {
        Versioned { value: self.record.clone(), revision: self.revision.0 }
    }

    /// The leadership that a record under `key` stands for, as a store cache shows it.
    #[must_use]
    pub fn seen(key: &str, known: &Versioned<LeaderRecord>) -> Self {
        Self { key: key.to_owned(), record: known.value.clone(), revision: Revision(known.revision) }
    }
}

/// What came of a bid for leadership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bid {
    /// This host leads, in a term that is new.
    Won(Leadership),
    /// Somebody was faster; this is what stands (`None`: the record was removed).
    Lost(Option<Leadership>),
}

/// Why a bid or a look failed.
#[derive(Debug, thiserror::Error)]
pub enum ElectionError {
    /// The store failed. After [`StoreError::Ambiguous`] this host does *not* lead: it looks again, and if it
    /// finds its own name there, bids anew over that for a new term.
    #[error("could not settle the leadership")]
    Store(#[from] StoreError),
    /// The record is not one of ours. Nobody can lead before an operator has looked.
    #[error("the leadership record '{key}' cannot be read: see who wrote it, then remove it")]
    Unreadable {
        /// Its key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: BoxError,
    },
}

/// What stands under `key`.
pub async fn observe(store: &dyn Store, key: &str) -> Result<Option<Leadership>, ElectionError> {
    store.get(key).await?.map(|entry| Leadership::of(&entry)).transpose()
}

/// Bids for the term after `previous`: the leadership that the caller found gone or given up, or its own of an
/// earlier life. `None` bids for the first term, where no record stands.
pub async fn lead(
    store: &dyn Store,
    key: &str,
    me: &HostId,
    previous: Option<&Leadership>,
) -> Result<Bid, ElectionError> {
    let term = Term(previous.map_or(1, |previous| previous.term().0 + 1));
    let condition = previous.map_or_else(|| Condition::Absent(key.to_owned()), Leadership::condition);
    let record = LeaderRecord { host: Some(me.clone()), term };
    let txn = Txn::new().when(condition).put(key, encode(&record));
    match store.commit(&txn).await? {
        Committed::Applied { revision } => Ok(Bid::Won(Leadership { key: key.to_owned(), record, revision })),
        Committed::Refused { .. } => Ok(Bid::Lost(observe(store, key).await?)),
    }
}

/// Gives up a leadership in order, so that the next leader need not wait for its end. The term is kept. Says
/// whether it still stood.
pub async fn resign(store: &dyn Store, mine: &Leadership) -> Result<bool, ElectionError> {
    let record = LeaderRecord { host: None, term: mine.term() };
    let txn = Txn::new().when(mine.condition()).put(&mine.key, encode(&record));
    Ok(matches!(store.commit(&txn).await?, Committed::Applied { .. }))
}
