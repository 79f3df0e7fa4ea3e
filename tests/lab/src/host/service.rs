//! One service of a host, from outside.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::Host;
use crate::error::LabError;
use crate::proc::{ProcessId, inner_pid};
use crate::service::{Request, ServiceState, ServiceStatus, Verb};
use crate::wait;

/// A service of a host.
#[derive(Clone, Debug)]
pub struct Service {
    host: Host,
    name: String,
}

impl Service {
    pub(super) fn of(host: Host, name: &str) -> Service {
        Service { host, name: name.to_owned() }
    }

    /// How it stands.
    ///
    /// # Errors
    /// When the host is off, does not answer, or has no such service.
    pub fn status(&self) -> Result<ServiceStatus, LabError> {
        let found = self.host.services()?.into_iter().find(|s| s.name == self.name);
        found.ok_or_else(|| LabError::Refused {
            host: self.host.name(),
            why: format!("no service {} on this host", self.name),
        })
    }

    /// Its main process as the machine sees it; none while it does not run.
    ///
    /// # Errors
    /// As [`Service::status`].
    pub fn pid(&self) -> Result<Option<ProcessId>, LabError> {
        let Some(inner) = self.status()?.inner_pid else { return Ok(None) };
        let pids = self.host.cgroup()?.pids();
        Ok(pids.into_iter().find(|pid| inner_pid(*pid) == Some(inner)).and_then(ProcessId::of))
    }

    /// Starts it unless it runs; does not wait until it is ready.
    ///
    /// # Errors
    /// When the host is off, or the program cannot be started.
    pub fn start(&self) -> Result<(), LabError> {
        self.act(Verb::Start)
    }

    /// SIGTERM, then SIGKILL after its time, and keeps it down until it is started.
    ///
    /// # Errors
    /// When the host is off.
    pub fn stop(&self) -> Result<(), LabError> {
        self.act(Verb::Stop)
    }

    /// Stops and starts it; does not wait until it is ready.
    ///
    /// # Errors
    /// When the host is off, or the program cannot be started.
    pub fn restart(&self) -> Result<(), LabError> {
        self.act(Verb::Restart)
    }

    /// SIGKILL to its main process; its restart policy does the rest.
    ///
    /// # Errors
    /// When the host is off or the service does not run.
    pub fn kill(&self) -> Result<(), LabError> {
        self.signal(Signal::SIGKILL)
    }

    /// A signal to its main process (SIGSTOP makes it hang).
    ///
    /// # Errors
    /// When the host is off or the service does not run.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        self.act(Verb::Signal(signal as i32))
    }

    /// SIGKILL, and keeps it down until it is started. Returns when it has ended.
    ///
    /// # Errors
    /// When the host is off.
    pub fn kill_and_hold(&self) -> Result<(), LabError> {
        self.act(Verb::KillAndHold)
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn wait_ready(&self, limit: Duration) -> Result<(), LabError> {
        wait::until(&format!("{} of {} is ready", self.name, self.host.name()), limit, || {
            let status = self.status().map_err(|error| error.chain())?;
            if status.state == ServiceState::Ready { Ok(()) } else { Err(format!("{status:?}")) }
        })
    }

    fn act(&self, verb: Verb) -> Result<(), LabError> {
        self.host.ask(&Request::Service { name: self.name.clone(), verb }).map(drop)
    }
}
