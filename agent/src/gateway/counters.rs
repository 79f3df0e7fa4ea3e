//! Owns the reasons for which a terminal's connection ends, and the counts of them.
//!
//! Promises: every connection that was counted as opened is counted once as ended, with its reason. Must not
//! name a metrics crate: the wiring exports these numbers.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Why a connection between a terminal and its display ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The terminal closed it, or its connection broke.
    ClientLeft,
    /// The terminal answered no ping: its machine is off or cut off.
    ClientSilent,
    /// The display closed it.
    DisplayClosed,
    /// The terminal's display is another one (newer epoch or other address).
    DisplayMoved,
    /// The terminal lost its display primary, or has none.
    NoDisplay,
    /// The display took no connection in time.
    DisplayUnreachable,
    /// The display took the connection but did not greet in time.
    DisplaySilent,
    /// The terminal was deleted, or never existed.
    TerminalGone,
    /// This gateway is going down.
    Shutdown,
}

impl End {
    /// Every reason, in the order of their counters.
    pub const ALL: [Self; 9] = [
        Self::ClientLeft,
        Self::ClientSilent,
        Self::DisplayClosed,
        Self::DisplayMoved,
        Self::NoDisplay,
        Self::DisplayUnreachable,
        Self::DisplaySilent,
        Self::TerminalGone,
        Self::Shutdown,
    ];

    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientLeft => "client_left",
            Self::ClientSilent => "client_silent",
            Self::DisplayClosed => "display_closed",
            Self::DisplayMoved => "display_moved",
            Self::NoDisplay => "no_display",
            Self::DisplayUnreachable => "display_unreachable",
            Self::DisplaySilent => "display_silent",
            Self::TerminalGone => "terminal_gone",
            Self::Shutdown => "shutdown",
        }
    }

    /// The WebSocket close code. The page (page/terminal.js) acts on it: 4000 to 4899 mean that this gateway
    /// is well, 1001 that another one is to be asked.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::ClientLeft => 1000,
            Self::Shutdown => 1001,
            Self::DisplayClosed => 4000,
            Self::DisplayMoved => 4001,
            Self::ClientSilent => 4002,
            Self::TerminalGone => 4404,
            Self::DisplayUnreachable => 4502,
            Self::NoDisplay => 4503,
            Self::DisplaySilent => 4504,
        }
    }
}

/// What a gateway has served.
#[derive(Debug, Default)]
pub struct Counters {
    open: AtomicI64,
    connections: AtomicU64,
    refused_origins: AtomicU64,
    ends: [AtomicU64; End::ALL.len()],
}

impl Counters {
    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> i64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// WebSockets refused because a foreign page asked for them.
    #[must_use]
    pub fn refused_origins(&self) -> u64 {
        self.refused_origins.load(Ordering::Relaxed)
    }

    /// Connections ended for `reason` so far.
    #[must_use]
    pub fn ended(&self, reason: End) -> u64 {
        self.ends[reason as usize].load(Ordering::Relaxed)
    }

    pub(super) fn refuse_origin(&self) {
        self.refused_origins.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn enter(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn leave(&self, reason: End) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.ends[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_word_and_code() {
        for (place, end) in End::ALL.into_iter().enumerate() {
            assert_eq!(end as usize, place, "{end:?}");
            for other in &End::ALL[place + 1..] {
                assert_ne!(end.as_str(), other.as_str());
                assert_ne!(end.code(), other.code());
            }
        }
    }
}
