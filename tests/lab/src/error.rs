//! What can go wrong in the lab, named for what was attempted.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An operation of the lab that failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The process is not root.
    #[error("the lab makes namespaces and bridges and needs root: run it with sudo")]
    NotRoot,
    /// No binary is known that can act as PID 1 of a host.
    #[error(
        "no binary can act as PID 1 of a lab host: call understudy_lab::init_if_asked() first thing in main, \
         or set LabOptions::helper or UNDERSTUDY_LAB_HELPER to the path of the `lab` binary"
    )]
    NoHelper,
    /// Another run owns this lab.
    #[error("lab {prefix} is in use by process {pid}: wait for it or stop it, or choose another prefix")]
    Busy {
        /// The lab's prefix.
        prefix: String,
        /// Process id of the owner, as it wrote it into the lock file.
        pid: String,
    },
    /// A lab of this prefix was kept standing on purpose.
    #[error("lab {prefix} was kept standing: take it down first with `lab --prefix {prefix} down`")]
    Kept {
        /// The lab's prefix.
        prefix: String,
    },
    /// No lab of this prefix stands.
    #[error("no lab {prefix} stands: raise one with `lab --prefix {prefix} up --keep`")]
    None {
        /// The lab's prefix.
        prefix: String,
    },
    /// An option is out of its range.
    #[error("bad lab option: {0}")]
    BadOption(String),
    /// The folder for the hosts' disks holds something that is not a lab's.
    #[error("{} is not empty and was not made by the lab: choose another folder", .0.display())]
    ForeignDir(PathBuf),
    /// This machine has no cgroup v2 hierarchy.
    #[error("no cgroup v2 hierarchy is mounted: the lab needs cgroup.kill and cgroup.freeze (kernel 5.14)")]
    NoCgroup,
    /// The lab was torn down (by a signal) while the operation ran.
    #[error("the lab is being torn down")]
    TornDown,
    /// A file operation failed.
    #[error("{attempt} {}", .path.display())]
    Io {
        /// The verb: `read`, `write`, ...
        attempt: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A system call other than on a file failed.
    #[error("{attempt}")]
    Sys {
        /// What was attempted.
        attempt: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tool of the system could not be started.
    #[error("start {command}: is its package installed? `lab packages` lists what is missing")]
    ToolMissing {
        /// The command line.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A command ended with failure.
    #[error("{command}: {status}: {stderr}")]
    Tool {
        /// The command line.
        command: String,
        /// Its exit status in words.
        status: String,
        /// What it wrote to stderr.
        stderr: String,
    },
    /// A certificate could not be made.
    #[error("make the certificate of {name}")]
    Certificate {
        /// Whose.
        name: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A condition did not hold in time.
    #[error("{what}: not within {limit:?}; {detail}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// The last thing that was seen.
        detail: String,
    },
    /// The host is powered off.
    #[error("{host} is powered off")]
    Off {
        /// The host's name.
        host: String,
    },
    /// The host is powered on already.
    #[error("{host} is powered on already")]
    On {
        /// The host's name.
        host: String,
    },
    /// PID 1 of the host ended while it booted.
    #[error("{host} died while booting; its console says: {console}")]
    Boot {
        /// The host's name.
        host: String,
        /// The end of its console log.
        console: String,
    },
    /// PID 1 of the host refused a request.
    #[error("{host}: {why}")]
    Refused {
        /// The host's name.
        host: String,
        /// Its words.
        why: String,
    },
    /// Talking to PID 1 of the host failed.
    #[error("ask PID 1 of {host}")]
    Control {
        /// The host's name.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl LabError {
    /// The error and its causes on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }
}

/// Names the file operation that an I/O error belongs to.
pub(crate) trait At<T> {
    /// `write` at `path` failed, and so on.
    fn at(self, attempt: &'static str, path: &Path) -> Result<T, LabError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, attempt: &'static str, path: &Path) -> Result<T, LabError> {
        self.map_err(|source| LabError::Io { attempt, path: path.to_path_buf(), source })
    }
}

/// Names what a system call was for.
pub(crate) trait Doing<T> {
    /// Attaches the attempt in words.
    fn doing(self, attempt: impl Into<String>) -> Result<T, LabError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, attempt: impl Into<String>) -> Result<T, LabError> {
        self.map_err(|source| LabError::Sys { attempt: attempt.into(), source })
    }
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, attempt: impl Into<String>) -> Result<T, LabError> {
        self.map_err(io::Error::from).doing(attempt)
    }
}
