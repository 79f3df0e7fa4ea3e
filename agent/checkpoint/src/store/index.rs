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

/// How many complete checkpoints of a node are kept: the newest, and the one before it should the newest be damaged.
const GENERATIONS: usize = 2;
/// How many are kept that are newer than what the cluster's record names: a write that names one may be on its way. The
/// sender waits for each write's outcome, so that there are one or two.
pub(super) const NEWER: usize = 8;

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

    /// What nothing that is kept needs, the newest first: so that what is left has what it adds to at every moment.
    pub(super) fn old(&self) -> Vec<CheckpointId> {
        let needed: BTreeSet<CheckpointId> =
            self.kept().flat_map(|id| std::iter::once(id).chain(self.chain(id).map(|(id, _)| id))).collect();
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
        self.0.entry(node.clone()).or_default().complete.insert(id, Some(link));
    }
}
