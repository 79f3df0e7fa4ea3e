//! Owns what is known of the folder without looking: which checkpoints of each node are complete, what each adds to, what is
//! kept, and the highest epoch seen.
//!
//! Promises: nothing is called old that something kept adds to; nothing is said to be complete that is known not to be whole.
//! Must not do: read or write files.
//!
//! Cost: some 100 bytes for each checkpoint that is kept, two dozen of a node at the most; a look at a node's is O(those), and
//! what is said of all of them O(their chains), a few hundred steps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use understudy_core::model::ids::{Epoch, InstanceId, NodeId};
use understudy_core::model::records::{Checkpoint, CheckpointId};
use understudy_core::model::units::UnixMillis;

use super::BeginError;
use crate::manifest::{Damage, Manifest};

/// How many complete checkpoints of a node are kept: the newest, and the one before it should the newest be damaged.
const GENERATIONS: usize = 2;

/// Segments that one checkpoint consists of at the most: several times what there are where they are made fewer in time.
pub(super) const CHAIN_MAX: usize = 4 * super::compact::ADDED;

/// What a checkpoint consists of, and what is said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    /// What it adds to; none where it is whole by itself.
    pub(crate) base: Option<CheckpointId>,
    /// Size of its segment.
    pub(crate) bytes: u64,
    /// When the guest's state was taken.
    pub(super) taken: UnixMillis,
    /// The instance whose state it is.
    pub(super) instance: InstanceId,
    /// How long the guest stood still for it.
    pause_ms: u64,
}

impl Link {
    pub(crate) fn of(manifest: &Manifest) -> Self {
        let Manifest { base, bytes, description, .. } = manifest;
        let (taken, instance) = (description.taken, description.instance);
        Self { base: *base, bytes: *bytes, taken, instance, pause_ms: description.pause_ms }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(super) seen: Epoch,
    /// Whether the disk says so too. Not so after a removal that failed half way.
    pub(super) seen_is_durable: bool,
    /// Complete by their names; without a link where the manifest cannot be read.
    pub(super) complete: BTreeMap<CheckpointId, Option<Link>>,
    /// The file that should say which epoch was seen and does not: nothing comes in for the node until it does, because
    /// nothing older could be refused. What is complete is there all the same.
    pub(super) unreadable: Option<PathBuf>,
    /// What was found damaged, until a checkpoint is complete that is whole by itself: nothing is added to any of these.
    pub(super) damaged: Option<(CheckpointId, Damage)>,
    /// What was found damaged, for as long as it is here: whatever has come since, none of these is offered to anybody.
    pub(super) unsound: BTreeSet<CheckpointId>,
    /// How many segments lie below the oldest that is kept before it is tried again to make them one: more after a failure.
    pub(super) merge_from: usize,
    /// What is being restored here: never pruned.
    pub(super) named: Option<CheckpointId>,
    /// Whose state came last. What is of another is of a life of the node that is over, or of another node of its name.
    pub(super) instance: Option<InstanceId>,
    /// Something of it could not be read when it was looked at.
    pub(super) unsure: bool,
}

impl Held {
    /// A checkpoint and all that it adds to, the newest first, as far as links tell.
    pub(super) fn chain(&self, id: CheckpointId) -> impl Iterator<Item = (CheckpointId, Link)> + '_ {
        let link = |id: CheckpointId| Some((id, self.complete.get(&id).copied().flatten()?));
        // What is added to is older, or it is no chain: a damaged manifest makes no endless one.
        std::iter::successors(link(id), move |(id, of)| link(of.base.filter(|base| base < id)?))
    }

    /// What is kept for itself: the newest of the instance whose state came last, and the named one. Newest first.
    fn kept(&self) -> impl Iterator<Item = CheckpointId> + '_ {
        let is_kept = |(at, id): &(usize, CheckpointId)| *at < GENERATIONS || self.named == Some(*id);
        self.current().enumerate().filter(is_kept).map(|(_, id)| id)
    }

    /// All but what is known to be of another instance, the newest first.
    fn current(&self) -> impl Iterator<Item = CheckpointId> + '_ {
        let of_another = |link: &Option<Link>| link.is_some_and(|link| Some(link.instance) != self.instance);
        let current = self.complete.iter().rev().filter(move |(_, link)| !of_another(link));
        current.map(|(id, _)| *id)
    }

    /// What nothing that is kept needs, the newest first: so that what is left has what it adds to at every moment. Where a
    /// manifest cannot be read it may add to anything that is older.
    pub(super) fn old(&self) -> Vec<CheckpointId> {
        let mut needed = BTreeSet::new();
        for id in self.kept() {
            let mut next = Some(id);
            while let Some(id) = next.filter(|id| needed.insert(*id)) {
                next = match self.complete.get(&id) {
                    Some(Some(link)) => link.base.filter(|base| *base < id),
                    Some(None) => {
                        needed.extend(self.complete.range(..id).map(|(id, _)| *id));
                        None
                    }
                    None => None,
                };
            }
        }
        self.complete.keys().rev().filter(|id| !needed.contains(id)).copied().collect()
    }

    /// All that can be restored as far as anybody knows, the oldest first.
    pub(super) fn offered(&self) -> Vec<Checkpoint> {
        let offer = |(id, link): (&CheckpointId, &Option<Link>)| {
            let Link { taken, instance, pause_ms, .. } = (*link)?;
            let is_sound = self.chain(*id).all(|(id, _)| !self.unsound.contains(&id));
            let is_whole = self.chain(*id).last().is_some_and(|(_, whole)| whole.base.is_none());
            (is_sound && is_whole).then_some(Checkpoint { id: *id, taken, instance, pause_ms })
        };
        self.complete.iter().filter_map(offer).collect()
    }

    /// The oldest that is kept for itself, with all that it adds to, the oldest first: what may become one segment.
    pub(super) fn below(&self) -> Vec<(CheckpointId, Link)> {
        let Some(oldest) = self.kept().last() else { return Vec::new() };
        let mut chain: Vec<(CheckpointId, Link)> = self.chain(oldest).collect();
        chain.reverse();
        chain
    }
}

