//! Owns the feeding of systemd's watchdog by the runtime's loop.
//!
//! Promises: it is fed by the loop's own progress alone, at most every quarter of what systemd allows; a loop that stands
//! still is not fed. Must not do: run in a task of its own.

use std::time::{Duration, Instant};

pub(crate) struct Watchdog {
    every: Option<Duration>,
    fed: Option<Instant>,
}

impl Watchdog {
    /// As systemd asks; silent where it does not.
    pub(crate) fn of_systemd() -> Self {
        Self { every: sd_notify::watchdog_enabled().map(|allowed| allowed / 4), fed: None }
    }

    /// To be called at each turn of a loop.
    pub(crate) fn feed(&mut self) {
        let Some(every) = self.every else { return };
        if self.fed.is_none_or(|fed| fed.elapsed() >= every) {
            self.fed = Some(Instant::now());
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}
