//! Owns what is done with the checkpoints that are kept here for others, once their sender has its answer: an image is made
//! ready, and what they take is kept within its bound.
//!
//! Promises: it keeps no sender waiting; what goes wrong is told, and is tried again at the next checkpoint. Must not do:
//! choose what is kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::UnboundedSender;
use understudy_core::model::ids::NodeId;

use crate::exit::chain;
use crate::runtime::{Event, Parts};

/// Under which keys the conditions are told.
const READY: &str = "ready images";
const DAMAGED: &str = "damaged checkpoints";

/// The nodes that it is done for at present, and whether once more after that.
#[derive(Debug, Default)]
pub struct Keeping(Mutex<BTreeMap<NodeId, bool>>);

impl Keeping {
    /// Whether whoever asks is to do it: nobody does.
    fn begin(&self, node: &NodeId) -> bool {
        let mut keeping = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_done = keeping.contains_key(node);
        keeping.insert(node.clone(), is_done);
        !is_done
    }

    /// Whether it is to be done again: somebody asked meanwhile.
    fn again(&self, node: &NodeId) -> bool {
        let mut keeping = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if keeping.get(node) == Some(&true) {
            keeping.insert(node.clone(), false);
            return true;
        }
        keeping.remove(node);
        false
    }
}

/// Does it for a node that has got a checkpoint, or of which another is to be restored, or for all after a start. One thread
/// for each node at the most: who asks while it is done has it done once more.
pub fn keep_ready(parts: &Arc<Parts>, events: &UnboundedSender<Event>, nodes: Vec<NodeId>) {
    let (mine, events) = (parts.clone(), events.clone());
    parts.tasks.block("keeping of checkpoints", move || {
        for node in nodes.iter().filter(|node| mine.keeping.begin(node)) {
            loop {
                keep(&mine, node);
                if !mine.keeping.again(node) {
                    break;
                }
            }
        }
        tell(&mine, &events);
    });
}

fn keep(parts: &Parts, node: &NodeId) {
    if let Err(error) = parts.ready_images.refresh(node) {
        tracing::warn!(%node, error = %chain(&error), "no image of its checkpoints is kept ready");
    }
    if let Err(error) = parts.images.compact(node) {
        tracing::warn!(%node, error = %chain(&error), "its checkpoints are kept as they came: see the room on their disk");
    }
}

/// Says what is damaged, and for which nodes the budget leaves no room.
pub(in crate::runtime) fn tell(parts: &Parts, events: &UnboundedSender<Event>) {
    let (damaged, left_out) = (parts.images.damaged(), parts.ready_images.left_out());
    parts.metrics.kept(damaged.len(), left_out.len());
    let damaged: Vec<String> = damaged.iter().map(|error| chain(error)).collect();
    let damaged = (!damaged.is_empty()).then(|| {
        format!(
            "{}: it is not restored, and the next checkpoint is sent as a whole: look at the disk of {}",
            damaged.join("\n"),
            parts.config.state_dir.display()
        )
    });
    let left_out: Vec<String> = left_out.iter().map(ToString::to_string).collect();
    let left_out = (!left_out.is_empty()).then(|| {
        format!(
            "{}: no image is kept ready, a restore here makes it first: give more memory to host.ready_images_mib",
            left_out.join(", ")
        )
    });
    for (about, text) in [(DAMAGED, damaged), (READY, left_out)] {
        // Only a runtime that has ended does not take it.
        let _ = events.send(Event::Condition { about, text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_while_it_is_done_has_it_done_once_more_and_nobody_does_it_twice_at_once() {
        let (keeping, node): (_, NodeId) = (Keeping::default(), "alice/exec-1".parse().unwrap());
        assert!(keeping.begin(&node));
        assert!(!keeping.begin(&node) && !keeping.begin(&node));
        assert!(keeping.again(&node), "for both of them");
        assert!(!keeping.again(&node));
        assert!(keeping.begin(&node));
    }
}
