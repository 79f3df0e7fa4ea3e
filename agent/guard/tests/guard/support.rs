//! Guards, folders and stand-ins for qemu, each ended with the test whatever its outcome.
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use understudy_guard::{
    Class, Client, ClientError, Deadline, Refusal, Registration, boottime_ns, pidfd_open,
};

/// What nothing here should ever take, on however busy a machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const MS: u64 = 1_000_000;
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_understudy-guard");

/// A folder of one test's own.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("understudy-guard-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("guard.sock")
    }

    pub(crate) fn table(&self) -> PathBuf {
        self.0.join("guard.table")
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket(), LIMIT).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A process in qemu's place.
pub(crate) struct Qemu {
    child: Child,
    pub(crate) pidfd: OwnedFd,
}

impl Qemu {
    pub(crate) fn start() -> Self {
        let child = Command::new("sleep").arg("3600").stdin(Stdio::null()).spawn().unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        Self { child, pidfd }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn registration(&self, number: u16, epoch: u64) -> Registration<'_> {
        let pidfd = self.pidfd.as_fd();
        Registration { uuid: uuid(number), epoch, lease: 1, pid: self.pid(), pidfd, class: Class::RamOnly }
    }

    /// When it was seen dead, or `None` when it lives on for `limit`.
    pub(crate) fn died_within(&self, limit: Duration) -> Option<u64> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let millis = PollTimeout::try_from(left.as_micros().div_ceil(1_000)).unwrap();
            let mut ready = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, millis) {
                Ok(0) if left.is_zero() => return None,
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                outcome => return outcome.map(|_| Some(boottime_ns())).unwrap(),
            }
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.died_within(Duration::ZERO).is_none()
    }

    /// Kills and reaps it, so that its pid is free.
    pub(crate) fn end(&mut self) -> ExitStatus {
        drop(self.child.kill());
        self.child.wait().unwrap()
    }

    /// The signal that ended it.
    pub(crate) fn signal(&mut self) -> Option<i32> {
        self.child.wait().unwrap().signal()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
    }
}

/// A running guard.
pub(crate) struct Guard {
    pub(crate) child: Child,
    pub(crate) notices: UnixDatagram,
}

impl Guard {
    /// Starts a guard and waits until it says that it is ready.
    pub(crate) fn start(folder: &Folder) -> Self {
        let guard = Self::spawn(folder, &[]);
        guard.expect_notice("READY=1");
        guard
    }

    pub(crate) fn spawn(folder: &Folder, arguments: &[&Path]) -> Self {
        let notify = folder.0.join("notify.sock");
        drop(fs::remove_file(&notify));
        let notices = UnixDatagram::bind(&notify).unwrap();
        notices.set_read_timeout(Some(LIMIT)).unwrap();
        let mut command = Command::new(BINARY);
        command.arg("run").arg("--socket").arg(folder.socket()).arg("--table").arg(folder.table());
        let child =
            command.args(arguments).env("NOTIFY_SOCKET", notify).stdin(Stdio::null()).spawn().unwrap();
        Self { child, notices }
    }

    /// Passes over beats.
    pub(crate) fn expect_notice(&self, wanted: &str) {
        let mut bytes = [0; 64];
        loop {
            let len = self.notices.recv(&mut bytes).unwrap();
            match std::str::from_utf8(&bytes[..len]).unwrap() {
                "WATCHDOG=1" => {}
                notice => return assert_eq!(notice, wanted),
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// SIGKILL: it has no chance to tidy up.
    pub(crate) fn crash(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.child.wait().unwrap()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn uuid(number: u16) -> [u8; 16] {
    let mut uuid = [0x55; 16];
    uuid[..2].copy_from_slice(&number.to_be_bytes());
    uuid
}

pub(crate) fn after(delay_ns: u64, lease: u64) -> Deadline {
    Deadline { boottime_ns: boottime_ns() + delay_ns, lease }
}

pub(crate) fn refusal<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> Refusal {
    match outcome {
        Err(ClientError::Refused(refusal)) => refusal,
        other => panic!("a refusal was expected: {other:?}"),
    }
}

/// Waits until a condition holds; the limit is a failure.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < until, "{what} did not come true within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
