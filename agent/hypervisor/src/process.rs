//! Owns what is known and done about the host's qemu processes: which one is an instance's, whether it is gone.
//!
//! Promises: needs no libvirtd; "gone" means that every thread of the process has ended, or that none of them can run a
//! guest any more and nothing tells that it was this instance's; no other process can hold a caller up (`look`). Must not
//! do: signal a process other than through a pidfd whose owner was verified.

mod look;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use understudy_core::model::ids::InstanceId;
use understudy_core::model::units::Boottime;

use crate::ffi;

use look::HERE;
pub(crate) use look::{NOTES, Processes};

/// A process of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pid(pub i32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How often a process list is read again while waiting for one that cannot be watched.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Now, on the clock that counts through suspend.
#[must_use]
pub fn boottime() -> Boottime {
    // The clock exists on every kernel that this product runs on; 0 would make every deadline pass at once.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Boottime(0), |now| {
        Boottime(
            u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000
                + u64::try_from(now.tv_nsec()).unwrap_or(0),
        )
    })
}

/// The process that carries an instance's UUID. One that cannot be read any more is this instance's when it was before, or
/// when libvirt notes it so.
///
/// # Errors
/// When the host's processes cannot be read, or one of them that may be this instance's.
pub fn process_of(id: InstanceId) -> io::Result<Option<Pid>> {
    processes()?.of(id)
}

/// The qemu processes of this host.
pub(crate) fn processes() -> io::Result<Processes> {
    HERE.read()
}

/// The process that libvirt noted for a domain, when it carries the UUID.
pub(crate) fn noted_process(pid_file: &Path, id: InstanceId) -> io::Result<Option<Pid>> {
    let Some(pid) = look::noted_pid(pid_file) else { return Ok(None) };
    Ok((HERE.carried_or_noted(pid)? == Some(id)).then_some(pid))
}

/// A handle on the process that carries an instance's UUID; none where no process is known to.
pub(crate) fn handle_of(id: InstanceId) -> io::Result<Option<OwnedFd>> {
    let all = processes()?;
    let carrier = all.carriers.iter().find(|(carried, _)| *carried == id);
    carrier.map_or(Ok(None), |&(_, pid)| open(pid, id))
}