/// What is in the folder, by node.
#[derive(Debug, Default)]
pub(crate) struct Index(pub(super) BTreeMap<NodeId, Held>);

impl Index {
    pub(crate) fn seen(&self, node: &NodeId) -> Epoch {
        self.0.get(node).map_or(Epoch(0), |held| held.seen)
    }

    pub(crate) fn newest(&self, node: &NodeId) -> Option<CheckpointId> {
        self.0.get(node)?.current().next()
    }

    /// Whether all that is kept of a node is known to be of another instance.
    pub(super) fn is_of_another(&self, node: &NodeId, instance: InstanceId) -> bool {
        let links = self.0.get(node).map(|held| &held.complete);
        let of_another = |link: &Option<Link>| link.is_some_and(|link| link.instance != instance);
        links.is_some_and(|links| !links.is_empty() && links.values().all(of_another))
    }

    /// Whether a checkpoint is newer than all that was seen of its node (SAFE-4). What is of another instance is no bound: it is
    /// older whatever its number is, because whoever offers this one is the node's primary.
    pub(crate) fn may_come(
        &self,
        node: &NodeId,
        id: CheckpointId,
        instance: InstanceId,
    ) -> Result<(), BeginError> {
        if self.is_of_another(node, instance) {
            return Ok(());
        }
        let seen = self.seen(node);
        if id.epoch < seen {
            return Err(BeginError::OldEpoch { node: node.clone(), id, seen });
        }
        match self.newest(node).filter(|newest| id <= *newest) {
            Some(newest) => Err(BeginError::NotNewer { node: node.clone(), id, newest }),
            None => Ok(()),
        }
    }

    /// What a look at a node's folder has found. What was found out about it meanwhile stays.
    pub(super) fn found(&mut self, node: &NodeId, new: Held) {
        let old = self.0.remove(node).unwrap_or_default();
        let (damaged, unsound, named) = (old.damaged.or(new.damaged.clone()), old.unsound, old.named);
        let seen = new.seen.max(old.seen);
        self.0.insert(node.clone(), Held { damaged, unsound, named, seen, ..new });
    }

    pub(crate) fn has(&self, node: &NodeId, id: CheckpointId) -> bool {
        self.0.get(node).is_some_and(|held| held.complete.contains_key(&id))
    }

    pub(crate) fn completed(&mut self, node: &NodeId, id: CheckpointId, link: Link) {
        let held = self.0.entry(node.clone()).or_default();
        held.complete.insert(id, Some(link));
        held.instance = Some(link.instance);
        if link.base.is_none() {
            held.damaged = None;
        }
    }

    /// Whether what a node has can be added to: it is not damaged as far as anybody knows, and the chain is not too long,
    /// which it becomes where no segments can be made fewer.
    pub(crate) fn can_be_added_to(&self, node: &NodeId, base: CheckpointId) -> bool {
        let held = self.0.get(node).filter(|held| held.damaged.is_none());
        held.is_some_and(|held| held.chain(base).count() <= CHAIN_MAX)
    }

    /// A manifest that could not be read, and can by now.
    pub(crate) fn learn(&mut self, node: &NodeId, id: CheckpointId, link: Link) {
        if let Some(known @ None) = self.0.get_mut(node).and_then(|held| held.complete.get_mut(&id)) {
            *known = Some(link);
        }
    }

    /// The one that is being restored, else the newest.
    pub(crate) fn wanted(&self, node: &NodeId) -> Option<CheckpointId> {
        let held = self.0.get(node)?;
        held.named.filter(|named| held.complete.contains_key(named)).or_else(|| self.newest(node))
    }

    pub(crate) fn found_damaged(&mut self, node: &NodeId, id: CheckpointId, damage: Damage) {
        if let Some(held) = self.0.get_mut(node) {
            held.unsound.extend([id, damage.part_of(id)]);
            held.damaged = Some((id, damage));
        }
    }
}
