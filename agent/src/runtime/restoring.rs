//! Owns what the store of images is told of the restores of this host: which checkpoint each takes, and when it has it no more.
//!
//! Promises: it is told before core hears of the record that decides a restore, and once for each change. Must not do: choose a
//! checkpoint (the leader does), or restore (`effects::domain` does).
//!
//! Cost of a change in the store: O(nodes of this host).

use std::collections::BTreeMap;

use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::records::CheckpointId;
use understudy_core::model::view::{SharedNode, View};

use super::{Runtime, keep_ready};

impl Runtime {
    /// Has the checkpoints kept that primaries are being restored from here.
    pub(super) fn name_what_is_restored(&mut self) {
        let restoring = restored_on(self.cache.view(), &self.parts.config.host);
        let before = std::mem::replace(&mut self.restoring, restoring);
        let nodes = before.keys().chain(self.restoring.keys().filter(|node| !before.contains_key(*node)));
        let changed: Vec<NodeId> =
            nodes.filter(|node| before.get(*node) != self.restoring.get(*node)).cloned().collect();
        for node in &changed {
            self.parts.images.name(node, self.restoring.get(node).copied());
        }
        // A restore takes the image that is ready, or makes its own: nothing is made beside it.
        let over: Vec<NodeId> =
            changed.into_iter().filter(|node| !self.restoring.contains_key(node)).collect();
        if !over.is_empty() {
            keep_ready(&self.parts, &self.sender, over);
        }
    }
}

/// The nodes whose primary is to be restored on this host and is not ready yet, each with the checkpoint.
fn restored_on(view: &View, host: &HostId) -> BTreeMap<NodeId, CheckpointId> {
    let restored = |(node, known): (&NodeId, &SharedNode)| {
        let record = &known.value;
        let primary = record.primary.as_ref().filter(|primary| &primary.host == host)?;
        let id = primary.origin.restored().filter(|_| !view.is_ready(record, primary))?;
        Some((node.clone(), id))
    };
    view.nodes.on_host(host).filter_map(restored).collect()
}
