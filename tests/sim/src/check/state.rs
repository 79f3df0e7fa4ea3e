//! Owns what was before a revision, and the judgement of fresh starts: whether state was given up that still lies on a disk (SAFE-9).
//!
//! Promises: what really lies on the disks counts, and what hosts have said of it; nothing is asked of core. Must not do:
//! change anything but what it remembers of those words.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use understudy_core::bounds::{STATE_WAIT, STATE_WAIT_STEP};
use understudy_core::death::Death;
use understudy_core::keys::Key;
use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::records::{Checkpoint, CheckpointId, NodeRecord, Origin, Phase};
use understudy_core::model::view::SharedNode;
use understudy_store::Revision;

use crate::world::{World, millis};

/// What no checkpoint is behind another by that counts as about as new: four intervals, a late copy, and clocks that were set.
const ABOUT_AS_NEW: Duration = Duration::from_secs(90);

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
}

impl World {
    /// SAFE-9, by what really lies on the disks: every machine here comes back, and every service.
    pub(super) fn check_fresh_start(&mut self, node: &NodeId, (before, after): (&NodeRecord, &NodeRecord)) {
        let afresh = after.primary.as_ref().is_some_and(|primary| primary.origin.restored().is_none());
        let given_up = before.state_wait.is_some_and(|wait| wait.given_up);
        if before.primary.is_none() || !before.holds_places(node.role()) || !afresh || given_up {
            return;
        }
        // Leaders with other clocks may each count a step that was none.
        let waited = self.truth.waits_for_state_since.get(node).map_or(0, |since| self.now - since);
        if waited + 2 * millis(STATE_WAIT_STEP) >= millis(STATE_WAIT) {
            return;
        }
        let left: Vec<String> = self
            .keeping(before)
            .filter_map(|host| Some((host, self.newest_of(host, node, before)?)))
            .map(|(host, copy)| format!("{host} has checkpoint {}", copy.id))
            .collect();
        if !left.is_empty() {
            let epoch = after.epoch;
            self.fail(format!("SAFE-9: {node} starts afresh in epoch {epoch} while {}", left.join(", ")));
        }
    }

    /// SAFE-9, by what really lies on the disks: whoever is not named any more drops what it has, so that somebody who is has
    /// state about as new by then.
    pub(super) fn check_let_go(&mut self, node: &NodeId, (before, after): (&NodeRecord, &NodeRecord)) {
        if !before.holds_places(node.role()) || after.state_of() != before.state_of() {
            return;
        }
        let named: BTreeSet<&HostId> = self.keeping(after).collect();
        let newest = |host: &HostId| self.newest_of(host, node, before);
        let kept = named.iter().filter_map(|host| newest(host)).max_by_key(|copy| copy.id);
        let left = self.keeping(before).filter(|host| !named.contains(host));
        let mut left = left.filter_map(|host| Some((host, newest(host)?)));
        let newer = |copy: &Checkpoint| {
            kept.is_none_or(|kept| copy.id > kept.id && copy.taken.since(kept.taken) > ABOUT_AS_NEW)
        };
        if let Some((host, copy)) = left.find(|(_, copy)| newer(copy)) {
            let others = kept.map_or_else(|| "none".to_owned(), |kept| kept.id.to_string());
            let text = format!("SAFE-9: {host} need not keep {} of {node}, others have {others}", copy.id);
            self.fail(text);
        }
    }

    /// The hosts of a record that are to keep what they have.
    fn keeping<'a>(&self, record: &'a NodeRecord) -> impl Iterator<Item = &'a HostId> + use<'a> {
        let backups = record.backups.iter().map(|backup| &backup.host);
        backups.chain(&record.keepers)
    }

    /// The newest checkpoint of this life of a node's state that lies on a host's disk and is not known to be damaged.
    fn newest_of(&self, host: &HostId, node: &NodeId, record: &NodeRecord) -> Option<&Checkpoint> {
        let failed = |id: CheckpointId| self.truth.failed_copies.contains(&(node.clone(), host.clone(), id));
        let images = self.machine(host).images.get(node)?;
        images.values().rev().find(|copy| Some(copy.instance) == record.state_of() && !failed(copy.id))
    }

    /// SAFE-3: whoever is reported to have a checkpoint of a node's life has one on its disk.
    pub(super) fn check_reported(&mut self, host: &HostId) {
        let Some(facts) = self.truth.store().facts(host) else { return };
        let mut lacking = Vec::new();
        for (node, known) in &facts.protection {
            let Some(record) = self.record(node) else { continue };
            let primary = record.primary.as_ref().map(|primary| &primary.host);
            if primary != Some(host) || known.incarnation != record.incarnation {
                continue;
            }
            let has = |at: &HostId| {
                let images = self.machine(at).images.get(node);
                images.is_some_and(|images| images.keys().any(|id| id.epoch >= known.incarnation))
            };
            let is_here = |at: &HostId, place: u64| {
                record.backups.iter().any(|backup| &backup.host == at && backup.place == place)
            };
            let hosts = known.hosts.iter().filter(|(at, newest)| is_here(at, newest.place) && !has(at));
            lacking.extend(hosts.map(|(at, _)| format!("{at} has none of {node}")));
        }
        if !lacking.is_empty() {
            self.fail(format!("SAFE-3: {host} reports checkpoints, but {}", lacking.join(", ")));
        }
    }

    /// Every host's report, once more.
    pub(crate) fn check_all_reported(&mut self) {
        for host in self.hosts() {
            self.check_reported(&host);
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