/// A handle on exactly the process that carries the UUID: whose it is, is read after the handle was opened, so that a
/// number that was given anew in between is not taken for it.
pub(crate) fn open(pid: Pid, id: InstanceId) -> io::Result<Option<OwnedFd>> {
    let handle = match ffi::pidfd_open(pid.0) {
        Ok(handle) => handle,
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok((HERE.carried_by(pid)? == Some(id)).then_some(handle))
}

/// Kills the process behind a handle.
pub(crate) fn kill(handle: &OwnedFd) -> io::Result<()> {
    match ffi::pidfd_kill(handle.as_fd()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

/// Kills the process behind a handle and waits for its end. False when it has not ended in time.
pub(crate) fn kill_and_wait(handle: &OwnedFd, deadline: Duration) -> io::Result<bool> {
    kill(handle)?;
    let until = Instant::now() + deadline;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if wait_readable(handle, left)? {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

/// Waits until no process carries the UUID; the one that does when time is up.
pub(crate) fn wait_gone(id: InstanceId, deadline: Duration) -> io::Result<Option<Pid>> {
    let until = Instant::now() + deadline;
    loop {
        let Some(pid) = process_of(id)? else { return Ok(None) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Some(pid));
        }
        match open(pid, id)? {
            Some(handle) => {
                wait_readable(&handle, left)?;
            }
            None => std::thread::sleep(left.min(LOOK_AGAIN)),
        }
    }
}

fn wait_readable(handle: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What stands for a qemu in tests.
#[cfg(test)]
pub(crate) mod stand_in {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process with qemu's name and a UUID on its command line. It ends at the latest with its parent, whose end of the
    /// pipe it reads from.
    pub(crate) fn carrier(id: InstanceId) -> (Child, Pid) {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("qemu-stand-in");
        std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
        let mut command = Command::new(program);
        started(command.args(["-c", "read line", "qemu", "-uuid", &id.to_string()]), id)
    }

    /// The same, of which the first thread has ended and another runs on: what a qemu is that was killed and waits for a
    /// disk. Its own command line is empty.
    pub(crate) fn dying(id: InstanceId) -> (Child, Pid) {
        const SOURCE: &str = "#include <pthread.h>
            #include <unistd.h>
            #include <sys/syscall.h>
            static void *stay(void *x) { char c; return read(0, &c, 1) ? x : x; }
            int main(void) { pthread_t t; pthread_create(&t, 0, stay, 0); syscall(SYS_exit, 0); }";
        let folder = tempfile::tempdir().unwrap();
        let (source, program) = (folder.path().join("dying.c"), folder.path().join("qemu-dying"));
        std::fs::write(&source, SOURCE).unwrap();
        // Rust links with it.
        let built = Command::new("cc").args(["-pthread", "-o"]).args([&program, &source]).status().unwrap();
        assert!(built.success());
        let mut command = Command::new(program);
        let (child, pid) = started(command.args(["-uuid", &id.to_string()]), id);
        let until = Instant::now() + Duration::from_secs(20);
        while !std::fs::read(format!("/proc/{pid}/cmdline")).unwrap().is_empty() {
            assert!(Instant::now() < until, "its first thread does not end");
            std::thread::yield_now();
        }
        (child, pid)
    }

    fn started(command: &mut Command, id: InstanceId) -> (Child, Pid) {
        let child = command.stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid(i32::try_from(child.id()).unwrap());
        let until = Instant::now() + Duration::from_secs(20);
        // The kernel shows a new program's command line a moment after it has begun.
        while process_of(id).unwrap() != Some(pid) {
            assert!(Instant::now() < until, "the stand-in does not come up");
            std::thread::yield_now();
        }
        (child, pid)
    }
}

#[cfg(test)]
mod tests {
    use super::stand_in::{carrier, dying};
    use super::*;

    fn id(last: u8) -> InstanceId {
        format!("11111111-2222-4333-8444-9999{:06x}{last:02x}", std::process::id()).parse().unwrap()
    }

    #[test]
    fn a_process_is_found_by_the_uuid_it_carries_and_is_gone_when_killed() {
        let id = id(1);
        assert_eq!(process_of(id).unwrap(), None);
        let (mut child, pid) = carrier(id);
        assert_eq!(wait_gone(id, Duration::from_millis(30)).unwrap(), Some(pid));
        let handle = open(pid, id).unwrap().unwrap();
        kill(&handle).unwrap();
        // The test is the parent: reaping is what lets the number go.
        child.wait().unwrap();
        assert_eq!(wait_gone(id, Duration::from_secs(10)).unwrap(), None);
        kill(&handle).unwrap();
    }

    #[test]
    fn a_number_that_belongs_to_another_process_is_not_opened() {
        let (one, two) = (id(2), id(3));
        let (mut child, pid) = carrier(one);
        assert!(open(pid, two).unwrap().is_none());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{pid}\n")).unwrap();
        assert_eq!(noted_process(file.path(), one).unwrap(), Some(pid));
        assert_eq!(noted_process(file.path(), two).unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(open(pid, one).unwrap().is_none());
        assert_eq!(noted_process(file.path(), one).unwrap(), None);
    }

    #[test]
    fn a_dying_qemu_keeps_its_own_instance_from_being_gone_and_no_other() {
        let (own, other) = (id(4), id(5));
        let (mut child, pid) = dying(own);
        assert_eq!(process_of(own).unwrap(), Some(pid));
        assert_eq!(process_of(other).unwrap(), None);
        assert_eq!(wait_gone(own, Duration::from_millis(30)).unwrap(), Some(pid));
        let handle = open(pid, own).unwrap().expect("it is known by the thread that runs on");
        assert!(kill_and_wait(&handle, Duration::from_secs(20)).unwrap());
        assert_eq!(process_of(own).unwrap(), None, "nobody has reaped it, and it is gone");
        child.wait().unwrap();
    }
}
