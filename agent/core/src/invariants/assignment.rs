//! Owns the check of one decision against the view that it was decided from.
//!
//! Promises: what it finds is a bug in the plan or a damaged record, never a matter of taste; it reads deaths and ends
//! from the records itself, so that it can disagree with what was decided by (D8). Must not do: repair.
//!
//! Cost: O(members of the node) look-ups; room takes a walk over the nodes of each host that it is new on.

use std::time::Duration;

use super::{Broken, Invariant, broken_in_record};
use crate::bounds::{STATE_WAIT, STATE_WAIT_STEP};
use crate::death::{CooldownCause, Death};
use crate::leader::{Assignment, CheckpointChange};
use crate::model::ids::{Epoch, HostId, InstanceId, NodeId};
use crate::model::records::{CheckpointRecord, Member, Migration, NodeRecord, Origin, Phase};
use crate::model::view::{HostView, View};

/// What writing `assignment` would break. Run it on every assignment just before it is written, on the view that it was
/// decided from.
#[must_use]
pub fn broken_by(view: &View, assignment: &Assignment) -> Vec<Broken> {
    let node = &assignment.node;
    let Some(before) = view.nodes.get(node).map(|known| &known.value) else {
        return vec![Broken::new(Invariant::Epochs, format!("{node} is not known"))];
    };
    let after = &assignment.record;
    let change = Change { view, node, before, after, assignment };
    let mut broken = broken_in_record(node, after);
    broken.extend(change.epochs());
    broken.extend(change.promotion());
    broken.extend(change.checkpoint());
    broken.extend(change.state());
    broken.extend(change.placement());
    broken.extend(change.instances());
    broken.extend(change.migration());
    broken
}

/// A record before and after.
struct Change<'a> {
    view: &'a View,
    node: &'a NodeId,
    before: &'a NodeRecord,
    after: &'a NodeRecord,
    assignment: &'a Assignment,
}

