//! Owns what was before a revision, and the judgement of fresh starts: whether state was given up that still lies on a disk (SAFE-9).
//!
//! Promises: what really lies on the disks counts, and what hosts have said of it; nothing is asked of core. Must not do:
//! change anything but what it remembers of those words.

use std::collections::BTreeMap;

use understudy_core::bounds::{STATE_WAIT, STATE_WAIT_STEP};
use understudy_core::death::Death;
use understudy_core::keys::Key;
use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::records::{CheckpointId, CheckpointRecord, NodeRecord, Origin, Phase};
use understudy_core::model::view::SharedNode;
use understudy_store::Revision;

use crate::world::{World, millis};

/// One revision of the store: what was written, and the nodes as they were before.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) revision: Revision,
    pub(super) keys: Vec<Key>,
    pub(super) before: BTreeMap<NodeId, Before>,
}

/// A node's records before a revision.
#[derive(Debug)]
pub(super) struct Before {
    pub(super) node: Option<SharedNode>,
    pub(super) checkpoint: Option<CheckpointRecord>,
}

impl World {
    /// SAFE-9, by what really lies on the disks: every machine here comes back, and every service.
    pub(super) fn check_fresh_start(
        &mut self,
        node: &NodeId,
        (before, after): (&NodeRecord, &NodeRecord),
        copies: &CheckpointRecord,
    ) {
        let restored = |origin: Origin| matches!(origin, Origin::Restored(_));
        let afresh = after.primary.as_ref().is_some_and(|primary| !restored(primary.origin));
        let given_up = before.state_wait.is_some_and(|wait| wait.given_up);
        if before.primary.is_none() || !before.holds_places(node.role()) || !afresh || given_up {
            return;
        }
        // Leaders with other clocks may each count a step that was none.
        let waited = self.truth.waits_for_state_since.get(node).map_or(0, |since| self.now - since);
        if waited + 2 * millis(STATE_WAIT_STEP) >= millis(STATE_WAIT) {
            return;
        }
        let valid = copies.copies().filter(|copy| copy.valid >= before.incarnation);
        let has = |host: &HostId, id: CheckpointId| {
            let images = self.machine(host).images.get(node);
            let failed = self.truth.failed_copies.contains(&(node.clone(), host.clone(), id));
            !failed && images.is_some_and(|images| images.contains(&id))
        };
        let left: Vec<String> = valid
            .flat_map(|copy| copy.hosts.iter().map(move |host| (copy.id, host)))
            .filter(|(id, host)| has(host, *id))
            .map(|(id, host)| format!("{host} has checkpoint {id}"))
            .collect();
        if !left.is_empty() {
            let epoch = after.epoch;
            self.fail(format!("SAFE-9: {node} starts afresh in epoch {epoch} while {}", left.join(", ")));
        }
    }

    /// What a host says of restores that failed for good.
    pub(super) fn note_failed_copies(&mut self, host: &HostId) {
        let Some(facts) = self.truth.store().facts(host) else { return };
        let failed = facts.instances.iter().filter_map(|(instance, fact)| {
            let Phase::Dead { death: Death::DeployFailed { .. }, .. } = fact.phase else { return None };
            let node = fact.node.as_ref()?;
            let record = self.record(node).filter(|record| fact.epoch >= record.incarnation)?;
            let primary = record.primary.as_ref().filter(|primary| &primary.host == host)?;
            match primary.origin {
                Origin::Restored(id) if primary.instance == Some(*instance) => {
                    Some((node.clone(), host.clone(), id))
                }
                Origin::Restored(_)
                | Origin::Idle
                | Origin::Created
                | Origin::Promoted
                | Origin::Migrated
                | Origin::Reserved => None,
            }
        });
        let failed: Vec<_> = failed.collect();
        self.truth.failed_copies.extend(failed);
    }
}
