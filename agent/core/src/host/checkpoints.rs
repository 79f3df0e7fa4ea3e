//! Owns the checkpoints that this host takes of its primaries: when one is due, to which hosts it goes, when a copy to one
//! of them is given up, and with which hosts it is recorded.
//!
//! ```text
//!  due ─▶ Saving ─▶ Copying ── each host: accepting ─▶ durable, given up, or gone
//!            │         ├── some are durable, the others have ended or are late ─▶ Record
//!            │         └── all have ended, all that are durable are recorded ──▶ Discard
//!            └── the node's record has changed ─▶ Discard, and the next one soon
//! ```
//!
//! A copy counts for each backup that has it. The record moves on to the newest as soon as one host has it durably, and
//! names those hosts; beside it stands the one before, with the hosts that have that one only, so that the loss of the newest
//! costs an interval or two of the state and not all of it. Meanwhile the node has fewer whole backups than it asked for: the
//! leader reports that as a deficit, and puts another host in the place of one that takes no copies for a while.
//!
//! Promises: a record names only hosts that have the image durably (SAFE-3), and is written only over the very revision of
//! the node's record that the checkpoint was decided from (SAFE-4): a receiver takes an image under that revision alone, so
//! that no host is named which was no backup in between and has dropped it. Another host that is slow, stands still or is
//! gone costs a node's other backups an interval and 10 s at the most, and other nodes nothing. What cannot be recorded any
//! more is not gone on with. Must not do: send, write, or read a clock.

mod copying;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::input::{CopyEvent, Effect, Saved};
use super::{HostAction, Local, Situation};
use crate::bounds::{Bounds, COPY_ATTEMPTS, COPY_PATIENCE};
use crate::death::CopyFault;
use crate::model::ids::{Epoch, HostId, InstanceId, NodeId};
use crate::model::records::{CheckpointId, NodeRecord};
use crate::model::units::Boottime;
use crate::model::view::View;
use copying::Copying;
pub(super) use copying::Over;

/// A backup's host, as a copy is sent to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The host.
    pub host: HostId,
    /// The number of its lease: one that has another by now may have lost what it had accepted.
    pub lease: u64,
    /// `host:port` of its agent's API.
    pub api: String,
    /// The newest checkpoint that it is known to have: only what changed since goes there. None: all of it does.
    pub base: Option<CheckpointId>,
}

/// The newest checkpoint that each backup's host is known to have durably, and under which lease.
pub type Bases = BTreeMap<(NodeId, HostId), (CheckpointId, u64)>;

/// How many intervals lie between two checkpoints while a live migration leaves or comes, or is to leave: both copy whole
/// memories, and a migration is the longer the more it shares. On a draining host one migration follows the other, and a
/// checkpoint that begins between them is out of date before it is complete.
const WHILE_MOVING: u32 = 3;

/// A checkpoint of this primary, if one is due: to every backup's host that has reported and does not rest.
pub(super) fn due(
    situation: &Situation<'_>,
    node: &NodeId,
    record: &NodeRecord,
    (instance, local): (InstanceId, &Local),
) -> Option<HostAction> {
    let moving = situation.draining || situation.is_moving();
    let interval = situation.checkpoint_interval * if moving { WHILE_MOVING } else { 1 };
    let due = situation
        .last_checkpoint
        .get(node)
        .is_none_or(|taken| situation.now.boottime.since(*taken) >= interval);
    if !record.spec.protected || record.migration.is_some() || local.paused || !due {
        return None;
    }
    let to: Vec<Destination> = record
        .backups
        .iter()
        .filter(|backup| !situation.resting.contains(&(node.clone(), backup.host.clone())))
        .filter_map(|backup| {
            let facts = situation.hosts.get(&backup.host)?.current_facts()?;
            let (host, api) = (backup.host.clone(), facts.api.clone());
            let known = situation.bases.get(&(node.clone(), host.clone()));
            let base = known.filter(|(_, lease)| *lease == facts.lease).map(|(id, _)| *id);
            Some(Destination { host, lease: facts.lease, api, base })
        })
        .collect();
    let revision = situation.nodes.get(node)?.revision;
    let (node, epoch) = (node.clone(), record.epoch);
    (!to.is_empty()).then_some(HostAction::Checkpoint { node, instance, epoch, revision, to })
}

