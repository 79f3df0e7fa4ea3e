//! The dead man's switch: ends this host's primaries when its agent did not renew in time.
//!
//! Owns the socket's protocol ([`wire`]), the client that the agent uses ([`Client`]) and the daemon behind the
//! binary `understudy-guard` ([`daemon`]).
//!
//! Promises:
//! * what it acknowledged is in a mapped table that a successor enforces before it answers anyone;
//! * at the deadline every registered process gets SIGKILL through its pidfd, whatever agent, libvirtd or the store
//!   are doing; a pid that was taken over by another process is never signalled;
//! * an older epoch, an older lease and a deadline that moves backwards are refused (SAFE-4);
//! * a lease that has expired, or was followed by another, is never extended, nor is anything that it left.
//!
//! It must not start, stop or judge anything before the deadline, and it depends on nothing but `nix`.

mod client;
pub mod daemon;
mod harden;
mod log;
mod notify;
mod peek;
mod primaries;
mod process;
mod rules;
mod sys;
mod table;
mod watchdog;
pub mod wire;

pub use client::{Client, ClientError};
pub use peek::{Inherited, inherited};
pub use wire::{Class, Deadline, Entry, Fired, Refusal, Registration, Status};

/// Where the guard listens unless told otherwise.
pub const SOCKET: &str = "/run/understudy/guard.sock";
/// Where the guard keeps its table unless told otherwise; under `/run`, since it means nothing after a boot.
pub const TABLE: &str = "/run/understudy/guard.table";
/// How many primaries one host's guard holds.
pub const CAPACITY: usize = 1024;

/// Nanoseconds of `CLOCK_BOOTTIME`: the clock of every deadline, which also counts while the host is suspended.
pub fn boottime_ns() -> u64 {
    sys::boottime_ns()
}

/// A pidfd for a process, to be registered. Fails with `ESRCH` when there is no such process.
pub fn pidfd_open(pid: u32) -> std::io::Result<std::os::fd::OwnedFd> {
    sys::pidfd_open(pid)
}

/// SIGKILL for the process behind a pidfd, and for no other. One that has ended already is no failure. Does not allocate.
pub fn pidfd_kill(pidfd: std::os::fd::BorrowedFd<'_>) -> std::io::Result<()> {
    match sys::pidfd_kill(pidfd) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether the process behind a pidfd has ended.
pub fn pidfd_is_dead(pidfd: std::os::fd::BorrowedFd<'_>) -> bool {
    process::is_dead(pidfd)
}
