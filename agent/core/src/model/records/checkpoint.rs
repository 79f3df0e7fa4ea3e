//! Owns what is said of a node's checkpoints: which there are, by the word of a host that has them, and how old they are,
//! by the word of the primary's host.
//!
//! Promises: as `records`; the first is never written to the store, and the second only when it changes from one of a few
//! words to another. Must not do: decide.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Member;
use crate::model::ids::{Epoch, HostId, InstanceId};
use crate::model::units::UnixMillis;

/// Names one checkpoint of a node. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointId {
    /// The epoch of the primary that it was taken of.
    pub epoch: Epoch,
    /// Grows within the epoch: milliseconds since the primary's host was booted, or one more than the last.
    pub sequence: u64,
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.sequence)
    }
}

/// A complete checkpoint, as the host that has it durably says (SAFE-3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Which.
    pub id: CheckpointId,
    /// When the guest's state was taken.
    pub taken: UnixMillis,
    /// The instance whose state it is.
    pub instance: InstanceId,
    /// How long the guest stood still for it, in milliseconds.
    pub pause_ms: u64,
}

/// What a host has of a node's checkpoints, by its own word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Those that are complete and durable, and not known to be damaged.
    pub complete: Vec<Checkpoint>,
    /// Whether another one is on its way there.
    #[serde(default)]
    pub arriving: bool,
    /// Whether there may be more: something of it could not be read, which says nothing of whether it is damaged.
    #[serde(default)]
    pub unsure: bool,
}

/// How old the newest checkpoint that a host has is beside those of other hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Age {
    /// It was taken within a few intervals.
    Fresh,
    /// It was not: newer ones do not come to that host.
    Behind,
}

/// What a backup's host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Newest {
    /// The backup's [`Member::place`]: a host that is a backup again may have dropped what it had before.
    pub place: u64,
    /// How new.
    pub age: Age,
}

/// How a node's state is protected, by the word of its primary's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protection {
    /// The incarnation of the node that is spoken of.
    pub incarnation: Epoch,
    /// The backups' hosts that have a checkpoint of it. A host without one is not listed.
    pub hosts: BTreeMap<HostId, Newest>,
    /// What a copy of a checkpoint takes, in bytes: rounded up to a power of two, and followed downwards only when it is a
    /// quarter of that.
    pub bytes: u64,
}

impl Protection {
    /// How new a backup's newest checkpoint is; none where it has none.
    #[must_use]
    pub fn age_at(&self, backup: &Member) -> Option<Age> {
        let newest = self.hosts.get(&backup.host);
        newest.filter(|newest| newest.place == backup.place).map(|newest| newest.age)
    }

    /// Whether a backup's newest checkpoint is about as new as there is.
    #[must_use]
    pub fn is_fresh_at(&self, backup: &Member) -> bool {
        self.age_at(backup) == Some(Age::Fresh)
    }

    /// Whether a host got the newest checkpoints to the last, whatever has become of its part.
    #[must_use]
    pub fn was_fresh_on(&self, host: &HostId) -> bool {
        self.hosts.get(host).is_some_and(|newest| newest.age == Age::Fresh)
    }
}
