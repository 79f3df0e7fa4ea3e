//! Owns who works on which instance: saves, snapshots and migrations of one instance come one after the other.
//!
//! libvirt sees to that for its own jobs. Of a snapshot it knows nothing: a migration that began in the middle of one would
//! find a switch of qemu's set that makes it another thing.
//!
//! Promises: whoever waits does so no longer than it says. Must not do: know of other processes.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use understudy_core::model::ids::InstanceId;

#[derive(Debug, Default)]
pub(crate) struct Jobs {
    busy: Mutex<BTreeSet<InstanceId>>,
    freed: Condvar,
}

/// The right to work on an instance. Goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    jobs: &'a Jobs,
    id: InstanceId,
}

impl Jobs {
    /// Waits until nobody works on the instance; none when somebody still does when time is up.
    pub(crate) fn begin(&self, id: InstanceId, limit: Duration) -> Option<Job<'_>> {
        // A set of names is whole after every step, so a poisoned lock holds nothing broken.
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.freed.wait_timeout_while(busy, limit, |busy| busy.contains(&id));
        let (mut busy, _) = waited.unwrap_or_else(PoisonError::into_inner);
        busy.insert(id).then(|| Job { jobs: self, id })
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        self.jobs.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.jobs.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn id(last: u8) -> InstanceId {
        format!("11111111-2222-4333-8444-0000000000{last:02x}").parse().unwrap()
    }

    #[test]
    fn an_instance_is_worked_on_by_one_at_a_time_and_others_are_not_held_up() {
        let jobs = Jobs::default();
        let first = jobs.begin(id(1), LONG).unwrap();
        assert!(jobs.begin(id(1), Duration::from_millis(10)).is_none());
        assert!(jobs.begin(id(2), Duration::ZERO).is_some());
        let (sender, begun) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send(jobs.begin(id(1), LONG).is_some()));
            assert!(begun.recv_timeout(Duration::from_millis(20)).is_err());
            drop(first);
            assert!(begun.recv_timeout(LONG).unwrap());
        });
        assert!(jobs.begin(id(1), Duration::ZERO).is_some());
    }
}
