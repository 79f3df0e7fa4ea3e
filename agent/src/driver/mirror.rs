//! Owns the watching of the store: list once, then every change, for ever.
//!
//! Promises: the driver gets every change in order, or the whole anew. Must not do: interpret.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use understudy_store::{Store, WatchError};

use super::Event;
use crate::keys;

/// Between two attempts while the store does not answer.
const RETRY: Duration = Duration::from_millis(500);

/// Starts the task. It ends when the driver does.
pub(super) fn start(store: Arc<dyn Store>, events: UnboundedSender<Event>) {
    tokio::spawn(async move {
        while follow(store.as_ref(), &events).await.is_some() {
            tokio::time::sleep(RETRY).await;
        }
    });
}

/// Lists and follows until the watch ends. Nothing when the driver is gone.
async fn follow(store: &dyn Store, events: &UnboundedSender<Event>) -> Option<()> {
    let listing = match store.list(keys::ALL).await {
        Ok(listing) => listing,
        Err(error) => {
            tracing::warn!(error = %understudy_store::chain(&error), "cannot read the store, trying again");
            return if events.is_closed() { None } else { Some(()) };
        }
    };
    let revision = listing.revision;
    events.send(Event::Listed(listing)).ok()?;
    let mut watch = match store.watch(keys::ALL, revision).await {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!(error = %understudy_store::chain(&error), "cannot watch the store, trying again");
            return Some(());
        }
    };
    loop {
        match watch.next().await {
            Ok(batch) => events.send(Event::Changed(batch)).ok()?,
            Err(error @ WatchError::Compacted { .. }) => {
                tracing::info!(%error, "reading the store anew");
                return Some(());
            }
            Err(error) => {
                tracing::error!(error = %understudy_store::chain(&error), "the watch on the store ended, reading it anew");
                return Some(());
            }
        }
    }
}
