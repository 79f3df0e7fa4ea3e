//! Owns what can go wrong with the store, in the cases that a caller treats differently.

use std::error::Error;
use std::path::PathBuf;

pub use understudy_core::errors::chain;

use crate::rules::{KEY_BYTES_MAX, TXN_BYTES_MAX, TXN_OPERATIONS_MAX, VALUE_BYTES_MAX};
use crate::types::Revision;

/// A cause from a library below.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No answer from a working store. Nothing was changed; the same call may be made again.
    #[error("could not {attempted}: the store is not available")]
    Unavailable {
        /// What was to be done.
        attempted: String,
        /// The last cause seen.
        #[source]
        source: BoxError,
    },
    /// A commit was sent and its outcome is not known: it has been applied, or it will be, or never.
    ///
    /// The caller reads the records again. A commit under [`Condition::Unchanged`] or [`Condition::Absent`]
    /// on a key that it writes may be sent again: at most one of the two is applied.
    ///
    /// [`Condition::Unchanged`]: crate::Condition::Unchanged
    /// [`Condition::Absent`]: crate::Condition::Absent
    #[error("could not learn whether the commit of {attempted} was applied")]
    Ambiguous {
        /// What was to be done.
        attempted: String,
        /// The last cause seen.
        #[source]
        source: BoxError,
    },
    /// The store does not let this agent in. Repeating does not help; an operator must act.
    #[error("{problem}; {advice}")]
    Denied {
        /// What was refused, by whom, with which file.
        problem: String,
        /// What the operator can do.
        advice: String,
        /// The file that is at fault, where one is.
        file: Option<PathBuf>,
        /// The cause, where a library named one.
        #[source]
        source: Option<BoxError>,
    },
    /// The store's file cannot be read as a store.
    #[error("the store file {} is damaged: move it away and restore it from a backup, or start without it (every record is lost, running instances are reported anew)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        #[source]
        source: BoxError,
    },
    /// The store's file is in use by another process.
    #[error("the store file {} is in use by another process: stop the other agent, or name another file in this one's configuration", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The call itself is wrong. Nothing was changed.
    #[error("invalid request to the store")]
    Invalid(#[from] InvalidRequest),
}

/// What is wrong with a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// The key is empty, too long, reserved, or holds a control character.
    #[error(
        "the key {0:?} is not allowed: use 1 to {KEY_BYTES_MAX} bytes without control characters, not beginning with '.'"
    )]
    Key(String),
    /// The value is too big.
    #[error("the value of '{key}' has {bytes} bytes, the most is {VALUE_BYTES_MAX}")]
    Value {
        /// Its key.
        key: String,
        /// Its size.
        bytes: usize,
    },
    /// The whole transaction is too big.
    #[error("the transaction has {0} bytes, the most is {TXN_BYTES_MAX}: divide it")]
    TxnBytes(usize),
    /// Too many conditions or writes.
    #[error(
        "the transaction has {0} conditions or writes, the most of either is {TXN_OPERATIONS_MAX}: divide it"
    )]
    TxnOperations(usize),
    /// One key is written twice in one transaction.
    #[error("the transaction writes '{0}' twice")]
    WrittenTwice(String),
    /// The store's configuration is wrong.
    #[error("{0}")]
    Configuration(String),
    /// The store found the request wrong for a reason of its own.
    #[error("the store refused it: {0}")]
    Refused(String),
}

/// Why a watch ended. It gives nothing after this.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The changes after `wanted` are no longer kept: list the records anew and watch from there.
    #[error("the changes after revision {wanted} are gone, the oldest kept is {oldest}: list anew")]
    Compacted {
        /// The last revision that the watch had seen.
        wanted: Revision,
        /// The first revision from which a watch could start.
        oldest: Revision,
    },
    /// The store is older than what the watch had seen: it was restored from a backup, or replaced.
    #[error(
        "the store went back from revision {seen} to {current}: it was restored from a backup or replaced"
    )]
    Rewound {
        /// The last revision that the watch had seen.
        seen: Revision,
        /// The store's revision.
        current: Revision,
    },
    /// The store refuses to go on with the watch.
    #[error("the watch was refused")]
    Store(#[source] StoreError),
}
