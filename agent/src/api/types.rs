//! Owns the words of the HTTP interface, for both of its ends.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use understudy_core::model::ids::{Epoch, HostId, InstanceId, NodeId, TerminalId};
use understudy_core::model::records::{
    Age, Application, CheckpointId, Incident, Labels, Member, NodeRecord, Origin,
};
use understudy_core::model::units::{Boottime, UnixMillis};
use understudy_core::model::view::{HostView, View};

use crate::policy_manager::status::PoliciesStatus;
use crate::runtime::{Parts, Snapshot, now};

/// A terminal to create, as a file or request says it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalRequest {
    /// Its name.
    pub name: String,
    /// Size of its screen, `WIDTHxHEIGHT`.
    #[serde(default = "default_screen")]
    pub screen: String,
    /// Labels, read by policies. `backups = "N"` asks for N backups of each node.
    #[serde(default)]
    pub labels: Labels,
    /// Its display node.
    #[serde(default)]
    pub display: NodeRequest,
    /// Its execution nodes.
    pub execution: Vec<NodeRequest>,
}

fn default_screen() -> String {
    "1280x800".to_owned()
}

/// One node of a terminal to create.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeRequest {
    /// MiB of each member, 96 to 1048576; the pool's by default.
    pub memory_mib: Option<u64>,
    /// Processors of each member, 1 to 256; the pool's by default.
    pub vcpus: Option<u32>,
    /// The environment; `desktop` by default.
    pub environment: Option<String>,
    /// Whether the execution state is protected by checkpoints; it is by default. Not for display nodes.
    pub protected: Option<bool>,
    /// Its applications. Not for display nodes.
    pub application: Vec<Application>,
}

/// The cluster as this agent sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// This host.
    pub host: HostId,
    /// Who leads.
    pub leader: Option<String>,
    /// How long primaries may still run on this host without another renewal, in milliseconds.
    pub lease_remaining_ms: Option<u64>,
    /// What is wrong on this host as its own agent knows it, whether or not the store can be told.
    #[serde(default)]
    pub conditions: Vec<String>,
    /// The sites' policies.
    pub policies: PoliciesStatus,
    /// All hosts.
    pub hosts: Vec<Host>,
    /// All terminals.
    pub terminals: Vec<Terminal>,
}

/// One host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub id: HostId,
    /// `open`, `lost` or `draining`.
    pub state: String,
    /// The number of its lease.
    pub lease: u64,
    /// How long its lease has not been renewed, in milliseconds. Only agents that may lead next follow renewals: others do
    /// not know it.
    pub silent_ms: Option<u64>,
    /// Memory of instances: free and all, in MiB.
    pub memory_free_mib: u64,
    /// See above.
    pub memory_mib: u64,
    /// Idle instances.
    pub idle: usize,
    /// Members of nodes.
    pub members: usize,
    /// All its instances, by phase.
    pub instances: BTreeMap<String, usize>,
    /// The gateway's address.
    pub gateway: String,
    /// What is wrong with it.
    pub conditions: Vec<String>,
}

/// One terminal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Terminal {
    /// Its name.
    pub id: TerminalId,
    /// Where browsers find it, on every gateway.
    pub pages: Vec<String>,
    /// Its nodes.
    pub nodes: Vec<Node>,
}

/// One node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The epoch in which the running state began.
    pub incarnation: Epoch,
    /// Its primary.
    pub primary: Option<MemberStatus>,
    /// Its backups.
    pub backups: Vec<MemberStatus>,
    /// Whether a live migration is under way, and where to.
    pub migrating_to: Option<HostId>,
    /// Whether its windows are where they belong (execution nodes).
    pub windows_sent: bool,
    /// How new the newest checkpoint is that each backup's host has, by the word of the primary's host. Empty where the node
    /// is not protected.
    pub protection: BTreeMap<HostId, Protected>,
    /// Hosts that may have checkpoints of it although they are no backups.
    pub keepers: BTreeSet<HostId>,
    /// The last failover.
    pub incident: Option<Incident>,
    /// What keeps it from being whole. Known to the leader only.
    pub notes: Vec<String>,
}

/// A member of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its host.
    pub host: HostId,
    /// Its instance; none for a reserved place.
    pub instance: Option<InstanceId>,
    /// Where it stands: a phase, or `held`.
    pub phase: String,
    /// Whether it could act, or take over, at this moment.
    pub ready: bool,
    /// The guest's address.
    pub address: Option<std::net::Ipv4Addr>,
}

/// How new the newest checkpoint is that a backup's host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protected {
    /// It was taken within a few intervals.
    Fresh,
    /// Newer ones do not come there.
    Behind,
    /// It has none of this life of the node, as far as the primary's host knows.
    None,
}

impl Protected {
    /// The word that it goes by.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Behind => "behind",
            Self::None => "none",
        }
    }
}

impl From<Option<Age>> for Protected {
    fn from(age: Option<Age>) -> Self {
        match age {
            Some(Age::Fresh) => Self::Fresh,
            Some(Age::Behind) => Self::Behind,
            None => Self::None,
        }
    }
}

/// The checkpoints of a node, by the words of the hosts that may have some.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkpoints {
    /// The node.
    pub node: NodeId,
    /// Its backups' hosts, and those that were.
    pub hosts: Vec<HostCheckpoints>,
}

/// The checkpoints of a node on one host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostCheckpoints {
    /// The host.
    pub host: HostId,
    /// Those that are complete, the oldest first.
    pub checkpoints: Vec<CheckpointStatus>,
    /// Whether another one is on its way there.
    pub arriving: bool,
    /// Why it is not known which it has.
    pub error: Option<String>,
}

