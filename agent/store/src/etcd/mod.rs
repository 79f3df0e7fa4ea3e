//! A store in an etcd cluster (3.4 and later).
//!
//! Owns the connections to the members. Promises beyond the trait's:
//! * a member that is gone, frozen or silently cut off costs one short attempt ([`Timeouts::attempt`]); the
//!   next attempt goes to another member, the bad one is asked last from then on;
//! * a commit is sent again after a lost answer and yet applied at most once (see `commit`), so that
//!   [`StoreError::Ambiguous`] remains for a lost quorum;
//! * certificates are read anew for each connection, so that renewed ones are used without a restart.
//!
//! Must not use etcd's leases: they restart at a change of etcd's leader and can be ended by a stale one.

mod commit;
mod config;
mod fault;
mod members;
mod tls;
mod watch;

use std::sync::Arc;

use async_trait::async_trait;
use etcd_client::{GetOptions, KeyValue};

pub use config::{Credentials, EtcdConfig, IdentityFiles, Timeouts, TlsFiles};

use crate::Store;
use crate::error::StoreError;
use crate::rules::{RESERVED, check_key, check_prefix, check_txn};
use crate::types::{Committed, Entry, Listing, Revision, Txn};
use crate::watch::Watch;
use commit::Slots;
use fault::{Fault, Kind};
use members::Members;

/// Records per page of a listing. A page of the biggest records stays below [`MESSAGE_BYTES_MAX`].
const PAGE_ENTRIES: usize = 128;
/// The biggest answer that is accepted: a full page of the biggest values, and as much again for keys and
/// framing. gRPC's default of 4 MiB would end a listing or watch of four big records.
const MESSAGE_BYTES_MAX: usize = 2 * PAGE_ENTRIES * crate::rules::VALUE_BYTES_MAX;

/// A store in an etcd cluster.
pub struct Etcd {
    shared: Arc<Shared>,
}

struct Shared {
    members: Members,
    slots: Slots,
    root: Root,
}

/// The prefix in etcd below which the store's keys live.
#[derive(Debug, Clone)]
struct Root(String);

impl Root {
    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.0)
    }

    /// The store's key of an etcd key; `None` for the adapter's own and for what is no text.
    fn own<'a>(&self, full: &'a [u8]) -> Option<&'a str> {
        let key = std::str::from_utf8(full).ok()?.strip_prefix(&self.0)?;
        (!key.starts_with(RESERVED)).then_some(key)
    }

    fn entry(&self, pair: &KeyValue) -> Option<Entry> {
        let key = self.own(pair.key())?.to_owned();
        Some(Entry { key, value: pair.value().to_vec(), modified: revision(pair.mod_revision()) })
    }
}

/// etcd counts in `i64`, from 1, and never goes below.
fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or(0))
}

fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

impl Etcd {
    /// Checks the configuration and reads the certificates. Does not connect: a cluster that is down is an
    /// error of the first call, and a later call may succeed.
    pub async fn open(config: EtcdConfig) -> Result<Self, StoreError> {
        config.check()?;
        let root = Root(config.root.clone());
        let slots = Slots::new(&root, &config.client);
        let members = Members::new(config).await?;
        Ok(Self { shared: Arc::new(Shared { members, slots, root }) })
    }
}

impl Shared {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let full = self.root.full(key);
        let attempted = || format!("read '{key}'");
        let answer = self.members.read(&attempted, |client| get(client, full.clone(), None)).await?;
        Ok(answer.0.first().and_then(|pair| self.root.entry(pair)))
    }

    /// Reads page by page at the revision of the first page. `None`: that revision was compacted meanwhile.
    async fn list_once(&self, prefix: &str) -> Result<Option<Listing>, StoreError> {
        let attempted = || format!("list '{prefix}'");
        let end = range_end(self.root.full(prefix).into_bytes());
        let mut from = self.root.full(prefix).into_bytes();
        let mut at: Option<i64> = None;
        let mut entries = Vec::new();
        loop {
            let mut options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(i64::try_from(PAGE_ENTRIES).unwrap_or(1));
            if let Some(at) = at {
                options = options.with_revision(at);
            }
            let page = self
                .members
                .read(&attempted, |client| {
                    let (from, options) = (from.clone(), options.clone());
                    async move {
                        match get(client, from, Some(options)).await {
                            Err(fault) if fault.kind == Kind::Compacted => Ok(None),
                            other => other.map(Some),
                        }
                    }
                })
                .await?;
            let Some((pairs, current)) = page else { return Ok(None) };
            let at = *at.get_or_insert(current);
            entries.extend(pairs.iter().filter_map(|pair| self.root.entry(pair)));
            match pairs.last() {
                Some(last) if pairs.len() == PAGE_ENTRIES => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => return Ok(Some(Listing { revision: revision(at), entries })),
            }
        }
    }

    /// The cluster's revision, confirmed by a quorum.
    async fn current(&self) -> Result<Revision, StoreError> {
        let full = self.root.full(".");
        let options = GetOptions::new().with_count_only();
        let attempted = || "read the store's revision".to_owned();
        let answer =
            self.members.read(&attempted, |client| get(client, full.clone(), Some(options.clone()))).await?;
        Ok(revision(answer.1))
    }
}

/// The records of a range and the revision at which it was read.
async fn get(
    client: etcd_client::Client,
    key: impl Into<Vec<u8>>,
    options: Option<GetOptions>,
) -> Result<(Vec<KeyValue>, i64), Fault> {
    let mut kv = client.kv_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut answer = kv.get(key, options).await?;
    let current = answer.header().map(etcd_client::ResponseHeader::revision).ok_or_else(Fault::no_header)?;
    Ok((answer.take_kvs(), current))
}

/// The first key after all that begin with `prefix`.
fn range_end(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if last < u8::MAX {
            prefix.push(last + 1);
            return prefix;
        }
    }
    // No key is greater than all that begin with 0xff…: to the end of all keys, in etcd's notation.
    vec![0]
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        self.shared.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        check_prefix(prefix)?;
        loop {
            // Each turn begins at a newer revision; a compaction comes once in minutes.
            if let Some(listing) = self.shared.list_once(prefix).await? {
                return Ok(listing);
            }
        }
    }

    async fn commit(&self, txn: &Txn) -> Result<Committed, StoreError> {
        check_txn(txn)?;
        self.shared.commit(txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        check_prefix(prefix)?;
        Ok(watch::start(&self.shared, prefix, from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_range_is_the_first_key_behind_the_prefix() {
        let table: [(&[u8], &[u8]); 4] =
            [(b"/a/", b"/a0"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"\xfe\xff", b"\xff")];
        for (prefix, end) in table {
            assert_eq!(range_end(prefix.to_vec()), end, "{prefix:?}");
        }
    }

    #[test]
    fn the_adapters_own_keys_are_not_shown() {
        let root = Root("/understudy/v1/".into());
        assert_eq!(root.own(b"/understudy/v1/hosts/a"), Some("hosts/a"));
        assert_eq!(root.own(b"/understudy/v1/.commits/a/0"), None);
        assert_eq!(root.own(b"/other/hosts/a"), None);
        assert_eq!(root.own(b"/understudy/v1/\xff"), None);
    }
}
