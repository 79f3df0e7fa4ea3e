//! Owns the leader as a value: what it knows, what it has decided and not seen written yet, and what it has to look at
//! again.
//!
//! Promises: a change makes it look at the nodes that the change can concern, and at no others, and it then decides as
//! it would from nothing; all nodes without a primary come before all drains, and those before all backups; a question
//! holds up its own node, and of the others those that come later in that order or need an answer of the same kind; what
//! is decided is not decided again until its write is known to have come or failed. Must not do: write, ask, or read a
//! clock itself.
//!
//! Cost, with N hosts and M nodes: a renewal O(log N); a fact O(instances of its host) plus what it concerns; a decision
//! without a choice of host O(its members), with one O(N) of a few nanoseconds each; taking over the leadership O(N + M).
//!
//! ```text
//!            view, reply, outcome, time
//!                      ▼
//!   affected ──▶ settle ──▶ primary ──▶ drain ──▶ count ──▶ backups ──▶ at rest
//!      ▲            what has    │ no step begins while an answer     │
//!      │            happened    │ of the one before it is awaited    │ decided
//!      │                        ▼                                    ▼
//!      └── written, refused ◀── in flight ◀─────────────────────── handed out
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::ask::Asked;
use super::copies::Words;
use super::flight::{Deficits, Draft};
use super::input::{Decisions, Input, Outcome};
use super::rooms::Rooms;
use super::{ExpireLease, Report, backups, drain, primary, restore, settle};
use crate::bounds::Bounds;
use crate::model::ids::{HostId, NodeId};
use crate::model::records::{Kept, LeaseExpiry, LeaseRecord, NodeRecord};
use crate::model::units::{Boottime, MiB, Now, UnixMillis, Vcpus};
use crate::model::view::{SharedNode, View};
use crate::policy::{Interface, Judged};

/// Before a write that was refused is decided anew, where nothing that it was decided from is seen to change.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// The steps of a decision, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Primary,
    Drain,
    Count,
    Backups,
}

/// Nodes to be looked at, by the step that is next.
#[derive(Debug, Clone, Default)]
pub(super) struct Todo {
    pub(super) settle: BTreeSet<NodeId>,
    primary: BTreeSet<NodeId>,
    drain: BTreeSet<NodeId>,
    count: BTreeSet<NodeId>,
    backups: BTreeSet<NodeId>,
}

impl Todo {
    fn of(&mut self, step: Step) -> &mut BTreeSet<NodeId> {
        match step {
            Step::Primary => &mut self.primary,
            Step::Drain => &mut self.drain,
            Step::Count => &mut self.count,
            Step::Backups => &mut self.backups,
        }
    }

    pub(super) fn forget(&mut self, node: &NodeId) {
        for todo in [&mut self.settle, &mut self.primary, &mut self.drain, &mut self.count, &mut self.backups]
        {
            todo.remove(node);
        }
    }
}

/// What one call has come to that is not kept.
#[derive(Debug, Clone, Default)]
pub(super) struct Batch {
    pub(super) expiries: Vec<ExpireLease>,
    pub(super) refusals: Vec<(Interface, String)>,
    pub(super) judged: Judged,
    /// Nodes that wait for an answer.
    pub(super) suspended: BTreeSet<NodeId>,
    /// Nodes of which all steps are done.
    pub(super) concluded: Vec<NodeId>,
    /// Hosts that a primary leaves from now on, or leaves no more.
    pub(super) stirred: BTreeSet<HostId>,
}

/// The leader. See the head of this file.
#[derive(Debug, Clone)]
pub struct Leader {
    pub(super) bounds: Bounds,
    pub(super) now: Now,
    /// What the store holds.
    pub(super) before: View,
    /// The same, as it will be once everything that is decided is written.
    pub(super) view: View,
    pub(super) rooms: Rooms,
    pub(super) asked: Asked,
    /// What hosts said of the checkpoints of nodes without a primary.
    pub(super) words: Words,
    pub(super) report: Report,
    pub(super) batch: Batch,
    pub(super) drafts: BTreeMap<NodeId, Draft>,
    pub(super) todo: Todo,
    /// Nodes that more room, another host or the end of a cooldown could help.
    pub(super) waiting: BTreeSet<NodeId>,
    /// When such a node is looked at again, whatever happens: a host is not avoided any more, or a step of its wait is over.
    cooldowns: BTreeMap<NodeId, UnixMillis>,
    /// When a node whose write was refused is looked at again, whatever happens.
    pub(super) retries: BTreeMap<NodeId, Boottime>,
    /// Open leases, by since when they are silent.
    pub(super) leases: BTreeSet<(Boottime, HostId)>,
    /// Hosts that everything is to leave.
    pub(super) draining: BTreeSet<HostId>,
    /// Leases whose expiry is handed out, and when that is tried again if it was refused.
    pub(super) expiring: BTreeMap<HostId, (u64, Option<Boottime>)>,
    /// Hosts that there are, and that take work, as policies were told last.
    hosts: (usize, u32),
    /// When primaries failed.
    pub(super) failures: BTreeSet<(UnixMillis, NodeId)>,
    /// Backups that nodes were short of when they were last looked at: what policies are told.
    pub(super) deficits: Deficits,
}

