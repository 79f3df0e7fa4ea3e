//! Owns the fallback orders: who becomes primary when there is none, or when the old one is known dead.
//!
//! ```text
//! display, unprotected execution      protected execution
//! 1 ready warm backup                 1 newest checkpoint that can be had, or may be soon (`restore`)
//! 2 idle instance of a pool           2 idle instance of a pool  (state lost, and the record says so)
//! 3 new instance on a chosen host     3 new instance on a chosen host
//! ```
//!
//! Promises: nothing is promoted before the old primary is known dead (SAFE-2), at both ends where it was
//! migrating (SAFE-7); each change raises the epoch. Must not do: take care of backups.

use std::collections::BTreeSet;

use super::place::{Choice, choose};
use super::restore::{Wait, from_checkpoint, go_on_waiting};
use super::{Leader, remember, remember_failure};
use crate::death::{Cooldown, CooldownCause, Death};
use crate::model::ids::{HostId, InstanceId, NodeId, Role};
use crate::model::records::{CheckpointId, Incident, Member, NodeRecord, Origin, StateKept, StateWait};
use crate::model::units::UnixMillis;
use crate::model::view::{Liveness, SharedNode};
use crate::policy::Purpose;

/// Gives the node a primary if it has none that may be alive.
pub(super) fn repair(leader: &mut Leader, node: &NodeId, known: &SharedNode) {
    let record = &known.value;
    let death = match &record.primary {
        None => None,
        Some(primary) => match leader.view.liveness(record, primary) {
            Liveness::Alive => return leader.words.forget(node),
            Liveness::Dead { cause, found } => Some(Found { cause, found: found_at(leader, found) }),
        },
    };
    if let (Some(migration), Some(death)) = (&record.migration, &death) {
        let text =
            format!("primary has gone ({}), {} has to say whether it has it", death.cause, migration.to);
        leader.report.lacks.entry(node.clone()).or_default().primary = true;
        leader.note(node, text);
        return;
    }
    leader.report.lacks.entry(node.clone()).or_default().primary = true;
    if let (Some(primary), Some(death)) = (&record.primary, &death) {
        hold_against(leader, node, &primary.host, death);
    }
    let known = leader.shared(node);
    let record = &known.value;
    let Some(successor) = successor(leader, node, record, death.as_ref()) else { return };
    install(leader, node, record, successor, death);
}

/// Before a successor is chosen, so that it is not put there again. Only where it died before it was ever ready: a kill
/// says nothing about the host.
fn hold_against(leader: &mut Leader, node: &NodeId, host: &HostId, death: &Found) {
    if !death.cause.is_failed_deployment() {
        return;
    }
    // The epoch tells one life from the next: each counts once, from when it was seen on this clock.
    let record = leader.record(node);
    let from = record.primary.as_ref().and_then(|primary| primary.origin.restored());
    let cause = CooldownCause::Died { death: death.cause.clone(), epoch: record.epoch, from };
    if record.cooldowns.iter().any(|known| &known.host == host && known.cause == cause) {
        return;
    }
    let cooldown = Cooldown { host: host.clone(), cause, at: leader.now.wall };
    leader.change(node, format!("{host} is avoided for a while"), |record| remember(record, cooldown));
}

/// How the old primary died.
pub(super) struct Found {
    cause: Death,
    pub(super) found: UnixMillis,
}

/// A host that came back does not say when its instances ended: it is found now.
fn found_at(leader: &Leader, found: UnixMillis) -> UnixMillis {
    if found == UnixMillis::default() { leader.now.wall } else { found }
}

/// Who takes over, and what that keeps.
pub(super) struct Successor {
    pub(super) member: Member,
    pub(super) action: String,
    pub(super) restored: Option<Restored>,
}

/// What it is restored from.
pub(super) struct Restored {
    pub(super) id: CheckpointId,
    pub(super) taken: UnixMillis,
    /// The hosts that keep what they have of the state.
    pub(super) keepers: BTreeSet<HostId>,
}

/// What the first step of the fallback order gives.
pub(super) enum Step {
    Found(Box<Successor>),
    /// It may give one soon, and the next step would lose the state.
    Wait(Wait),
    /// Hosts are asked first what they have.
    Asked,
    Nothing,
}

