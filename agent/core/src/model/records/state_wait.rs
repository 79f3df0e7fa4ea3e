//! Owns how long a node has waited for its state.
//!
//! Promises: as `records`; a wall clock that is set, and a change of the leader to one with another clock, move the end of the
//! wait by [`StateWait::STEP`] at the most. Must not do: decide what is waited for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bounds::{NEWER_STATE, STATE_WAIT_STEP};
use crate::model::units::UnixMillis;

/// How long a node without a primary has waited for its state. The time is added up in steps: of what a wall clock says has
/// gone by since the last one, a step counts and no more, and what lies ahead was written by another clock and counts as
/// nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateWait {
    /// How long by `at`, in milliseconds.
    pub waited_ms: u64,
    /// When that was written.
    pub at: UnixMillis,
    /// Since when a newer copy is waited for than one that can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer_since: Option<UnixMillis>,
    /// An operator wants it to wait no longer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given_up: bool,
}

impl StateWait {
    /// See [`STATE_WAIT_STEP`].
    pub const STEP: Duration = STATE_WAIT_STEP;

    /// A wait that begins.
    #[must_use]
    pub fn started(at: UnixMillis) -> Self {
        Self { waited_ms: 0, at, newer_since: None, given_up: false }
    }

    /// How long it has been by now.
    #[must_use]
    pub fn waited(&self, now: UnixMillis) -> Duration {
        Duration::from_millis(self.waited_ms) + now.since(self.at).min(Self::STEP)
    }

    /// When it will have been that long, as far as its own clock goes on.
    #[must_use]
    pub fn ends(&self, longest: Duration) -> UnixMillis {
        self.at + longest.saturating_sub(Duration::from_millis(self.waited_ms))
    }

    /// When a newer copy is waited for no longer, where one is.
    #[must_use]
    pub fn newer_ends(&self) -> Option<UnixMillis> {
        self.newer_since.map(|since| since + NEWER_STATE)
    }

    /// The same wait, of which nothing has gone by: whoever is waited for is there again.
    #[must_use]
    pub fn anew(&self, now: UnixMillis) -> Self {
        Self { waited_ms: 0, at: now, newer_since: None, ..*self }
    }

    /// Whether it is to be written anew.
    #[must_use]
    pub fn is_due(&self, now: UnixMillis) -> bool {
        self.at > now || now.since(self.at) >= Self::STEP
    }

    /// The same, as it is by now.
    #[must_use]
    pub fn counted(&self, now: UnixMillis) -> Self {
        let waited_ms = u64::try_from(self.waited(now).as_millis()).unwrap_or(u64::MAX);
        Self { waited_ms, at: now, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixMillis = UnixMillis(1_000_000_000);

    fn later(seconds: u64) -> UnixMillis {
        START + Duration::from_secs(seconds)
    }

    #[test]
    fn time_is_added_up_step_by_step() {
        let mut wait = StateWait::started(START);
        for seconds in 1..=120 {
            let now = later(seconds);
            assert_eq!(wait.waited(now), Duration::from_secs(seconds));
            if wait.is_due(now) {
                wait = wait.counted(now);
                assert_eq!(seconds % StateWait::STEP.as_secs(), 0);
            }
        }
        assert_eq!(wait.ends(Duration::from_secs(300)), later(300));
    }

    /// S14: a clock that is set must neither cut the wait short nor make it endless.
    #[test]
    fn a_clock_that_is_set_moves_the_end_by_a_step_at_the_most() {
        let wait = StateWait { waited_ms: 60_000, at: later(60), ..StateWait::started(START) };
        let ahead = later(60 + 86_400);
        assert_eq!(wait.waited(ahead), Duration::from_secs(60) + StateWait::STEP);
        assert!(wait.is_due(ahead));
        let behind = UnixMillis(5_000);
        assert_eq!(wait.waited(behind), Duration::from_secs(60));
        assert!(wait.is_due(behind), "it goes on from there");
        let wait = wait.counted(behind);
        assert_eq!((wait.waited_ms, wait.at), (60_000, behind));
        assert_eq!(wait.waited(behind + Duration::from_secs(7)), Duration::from_secs(67));
    }
}
