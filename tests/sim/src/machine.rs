//! Owns the simulated hosts: power, clock, when their guards kill, what lies on the disk, and what is wrong with each.
//!
//! Promises: what a machine does without its agent goes on without its agent: the guard kills. What runs on it, its permits
//! and its libvirt are the simulated hypervisor's. Must not do: decide.

use std::collections::BTreeMap;
use std::ops::Range;

use understudy_core::model::ids::{Epoch, InstanceId, NodeId};
use understudy_core::model::records::{Checkpoint, CheckpointId};
use understudy_core::model::units::{Boottime, MiB, UnixMillis};
use understudy_hypervisor::Pid;
use understudy_hypervisor::fake::{FakeHypervisor, Operation};

use crate::agent::Agent;
use crate::guard::{Acknowledgement, Guard, Table};
use crate::guest::Memory;

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
    /// How long a process takes to end that was killed.
    pub(crate) kills_take: u64,
    /// What was killed, and when it ends.
    pub(crate) dying: BTreeMap<InstanceId, (Pid, u64)>,
    /// Guests that stand still or are silent without a word, and until when.
    pub(crate) stopped: BTreeMap<InstanceId, (Pid, u64)>,
    /// What it says does not get through until then, what it is told does.
    pub(crate) mute_until: u64,
    /// What it is told does not get through until then, what it says does.
    pub(crate) deaf_until: u64,
    /// Nothing on its disk can be changed until then.
    pub(crate) read_only_until: u64,
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
    /// Keys of the records that its agent, of another version, cannot read, and until when.
    pub(crate) foreign: BTreeMap<String, u64>,
    /// Its disk takes no images until then.
    pub(crate) full_until: u64,
    /// It stands still in the middle of each image until then.
    pub(crate) stalls_until: u64,
    /// What it keeps of checkpoints cannot be added to until then.
    pub(crate) pages_damaged_until: u64,
    /// The guard cannot be asked until then; it kills all the same.
    pub(crate) guard_deaf_until: u64,
    /// Which images lie on its disk.
    pub(crate) images: BTreeMap<NodeId, BTreeMap<CheckpointId, Checkpoint>>,
    /// By node.
    pub(crate) closed: BTreeMap<NodeId, Closed>,
    pub(crate) agent: Option<Box<Agent>>,
    /// When the agent starts again, while there is none.
    pub(crate) agent_back: u64,
    pub(crate) incarnation: u64,
    /// What became of the last change in its policies folder.
    pub(crate) change: Change,
}

/// What a host takes no more of, because it has said what it has.
#[derive(Debug, Clone)]
pub(crate) struct Closed {
    pub(crate) instance: InstanceId,
    pub(crate) epoch: Epoch,
    /// When it begins to come.
    pub(crate) times: Range<u64>,
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
            kills_take: 0,
            dying: BTreeMap::new(),
            stopped: BTreeMap::new(),
            mute_until: 0,
            deaf_until: 0,
            read_only_until: 0,
            holds_until: 0,
            libvirtd_back: 0,
            fails_until: BTreeMap::new(),
            permits_fail_until: 0,
            agent_frozen: None,
            foreign: BTreeMap::new(),
            full_until: 0,
            stalls_until: 0,
            pages_damaged_until: 0,
            guard_deaf_until: 0,
            images: BTreeMap::new(),
            closed: BTreeMap::new(),
            agent: None,
            agent_back: 0,
            incarnation: 0,
            change: Change::Known,
        }
    }

    /// What is due on it by itself: killed processes end, and its libvirtd does what it can again.
    pub(crate) fn recover(&mut self, now: u64) {
        if self.runs() {
            self.end_killed(now);
        }
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

    /// Whether the store and its peers can reach it, and it them.
    pub(crate) fn linked(&self, now: u64) -> bool {
        self.hears(now) && self.is_heard(now)
    }

    /// Whether anything from elsewhere gets to it.
    pub(crate) fn hears(&self, now: u64) -> bool {
        self.runs() && now >= self.cut_until.max(self.deaf_until)
    }

    /// Whether anything from it gets elsewhere.
    pub(crate) fn is_heard(&self, now: u64) -> bool {
        now >= self.cut_until.max(self.mute_until)
    }

    /// Whether its guard answers nobody.
    pub(crate) fn lacks_guard(&self, now: u64) -> bool {
        now < self.guard_deaf_until.max(self.guard.gone_until)
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
    pub(crate) fn confirm(&mut self, deadline: Boottime, lease: u64, now: u64) -> Acknowledgement {
        let clock = self.boottime(now);
        let left: Vec<(InstanceId, Pid)> = self.guard.left_by_earlier(lease).collect();
        let is_left =
            left.into_iter().filter(|&(instance, process)| self.kill(instance, process, now)).count();
        if is_left > 0 {
            self.guard.close(clock);
            return Acknowledgement::Closing;
        }
        if self.guard.confirm(deadline, lease, clock) {
            Acknowledgement::Given
        } else {
            Acknowledgement::Refused
        }
    }

    /// The guard's work without being asked. A successor of one that is gone enforces the table first.
    pub(crate) fn step_guard(&mut self, now: u64, (late_ms, forgets): (u64, bool)) {
        let late = self.thawed_at > 0 && now < self.thawed_at + late_ms;
        if !self.runs() || late || now < self.guard.gone_until {
            return;
        }
        let returns = std::mem::take(&mut self.guard.gone_until) != 0;
        let damaged = returns && self.guard.table == Table::Damaged;
        if (damaged && !forgets) || self.guard.expired(self.boottime(now)) {
            self.kill_registered(now);
        }
        if damaged || (returns && forgets) {
            self.guard = if forgets { Guard::default() } else { Guard::after_damage() };
        }
    }

    /// Of guard and agent one is there at least: with both gone at once nothing is promised but by a hardware watchdog.
    pub(crate) fn restart_guard(&mut self, now: u64) {
        self.guard.gone_until = self.guard.gone_until.min(now);
    }

    /// Whatever its libvirt ends or not: nothing of it runs on.
    pub(crate) fn kill_registered(&mut self, now: u64) {
        let registered: Vec<(InstanceId, Pid)> = self.guard.registered().collect();
        for (instance, process) in registered {
            self.kill(instance, process, now);
        }
    }

    /// Kills this very process, if it runs the instance; whether it is there still.
    pub(crate) fn kill(&mut self, instance: InstanceId, process: Pid, now: u64) -> bool {
        if self.hypervisor.process_of(instance) != Some(process) {
            return false;
        }
        if self.kills_take == 0 {
            self.hypervisor.kill(instance);
            return false;
        }
        let ends = now + self.kills_take;
        let known = self.dying.entry(instance).or_insert((process, ends));
        if known.0 != process {
            *known = (process, ends);
        }
        self.hypervisor.set_unkillable(instance, true);
        true
    }

    /// What was killed some time ago ends.
    fn end_killed(&mut self, now: u64) {
        for (instance, (process, _)) in self.dying.extract_if(.., |_, (_, ends)| *ends <= now) {
            if self.hypervisor.process_of(instance) == Some(process) {
                self.hypervisor.kill(instance);
            }
        }
    }
}
