//! Owns the records that the store holds: what operators asked for, what the leader decided, what hosts report.
//!
//! Promises: every record reads back as it was written; an unknown field is an error, so that an older agent
//! never drops what a newer one wrote. Must not do: decide anything.

mod checkpoint;
mod node;
mod state_wait;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::death::{Cooldown, CopyFault, Death};
use crate::model::ids::{BootId, Epoch, HostId, InstanceId, MachineId, NodeId, Term, TerminalId};
use crate::model::units::{MiB, UnixMillis, Vcpus};
pub use crate::service::Service;
use crate::sets::SetFacts;

pub use checkpoint::{Age, Checkpoint, CheckpointId, Kept, Newest, Protection};
pub use state_wait::StateWait;

/// Free-form `key=value` pairs that policies read.
pub type Labels = BTreeMap<String, String>;

/// The size of a screen in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Screen {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

impl fmt::Display for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// One application of an execution node: a window of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// Name, unique within the node.
    pub name: String,
    /// Place on the screen in X11 notation, `WxH+X+Y`.
    pub geometry: String,
    /// Title of the window.
    pub title: String,
    /// Command line, run by the guest's shell.
    pub command: String,
}

/// A terminal as its operator asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalRecord {
    /// The terminal.
    pub id: TerminalId,
    /// Labels, read by policies.
    pub labels: Labels,
    /// The size of its screen.
    pub screen: Screen,
    /// Its nodes, the display node first.
    pub nodes: Vec<NodeId>,
    /// When it was created.
    pub created: UnixMillis,
}

/// What a node needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// Memory of each member.
    pub memory: MiB,
    /// Processors of each member.
    pub vcpus: Vcpus,
    /// Whether its execution state is checkpointed to its backups' hosts. Only execution nodes can be.
    pub protected: bool,
    /// The environment (role disk) that makes an idle instance a member.
    pub environment: String,
    /// Applications, of execution nodes only.
    pub applications: Vec<Application>,
    /// Labels of the terminal, and `backups` where the operator asked for a number.
    pub labels: Labels,
    /// Labels of the environment, as they were when the node was made.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub environment_labels: Labels,
    /// The screen of the terminal.
    pub screen: Screen,
}

/// Where a member came from: what its host has to do to have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Origin {
    /// An idle instance of the host's pool, to be deployed.
    Idle,
    /// A new instance, to be created and deployed.
    Created,
    /// Was a warm backup.
    Promoted,
    /// To be restored from this checkpoint.
    Restored(CheckpointId),
    /// Arrived by live migration.
    Migrated,
    /// A place reserved for a restore: memory reserved, checkpoints kept, nothing running.
    Reserved,
}

/// An instance, or a reserved place, that belongs to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its host.
    pub host: HostId,
    /// The number of the host's lease when it was assigned: what an earlier lease ran is gone.
    pub lease: u64,
    /// The instance; none for a reserved place.
    pub instance: Option<InstanceId>,
    /// Where it came from.
    pub origin: Origin,
    /// Tells a backup from an earlier one of the same node on the same host: the revision of the node's record to which it was
    /// added.
    #[serde(default)]
    pub place: u64,
}

/// A live migration under way. While it stands, promotion needs the primary's death at both ends (SAFE-7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Migration {
    /// The host that the instance leaves.
    pub from: HostId,
    /// The host that it goes to.
    pub to: HostId,
    /// The number of `to`'s lease when it was chosen.
    pub to_lease: u64,
    /// The epoch that the migration was decided in.
    pub epoch: Epoch,
    /// It failed, or its source is dead: the destination gives up whatever has arrived and says so.
    pub abandoned: bool,
    /// When it was decided.
    pub started: UnixMillis,
}

/// What a failover kept of the execution state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum StateKept {
    /// There was none to keep (display nodes) or it lives on elsewhere.
    NotNeeded,
    /// Restored from a checkpoint that was this old when the failure was found, in milliseconds.
    Checkpoint {
        /// The checkpoint.
        id: CheckpointId,
        /// Its age at the time that the failure was found.
        age_ms: u64,
    },
    /// Nothing was kept: a fresh start.
    Lost,
}

