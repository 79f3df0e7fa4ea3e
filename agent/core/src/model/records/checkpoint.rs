//! Owns the record of a node's checkpoints.
//!
//! Promises: as `records`. Must not do: decide.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::ids::{Epoch, HostId, InstanceId};
use crate::model::units::UnixMillis;

/// Names one checkpoint of a node. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointId {
    /// The epoch of the primary that it was taken of.
    pub epoch: Epoch,
    /// Counts from 1 within the epoch.
    pub sequence: u64,
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.sequence)
    }
}

/// The newest complete checkpoint of a node: written only after every host in `hosts` has it durably (SAFE-3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRecord {
    /// The image. After a restore this is the image that was restored, the checkpoint 0 of the new epoch.
    pub id: CheckpointId,
    /// The epoch for which it holds; greater than `id.epoch` after a restore.
    pub valid: Epoch,
    /// When the guest's state was taken.
    pub taken: UnixMillis,
    /// The instance whose state it is.
    pub instance: InstanceId,
    /// How long the guest stood still for it, in milliseconds.
    pub pause_ms: u64,
    /// Size of the image in bytes.
    pub bytes: u64,
    /// The hosts that have it.
    pub hosts: Vec<HostId>,
    /// The one before it, with the hosts that have that one and not the newest: their state is older, and better than none.
    /// After a restore the other one of the two, as long as nothing newer is recorded: should the one that was restored be
    /// damaged, or its host be lost with it, there is that. Itself without an earlier one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier: Option<Box<CheckpointRecord>>,
}

impl CheckpointRecord {
    /// The newest, or the one that was restored, then the other.
    pub fn copies(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.earlier.as_deref())
    }

    /// The newest that a host has.
    #[must_use]
    pub fn on(&self, host: &HostId) -> Option<&Self> {
        self.copies().find(|copy| copy.hosts.contains(host))
    }
}
