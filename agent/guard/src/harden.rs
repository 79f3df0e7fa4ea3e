//! Makes the guard run when nothing else does: locked memory, real-time priority, spared by the OOM killer.
//!
//! Promises: what is not permitted is said once and is no failure; the switch works without it, only later.

use std::fs;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::log::warning;
use crate::sys;

/// Above ordinary work, below the kernel's own threads (50 and more), which a kill needs.
const PRIORITY: i32 = 20;

/// Descriptors that agent or shell left open: the guard would keep their files, sockets and locks alive.
pub fn close_inherited() {
    if let Err(errno) = sys::close_from(3) {
        warning!("cannot close inherited descriptors error={errno}");
    }
}

/// Room for a pidfd per entry, beside everything else.
pub(crate) fn raise_file_limit(wanted: u64) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft >= wanted { Ok(()) } else { setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard) }
    });
    if let Err(errno) = raised {
        warning!("cannot raise the limit of open files wanted={wanted} error={errno}");
    }
}

/// To be called when everything is allocated: a page that is not there at the deadline would be read back from a disk
/// that may hang.
pub(crate) fn lock_and_prioritise() {
    if let Err(errno) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        warning!("cannot lock memory, set LimitMEMLOCK=infinity error={errno}");
    }
    if let Err(errno) = sys::set_realtime(PRIORITY) {
        warning!("cannot take real-time priority, set LimitRTPRIO error={errno}");
    }
    let already = fs::read_to_string("/proc/self/oom_score_adj").is_ok_and(|score| score.trim() == "-1000");
    if !already && let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        warning!("cannot leave the OOM killer's list, set OOMScoreAdjust=-1000 error={error}");
    }
}
