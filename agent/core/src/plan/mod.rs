//! Owns the leader's decision: one pure function from the view to assignments.
//!
//! Promises: the plan leaves no choice to its execution; every assignment carries the revisions that it was
//! decided from, so that a second leader or a late one can only lose; applying a plan makes the next one empty;
//! the report says why each thing did not happen. Must not do: execute, wait, ask a policy itself (it returns
//! questions, and is called again with the answers).

mod backups;
mod drain;
mod explain;
mod place;
mod primary;
mod question;
mod settle;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bounds::Bounds;
use crate::death::Setback;
use crate::ids::{HostId, InstanceId, NodeId};
use crate::policy::{BackupCountQuestion, Interface, Judged, PlacementQuestion};
use crate::records::{CheckpointRecord, InstanceFact, NodeRecord, SessionEnd, SessionRecord};
use crate::units::{MiB, Now, UnixMillis};
use crate::view::{Versioned, View};

pub use explain::{Explanation, explain, recount, replace};

/// Ends a silent session, by compare-and-swap on the very revision that was silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEnding {
    /// The host.
    pub host: HostId,
    /// The revision that was silent.
    pub revision: u64,
    /// The record that replaces it.
    pub record: SessionRecord,
}

/// What becomes of a node's checkpoint record together with an assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointChange {
    /// It stays.
    Keep,
    /// It is replaced, if it is still at this revision.
    Replace(u64, CheckpointRecord),
    /// It is deleted, if it is still at this revision: its state must never come back.
    Delete(u64),
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
    /// Its checkpoint.
    pub checkpoint: CheckpointChange,
    /// Sessions that must still be as they were: the ended ones that the assignment rests on.
    pub sessions: Vec<(HostId, u64)>,
    /// Why, for people.
    pub reasons: Vec<String>,
}

/// What the leader is to write, or first to ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Sessions to end. What rests on them is planned once that is written.
    pub endings: Vec<SessionEnding>,
    /// Nodes to write.
    pub assignments: Vec<Assignment>,
    /// Questions whose answers the plan waits for: ask them, then plan again.
    pub placements: Vec<PlacementQuestion>,
    /// The same, for backup counts.
    pub backup_counts: Vec<BackupCountQuestion>,
}

/// What a node lacks at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lack {
    /// It has no primary.
    pub primary: bool,
    /// Backups that it is short of.
    pub backups: u32,
}

/// Why things did not happen, and what is lacking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// For each node, what keeps it from being whole.
    pub notes: BTreeMap<NodeId, Vec<String>>,
    /// What each node lacks. A node that lacks nothing is not listed.
    pub lacks: BTreeMap<NodeId, Lack>,
    /// Backups that each node should have, where the policy's answer is known.
    pub wanted: BTreeMap<NodeId, u32>,
    /// Answers of policies that core refused or did without, with the reason.
    pub refusals: Vec<(Interface, String)>,
    /// What became of every answer that the plan used.
    pub judged: Judged,
}

impl Report {
    /// What the next plan is told of this one, see [`View::deficits`].
    #[must_use]
    pub fn deficits(&self) -> BTreeMap<NodeId, u32> {
        let short = self.lacks.iter().filter(|(_, lack)| lack.backups > 0);
        short.map(|(node, lack)| (node.clone(), lack.backups)).collect()
    }
}

impl Plan {
    /// What waits for no answer: a policy that thinks about one node holds up no other. None where there is nothing of
    /// the kind, or nothing to wait for.
    #[must_use]
    pub fn before_answers(&self) -> Option<Self> {
        if !self.has_questions() {
            return None;
        }
        let asked = |node: &NodeId| {
            self.placements.iter().any(|question| question.node == *node)
                || self.backup_counts.iter().any(|question| question.node == *node)
        };
        let unasked = self.assignments.iter().filter(|assignment| !asked(&assignment.node));
        let ready = Self {
            endings: self.endings.clone(),
            assignments: unasked.cloned().collect(),
            ..Self::default()
        };
        (!ready.is_empty()).then_some(ready)
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endings.is_empty() && self.assignments.is_empty() && !self.has_questions()
    }

    /// Whether answers are needed first.
    #[must_use]
    pub fn has_questions(&self) -> bool {
        !self.placements.is_empty() || !self.backup_counts.is_empty()
    }
}

/// What to do about the cluster as it is.
#[must_use]
pub fn plan(view: &View, bounds: &Bounds, now: Now) -> (Plan, Report) {
    let mut draft = Draft::new(view, bounds, now);
    draft.end_silent_sessions();
    for node in &view.withheld {
        draft.note(node, "nothing is planned for it while a record of it cannot be read");
    }
    let nodes: Vec<NodeId> =
        view.nodes.keys().filter(|node| !view.withheld.contains(*node)).cloned().collect();
    for node in &nodes {
        settle::settle(&mut draft, node);
    }
    // A node without a primary comes before everybody's backups.
    for node in &nodes {
        primary::repair(&mut draft, node);
    }
    // Those that leave a draining host come before its backups, for time and for room.
    for node in &nodes {
        drain::evacuate(&mut draft, node);
    }
    for node in &nodes {
        backups::repair(&mut draft, node);
    }
    draft.finish()
}

/// Most setbacks that a node remembers.
const SETBACKS_MAX: usize = 8;

/// Adds a setback and drops the oldest beyond what a node remembers.
fn remember(record: &mut NodeRecord, setback: Setback) {
    record.setbacks.push(setback);
    keep_newest(&mut record.setbacks, SETBACKS_MAX);
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

/// A plan in the making: the view as it will be once the plan is applied.
struct Draft<'a> {
    before: &'a View,
    view: View,
    bounds: &'a Bounds,
    now: Now,
    plan: Plan,
    report: Report,
    checkpoints: BTreeMap<NodeId, CheckpointChange>,
    sessions: BTreeMap<NodeId, Vec<(HostId, u64)>>,
    reasons: BTreeMap<NodeId, Vec<String>>,
}

