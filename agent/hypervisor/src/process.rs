//! Owns the look at the host's processes: which qemu carries which UUID, and whether it is gone.
//!
//! Promises: needs no libvirtd; "gone" means that every thread of the process has ended, not that its name
//! cannot be read any more. Must not do: signal a process other than through a pidfd whose owner was verified.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use understudy_core::ids::InstanceId;
use understudy_core::units::Boottime;

use crate::ffi;

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

/// How the names of qemu programs begin; the only thing left to know a dying one by.
const QEMU_NAMES: [&str; 2] = ["qemu", "kvm"];

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

/// The process that carries an instance's UUID. A qemu that is dying, and whose UUID cannot be read any more,
/// counts for every instance until it is gone.
///
/// # Errors
/// When the host's processes cannot be read.
pub fn process_of(id: InstanceId) -> io::Result<Option<Pid>> {
    let all = Processes::read()?;
    Ok(all
        .carriers
        .iter()
        .find(|(carried, _)| *carried == id)
        .map(|&(_, pid)| pid)
        .or(all.dying.first().copied()))
}

/// The qemu processes of this host.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    pub(crate) carriers: Vec<(InstanceId, Pid)>,
    pub(crate) dying: Vec<Pid>,
}

impl Processes {
    pub(crate) fn read() -> io::Result<Self> {
        let mut found = Self::default();
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).map(Pid) else { continue };
            match std::fs::read(proc_file(pid, "cmdline")) {
                Ok(command) if command.is_empty() => {
                    if is_dying_qemu(pid) {
                        found.dying.push(pid);
                    }
                }
                Ok(command) => found.carriers.extend(carried(&command).map(|id| (id, pid))),
                // It ended between the listing and the look.
                Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ESRCH)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// The UUID on a qemu command line.
fn carried(command: &[u8]) -> Option<InstanceId> {
    let mut arguments = command.split(|&byte| byte == 0);
    arguments.find(|&argument| argument == b"-uuid")?;
    std::str::from_utf8(arguments.next()?).ok()?.parse().ok()
}

/// Whether a process without a command line is a qemu of which threads still run: its first thread has ended
/// (state Z) and others have not.
fn is_dying_qemu(pid: Pid) -> bool {
    let Ok(status) = std::fs::read_to_string(proc_file(pid, "status")) else { return false };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let named_so = field("Name:").is_some_and(|name| QEMU_NAMES.iter().any(|start| name.starts_with(start)));
    let wholly_ended =
        field("State:").is_some_and(|state| state.starts_with('Z')) && field("Threads:") == Some("1");
    named_so && !wholly_ended
}

fn proc_file(pid: Pid, file: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(file)
}

/// The process that libvirt noted for a domain, when it carries the UUID.
pub(crate) fn noted_process(pid_file: &Path, id: InstanceId) -> Option<Pid> {
    let pid = Pid(std::fs::read_to_string(pid_file).ok()?.trim().parse().ok()?);
    (carried(&std::fs::read(proc_file(pid, "cmdline")).ok()?) == Some(id)).then_some(pid)
}

/// A handle on the process that carries an instance's UUID; none where no process is known to.
pub(crate) fn handle_of(id: InstanceId) -> io::Result<Option<OwnedFd>> {
    let all = Processes::read()?;
    let carrier = all.carriers.iter().find(|(carried, _)| *carried == id);
    carrier.map_or(Ok(None), |&(_, pid)| open(pid, id))
}

/// A handle on exactly the process that carries the UUID: the command line is read after the handle was
/// opened, so that a number that was given anew in between is not taken for it.
pub(crate) fn open(pid: Pid, id: InstanceId) -> io::Result<Option<OwnedFd>> {
    let handle = match ffi::pidfd_open(pid.0) {
        Ok(handle) => handle,
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    let same = std::fs::read(proc_file(pid, "cmdline")).is_ok_and(|command| carried(&command) == Some(id));
    Ok(same.then_some(handle))
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

    /// A process with a UUID on its command line. It ends at the latest with its parent, whose end of the pipe it
    /// reads from.
    pub(crate) fn carrier(id: InstanceId) -> (Child, Pid) {
        let child = Command::new("sh")
            .args(["-c", "read line", "qemu", "-uuid", &id.to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
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
    use super::stand_in::carrier;
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
        assert_eq!(noted_process(file.path(), one), Some(pid));
        assert_eq!(noted_process(file.path(), two), None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(open(pid, one).unwrap().is_none());
        assert_eq!(noted_process(file.path(), one), None);
    }

    #[test]
    fn a_uuid_is_read_only_after_its_option() {
        let text = id(4).to_string();
        assert_eq!(carried(format!("qemu\0-uuid\0{text}\0-m\0").as_bytes()), Some(id(4)));
        for other in
            [format!("qemu\0{text}\0"), "qemu\0-uuid\0nonsense\0".to_owned(), "qemu\0-uuid".to_owned()]
        {
            assert_eq!(carried(other.as_bytes()), None, "{other}");
        }
    }
}
