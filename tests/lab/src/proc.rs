//! Processes named so that a recycled process id is never mistaken for the process that was meant.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use serde::{Deserialize, Serialize};

/// A process: its id in the machine's PID namespace and its start time in clock ticks after boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`.
    pub start: u64,
}

impl ProcessId {
    /// The process that has this id at this moment; none when there is none or when it is a zombie.
    pub fn of(pid: i32) -> Option<ProcessId> {
        let stat = Process::new(pid).and_then(|process| process.stat()).ok()?;
        (!matches!(stat.state, 'Z' | 'X')).then_some(ProcessId { pid, start: stat.starttime })
    }

    /// The calling process.
    pub fn myself() -> ProcessId {
        ProcessId::of(Pid::this().as_raw()).expect("/proc shows the calling process")
    }

    /// Whether this very process still runs.
    pub fn alive(self) -> bool {
        ProcessId::of(self.pid) == Some(self)
    }

    /// SIGKILL to this very process, if it still runs.
    pub(crate) fn kill(self) {
        if self.alive() {
            // It may end between the look and the call: then there is nothing left to do.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// The id that process `pid` has in its own, innermost PID namespace.
pub(crate) fn inner_pid(pid: i32) -> Option<i32> {
    Process::new(pid).and_then(|process| process.status()).ok()?.nspid?.last().copied()
}

/// The machine's boot id: process ids and namespaces of another boot are gone.
pub(crate) fn machine_boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calling_process_lives_and_another_start_time_is_another_process() {
        let me = ProcessId::myself();
        assert!(me.alive());
        assert!(!ProcessId { start: me.start + 1, ..me }.alive());
    }
}
