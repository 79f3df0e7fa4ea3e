//! Owns the ChromeDriver process and all that comes of it.
//!
//! ```text
//! this thread ── setpriv/unshare ── chromedriver (first of a PID namespace) ── chromium …
//! ```
//!
//! Chromium starts its processes in groups of their own, some of which outlive a killed driver; a PID namespace
//! is the one thing that holds them all: when its first process dies, the kernel kills the rest. What they keep in the
//! folder for temporary files goes the same way where root may mount: that folder is a tmpfs of their own.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

/// Until the driver says which port it listens on.
const START: Duration = Duration::from_secs(60);
/// Until the kernel has ended everything in the namespace.
const END: Duration = Duration::from_secs(20);

/// Why ChromeDriver did not come up.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Its log cannot be written.
    #[error("writing {path}")]
    Log {
        /// The log.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// It cannot be started at all.
    #[error("running setpriv: is util-linux installed?")]
    Spawn(#[source] std::io::Error),
    /// It ended, or said nothing, before it listened.
    #[error("chromedriver named no port (see {log}): are chromium and chromium-driver installed?")]
    NoPort {
        /// Output of driver and browser.
        log: PathBuf,
    },
}

/// A running ChromeDriver; dropped, everything that it started is gone.
pub(super) struct Driver {
    child: Child,
    port: u16,
}

impl Driver {
    /// Starts it on a free port of this thread's network namespace. It must be dropped on the same thread:
    /// with that thread it dies too.
    pub(super) fn start(log: &Path) -> Result<Self, DriverError> {
        let file = File::create(log).map_err(|source| DriverError::Log { path: log.to_owned(), source })?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare"]);
        if !geteuid().is_root() {
            command.args(["--user", "--map-current-user"]);
        }
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"]);
        // Chromium makes folders there that only a clean end removes, and holds a socket in one of them, whose path must be
        // short: a folder below the profile would not do.
        let covered = Path::new("/var/tmp");
        let start = match log.starts_with(covered) {
            true => "exec chromedriver --port=0",
            false => "mount -t tmpfs none /var/tmp && export TMPDIR=/var/tmp; exec chromedriver --port=0",
        };
        command.args(["sh", "-c", start]);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).spawn();
        let mut child = spawned.map_err(DriverError::Spawn)?;
        let stdout = child.stdout.take();
        let mut driver = Self { child, port: 0 };
        driver.port =
            stdout.and_then(port_from).ok_or_else(|| DriverError::NoPort { log: log.to_owned() })?;
        Ok(driver)
    }

    /// Where it listens, on loopback.
    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

/// Reads `ChromeDriver was started successfully on port 40123.` and goes on reading, so that a full pipe never
/// stops the driver.
fn port_from(stdout: ChildStdout) -> Option<u16> {
    let (said, port) = mpsc::channel();
    let reader = move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("started successfully on port ")
                && let Ok(port) = rest.trim_end_matches('.').parse()
            {
                // Nobody listens any more when the start timed out; there is nothing left to tell.
                let _ = said.send(port);
            }
        }
    };
    std::thread::Builder::new().name("driver-output".to_owned()).spawn(reader).ok()?;
    port.recv_timeout(START).ok()
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The namespace's first process, not unshare: unshare then ends only when the whole namespace has.
        let unshare = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        let first = children.ok().and_then(|pids| pids.split_whitespace().next()?.parse().ok());
        if let Some(first) = first {
            // An error means that it is gone already.
            let _ = kill(Pid::from_raw(first), Signal::SIGKILL);
        } else {
            drop(self.child.kill());
        }
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > END {
                eprintln!("the browser's processes (under {unshare}) did not end in {END:?}");
                drop(self.child.kill());
                drop(self.child.wait());
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
