//! Owns the watching of the store: list once, then every change, for ever; and the reading of a leader's last renewal where
//! renewals are not followed.
//!
//! Promises: the runtime gets every change in order, or the whole anew, as it is when it begins to follow renewals, or ceases
//! to; a store that does not answer is told once, to the log and to the runtime, until it does. Must not do: interpret.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use understudy_core::model::ids::HostId;
use understudy_store::{StoreError, WatchError};

use super::{Event, Parts};
use crate::connect;
use crate::keys::{self, Key};

/// Between two attempts while the store does not answer.
const RETRY: Duration = Duration::from_millis(500);

/// What the runtime is told about.
const ABOUT: &str = "store cache";

/// Starts the task, which follows renewals as long as it is told to. It ends when the runtime does.
pub(super) fn start(parts: Arc<Parts>, events: UnboundedSender<Event>, renewals: watch::Receiver<bool>) {
    let tasks = parts.tasks.clone();
    tasks.spawn("store cache", async move {
        let mut follower = Follower { parts, events, silent: None, renewals };
        while let Some(ended) = follower.follow().await {
            if ended == Ended::Fault {
                tokio::time::sleep(RETRY).await;
            }
        }
    });
}

/// Reads the last renewal of a host's lease.
pub(super) fn read_renewal(parts: &Arc<Parts>, events: UnboundedSender<Event>, host: HostId) {
    let (tasks, parts) = (parts.tasks.clone(), Arc::clone(parts));
    tasks.spawn("look at the leader's lease", async move {
        let found = parts.store.get(&Key::Renewal(host.clone()).to_string()).await;
        let revision = found.ok().map(|entry| entry.map(|entry| entry.modified).unwrap_or_default());
        let _ = events.send(Event::Renewal(host, revision));
    });
}

/// Why the following of the store ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Other records are to be followed from here on.
    Scope,
    Fault,
}

struct Follower {
    parts: Arc<Parts>,
    events: UnboundedSender<Event>,
    /// The sort of the error that was told last, while the store does not answer.
    silent: Option<std::mem::Discriminant<StoreError>>,
    renewals: watch::Receiver<bool>,
}

impl Follower {
    fn is_silent(&mut self, error: &StoreError) -> Option<Ended> {
        let text = connect::store_fault(&self.parts.config, error);
        let sort = std::mem::discriminant(error);
        if self.silent.replace(sort) == Some(sort) {
            tracing::debug!(error = %text, "the store still does not answer");
        } else {
            tracing::warn!(error = %text, "cannot read the store, trying again until it answers");
        }
        self.events.send(Event::Condition { about: ABOUT, text: Some(text) }).ok()?;
        Some(Ended::Fault)
    }

    fn answers(&mut self) -> Option<()> {
        if self.silent.take().is_some() {
            tracing::info!("the store answers");
        }
        self.events.send(Event::Condition { about: ABOUT, text: None }).ok()
    }

    /// Lists and follows until the watch ends. Nothing when the runtime is gone.
    async fn follow(&mut self) -> Option<Ended> {
        let store = self.parts.store.clone();
        let renewals = *self.renewals.borrow_and_update();
        let what = if renewals { keys::ALL } else { keys::CLUSTER };
        let listing = match store.list(what).await {
            Ok(listing) => listing,
            Err(error) => return self.is_silent(&error),
        };
        let revision = listing.revision;
        self.answers()?;
        self.events.send(Event::Listed { listing, renewals }).ok()?;
        let mut watch = match store.watch(what, revision).await {
            Ok(watch) => watch,
            Err(error) => return self.is_silent(&error),
        };
        loop {
            let next = tokio::select! {
                next = watch.next() => next,
                scope = self.renewals.wait_for(|wanted| *wanted != renewals) => {
                    scope.ok()?;
                    return Some(Ended::Scope);
                }
            };
            match next {
                Ok(batch) => self.events.send(Event::Changed(batch)).ok()?,
                Err(error @ WatchError::Compacted { .. }) => {
                    tracing::info!(%error, "reading the store anew");
                    return Some(Ended::Fault);
                }
                Err(error) => {
                    tracing::error!(error = %understudy_store::chain(&error), "the watch on the store ended, reading it anew");
                    return Some(Ended::Fault);
                }
            }
        }
    }
}
