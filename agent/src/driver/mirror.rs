//! Owns the watching of the store: list once, then every change, for ever.
//!
//! Promises: the driver gets every change in order, or the whole anew; a store that does not answer is told once, to the
//! log and to the driver, until it does. Must not do: interpret.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use understudy_store::{StoreError, WatchError};

use super::{Event, Parts};
use crate::{keys, needs};

/// Between two attempts while the store does not answer.
const RETRY: Duration = Duration::from_millis(500);

/// What the driver is told about.
const ABOUT: &str = "mirror";

/// Starts the task. It ends when the driver does.
pub(super) fn start(parts: Arc<Parts>, events: UnboundedSender<Event>) {
    let tasks = parts.tasks.clone();
    tasks.spawn("store cache", async move {
        let mut mirror = Mirror { parts, events, silent: None };
        while mirror.follow().await.is_some() {
            tokio::time::sleep(RETRY).await;
        }
    });
}

struct Mirror {
    parts: Arc<Parts>,
    events: UnboundedSender<Event>,
    /// The sort of the error that was told last, while the store does not answer.
    silent: Option<std::mem::Discriminant<StoreError>>,
}

impl Mirror {
    fn is_silent(&mut self, error: &StoreError) -> Option<()> {
        let text = needs::store_fault(&self.parts.config, error);
        let sort = std::mem::discriminant(error);
        if self.silent.replace(sort) == Some(sort) {
            tracing::debug!(error = %text, "the store still does not answer");
        } else {
            tracing::warn!(error = %text, "cannot read the store, trying again until it answers");
        }
        self.events.send(Event::Complaint { about: ABOUT, text: Some(text) }).ok()
    }

    fn answers(&mut self) -> Option<()> {
        if self.silent.take().is_some() {
            tracing::info!("the store answers");
        }
        self.events.send(Event::Complaint { about: ABOUT, text: None }).ok()
    }

    /// Lists and follows until the watch ends. Nothing when the driver is gone.
    async fn follow(&mut self) -> Option<()> {
        let store = self.parts.store.clone();
        let listing = match store.list(keys::ALL).await {
            Ok(listing) => listing,
            Err(error) => return self.is_silent(&error),
        };
        let revision = listing.revision;
        self.answers()?;
        self.events.send(Event::Listed(listing)).ok()?;
        let mut watch = match store.watch(keys::ALL, revision).await {
            Ok(watch) => watch,
            Err(error) => return self.is_silent(&error),
        };
        loop {
            match watch.next().await {
                Ok(batch) => self.events.send(Event::Changed(batch)).ok()?,
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
}
