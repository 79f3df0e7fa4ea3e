//! Owns what one host's agent does to bring its host to what the leader decided.
//!
//! Promises: level-triggered and idempotent: the actions follow from the situation alone, so any of them may be
//! lost or repeated; every action carries the epoch that it was decided in; at most one action per instance and
//! lane is asked for at a time. Must not do: place anything (the leader does), touch libvirt, the guard or a guest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::ids::{Epoch, HostId, InstanceId, NodeId, Role};
use crate::records::{
    CheckpointId, CheckpointRecord, InstanceFact, Member, NodeRecord, NodeSpec, Origin, Phase, WindowsSent,
};
use crate::units::{Boottime, MiB, Vcpus};
use crate::view::{HostView, Versioned};

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
    /// The number of the open session; none while this host may run nothing.
    pub session: Option<u64>,
    /// Everything is to leave.
    pub draining: bool,
    /// Every node, as the store holds it.
    pub nodes: &'a BTreeMap<NodeId, Versioned<NodeRecord>>,
    /// Every host, as the store holds it.
    pub hosts: &'a BTreeMap<HostId, HostView>,
    /// The newest complete checkpoint of each node.
    pub checkpoints: &'a BTreeMap<NodeId, Versioned<CheckpointRecord>>,
    /// The managed instances of this host.
    pub local: &'a BTreeMap<InstanceId, Local>,
    /// What is under way, or waits before it is tried again.
    pub busy: &'a BTreeSet<(InstanceId, Lane)>,
    /// Nodes of which this host keeps checkpoint images.
    pub images: &'a BTreeSet<NodeId>,
    /// When the last checkpoint of each node was taken here.
    pub taken: &'a BTreeMap<NodeId, Boottime>,
    /// Between two checkpoints.
    pub checkpoint_interval: std::time::Duration,
    /// The pool.
    pub pool: PoolSettings,
    /// Whether an idle instance is being made already.
    pub filling: bool,
    /// Memory that is neither taken nor promised.
    pub free: MiB,
    /// This host's clock.
    pub now: Boottime,
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
    /// Let windows of `node` in from `begun` on, and none of an older epoch.
    Admit { instance: InstanceId, node: NodeId, begun: Epoch, token: String },
    /// Send all windows of this execution member to the display.
    SendWindows(SendWindows),
    /// Restore this instance from the checkpoint that this host keeps.
    Restore { node: NodeId, instance: InstanceId, epoch: Epoch, checkpoint: CheckpointId, valid: Epoch },
    /// Move this instance away, live.
    MigrateOut { node: NodeId, instance: InstanceId, epoch: Epoch, to: HostId, uri: String },
    /// Permit this instance to come; once it is here: guard, then resume.
    Accept { node: NodeId, instance: InstanceId, epoch: Epoch, from: HostId },
    /// Take the state of this instance and copy it to these hosts.
    Checkpoint { node: NodeId, instance: InstanceId, epoch: Epoch, hosts: Vec<HostId> },
    /// End this instance.
    Destroy { instance: InstanceId, reason: String },
    /// Nobody names this dead instance any more.
    Forget { instance: InstanceId },
    /// An instance that should be here is not.
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
    /// The `begun` epoch of the sender's node.
    pub begun: Epoch,
    /// The secret of the sender's node.
    pub token: String,
    /// The display instance.
    pub display: InstanceId,
    /// The `begun` epoch of the display node.
    pub display_begun: Epoch,
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
}

/// How a node names an instance of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Primary,
    Backup,
    Arriving,
}

/// The actions that bring this host to what the leader decided.
#[must_use]
pub fn converge(situation: &Situation<'_>) -> Vec<HostAction> {
    let mut actions = Vec::new();
    if situation.session.is_none() {
        return actions;
    }
    let named = named_here(situation);
    for (&instance, &(node, record, member, part)) in &named {
        let wanted = match situation.local.get(&instance) {
            Some(local) => tend(situation, node, record, instance, local, part),
            None => obtain(situation, node, record, member, instance, part).into_iter().collect(),
        };
        actions.extend(wanted);
    }
    for (&instance, local) in situation.local {
        if !named.contains_key(&instance) {
            actions.extend(dismiss(situation, instance, local));
        }
    }
    actions.extend(fill_pool(situation));
    actions.extend(drop_images(situation));
    actions.retain(|action| action.lane().is_none_or(|lane| !situation.busy.contains(&lane)));
    keep_first_per_lane(actions)
}

fn keep_first_per_lane(actions: Vec<HostAction>) -> Vec<HostAction> {
    let mut lanes = BTreeSet::new();
    actions.into_iter().filter(|action| action.lane().is_none_or(|lane| lanes.insert(lane))).collect()
}

