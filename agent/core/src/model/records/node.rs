//! Owns what is read from a node's record without anything else.
//!
//! Promises: as `records`. Must not do: decide.

use std::collections::BTreeSet;

use super::{Member, NodeRecord, NodeSpec, Origin};
use crate::model::ids::{Epoch, HostId, InstanceId, Role};

impl NodeRecord {
    /// A node for which nothing has been decided yet.
    #[must_use]
    pub fn new(spec: NodeSpec, token: String) -> Self {
        Self {
            spec,
            epoch: Epoch(0),
            incarnation: Epoch(0),
            primary: None,
            backups: Vec::new(),
            migration: None,
            token,
            incident: None,
            cooldowns: Vec::new(),
            failures: Vec::new(),
            keepers: BTreeSet::new(),
            state_wait: None,
        }
    }

    /// All members, the primary first.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.primary.iter().chain(&self.backups)
    }

    /// From which epoch on a host speaks of this life of a member: an instance keeps its id when it is restored, so its
    /// host may still report an earlier life of it.
    #[must_use]
    pub fn since(&self, member: &Member) -> Epoch {
        match member.origin {
            Origin::Restored(_) => self.incarnation,
            Origin::Idle | Origin::Created | Origin::Promoted | Origin::Migrated | Origin::Reserved => {
                Epoch(0)
            }
        }
    }

    /// Whether a member of this node is (or is coming) on `host`.
    #[must_use]
    pub fn touches(&self, host: &HostId) -> bool {
        self.members().any(|member| &member.host == host)
            || self.migration.as_ref().is_some_and(|migration| &migration.to == host)
    }

    /// The instance that this node has, or awaits, on `host`; none for a reserved place.
    #[must_use]
    pub fn instance_on(&self, host: &HostId) -> Option<InstanceId> {
        let arriving = self.migration.as_ref().filter(|migration| &migration.to == host);
        let member = self.members().find(|member| &member.host == host);
        member.or(arriving.and(self.primary.as_ref()))?.instance
    }

    /// The instance whose state is this node's: it keeps its id through restores and live migrations, and a fresh start has
    /// another. A checkpoint of another instance is of a life that was given up, or of a deleted node of this name.
    #[must_use]
    pub fn state_of(&self) -> Option<InstanceId> {
        self.primary.as_ref()?.instance
    }

    /// The hosts that may have checkpoints of this node, each once: the backups', and those that were.
    pub fn keeping(&self) -> impl Iterator<Item = &HostId> {
        let backups = self.backups.iter().map(|backup| &backup.host);
        backups.chain(self.keepers.iter().filter(|host| self.backups.iter().all(|one| &one.host != *host)))
    }

    /// Whether backups of this node are reserved places rather than warm instances.
    #[must_use]
    pub fn holds_places(&self, role: Role) -> bool {
        role == Role::Execution && self.spec.protected
    }
}