/// Copies that do not come to a host.
#[derive(Debug, Clone)]
struct Trouble {
    fault: CopyFault,
    attempts: u32,
    since: Boottime,
    lease: u64,
    /// It counts as one that takes none, and is left alone until then.
    rests_until: Option<Boottime>,
}

/// What is known of the checkpoints of this host's primaries.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    /// When the last one of each node was begun here.
    pub(super) last_checkpoint: BTreeMap<NodeId, Boottime>,
    sequences: BTreeMap<NodeId, (Epoch, u64)>,
    under_way: BTreeMap<NodeId, Copying>,
    troubles: BTreeMap<(NodeId, HostId), Trouble>,
    pub(super) bases: Bases,
}

/// What follows from a look at all that is under way.
#[derive(Debug, Default)]
pub(super) struct Reviewed {
    pub(super) effects: Vec<Effect>,
    /// The instances of which a checkpoint is over, and how.
    pub(super) over: Vec<(InstanceId, Over)>,
}

impl Checkpoints {
    /// The number of the next one: it counts on from the newest that the store names and the last that was tried.
    pub(super) fn count(&mut self, node: &NodeId, epoch: Epoch, view: &View) -> CheckpointId {
        let known = view.checkpoints.get(node).filter(|known| known.value.id.epoch == epoch);
        let newest = known.map_or(0, |known| known.value.id.sequence);
        let tried = self.sequences.get(node).filter(|(of, _)| *of == epoch).map_or(0, |(_, tried)| *tried);
        let sequence = newest.max(tried) + 1;
        self.sequences.insert(node.clone(), (epoch, sequence));
        CheckpointId { epoch, sequence }
    }

    /// One begins with its being saved.
    pub(super) fn begin(
        &mut self,
        node: &NodeId,
        instance: InstanceId,
        (id, revision): (CheckpointId, u64),
        to: Vec<Destination>,
        now: Boottime,
    ) -> Option<Effect> {
        let before = self.last_checkpoint.insert(node.clone(), now);
        let copying = Copying::new(instance, id, revision, to, (before, now));
        let old = self.under_way.insert(node.clone(), copying);
        old.map(|old| Effect::Discard { node: node.clone(), id: old.id })
    }

    /// The state is saved; none when it could not be, or when nobody waits for it any more.
    pub(super) fn saved(&mut self, node: &NodeId, id: CheckpointId, saved: Option<Saved>, now: Boottime) {
        if let Some(copying) = self.under_way.get_mut(node).filter(|copying| copying.id == id) {
            copying.saved(saved, now);
        }
    }

    /// Something became of a copy, or of the record.
    pub(super) fn hear(&mut self, node: &NodeId, id: CheckpointId, event: CopyEvent, now: Boottime) {
        if let Some(copying) = self.under_way.get_mut(node).filter(|copying| copying.id == id) {
            copying.hear(event, now);
        }
    }

    /// Looks at all that is under way.
    pub(super) fn review(&mut self, view: &View, me: &HostId, bounds: &Bounds, now: Boottime) -> Reviewed {
        let mut reviewed = Reviewed::default();
        let mut over = Vec::new();
        for (node, copying) in &mut self.under_way {
            if let Some(how) = copying.step(node, view, bounds, now, &mut reviewed.effects) {
                over.push((node.clone(), how));
            }
        }
        for (node, how) in over {
            let Some(copying) = self.under_way.remove(&node) else { continue };
            // Nothing came of it, and it is no reason to wait for the next.
            if matches!(how, Over::Void | Over::Lacked) {
                self.last_checkpoint.remove(&node);
                let before = copying.checkpoint_before.map(|before| (node.clone(), before));
                self.last_checkpoint.extend(before);
            }
            self.judge(&node, &copying, bounds, now);
            reviewed.over.push((copying.instance, how));
        }
        self.forgive(view, me);
        reviewed
    }