impl<'a> Draft<'a> {
    fn new(view: &'a View, bounds: &'a Bounds, now: Now) -> Self {
        Self {
            before: view,
            view: view.clone(),
            bounds,
            now,
            plan: Plan::default(),
            report: Report::default(),
            checkpoints: BTreeMap::new(),
            sessions: BTreeMap::new(),
            reasons: BTreeMap::new(),
        }
    }

    fn record(&self, node: &NodeId) -> &NodeRecord {
        &self.view.nodes[node].value
    }

    /// Changes a node's record and says why.
    fn change(&mut self, node: &NodeId, reason: impl Into<String>, edit: impl FnOnce(&mut NodeRecord)) {
        if self.view.nodes.update(node, |known| edit(&mut known.value)) {
            self.reasons.entry(node.clone()).or_default().push(reason.into());
        }
    }

    /// Whether a member of the node failed on `host` a moment ago.
    fn recently_failed(&self, record: &NodeRecord, host: &HostId) -> bool {
        let recent = |setback: &Setback| self.now.wall.since(setback.at) < self.bounds.setback;
        record.setbacks.iter().any(|setback| &setback.host == host && recent(setback))
    }

    /// Memory of `host` that `node` may take. What another node gives up in this very plan is not given away yet:
    /// assignments are written one by one, and each must be right by itself.
    fn room(&self, node: &NodeId, host: &HostId) -> MiB {
        let Some(facts) = self.view.hosts.get(host).and_then(|seen| seen.current_facts()) else {
            return MiB(0);
        };
        let instead = Some((node, self.record(node)));
        let after = self.view.taken_memory(host, instead);
        facts.capacity.memory.saturating_sub(after.max(self.before.taken_memory(host, instead)))
    }

    /// The idle instances of a host that `node` may have; not those that another node gives up in this very plan, and
    /// none while a record that was not read may name them (SAFE-6).
    fn idle(&self, node: &NodeId, host: &HostId) -> impl Iterator<Item = InstanceId> {
        let (spec, room) = (&self.record(node).spec, self.room(node, host));
        let fits = move |fact: &InstanceFact| fact.fits(spec) && fact.memory <= room;
        let idle = self.view.idle(host).filter(move |(_, fact)| fits(fact)).map(|(instance, _)| instance);
        let is_known = self.before.withheld.is_empty();
        idle.filter(move |instance| is_known && !self.before.is_claimed(*instance))
    }

    /// Whether everything is to leave `host`.
    fn is_draining(&self, host: &HostId) -> bool {
        self.view.hosts.get(host).is_some_and(|seen| seen.intent.drain)
    }

    /// Whether a primary is on its way from `host`.
    fn is_being_left(&self, host: &HostId) -> bool {
        let mut migrations = self.view.nodes.values().filter_map(|node| node.value.migration.as_ref());
        migrations.any(|migration| &migration.from == host)
    }

    fn note(&mut self, node: &NodeId, text: impl Into<String>) {
        self.report.notes.entry(node.clone()).or_default().push(text.into());
    }

    /// Makes an assignment rest on the end of a host's session, where it has ended.
    fn rest_on_session(&mut self, node: &NodeId, host: &HostId) {
        let ended =
            self.view.hosts.get(host).filter(|host| !host.is_open()).map(|host| host.session.revision);
        if let Some(revision) = ended {
            self.sessions.entry(node.clone()).or_default().push((host.clone(), revision));
        }
    }

    /// Decides what becomes of a node's checkpoint together with its record.
    fn change_checkpoint(&mut self, node: &NodeId, change: CheckpointChange) {
        match &change {
            CheckpointChange::Keep => {}
            CheckpointChange::Replace(revision, record) => {
                let known = Versioned { value: record.clone(), revision: *revision };
                self.view.checkpoints.insert(node.clone(), known.into());
            }
            CheckpointChange::Delete(_) => {
                self.view.checkpoints.remove(node);
            }
        }
        self.checkpoints.insert(node.clone(), change);
    }

    fn end_silent_sessions(&mut self) {
        let after = self.bounds.session_end_after();
        for (host, seen) in &self.view.hosts {
            if seen.is_open() && seen.silent_for(self.now.boottime) >= after {
                let silent =
                    u64::try_from(seen.silent_for(self.now.boottime).as_millis()).unwrap_or(u64::MAX);
                let end = SessionEnd {
                    reason: format!("session not renewed for {silent} ms"),
                    silent_since: UnixMillis(self.now.wall.0.saturating_sub(silent)),
                    at: self.now.wall,
                };
                let record = SessionRecord { ended: Some(end), ..seen.session.value.clone() };
                let revision = seen.session.revision;
                self.plan.endings.push(SessionEnding { host: host.clone(), revision, record });
            }
        }
    }

    fn finish(mut self) -> (Plan, Report) {
        for (node, known) in &self.view.nodes {
            let Versioned { value, revision } = known.as_ref();
            if self.before.nodes.get(node).is_some_and(|old| old.value == *value) {
                continue;
            }
            self.plan.assignments.push(Assignment {
                node: node.clone(),
                revision: *revision,
                record: value.clone(),
                checkpoint: self.checkpoints.remove(node).unwrap_or(CheckpointChange::Keep),
                sessions: self.sessions.remove(node).unwrap_or_default(),
                reasons: self.reasons.remove(node).unwrap_or_default(),
            });
        }
        self.plan.placements.sort();
        self.plan.placements.dedup();
        self.plan.backup_counts.sort();
        self.plan.backup_counts.dedup();
        (self.plan, self.report)
    }
}
