//! Owns transactions as data: what must still be so in the store, and what is then written.
//!
//! Promises: a condition names the very revision that the decision was made from, or the absence of the record; bytes are in
//! the form that `keys` reads. Must not do: talk to the store, which has its own form of this (`understudy-store` converts
//! this one into it).
//!
//! Cost: a put encodes its record, some microseconds for a node's.

use serde::Serialize;

use crate::keys::{Key, encode};

/// Writes that happen together if all conditions hold, or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All of these must hold.
    pub conditions: Vec<Condition>,
    /// At most one for each key.
    pub writes: Vec<Write>,
}

/// Holds while a record is as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its key.
    pub key: Key,
    /// The revision of its last write; none: there is no such record.
    pub revision: Option<u64>,
}

/// One change that a transaction makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a record.
    Put(Key, Vec<u8>),
    /// Removes a record.
    Delete(Key),
}

impl Transaction {
    /// A transaction without conditions or writes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, key: Key, revision: Option<u64>) -> Self {
        self.conditions.push(Condition { key, revision });
        self
    }

    /// Adds the write of a record.
    #[must_use]
    pub fn put<T: Serialize>(mut self, key: Key, record: &T) -> Self {
        self.writes.push(Write::Put(key, encode(record)));
        self
    }

    /// Adds the removal of a record.
    #[must_use]
    pub fn delete(mut self, key: Key) -> Self {
        self.writes.push(Write::Delete(key));
        self
    }
}