fn successor(
    leader: &mut Leader,
    node: &NodeId,
    record: &NodeRecord,
    death: Option<&Found>,
) -> Option<Successor> {
    let first = if record.holds_places(node.role()) {
        from_checkpoint(leader, node, record, death)
    } else {
        from_backups(leader, record)
    };
    match first {
        Step::Found(successor) => Some(*successor),
        Step::Wait(wait) => {
            go_on_waiting(leader, node, record, &wait);
            // Whoever is waited for may come while others are still decided about.
            leader.waiting.insert(node.clone());
            leader.report.lacks.entry(node.clone()).or_default().state = true;
            leader.note(node, wait.why);
            None
        }
        Step::Asked => {
            leader.batch.suspended.insert(node.clone());
            None
        }
        Step::Nothing => from_pool(leader, node, record),
    }
}

/// The first ready backup whose host can do its part; one that would have to leave its host at once comes last.
fn from_backups(leader: &Leader, record: &NodeRecord) -> Step {
    let able = |backup: &&Member| leader.view.hosts.get(&backup.host).is_some_and(|seen| seen.is_able());
    let ready = || record.backups.iter().filter(|backup| leader.view.is_ready(record, backup)).filter(able);
    let Some(backup) = ready().find(|backup| !leader.is_draining(&backup.host)).or_else(|| ready().next())
    else {
        return Step::Nothing;
    };
    Step::Found(Box::new(Successor {
        member: Member { origin: Origin::Promoted, ..backup.clone() },
        action: format!("backup on {} promoted", backup.host),
        restored: None,
    }))
}

fn from_pool(leader: &mut Leader, node: &NodeId, record: &NodeRecord) -> Option<Successor> {
    // The dead primary's host may take the new one, and has its room; only the backups' hosts may not.
    leader.change_quietly(node, |record| record.primary = None);
    let found = match choose(leader, node, Purpose::Primary) {
        Choice::Asked => None,
        Choice::On(host) => {
            let found = leader.allocate(node, record, &host);
            if let Some((member, _)) = &found {
                leader.chosen(node, &member.host);
            }
            found
        }
        Choice::Nowhere(why) => {
            let found = from_reserved_place(leader, node, record);
            if found.is_none() {
                leader.note(node, format!("no host can take the primary: {why}"));
            }
            found
        }
    };
    leader.change_quietly(node, |edited| {
        edited.primary.clone_from(&record.primary);
        edited.backups.clone_from(&record.backups);
    });
    found.map(|(member, action)| Successor { member, action, restored: None })
}

/// Places reserved for backups on all hosts that are left must not keep the primary itself out: the last one gives way.
fn from_reserved_place(leader: &mut Leader, node: &NodeId, record: &NodeRecord) -> Option<(Member, String)> {
    let gives_way = |backup: &&Member| {
        let open = leader.view.hosts.get(&backup.host).is_some_and(|seen| seen.accepts_work());
        backup.instance.is_none() && open && !leader.recently_failed(record, &backup.host)
    };
    let host = record.backups.iter().rev().find(gives_way)?.host.clone();
    leader.change_quietly(node, |record| record.backups.retain(|backup| backup.host != host));
    leader.allocate(node, record, &host)
}

impl Leader {
    /// Takes an idle instance of the host, else a new one there.
    pub(super) fn allocate(
        &self,
        node: &NodeId,
        record: &NodeRecord,
        host: &HostId,
    ) -> Option<(Member, String)> {
        let (instance, origin, action) = match self.idle(node, host) {
            Some(instance) => (instance, Origin::Idle, format!("idle instance on {host} deployed")),
            None if self.room(node, host) < record.spec.memory => return None,
            None => {
                let serial = u64::try_from(record.backups.len()).unwrap_or(u64::MAX);
                let instance = self.unused_instance(node, record, host, serial);
                (instance, Origin::Created, format!("new instance on {host} created"))
            }
        };
        let lease = self.view.hosts.get(host)?.lease.value.number;
        Some((Member { host: host.clone(), lease, instance: Some(instance), origin, place: 0 }, action))
    }