/// A complete checkpoint on a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointStatus {
    /// Which.
    pub id: CheckpointId,
    /// When the guest's state was taken.
    pub taken: UnixMillis,
    /// How long ago that was by the clock of the host that was asked for this, in milliseconds.
    pub age_ms: u64,
    /// The instance whose state it is.
    pub instance: InstanceId,
    /// How long the guest stood still for it, in milliseconds.
    pub pause_ms: u64,
}

pub(super) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Status {
    pub(crate) fn of(snapshot: &Snapshot, parts: &Parts) -> Self {
        let (view, now) = (&snapshot.view, now().boottime);
        Self {
            host: parts.config.host.clone(),
            leader: snapshot.leader.clone(),
            lease_remaining_ms: snapshot.lease_remaining.map(millis),
            conditions: snapshot.conditions.clone(),
            policies: PoliciesStatus::of(snapshot, &parts.policies),
            hosts: view.hosts.iter().map(|(id, host)| Host::of(view, id, host, now)).collect(),
            terminals: view
                .terminals
                .iter()
                .map(|(id, record)| Terminal {
                    id: id.clone(),
                    pages: pages(view, id),
                    nodes: record.nodes.iter().filter_map(|node| Node::of(snapshot, node)).collect(),
                })
                .collect(),
        }
    }
}

fn pages(view: &View, terminal: &TerminalId) -> Vec<String> {
    let open = view.hosts.values().filter(|host| host.is_open()).filter_map(|host| host.facts.as_ref());
    open.filter(|facts| !facts.gateway.is_empty())
        .map(|facts| format!("{}/t/{terminal}/", facts.gateway))
        .collect()
}

impl Host {
    fn of(view: &View, id: &HostId, host: &HostView, now: Boottime) -> Self {
        let facts = host.current_facts();
        let mut instances = BTreeMap::new();
        for fact in facts.iter().flat_map(|facts| facts.instances.values()) {
            *instances.entry(fact.phase.as_str().to_owned()).or_default() += 1;
        }
        let state = match (host.is_open(), host.intent.drain) {
            (false, _) => "lost",
            (true, true) => "draining",
            (true, false) => "open",
        };
        let here = view.nodes.on_host(id).flat_map(|(_, node)| node.value.members());
        let members = here.filter(|member| &member.host == id);
        Self {
            id: id.clone(),
            state: state.to_owned(),
            lease: host.lease.value.number,
            silent_ms: host.silent_since.map(|since| millis(now.since(since))),
            memory_free_mib: view.free_memory(id).0,
            memory_mib: facts.map_or(0, |facts| facts.capacity.memory.0),
            idle: view.idle(id).count(),
            members: members.count(),
            instances,
            gateway: facts.map(|facts| facts.gateway.clone()).unwrap_or_default(),
            conditions: facts.map(|facts| facts.conditions.clone()).unwrap_or_default(),
        }
    }
}

impl Node {
    fn of(snapshot: &Snapshot, id: &NodeId) -> Option<Self> {
        let view = &snapshot.view;
        let record = &view.nodes.get(id)?.value;
        let member = |member: &Member| MemberStatus::of(view, id, record, member);
        Some(Self {
            id: id.clone(),
            epoch: record.epoch,
            incarnation: record.incarnation,
            primary: record.primary.as_ref().map(member),
            backups: record.backups.iter().map(member).collect(),
            migrating_to: record.migration.as_ref().map(|migration| migration.to.clone()),
            windows_sent: windows_sent(view, id, record),
            protection: protection(view, id, record),
            keepers: record.keepers.clone(),
            incident: record.incident.clone(),
            notes: snapshot.report.notes.get(id).cloned().unwrap_or_default(),
        })
    }
}

fn protection(view: &View, id: &NodeId, record: &NodeRecord) -> BTreeMap<HostId, Protected> {
    let known = view.protection(id, record);
    let reserved = record.backups.iter().filter(|backup| backup.origin == Origin::Reserved);
    let age = |backup: &Member| known.and_then(|known| known.age_at(backup)).into();
    reserved.map(|backup| (backup.host.clone(), age(backup))).collect()
}

fn windows_sent(view: &View, id: &NodeId, record: &NodeRecord) -> bool {
    let display = view.nodes.get(&NodeId::display(id.terminal()));
    let target = display
        .and_then(|display| Some((display.value.primary.as_ref()?.instance?, display.value.incarnation)));
    let sent = record.primary.as_ref().and_then(|primary| view.fact(primary)).and_then(|fact| fact.windows);
    match (target, sent) {
        (Some((screen, incarnation)), Some(sent)) => {
            sent.display == screen
                && sent.display_incarnation == incarnation
                && sent.incarnation == record.incarnation
        }
        _ => false,
    }
}

impl MemberStatus {
    fn of(view: &View, id: &NodeId, record: &NodeRecord, member: &Member) -> Self {
        let fact = view.fact(member);
        let reserved = member.origin == Origin::Reserved;
        let covered = view.protection(id, record).is_some_and(|known| known.is_fresh_at(member));
        Self {
            host: member.host.clone(),
            instance: member.instance,
            phase: match fact {
                _ if reserved => "reserved".to_owned(),
                Some(fact) => fact.phase.as_str().to_owned(),
                None => "assigned".to_owned(),
            },
            ready: if reserved { covered } else { view.is_ready(record, member) },
            address: fact.and_then(|fact| fact.address),
        }
    }
}
