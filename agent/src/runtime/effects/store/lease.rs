//! Owns the lease's requests to the store: the opening, the renewal, and what a lost answer to either means. They run on the
//! lease's own thread, over its own connections.
//!
//! Promises: every write is a compare-and-swap; the time that counts is read before it is sent. Must not do: choose
//! between going on and opening anew (core does).

use tokio::sync::oneshot;
use understudy_core::host::lease::LeaseAnswer;
use understudy_core::host::opening::{GuardHolds, Opening, opening};
use understudy_core::model::records::{LeaseRecord, RenewalRecord};
use understudy_core::model::units::Boottime;
use understudy_core::transaction::Transaction;
use understudy_guard::Status;
use understudy_hypervisor::process::boottime;
use understudy_store::{Committed, Revision, Store, StoreError};

use crate::exit::chain;
use crate::keys::{self, Key};
use crate::runtime::effects::fence::lease_thread::{Context, Done, Held};
use crate::runtime::{Event, LeaseEvent};

/// Takes up the open lease of this very boot, else has the host cleared and opens the next.
pub(in crate::runtime::effects) async fn open(context: &Context) -> Done {
    let unavailable = || Done { store: Some(true), ..Done::new(LeaseAnswer::Unavailable) };
    let key = Key::Lease(context.host.clone()).to_string();
    let entry = match context.store.get(&key).await {
        Ok(entry) => entry,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "cannot read this host's lease");
            return Done { store: Some(false), ..unavailable() };
        }
    };
    let known = entry.as_ref().map(|entry| keys::decode::<LeaseRecord>(&key, &entry.value)).transpose();
    let known = match known {
        Ok(known) => known,
        Err(error) => {
            tracing::error!(error = %chain(&error), "this host's lease cannot be read: none is opened");
            return unavailable();
        }
    };
    // Under a lease that no guard watches nothing could run.
    let guard = match context.guard.status().await {
        Some(Ok(status)) => holds(&status),
        Some(Err(error)) => return Done { guard: Some(chain(&error)), ..unavailable() },
        None => return unavailable(),
    };
    let (sent, record) = match opening(known.as_ref(), &context.identity, guard, boottime()) {
        Opening::Resume { number, acknowledged } => {
            let held = entry.map(|entry| Held { number, revision: entry.modified });
            let sent = boottime();
            let opened = LeaseAnswer::Opened { number, sent, acknowledged: Some(acknowledged) };
            return renewal(context, held, opened).await;
        }
        Opening::Taken { by, boot } => {
            let _ = context.events.send(Event::Lease(LeaseEvent::Taken { by, boot }));
            return unavailable();
        }
        Opening::Next { record, previous } => {
            if !cleared(context, previous).await {
                return unavailable();
            }
            (boottime(), record)
        }
    };
    let (outcome, held) = write(context, &record, entry.map(|entry| entry.modified)).await;
    done(outcome, held, LeaseAnswer::Opened { number: record.number, sent, acknowledged: None })
}

fn holds(status: &Status) -> Option<GuardHolds> {
    let deadline = status.deadline?;
    Some(GuardHolds { number: deadline.lease, deadline: Boottime(deadline.boottime_ns) })
}

async fn cleared(context: &Context, previous: Option<u64>) -> bool {
    let (done, cleared) = oneshot::channel();
    let asked = context.events.send(Event::Lease(LeaseEvent::Clear { previous, done }));
    asked.is_ok() && cleared.await.unwrap_or(false)
}

/// Renews what the store is known to hold.
pub(in crate::runtime::effects) async fn renew(context: &Context, held: Option<Held>) -> Done {
    renewal(context, held, LeaseAnswer::Renewed).await
}

/// Writes a renewal, on condition that the lease is as it was opened.
async fn renewal(context: &Context, held: Option<Held>, written: LeaseAnswer) -> Done {
    let Some(held) = held else { return Done::new(LeaseAnswer::Refused) };
    let record = RenewalRecord { number: held.number, at: crate::runtime::now().wall };
    let write = Transaction::new()
        .when(Key::Lease(context.host.clone()), Some(held.revision.0))
        .put(Key::Renewal(context.host.clone()), &record);
    let outcome = match context.store.commit(&write.into()).await {
        Ok(Committed::Applied { .. }) => Written::Yes,
        Ok(Committed::Refused { .. }) => Written::Refused,
        Err(error) => {
            tracing::debug!(error = %chain(&error), "a renewal was not written, or its answer was lost");
            Written::Unknown
        }
    };
    done(outcome, Some(held), written)
}

fn done(outcome: Written, held: Option<Held>, written: LeaseAnswer) -> Done {
    let (answer, answers) = match outcome {
        Written::Yes => (written, true),
        Written::Refused => (LeaseAnswer::Refused, true),
        Written::Unknown => (LeaseAnswer::Unavailable, false),
    };
    Done { held, store: Some(answers), ..Done::new(answer) }
}

enum Written {
    Yes,
    Refused,
    /// It may be there, or may yet come.
    Unknown,
}

/// Opens a lease.
async fn write(
    context: &Context,
    record: &LeaseRecord,
    revision: Option<Revision>,
) -> (Written, Option<Held>) {
    let lease = Key::Lease(context.host.clone());
    let key = lease.to_string();
    let write =
        Transaction::new().when(lease.clone(), revision.map(|revision| revision.0)).put(lease, record);
    match context.store.commit(&write.into()).await {
        Ok(Committed::Applied { revision }) => (Written::Yes, Some(Held { number: record.number, revision })),
        Ok(Committed::Refused { .. }) => look_again(context.store.as_ref(), &key, record).await,
        Err(error @ StoreError::Ambiguous { .. }) => {
            tracing::debug!(error = %chain(&error), "the answer to the opening of a lease was lost");
            match look_again(context.store.as_ref(), &key, record).await {
                // Not there yet is not refused: the next attempt will tell.
                (Written::Refused, _) => (Written::Unknown, None),
                other => other,
            }
        }
        Err(error) => {
            tracing::debug!(error = %chain(&error), "a lease was not opened");
            (Written::Unknown, None)
        }
    }
}

/// What refuses an opening may be this agent's own earlier one, whose answer was lost.
async fn look_again(store: &dyn Store, key: &str, record: &LeaseRecord) -> (Written, Option<Held>) {
    match store.get(key).await {
        Ok(Some(entry)) => match keys::decode::<LeaseRecord>(key, &entry.value) {
            Ok(found)
                if found.expired.is_none() && found.boot == record.boot && found.number == record.number =>
            {
                // Ours and open, but written at an unknown earlier time: the next attempt reads it.
                (Written::Unknown, Some(Held { number: found.number, revision: entry.modified }))
            }
            Ok(_) | Err(_) => (Written::Refused, None),
        },
        Ok(None) => (Written::Refused, None),
        Err(_) => (Written::Unknown, None),
    }
}
