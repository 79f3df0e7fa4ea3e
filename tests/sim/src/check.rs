//! Owns the judgement: what really runs against what may, and whether a healed world has come to rest.
//!
//! Promises: it looks at the truth of every machine, which no agent can, and at the store by a cache of its own, which follows
//! every change. Must not do: change anything but its own notes.

mod protection;
mod state;

use std::collections::{BTreeMap, BTreeSet};

use understudy_core::invariants::{Acting, broken_in, broken_in_world};
use understudy_core::keys::Key;
use understudy_core::model::ids::{Epoch, HostId, InstanceId, NodeId, Role};
use understudy_core::model::records::{CheckpointId, NodeRecord, Phase};
use understudy_core::model::units::{Boottime, MiB};
use understudy_core::model::view::View;
use understudy_core::store_cache::StoreCache;
use understudy_hypervisor::fake::Instance;
use understudy_store::{Change, MemoryStore};

use crate::cached_store::{CachedStore, Foreign};
use crate::guest::{Memory, is_member};
use crate::machine::Machine;
use crate::world::{GUARD_LATE_MS, POOL, World};
use state::Before;
pub(crate) use state::Seen;

/// How often the age of checkpoints is judged.
const PROTECTION_MS: u64 = 500;

/// What the judge remembers.
#[derive(Debug)]
pub(crate) struct Truth {
    store: CachedStore,
    /// From which revision on each set of policies was active.
    active_sets: Vec<(u64, u64)>,
    /// The state that runs under each incarnation of a node.
    states: BTreeMap<NodeId, BTreeMap<Epoch, u64>>,
    /// The state of a node that acted last.
    newest: BTreeMap<NodeId, u64>,
    /// Since when nothing keeps a node's primary from sending its state to this backup.
    clear_since: BTreeMap<(NodeId, HostId), u64>,
    /// When a host took a checkpoint of a node last.
    recorded: BTreeMap<NodeId, u64>,
    /// Copies of which a host has said that they cannot be restored.
    failed_copies: BTreeSet<(NodeId, HostId, CheckpointId)>,
    waits_for_state_since: BTreeMap<NodeId, u64>,
    pub(crate) failovers: u64,
    pub(crate) restores: u64,
    pub(crate) migrations: u64,
}

impl Truth {
    pub(crate) fn new(store: &MemoryStore) -> Self {
        Self {
            store: CachedStore::new(store, Foreign::default(), true, Boottime(0)),
            active_sets: Vec::new(),
            states: BTreeMap::new(),
            newest: BTreeMap::new(),
            clear_since: BTreeMap::new(),
            recorded: BTreeMap::new(),
            failed_copies: BTreeSet::new(),
            waits_for_state_since: BTreeMap::new(),
            failovers: 0,
            restores: 0,
            migrations: 0,
        }
    }

    /// The store as it is.
    pub(crate) fn store(&self) -> &StoreCache {
        &self.store
    }

    /// Takes the next revision in, if there is one.
    pub(crate) fn see(&mut self, now: Boottime) -> Option<Seen> {
        let batch = self.store.next()?;
        let keys: Vec<Key> = batch.changes.iter().map(Change::key).filter_map(Key::parse).collect();
        let nodes = keys.iter().filter_map(|key| if let Key::Node(node) = key { Some(node) } else { None });
        let known = self.store.view();
        let before = |node: &NodeId| Before { node: known.nodes.get(node).cloned() };
        let before = nodes.map(|node| (node.clone(), before(node))).collect();
        self.store.take(&batch, now);
        if let (true, Some(set)) = (keys.contains(&Key::PolicyActive), &self.store.policies.active) {
            self.active_sets.push((set.revision, set.value.generation));
        }
        Some(Seen { revision: batch.revision, keys, before })
    }

    /// The generation of the set that was active at a revision; 0 before the first.
    pub(crate) fn active_set_at(&self, revision: u64) -> u64 {
        let until = self.active_sets.iter().rev().find(|(since, _)| *since <= revision);
        until.map_or(0, |(_, generation)| *generation)
    }

    /// A host has taken a checkpoint of a node.
    pub(crate) fn taken(&mut self, node: &NodeId, now: u64) {
        self.recorded.insert(node.clone(), now);
    }

