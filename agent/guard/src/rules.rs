//! What the guard accepts: pure decisions about deadlines and registrations, without clock or process.

use crate::wire::{Deadline, Refusal};

/// The furthest a deadline may lie ahead. Leases last seconds; ten minutes leave room for any profile, and a
/// deadline in the wrong unit or of another clock, which would disarm the switch, is far beyond it.
pub(crate) const AHEAD_MAX_NS: u64 = 600 * 1_000_000_000;

/// Whether `asked` may replace `current` at `now`.
pub(crate) fn deadline(current: Option<Deadline>, asked: Deadline, now_ns: u64) -> Result<(), Refusal> {
    if let Some(current) = current {
        if asked.lease < current.lease {
            return Err(Refusal::OldLease);
        }
        if asked.lease == current.lease && expired(Some(current), now_ns) {
            // Its primaries are being killed, and others may have been told so: only another lease begins anew.
            return Err(Refusal::Expired);
        }
        if asked.lease == current.lease && asked.boottime_ns < current.boottime_ns {
            return Err(Refusal::Backwards);
        }
    }
    if asked.boottime_ns <= now_ns {
        return Err(Refusal::PastDeadline);
    }
    if asked.boottime_ns - now_ns > AHEAD_MAX_NS {
        return Err(Refusal::TooFar);
    }
    Ok(())
}

/// Whether the deadline has been reached: from then on everything registered is to be dead.
pub(crate) fn expired(current: Option<Deadline>, now_ns: u64) -> bool {
    current.is_some_and(|deadline| deadline.boottime_ns <= now_ns)
}

/// Whether a job of `lease` may still bring a primary to life at `now`: not after the deadline, and not once another
/// lease was acknowledged, because what it was decided from is out of date.
pub(crate) fn asking(current: Option<Deadline>, lease: u64, now_ns: u64) -> Result<(), Refusal> {
    match current {
        Some(current) if expired(Some(current), now_ns) => Err(Refusal::Expired),
        Some(current) if lease < current.lease => Err(Refusal::OldLease),
        // Its deadline was never acknowledged: nothing would end what it starts.
        Some(current) if lease > current.lease => Err(Refusal::NewLease),
        Some(_) | None => Ok(()),
    }
}

/// A process, named so that a reused pid is another one: a start time has a resolution of 10 ms, and the inode of its
/// pidfd is unique since Linux 6.9 (before that it is the same for all, and start time and pid decide).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) start_time: u64,
    pub(crate) inode: u64,
}

/// The live registration of an instance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) epoch: u64,
    pub(crate) process: Process,
}

/// What a permitted registration does to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is there already, word for word.
    Repeated,
    /// A new entry, in place of the instance's older one if there is one.
    Write,
}

/// Whether a live process may be registered while `held` is what the table has for its instance.
pub(crate) fn registration(held: Option<Held>, epoch: u64, process: Process) -> Result<Admission, Refusal> {
    match held {
        None => Ok(Admission::Write),
        Some(held) if epoch < held.epoch => Err(Refusal::OldEpoch),
        // Two processes of one instance would be two primaries: the older must be dead first.
        Some(held) if held.process != process => Err(Refusal::OtherProcess),
        Some(held) if epoch == held.epoch => Ok(Admission::Repeated),
        Some(_) => Ok(Admission::Write),
    }
}

/// Whether an instance may be taken out of the table.
pub(crate) fn forgetting(held: Option<Held>, epoch: u64) -> Result<(), Refusal> {
    match held {
        Some(held) if epoch < held.epoch => Err(Refusal::OldEpoch),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
#[path = "rules/tests.rs"]
mod tests;
