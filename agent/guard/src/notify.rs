//! Tells systemd the guard's state (`sd_notify`) without a library: one datagram per state, never waited for.

use std::env;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::log::warning;

pub(crate) struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
}

impl Notify {
    /// As `NOTIFY_SOCKET` says; silent without it.
    pub(crate) fn from_env() -> Self {
        let to = env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let address = match name.as_bytes().strip_prefix(b"@") {
                Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name),
                None => SocketAddr::from_pathname(&name),
            };
            let socket = UnixDatagram::unbound().and_then(|socket| {
                socket.set_nonblocking(true)?;
                Ok((socket, address?))
            });
            socket.inspect_err(|error| warning!("cannot notify systemd error={error}")).ok()
        });
        Self { to }
    }

    pub(crate) fn send(&self, state: &str) {
        if let Some((socket, address)) = &self.to {
            // A notice that systemd cannot take is repeated by the next one, or its watchdog restarts the guard.
            drop(socket.send_to_addr(state.as_bytes(), address));
        }
    }
}

/// How often systemd wants to hear from this process, if it does.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    let micros = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    let ours = env::var("WATCHDOG_PID")
        .map_or(Ok(true), |pid| pid.parse().map(|pid: u32| pid == std::process::id()));
    (ours == Ok(true)).then(|| Duration::from_micros(micros))
}
