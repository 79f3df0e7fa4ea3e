//! Owns what this agent writes into the store of its own accord: its facts; and, in the modules below, what the leader plans and
//! the requests of the lease.
//!
//! Promises: every write is on condition of what it was decided from, and how it went comes back. Must not do: decide what is
//! written, or follow the store (`store_cache` does).

pub(in crate::runtime) mod leader;
pub(super) mod lease;

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use understudy_core::model::records::HostFacts;
use understudy_core::transaction::Transaction;
use understudy_store::{Committed, Revision};

use crate::exit::chain;
use crate::keys::Key;
use crate::runtime::publish::Published;
use crate::runtime::{Event, Parts};

/// Writes this host's facts over the revision that it knows of them; how it went comes as [`Event::Published`].
pub(in crate::runtime) fn write_facts(
    parts: &Arc<Parts>,
    sender: UnboundedSender<Event>,
    (facts, at): (Arc<HostFacts>, Option<Revision>),
) {
    let (tasks, parts) = (parts.tasks.clone(), Arc::clone(parts));
    tasks.spawn("facts", async move {
        let key = Key::Facts(parts.config.host.clone());
        let write = Transaction::new().when(key.clone(), at.map(|at| at.0)).put(key, facts.as_ref());
        let written = match parts.store.commit(&write.into()).await {
            Ok(Committed::Applied { revision }) => Some(Box::new(Published { facts, at: revision })),
            Ok(Committed::Refused { .. }) => {
                tracing::debug!("this host's facts were written by an earlier write, trying again");
                None
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "this host's facts could not be written, trying again");
                None
            }
        };
        let _ = sender.send(Event::Published(written));
    });
}