type Named<'a> = BTreeMap<InstanceId, (&'a NodeId, &'a NodeRecord, Option<&'a Member>, Part)>;

fn named_here<'a>(situation: &Situation<'a>) -> Named<'a> {
    let mut named = Named::new();
    for (node, record) in situation.nodes {
        let record = &record.value;
        if let (Some(migration), Some(primary)) = (&record.migration, &record.primary)
            && &migration.to == situation.me
            && let Some(instance) = primary.instance
        {
            named.insert(instance, (node, record, None, Part::Arriving));
        }
        for (index, member) in record.members().enumerate() {
            let part = if index == 0 && record.primary.is_some() { Part::Primary } else { Part::Backup };
            if &member.host == situation.me
                && Some(member.session) == situation.session
                && let Some(instance) = member.instance
            {
                named.insert(instance, (node, record, Some(member), part));
            }
        }
    }
    named
}

/// What to do about a named instance that is not here.
fn obtain(
    situation: &Situation<'_>,
    node: &NodeId,
    record: &NodeRecord,
    member: Option<&Member>,
    instance: InstanceId,
    part: Part,
) -> Option<HostAction> {
    let (node, epoch) = (node.clone(), record.epoch);
    if part == Part::Arriving {
        let migration = record.migration.as_ref()?;
        // A source that is gone sends nothing more: saying so here is the second of the two deaths (SAFE-7).
        return Some(if migration.abandoned {
            HostAction::Missing { node, instance, epoch }
        } else {
            HostAction::Accept { node, instance, epoch, from: migration.from.clone() }
        });
    }
    Some(match member?.origin {
        Origin::Created => {
            let NodeSpec { memory, vcpus, .. } = record.spec;
            HostAction::Create { node, instance, epoch, memory, vcpus }
        }
        Origin::Restored(checkpoint) => {
            let valid = situation.checkpoints.get(&node).map_or(epoch, |known| known.value.valid);
            HostAction::Restore { node, instance, epoch, checkpoint, valid }
        }
        Origin::Idle | Origin::Promoted | Origin::Migrated => HostAction::Missing { node, instance, epoch },
        Origin::Held => return None,
    })
}

/// What to do about a named instance that is here.
fn tend(
    situation: &Situation<'_>,
    node: &NodeId,
    record: &NodeRecord,
    instance: InstanceId,
    local: &Local,
    part: Part,
) -> Vec<HostAction> {
    let epoch = record.epoch;
    let guard = || HostAction::Guard { node: node.clone(), instance, epoch };
    match &local.fact.phase {
        Phase::Dead { .. } | Phase::Booting | Phase::Deploying | Phase::Restoring => Vec::new(),
        Phase::Idle if local.fact.epoch < epoch => vec![guard()],
        Phase::Idle => {
            vec![HostAction::Deploy {
                node: node.clone(),
                instance,
                epoch,
                spec: Box::new(record.spec.clone()),
            }]
        }
        Phase::Ready if part == Part::Arriving => {
            let abandoned = record.migration.as_ref().is_some_and(|migration| migration.abandoned);
            if abandoned && local.fact.epoch < epoch {
                vec![HostAction::Destroy {
                    instance,
                    reason: "the migration that brought it was given up".to_owned(),
                }]
            } else {
                Vec::new()
            }
        }
        Phase::Ready if local.fact.epoch < epoch && !is_leaving(situation, record) => vec![guard()],
        Phase::Ready => {
            let mut actions: Vec<HostAction> =
                leave(situation, node, record, instance, local).into_iter().collect();
            match (node.role(), part) {
                (Role::Display, _) => actions.extend(admit(situation, node, instance, local)),
                (Role::Execution, Part::Primary) => {
                    actions.extend(send_windows(situation, node, record, instance, local));
                    actions.extend(checkpoint(situation, node, record, instance));
                }
                (Role::Execution, Part::Backup | Part::Arriving) => {}
            }
            actions
        }
    }
}

fn is_leaving(situation: &Situation<'_>, record: &NodeRecord) -> bool {
    record.migration.as_ref().is_some_and(|migration| &migration.from == situation.me)
}

fn leave(
    situation: &Situation<'_>,
    node: &NodeId,
    record: &NodeRecord,
    instance: InstanceId,
    local: &Local,
) -> Option<HostAction> {
    let migration = record.migration.as_ref().filter(|migration| &migration.from == situation.me)?;
    let failed = local.fact.migration_failed.as_ref().is_some_and(|(epoch, _)| *epoch >= migration.epoch);
    if failed || migration.abandoned {
        return None;
    }
    let to = situation.hosts.get(&migration.to)?.current_facts()?;
    Some(HostAction::MigrateOut {
        node: node.clone(),
        instance,
        epoch: migration.epoch,
        to: migration.to.clone(),
        uri: to.migration_uri.clone(),
    })
}

