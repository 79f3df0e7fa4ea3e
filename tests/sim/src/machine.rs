//! Owns the simulated hosts: power, clock, the guard, what lies on the disk, and what is wrong with each.
//!
//! Promises: what a machine does without its agent goes on without its agent: the guard kills. What runs on it, its permits
//! and its libvirt are the simulated hypervisor's. Must not do: decide.

use std::collections::{BTreeMap, BTreeSet};

use understudy_core::model::ids::{Epoch, InstanceId, NodeId};
use understudy_core::model::records::CheckpointId;
use understudy_core::model::units::{Boottime, MiB, UnixMillis};
use understudy_hypervisor::Pid;
use understudy_hypervisor::fake::{FakeHypervisor, Operation};

use crate::agent::Agent;
use crate::guest::Memory;

/// The dead man's switch. It outlives the agent and dies with the kernel.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    pub(crate) deadline: Option<Boottime>,
    pub(crate) lease: u64,
    held: BTreeMap<InstanceId, (Pid, Epoch)>,
}

impl Guard {
    fn confirm(&mut self, deadline: Boottime, lease: u64, now: Boottime) -> bool {
        let over = self.expired(now);
        let backwards = lease < self.lease
            || (lease == self.lease && (over || self.deadline.is_some_and(|known| deadline < known)));
        if backwards || deadline <= now {
            return false;
        }
        self.deadline = Some(deadline);
        self.lease = lease;
        true
    }

    /// Takes a process under its eyes. A process that an earlier lease asked for is refused.
    pub(crate) fn register(
        &mut self,
        instance: InstanceId,
        (process, epoch): (Pid, Epoch),
        lease: Option<u64>,
        now: Boottime,
    ) -> bool {
        let open = self.deadline.is_some_and(|deadline| now < deadline);
        let current = lease.is_none_or(|lease| lease == self.lease);
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
}

/// One physical machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) hypervisor: FakeHypervisor<Memory>,
    pub(crate) memory: MiB,
    pub(crate) boot: u64,
    /// When it comes back, while its power is cut.
    pub(crate) off_until: Option<u64>,
    /// When it goes on, while everything on it stands still.
    pub(crate) frozen_until: Option<u64>,
    pub(crate) frozen_at: u64,
    pub(crate) thawed_at: u64,
    /// No answer comes from the store, nor does a request get there.
    pub(crate) cut_until: u64,
    /// How late the watch is.
    pub(crate) lag: u64,
    pub(crate) booted_at: u64,
    /// Its clock's error in millionths.
    pub(crate) drift_ppm: i64,
    /// Its wall clock's error in milliseconds.
    pub(crate) wall_skew: u64,
    pub(crate) guard: Guard,
    /// Its libvirtd ends nothing until then.
    pub(crate) holds_until: u64,
    /// Its libvirtd does not answer until then.
    pub(crate) libvirtd_back: u64,
    /// For which calls its libvirtd does not do as asked, and until when.
    pub(crate) fails_until: BTreeMap<Operation, u64>,
    /// Its permits cannot be written until then.
    pub(crate) permits_fail_until: u64,
    /// Since when its agent alone stands still, and until when.
    pub(crate) agent_frozen: Option<(u64, u64)>,
    /// Nodes whose records its agent, of another version, cannot read, and until when.
    pub(crate) foreign: BTreeMap<NodeId, u64>,
    /// Its disk takes no images until then.
    pub(crate) full_until: u64,
    /// It stands still in the middle of each image until then.
    pub(crate) stalls_until: u64,
    /// The guard cannot be asked until then; it kills all the same.
    pub(crate) guard_deaf_until: u64,
    /// Which images lie on its disk.
    pub(crate) images: BTreeMap<NodeId, BTreeSet<CheckpointId>>,
    pub(crate) agent: Option<Box<Agent>>,
    /// When the agent starts again, while there is none.
    pub(crate) agent_back: u64,
    pub(crate) incarnation: u64,
    /// What became of the last change in its policies folder.
    pub(crate) change: Change,
}

/// A change in a policies folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// The cluster has it.
    Known,
    /// This generation has it.
    Proposed(u64),
    /// The generation that had it was refused.
    Refused,
}

impl Machine {
    pub(crate) fn new(hypervisor: FakeHypervisor<Memory>, memory: MiB) -> Self {
        Self {
            hypervisor,
            memory,
            boot: 1,
            off_until: None,
            frozen_until: None,
            frozen_at: 0,
            thawed_at: 0,
            cut_until: 0,
            lag: 0,
            booted_at: 0,
            drift_ppm: 0,
            wall_skew: 0,
            guard: Guard::default(),
            holds_until: 0,
            libvirtd_back: 0,
            fails_until: BTreeMap::new(),
            permits_fail_until: 0,
            agent_frozen: None,
            foreign: BTreeMap::new(),
            full_until: 0,
            stalls_until: 0,
            guard_deaf_until: 0,
            images: BTreeMap::new(),
            agent: None,
            agent_back: 0,
            incarnation: 0,
            change: Change::Known,
        }
    }

    /// Its libvirtd does what it can again, where that is due.
    pub(crate) fn recover(&mut self, now: u64) {
        if self.holds_until != 0 && self.holds_until <= now {
            self.holds_until = 0;
            self.hypervisor.set_all_unkillable(false);
        }
        if self.libvirtd_back != 0 && self.libvirtd_back <= now {
            self.libvirtd_back = 0;
            self.hypervisor.set_libvirt_up(true);
        }
        let Self { fails_until, hypervisor, .. } = self;
        fails_until.extract_if(.., |_, until| *until <= now).for_each(|(operation, _)| {
            hypervisor.set_failing(operation, None);
        });
    }

    /// Whether its agent does not stand still alone.
    pub(crate) fn agent_goes_on(&mut self, now: u64) -> bool {
        match self.agent_frozen {
            Some((_, until)) if now < until => false,
            Some((since, _)) => {
                self.agent_frozen = None;
                if let Some(agent) = &mut self.agent {
                    agent.stood_still(since, now - since);
                }
                true
            }
            None => true,
        }
    }

    /// Whether it runs at all at this moment.
    pub(crate) fn runs(&self) -> bool {
        self.off_until.is_none() && self.frozen_until.is_none()
    }

    /// Whether the store and its peers can reach it.
    pub(crate) fn linked(&self, now: u64) -> bool {
        self.runs() && now >= self.cut_until
    }

    /// Its own clock, which begins far from 0 so that a difference never does.
    pub(crate) fn boottime(&self, now: u64) -> Boottime {
        let run = now.saturating_sub(self.booted_at);
        let drift = i64::try_from(run).unwrap_or(0) * self.drift_ppm / 1_000_000;
        Boottime((1_000_000 + run.saturating_add_signed(drift)) * 1_000_000)
    }

    pub(crate) fn wall(&self, now: u64) -> UnixMillis {
        UnixMillis(1_700_000_000_000 + now + self.wall_skew)
    }

    /// The first deadline of a newer lease closes the one before.
    pub(crate) fn confirm(&mut self, deadline: Boottime, lease: u64, now: Boottime) -> bool {
        if lease > self.guard.lease {
            self.kill_registered();
        }
        self.guard.confirm(deadline, lease, now)
    }

    /// Whatever its libvirt ends or not: nothing of it runs on.
    pub(crate) fn kill_registered(&mut self) {
        for (instance, (process, _)) in std::mem::take(&mut self.guard.held) {
            if self.hypervisor.process_of(instance) == Some(process) {
                self.hypervisor.kill(instance);
            }
        }
    }
}
