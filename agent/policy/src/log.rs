//! Owns what a policy may write to the daemon's log.
//!
//! Promises: at most [`LINES_PER_MINUTE`] lines of [`LINE_BYTES_MAX`] bytes per policy and minute, however many
//! questions are asked; what was dropped is counted and said.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::text::one_line;

/// How much a line matters, in any version of `wit/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// About a line per second: enough to follow a policy, too little to fill a disk (20 MB a day).
const LINES_PER_MINUTE: u32 = 60;
const LINE_BYTES_MAX: usize = 256;
const WINDOW: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    written: u32,
    dropped: u64,
}

/// The log of one policy, shared by all of its questions.
#[derive(Debug)]
pub(crate) struct PolicyLog {
    policy: Arc<str>,
    window: Mutex<Window>,
}

impl PolicyLog {
    pub(crate) fn new(policy: Arc<str>) -> Self {
        Self { policy, window: Mutex::default() }
    }

    pub(crate) fn write(&self, level: Level, message: &str) {
        let (admitted, dropped) = self.admit(Instant::now());
        let policy = &*self.policy;
        if dropped > 0 {
            tracing::warn!(policy, dropped, "lines of a policy were dropped within the last minute");
        }
        if !admitted {
            return;
        }
        let message = one_line(message, LINE_BYTES_MAX);
        // An error of a policy is no error of the daemon: whatever was asked has a built-in rule behind it.
        match level {
            Level::Error | Level::Warn => tracing::warn!(policy, message, "policy says"),
            Level::Info => tracing::info!(policy, message, "policy says"),
            Level::Debug => tracing::debug!(policy, message, "policy says"),
            Level::Trace => tracing::trace!(policy, message, "policy says"),
        }
    }

    /// Whether one more line may be written at `now`, and how many were dropped in a window that it closed.
    fn admit(&self, now: Instant) -> (bool, u64) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dropped = 0;
        if window.began.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            dropped = window.dropped;
            *window = Window { began: Some(now), written: 0, dropped: 0 };
        }
        if window.written < LINES_PER_MINUTE {
            window.written += 1;
            (true, dropped)
        } else {
            window.dropped += 1;
            (false, dropped)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_rate_are_dropped_and_counted() {
        let log = PolicyLog::new("chatty".into());
        let start = Instant::now();
        let admitted = (0..LINES_PER_MINUTE + 7).filter(|_| log.admit(start).0).count();
        assert_eq!(admitted, LINES_PER_MINUTE as usize);
        assert_eq!(log.admit(start + WINDOW - Duration::from_millis(1)), (false, 0));
        assert_eq!(log.admit(start + WINDOW), (true, 8));
        assert_eq!(log.admit(start + WINDOW), (true, 0));
    }
}
