//! Owns the checkpoints that this host takes of its primaries: when one is due, to which hosts it goes, when a copy to one
//! of them is given up, and what this host says of how a node is protected.
//!
//! ```text
//!  due ─▶ Saving ─▶ Copying ── each host: accepting ─▶ durable, given up, or gone
//!            │         └── all have ended ─▶ Discard
//!            └── the node's record has changed ─▶ Discard, and the next one soon
//! ```
//!
//! A copy counts for each backup that has it, from when that host has it durably: nothing is written to the store for it. What
//! there is the backups' hosts say themselves when the leader asks them; this host reports in a word for each whether its newest
//! is about as new as there is ([`Age`]), which changes when a backup comes, goes, or takes no copies for a while. Then the
//! leader puts another host in its place.
//!
//! Promises: a host is reported only while it has a checkpoint of this life of the node durably (SAFE-3); a copy is gone on
//! with only under the very revision of the node's record that it was decided from (SAFE-4), and a receiver takes it under
//! that one alone. Another host that is slow, stands still or is gone costs a node's other backups an interval and 10 s at the
//! most, and other nodes nothing. Must not do: send, write, or read a clock.
//!
//! Cost, of a look: O(copies under way + backups of this host's primaries).

mod copying;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::input::{CopyEvent, Effect, Saved};
use super::{HostAction, Local, Situation};
use crate::bounds::{Bounds, COPY_ATTEMPTS, COPY_LATE, COPY_PATIENCE};
use crate::death::CopyFault;
use crate::model::ids::{Epoch, HostId, InstanceId, NodeId};
use crate::model::records::{Age, CheckpointId, Member, Newest, NodeRecord, Protection};
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
    /// The backup's [`Member::place`].
    pub place: u64,
}

/// The newest checkpoint that a backup's host is known to have durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// Which.
    pub id: CheckpointId,
    /// Under which of its leases it said so.
    pub lease: u64,
    /// In which of its places.
    pub place: u64,
    /// When.
    pub at: Boottime,
}

/// The same of all of them.
pub type Bases = BTreeMap<(NodeId, HostId), Base>;

/// How many intervals lie between two checkpoints while a live migration leaves or comes, or is to leave: both copy whole
/// memories, and a migration is the longer the more it shares. On a draining host one migration follows the other, and a
/// checkpoint that begins between them is out of date before it is complete.
const WHILE_MOVING: u32 = 3;

/// A host that has got nothing new for so many intervals, and a late copy, is behind the others: one more than lie between two
/// checkpoints while something moves.
const BEHIND: u32 = WHILE_MOVING + 1;

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
            let place = backup.place;
            let base =
                known.filter(|base| (base.lease, base.place) == (facts.lease, place)).map(|base| base.id);
            Some(Destination { host, lease: facts.lease, api, base, place })
        })
        .collect();
    let revision = situation.nodes.get(node)?.revision;
    let (node, epoch) = (node.clone(), record.epoch);
    (!to.is_empty()).then_some(HostAction::Checkpoint { node, instance, epoch, revision, to })
}

fn behind_after(bounds: &Bounds) -> Duration {
    bounds.checkpoint_interval * BEHIND + COPY_LATE
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
    /// What a copy of each node takes, as it is reported.
    sizes: BTreeMap<NodeId, u64>,
    /// What an earlier agent of this host reported, and when that was read: it stands until a copy says more.
    inherited: Option<(Boottime, BTreeMap<NodeId, Protection>)>,
}

/// What follows from a look at all that is under way.
#[derive(Debug, Default)]
pub(super) struct Reviewed {
    pub(super) effects: Vec<Effect>,
    /// The instances of which a checkpoint is over, and how.
    pub(super) over: Vec<(InstanceId, Over)>,
}

impl Checkpoints {
    /// The number of the next one: milliseconds since this host was booted, or one more than the last that was tried. A
    /// primary of one epoch stays on one boot of one host, so that whoever restarts this agent counts on, and asks nobody.
    pub(super) fn count(&mut self, node: &NodeId, epoch: Epoch, now: Boottime) -> CheckpointId {
        let tried = self.sequences.get(node).filter(|(of, _)| *of == epoch).map_or(0, |(_, tried)| *tried);
        let sequence = (now.0 / 1_000_000).max(tried + 1);
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
        if let Some(saved) = saved {
            let size = self.sizes.entry(node.clone()).or_default();
            if saved.bytes > *size || saved.bytes <= *size / 4 {
                *size = saved.bytes.next_power_of_two();
            }
        }
        if let Some(copying) = self.under_way.get_mut(node).filter(|copying| copying.id == id) {
            copying.saved(saved, now);
        }
    }

