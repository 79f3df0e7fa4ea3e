//! What the store says when something is not as it was asked for.
//!
//! Promises: each says what to do where an operator can do something. Must not do: decide what is tried again.

use std::io;
use std::path::PathBuf;

use understudy_core::model::ids::{Epoch, NodeId};
use understudy_core::model::records::CheckpointId;

use crate::manifest::Damage;
use crate::pages::{IngestError, SegmentError};

/// What the disk did not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be opened or made.
    #[error("cannot open the checkpoints' folder {0}: check its path and rights")]
    Open(PathBuf, #[source] io::Error),
    /// A new file cannot be made.
    #[error("cannot begin {0}: check the room on the checkpoints' disk")]
    Create(PathBuf, #[source] io::Error),
    /// A file cannot be written or made durable.
    #[error("cannot write {0}: check the room on the checkpoints' disk")]
    Write(PathBuf, #[source] io::Error),
    /// A file cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A file cannot be removed.
    #[error("cannot remove {0}")]
    Remove(PathBuf, #[source] io::Error),
    /// The highest epoch seen of a node is unreadable, so that nothing older could be refused.
    #[error(
        "the file {0} does not hold an epoch: write the node's epoch into it, or remove the node's folder"
    )]
    Epoch(PathBuf),
}

/// Why a checkpoint may not come in.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// It is of an epoch older than one that was seen (SAFE-4).
    #[error("checkpoint {id} of {node} is refused: epoch {seen} was seen")]
    OldEpoch {
        /// The node.
        node: NodeId,
        /// The checkpoint.
        id: CheckpointId,
        /// The highest epoch seen.
        seen: Epoch,
    },
    /// Its node's primary is dead, and it was said what this host has.
    #[error(
        "checkpoint {id} of {node} is refused: the primary that it is of is dead, and another takes over"
    )]
    Closed {
        /// The node.
        node: NodeId,
        /// The checkpoint.
        id: CheckpointId,
    },
    /// It, or a newer one, is complete already.
    #[error("checkpoint {id} of {node} is refused: {newest} is complete, count on from there")]
    NotNewer {
        /// The node.
        node: NodeId,
        /// The checkpoint.
        id: CheckpointId,
        /// The newest complete one.
        newest: CheckpointId,
    },
    /// The disk did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why there is no image to restore.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// This host has no such checkpoint.
    #[error("checkpoint {1} of {0} is not kept here")]
    Unknown(NodeId, CheckpointId),
    /// It was complete once and is damaged.
    #[error("checkpoint {1} of {0} cannot be used")]
    Damaged(NodeId, CheckpointId, #[source] Damage),
    /// The disk did not give it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a segment that arrives is no checkpoint. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It may not come in.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// The reader failed on the way.
    #[error("checkpoint {1} of {0} did not arrive whole: send it again")]
    Read(NodeId, CheckpointId, #[source] io::Error),
    /// It was announced as another.
    #[error("checkpoint {id} of {node} was announced, and {found} of {of} comes: send it again")]
    Other {
        /// The node that was announced.
        node: NodeId,
        /// The checkpoint that was announced.
        id: CheckpointId,
        /// The node whose segment it is.
        of: NodeId,
        /// The checkpoint that it makes.
        found: CheckpointId,
    },
    /// What has come is damaged, or breaks off.
    #[error("checkpoint {1} of {0} did not arrive as it was sent: send it again")]
    Segment(NodeId, CheckpointId, #[source] SegmentError),
    /// It does not make what was sent.
    #[error("checkpoint {1} of {0} is refused")]
    Ingest(NodeId, CheckpointId, #[source] Box<IngestError>),
    /// What it adds to is damaged here.
    #[error("checkpoint {1} of {0} is refused, what it adds to is damaged: send the whole")]
    Base(NodeId, CheckpointId, #[source] Box<ImageError>),
}

impl ReceiveError {
    /// Whether the sender believed that this host has something that it does not have: the whole is needed.
    #[must_use]
    pub fn lacks_base(&self) -> bool {
        match self {
            Self::Base(..) => true,
            Self::Ingest(_, _, error) => match **error {
                IngestError::OtherBase { .. } | IngestError::OtherBlocks | IngestError::OtherState { .. } => {
                    true
                }
                IngestError::OtherRest
                | IngestError::Rest
                | IngestError::TooLarge { .. }
                | IngestError::Page(_)
                | IngestError::NotStored(_)
                | IngestError::Order(_) => false,
            },
            Self::Begin(_) | Self::Read(..) | Self::Other { .. } | Self::Segment(..) => false,
        }
    }
}
