//! Owns the words of the store: what is read, what is asked for, what came of it. Plain data only.

use std::fmt;

use serde::{Deserialize, Serialize};
use understudy_core::{store_cache, transaction};

/// A point in the history of the whole store. Grows with every commit that changes something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key, below the store's root.
    pub key: String,
    /// Its bytes; the store does not look into them.
    pub value: Vec<u8>,
    /// The revision of its last write.
    pub modified: Revision,
}

/// Records as they were at one revision. `watch(prefix, listing.revision)` continues without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The revision at which the listing holds.
    pub revision: Revision,
    /// The records in the order of their keys.
    pub entries: Vec<Entry>,
}

/// What must hold for a transaction to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// There is no record under this key.
    Absent(String),
    /// The record under this key was last written at this very revision.
    Unchanged(String, Revision),
    /// There is a record under this key.
    Present(String),
}

impl Condition {
    /// The key that it speaks of.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Absent(key) | Self::Unchanged(key, _) | Self::Present(key) => key,
        }
    }
}

/// One change that a transaction makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets the record under this key.
    Put(String, Vec<u8>),
    /// Removes the record under this key; nothing happens if there is none.
    Delete(String),
}

impl Write {
    /// The key that it changes.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// Writes that happen together, or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All of these must hold. None: the writes always happen.
    pub conditions: Vec<Condition>,
    /// At most one write for each key.
    pub writes: Vec<Write>,
}

impl Txn {
    /// A transaction without conditions or writes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    /// Adds a write of a record.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.writes.push(Write::Put(key.into(), value.into()));
        self
    }

    /// Adds the removal of a record.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete(key.into()));
        self
    }
}

/// What came of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a refused commit changed nothing"]
pub enum Committed {
    /// All writes happened, at this revision: each put record carries it as `modified`.
    Applied {
        /// The revision of the writes; of the check, if there were no writes.
        revision: Revision,
    },
    /// Nothing happened.
    Refused {
        /// The revision at which the conditions were looked at.
        revision: Revision,
        /// The keys whose conditions did not hold.
        failed: Vec<String>,
    },
}

/// One change seen by a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A record was written.
    Put(Entry),
    /// A record was removed.
    Deleted {
        /// Its key.
        key: String,
        /// The revision of its removal.
        revision: Revision,
    },
}

impl Change {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Deleted { key, .. } => key,
        }
    }
}

/// All changes of one revision below a watch's prefix, in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The revision.
    pub revision: Revision,
    /// At least one change.
    pub changes: Vec<Change>,
}

/// What core wants written.
impl From<transaction::Transaction> for Txn {
    fn from(wanted: transaction::Transaction) -> Self {
        let condition = |condition: transaction::Condition| match condition.revision {
            Some(revision) => Condition::Unchanged(condition.key.to_string(), Revision(revision)),
            None => Condition::Absent(condition.key.to_string()),
        };
        let write = |write| match write {
            transaction::Write::Put(key, value) => Write::Put(key.to_string(), value),
            transaction::Write::Delete(key) => Write::Delete(key.to_string()),
        };
        Self {
            conditions: wanted.conditions.into_iter().map(condition).collect(),
            writes: wanted.writes.into_iter().map(write).collect(),
        }
    }
}

/// For the store cache.
impl<'a> From<&'a Entry> for store_cache::Stored<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self { key: &entry.key, value: &entry.value, revision: entry.modified.0 }
    }
}

/// For the store cache.
impl<'a> From<&'a Change> for store_cache::Change<'a> {
    fn from(change: &'a Change) -> Self {
        match change {
            Change::Put(entry) => Self::Put(entry.into()),
            Change::Deleted { key, .. } => Self::Deleted(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use understudy_core::keys::{Key, encode};
    use understudy_core::model::records::HostIntent;

    use super::*;

    #[test]
    fn a_transaction_of_core_keeps_every_condition_and_every_write() {
        let intent = || Key::Intent("host1".parse().unwrap());
        let wanted = transaction::Transaction::new()
            .when(Key::Leader, Some(7))
            .when(Key::PolicyActive, None)
            .put(intent(), &HostIntent::default())
            .delete(Key::PolicyCandidate);
        let expected = Txn::new()
            .when(Condition::Unchanged("v2/cluster/leader".to_owned(), Revision(7)))
            .when(Condition::Absent("v2/cluster/policies/active".to_owned()))
            .put("v2/cluster/hosts/host1/intent", encode(&HostIntent::default()))
            .delete("v2/cluster/policies/candidate");
        assert_eq!(Txn::from(wanted), expected);
    }
}
