//! Owns the ladders: who becomes primary when there is none, or when the old one is known dead.
//!
//! ```text
//! display, unprotected execution      protected execution
//! 1 ready warm backup                 1 newest checkpoint on a live backup's host
//! 2 idle instance of a pool           2 idle instance of a pool  (state lost, and the record says so)
//! 3 new instance on a chosen host     3 new instance on a chosen host
//! ```
//!
//! Promises: nothing is promoted before the old primary is known dead (SAFE-2), at both ends where it was
//! migrating (SAFE-7); each change raises the epoch. Must not do: take care of backups.

use super::place::{Choice, rank};
use super::{CheckpointChange, Draft};
use crate::ids::{HostId, InstanceId, NodeId};
use crate::policy::Purpose;
use crate::records::{CheckpointRecord, Incident, Member, NodeRecord, Origin, Setback, StateKept};
use crate::units::UnixMillis;
use crate::view::{HostView, Life};

/// Most setbacks that a node remembers.
const SETBACKS_MAX: usize = 8;

/// Gives the node a primary if it has none that may be alive.
pub(super) fn repair(draft: &mut Draft<'_>, node: &NodeId) {
    let record = draft.record(node).clone();
    let death = match &record.primary {
        None => None,
        Some(primary) => match draft.view.life(&record, primary) {
            Life::Alive => return,
            Life::Dead { .. } if record.migration.is_some() => {
                draft.note(node, "primary is dead, waiting for the other end of its migration to say so too");
                return;
            }
            Life::Dead { cause, found } => Some((cause, found)),
        },
    };
    draft.report.lacks.entry(node.clone()).or_default().primary = true;
    let Some(successor) = successor(draft, node, &record) else { return };
    install(draft, node, &record, successor, death);
}

/// Who takes over, and what that keeps.
struct Successor {
    member: Member,
    action: String,
    checkpoint: Option<CheckpointRecord>,
}

fn successor(draft: &mut Draft<'_>, node: &NodeId, record: &NodeRecord) -> Option<Successor> {
    if record.holds_places(node.role()) {
        if let Some(found) = from_checkpoint(draft, node, record) {
            return Some(found);
        }
    } else if let Some(found) = from_backups(draft, record) {
        return Some(found);
    }
    from_pool(draft, node, record)
}

fn from_backups(draft: &Draft<'_>, record: &NodeRecord) -> Option<Successor> {
    let backup = record.backups.iter().find(|backup| draft.view.is_ready(record, backup))?;
    Some(Successor {
        member: Member { origin: Origin::Promoted, ..backup.clone() },
        action: format!("backup on {} promoted", backup.host),
        checkpoint: None,
    })
}

/// The newest checkpoint, on the first of the backups' hosts that has it and lives (SAFE-3).
fn from_checkpoint(draft: &Draft<'_>, node: &NodeId, record: &NodeRecord) -> Option<Successor> {
    let checkpoint = draft.view.checkpoints.get(node).map(|known| &known.value)?;
    if checkpoint.valid < record.begun {
        return None;
    }
    let usable = |host: &HostId| {
        checkpoint.hosts.contains(host)
            && !recently_failed(draft, record, host)
            && draft.view.hosts.get(host).is_some_and(|seen| seen.current_facts().is_some())
    };
    let backups = record.backups.iter().map(|backup| &backup.host);
    let host = backups.chain(&checkpoint.hosts).find(|host| usable(host))?;
    let session = draft.view.hosts.get(host)?.session.value.number;
    let live = |host: &HostId| draft.view.hosts.get(host).is_some_and(HostView::is_open);
    Some(Successor {
        member: Member {
            host: host.clone(),
            session,
            instance: Some(checkpoint.instance),
            origin: Origin::Restored(checkpoint.id),
        },
        action: format!("checkpoint {} restored on {host}", checkpoint.id),
        checkpoint: Some(CheckpointRecord {
            valid: record.epoch.next(),
            hosts: checkpoint.hosts.iter().filter(|host| live(host)).cloned().collect(),
            ..checkpoint.clone()
        }),
    })
}

fn recently_failed(draft: &Draft<'_>, record: &NodeRecord, host: &HostId) -> bool {
    record
        .setbacks
        .iter()
        .any(|setback| &setback.host == host && draft.now.wall.since(setback.at) < draft.bounds.setback)
}

fn from_pool(draft: &mut Draft<'_>, node: &NodeId, record: &NodeRecord) -> Option<Successor> {
    // The dead primary's host may take the new one; only the backups' hosts may not.
    draft.change_quietly(node, |record| record.primary = None);
    let choice = rank(draft, node, Purpose::Primary);
    draft.change_quietly(node, |edited| edited.primary.clone_from(&record.primary));
    match choice {
        Choice::Asked => None,
        Choice::Nowhere(why) => {
            draft.note(node, format!("no host can take the primary: {why}"));
            None
        }
        Choice::Ranked(hosts) => {
            let (member, action) = draft.seat(node, record, &hosts)?;
            Some(Successor { member, action, checkpoint: None })
        }
    }
}