/// One failover, as a timeline. Times are wall-clock times of the host that saw the step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incident {
    /// The epoch that the failover began.
    pub epoch: Epoch,
    /// What failed.
    pub cause: Death,
    /// How the last of those died that stood in for it, where there was one: of those whose end was not seen, if there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Death>,
    /// The step of the fallback order that was taken, and where.
    pub action: String,
    /// What was kept.
    pub state: StateKept,
    /// When the failure was found.
    pub found: UnixMillis,
    /// When the successor was decided.
    pub decided: UnixMillis,
    /// When the successor was ready as primary.
    pub ready: Option<UnixMillis>,
    /// When the windows had been handed over.
    pub windows: Option<UnixMillis>,
}

/// A node: what it needs and what the leader decided for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRecord {
    /// What it needs.
    pub spec: NodeSpec,
    /// Raised at each change of the primary and at each live migration.
    pub epoch: Epoch,
    /// The epoch in which the running state began: a promotion, restore or fresh start, but not a live
    /// migration, which windows and sessions survive.
    pub incarnation: Epoch,
    /// The primary; none before the first placement and while nothing can take over.
    pub primary: Option<Member>,
    /// The backups, in the order in which they would be promoted.
    pub backups: Vec<Member>,
    /// The live migration under way.
    pub migration: Option<Migration>,
    /// The secret that windows of this node carry.
    pub token: String,
    /// The last failover.
    pub incident: Option<Incident>,
    /// What went wrong lately.
    pub cooldowns: Vec<Cooldown>,
    /// When a primary of it failed, within a day of the last time, the oldest first and at most a few dozen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<UnixMillis>,
    /// Hosts that may have checkpoints of it beside its backups: whoever was one, until every backup has one about as new as
    /// there is, and those that a restore was chosen among.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub keepers: BTreeSet<HostId>,
    /// How long it has waited for its state, from when its primary was found dead until a successor is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_wait: Option<StateWait>,
}

/// A host's right to run primaries. It is written when it is opened, and when the leader expires it; each renewal is a record
/// of its own ([`RenewalRecord`]), written on condition that this one is unchanged. So an expiry, which is conditional on
/// both, and a renewal exclude each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRecord {
    /// The boot that opened it.
    pub boot: BootId,
    /// The machine that opened it.
    #[serde(default)]
    pub machine: MachineId,
    /// Counts the host's leases.
    pub number: u64,
    /// Why the leader expired it; none while it is open.
    pub expired: Option<LeaseExpiry>,
}

impl LeaseRecord {
    /// A lease that is open.
    #[must_use]
    pub fn open(boot: BootId, machine: MachineId, number: u64) -> Self {
        Self { boot, machine, number, expired: None }
    }
}

/// The last renewal of a host's lease. What counts is that it was written; its content is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewalRecord {
    /// The number of the lease.
    pub number: u64,
    /// When it was sent, by the host's clock.
    pub at: UnixMillis,
}

/// The expiry of a lease, and from when on nothing of it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseExpiry {
    /// Why, for people.
    pub reason: String,
    /// When the silence began, as the leader saw it.
    pub silent_since: UnixMillis,
    /// When it was expired.
    pub at: UnixMillis,
}

/// What the operator wants of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostIntent {
    /// Everything is to leave, and nothing is to come.
    pub drain: bool,
}

/// The leadership of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaderRecord {
    /// The host whose agent leads; none: the last leader gave up in order.
    pub host: Option<HostId>,
    /// The term, which only grows while the record stands.
    pub term: Term,
}

/// An operator's wish that a node's primary be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverRequest {
    /// The epoch that is to end. Once it has, the request means nothing.
    pub epoch: Epoch,
}

/// What a host has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Processors.
    pub vcpus: Vcpus,
    /// Memory for instances: what the host has less what is reserved for the host itself.
    pub memory: MiB,
}

/// Where an instance stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Phase {
    /// Its domain is being made, or its guest agent does not answer yet.
    Booting,
    /// Booted, generic, no role.
    Idle,
    /// The environment is being deployed.
    Deploying,
    /// Its image is being loaded.
    Restoring,
    /// Its role reported ready.
    Ready,
    /// Known dead by the standard of SAFE-2.
    Dead {
        /// How.
        death: Death,
        /// When it was found.
        at: UnixMillis,
    },
}

