//! Owns the way to a host's word on which checkpoints of nodes it has: this host's own store of images, or a peer.
//!
//! Promises: nobody waits for a disk, nor for a peer beyond the limit; what could not be read here is looked at again, beside it.
//! Must not do: choose whom to ask.

use std::sync::Arc;
use std::time::Duration;

use understudy_core::bounds::CLOSED;
use understudy_core::model::ids::HostId;
use understudy_core::model::records::Kept;

use crate::exit::chain;
use crate::peers::{AskError, Asked, Closing, Peer, ask_copies};
use crate::runtime::Parts;

/// What `host`, whose agent is at `api`, has of these nodes, in their order.
///
/// # Errors
/// Why that is not known.
pub async fn kept_on(
    parts: &Arc<Parts>,
    (host, api): (&HostId, &str),
    asked: &[Asked],
    limit: Duration,
) -> Result<Vec<Kept>, AskError> {
    if host == &parts.config.host {
        return Ok(asked.iter().map(|asked| said(parts, asked)).collect());
    }
    ask_copies(Peer { host, address: api, security: &parts.security }, asked, limit).await
}

/// What this host has of a node.
pub fn said(parts: &Arc<Parts>, asked: &Asked) -> Kept {
    let kept = match asked.closing {
        Some(Closing { instance, epoch }) => {
            let kept = parts.images.close(&asked.node, (instance, epoch), CLOSED);
            tracing::debug!(node = %asked.node, %instance, %epoch, "a leader is told the checkpoints here, no more of this primary are taken");
            kept
        }
        None => parts.images.kept(&asked.node),
    };
    if kept.unsure {
        let (mine, node) = (parts.clone(), asked.node.clone());
        parts.tasks.block("look at checkpoints", move || {
            if let Err(error) = mine.images.look_again(&node) {
                tracing::warn!(%node, error = %chain(&error), "its checkpoints here cannot be read yet: see the disk of state_dir");
            }
        });
    }
    kept
}