    /// Something became of a copy.
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
            let durable = copying.ends_of_copies().filter(|(_, fault)| fault.is_none()).map(|(to, _)| to);
            for to in durable {
                let key = (node.clone(), to.host.clone());
                if self.bases.get(&key).is_none_or(|base| base.id != copying.id) {
                    self.bases
                        .insert(key, Base { id: copying.id, lease: to.lease, place: to.place, at: now });
                }
            }
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
            let key = (node.clone(), host.clone());
            self.bases.remove(&key);
            self.outlives(&key);
        }
        for (to, end) in copying.ends_of_copies() {
            let key = (node.clone(), to.host.clone());
            let Some(fault) = end else {
                self.troubles.remove(&key);
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
        let in_place = |(node, host): &(NodeId, HostId), place: u64| {
            let record = view.nodes.get(node).map(|known| &known.value);
            let backups = record.into_iter().flat_map(|record| &record.backups);
            backups.into_iter().any(|backup| &backup.host == host && backup.place == place)
        };
        self.troubles.retain(|key, trouble| is_backup(key, trouble.lease));
        self.bases.retain(|key, base| is_backup(key, base.lease) && in_place(key, base.place));
        let bases = &self.bases;
        self.sizes.retain(|node, _| {
            let known = view.nodes.get(node).and_then(|known| known.value.primary.as_ref());
            known.is_some_and(|primary| &primary.host == me) || bases.keys().any(|(of, _)| of == node)
        });
    }

    /// What an earlier agent reported of the same primaries: what lies at the backups' hosts does not go with it.
    pub(super) fn inherit(&mut self, reported: &BTreeMap<NodeId, Protection>, now: Boottime) {
        if self.inherited.is_none() {
            self.inherited = Some((now, reported.clone()));
        }
    }

    /// What was inherited of a host counts no more.
    fn outlives(&mut self, (node, host): &(NodeId, HostId)) {
        if let Some((_, known)) = &mut self.inherited
            && let Some(known) = known.get_mut(node)
        {
            known.hosts.remove(host);
        }
    }

    /// The same of what was inherited, as far as it is said of backups that there are still.
    fn inherited(&self, view: &View, bounds: &Bounds, now: Boottime) -> BTreeMap<NodeId, Protection> {
        let Some((read, known)) = &self.inherited else { return BTreeMap::new() };
        let behind = now.since(*read) >= behind_after(bounds);
        let stands = |(node, known): (&NodeId, &Protection)| {
            let record = &view.nodes.get(node)?.value;
            let mut known = known.clone();
            known.hosts.retain(|host, newest| {
                let here = |backup: &Member| &backup.host == host && backup.place == newest.place;
                record.backups.iter().any(here)
            });
            if behind {
                known.hosts.values_mut().for_each(|newest| newest.age = Age::Behind);
            }
            let counts = known.incarnation == record.incarnation && !known.hosts.is_empty();
            counts.then(|| (node.clone(), known))
        };
        known.iter().filter_map(stands).collect()
    }

    /// How this host's primaries are protected: to be reported.
    pub(super) fn protection(
        &self,
        view: &View,
        bounds: &Bounds,
        now: Boottime,
    ) -> BTreeMap<NodeId, Protection> {
        let mut all = self.inherited(view, bounds, now);
        for ((node, host), base) in &self.bases {
            let incarnation = view.nodes.get(node).map(|known| known.value.incarnation);
            let Some(incarnation) = incarnation.filter(|since| base.id.epoch >= *since) else { continue };
            let behind = now.since(base.at) >= behind_after(bounds);
            let bytes = self.sizes.get(node).copied().unwrap_or_default();
            let fresh = || Protection { incarnation, hosts: BTreeMap::new(), bytes };
            let age = if behind { Age::Behind } else { Age::Fresh };
            let newest = Newest { place: base.place, age };
            let known = all.entry(node.clone()).or_insert_with(fresh);
            known.bytes = bytes;
            known.hosts.insert(host.clone(), newest);
        }
        all
    }

    /// The backups' hosts that are left alone for now.
    pub(super) fn resting(&self, now: Boottime) -> BTreeSet<(NodeId, HostId)> {
        let rests = |trouble: &Trouble| trouble.rests_until.is_some_and(|until| until > now);
        self.troubles.iter().filter(|(_, trouble)| rests(trouble)).map(|(key, _)| key.clone()).collect()
    }

    /// When something may be to be done about one: it is due, a copy has taken too long, a host is tried again, or is behind
    /// from then on.
    pub(super) fn due(&self, bounds: &Bounds) -> impl Iterator<Item = Boottime> {
        let interval = bounds.checkpoint_interval;
        let next = self
            .last_checkpoint
            .values()
            .flat_map(move |taken| [*taken + interval, *taken + interval * WHILE_MOVING]);
        let under_way = self.under_way.values().flat_map(move |copying| copying.due(interval));
        let inherited = self.inherited.iter().map(|(read, _)| *read);
        let behind = self.bases.values().map(|base| base.at).chain(inherited);
        let behind = behind.map(move |at| at + behind_after(bounds));
        let rests = self.troubles.values().filter_map(|trouble| trouble.rests_until);
        next.chain(under_way).chain(rests).chain(behind)
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