    fn unused_instance(&self, node: &NodeId, record: &NodeRecord, host: &HostId, serial: u64) -> InstanceId {
        // The name holds the host, so that no other host made one of that name.
        let here = self.view.hosts.get(host).and_then(|seen| seen.facts.as_ref());
        let known = |instance: InstanceId| {
            self.view.is_claimed(instance)
                || self.before.is_claimed(instance)
                || here.is_some_and(|facts| facts.instances.contains_key(&instance))
        };
        let salt = self.now.wall.0;
        (serial..)
            .map(|serial| InstanceId::derived(node, record.epoch, host, salt.wrapping_add(serial)))
            .find(|&instance| !known(instance))
            .unwrap_or_else(|| InstanceId::derived(node, record.epoch, host, salt))
    }
}

fn install(
    leader: &mut Leader,
    node: &NodeId,
    before: &NodeRecord,
    successor: Successor,
    death: Option<Found>,
) {
    if let Some(old) = &before.primary {
        leader.condition_on_lease(node, &old.host.clone());
    }
    let now = leader.now.wall;
    let cause = death.as_ref().map_or("first placement".to_owned(), |death| death.cause.to_string());
    let last = last_unseen(before, death.as_ref());
    let (death, again) = first_failure(before, death);
    let kept = state_kept(node, before, &successor, death.as_ref());
    let restored = successor.restored;
    let reason = format!("{} ({cause})", successor.action);
    let action = if again { format!("{}, after {cause}", successor.action) } else { successor.action };
    let taken = successor.member;
    leader.change(node, reason, |record| {
        record.epoch = record.epoch.next();
        record.incarnation = record.epoch;
        record.backups.retain(|backup| backup.host != taken.host);
        if let Some(Found { cause, found }) = death {
            let epoch = record.epoch;
            remember_failure(record, now);
            record.incident = Some(Incident {
                epoch,
                cause,
                last: last.filter(|_| again),
                action,
                state: kept,
                found,
                decided: now,
                ready: None,
                windows: None,
            });
        }
        record.primary = Some(taken);
        let is_restored = restored.is_some();
        match restored {
            Some(restored) => record.keepers = restored.keepers,
            None => record.keepers.clear(),
        }
        // One that is restored is not there yet: should it fail, the wait goes on where it was.
        // An operator's word was about what could not be had then.
        let wait = record.state_wait.filter(|_| is_restored);
        record.state_wait = wait.map(|wait| StateWait { given_up: false, ..wait });
    });
}

/// How the last of those died that may still be heard of, else how the last one did.
fn last_unseen(before: &NodeRecord, death: Option<&Found>) -> Option<Death> {
    let unseen = before.incident.as_ref().and_then(|incident| incident.last.clone());
    let unseen = unseen.filter(|death| !death.is_seen());
    let now = death.map(|death| death.cause.clone());
    match now {
        Some(now) if !now.is_seen() => Some(now),
        now => unseen.or(now),
    }
}

/// What failed is what its successors stand in for: one that was never ready is a step on the way back, and no failure of
/// its own. Whether there was one.
fn first_failure(before: &NodeRecord, death: Option<Found>) -> (Option<Found>, bool) {
    let open = before.incident.as_ref().filter(|incident| {
        death.is_some() && incident.epoch == before.incarnation && incident.ready.is_none()
    });
    match open {
        Some(incident) => (Some(Found { cause: incident.cause.clone(), found: incident.found }), true),
        None => (death, false),
    }
}

fn state_kept(node: &NodeId, before: &NodeRecord, successor: &Successor, death: Option<&Found>) -> StateKept {
    match (&successor.restored, node.role(), death) {
        (Some(restored), _, death) => {
            let age = death.map_or_else(Default::default, |death| death.found.since(restored.taken));
            let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            StateKept::Checkpoint { id: restored.id, age_ms }
        }
        // A first placement that was given back had no state yet; what followed something has that for its cause.
        (None, Role::Execution, Some(death))
            if before.primary.is_some() && !matches!(death.cause, Death::Refused { .. }) =>
        {
            StateKept::Lost
        }
        (None, Role::Execution | Role::Display, _) => StateKept::NotNeeded,
    }
}
