//! Owns what the leader writes: its bid, its resignation, and what core's `Leadership` planned; each logged and counted once.
//!
//! Promises: every request comes back as an event, once; a write of which the store said nothing comes back as one of unknown
//! outcome. Must not do: decide when to bid, what to write or what an outcome means.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;
use understudy_core::leader::leadership::{Input, What, WriteOutcome, WriteRequest};
use understudy_core::model::records::LeaderRecord;
use understudy_core::model::view::Versioned;
use understudy_store::election::{Leadership, lead, resign};
use understudy_store::{Committed, Txn};

use crate::exit::chain;
use crate::keys::LEADER;
use crate::runtime::leader::Teller;
use crate::runtime::{Event, Parts};

/// Assignments that are being written at one time. Each is a round trip to the store and a sync of its log there.
const WRITES_MAX: usize = 32;

/// The turns that a term's assignments take.
pub(in crate::runtime) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WRITES_MAX)))
    }
}

/// Bids for the leadership; how it went comes as [`Event::Bid`].
pub(in crate::runtime) fn bid(
    parts: &Arc<Parts>,
    sender: UnboundedSender<Event>,
    previous: Option<Versioned<LeaderRecord>>,
) {
    let (tasks, parts) = (parts.tasks.clone(), Arc::clone(parts));
    tasks.spawn("bid", async move {
        let previous = previous.map(|known| Leadership::seen(LEADER, &known));
        let bid = lead(parts.store.as_ref(), LEADER, &parts.config.host, previous.as_ref()).await;
        let _ = sender.send(Event::Bid(bid));
    });
}

/// Gives the leadership up beside the loop.
pub(in crate::runtime) fn start_resigning(parts: &Arc<Parts>, teller: Teller, own: Versioned<LeaderRecord>) {
    let (tasks, parts) = (parts.tasks.clone(), Arc::clone(parts));
    tasks.spawn("resignation", async move {
        give_up(&parts, &own).await;
        teller.tell(Input::Resigned, None);
    });
}

/// Writes what core planned.
pub(in crate::runtime) fn write(parts: &Arc<Parts>, teller: Teller, turns: &Turns, request: WriteRequest) {
    let WriteRequest { id, transaction, what } = request;
    announce(&what);
    let (tasks, parts, turns) = (parts.tasks.clone(), Arc::clone(parts), Arc::clone(&turns.0));
    let is_assignment = matches!(what, What::Assign { .. });
    tasks.spawn("write of the leader", async move {
        // The end of a silent lease does not wait behind assignments.
        let _permit = if is_assignment { turns.acquire().await.ok() } else { None };
        let outcome = commit(&parts, &transaction.into()).await;
        if let WriteOutcome::Applied(_) = outcome {
            applied(&parts, &what);
        }
        teller.tell(Input::Written(id, outcome), None);
    });
}

/// Logs a write that begins. An assignment is logged once it is written.
fn announce(what: &What) {
    match what {
        What::Assign { .. } => {}
        What::Expire(expiry) => {
            tracing::warn!(host = %expiry.host, reason = ?expiry.record.expired, "expiring a silent host lease");
        }
        What::Activate(record) => {
            tracing::info!(generation = record.generation, by = %record.by, "every open host has the set of policies: it decides from here on");
        }
        What::Refuse(refused) => {
            tracing::warn!(generation = refused.generation, by = %refused.by, reason = refused.reason, "a set of policies is refused, what decided before goes on");
        }
        What::Suspend(record) => {
            tracing::warn!(generation = record.generation, suspended = ?record.suspended, "a policy failed too often on this host: it is suspended");
        }
    }
}

/// Logs and counts a write that is in the store.
fn applied(parts: &Parts, what: &What) {
    match what {
        What::Assign { assignment, before } => {
            let (node, record) = (&assignment.node, &assignment.record);
            let reason = assignment.reasons.join("; ");
            tracing::info!(%node, epoch = %record.epoch, reason, "assignment written");
            let waited = before.as_ref().is_some_and(|before| before.value.state_wait.is_some());
            if record.state_wait.is_some() && !waited {
                tracing::warn!(%node, reason, "a node waits for its state, its terminal is without it");
            }
            parts.metrics.assigned(node, record, before.as_ref().map(|before| &before.value));
        }
        What::Expire(_) | What::Activate(_) | What::Refuse(_) | What::Suspend(_) => {}
    }
}

/// Writes one transaction.
async fn commit(parts: &Parts, txn: &Txn) -> WriteOutcome {
    match parts.store.commit(txn).await {
        Ok(Committed::Applied { revision }) => WriteOutcome::Applied(revision.0),
        Ok(Committed::Refused { failed, .. }) => {
            tracing::debug!(?failed, "a write was overtaken");
            WriteOutcome::refused(&failed)
        }
        Err(error) => {
            tracing::warn!(error = %chain(&error), "a planned write failed");
            WriteOutcome::Unknown
        }
    }
}

/// Gives the leadership up in order, so that the next leader need not wait for its end.
pub(in crate::runtime) async fn give_up(parts: &Parts, own: &Versioned<LeaderRecord>) {
    if let Err(error) = resign(parts.store.as_ref(), &Leadership::seen(LEADER, own)).await {
        tracing::warn!(error = %chain(&error), "cannot resign the leadership");
    }
}
