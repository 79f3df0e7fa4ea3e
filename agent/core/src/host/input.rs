//! Owns what goes into a host's agent and what comes out of it.
//!
//! Promises: plain data; an effect carries all that its doing needs, and leaves it nothing to choose. Must not do: decide.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::{Destination, HostAction, Lane, Local, MigrationAnswer, MigrationStep};
use crate::death::CopyFault;
use crate::model::ids::{Epoch, HostId, InstanceId, NodeId};
use crate::model::records::{CheckpointId, Service, WindowsSent};
use crate::model::units::{MiB, UnixMillis, Vcpus};
use crate::model::view::View;
use crate::store_cache::StoreCache;

/// Something that a host's agent hears of.
#[derive(Debug, Clone)]
pub enum Input {
    /// What the store holds.
    Records(Box<Records>),
    /// A lease is open, and these instances go on under it.
    Recovered {
        /// The lease's number.
        lease: u64,
        /// What was found here, the dead among them.
        found: BTreeMap<InstanceId, Local>,
    },
    /// The lease of an earlier agent goes on; what runs under it is not known yet.
    Resumed {
        /// The lease's number.
        lease: u64,
    },
    /// What this agent reports stands in the store.
    Reported {
        /// The lease that it is reported under.
        lease: u64,
    },
    /// What runs under the lease that goes on could not be looked at, or not be brought to what it should be: it is tried
    /// again.
    Unrecovered {
        /// What did not do its part, though it may answer.
        service: Service,
    },
    /// The lease is lost: its members are destroyed by whoever says so.
    LeaseLost,
    /// The hypervisor says something of its own accord.
    Hypervisor(DomainEvent),
    /// What the hypervisor has, asked for by [`Effect::List`]; none when it could not say.
    Listed(Option<BTreeMap<InstanceId, Shown>>),
    /// Whether an instance is here, asked for by [`Effect::LookFor`].
    Looked {
        /// Which.
        instance: InstanceId,
        /// Whether anything of it is; none when that could not be found out.
        there: Option<bool>,
    },
    /// The nodes of which this host keeps checkpoint images.
    Images(BTreeSet<NodeId>),
    /// A service of this host answers, or does not. Of libvirtd the hypervisor says so itself.
    Service {
        /// Which.
        service: Service,
        /// Whether it answers.
        answers: bool,
    },
    /// Memory that this host has for instances, once libvirt has said so.
    Memory(MiB),
    /// A job ended.
    Finished {
        /// The job.
        job: Box<Job>,
        /// How.
        outcome: Outcome,
    },
    /// A step of a live migration went so.
    Stepped {
        /// The job that it is a step of.
        job: Box<Job>,
        /// How.
        answer: MigrationAnswer,
    },
    /// Something became of a checkpoint that was saved here.
    Copy {
        /// Of which node.
        node: NodeId,
        /// Which.
        id: CheckpointId,
        /// What.
        event: CopyEvent,
    },
    /// All events so far were handed over: act on it. Comes too when time has passed without any.
    Tick {
        /// Whether the lease is open now.
        open: bool,
    },
}

/// What becomes of a checkpoint that is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyEvent {
    /// A host goes on accepting it. Told now and then.
    Accepted {
        /// The host.
        host: HostId,
        /// How many bytes there are by now.
        bytes: u64,
        /// How many there are to be.
        of: u64,
    },
    /// A host has all of it durably.
    Durable(HostId),
    /// A host did not take it.
    Failed {
        /// The host.
        host: HostId,
        /// Why not.
        fault: CopyFault,
    },
    /// A host does not have what was to be added to.
    Lacks {
        /// The host.
        host: HostId,
        /// What it has.
        detail: String,
    },
    /// What is sent could not be read here: that says nothing of the host.
    Unreadable {
        /// The host that it was to go to.
        host: HostId,
        /// What was run into.
        detail: String,
    },
}

/// A state that was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// When it was taken.
    pub taken: UnixMillis,
    /// How long the guest stood still.
    pub pause_ms: u64,
    /// Size of the largest copy.
    pub bytes: u64,
}

/// What the store holds, as far as a host acts on it.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// The cluster.
    pub view: View,
    /// The nodes whose primary an operator wants replaced, with the epoch that is to end.
    pub failovers: BTreeMap<NodeId, Epoch>,
    /// Some record cannot be read: it may name any instance that no other names, and any image.
    pub unreadable: bool,
}

impl From<&StoreCache> for Records {
    fn from(cache: &StoreCache) -> Self {
        Self {
            view: cache.view().clone(),
            failovers: cache.failovers().collect(),
            unreadable: cache.has_quarantined_names(),
        }
    }
}

/// What the hypervisor says of its own accord.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainEvent {
    /// The process of an instance is gone.
    Exited {
        /// Of which.
        instance: InstanceId,
        /// What was seen, for people.
        detail: String,
    },
    /// The guest's kernel panicked.
    Panicked(InstanceId),
    /// The guest does not feed its watchdog.
    Hangs(InstanceId),
    /// A disk did not take or give what the guest asked for.
    DiskFailed {
        /// Of which.
        instance: InstanceId,
        /// The disk.
        device: String,
        /// Whether the guest stands still for it.
        paused: bool,
    },
    /// libvirt does not answer. Says nothing about instances.
    Lost,
    /// libvirt answers again; what it said meanwhile was missed.
    Regained,
}