impl Change<'_> {
    /// The new primary, unless it is the old one where it was.
    fn successor(&self) -> Option<&Member> {
        let same = |new: &&Member| {
            self.before.primary.as_ref().is_some_and(|old| {
                (&old.host, old.lease, old.instance) == (&new.host, new.lease, new.instance)
                    && self.before.incarnation == self.after.incarnation
            })
        };
        self.after.primary.as_ref().filter(|new| !same(new))
    }

    /// Whether the new primary is the old one, arrived by the migration that was written before.
    fn has_moved(&self, new: &Member) -> bool {
        let (Some(migration), Some(old)) = (&self.before.migration, &self.before.primary) else {
            return false;
        };
        let there = (&migration.to, migration.to_lease, old.instance, Origin::Migrated);
        there == (&new.host, new.lease, new.instance, new.origin)
            && self.before.incarnation == self.after.incarnation
    }

    fn epochs(&self) -> Vec<Broken> {
        let (node, before, after) = (self.node, self.before, self.after);
        let mut broken = Vec::new();
        if after.epoch < before.epoch || after.incarnation < before.incarnation {
            let detail = format!("the epoch of {node} falls from {} to {}", before.epoch, after.epoch);
            broken.push(Broken::new(Invariant::Epochs, detail));
        }
        let fresh = self.successor().is_some_and(|new| !self.has_moved(new));
        if fresh && !(after.epoch > before.epoch && after.incarnation > before.epoch) {
            let detail = format!("{node} has another primary in epoch {}", after.epoch);
            broken.push(Broken::new(Invariant::Epochs, detail));
        }
        if before.primary.is_some() && after.primary.is_none() {
            broken.push(Broken::new(Invariant::KnownDead, format!("{node} forgets its primary")));
        }
        broken
    }

    fn promotion(&self) -> Vec<Broken> {
        let Some(new) = self.successor() else { return Vec::new() };
        let Some(old) = &self.before.primary else { return Vec::new() };
        let mut broken = Vec::new();
        let died = Died { view: self.view, record: self.before };
        let moved = self.has_moved(new);
        if !moved && !died.at_source(old) {
            let detail = format!(
                "{} gets a new primary on {} while the one on {} may live",
                self.node, new.host, old.host
            );
            broken.push(Broken::new(Invariant::KnownDead, detail));
        }
        if !moved && !self.is_conditional_on(&old.host) {
            let detail =
                format!("{} is not conditional on the expiry of the lease of {}", self.node, old.host);
            broken.push(Broken::new(Invariant::KnownDead, detail));
        }
        if let Some(migration) = self.before.migration.as_ref().filter(|_| !moved) {
            if !died.at_destination(migration) {
                let detail = format!(
                    "{} gets a new primary while the old one may be on {}, where it was to migrate",
                    self.node, migration.to
                );
                broken.push(Broken::new(Invariant::Migration, detail));
            }
            if !self.is_conditional_on(&migration.to) {
                let detail = format!(
                    "{} is not conditional on the expiry of the lease of {}",
                    self.node, migration.to
                );
                broken.push(Broken::new(Invariant::Migration, detail));
            }
        }
        broken
    }

    /// A death that is the expiry of a lease counts only if that expiry still stands when the decision is written.
    fn is_conditional_on(&self, host: &HostId) -> bool {
        self.view.hosts.get(host).is_none_or(|seen| {
            seen.is_open() || self.assignment.leases.contains(&(host.clone(), seen.lease.revision))
        })
    }

    fn checkpoint(&self) -> Vec<Broken> {
        let node = self.node;
        let known = self.view.checkpoints.get(node);
        let begins = self.after.incarnation > self.before.incarnation;
        let wrong = |detail: String| vec![Broken::new(Invariant::CompleteCheckpoint, detail)];
        let restored = self.successor().filter(|_| begins).and_then(|new| match new.origin {
            Origin::Restored(id) => Some((new, id)),
            Origin::Idle | Origin::Created | Origin::Promoted | Origin::Migrated | Origin::Reserved => None,
        });
        match (restored, known, &self.assignment.checkpoint) {
            (Some((new, id)), Some(known), CheckpointChange::Replace(revision, record)) => {
                let is_right = |image: &CheckpointRecord| {
                    image.id == id
                        && image.valid >= self.before.incarnation
                        && image.hosts.contains(&new.host)
                        && Some(image.instance) == new.instance
                        && record.hosts.iter().all(|host| image.hosts.contains(host))
                };
                let becomes = (record.id, record.valid) == (id, self.after.incarnation);
                // Beside it the other one may stay, for the case that this one is damaged.
                let is_other = |kept: &CheckpointRecord| {
                    known.value.copies().any(|image| {
                        let named = kept.hosts.iter().all(|host| image.hosts.contains(host));
                        image.id == kept.id && image.valid >= self.before.incarnation && named
                    })
                };
                let other = record.earlier.as_deref().is_none_or(|kept| kept.id != id && is_other(kept));
                let right =
                    *revision == known.revision && becomes && other && known.value.copies().any(is_right);
                let detail = format!(
                    "{node} is restored from {id} on {}, which is neither its newest nor the one before it there",
                    new.host
                );
                if right { Vec::new() } else { wrong(detail) }
            }
            (Some((_, id)), _, _) => {
                wrong(format!("{node} is restored from {id}, which does not become its first checkpoint"))
            }
            (None, Some(_), CheckpointChange::Delete(_)) if begins => Vec::new(),
            (None, Some(known), _) if begins && self.after.holds_places(node.role()) => wrong(format!(
                "{node} starts afresh and keeps checkpoint {}, whose state must never come back",
                known.value.id
            )),
            (None, None, CheckpointChange::Keep) if begins && self.before.holds_places(node.role()) => {
                wrong(format!("{node} starts afresh whether or not a checkpoint of it is recorded meanwhile"))
            }
            (None, _, CheckpointChange::Keep) | (None, None, CheckpointChange::Absent) => Vec::new(),
            (
                None,
                _,
                CheckpointChange::Replace(..) | CheckpointChange::Delete(_) | CheckpointChange::Absent,
            ) => wrong(format!("{node} loses its checkpoint without a new primary")),
        }
    }

    /// A fresh start while a copy of the state may still be had.
    fn state(&self) -> Option<Broken> {
        let (node, before, after) = (self.node, self.before, self.after);
        let afresh = self.successor().filter(|new| !matches!(new.origin, Origin::Restored(_)))?;
        if before.primary.is_none()
            || !before.holds_places(node.role())
            || after.incarnation == before.incarnation
        {
            return None;
        }
        let waited = before.state_wait.as_ref();
        if waited.is_some_and(|wait| wait.given_up) {
            return None;
        }
        // The decision itself says when it was made.
        let decided = after.incident.as_ref().map(|incident| incident.decided)?;
        let waited = waited.map_or(Duration::ZERO, |wait| {
            Duration::from_millis(wait.waited_ms) + decided.since(wait.at).min(STATE_WAIT_STEP)
        });
        let failed = |copy: &CheckpointRecord, host: &HostId| {
            after.cooldowns.iter().any(|cooldown| match &cooldown.cause {
                CooldownCause::Died { death: Death::DeployFailed { .. }, epoch } => {
                    &cooldown.host == host && *epoch > copy.id.epoch
                }
                CooldownCause::Died { .. }
                | CooldownCause::MigrationFailed { .. }
                | CooldownCause::NoCopies { .. } => false,
            })
        };
        let may_be_had = |copy: &CheckpointRecord, host: &HostId| {
            // What cannot be read is no proof of a loss.
            let known = self.view.hosts.get(host);
            let unread = self.view.unread_hosts.contains(host);
            let there = unread || known.is_some_and(|seen| seen.is_open());
            let lost = known.is_some() && !there;
            !failed(copy, host) && (there || lost && waited < STATE_WAIT)
        };
        let copies = self.view.checkpoints.get(node)?.value.copies();
        let mut copies = copies.filter(|copy| copy.valid >= before.incarnation);
        copies.find_map(|copy| {
            let host = copy.hosts.iter().find(|host| may_be_had(copy, host))?;
            let detail = format!(
                "{node} starts afresh on {} while {host} may still have checkpoint {}",
                afresh.host, copy.id
            );
            Some(Broken::new(Invariant::State, detail))
        })
    }

    /// Only what is new is held against the decision: a host may have begun to drain since.
    fn placement(&self) -> Vec<Broken> {
        let old: Vec<&HostId> = self.before.members().map(|member| &member.host).collect();
        let migration = |record: &NodeRecord| record.migration.as_ref().map(|migration| migration.to.clone());
        let target = migration(self.after).filter(|to| migration(self.before).as_ref() != Some(to));
        // A restore on a draining host keeps the state, and the drain moves it on.
        let restored = |member: &Member| matches!(member.origin, Origin::Restored(_) | Origin::Migrated);
        let placed = self.after.members().filter(|member| !old.contains(&&member.host));
        let placed = placed.map(|member| (member.host.clone(), restored(member)));
        let mut broken = Vec::new();
        for (host, keeps_state) in placed.chain(target.map(|host| (host, false))) {
            let detail = match self.view.hosts.get(&host) {
                None => "is unknown".to_owned(),
                Some(seen) if seen.current_facts().is_none() && !keeps_state => "takes no work".to_owned(),
                Some(seen) if seen.intent.drain && !keeps_state => "is draining".to_owned(),
                Some(seen) if !self.has_room(&host, seen) => "has no room".to_owned(),
                Some(_) => continue,
            };
            broken.push(Broken::new(
                Invariant::Placement,
                format!("{} is put on {host}, which {detail}", self.node),
            ));
        }
        broken
    }

    fn has_room(&self, host: &HostId, seen: &HostView) -> bool {
        let Some(facts) = seen.current_facts() else { return true };
        let after = self.view.taken_memory(host, Some((self.node, self.after)));
        after <= facts.capacity.memory || after <= self.view.taken_memory(host, None)
    }

    fn instances(&self) -> Vec<Broken> {
        // By the view's index: to look at all nodes would be on the way of every failover. `broken_in` looks at all.
        let claimed = self.after.members().filter_map(|member| member.instance).filter_map(|instance| {
            let others = self.view.nodes.naming(instance).iter();
            others.into_iter().find(|other| *other != self.node).map(|other| (instance, other))
        });
        let details = claimed.map(|(instance, other)| format!("{} claims {instance} of {other}", self.node));
        details.chain(self.unsure()).map(|detail| Broken::new(Invariant::OneNode, detail)).collect()
    }

    /// Instances that stood by and that a record which could not be read may name.
    fn unsure(&self) -> impl Iterator<Item = String> {
        let facts = |member: &Member| self.view.hosts.get(&member.host)?.current_facts();
        let stood_by = move |member: &&Member| {
            let instance = member.instance.filter(|_| !self.view.quarantined.is_empty());
            let fact = facts(member).zip(instance).and_then(|(facts, id)| facts.instances.get(&id));
            let had = self.before.members().any(|other| other.instance == instance);
            !had && fact.is_some_and(|fact| fact.node.is_none())
        };
        let taken = self.after.members().filter(stood_by).filter_map(|member| member.instance);
        taken.map(|instance| {
            let all: Vec<String> = self.view.quarantined.iter().map(ToString::to_string).collect();
            format!("{} takes {instance}, which may be one of {}", self.node, all.join(", "))
        })
    }

    fn migration(&self) -> Vec<Broken> {
        let (node, before, after) = (self.node, self.before, self.after);
        let wrong = |detail: String| vec![Broken::new(Invariant::Migration, detail)];
        let same = |old: &Migration, new: &Migration| {
            (&old.from, &old.to, old.epoch, old.to_lease) == (&new.from, &new.to, new.epoch, new.to_lease)
        };
        let (old, new) = (before.migration.as_ref(), after.migration.as_ref());
        if let (Some(old), Some(new)) = (old, new)
            && same(old, new)
        {
            return if old.abandoned && !new.abandoned {
                wrong(format!("{node} takes back that its migration to {} was abandoned", old.to))
            } else {
                Vec::new()
            };
        }
        if let Some(old) = old.filter(|old| !self.is_over(old)) {
            return wrong(format!("{node} gives up its migration to {}, which may still arrive", old.to));
        }
        match new {
            Some(new) if new.epoch != after.epoch || new.epoch <= before.epoch || new.abandoned => {
                wrong(format!("{node} migrates to {} without an epoch of its own", new.to))
            }
            Some(_) | None => Vec::new(),
        }
    }

    /// A migration is over when it has arrived, or when the destination says or is known to have nothing of it. The
    /// source's word that it failed is not enough: the destination may have all of it.
    fn is_over(&self, migration: &Migration) -> bool {
        let Some(primary) = &self.before.primary else { return false };
        let arrived = self.view.hosts.get(&migration.to).is_some_and(|to| {
            to.lease.value.number == migration.to_lease
                && primary
                    .instance
                    .and_then(|instance| to.instance(instance))
                    .is_some_and(|fact| fact.phase == Phase::Ready && fact.epoch >= migration.epoch)
        });
        arrived || Died { view: self.view, record: self.before }.at_destination(migration)
    }
}

