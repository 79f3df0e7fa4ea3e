//! Owns what is known of the folder without looking: which checkpoints of each node are complete, what each adds to, what is
//! kept, and the highest epoch seen.
//!
//! Promises: nothing is called old that something kept adds to. Must not do: read or write files.
//!
//! Cost: some 60 bytes for each checkpoint that is kept, two dozen of a node at the most; a look at a node's is O(those).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use understudy_core::model::ids::{Epoch, NodeId};
use understudy_core::model::records::CheckpointId;

use crate::manifest::Damage;

/// How many complete checkpoints of a node are kept: the newest, and the one before it should the newest be damaged.
const GENERATIONS: usize = 2;
/// How many are kept that are newer than what the cluster's record names: a write that names one may be on its way. The
/// sender waits for each write's outcome, so that there are one or two.
pub(super) const NEWER: usize = 8;

/// Segments that one checkpoint consists of at the most: several times what there are where they are made fewer in time.
pub(super) const CHAIN_MAX: usize = 4 * super::compact::ADDED;

/// What a checkpoint consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    /// What it adds to; none where it is whole by itself.
    pub(crate) base: Option<CheckpointId>,
    /// Size of its segment.
    pub(crate) bytes: u64,
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
    /// How many segments lie below the oldest that is kept before it is tried again to make them one: more after a failure.
    pub(super) merge_from: usize,
    /// Never pruned: what the cluster's record names; after a start, until that is known, all that is found.
    pub(super) named: BTreeSet<CheckpointId>,
}

impl Held {
    /// A checkpoint and all that it adds to, the newest first, as far as links tell.
    pub(super) fn chain(&self, id: CheckpointId) -> impl Iterator<Item = (CheckpointId, Link)> + '_ {
        let link = |id: CheckpointId| Some((id, self.complete.get(&id).copied().flatten()?));
        // What is added to is older, or it is no chain: a damaged manifest makes no endless one.
        std::iter::successors(link(id), move |(id, of)| link(of.base.filter(|base| base < id)?))
    }

    /// What is kept for itself: the newest, the named one, and what may be named in a moment. Newest first.
    fn kept(&self) -> impl Iterator<Item = CheckpointId> + '_ {
        let is_kept = |(at, id): &(usize, CheckpointId)| {
            let is_newer = self.named.last().is_none_or(|named| id > named);
            *at < if is_newer { NEWER } else { GENERATIONS } || self.named.contains(id)
        };
        self.complete.keys().rev().copied().enumerate().filter(is_kept).map(|(_, id)| id)
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
        self.0.get(node)?.complete.last_key_value().map(|(id, _)| *id)
    }

    pub(crate) fn has(&self, node: &NodeId, id: CheckpointId) -> bool {
        self.0.get(node).is_some_and(|held| held.complete.contains_key(&id))
    }

    pub(crate) fn completed(&mut self, node: &NodeId, id: CheckpointId, link: Link) {
        let held = self.0.entry(node.clone()).or_default();
        held.complete.insert(id, Some(link));
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

    /// The one that the cluster's record names, else the newest.
    pub(crate) fn wanted(&self, node: &NodeId) -> Option<CheckpointId> {
        let held = self.0.get(node)?;
        let named = held.named.last().filter(|named| held.complete.contains_key(named));
        named.copied().or_else(|| self.newest(node))
    }

    pub(crate) fn found_damaged(&mut self, node: &NodeId, id: CheckpointId, damage: Damage) {
        if let Some(held) = self.0.get_mut(node) {
            held.damaged = Some((id, damage));
        }
    }
}