/// How the hypervisor shows an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Its guest's kernel panicked.
    Panicked,
    /// It stands still because its watchdog fired.
    Hangs,
    /// It stands still because a disk of it failed.
    DiskFailed,
    /// Nothing that ends it.
    Well,
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Do this, and say how it ended.
    Start(Box<Job>),
    /// Take this step of a live migration, and say how it went.
    Step {
        /// The job that it is a step of, with all that it needs.
        job: Box<Job>,
        /// The step.
        step: MigrationStep,
    },
    /// This host's side of a live migration is over: to be logged.
    Ended {
        /// What it was.
        job: Box<Job>,
        /// How it ended.
        outcome: Outcome,
    },
    /// Say what the hypervisor has.
    List,
    /// Look whether anything of this instance is here.
    LookFor(InstanceId),
    /// Delete the images of a node.
    DropImages {
        /// The node.
        node: NodeId,
        /// It is gone for good: the highest epoch seen of it may be forgotten too.
        forget: bool,
    },
    /// Send a checkpoint to a host, all of it or what it adds to the destination's base, and tell what becomes of it as [`CopyEvent`]s.
    Send {
        /// Of which node.
        node: NodeId,
        /// Which.
        id: CheckpointId,
        /// The node's record that it was decided from: the host takes it under that one only.
        revision: u64,
        /// Where to.
        to: Destination,
    },
    /// End the sending. Nothing has to be told of it any more.
    CancelSend {
        /// Of which node.
        node: NodeId,
        /// Which.
        id: CheckpointId,
        /// Where to.
        host: HostId,
        /// What is held against the host, if anything is.
        fault: Option<CopyFault>,
    },
    /// Nobody needs the image of a checkpoint here any more: what goes on with it ends, and it is deleted.
    Discard {
        /// Of which node.
        node: NodeId,
        /// Which.
        id: CheckpointId,
    },
    /// A node has a new newest checkpoint, on some host: to be counted.
    Checkpointed {
        /// Of which node.
        node: NodeId,
        /// Which.
        id: CheckpointId,
        /// What it is.
        saved: Saved,
    },
    /// Something is wrong on this host, with what to do.
    Raise(Condition, String),
    /// It is not wrong any more.
    Clear(Condition),
    /// An instance came to another phase: to be logged.
    Changed {
        /// The instance.
        instance: InstanceId,
        /// The phase that it was in; none when it was not known.
        from: Option<&'static str>,
        /// The phase that it is in.
        to: &'static str,
        /// Why.
        reason: String,
    },
    /// The end of a process was seen that no job accounts for: to be counted.
    DeathSeen,
}

/// What can be wrong with a host's instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Idle instances cannot be made.
    Pool,
    /// Instances cannot be destroyed.
    Destroys,
    /// Disks of instances fail.
    Disks,
    /// State cannot be restored for now.
    Restores,
    /// libvirt does not answer.
    Libvirt,
    /// Backups' hosts take no copies of checkpoints.
    Copies,
}

impl Condition {
    /// The word that it goes by.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::Destroys => "destroys",
            Self::Disks => "disks",
            Self::Restores => "restores",
            Self::Libvirt => "libvirt",
            Self::Copies => "copies",
        }
    }
}

/// One action, with what its doing needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// What to do.
    pub action: HostAction,
    /// To which instance.
    pub instance: InstanceId,
    /// Its address, where one is known or given.
    pub address: Option<Ipv4Addr>,
    /// The sequence number, for checkpoints.
    pub sequence: Option<u64>,
    /// Its memory, where it is known.
    pub memory: Option<MiB>,
    /// This host's lease when it started: the guard lets nothing run for one that is over.
    pub lease: u64,
}

impl Job {
    /// Whether it brings an instance to life that is not there when it begins.
    #[must_use]
    pub fn makes(&self) -> bool {
        matches!(
            self.action,
            HostAction::CreateIdle(_) | HostAction::Create { .. } | HostAction::Restore { .. }
        )
    }

    /// Whether it acts on the instance itself, by its name. Live migrations are told step by step, and have their own ends.
    #[must_use]
    pub fn acts(&self) -> bool {
        let moves = matches!(self.action, HostAction::Accept { .. } | HostAction::MigrateOut { .. });
        !moves && self.action.lane().is_some_and(|(_, lane)| lane == Lane::Domain)
    }
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As wanted; what there is to say follows from the job.
    Done,
    /// The guard acknowledged this epoch.
    Guarded(Epoch),
    /// All windows were accepted.
    WindowsSent(WindowsSent),
    /// The state is saved, and ready to be sent.
    Saved(Saved),
    /// All of its image is loaded, and it is paused, at this address.
    Loaded {
        /// The guest's address.
        address: Option<Ipv4Addr>,
    },
    /// It has come by live migration and runs.
    Arrived {
        /// Its memory.
        memory: MiB,
        /// Its processors.
        vcpus: Vcpus,
        /// The guest's address.
        address: Option<Ipv4Addr>,
    },
    /// It is on the other host.
    Moved,
    /// It is not here any more, and whether it has moved is not known.
    Gone,
    /// It did not move, and nothing of it is there.
    Stayed(String),
    /// The image is damaged or not here: no other try with it can succeed. Nothing of the instance is here.
    Damaged(String),
    /// The image was refused without a word on whether it is damaged. Nothing of the instance is here.
    Refused(String),
    /// The instance is dead for that: it is known to be gone.
    Died(String),
    /// It could not be made whole for that, and may run: it is to be ended, unless what runs is of a newer decision.
    Unsure(String),
    /// Nothing is lost: to be tried again.
    Failed(String),
}
