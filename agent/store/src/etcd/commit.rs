//! Owns the sending of commits, so that one that is sent several times is applied at most once.
//!
//! When an answer does not come, the commit may have been applied, may be under way still (a frozen member
//! takes it up after its thaw), or be lost. Each commit therefore also moves a *marker*, a key of this client:
//!
//! ```text
//! if   marker unmoved and conditions hold
//! then the writes, marker := this commit's token
//! else read the marker and the conditions' keys
//!      if marker unmoved (so the conditions failed): marker := token + REFUSED      (repeated sendings only)
//! ```
//!
//! A repeated sending finds the marker unmoved and decides; or finds its own token, and learns what an earlier
//! sending decided. In either case the marker has moved since the first sending, which can no longer apply.
//! What remains is [`StoreError::Ambiguous`]: no answer to any sending until the request's time is over.
//!
//! Markers are few: a slot is used again by the next commit, and slots are named after the client, not the
//! process. A commit that changes nothing needs none.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use etcd_client::{Compare, CompareOp, GetOptions, Txn as Request, TxnOp, TxnOpResponse, TxnResponse};
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use super::fault::{Fault, Kind, Odd};
use super::members::{Turn, proceed};
use super::{Root, Shared, number, revision};
use crate::error::StoreError;
use crate::rules::{describe, holds};
use crate::types::{Committed, Condition, Revision, Txn, Write};

/// Commits that are under way at once; more wait for their turn.
const SLOTS: usize = 16;
const REFUSED: &str = " refused";

/// The markers of this client.
pub(super) struct Slots {
    free: Mutex<Vec<Slot>>,
    permits: Semaphore,
    process: Uuid,
    count: AtomicU64,
}

struct Slot {
    /// The marker's full key.
    key: String,
    /// The marker's last known revision, 0 for none. Learned from etcd when it turns out to be wrong.
    moved: i64,
}

struct Held<'a> {
    slots: &'a Slots,
    slot: Slot,
    _permit: SemaphorePermit<'a>,
}

