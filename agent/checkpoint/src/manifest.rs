//! What is known of a checkpoint: JSON, versioned, with its own digest.
//!
//! Promises: a manifest with any changed character of meaning is refused.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use understudy_core::model::ids::{InstanceId, NodeId};
use understudy_core::model::records::CheckpointId;
use understudy_core::model::units::{MiB, UnixMillis};

use crate::digest::Digest;
use crate::layout;

/// 1 was of whole images.
const VERSION: u32 = 2;
/// Far above any manifest; what is longer is none.
pub(crate) const BYTES_MAX: u64 = 1 << 20;

/// What the caller knows of the state that it hands in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The instance whose state it is.
    pub instance: InstanceId,
    /// When the guest's state was taken.
    pub taken: UnixMillis,
    /// How long the guest stood still for it, in milliseconds.
    pub pause_ms: u64,
    /// The guest's memory.
    pub memory: MiB,
    /// What a host must have to restore it (machine type, emulator version, …), as the caller likes.
    pub domain: BTreeMap<String, String>,
}

/// A complete checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The node.
    pub node: NodeId,
    /// Which of its checkpoints.
    pub id: CheckpointId,
    /// The checkpoint that it adds to; none where it is whole by itself.
    pub base: Option<CheckpointId>,
    /// What the sender said of it.
    pub description: Description,
    /// Size of its segment.
    pub bytes: u64,
    /// Digest of all pages of the guest.
    pub root: Digest,
    /// Digest of the rest of its state.
    pub state: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    version: u32,
    manifest: Manifest,
    /// Of the manifest as this crate writes it.
    check: Digest,
}

/// Why a checkpoint that was once complete is not offered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The manifest is not one, or not the one that was written.
    #[error("its manifest is damaged: {0}")]
    Manifest(String),
    /// Another release wrote it.
    #[error("its manifest has version {0}, which this release does not know")]
    Version(u32),
    /// The manifest lies under another checkpoint's name.
    #[error("its manifest is of another checkpoint")]
    Misplaced,
    /// Its segment is not there.
    #[error("the segment {0} is missing")]
    Missing(String),
    /// A segment is longer or shorter than it was.
    #[error("the segment {segment} has {found} bytes, it had {expected}")]
    Size {
        /// Its file's name.
        segment: String,
        /// As the manifest says.
        expected: u64,
        /// On the disk.
        found: u64,
    },
    /// What it adds to is not there.
    #[error("checkpoint {0}, which it adds to, is missing")]
    Base(CheckpointId),
    /// What it adds to is damaged.
    #[error("checkpoint {0}, which it adds to, is damaged")]
    Earlier(CheckpointId, #[source] Box<Damage>),
    /// Something in a segment has changed.
    #[error("the segment {segment} has changed: {what}")]
    Content {
        /// Its file's name.
        segment: String,
        /// What was found.
        what: String,
    },
    /// An image that was made of it is not what it is.
    #[error("the image that was made of it is damaged: {0}")]
    Image(String),
}

impl Damage {
    /// Which of the checkpoints that one consists of this is found in.
    pub(crate) fn part_of(&self, id: CheckpointId) -> CheckpointId {
        match self {
            Self::Manifest(_) | Self::Version(_) | Self::Misplaced | Self::Image(_) => id,
            Self::Missing(segment) | Self::Size { segment, .. } | Self::Content { segment, .. } => {
                layout::segment_of(Path::new(segment)).map_or(id, |(of, _)| of)
            }
            Self::Base(base) => *base,
            Self::Earlier(base, damage) => damage.part_of(*base),
        }
    }
}

pub(crate) fn encode(manifest: &Manifest) -> Vec<u8> {
    let envelope = Envelope { version: VERSION, manifest: manifest.clone(), check: check(manifest) };
    let mut bytes = serde_json::to_vec_pretty(&envelope).expect("a manifest is plain data with text keys");
    bytes.push(b'\n');
    bytes
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest, Damage> {
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| Damage::Manifest(error.to_string()))?;
    // The version first: a later one may have a form that this release cannot read.
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    match version.and_then(|version| u32::try_from(version).ok()) {
        None => return Err(Damage::Manifest("it has no version".to_owned())),
        Some(VERSION) => {}
        Some(other) => return Err(Damage::Version(other)),
    }
    let envelope: Envelope =
        serde_json::from_value(value).map_err(|error| Damage::Manifest(error.to_string()))?;
    if check(&envelope.manifest) == envelope.check {
        Ok(envelope.manifest)
    } else {
        Err(Damage::Manifest("it does not match its digest".to_owned()))
    }
}

fn check(manifest: &Manifest) -> Digest {
    Digest::of(&serde_json::to_vec(manifest).expect("a manifest is plain data with text keys"))
}

#[cfg(test)]
#[path = "manifest/tests.rs"]
mod tests;
