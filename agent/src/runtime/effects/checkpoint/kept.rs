//! Owns what is done with the checkpoints that are kept here for others, once their sender has its answer: an image is made
//! ready, and what they take is kept within its bound.
//!
//! Promises: it keeps no sender waiting; what goes wrong is told, and is tried again at the next checkpoint. Must not do:
//! choose what is kept.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use understudy_core::model::ids::NodeId;

use crate::exit::chain;
use crate::runtime::{Event, Parts};

/// Under which key the conditions are told.
const READY: &str = "ready images";

/// Does it for a node that has got a checkpoint, or for all after a start.
pub fn keep_ready(parts: &Arc<Parts>, events: &UnboundedSender<Event>, nodes: Vec<NodeId>) {
    let (mine, events) = (parts.clone(), events.clone());
    parts.tasks.block("keeping of checkpoints", move || {
        for node in &nodes {
            if let Err(error) = mine.ready_images.refresh(node) {
                tracing::warn!(%node, error = %chain(&error), "no image of its checkpoints is kept ready");
            }
        }
        tell(&mine, &events);
        for node in &nodes {
            if let Err(error) = mine.images.compact(node) {
                tracing::warn!(%node, error = %chain(&error), "its checkpoints are kept as they came: see the room on their disk");
            }
        }
    });
}

/// Says for which nodes the budget leaves no room.
fn tell(parts: &Parts, events: &UnboundedSender<Event>) {
    let left_out: Vec<String> = parts.ready_images.left_out().iter().map(ToString::to_string).collect();
    let text = (!left_out.is_empty()).then(|| {
        format!(
            "{}: no image is kept ready, a restore here makes it first: give more memory to host.ready_images_mib",
            left_out.join(", ")
        )
    });
    // Only a runtime that has ended does not take it.
    let _ = events.send(Event::Condition { about: READY, text });
}
