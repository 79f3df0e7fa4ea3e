//! Owns what one host's agent does to bring its host to what the leader decided: `reconcile`, and the agent that calls it.
//!
//! Promises: level-triggered and idempotent: the actions follow from the situation alone, so any of them may be
//! lost or repeated; every action carries the epoch that it was decided in; at most one action per instance and
//! lane is asked for at a time; while a record cannot be read nothing is ended, forgotten or deleted for want of a name.
//! Must not do: place anything (the leader does), touch libvirt, the guard or a guest.
//!
//! Cost: a tick walks this host's own nodes and instances, and of the others the few of the terminals that have a node
//! here; to give an instance an address takes a walk over the reports of all hosts.

mod agent;
mod checkpoints;
mod images;
mod input;
pub mod lease;
mod migration;
pub mod opening;
mod pool;
mod reconcile;
pub mod recovery;
#[cfg(test)]
mod tests;
mod windows;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

pub use agent::{HostAgent, HostSettings, LIBVIRTD_AWAY};
pub use checkpoints::{Bases, Destination};
pub use images::{Offer, SentBy, offered};
pub use input::{Condition, CopyEvent, DomainEvent, Effect, Input, Job, Outcome, Records, Saved, Shown};
pub use migration::{Landed, MigrationAnswer, MigrationStep, Presence};

use crate::death::Death;
use crate::model::ids::{Epoch, HostId, InstanceId, NodeId, TerminalId};
use crate::model::records::{CheckpointId, Incident, InstanceFact, NodeRecord, NodeSpec, Phase};
use crate::model::units::{Boottime, MiB, Now, Vcpus};
use crate::model::view::{Hosts, Liveness, Nodes, SharedNode, View};

/// What of an instance an action occupies. Actions of different lanes go on side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// The domain: made, restored, moved, destroyed, deployed.
    Domain,
    /// The windows that it sends or lets in.
    Windows,
    /// The state taken of it and copied away.
    Checkpoint,
}

/// One managed instance as its own agent knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// What is reported of it.
    pub fact: InstanceFact,
    /// The guest stands still: it has arrived by migration, or is being restored.
    pub paused: bool,
    /// It may run, and the guard has not, or no longer, been told of it in its epoch: it is registered anew.
    pub unguarded: bool,
}

impl Local {
    /// One that does not stand still, and that the guard has.
    #[must_use]
    pub fn of(fact: InstanceFact) -> Self {
        Self { fact, paused: false, unguarded: false }
    }
}

/// An instance whose image is loaded, and that waits, paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Since when.
    pub since: Boottime,
    /// The guest's address. Reported with its readiness: a report of its own would be in that one's way.
    pub address: Option<Ipv4Addr>,
}

/// The pool that this host keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSettings {
    /// Idle instances to have ready.
    pub idle: u32,
    /// Memory of each.
    pub memory: MiB,
    /// Processors of each.
    pub vcpus: Vcpus,
}

/// Everything that the actions of one host follow from.
#[derive(Debug)]
pub struct Situation<'a> {
    /// This host.
    pub me: &'a HostId,
    /// The number of the open lease; none while this host may run nothing.
    pub lease: Option<u64>,
    /// Everything is to leave.
    pub draining: bool,
    /// Every node, as the store holds it.
    pub nodes: &'a Nodes,
    /// Every host, as the store holds it.
    pub hosts: &'a Hosts,
    /// Some record cannot be read: it may name any instance that no other names, and any image.
    pub unreadable: bool,
    /// The managed instances of this host.
    pub local: &'a BTreeMap<InstanceId, Local>,
    /// What is under way, or waits before it is tried again.
    pub busy: &'a BTreeSet<(InstanceId, Lane)>,
    /// Nodes of which this host keeps checkpoint images, or may.
    pub images: &'a BTreeSet<NodeId>,
    /// When the last checkpoint of each node was taken here.
    pub last_checkpoint: &'a BTreeMap<NodeId, Boottime>,
    /// Backups' hosts to which no copies of a node are sent for now.
    pub resting: &'a BTreeSet<(NodeId, HostId)>,
    /// What each backup's host is known to have.
    pub bases: &'a Bases,
    /// Instances that are restored and wait, paused.
    pub loaded: &'a BTreeMap<InstanceId, Loaded>,
    /// Between two checkpoints.
    pub checkpoint_interval: std::time::Duration,
    /// The pool.
    pub pool: PoolSettings,
    /// Whether an idle instance is being made already.
    pub filling: bool,
    /// Memory that is neither taken nor promised.
    pub free: MiB,
    /// This host's clocks.
    pub now: Now,
    /// How long after a failover was decided the repair of backups waits for the windows.
    pub windows_first: std::time::Duration,
}

/// How long it takes from the decision until windows are drawn, in times of what it took until they were accepted.
/// Measured on emulated guests: accepted after 1.8 to 3.8 s, drawn after 9 to 14 s.
const DRAWN: u32 = 4;

