//! Owns the task behind one watch: it follows one member, and goes on at another when that one is lost.
//!
//! ```text
//!            connect, create at cursor + 1
//!   choose ───────────────────────────────▶ follow ── batch ──▶ (cursor := its revision) ──▶ follow
//!     ▲                                       │
//!     └──── closed, silent, no leader ◀───────┤
//!                                             └── compacted, rewound, denied ──▶ end, told to the caller
//! ```
//!
//! A member whose host is frozen says nothing and closes nothing. The watch therefore asks for a progress
//! report on its own stream, and gives the member up when it is silent. HTTP/2 pings would do, were they not
//! limited to one in 5 s by etcd. The revisions in progress reports are not used to move the cursor: before
//! 3.4.25 and 3.5.8 they could run ahead of events not yet sent.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::fault::{Fault, Kind, Odd};
use super::{MESSAGE_BYTES_MAX, Shared, number, revision};
use crate::error::{StoreError, WatchError};
use crate::types::{Batch, Change, Revision};
use crate::watch::Watch;

/// Batches read ahead of a slow caller. Beyond that the member waits, and etcd keeps the changes.
const AHEAD: usize = 64;
const PROBES_UNANSWERED_MAX: u32 = 3;
/// The pause after a connection that gave nothing; doubled up to the longest.
const PAUSE: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(1);

pub(super) fn start(shared: &Arc<Shared>, prefix: &str, from: Revision) -> Watch {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let follower =
        Follower { shared: Arc::clone(shared), prefix: shared.root.full(prefix), cursor: from, sender };
    let task = tokio::spawn(follower.run());
    Watch::remote(receiver, task.abort_handle())
}

struct Follower {
    shared: Arc<Shared>,
    prefix: String,
    /// Every change up to this revision has been given to the caller.
    cursor: Revision,
    sender: mpsc::Sender<Result<Batch, WatchError>>,
}

/// Why a member is followed no longer.
enum End {
    Lost(Fault),
    Over(WatchError),
    /// The caller dropped the watch.
    Unwanted,
}

impl<T: Into<Fault>> From<T> for End {
    fn from(fault: T) -> Self {
        Self::Lost(fault.into())
    }
}

