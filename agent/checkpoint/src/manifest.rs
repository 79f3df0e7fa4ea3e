//! What is known of a checkpoint: JSON, versioned, with its own digest.
//!
//! Promises: a manifest with any changed character of meaning is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use understudy_core::model::ids::{InstanceId, NodeId};
use understudy_core::model::records::CheckpointId;
use understudy_core::model::units::{MiB, UnixMillis};

use crate::digest::Digest;

const VERSION: u32 = 1;
/// Far above any manifest; what is longer is none.
pub(crate) const BYTES_MAX: u64 = 1 << 20;
/// How much of an image is checked each time it is offered. It covers libvirt's header and domain XML, without which
/// nothing restores; the rest was checked when it arrived, and again by [`crate::ImageStore::verify`].
pub(crate) const HEAD_BYTES: usize = 64 << 10;

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
    /// What the sender said of it.
    pub description: Description,
    /// Size of the image.
    pub bytes: u64,
    /// Digest of the image.
    pub digest: Digest,
    /// Digest of the image's first 64 KiB.
    pub head: Digest,
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
    /// The image is not there.
    #[error("its image is missing")]
    Missing,
    /// The image is longer or shorter than it was.
    #[error("its image has {found} bytes, it had {expected}")]
    Size {
        /// As the manifest says.
        expected: u64,
        /// On the disk.
        found: u64,
    },
    /// The image's beginning has changed.
    #[error("the beginning of its image has changed")]
    Head,
    /// Something in the image has changed.
    #[error("its image has changed")]
    Content,
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