    /// A deleted node's name may be given again.
    pub(crate) fn forget(&mut self, node: &NodeId) {
        self.states.remove(node);
        self.newest.remove(node);
        self.recorded.remove(node);
        self.failed_copies.retain(|(of, ..)| of != node);
        self.waits_for_state_since.remove(node);
        self.clear_since.retain(|(of, _), _| of != node);
    }
}

impl World {
    /// What the leader has to say of why things do not happen, and how each primary stands.
    pub(crate) fn reports(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (host, machine) in &self.machines {
            let Some(agent) = machine.agent.as_ref().filter(|agent| agent.leads()) else { continue };
            for (node, notes) in &agent.report().notes {
                lines.push(format!("{host} reports of {node}: {}", notes.join("; ")));
            }
        }
        for (node, record) in self.nodes() {
            let Some((primary, instance)) =
                record.primary.as_ref().and_then(|one| Some((one, one.instance?)))
            else {
                continue;
            };
            let machine = self.machine(&primary.host);
            let local = machine.agent.as_ref().and_then(|agent| agent.host.local().get(&instance));
            let known = local.map(|local| (local.fact.phase.as_str(), local.fact.epoch, local.paused));
            let really = machine.hypervisor.look(instance, |one| (one.fact().state, is_member(one)));
            lines.push(format!("{node}: {primary:?}, known {known:?}, really {really:?}"));
        }
        lines
    }

    /// Whether what runs on a machine runs on, unless a guard is about to kill it: it comes late only because its machine
    /// stood still, and an older epoch keeps its effects out. A guard that has found its table damaged kills all, and has no
    /// deadline from then on.
    fn runs_on(&self, machine: &Machine) -> bool {
        let (guard, clock) = (&machine.guard, machine.boottime(self.now));
        let thawing = machine.thawed_at > 0
            && self.now <= machine.thawed_at + GUARD_LATE_MS + machine.kills_take
            && (guard.lost || guard.expired(clock));
        machine.runs() && !thawing
    }

