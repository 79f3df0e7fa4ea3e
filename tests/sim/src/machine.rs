//! Owns the simulated hosts: power, clock, qemu processes, the guard, and the disk with its checkpoint images.
//!
//! Promises: what a machine does without its agent goes on without its agent: domains run, the guard kills. Must not
//! do: decide.

use std::collections::BTreeMap;

use understudy_core::ids::{Epoch, InstanceId, NodeId};
use understudy_core::records::CheckpointId;
use understudy_core::units::{Boottime, MiB, UnixMillis};

use crate::agent::Agent;

/// How far a domain has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// On until the guest agent answers.
    Booting { until: u64 },
    /// Its processors run.
    Running,
    /// All of it is there, and its processors stand still.
    Paused,
    /// Only a part of it has come.
    Incoming,
}

/// A qemu process and what is in it.
#[derive(Debug, Clone)]
pub(crate) struct Domain {
    /// One start of one guest: it goes along with a live migration; a restore is another life.
    pub(crate) life: u64,
    pub(crate) node: Option<NodeId>,
    pub(crate) memory: MiB,
    pub(crate) stage: Stage,
    pub(crate) deployed: bool,
    /// It was its node's primary at some time in this life.
    pub(crate) acts: bool,
    /// The secret of the node that it was deployed for.
    pub(crate) token: String,
    /// Which of the node's states this is: a fresh start begins another.
    pub(crate) generation: u64,
    /// Counts while it runs: the state that a failover should keep.
    pub(crate) counter: u64,
    /// Which windows of which epoch its intake lets in (display members).
    pub(crate) admitted: BTreeMap<NodeId, Epoch>,
    /// The life of the display that has its windows, and its epoch when they were sent (execution members).
    pub(crate) windows: Option<(u64, Epoch)>,
    /// Its guest's address.
    pub(crate) address: Option<std::net::Ipv4Addr>,
}

/// A durable checkpoint on a host's disk.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) id: CheckpointId,
    pub(crate) generation: u64,
    pub(crate) counter: u64,
}

/// The dead man's switch. It outlives the agent and dies with the kernel.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    pub(crate) deadline: Option<Boottime>,
    pub(crate) session: u64,
    held: BTreeMap<InstanceId, (u64, Epoch)>,
}

impl Guard {
    fn confirm(&mut self, deadline: Boottime, session: u64, now: Boottime) -> bool {
        let over = self.expired(now);
        let backwards = session < self.session
            || (session == self.session && (over || self.deadline.is_some_and(|known| deadline < known)));
        if backwards || deadline <= now {
            return false;
        }
        self.deadline = Some(deadline);
        self.session = session;
        true
    }

    /// Takes a process under its eyes. A process that an earlier session asked for is refused.
    pub(crate) fn register(
        &mut self,
        instance: InstanceId,
        (life, epoch): (u64, Epoch),
        session: Option<u64>,
        now: Boottime,
    ) -> bool {
        let open = self.deadline.is_some_and(|deadline| now < deadline);
        let current = session.is_none_or(|session| session == self.session);
        let older = self.held.get(&instance).is_some_and(|(known, held)| *known == life && epoch < *held);
        if !open || !current || older {
            return false;
        }
        self.held.insert(instance, (life, epoch));
        true
    }

    pub(crate) fn expired(&self, now: Boottime) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    pub(crate) fn holds(&self, instance: InstanceId, life: u64) -> bool {
        self.held.get(&instance).is_some_and(|(known, _)| *known == life)
    }

    /// In which epoch it holds a process.
    pub(crate) fn epoch_of(&self, instance: InstanceId, life: u64) -> Option<Epoch> {
        self.held.get(&instance).filter(|(known, _)| *known == life).map(|(_, epoch)| *epoch)
    }

    pub(crate) fn forget_all(&mut self) {
        self.held.clear();
    }
}

/// One physical machine.
#[derive(Debug)]
pub(crate) struct Machine {
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
    /// Nodes whose records its agent, of another version, cannot read, and until when.
    pub(crate) foreign: BTreeMap<NodeId, u64>,
    /// Its disk takes no images until then.
    pub(crate) full_until: u64,
    /// It stands still in the middle of each image until then.
    pub(crate) stalls_until: u64,
    /// The guard cannot be asked until then; it kills all the same.
    pub(crate) guard_deaf_until: u64,
    pub(crate) domains: BTreeMap<InstanceId, Domain>,
    /// On disk.
    pub(crate) images: BTreeMap<NodeId, Vec<Image>>,
    /// What may come in by migration, under which epoch and for which incarnation of the agent.
    pub(crate) permits: BTreeMap<InstanceId, Epoch>,
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
    pub(crate) fn new(memory: MiB) -> Self {
        Self {
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
            foreign: BTreeMap::new(),
            full_until: 0,
            stalls_until: 0,
            guard_deaf_until: 0,
            domains: BTreeMap::new(),
            images: BTreeMap::new(),
            permits: BTreeMap::new(),
            agent: None,
            agent_back: 0,
            incarnation: 0,
            change: Change::Known,
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

    /// The first deadline of a newer session closes the one before.
    pub(crate) fn confirm(&mut self, deadline: Boottime, session: u64, now: Boottime) -> bool {
        if session > self.guard.session {
            self.kill_registered();
        }
        self.guard.confirm(deadline, session, now)
    }

    pub(crate) fn kill_registered(&mut self) {
        let guard = &self.guard;
        self.domains.retain(|instance, domain| !guard.holds(*instance, domain.life));
        self.guard.forget_all();
    }
}
