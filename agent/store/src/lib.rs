//! Where the cluster's records are kept: one trait, three implementations.
//!
//! Owns the words of the store (revisions, transactions, watches), the adapters to etcd and to a file of one
//! host, and the in-memory store of simulator and tests.
//!
//! Promises, the same for each implementation and checked by one suite (feature `conformance`):
//! * reads are linearizable, a listing is consistent at one revision;
//! * a transaction is applied wholly or not at all, and at most once, however often it was sent;
//! * a watch gives each later change once, in order, and says so when it cannot ([`WatchError::Compacted`]);
//! * an error says whether a commit may have been applied ([`StoreError::Ambiguous`]) or was not.
//!
//! Must not: know what the records mean, keep time for anybody (a leader's or a host's end is decided by the
//! core), or block the runtime.

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod election;
mod embedded;
mod error;
mod etcd;
mod history;
mod memory;
mod rules;
mod types;
mod watch;

use async_trait::async_trait;

pub use embedded::{Embedded, EmbeddedLimits};
pub use error::{BoxError, InvalidRequest, StoreError, WatchError, chain};
pub use etcd::{Credentials, Etcd, EtcdConfig, IdentityFiles, Timeouts, TlsFiles};
pub use history::HistoryLimits;
pub use memory::{CommitFault, MemoryStore};
pub use rules::{KEY_BYTES_MAX, TXN_BYTES_MAX, TXN_OPERATIONS_MAX, VALUE_BYTES_MAX};
pub use types::{Batch, Change, Committed, Condition, Entry, Listing, Revision, Txn, Write};
pub use watch::Watch;

/// A place for the cluster's records.
///
/// Each call may be dropped half-way. A dropped commit is as a commit with [`StoreError::Ambiguous`].
#[async_trait]
pub trait Store: Send + Sync {
    /// The newest record under `key`: one that was committed before this call began is seen.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// All records whose keys begin with `prefix`, in the order of their keys, as they were at one revision.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// Carries out the writes if all conditions hold, else none of them.
    async fn commit(&self, txn: &Txn) -> Result<Committed, StoreError>;

    /// The changes below `prefix` of every revision after `from`.
    ///
    /// The watch resumes by itself when a member of the store is lost. It ends only with a [`WatchError`].
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError>;
}
