//! Owns the handle that a caller holds on a watch, whichever store is behind it.

use std::fmt;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::error::WatchError;
use crate::history::Reader;
use crate::memory::WatchGate;
use crate::types::Batch;

/// A stream of batches. Dropping it ends the watch.
pub struct Watch(Kind);

enum Kind {
    /// A store of this process: reads its history.
    Local { reader: Reader, gate: Option<WatchGate> },
    /// A store elsewhere: a task follows it and sends what it sees.
    Remote { batches: mpsc::Receiver<Result<Batch, WatchError>>, task: AbortHandle },
    /// Ended by an error that was given to the caller.
    Ended,
}

impl Watch {
    pub(crate) fn local(reader: Reader, gate: Option<WatchGate>) -> Self {
        Self(Kind::Local { reader, gate })
    }

    pub(crate) fn remote(batches: mpsc::Receiver<Result<Batch, WatchError>>, task: AbortHandle) -> Self {
        Self(Kind::Remote { batches, task })
    }

    /// Waits for the next batch. May be dropped while it waits: nothing is lost.
    ///
    /// After an error the watch is over and this waits for ever: the caller lists and watches anew.
    pub async fn next(&mut self) -> Result<Batch, WatchError> {
        let result = match &mut self.0 {
            Kind::Local { reader, gate } => {
                let seen = reader.peek().await;
                if let (Some(gate), Ok(batch)) = (gate.as_mut(), &seen) {
                    gate.pass(batch.revision).await;
                }
                if let Ok(batch) = &seen {
                    reader.taken(batch.revision);
                }
                seen
            }
            Kind::Remote { batches, .. } => match batches.recv().await {
                Some(result) => result,
                // The task ends only after it has sent an error, which ended this watch, or with the runtime.
                None => std::future::pending().await,
            },
            Kind::Ended => std::future::pending().await,
        };
        if result.is_err() {
            self.end();
        }
        result
    }

    fn end(&mut self) {
        if let Kind::Remote { task, .. } = std::mem::replace(&mut self.0, Kind::Ended) {
            task.abort();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Kind::Local { .. } => "local",
            Kind::Remote { .. } => "remote",
            Kind::Ended => "ended",
        };
        f.debug_tuple("Watch").field(&kind).finish()
    }
}