/// Windows of the terminal's execution nodes are let in by backups too, ahead of time: a promoted display then
/// accepts them at once.
fn admit(
    situation: &Situation<'_>,
    display: &NodeId,
    instance: InstanceId,
    local: &Local,
) -> Option<HostAction> {
    situation
        .nodes
        .iter()
        .filter(|(node, record)| {
            node.terminal() == display.terminal()
                && node.role() == Role::Execution
                && record.value.begun > Epoch(0)
        })
        .find(|(node, record)| {
            local.fact.admitted.get(node).is_none_or(|admitted| *admitted < record.value.begun)
        })
        .map(|(node, record)| HostAction::Admit {
            instance,
            node: node.clone(),
            begun: record.value.begun,
            token: record.value.token.clone(),
        })
}

fn send_windows(
    situation: &Situation<'_>,
    node: &NodeId,
    record: &NodeRecord,
    instance: InstanceId,
    local: &Local,
) -> Option<HostAction> {
    let display = situation.nodes.get(&NodeId::display(node.terminal()))?;
    let primary = display.value.primary.as_ref()?;
    let screen = primary.instance?;
    let sent = |sent: &WindowsSent| {
        sent.display == screen && sent.display_begun == display.value.begun && sent.begun == record.begun
    };
    if local.paused || local.fact.windows.as_ref().is_some_and(sent) {
        return None;
    }
    let fact = if &primary.host == situation.me {
        &situation.local.get(&screen)?.fact
    } else {
        situation.hosts.get(&primary.host)?.instance(screen)?
    };
    let lets_in = fact.admitted.get(node).is_some_and(|admitted| *admitted >= record.begun);
    if fact.phase != Phase::Ready || !lets_in {
        return None;
    }
    Some(HostAction::SendWindows(SendWindows {
        node: node.clone(),
        instance,
        begun: record.begun,
        token: record.token.clone(),
        display: screen,
        display_begun: display.value.begun,
        address: fact.address?,
    }))
}

fn checkpoint(
    situation: &Situation<'_>,
    node: &NodeId,
    record: &NodeRecord,
    instance: InstanceId,
) -> Option<HostAction> {
    let due = situation
        .taken
        .get(node)
        .is_none_or(|taken| situation.now.since(*taken) >= situation.checkpoint_interval);
    if !record.spec.protected || record.migration.is_some() || !due {
        return None;
    }
    let hosts: Vec<HostId> = record
        .backups
        .iter()
        .filter(|backup| situation.hosts.get(&backup.host).is_some_and(HostView::is_open))
        .map(|backup| backup.host.clone())
        .collect();
    (!hosts.is_empty()).then(|| HostAction::Checkpoint {
        node: node.clone(),
        instance,
        epoch: record.epoch,
        hosts,
    })
}

/// What to do about an instance that no node names.
fn dismiss(situation: &Situation<'_>, instance: InstanceId, local: &Local) -> Option<HostAction> {
    let destroy = |reason: &str| Some(HostAction::Destroy { instance, reason: reason.to_owned() });
    match &local.fact.phase {
        Phase::Dead { .. } => Some(HostAction::Forget { instance }),
        Phase::Idle | Phase::Booting if local.fact.node.is_none() => {
            if situation.draining {
                destroy("the host is being drained")
            } else {
                None
            }
        }
        Phase::Idle | Phase::Booting | Phase::Deploying | Phase::Restoring | Phase::Ready => {
            destroy("no node names it as a member")
        }
    }
}

fn fill_pool(situation: &Situation<'_>) -> Option<HostAction> {
    let idle = situation
        .local
        .values()
        .filter(|local| local.fact.node.is_none() && !local.fact.phase.is_dead())
        .count();
    let short = idle < usize::try_from(situation.pool.idle).unwrap_or(usize::MAX);
    let room = situation.free >= situation.pool.memory;
    (short && room && !situation.draining && !situation.filling)
        .then_some(HostAction::CreateIdle(situation.pool))
}

fn drop_images(situation: &Situation<'_>) -> Vec<HostAction> {
    let wanted = |node: &NodeId| {
        situation.nodes.get(node).is_some_and(|record| record.value.touches(situation.me))
            || situation.checkpoints.get(node).is_some_and(|checkpoint| {
                checkpoint.value.hosts.contains(situation.me) && situation.nodes.contains_key(node)
            })
    };
    situation
        .images
        .iter()
        .filter(|node| !wanted(node))
        .map(|node| HostAction::DropImages { node: node.clone() })
        .collect()
}
