//! Owns the leader's decisions: from what the store holds to assignments.
//!
//! Promises: a decision leaves no choice to its execution; every assignment carries the revisions that it was
//! decided from, so that a second leader or a late one can only lose; applying all of them makes the next plan empty;
//! the report says why each thing did not happen. Must not do: execute, wait, ask a policy itself (it returns
//! questions, and goes on with the answers).
//!
//! Who follows a decision reads `leadership` (whether this agent decides at this moment), `machine` (what is looked at when),
//! then the steps in their order: `settle`, `primary`, `drain`, `backups`. What it costs stands at the head of `machine`.

mod admission;
mod affected;
mod ask;
mod backups;
mod copies;
mod draft;
mod drain;
mod explain;
mod flight;
mod input;
pub mod leadership;
pub mod line;
mod machine;
mod place;
mod plan;
mod primary;
mod question;
mod restore;
mod rooms;
mod settle;
mod sums;
#[cfg(test)]
mod tests;

use std::time::Duration;

use imbl::OrdMap;

use crate::death::Cooldown;
use crate::model::ids::{HostId, NodeId};
use crate::model::records::{LeaseRecord, NodeRecord};
use crate::model::units::UnixMillis;
use crate::policy::{Interface, Judged};

pub use admission::{Admission, Trial};
pub use ask::{Policies, Question, Reply};
pub use copies::AskCopies;
pub use explain::{Explanation, explain, recount, replace};
pub use input::{Decisions, Input, Outcome};
pub use machine::Leader;
pub use plan::{plan, plan_asking};

/// Expires a silent lease, by compare-and-swap on the very revisions that were silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpireLease {
    /// The host.
    pub host: HostId,
    /// The lease's revision.
    pub revision: u64,
    /// The revision of its last renewal; 0 where there must be none.
    pub renewed: u64,
    /// The record that replaces it.
    pub record: LeaseRecord,
}

/// A new record of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The node.
    pub node: NodeId,
    /// The revision that it replaces.
    pub revision: u64,
    /// The record.
    pub record: NodeRecord,
    /// Leases that must still be as they were: the expired ones that the assignment is conditional on.
    pub leases: Vec<(HostId, u64)>,
    /// Why, for people.
    pub reasons: Vec<String>,
}

/// All that there is to write at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Leases to expire. What is conditional on them is planned once that is written.
    pub expiries: Vec<ExpireLease>,
    /// Nodes to write.
    pub assignments: Vec<Assignment>,
}

/// What a node lacks at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lack {
    /// It has no primary.
    pub primary: bool,
    /// It has none because it waits for its state.
    pub state: bool,
    /// Backups that it is short of.
    pub backups: u32,
}

/// Why things did not happen, and what is lacking. A copy shares the maps with the original, so that one costs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// For each node, what keeps it from being whole.
    pub notes: OrdMap<NodeId, Vec<String>>,
    /// What each node lacks. A node that lacks nothing is not listed.
    pub lacks: OrdMap<NodeId, Lack>,
    /// Backups that each node should have, where the policy's answer is known.
    pub wanted: OrdMap<NodeId, u32>,
    /// Answers of policies that core refused or did without, with the reason.
    pub refusals: Vec<(Interface, String)>,
    /// What became of every answer that the plan used.
    pub judged: Judged,
}

impl Report {
    /// Nothing is known of a node any more.
    fn forget(&mut self, node: &NodeId) {
        self.notes.remove(node);
        self.lacks.remove(node);
        self.wanted.remove(node);
    }
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.expiries.is_empty() && self.assignments.is_empty()
    }
}

/// Most cooldowns that a node remembers.
const COOLDOWNS_MAX: usize = 8;

/// Adds a cooldown and drops the oldest beyond what a node remembers. A copy that was found damaged is not forgotten for others:
/// it would be tried again, and again.
fn remember(record: &mut NodeRecord, cooldown: Cooldown) {
    record.cooldowns.push(cooldown);
    let is_damage = |one: &Cooldown| one.cause.damaged().is_some();
    let (damaged, mut others): (Vec<Cooldown>, Vec<Cooldown>) =
        std::mem::take(&mut record.cooldowns).into_iter().partition(is_damage);
    keep_newest(&mut others, COOLDOWNS_MAX);
    record.cooldowns = damaged.into_iter().chain(others).collect();
    record.cooldowns.sort_by_key(|one| one.at);
}

/// What was found damaged is of no use to anybody any more, whole or not.
fn forget_damage(record: &mut NodeRecord) {
    record.cooldowns.retain(|one| one.cause.damaged().is_none());
}

/// Drops the oldest, which come first, beyond `most`.
fn keep_newest<T>(all: &mut Vec<T>, most: usize) {
    all.drain(..all.len().saturating_sub(most));
}

/// Most failures that a node remembers.
const FAILURES_MAX: usize = 32;
/// How long it remembers them: what policies are told of.
const DAY: Duration = Duration::from_hours(24);

/// Adds a failure of the node's primary and drops what is too old, or the oldest beyond what a node remembers.
fn remember_failure(record: &mut NodeRecord, now: UnixMillis) {
    record.failures.push(now);
    record.failures.retain(|&at| now.since(at) < DAY);
    keep_newest(&mut record.failures, FAILURES_MAX);
}