impl<'a> Situation<'a> {
    /// The nodes that have a member here, or one on its way.
    fn here(&self) -> impl Iterator<Item = (&'a NodeId, &'a NodeRecord)> + use<'a> {
        self.nodes.on_host(self.me).map(|(node, known)| (node, &known.value))
    }

    /// Whether a primary is here, or on its way from here.
    fn has_primaries(&self) -> bool {
        let mut primaries = self.here().filter_map(|(_, record)| record.primary.as_ref());
        primaries.any(|primary| &primary.host == self.me)
    }

    /// Whether a live migration leaves this host or comes to it. What can wait for its end does: on emulated guests an
    /// instance that boots beside it makes it two to three times as long.
    fn is_moving(&self) -> bool {
        let mut migrations = self.here().filter_map(|(_, record)| record.migration.as_ref());
        migrations.any(|migration| &migration.from == self.me || &migration.to == self.me)
    }

    /// Whether the terminal's person still waits for windows after a failover: what only a second failure would need does
    /// not compete with them for the processors. Bounded, because windows may never come back. The times are the
    /// leader's, so that a clock which is off shortens or lengthens the wait, and no more.
    ///
    /// What is known is when the windows were accepted; they are drawn later, by the same processors.
    fn is_waiting_for_windows(&self, terminal: &TerminalId) -> bool {
        let waits = |(_, known): (&NodeId, &SharedNode)| {
            known.value.incident.as_ref().is_some_and(|incident| {
                self.now.wall.since(incident.decided) < windows_wait(incident, self.windows_first)
            })
        };
        self.nodes.of_terminal(terminal).any(waits)
    }
}

/// How long from the decision of a failover on its windows are waited for, at the most this long.
fn windows_wait(incident: &Incident, most: std::time::Duration) -> std::time::Duration {
    let accepted = incident.windows.map(|at| at.since(incident.decided) * DRAWN);
    accepted.map_or(most, |drawn| drawn.min(most))
}

/// One thing to do on this host. `node`, `instance` and `epoch` say of what and under which decision; whoever
/// carries an action out refuses one of an older epoch than it has seen (SAFE-4).
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named after the words of the design")]
pub enum HostAction {
    /// Make one more idle instance.
    CreateIdle(PoolSettings),
    /// Make this instance for this node; it is deployed once it is booted.
    Create { node: NodeId, instance: InstanceId, epoch: Epoch, memory: MiB, vcpus: Vcpus },
    /// Have the guard acknowledge the instance's process under this epoch.
    Guard { node: NodeId, instance: InstanceId, epoch: Epoch },
    /// Turn a booted instance into a member.
    Deploy { node: NodeId, instance: InstanceId, epoch: Epoch, spec: Box<NodeSpec> },
    /// Let windows of `node` in from this incarnation on, and none of an older epoch.
    Admit { instance: InstanceId, node: NodeId, incarnation: Epoch, token: String },
    /// Send all windows of this execution member to the display.
    SendWindows(SendWindows),
    /// Restore this instance from the checkpoint that this host keeps. It stays paused, its link down.
    Restore {
        node: NodeId,
        instance: InstanceId,
        epoch: Epoch,
        checkpoint: CheckpointId,
        environment: String,
    },
    /// Let run what was restored: guard, link, resume, clock.
    Resume { node: NodeId, instance: InstanceId, epoch: Epoch },
    /// Move this instance away, live, in steps of [`MigrationStep`]. Once it has gone, it is reported dead as
    /// [`Death::Moved`] or, where the end was not heard, [`Death::MaybeMoved`]; while the outcome is not known, nothing is
    /// reported.
    MigrateOut {
        node: NodeId,
        instance: InstanceId,
        epoch: Epoch,
        to: HostId,
        uri: String,
        data_uri: Option<String>,
    },
    /// Take this instance in, in steps of [`MigrationStep`]. Once all of it is here and [`source_released`] it runs. When the
    /// migration is abandoned or over, or its source has released it and nothing is here or on its way, nothing of it stays; only
    /// the latter is reported, as its death in this epoch.
    Accept { node: NodeId, instance: InstanceId, epoch: Epoch, from: HostId },
    /// Save the state of this instance, to be sent to these hosts. `revision` is the node's record that this was decided
    /// from: a receiver takes it under that one only, as [`offered`] says.
    Checkpoint { node: NodeId, instance: InstanceId, epoch: Epoch, revision: u64, to: Vec<Destination> },
    /// Destroy this instance, which makes this its death.
    Destroy { instance: InstanceId, death: Death },
    /// Nobody names this dead instance any more.
    Forget { instance: InstanceId },
    /// An instance that should be here is not: make sure that nothing of it is, and report it dead in this epoch.
    Missing { node: NodeId, instance: InstanceId, epoch: Epoch },
    /// Delete the images of a node that has no place here any more.
    DropImages { node: NodeId },
}