impl Slots {
    pub(super) fn new(root: &Root, client: &str) -> Self {
        // The last is taken first, so that a quiet client uses one marker.
        let slot = |n| Slot { key: root.full(&format!(".commits/{client}/{n}")), moved: 0 };
        Self {
            free: Mutex::new((0..SLOTS).rev().map(slot).collect()),
            permits: Semaphore::new(SLOTS),
            process: Uuid::new_v4(),
            count: AtomicU64::new(0),
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Slot>> {
        // Slots are moved in and out whole.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn hold(&self) -> Held<'_> {
        let permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let slot = self.free().pop().expect("there is a slot for each permit");
        Held { slots: self, slot, _permit: permit }
    }

    fn token(&self) -> String {
        format!("{} {}", self.process, self.count.fetch_add(1, Ordering::Relaxed))
    }

    fn made_here(&self, token: &[u8]) -> bool {
        token.starts_with(self.process.to_string().as_bytes())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let slot = Slot { key: std::mem::take(&mut self.slot.key), moved: self.slot.moved };
        self.slots.free().push(slot);
    }
}

/// What one sending told.
enum Reading {
    Settled(Committed),
    /// The marker stood elsewhere: the sending did nothing.
    Moved {
        to: i64,
        by_us: bool,
    },
}

impl Shared {
    pub(super) async fn commit(&self, txn: &Txn) -> Result<Committed, StoreError> {
        if txn.writes.is_empty() {
            return self.check(txn).await;
        }
        let mut held = self.slots.hold().await;
        let token = self.slots.token();
        // Both are read by the sending and written by the judgement of its answer, one after the other.
        let moved = std::sync::atomic::AtomicI64::new(held.slot.moved);
        let open = std::sync::atomic::AtomicBool::new(false);
        let key = held.slot.key.clone();
        let sent = |client: etcd_client::Client| {
            let plan = Sending {
                marker: &key,
                moved: moved.load(Ordering::Relaxed),
                token: &token,
                again: open.load(Ordering::Relaxed),
            };
            let request = plan.request(&self.root, txn);
            async move { Ok(client.kv_client().txn(request).await?) }
        };
        let judge = |answer: Result<TxnResponse, Fault>| {
            let reading =
                answer.and_then(|answer| self.reading(txn, &token, moved.load(Ordering::Relaxed), &answer));
            match reading {
                Ok(Reading::Settled(committed)) => Turn::Done(committed),
                // A second process under this client's name hid what became of an earlier sending.
                Ok(Reading::Moved { by_us: false, .. }) if open.load(Ordering::Relaxed) => {
                    Turn::Stop(Fault::new(Kind::Unclear, Odd::Answer))
                }
                Ok(Reading::Moved { to, .. }) => {
                    moved.store(to, Ordering::Relaxed);
                    Turn::Again(Fault::new(Kind::NotApplied, Odd::Answer))
                }
                Err(fault) => {
                    open.fetch_or(fault.kind == Kind::Unclear, Ordering::Relaxed);
                    proceed(fault)
                }
            }
        };
        let end = self.members.attempts(sent, judge).await;
        held.slot.moved = match &end {
            Ok(Committed::Applied { revision }) => number(*revision),
            _ => moved.load(Ordering::Relaxed),
        };
        end.map_err(|end| {
            let attempted = if end.unclear { describe(txn) } else { format!("commit {}", describe(txn)) };
            end.into_error(attempted, true)
        })
    }

    /// A transaction without writes: a read, which may be repeated freely.
    async fn check(&self, txn: &Txn) -> Result<Committed, StoreError> {
        let ask = |client: etcd_client::Client| {
            let (when, reads) = (compares(&self.root, txn), reads(&self.root, txn));
            async move { Ok(client.kv_client().txn(Request::new().when(when).or_else(reads)).await?) }
        };
        let attempted = || format!("commit {}", describe(txn));
        let answer = self.members.read(&attempted, ask).await?;
        let unanswered =
            |fault: Fault| StoreError::Unavailable { attempted: attempted(), source: fault.source };
        let at = header(&answer).map_err(unanswered)?;
        if answer.succeeded() {
            return Ok(Committed::Applied { revision: at });
        }
        let found = answer.op_responses();
        Ok(Committed::Refused { revision: at, failed: failed(txn, &found).map_err(unanswered)? })
    }

    fn reading(&self, txn: &Txn, token: &str, moved: i64, answer: &TxnResponse) -> Result<Reading, Fault> {
        let at = header(answer)?;
        if answer.succeeded() {
            return Ok(Reading::Settled(Committed::Applied { revision: at }));
        }
        let found = answer.op_responses();
        let (marker, rest) = found.split_first().ok_or_else(|| Fault::new(Kind::Unclear, Odd::Answer))?;
        let TxnOpResponse::Get(marker) = marker else {
            return Err(Fault::new(Kind::Unclear, Odd::Answer));
        };
        let marker = marker.kvs().first();
        let stands = marker.map_or(0, etcd_client::KeyValue::mod_revision);
        let text = marker.map_or(&[] as &[u8], etcd_client::KeyValue::value);
        if text == token.as_bytes() {
            return Ok(Reading::Settled(Committed::Applied { revision: revision(stands) }));
        }
        let refused = text == [token, REFUSED].concat().as_bytes();
        if !refused && stands != moved {
            return Ok(Reading::Moved { to: stands, by_us: self.slots.made_here(text) });
        }
        let mut failed = failed(txn, rest)?;
        if failed.is_empty() {
            // Refused by an earlier sending, and the records have changed since.
            failed = txn.conditions.iter().map(|condition| condition.key().to_owned()).collect();
        }
        Ok(Reading::Settled(Committed::Refused { revision: at, failed }))
    }
}

struct Sending<'a> {
    marker: &'a str,
    moved: i64,
    token: &'a str,
    /// An earlier sending may still be under way.
    again: bool,
}

impl Sending<'_> {
    fn request(&self, root: &Root, txn: &Txn) -> Request {
        let unmoved = || Compare::mod_revision(self.marker, CompareOp::Equal, self.moved);
        let mut when = vec![unmoved()];
        when.extend(compares(root, txn));
        let mut then: Vec<TxnOp> = txn.writes.iter().map(|write| operation(root, write)).collect();
        then.push(TxnOp::put(self.marker, self.token, None));
        let mut otherwise = vec![TxnOp::get(self.marker, None)];
        otherwise.extend(reads(root, txn));
        if self.again {
            let refuse = TxnOp::put(self.marker, [self.token, REFUSED].concat(), None);
            otherwise.push(TxnOp::txn(Request::new().when([unmoved()]).and_then([refuse])));
        }
        Request::new().when(when).and_then(then).or_else(otherwise)
    }
}

fn header(answer: &TxnResponse) -> Result<Revision, Fault> {
    let header = answer.header().ok_or_else(Fault::no_header)?;
    Ok(revision(header.revision()))
}

fn compares(root: &Root, txn: &Txn) -> Vec<Compare> {
    let compare = |condition: &Condition| {
        let key = root.full(condition.key());
        match condition {
            Condition::Absent(_) => Compare::create_revision(key, CompareOp::Equal, 0),
            Condition::Present(_) => Compare::create_revision(key, CompareOp::Greater, 0),
            Condition::Unchanged(_, revision) => {
                Compare::mod_revision(key, CompareOp::Equal, number(*revision))
            }
        }
    };
    txn.conditions.iter().map(compare).collect()
}

fn reads(root: &Root, txn: &Txn) -> Vec<TxnOp> {
    let read = |condition: &Condition| {
        TxnOp::get(root.full(condition.key()), Some(GetOptions::new().with_keys_only()))
    };
    txn.conditions.iter().map(read).collect()
}

fn operation(root: &Root, write: &Write) -> TxnOp {
    match write {
        Write::Put(key, value) => TxnOp::put(root.full(key), value.clone(), None),
        Write::Delete(key) => TxnOp::delete(root.full(key), None),
    }
}

/// The keys of the conditions that do not hold for what `reads` found.
fn failed(txn: &Txn, found: &[TxnOpResponse]) -> Result<Vec<String>, Fault> {
    let mut failed = Vec::new();
    for (index, condition) in txn.conditions.iter().enumerate() {
        let Some(TxnOpResponse::Get(read)) = found.get(index) else {
            return Err(Fault::new(Kind::Unclear, Odd::Answer));
        };
        let modified = read.kvs().first().map(|pair| revision(pair.mod_revision()));
        if !holds(condition, modified) {
            failed.push(condition.key().to_owned());
        }
    }
    Ok(failed)
}
