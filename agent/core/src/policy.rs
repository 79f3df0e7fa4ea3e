//! Owns the questions that a policy is asked and the answers that it gives: plain data, one row per host.
//!
//! Promises: a question holds all that its answer may depend on, so that the same question can be asked again
//! elsewhere or later. Must not do: trust an answer; whoever takes one checks it against its own candidates.
//!
//! The wire form of the same is `wit/`, where rows become columns; a change there is a change here.

mod rows;
mod verdict;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::ids::{HostId, NodeId, Role};
use crate::model::records::Labels;
use crate::model::units::{MiB, Vcpus};

pub use rows::Rows;
pub use verdict::{BuiltIn, CountVerdict, Judged, PlacementVerdict, RefusedPick, Unusable};

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interface {
    /// Where a member goes.
    Placement,
    /// How many members a node should have.
    BackupCount,
}

impl Interface {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Placement, Self::BackupCount];

    /// The name used in configuration, logs and metrics, and by the components.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Placement => "placement",
            Self::BackupCount => "backup-count",
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a place is looked for, which says what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// A primary that starts there, on an idle instance or a new one.
    Primary,
    /// A backup that runs, on an idle instance or a new one.
    WarmBackup,
    /// A backup that only reserves memory and keeps copies of the checkpoints.
    HeldBackup,
    /// A running instance that moves there by live migration.
    Migration,
}

/// What a member is to its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The one member that acts.
    Primary,
    /// Stands by to take over.
    Backup,
}

/// Whether a host takes work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// It does.
    #[default]
    Ready,
    /// It does, but something is wrong with it.
    Degraded,
    /// It is being emptied.
    Draining,
    /// It is cut off, or is being cut off.
    Fenced,
    /// It has not been heard of.
    Unknown,
}

/// A member of the node that is asked about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeMember {
    /// Its host.
    pub host: HostId,
    /// What it is to the node.
    pub part: Part,
}

/// A member of another node of the same terminal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiblingMember {
    /// Its host.
    pub host: HostId,
    /// What its node is for.
    pub role: Role,
    /// What it is to its node.
    pub part: Part,
}

/// How many members of nodes a host has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberCounts {
    /// Primaries of display nodes.
    pub display_primaries: u32,
    /// Backups of display nodes.
    pub display_backups: u32,
    /// Primaries of execution nodes.
    pub execution_primaries: u32,
    /// Backups of execution nodes.
    pub execution_backups: u32,
}

/// What moves to, from and on a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// Live migrations on their way to the host.
    pub migrations_in: u32,
    /// Live migrations on their way from the host.
    pub migrations_out: u32,
    /// Restores from a checkpoint that are under way.
    pub restores: u32,
    /// Checkpoints that the host receives for its backups, in KiB per second.
    pub checkpoint_in_kib_s: u32,
    /// Checkpoints that the host sends for its primaries, in KiB per second.
    pub checkpoint_out_kib_s: u32,
}

/// One host, as a policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRow {
    /// The host. A policy is not told the name; a host that it must know has a label.
    pub host: HostId,
    /// Whether it takes work.
    pub state: HostState,
    /// Its zone; empty where it has none.
    pub zone: String,
    /// Its rack; empty where it has none.
    pub rack: String,
    /// Its other labels.
    pub labels: Labels,
    /// Processors that instances may have together.
    pub total_vcpus: Vcpus,
    /// Those not taken by an instance, idle ones included, and not reserved for a backup.
    pub free_vcpus: Vcpus,
    /// Memory that instances may have together.
    pub total_memory: MiB,
    /// Memory not taken by an instance, idle ones included, and not reserved for a backup.
    pub free_memory: MiB,
    /// How busy its processors are, in thousandths of all of them. May be above 1000.
    pub load_permille: u32,
    /// Idle instances that are large enough for what is asked, by the template that they were made from.
    pub idle: BTreeMap<String, u32>,
    /// How many members of nodes it has.
    pub members: MemberCounts,
    /// What moves to, from and on it.
    pub traffic: Traffic,
}

/// Where does this member go?
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementQuestion {
    /// The node; it names its terminal and its role.
    pub node: NodeId,
    /// Why a place is looked for.
    pub purpose: Purpose,
    /// How many picks are of use.
    pub wanted: u32,
    /// Whether reasons are read.
    pub reasons: bool,
    /// Processors asked.
    pub vcpus: Vcpus,
    /// Memory asked.
    pub memory: MiB,
    /// The environment's name.
    pub environment: String,
    /// The template that an idle instance must come from; none where no idle instance will do.
    pub template: Option<String>,
    /// Labels of the terminal.
    pub terminal_labels: Labels,
    /// Labels of the environment.
    pub environment_labels: Labels,
    /// Where the node's members are; for a migration the primary is among them.
    pub members: Vec<NodeMember>,
    /// Where the members of the terminal's other nodes are.
    pub siblings: Vec<SiblingMember>,
    /// The hosts. An answer names them by their place in this list, so keep it in the order of their names: the
    /// same cluster gives the same question.
    pub hosts: Rows,
}

/// One host that would do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pick {
    /// Its place in the question's list of hosts, as the policy said it: it may lie outside the list.
    pub index: u32,
    /// Why, for people.
    pub reason: Option<String>,
}

/// What a policy answered: unchecked, best first, never more than were wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementAnswer {
    /// Its picks. They may repeat, lie outside the list of hosts, or name hosts that take no work.
    pub picks: Vec<Pick>,
}

/// How many members should this node have?
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupCountQuestion {
    /// The node; it names its terminal and its role.
    pub node: NodeId,
    /// Whether the node's execution state is kept by checkpoints.
    pub protected: bool,
    /// Labels of the terminal.
    pub terminal_labels: Labels,
    /// Labels of the environment.
    pub environment_labels: Labels,
    /// Backups that the node has.
    pub backups: u32,
    /// Backups that it is short of, by the last answer.
    pub deficit: u32,
    /// The cluster as a whole.
    pub cluster: ClusterRow,
}

/// The cluster as a whole, as a policy sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterRow {
    /// Hosts that are known, whatever their state.
    pub hosts: u32,
    /// Hosts that take work.
    pub hosts_ready: u32,
    /// Failures of primaries within the last 24 hours.
    pub failures_last_day: u32,
    /// Backups that all nodes together are short of.
    pub deficit: u32,
}

/// What a policy answered: unchecked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupCountAnswer {
    /// Primaries wanted: anything but 1 cannot be had.
    pub primaries: u32,
    /// Backups wanted.
    pub backups: u32,
    /// Why, for people.
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reads_back_as_it_was_written() {
        let answer = PlacementAnswer { picks: vec![Pick { index: 7, reason: Some("most room".to_owned()) }] };
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<PlacementAnswer>(&text).unwrap(), answer);
    }

    #[test]
    fn an_interface_has_one_name_everywhere() {
        for interface in Interface::ALL {
            let text = serde_json::to_string(&interface).unwrap();
            assert_eq!(text, format!("\"{interface}\""));
        }
    }
}