/// The details of [`HostAction::SendWindows`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendWindows {
    /// The sender's node.
    pub node: NodeId,
    /// The sender.
    pub instance: InstanceId,
    /// The incarnation of the sender's node.
    pub incarnation: Epoch,
    /// The secret of the sender's node.
    pub token: String,
    /// The display instance.
    pub display: InstanceId,
    /// The incarnation of the display node.
    pub display_incarnation: Epoch,
    /// Where the display's intake listens.
    pub address: Ipv4Addr,
}

impl HostAction {
    /// What the action occupies; none where nothing can collide.
    #[must_use]
    pub fn lane(&self) -> Option<(InstanceId, Lane)> {
        match self {
            Self::Create { instance, .. }
            | Self::Guard { instance, .. }
            | Self::Deploy { instance, .. }
            | Self::Restore { instance, .. }
            | Self::Resume { instance, .. }
            | Self::MigrateOut { instance, .. }
            | Self::Accept { instance, .. }
            | Self::Destroy { instance, .. }
            | Self::Forget { instance }
            | Self::Missing { instance, .. } => Some((*instance, Lane::Domain)),
            Self::Admit { instance, .. } => Some((*instance, Lane::Windows)),
            Self::SendWindows(send) => Some((send.instance, Lane::Windows)),
            Self::Checkpoint { instance, .. } => Some((*instance, Lane::Checkpoint)),
            Self::CreateIdle(_) | Self::DropImages { .. } => None,
        }
    }

    /// The node that it is done for.
    #[must_use]
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Create { node, .. }
            | Self::Guard { node, .. }
            | Self::Deploy { node, .. }
            | Self::Admit { node, .. }
            | Self::Restore { node, .. }
            | Self::Resume { node, .. }
            | Self::MigrateOut { node, .. }
            | Self::Accept { node, .. }
            | Self::Checkpoint { node, .. }
            | Self::Missing { node, .. }
            | Self::DropImages { node } => Some(node),
            Self::SendWindows(send) => Some(&send.node),
            Self::CreateIdle(_) | Self::Destroy { .. } | Self::Forget { .. } => None,
        }
    }
}

/// The actions that bring this host to what the leader decided.
#[must_use]
pub fn reconcile(situation: &Situation<'_>) -> Vec<HostAction> {
    if situation.lease.is_none() {
        return Vec::new();
    }
    let named = reconcile::named_here(situation);
    let mut actions = reconcile::named(situation, &named);
    // For want of a name nothing is destroyed while a name may be where it cannot be read; nor is room given out that
    // may be promised there.
    if !situation.unreadable {
        actions.extend(pool::unnamed(situation, |instance| named.contains_key(&instance)));
        actions.extend(pool::fill(situation));
        actions.extend(pool::drop_images(situation));
    }
    actions.retain(|action| action.lane().is_none_or(|lane| !situation.busy.contains(&lane)));
    keep_first_per_lane(actions)
}

/// Instances of this host that are being deployed for nobody any more. Whoever carries actions out ends them at once,
/// beside the deployment that is under way: that takes tens of seconds on an emulated guest, and the processors of
/// what the host is there for.
#[must_use]
pub fn orphaned(situation: &Situation<'_>) -> Vec<InstanceId> {
    let deploying = situation.local.iter().filter(|(_, local)| local.fact.phase == Phase::Deploying);
    let mut deploying = deploying.map(|(&instance, _)| instance).peekable();
    // Asked after every event, and most of the time nothing is deployed.
    if situation.lease.is_none() || situation.unreadable || deploying.peek().is_none() {
        return Vec::new();
    }
    let named = reconcile::named_here(situation);
    deploying.filter(|instance| !named.contains_key(instance)).collect()
}

fn keep_first_per_lane(actions: Vec<HostAction>) -> Vec<HostAction> {
    let mut lanes = BTreeSet::new();
    actions.into_iter().filter(|action| action.lane().is_none_or(|lane| lanes.insert(lane))).collect()
}

/// Whether the destination of `node`'s live migration may let `instance` run: the source said that it has gone, or is
/// known dead. Until then both ends may have all of it, and the source may go on. A migration that failed or was
/// abandoned brings nothing any more.
#[must_use]
pub fn source_released(view: &View, node: &NodeId, instance: InstanceId) -> bool {
    let Some(record) = view.nodes.get(node).map(|known| &known.value) else { return false };
    let (Some(migration), Some(primary)) = (&record.migration, &record.primary) else { return false };
    let facts = view.hosts.get(&migration.from).and_then(|from| from.facts.as_ref());
    let stands = migration.stands(facts.and_then(|facts| facts.instances.get(&instance)));
    stands && primary.instance == Some(instance) && view.liveness(record, primary) != Liveness::Alive
}