impl Draft<'_> {
    /// Changes a record for the time of a question only.
    fn change_quietly(&mut self, node: &NodeId, edit: impl FnOnce(&mut NodeRecord)) {
        if let Some(known) = self.view.nodes.get_mut(node) {
            edit(&mut known.value);
        }
    }

    /// Takes the idle instance of the best ranked host that has one, else a new instance on the best ranked host.
    pub(super) fn seat(
        &self,
        node: &NodeId,
        record: &NodeRecord,
        ranked: &[HostId],
    ) -> Option<(Member, String)> {
        let spec = &record.spec;
        let idle = ranked.iter().find_map(|host| {
            self.view
                .idle(host)
                .find(|(_, fact)| fact.memory >= spec.memory && fact.vcpus >= spec.vcpus)
                .map(|(instance, _)| (host, instance))
        });
        let (host, instance, origin, action) = match idle {
            Some((host, instance)) => {
                (host, instance, Origin::Idle, format!("idle instance on {host} deployed"))
            }
            None => {
                let host = ranked.iter().find(|host| self.view.free_memory(host) >= spec.memory)?;
                let serial = u64::try_from(record.backups.len()).unwrap_or(u64::MAX);
                let instance = self.unused_instance(node, record, host, serial);
                (host, instance, Origin::Created, format!("new instance on {host} created"))
            }
        };
        let session = self.view.hosts.get(host)?.session.value.number;
        Some((Member { host: host.clone(), session, instance: Some(instance), origin }, action))
    }

    fn unused_instance(&self, node: &NodeId, record: &NodeRecord, host: &HostId, serial: u64) -> InstanceId {
        let known = |instance: InstanceId| {
            self.view.is_claimed(instance)
                || self.view.hosts.values().any(|seen| {
                    seen.facts.as_ref().is_some_and(|facts| facts.instances.contains_key(&instance))
                })
        };
        let salt = self.now.wall.0;
        (serial..)
            .map(|serial| InstanceId::derived(node, record.epoch, host, salt.wrapping_add(serial)))
            .find(|&instance| !known(instance))
            .unwrap_or_else(|| InstanceId::derived(node, record.epoch, host, salt))
    }
}

fn install(
    draft: &mut Draft<'_>,
    node: &NodeId,
    before: &NodeRecord,
    successor: Successor,
    death: Option<(String, UnixMillis)>,
) {
    if let Some(old) = &before.primary {
        draft.rest_on_session(node, &old.host.clone());
    }
    let now = draft.now.wall;
    let old_checkpoint = draft.view.checkpoints.get(node).cloned();
    let kept = state_kept(node, before, &successor, death.as_ref(), now);
    let change = match (&successor.checkpoint, old_checkpoint) {
        (Some(new), Some(old)) => CheckpointChange::Replace(old.revision, new.clone()),
        (None, Some(old)) if before.holds_places(node.role()) => CheckpointChange::Delete(old.revision),
        (_, _) => CheckpointChange::Keep,
    };
    draft.checkpoints.insert(node.clone(), change);
    let cause = death.as_ref().map_or_else(|| "first placement".to_owned(), |(cause, _)| cause.clone());
    let reason = format!("{} ({cause})", successor.action);
    draft.change(node, reason, |record| {
        record.epoch = record.epoch.next();
        record.begun = record.epoch;
        let taken = successor.member.clone();
        record.backups.retain(|backup| backup.host != taken.host);
        if let (Some(old), Some((cause, found))) = (&before.primary, death) {
            remember(record, Setback { host: old.host.clone(), reason: cause.clone(), at: now }, &found);
            record.incident = Some(Incident {
                epoch: record.epoch,
                cause,
                action: successor.action,
                state: kept,
                found: if found == UnixMillis::default() { now } else { found },
                decided: now,
                ready: None,
                windows: None,
            });
        }
        record.primary = Some(taken);
    });
}

/// A death is held against its host only where it died before it was ever ready: a kill says nothing about the host.
fn remember(record: &mut NodeRecord, setback: Setback, _found: &UnixMillis) {
    if setback.reason.starts_with(crate::DEPLOY_FAILED) {
        record.setbacks.push(setback);
        let surplus = record.setbacks.len().saturating_sub(SETBACKS_MAX);
        record.setbacks.drain(..surplus);
    }
}

fn state_kept(
    node: &NodeId,
    before: &NodeRecord,
    successor: &Successor,
    death: Option<&(String, UnixMillis)>,
    now: UnixMillis,
) -> StateKept {
    match (&successor.checkpoint, node.role()) {
        (Some(checkpoint), _) => {
            let found = death.map_or(now, |(_, found)| *found);
            let age_ms = u64::try_from(found.since(checkpoint.taken).as_millis()).unwrap_or(u64::MAX);
            StateKept::Checkpoint { id: checkpoint.id, age_ms }
        }
        (None, crate::ids::Role::Display) => StateKept::NotNeeded,
        (None, crate::ids::Role::Execution) if before.primary.is_some() => StateKept::Lost,
        (None, crate::ids::Role::Execution) => StateKept::NotNeeded,
    }
}