impl Leader {
    /// A leader that knows nothing yet and asks nobody.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            now: Now::default(),
            before: View::default(),
            view: View::default(),
            rooms: Rooms::new(bounds.checkpoint_interval),
            asked: Asked::default(),
            words: Words::default(),
            report: Report::default(),
            batch: Batch::default(),
            drafts: BTreeMap::new(),
            todo: Todo::default(),
            waiting: BTreeSet::new(),
            cooldowns: BTreeMap::new(),
            retries: BTreeMap::new(),
            leases: BTreeSet::new(),
            draining: BTreeSet::new(),
            expiring: BTreeMap::new(),
            hosts: (0, 0),
            failures: BTreeSet::new(),
            deficits: Deficits::default(),
        }
    }

    /// Takes what happened, and says what to do about it.
    pub fn handle(&mut self, input: Input, now: Now) -> Decisions {
        self.take(input, now);
        self.decide();
        self.hand_out()
    }

    /// What cannot be done, and what is lacking, by when each node was last looked at.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// What the store held, as far as it was read, when the last decisions were made.
    #[must_use]
    pub fn decided_from(&self) -> &View {
        &self.before
    }

    /// What hosts said of a node's checkpoints, as far as it counts.
    #[must_use]
    pub fn heard(&self, node: &NodeId) -> BTreeMap<HostId, Kept> {
        let Some(known) = self.before.nodes.get(node) else { return BTreeMap::new() };
        let epoch = known.value.epoch;
        let said = |host: &HostId| {
            let lease = self.before.hosts.get(host)?.lease.value.number;
            Some((host.clone(), self.words.said(node, host, (epoch, lease))?.clone()))
        };
        known.value.keeping().filter_map(said).collect()
    }

    /// When something is to be looked at next, whatever happens until then.
    #[must_use]
    pub fn next_due(&self) -> Option<Boottime> {
        let after = self.bounds.lease_expire_after();
        let silent = self.leases.iter().find(|(_, host)| !self.expiring.contains_key(host));
        let lease = silent.map(|(since, _)| *since + after);
        let expiry = self.expiring.values().filter_map(|(_, again)| *again).min();
        let cooldown = self.cooldowns.values().min().map(|at| self.now.boottime + at.since(self.now.wall));
        let retry = self.retries.values().min().copied();
        [lease, expiry, cooldown, retry, self.words.next_due()].into_iter().flatten().min()
    }

    /// The first of the times at which nodes that wait are looked at again.
    #[cfg(test)]
    pub(super) fn waiting_due(&self) -> Option<UnixMillis> {
        self.cooldowns.values().min().copied()
    }

    /// Takes what happened, and decides nothing yet.
    pub(super) fn take(&mut self, input: Input, now: Now) {
        let set_back = now.wall < self.now.wall;
        self.now = now;
        if set_back {
            // What was to be looked at by the wall clock has another time.
            self.look_at_waiting();
        }
        match input {
            Input::View(view) => self.see(view),
            Input::Reply(reply) => {
                if let Some(node) = self.asked.reply(reply) {
                    self.look_at_answered(node);
                }
            }
            Input::Copies(ask, said) => {
                if self.words.take(&ask, said) {
                    self.look_at_answered(ask.node);
                }
            }
            Input::Policies(policies) => {
                if self.asked.policies != policies {
                    self.asked.policies = policies;
                    self.asked.clear();
                    self.look_at_all();
                }
            }
            Input::Written(node, outcome) => self.written(&node, outcome),
            Input::Expired(host, Outcome::Refused) => {
                if let Some(expiry) = self.expiring.get_mut(&host) {
                    expiry.1 = Some(now.boottime + RETRY);
                    self.rooms.close(&host, false);
                }
            }
            Input::Expired(_, Outcome::Applied(_)) | Input::Tick => {}
        }
        self.look_at_due();
    }

    /// Decides whatever can be decided without another answer.
    pub(super) fn decide(&mut self) {
        self.batch.suspended.clear();
        self.expire_silent_leases();
        self.refresh();
        let hosts = (self.view.hosts.len(), self.rooms.accepting());
        if std::mem::replace(&mut self.hosts, hosts) != hosts && self.asked.policies.backup_count {
            self.look_at_all();
        }
        self.settle();
        // A node without a primary comes before everybody's backups; those that leave a draining host come before its
        // backups, for time and for room.
        let _ = self.run(Step::Primary)
            && self.run(Step::Drain)
            && self.run(Step::Count)
            && self.run(Step::Backups);
        self.refresh();
    }

    /// Brings all records to what has happened. Where that ends a migration, whoever waited for it is looked at too.
    fn settle(&mut self) {
        let mut closed = BTreeSet::new();
        while let Some(node) = self.todo.settle.pop_first() {
            if let Some(known) = self.open(&node) {
                // What was decided of it, and waits for an answer still, was decided from something else.
                let is_draft = self.drafts.contains_key(&node);
                if is_draft {
                    self.drop_draft(&node);
                }
                self.report.forget(&node);
                let known = if is_draft { self.shared(&node) } else { known };
                settle::settle(self, &node, &known);
                self.todo.primary.insert(node);
            } else {
                closed.insert(node);
            }
            for host in std::mem::take(&mut self.batch.stirred) {
                let done = |node: &NodeId| self.todo.primary.contains(node) || closed.contains(node);
                let more: Vec<NodeId> = self.nodes_on(&host).filter(|node| !done(node)).collect();
                self.todo.settle.extend(more);
            }
        }
        self.todo.settle = closed;
    }

    /// Runs one step for all that are due. Whether none of them waits for an answer.
    fn run(&mut self, step: Step) -> bool {
        let mut complete = true;
        for host in std::mem::take(&mut self.batch.stirred) {
            // A migration that begins or ends lets backups on that host wait or go on.
            let here: Vec<NodeId> = self.nodes_on(&host).collect();
            self.todo.count.extend(here);
        }
        let mut done = Vec::new();
        for node in std::mem::take(self.todo.of(step)) {
            let Some(known) = self.open(&node) else {
                self.todo.of(step).insert(node);
                continue;
            };
            match step {
                Step::Primary => primary::repair(self, &node, &known),
                Step::Drain => drain::evacuate(self, &node, &known),
                Step::Count => backups::count(self, &node, known),
                Step::Backups => backups::repair(self, &node, known),
            }
            if self.batch.suspended.contains(&node) {
                complete = false;
                self.todo.of(step).insert(node);
                continue;
            }
            done.push(node);
        }
        let next = match step {
            Step::Primary => &mut self.todo.drain,
            Step::Drain => &mut self.todo.count,
            Step::Count => &mut self.todo.backups,
            Step::Backups => {
                done.iter().for_each(|node| self.conclude(node));
                self.batch.concluded.append(&mut done);
                return complete;
            }
        };
        // They are in their order, of which a set is made at once.
        if next.is_empty() {
            *next = done.into_iter().collect();
        } else {
            next.extend(done);
        }
        complete
    }

    /// The record of a node that may be decided about: it can be read, nothing of it is on its way to the store, and it
    /// was not refused a moment ago.
    fn open(&self, node: &NodeId) -> Option<SharedNode> {
        let refused = self.retries.contains_key(node);
        let closed = self.is_in_flight(node) || refused || self.before.quarantined.contains(node);
        if closed { None } else { self.view.nodes.get(node).cloned() }
    }

    /// All steps of a node are done.
    fn conclude(&mut self, node: &NodeId) {
        self.asked.done(node);
        let known = Arc::clone(&self.view.nodes[node]);
        let leaving = known.value.members().any(|member| self.is_draining(&member.host));
        let waits = leaving || self.report.notes.contains_key(node);
        if !waits {
            self.waiting.remove(node);
            self.cooldowns.remove(node);
            return;
        }
        self.waiting.insert(node.clone());
        let ends = known.value.cooldowns.iter().filter(|cooldown| self.is_recent(cooldown.at));
        let ends = ends.map(|cooldown| cooldown.at + self.bounds.cooldown);
        let waits_for_state = self.report.lacks.get(node).is_some_and(|lack| lack.state);
        let wait = known.value.state_wait.filter(|_| waits_for_state);
        let step = wait.and_then(|wait| restore::due(wait, self.now.wall));
        match ends.chain(step).min() {
            Some(at) => drop(self.cooldowns.insert(node.clone(), at)),
            None => drop(self.cooldowns.remove(node)),
        }
    }

    /// What policies are told of deficits does not change while others are still decided about.
    pub(super) fn tell_deficits(&mut self) {
        for node in std::mem::take(&mut self.batch.concluded) {
            let short = self.report.lacks.get(&node).map_or(0, |lack| lack.backups);
            self.deficits.set(&node, short);
        }
    }

    fn expire_silent_leases(&mut self) {
        let after = self.bounds.lease_expire_after();
        let silent = self.leases.iter().take_while(|(since, _)| self.now.boottime.since(*since) >= after);
        let silent: Vec<(Boottime, HostId)> = silent.cloned().collect();
        for (since, host) in silent {
            let Some(seen) = self.before.hosts.get(&host) else { continue };
            let heard = seen.heard();
            let again = |again: Option<Boottime>| again.is_some_and(|again| again <= self.now.boottime);
            let out = self.expiring.get(&host);
            if out.is_some_and(|(of, retry)| *of == heard && !again(*retry)) {
                continue;
            }
            let silent = self.now.boottime.since(since).as_millis();
            let silent = u64::try_from(silent).unwrap_or(u64::MAX);
            let end = LeaseExpiry {
                reason: format!("lease not renewed for {silent} ms"),
                silent_since: UnixMillis(self.now.wall.0.saturating_sub(silent)),
                at: self.now.wall,
            };
            let record = LeaseRecord { expired: Some(end), ..seen.lease.value.clone() };
            let (revision, renewed) = (seen.lease.revision, seen.renewed);
            self.expiring.insert(host.clone(), (heard, None));
            // Nothing new is put on a host that is about to be called lost.
            self.rooms.close(&host, true);
            self.batch.expiries.push(ExpireLease { host, revision, renewed, record });
        }
    }

    /// A node is to be looked at from the first step on.
    pub(super) fn look_at(&mut self, node: &NodeId) {
        self.todo.settle.insert(node.clone());
    }

    /// An answer has come: the node goes on at the step that asked.
    fn look_at_answered(&mut self, node: NodeId) {
        let Todo { settle, primary, drain, count, backups } = &self.todo;
        if ![settle, primary, drain, count, backups].into_iter().any(|todo| todo.contains(&node)) {
            self.todo.settle.insert(node);
        }
    }

    /// What a refused write was decided from has changed.
    pub(super) fn may_retry(&mut self, node: &NodeId) {
        self.retries.remove(node);
    }

    pub(super) fn look_at_all(&mut self) {
        self.todo.settle.extend(self.view.nodes.keys().cloned());
    }

    fn look_at_due(&mut self) {
        let (wall, boottime) = (self.now.wall, self.now.boottime);
        let cooled = self.cooldowns.extract_if(.., |_, at| *at <= wall).map(|(node, _)| node);
        self.todo.settle.extend(cooled);
        self.retries.retain(|_, at| *at > boottime);
        self.todo.settle.extend(self.words.take_due(boottime));
    }

    /// The node is gone.
    pub(super) fn forget(&mut self, node: &NodeId) {
        self.report.forget(node);
        self.asked.forget(node);
        self.words.forget(node);
        self.deficits.set(node, 0);
        self.waiting.remove(node);
        self.cooldowns.remove(node);
        self.retries.remove(node);
        self.todo.forget(node);
    }

    pub(super) fn record(&self, node: &NodeId) -> &NodeRecord {
        &self.view.nodes[node].value
    }

    pub(super) fn shared(&self, node: &NodeId) -> SharedNode {
        Arc::clone(&self.view.nodes[node])
    }

    pub(super) fn size_of(&self, node: &NodeId) -> (MiB, Vcpus) {
        let spec = &self.record(node).spec;
        (spec.memory, spec.vcpus)
    }
}
