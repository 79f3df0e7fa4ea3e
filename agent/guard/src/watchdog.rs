//! The hardware watchdog: resets the host when the guard itself cannot keep its promise.
//!
//! Promises: fed only while nothing registered is overdue; closed for good (`V`) only at an orderly stop that leaves
//! no primary. After any other end of the guard the device goes on, and resets the host unless a successor feeds it.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::O_NONBLOCK;

use crate::log::{error, info, warning};
use crate::sys;

/// Long enough for a restart of the guard by systemd, short against the leases of the safe profile.
const TIMEOUT_SECONDS: i32 = 10;

pub(crate) struct Watchdog {
    device: File,
    /// A failure is said once per spell, not at every beat.
    failing: bool,
}

impl Watchdog {
    /// Opens the device, which starts it. A missing one is said and no failure.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        let device = match OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(path) {
            Ok(device) => device,
            Err(error) => {
                warning!("running without a hardware watchdog path={} error={error}", path.display());
                return None;
            }
        };
        match sys::watchdog_set_timeout(&device, TIMEOUT_SECONDS) {
            Ok(seconds) => info!("hardware watchdog armed path={} seconds={seconds}", path.display()),
            Err(errno) => {
                warning!("the watchdog keeps its own time-out path={} error={errno}", path.display());
            }
        }
        Some(Self { device, failing: false })
    }

    pub(crate) fn feed(&mut self) {
        match self.device.write_all(b"\0") {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                error!("cannot feed the hardware watchdog error={error}");
            }
            Err(_) => {}
        }
    }

    /// The magic close.
    pub(crate) fn disarm(mut self) {
        match self.device.write_all(b"V") {
            Ok(()) => info!("hardware watchdog disarmed"),
            Err(error) => error!("cannot disarm the hardware watchdog: the host may be reset error={error}"),
        }
    }
}
