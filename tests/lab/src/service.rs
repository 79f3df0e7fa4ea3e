//! Services of a host as data, and the words spoken with its PID 1.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::disk::Bind;

/// When a service that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Not at all.
    Never,
    /// After an exit with failure or by a signal.
    OnFailure {
        /// Pause before the next start.
        delay_ms: u64,
    },
    /// After every exit that was not asked for.
    Always {
        /// Pause before the next start.
        delay_ms: u64,
    },
}

/// When a service counts as ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// As soon as its process was started.
    Started,
    /// When this unix socket accepts a connection.
    UnixSocket(PathBuf),
    /// When this address (`10.77.0.11:2379`) accepts a connection.
    Tcp(String),
    /// When it says `READY=1` on `$NOTIFY_SOCKET`, as a systemd service of `Type=notify` does.
    Notify,
}

/// One service of a host, as the host's own file lists it. The order of the file is the start order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Its name on the host.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables besides PATH, LC_ALL and HOME.
    pub env: BTreeMap<String, String>,
    /// What happens after it ended.
    pub restart: Restart,
    /// When the next one in the order may start.
    pub ready: Ready,
    /// The next one is started after this time all the same.
    pub ready_ms_max: u64,
    /// SIGKILL follows SIGTERM after this time.
    pub stop_ms_max: u64,
    /// Killed when it said no `WATCHDOG=1` for so long (`WatchdogSec=` of systemd). Off when absent.
    pub watchdog_ms: Option<u64>,
    /// Where its stdout and stderr go, on the host.
    pub log: PathBuf,
}

impl ServiceSpec {
    /// A service that is always restarted after 200 ms, is ready when started, and logs to
    /// `/var/log/NAME.log` of its host.
    pub fn new<S: Into<String>>(name: &str, argv: impl IntoIterator<Item = S>) -> ServiceSpec {
        ServiceSpec {
            name: name.to_owned(),
            argv: argv.into_iter().map(Into::into).collect(),
            env: BTreeMap::new(),
            restart: Restart::Always { delay_ms: 200 },
            ready: Ready::Started,
            ready_ms_max: 60_000,
            stop_ms_max: 10_000,
            watchdog_ms: None,
            log: PathBuf::from(format!("/var/log/{name}.log")),
        }
    }

    /// The same service with another condition of readiness.
    #[must_use]
    pub fn ready(mut self, ready: Ready) -> ServiceSpec {
        self.ready = ready;
        self
    }

    /// The same service with another restart policy.
    #[must_use]
    pub fn restart(mut self, restart: Restart) -> ServiceSpec {
        self.restart = restart;
        self
    }

    /// The same service with one more variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> ServiceSpec {
        self.env.insert(key.to_owned(), value.to_owned());
        self
    }
}

/// How a service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Its process runs and is not ready yet.
    Starting,
    /// Its process runs and is ready.
    Ready,
    /// It ended and will be started again.
    Waiting,
    /// It does not run and will not be started without a request.
    Stopped,
}

/// A service as its PID 1 sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub state: ServiceState,
    /// Process id inside of the host.
    pub inner_pid: Option<i32>,
    /// How often it was started again by itself since the host's boot.
    pub restarts: u64,
    /// How it ended the last time.
    pub last_exit: Option<String>,
}

/// What is asked of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verb {
    /// Start it unless it runs.
    Start,
    /// SIGTERM, then SIGKILL, and keep it down.
    Stop,
    /// Stop and start.
    Restart,
    /// This signal to its main process; the restart policy does the rest.
    Signal(i32),
    /// SIGKILL and keep it down.
    KillAndHold,
}

/// A request to PID 1 of a host: one line of JSON on its control socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// The cables are plugged in: configure the network and start the services.
    Start,
    /// How the services stand.
    Status,
    /// Read the file of services again; what is new is added and not started.
    Reload,
    /// One verb for one service.
    Service { name: String, verb: Verb },
    /// Mount a folder or file of the machine.
    Bind(Bind),
}

/// The answer: one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// Done.
    Done,
    /// Refused or failed, in words.
    Refused(String),
    /// How the host stands; `booted` when every service had its turn in the start order.
    Status { booted: bool, services: Vec<ServiceStatus> },
}
