//! Owns the safety guarantees as predicates: what no decision and no state of the world may ever break.
//!
//! Promises: one predicate per guarantee, used by the property tests, the simulator and the leader's agent alike; it
//! reads the same plain data as the plan and shares no code with its choices. Must not do: repair anything. A broken
//! invariant is a bug: a panic in a test; in production the assignment is not written, and nothing is promoted.

mod assignment;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::ids::{HostId, InstanceId, NodeId};
use crate::model::records::NodeRecord;
use crate::model::view::View;

pub use assignment::broken_by;

/// A numbered guarantee of `DESIGN.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Invariant {
    /// At most one member of a node acts as primary.
    #[serde(rename = "SAFE-1")]
    OnePrimary,
    /// Nothing is promoted before the old primary is known dead.
    #[serde(rename = "SAFE-2")]
    KnownDead,
    /// A restore uses only a complete checkpoint, which becomes the first of the new epoch.
    #[serde(rename = "SAFE-3")]
    CompleteCheckpoint,
    /// Epochs never fall, and each change of the primary raises them.
    #[serde(rename = "SAFE-4")]
    Epochs,
    /// Room, hosts of their own, and only hosts that take work, whatever a policy says.
    #[serde(rename = "SAFE-5")]
    Placement,
    /// An instance belongs to at most one node.
    #[serde(rename = "SAFE-6")]
    OneNode,
    /// A migration is written first, and while it stands promotion needs death at both ends.
    #[serde(rename = "SAFE-7")]
    Migration,
    /// State that exists is not given up.
    #[serde(rename = "SAFE-9")]
    State,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::OnePrimary,
        Self::KnownDead,
        Self::CompleteCheckpoint,
        Self::Epochs,
        Self::Placement,
        Self::OneNode,
        Self::Migration,
        Self::State,
    ];

    /// The id used in logs, metrics and documents.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnePrimary => "SAFE-1",
            Self::KnownDead => "SAFE-2",
            Self::CompleteCheckpoint => "SAFE-3",
            Self::Epochs => "SAFE-4",
            Self::Placement => "SAFE-5",
            Self::OneNode => "SAFE-6",
            Self::Migration => "SAFE-7",
            Self::State => "SAFE-9",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A guarantee that does not hold, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub id: Invariant,
    /// What was found, for people.
    pub detail: String,
}

impl Broken {
    fn new(id: Invariant, detail: impl Into<String>) -> Self {
        Self { id, detail: detail.into() }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.id, self.detail)
    }
}

/// An instance that acts: its processors run, and it is or was its node's primary and was not ended since.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acting {
    /// The node whose primary it takes itself for.
    pub node: NodeId,
    /// Where it runs.
    pub host: HostId,
    /// The instance: the same one may run on two hosts.
    pub instance: InstanceId,
}

/// Nodes of which more than one member acts (SAFE-1), out of what really runs. For worlds that can be looked into.
#[must_use]
pub fn broken_in_world(acting: &[Acting]) -> Vec<Broken> {
    let mut by_node: BTreeMap<&NodeId, BTreeSet<&Acting>> = BTreeMap::new();
    for one in acting {
        by_node.entry(&one.node).or_default().insert(one);
    }
    by_node
        .into_iter()
        .filter(|(_, acting)| acting.len() > 1)
        .map(|(node, acting)| {
            let places: Vec<String> =
                acting.iter().map(|one| format!("{} on {}", one.instance, one.host)).collect();
            Broken::new(Invariant::OnePrimary, format!("{node} has {} at once", places.join(" and ")))
        })
        .collect()
}

/// What does not hold of the records as they are.
#[must_use]
pub fn broken_in(view: &View) -> Vec<Broken> {
    let mut broken = Vec::new();
    let mut owners: BTreeMap<InstanceId, &NodeId> = BTreeMap::new();
    for (node, record) in view.nodes.iter().map(|(node, known)| (node, &known.value)) {
        broken.extend(broken_in_record(node, record));
        for instance in record.members().filter_map(|member| member.instance) {
            if let Some(other) = owners.insert(instance, node).filter(|other| *other != node) {
                let detail = format!("{instance} belongs to {other} and to {node}");
                broken.push(Broken::new(Invariant::OneNode, detail));
            }
        }
    }
    broken
}

/// What does not hold of one record by itself.
fn broken_in_record(node: &NodeId, record: &NodeRecord) -> Vec<Broken> {
    let mut broken = Vec::new();
    let mut hosts = BTreeSet::new();
    let mut instances = BTreeSet::new();
    for member in record.members() {
        if !hosts.insert(&member.host) {
            let detail = format!("{node} has two members on {}", member.host);
            broken.push(Broken::new(Invariant::Placement, detail));
        }
        if let Some(instance) = member.instance
            && !instances.insert(instance)
        {
            broken.push(Broken::new(Invariant::OneNode, format!("{node} names {instance} twice")));
        }
    }
    if record.incarnation > record.epoch {
        let detail = format!("{node} began in epoch {} and is in {}", record.incarnation, record.epoch);
        broken.push(Broken::new(Invariant::Epochs, detail));
    }
    if let Some(migration) = &record.migration {
        if record.primary.as_ref().is_none_or(|primary| primary.host != migration.from) {
            let detail = format!("{node} migrates from {}, where its primary is not", migration.from);
            broken.push(Broken::new(Invariant::Migration, detail));
        }
        if hosts.contains(&migration.to) {
            let detail = format!("{node} migrates to {}, which has a member of it", migration.to);
            broken.push(Broken::new(Invariant::Placement, detail));
        }
    }
    if record.primary.as_ref().is_some_and(|primary| primary.instance.is_none()) {
        broken.push(Broken::new(Invariant::OnePrimary, format!("{node} has a reserved place for a primary")));
    }
    broken
}