    /// The node that an instance acts for, as it is: a deleted one's name may be given again, with another secret, and nothing
    /// takes what comes with the old one.
    fn acts_for<'a>(&self, instance: &'a Instance<Memory>) -> Option<&'a NodeId> {
        let memory = instance.memory();
        let node = memory.node.as_ref().filter(|_| memory.acts && instance.runs())?;
        self.record(node).is_some_and(|record| record.token == memory.token).then_some(node)
    }

    /// A promoted backup acts from the moment that the store says so.
    fn mark_primaries(&self) {
        for (host, machine) in &self.machines {
            machine.hypervisor.change_memories(|instance, memory| {
                let node = memory.node.as_ref().filter(|_| !memory.acts);
                let primary = node.and_then(|node| self.record(node)?.primary.as_ref());
                memory.acts |= primary
                    .is_some_and(|primary| &primary.host == host && primary.instance == Some(instance));
            });
        }
    }

    /// What acts as primary at this moment, and with which state.
    fn acting(&self) -> Vec<(Acting, u64)> {
        let mut acting = Vec::new();
        for (host, machine) in &self.machines {
            if !self.runs_on(machine) {
                continue;
            }
            machine.hypervisor.each(|instance, one| {
                if let Some(node) = self.acts_for(one).cloned() {
                    let acts = Acting { node, host: host.clone(), instance };
                    acting.push((acts, one.memory().generation));
                }
            });
        }
        acting
    }

    /// After every step.
    pub(crate) fn check(&mut self) {
        self.mark_primaries();
        if self.now.is_multiple_of(PROTECTION_MS) {
            self.check_protection();
        }
        let acting = self.acting();
        let all: Vec<Acting> = acting.iter().map(|(one, _)| one.clone()).collect();
        for broken in broken_in_world(&all) {
            self.fail(broken.to_string());
        }
        for (one, state) in acting {
            let Some(incarnation) = self.record(&one.node).and_then(|record| {
                let primary = record.primary.as_ref()?;
                let is = primary.instance == Some(one.instance) && primary.host == one.host;
                is.then_some(record.incarnation)
            }) else {
                continue;
            };
            // Until its host has said that it is ready, nobody has taken it for the node's state.
            let reported = self.reports_ready(&one.host, one.instance);
            let known = self.truth.states.get(&one.node).and_then(|states| states.get(&incarnation)).copied();
            if reported && known.is_none() {
                self.truth.states.entry(one.node.clone()).or_default().insert(incarnation, state);
            }
            if known.is_some_and(|known| known != state) {
                self.fail(format!(
                    "{} lost its state within epoch {incarnation} and nobody was told",
                    one.node
                ));
            }
            if self.truth.newest.get(&one.node) != Some(&state) {
                self.truth.newest.insert(one.node.clone(), state);
                self.verbose(|| format!("{} runs on {} with state {state}", one.node, one.host));
            }
        }
    }

    fn reports_ready(&self, host: &HostId, instance: InstanceId) -> bool {
        let facts = self.truth.store().facts(host);
        facts.and_then(|facts| facts.instances.get(&instance)).is_some_and(|fact| fact.phase == Phase::Ready)
    }

    /// Everything that is written passes here, so that the truth can be looked at in the same moment.
    pub(crate) fn judge_writes(&mut self, seen: Seen) {
        for (node, before) in seen.before {
            self.written(&node, before.node.as_ref().map(|known| &known.value));
        }
        for key in seen.keys {
            match key {
                Key::Lease(host) => {
                    let lease = self.truth.store().lease(&host).map(|known| &known.value);
                    if let Some((number, end)) =
                        lease.and_then(|one| Some((one.number, one.expired.as_ref()?)))
                    {
                        self.note(format!("lease {number} of {host} is expired: {}", end.reason));
                    }
                }
                Key::Facts(host) => {
                    self.note_failed_copies(&host);
                    self.check_reported(&host);
                }
                Key::Leader | Key::Renewal(_) | Key::Intent(_) | Key::Terminal(_) | Key::Node(_) => {}
                Key::Failover(_) | Key::PolicyActive | Key::PolicyCandidate | Key::PolicyRefused => {}
            }
        }
    }

    /// A node's record has changed in the store.
    fn written(&mut self, node: &NodeId, before: Option<&NodeRecord>) {
        let Some(after) = self.record(node).cloned() else { return };
        let view = View { nodes: self.truth.store().view().nodes.clone(), ..View::default() };
        for broken in broken_in(&view) {
            self.fail(format!("the records break {broken}"));
        }
        let old = before.and_then(|before| before.primary.as_ref());
        let changed = before.is_some_and(|before| before.incarnation != after.incarnation);
        if let (Some(old), true) = (old, changed) {
            self.truth.failovers += 1;
            // SAFE-2 and SAFE-7, by what really runs: no earlier primary of this node, on any machine.
            for (one, _) in self.acting().into_iter().filter(|(one, _)| &one.node == node) {
                let detail =
                    format!("runs on {} while {} is replaced in epoch {}", one.host, old.host, after.epoch);
                self.fail(format!("SAFE-2: the primary of {node} {detail}"));
            }
        }
        if let Some(before) = before {
            if changed {
                self.check_fresh_start(node, (before, &after));
            }
            self.check_let_go(node, (before, &after));
        }
        if after.state_wait.is_some() {
            self.truth.waits_for_state_since.entry(node.clone()).or_insert(self.now);
        } else {
            self.truth.waits_for_state_since.remove(node);
        }
        if let Some(before) = before {
            if after.epoch < before.epoch || after.incarnation < before.incarnation {
                self.fail(format!("SAFE-4: the epoch of {node} fell"));
            }
            let moved = after.primary.as_ref().map(|primary| &primary.host) != old.map(|old| &old.host);
            self.truth.migrations += u64::from(moved && !changed && old.is_some());
        }
    }

    /// SAFE-3: what is restored is the newest state of its node, or an older image of the very same.
    pub(crate) fn restored(
        &mut self,
        node: &NodeId,
        host: &HostId,
        from: Option<CheckpointId>,
        generation: u64,
    ) {
        self.truth.restores += 1;
        if self.truth.newest.get(node).is_some_and(|newest| *newest != generation) {
            let detail = format!("state {generation}, where {:?} ran last", self.truth.newest.get(node));
            self.fail(format!(
                "SAFE-3: {node} is restored on {host} from a state that was given up: {detail}"
            ));
        }
        let from = from.map_or_else(|| "that it does not know any more".to_owned(), |id| id.to_string());
        self.note(format!("{node} runs again on {host} from checkpoint {from}"));
    }

    /// What a healed world still lacks; nothing once it has come to rest.
    pub(crate) fn lacking(&self) -> Vec<String> {
        let mut lacking = Vec::new();
        lacking.extend(self.candidate_set().map(|set| format!("set {set} is still a candidate")));
        let draining: BTreeSet<HostId> = self.draining();
        let staying = self.machines.len() - draining.len();
        for (host, machine) in &self.machines {
            if !machine.agent.as_ref().is_some_and(|agent| agent.has_recovered) {
                lacking.push(format!("{host} has no lease"));
            }
            lacking.extend(self.lacking_change(host));
        }
        if self.machines.values().filter(|machine| machine.agent.as_ref().is_some_and(|a| a.leads())).count()
            != 1
        {
            lacking.push("not exactly one leads".to_owned());
        }
        for (node, record) in self.nodes() {
            lacking.extend(self.lacking_of(node, record, staying).map(|what| format!("{node} {what}")));
            if record.members().any(|member| draining.contains(&member.host)) {
                lacking.push(format!("{node} has a member on a draining host"));
            }
        }
        lacking.extend(self.orphans(&draining));
        lacking
    }

    fn draining(&self) -> BTreeSet<HostId> {
        let drains = |host: &&HostId| self.truth.store().intent(host).drain;
        self.machines.keys().filter(drains).cloned().collect()
    }

    /// What a member that runs there has: its life, and the windows that it has sent.
    fn member(&self, host: &HostId, instance: Option<InstanceId>) -> Option<(u64, Option<(u64, Epoch)>)> {
        let shown = |one: &Instance<Memory>| (one.memory().life, one.memory().windows);
        let hypervisor = &self.machine(host).hypervisor;
        hypervisor.look(instance?, |one| is_member(one).then(|| shown(one))).flatten()
    }

    fn lacking_of(&self, node: &NodeId, record: &NodeRecord, staying: usize) -> Option<String> {
        let Some(primary) = &record.primary else { return Some("has no primary".to_owned()) };
        let Some((_, windows)) = self.member(&primary.host, primary.instance) else {
            return Some(format!("has no running primary on {}", primary.host));
        };
        if record.migration.is_some() {
            return Some("is moving".to_owned());
        }
        let wanted: usize = record.spec.labels.get("backups").and_then(|text| text.parse().ok()).unwrap_or(1);
        if record.backups.len() != wanted.min(staying.saturating_sub(1)) {
            return Some(format!("has {} backups", record.backups.len()));
        }
        for backup in &record.backups {
            let whole = if record.holds_places(node.role()) {
                let known = self.truth.store().view().protection(node, record);
                known.is_some_and(|known| known.is_fresh_at(backup))
            } else {
                self.member(&backup.host, backup.instance).is_some()
            };
            if !whole {
                return Some(format!("has no whole backup on {}", backup.host));
            }
        }
        if node.role() == Role::Execution {
            let display = self.record(&NodeId::display(node.terminal()))?;
            let screen = display.primary.as_ref()?;
            let life = self.member(&screen.host, screen.instance).map(|(life, _)| life);
            if windows != life.map(|life| (life, record.incarnation)) {
                return Some("has not sent its windows".to_owned());
            }
        }
        None
    }

    fn orphans(&self, draining: &BTreeSet<HostId>) -> Vec<String> {
        let mut orphans = Vec::new();
        for (host, machine) in &self.machines {
            let named = |instance: &InstanceId| {
                self.nodes().any(|(_, record)| {
                    record.members().any(|member| &member.host == host && member.instance == Some(*instance))
                })
            };
            let mut here = Vec::new();
            machine.hypervisor.each(|instance, one| {
                here.push((instance, one.fact().memory, one.memory().node.is_some()));
            });
            let unnamed = here.iter().filter(|(instance, ..)| !named(instance)).count();
            let pool = usize::try_from(POOL.idle).unwrap_or(usize::MAX);
            let taken: MiB = here.iter().map(|(_, memory, _)| *memory).sum();
            if taken > machine.memory {
                orphans.push(format!("{host} runs {taken} of {}", machine.memory));
            }
            if draining.contains(host) && !here.is_empty() {
                orphans.push(format!("{host} drains and is not empty"));
            } else if unnamed > pool + 1 {
                orphans.push(format!("{host} has {unnamed} instances that no node names"));
            }
            for (instance, _, deployed) in here {
                if !named(&instance) && deployed {
                    orphans.push(format!("{host} has orphan {instance}"));
                }
            }
            for node in machine.images.keys() {
                if self.record(node).is_none() {
                    orphans.push(format!("{host} has images of {node}, which is no more"));
                }
            }
        }
        orphans
    }
}
