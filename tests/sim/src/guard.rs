//! Owns the simulated guard: its table, and what it says to who asks.
//!
//! Promises: it accepts what the real one accepts; its table outlives it and is enforced by a successor before that answers
//! anyone; what cannot be read of it is killed. Must not do: kill (the machine does), count time by itself.

use std::collections::BTreeMap;

use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_core::model::units::Boottime;
use understudy_hypervisor::Pid;

/// The dead man's switch. It outlives the agent and dies with the kernel.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    pub(crate) deadline: Option<Boottime>,
    pub(crate) lease: u64,
    held: BTreeMap<InstanceId, (Pid, Epoch)>,
    /// There is no process of it until then; 0 while there is one.
    pub(crate) gone_until: u64,
    /// What its successor makes of the table.
    pub(crate) table: Table,
    /// It has found its table damaged, has killed all that it had, and knows no deadline since.
    pub(crate) lost: bool,
}

/// What a successor finds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    #[default]
    Whole,
    /// It does not verify.
    Damaged,
}

/// What it says to a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acknowledgement {
    Given,
    Refused,
    /// What an earlier lease left has to be gone first.
    Closing,
}

impl Guard {
    /// One that begins anew, after it has killed all that it had.
    pub(crate) fn after_damage() -> Self {
        Self { lost: true, ..Self::default() }
    }

    pub(crate) fn confirm(&mut self, deadline: Boottime, lease: u64, now: Boottime) -> bool {
        let over = self.expired(now);
        let backwards = lease < self.lease
            || (lease == self.lease && (over || self.deadline.is_some_and(|known| deadline < known)));
        if backwards || deadline <= now {
            return false;
        }
        self.deadline = Some(deadline);
        self.lease = lease;
        self.lost = false;
        true
    }

    /// Takes a process under its eyes. A process that an earlier lease asked for is refused.
    pub(crate) fn register(
        &mut self,
        instance: InstanceId,
        (process, epoch): (Pid, Epoch),
        lease: u64,
        now: Boottime,
    ) -> bool {
        let open = self.deadline.is_some_and(|deadline| now < deadline);
        let current = lease == self.lease;
        let older = self.held.get(&instance).is_some_and(|(known, held)| *known == process && epoch < *held);
        if !open || !current || older {
            return false;
        }
        self.held.insert(instance, (process, epoch));
        true
    }

    pub(crate) fn expired(&self, now: Boottime) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// In which epoch it holds a process.
    pub(crate) fn epoch_of(&self, instance: InstanceId, process: Pid) -> Option<Epoch> {
        self.held.get(&instance).filter(|(known, _)| *known == process).map(|(_, epoch)| *epoch)
    }

    /// What was registered before a deadline of this lease.
    pub(crate) fn left_by_earlier(&self, lease: u64) -> impl Iterator<Item = (InstanceId, Pid)> {
        let earlier = lease > self.lease;
        self.registered().filter(move |_| earlier)
    }

    /// What it kills at the deadline.
    pub(crate) fn registered(&self) -> impl Iterator<Item = (InstanceId, Pid)> {
        self.held.iter().map(|(&instance, &(process, _))| (instance, process))
    }

    /// The lease before is closed for good, though its deadline has not come.
    pub(crate) fn close(&mut self, now: Boottime) {
        self.deadline = self.deadline.map(|deadline| deadline.min(now));
    }
}