/// SAFE-2 read word for word from the records, apart from the reading that decisions are made by (`View::liveness`).
struct Died<'a> {
    view: &'a View,
    record: &'a NodeRecord,
}

impl Died<'_> {
    fn at_source(&self, old: &Member) -> bool {
        // Under a restored instance's id its host may still report the life that was restored.
        let since =
            if matches!(old.origin, Origin::Restored(_)) { self.record.incarnation } else { Epoch(0) };
        self.at(&old.host, (old.lease, since), old.instance)
    }

    fn at_destination(&self, migration: &Migration) -> bool {
        let instance = self.record.primary.as_ref().and_then(|primary| primary.instance);
        self.at(&migration.to, (migration.to_lease, migration.epoch), instance)
    }

    /// The lease that ran it is over, or that lease's own report says so.
    fn at(&self, host: &HostId, (lease, since): (u64, Epoch), instance: Option<InstanceId>) -> bool {
        let Some(seen) = self.view.hosts.get(host) else { return false };
        let known = &seen.lease.value;
        let over = known.number > lease || (known.number == lease && known.expired.is_some());
        let reports = || {
            let facts = seen.facts.as_deref().filter(|facts| facts.lease == lease);
            let fact = facts.and_then(|facts| facts.instances.get(&instance?));
            let current = known.number == lease && known.expired.is_none();
            current && fact.is_some_and(|fact| fact.phase.is_dead() && fact.epoch >= since)
        };
        over || reports()
    }
}