    /// What has become of each copy is held for or against its host.
    fn judge(&mut self, node: &NodeId, copying: &Copying, bounds: &Bounds, now: Boottime) {
        for host in copying.lacking() {
            self.bases.remove(&(node.clone(), host.clone()));
        }
        for (to, end) in copying.ends_of_copies() {
            let key = (node.clone(), to.host.clone());
            let Some(fault) = end else {
                self.troubles.remove(&key);
                self.bases.insert(key, (copying.id, to.lease));
                continue;
            };
            let (fault, lease) = (fault.clone(), to.lease);
            let fresh = Trouble { fault, attempts: 0, since: now, lease, rests_until: None };
            let trouble = self.troubles.entry(key).or_insert(fresh);
            trouble.attempts = trouble.attempts.saturating_add(1);
            if trouble.attempts >= COPY_ATTEMPTS && now.since(trouble.since) >= COPY_PATIENCE {
                trouble.rests_until = Some(now + bounds.cooldown);
            }
        }
    }

    /// What is known of a host, and held against it, is forgotten once it is no backup any more, or has another lease.
    fn forgive(&mut self, view: &View, me: &HostId) {
        let is_backup = |(node, host): &(NodeId, HostId), of: u64| {
            let record = view.nodes.get(node).map(|known| &known.value);
            let mine = |record: &&NodeRecord| {
                record.primary.as_ref().is_some_and(|primary| &primary.host == me)
                    && record.backups.iter().any(|backup| &backup.host == host)
            };
            let lease = view.hosts.get(host).map(|seen| seen.lease.value.number);
            record.filter(mine).is_some() && lease == Some(of)
        };
        self.troubles.retain(|key, trouble| is_backup(key, trouble.lease));
        self.bases.retain(|key, (_, lease)| is_backup(key, *lease));
    }

    /// The backups' hosts that are left alone for now.
    pub(super) fn resting(&self, now: Boottime) -> BTreeSet<(NodeId, HostId)> {
        let rests = |trouble: &Trouble| trouble.rests_until.is_some_and(|until| until > now);
        self.troubles.iter().filter(|(_, trouble)| rests(trouble)).map(|(key, _)| key.clone()).collect()
    }

    /// When something may be to be done about one: it is due, a copy has taken too long, what is durable is recorded, a host
    /// is tried again.
    pub(super) fn due(&self, bounds: &Bounds) -> impl Iterator<Item = Boottime> {
        let interval = bounds.checkpoint_interval;
        let next = self
            .last_checkpoint
            .values()
            .flat_map(move |taken| [*taken + interval, *taken + interval * WHILE_MOVING]);
        let under_way = self.under_way.values().flat_map(move |copying| copying.due(interval));
        next.chain(under_way).chain(self.troubles.values().filter_map(|trouble| trouble.rests_until))
    }

    /// The backups' hosts that take no copies, by node.
    pub(super) fn faults(&self) -> BTreeMap<NodeId, BTreeMap<HostId, CopyFault>> {
        let mut faults: BTreeMap<NodeId, BTreeMap<HostId, CopyFault>> = BTreeMap::new();
        for ((node, host), trouble) in &self.troubles {
            if trouble.rests_until.is_some() {
                faults.entry(node.clone()).or_default().insert(host.clone(), trouble.fault.clone());
            }
        }
        faults
    }

    /// Nothing of what is under way counts any more.
    pub(super) fn stop(&mut self) -> Vec<Effect> {
        let stopped = std::mem::take(&mut self.under_way);
        stopped.into_iter().map(|(node, copying)| Effect::Discard { node, id: copying.id }).collect()
    }
}
