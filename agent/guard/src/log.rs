//! Lines for the journal, written so that the guard never waits: formatted on the stack, dropped when whoever reads
//! stderr does not keep up. A hung journald must not hold back a kill.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The syslog severities in use.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    Error = 3,
    Warn = 4,
    Info = 6,
}

/// One line, cut where the buffer ends.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte stays free for the line's end.
        let room = self.bytes.len() - 1 - self.len;
        let taken = text.len().min(room);
        self.bytes[self.len..self.len + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.len += taken;
        Ok(())
    }
}

pub(crate) fn line(level: Level, text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 512], len: 0 };
    // The prefix is how systemd learns a line's severity from a plain stream.
    let written = write!(line, "<{}>{text}", level as u8);
    debug_assert!(written.is_ok(), "a line is cut, never refused");
    line.bytes[line.len] = b'\n';
    let stderr = std::io::stderr();
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    let writable = matches!(poll(&mut ready, PollTimeout::ZERO), Ok(1))
        && ready[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT));
    if writable {
        // A line that is lost is lost: there is nowhere left to say so.
        drop(stderr.lock().write(&line.bytes[..=line.len]));
    }
}

macro_rules! info {
    ($($arg:tt)*) => { $crate::log::line($crate::log::Level::Info, format_args!($($arg)*)) };
}
macro_rules! warning {
    ($($arg:tt)*) => { $crate::log::line($crate::log::Level::Warn, format_args!($($arg)*)) };
}
macro_rules! error {
    ($($arg:tt)*) => { $crate::log::line($crate::log::Level::Error, format_args!($($arg)*)) };
}
pub(crate) use {error, info, warning};

/// A UUID as libvirt prints it.
pub(crate) struct Uuid(pub(crate) [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_char('-')?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
