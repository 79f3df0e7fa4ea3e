//! What `/proc` says about processes and pidfds.
//!
//! Promises: a process is named by more than its pid; a pidfd opened by [`reopen`] is of the very process that
//! was registered, never of one that took over its pid.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;

use crate::rules::Process;
use crate::sys;

/// The full name of the live process behind a pidfd, which the caller says is `pid`. `None`: it is dead.
pub(crate) fn identify(pid: u32, pidfd: BorrowedFd<'_>) -> Option<Process> {
    let start_time = start_time(pid)?;
    let inode = fstat(pidfd).ok()?.st_ino;
    // Alive after the start time was read: it is the start time of this very process.
    (!is_dead(pidfd)).then_some(Process { pid, start_time, inode })
}

/// When a process started, in clock ticks since the boot: field 22 of `/proc/<pid>/stat`.
fn start_time(pid: u32) -> Option<u64> {
    parse_start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The second field is the name in parentheses, which may hold spaces and parentheses itself; what follows the last
/// one starts with field 3.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// The pid behind a pidfd as this PID namespace counts; `None` when the descriptor is no pidfd or its process is
/// gone.
pub(crate) fn pid_of(pidfd: BorrowedFd<'_>) -> Option<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}

/// Whether the process behind a pidfd has ended: the pidfd is readable from then on.
pub(crate) fn is_dead(pidfd: BorrowedFd<'_>) -> bool {
    let mut ready = [PollFd::new(pidfd, PollFlags::POLLIN)];
    matches!(poll(&mut ready, PollTimeout::ZERO), Ok(count) if count > 0)
}

/// The outcome of looking for a registered process again.
pub(crate) enum Reopened {
    Alive(OwnedFd),
    /// It is dead, or its pid belongs to another process by now.
    Gone,
    /// It cannot be told.
    Failed(Errno),
}

/// A pidfd of a process known by its full name. The pidfd is opened first: if what [`identify`] reads *after* that is
/// the registered name, the registered process had the pid at both moments, so that the pidfd is its own.
pub(crate) fn reopen(process: Process) -> Reopened {
    let pidfd = match sys::pidfd_open(process.pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => return Reopened::Gone,
        Err(error) => {
            return Reopened::Failed(error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw));
        }
    };
    if identify(process.pid, pidfd.as_fd()) == Some(process) {
        Reopened::Alive(pidfd)
    } else {
        Reopened::Gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_a_name_with_spaces_and_parentheses() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("77 (a) b) (c) S {}", fields.join(" "));
        assert_eq!(parse_start_time(&stat), Some(22));
        assert_eq!(parse_start_time("77 (a"), None);
        assert_eq!(parse_start_time("77 (a) S 1 2"), None);
    }

    #[test]
    fn a_process_is_found_again_by_its_full_name_only() {
        let pidfd = sys::pidfd_open(std::process::id()).unwrap();
        let process = identify(std::process::id(), pidfd.as_fd()).unwrap();
        assert!(matches!(reopen(process), Reopened::Alive(_)));
        let earlier = Process { start_time: process.start_time - 1, ..process };
        assert!(matches!(reopen(earlier), Reopened::Gone));
        let same_tick = Process { inode: process.inode + 1, ..process };
        assert!(matches!(reopen(same_tick), Reopened::Gone));
    }

    #[test]
    fn a_pidfd_names_its_pid_and_another_file_does_not() {
        let pidfd = sys::pidfd_open(std::process::id()).unwrap();
        assert_eq!(pid_of(pidfd.as_fd()), Some(std::process::id()));
        assert!(!is_dead(pidfd.as_fd()));
        let file = fs::File::open("/dev/null").unwrap();
        assert_eq!(pid_of(file.as_fd()), None);
    }
}