/// The windows of an execution member, as last accepted by a display's intake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowsSent {
    /// The display instance.
    pub display: InstanceId,
    /// The display's incarnation.
    pub display_incarnation: Epoch,
    /// The node's own incarnation.
    pub incarnation: Epoch,
    /// When the last of them was accepted.
    pub at: UnixMillis,
}

/// What a host reports of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceFact {
    /// Where it stands.
    pub phase: Phase,
    /// The node that it was deployed for.
    pub node: Option<NodeId>,
    /// The epoch that this host's guard has acknowledged for it.
    pub epoch: Epoch,
    /// The guest's IPv4 address.
    pub address: Option<std::net::Ipv4Addr>,
    /// Its memory.
    pub memory: MiB,
    /// Its processors.
    pub vcpus: Vcpus,
    /// When it came to its phase.
    pub since: UnixMillis,
    /// The windows that it has sent (execution members).
    pub windows: Option<WindowsSent>,
    /// The epoch from which on windows of each execution node are let in (display members).
    pub admitted: BTreeMap<NodeId, Epoch>,
    /// The newest epoch in which leaving this host by live migration failed, and why.
    pub migration_failed: Option<(Epoch, String)>,
}

/// What a host's agent reports of its host. The default is that of a host that never opened a lease: fixtures name what
/// they are about, the agent names every field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFacts {
    /// The lease in which these facts hold.
    pub lease: u64,
    /// What the host has for instances.
    pub capacity: Capacity,
    /// Labels, read by policies.
    pub labels: Labels,
    /// `host:port` where the agent listens for its peers. They know by their own configuration whether they use TLS.
    pub api: String,
    /// The address of the gateway as browsers reach it.
    pub gateway: String,
    /// The URI to which peers migrate.
    pub migration_uri: String,
    /// Where this host's qemu takes in memory, where that is not libvirt's choice: `tcp://192.0.2.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration_data_uri: Option<String>,
    /// Load of the processors in thousandths of one processor.
    pub load_milli: u32,
    /// All managed instances.
    pub instances: BTreeMap<InstanceId, InstanceFact>,
    /// What is wrong with this host that an operator should know, for people.
    pub conditions: Vec<String>,
    /// What of this host cannot do its part at present: it takes no new work meanwhile. `conditions` say what to do.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unable: BTreeSet<Service>,
    /// Backups' hosts that take no copies of checkpoints from here, for a while already, by node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub copy_faults: BTreeMap<NodeId, BTreeMap<HostId, CopyFault>>,
    /// How the state of the primaries here is protected.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub protection: BTreeMap<NodeId, Protection>,
    /// What it has of the sets of policies.
    #[serde(default)]
    pub policies: SetFacts,
    /// Version of the agent.
    pub version: String,
}

impl Origin {
    /// The checkpoint that the member is restored from; none where it is not.
    #[must_use]
    pub fn restored(self) -> Option<CheckpointId> {
        match self {
            Self::Restored(id) => Some(id),
            Self::Idle | Self::Created | Self::Promoted | Self::Migrated | Self::Reserved => None,
        }
    }
}

impl Migration {
    /// Whether it may still come about: it was not abandoned, and its source, as far as it reports, has not failed at it.
    #[must_use]
    pub fn stands(&self, source: Option<&InstanceFact>) -> bool {
        let failed = source.and_then(|fact| fact.migration_failed.as_ref());
        !self.abandoned && failed.is_none_or(|(epoch, _)| *epoch < self.epoch)
    }
}

impl InstanceFact {
    /// Whether it is large enough.
    #[must_use]
    pub fn fits(&self, spec: &NodeSpec) -> bool {
        self.memory >= spec.memory && self.vcpus >= spec.vcpus
    }
}

impl Phase {
    /// Whether this is the end.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        match self {
            Self::Dead { .. } => true,
            Self::Booting | Self::Idle | Self::Deploying | Self::Restoring | Self::Ready => false,
        }
    }

    /// The word used in logs, metrics and listings.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Idle => "idle",
            Self::Deploying => "deploying",
            Self::Restoring => "restoring",
            Self::Ready => "ready",
            Self::Dead { .. } => "dead",
        }
    }
}