impl Follower {
    async fn run(mut self) {
        let mut pause = PAUSE;
        loop {
            let member = self.shared.members.best();
            let before = self.cursor;
            let end = self.follow(member).await;
            if self.cursor > before {
                pause = PAUSE;
            }
            match end {
                End::Unwanted => return,
                End::Over(error) => {
                    // A caller that is gone needs no error.
                    let _ = self.sender.send(Err(error)).await;
                    return;
                }
                End::Lost(fault) => {
                    let endpoint = self.shared.members.endpoint(member);
                    tracing::debug!(member = endpoint, prefix = self.prefix, cursor = %self.cursor, %fault, "watch goes to another member");
                    self.shared.members.suspect(member);
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn follow(&mut self, member: usize) -> End {
        match self.open(member).await {
            Ok(stream) => match self.read(stream).await {
                Ok(never) => match never {},
                Err(end) => end,
            },
            Err(end) => end,
        }
    }

    async fn open(&mut self, member: usize) -> Result<WatchStream, End> {
        // With a quorum's word, so that a watch is not opened on a minority, nor beyond a restored store's end.
        match self.shared.current().await {
            Ok(current) if current < self.cursor => {
                return Err(End::Over(WatchError::Rewound { seen: self.cursor, current }));
            }
            Ok(_) => {}
            Err(error @ StoreError::Unavailable { .. }) => {
                return Err(End::Lost(Fault::new(Kind::NotApplied, error)));
            }
            Err(error) => return Err(End::Over(WatchError::Store(error))),
        }
        let client = self.shared.members.connect(member).await?;
        let options =
            WatchOptions::new().with_prefix().with_start_revision(number(Revision(self.cursor.0 + 1)));
        let mut client = client.watch_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
        let limit = self.shared.members.timeouts().attempt;
        let created = async {
            let mut stream = client.watch(self.prefix.clone(), Some(options)).await.map_err(Fault::from)?;
            let first = stream.message().await.map_err(Fault::from)?;
            Ok::<_, Fault>((stream, first))
        };
        match timeout(limit, created).await {
            Err(_) => Err(End::Lost(Fault::new(Kind::NotApplied, Odd::Silent(limit)))),
            Ok(Err(fault)) => Err(End::Lost(fault)),
            Ok(Ok((_, None))) => Err(End::Lost(Fault::new(Kind::NotApplied, Odd::WatchClosed))),
            Ok(Ok((stream, Some(first)))) => {
                self.take(&first).await?;
                Ok(stream)
            }
        }
    }

    async fn read(&mut self, mut stream: WatchStream) -> Result<std::convert::Infallible, End> {
        let probe = self.shared.members.timeouts().watch_probe;
        let patience = probe * PROBES_UNANSWERED_MAX;
        let mut probes = interval(probe);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                // What has arrived is read before its absence is judged.
                biased;
                message = stream.message() => {
                    let message = message.map_err(Fault::from)?;
                    let message = message.ok_or_else(|| Fault::new(Kind::NotApplied, Odd::WatchClosed))?;
                    self.take(&message).await?;
                    // Counted from after a slow caller took the batch: that wait is not the member's.
                    heard = Instant::now();
                }
                _ = probes.tick() => {
                    if heard.elapsed() > patience {
                        return Err(End::Lost(Fault::new(Kind::NotApplied, Odd::Silent(patience))));
                    }
                    timeout(patience, stream.request_progress())
                        .await
                        .map_err(|_| Fault::new(Kind::NotApplied, Odd::Silent(patience)))?
                        .map_err(Fault::from)?;
                }
                () = self.sender.closed() => return Err(End::Unwanted),
            }
        }
    }

    async fn take(&mut self, message: &WatchResponse) -> Result<(), End> {
        if message.compact_revision() > 0 {
            let oldest = revision(message.compact_revision());
            return Err(End::Over(WatchError::Compacted { wanted: self.cursor, oldest }));
        }
        if message.canceled() {
            let reason = Odd::WatchCancelled(message.cancel_reason().to_owned());
            if message.cancel_reason().contains("permission denied") {
                let error = StoreError::Denied {
                    problem: format!("etcd refused a watch below '{}'", self.prefix),
                    advice: "see that the user's role may read there".to_owned(),
                    file: None,
                    source: Some(Box::new(reason)),
                };
                return Err(End::Over(WatchError::Store(error)));
            }
            return Err(End::Lost(Fault::new(Kind::NotApplied, reason)));
        }
        for batch in self.batches(message) {
            self.deliver(batch).await?;
        }
        Ok(())
    }

    async fn deliver(&mut self, batch: Batch) -> Result<(), End> {
        let revision = batch.revision;
        if let ControlFlow::Break(()) = self.send(batch).await {
            return Err(End::Unwanted);
        }
        self.cursor = revision;
        Ok(())
    }

    async fn send(&self, batch: Batch) -> ControlFlow<()> {
        match self.sender.send(Ok(batch)).await {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    /// The message's events by revision. etcd keeps a revision's events in one message unless asked otherwise.
    fn batches(&self, message: &WatchResponse) -> Vec<Batch> {
        let mut batches: Vec<Batch> = Vec::new();
        for event in message.events() {
            let Some(pair) = event.kv() else { continue };
            let revision = revision(pair.mod_revision());
            let Some(key) = self.shared.root.own(pair.key()) else { continue };
            let change = match event.event_type() {
                EventType::Delete => Change::Deleted { key: key.to_owned(), revision },
                EventType::Put => match self.shared.root.entry(pair) {
                    Some(entry) => Change::Put(entry),
                    None => continue,
                },
            };
            match batches.last_mut() {
                Some(last) if last.revision == revision => last.changes.push(change),
                _ => batches.push(Batch { revision, changes: vec![change] }),
            }
        }
        for batch in &mut batches {
            batch.changes.sort_by(|a, b| a.key().cmp(b.key()));
        }
        batches
    }
}
