//! Owns the check of one decision against the view that it was decided from.
//!
//! Promises: what it finds is a bug in the plan or a damaged record, never a matter of taste; it reads deaths and ends
//! from the records itself, so that it can disagree with what was decided by (D8). Must not do: repair.
//!
//! Cost: O(members of the node) look-ups; room takes a walk over the nodes of each host that it is new on.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Broken, Invariant, broken_in_record};
use crate::bounds::{STATE_WAIT, STATE_WAIT_STEP};
use crate::death::{CooldownCause, Death};
use crate::leader::Assignment;
use crate::model::ids::{Epoch, HostId, InstanceId, NodeId};
use crate::model::records::{Kept, Member, Migration, NodeRecord, Origin, Phase};
use crate::model::view::{HostView, View};

/// What writing `assignment` would break. Run it on every assignment just before it is written, on the view that it was
/// decided from, and on what hosts said of the node's checkpoints under the leases that are open.
#[must_use]
pub fn broken_by(view: &View, heard: &BTreeMap<HostId, Kept>, assignment: &Assignment) -> Vec<Broken> {
    let node = &assignment.node;
    let Some(before) = view.nodes.get(node).map(|known| &known.value) else {
        return vec![Broken::new(Invariant::Epochs, format!("{node} is not known"))];
    };
    let after = &assignment.record;
    let change = Change { view, heard, node, before, after, assignment };
    let mut broken = broken_in_record(node, after);
    broken.extend(change.epochs());
    broken.extend(change.promotion());
    broken.extend(change.checkpoint());
    broken.extend(change.state());
    broken.extend(change.keepers());
    broken.extend(change.placement());
    broken.extend(change.instances());
    broken.extend(change.migration());
    broken
}

/// A record before and after.
struct Change<'a> {
    view: &'a View,
    heard: &'a BTreeMap<HostId, Kept>,
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

    /// SAFE-3: what is restored is complete, by the word of the very host that restores it, and of this life of the state.
    fn checkpoint(&self) -> Vec<Broken> {
        let (node, before, after) = (self.node, self.before, self.after);
        let begins = after.incarnation > before.incarnation;
        let wrong = |detail: String| vec![Broken::new(Invariant::CompleteCheckpoint, detail)];
        let restored =
            self.successor().filter(|_| begins).and_then(|new| Some((new, new.origin.restored()?)));
        let Some((new, id)) = restored else {
            // A checkpoint is of its instance: under the id of an earlier one its state could come back.
            let again = begins && before.state_of().is_some() && after.state_of() == before.state_of();
            return if again && before.holds_places(node.role()) {
                wrong(format!("{node} starts afresh as an instance of which there may be checkpoints"))
            } else {
                Vec::new()
            };
        };
        let said = self.heard.get(&new.host).into_iter().flat_map(|kept| &kept.complete);
        let complete = said.filter(|copy| copy.id == id && Some(copy.instance) == new.instance).count() > 0;
        let lease = self.view.hosts.get(&new.host).map(|seen| seen.lease.value.number);
        let mut broken = Vec::new();
        if !complete || lease != Some(new.lease) {
            broken.extend(wrong(format!(
                "{node} is restored from {id} on {}, which does not say that it has it",
                new.host
            )));
        }
        if after.state_of() != before.state_of() {
            broken.extend(wrong(format!("{node} is restored from {id}, which is of another life")));
        }
        broken
    }

    /// A host that may have state leaves the record, and then drops it, while no backup has newer state.
    fn keepers(&self) -> Option<Broken> {
        let (node, before, after) = (self.node, self.before, self.after);
        if !before.holds_places(node.role()) || after.state_of() != before.state_of() {
            return None;
        }
        let begins = after.incarnation > before.incarnation;
        let fresh = self.view.protection(node, after);
        let died = Died { view: self.view, record: before };
        let lives = before.primary.as_ref().is_some_and(|primary| !died.at_source(primary));
        let have_newer = lives
            && !begins
            && after.backups.iter().any(|one| fresh.is_some_and(|known| known.is_fresh_at(one)));
        let mut left = before.keeping().filter(|host| after.keeping().all(|other| other != *host));
        let host = left.find(|host| {
            self.view.hosts.contains_key(*host) && !have_newer && !(begins && self.is_empty(host))
        })?;
        let detail = format!("{node} forgets that {host} may have its state, which no backup has yet");
        Some(Broken::new(Invariant::State, detail))
    }

    /// Whether a host says that it has nothing, and can tell.
    fn is_empty(&self, host: &HostId) -> bool {
        let sure = |kept: &Kept| !kept.arriving && !kept.unsure;
        self.heard.get(host).is_some_and(sure) && !self.has_any(host)
    }

    /// Whether a host says that it has a checkpoint of this life of the state that is not known to be damaged.
    fn has_any(&self, host: &HostId) -> bool {
        let failed = |id| {
            self.after.cooldowns.iter().any(|cooldown| match &cooldown.cause {
                CooldownCause::Died { death: Death::DeployFailed { .. }, from, .. } => {
                    &cooldown.host == host && *from == Some(id)
                }
                CooldownCause::Died { .. }
                | CooldownCause::MigrationFailed { .. }
                | CooldownCause::NoCopies { .. } => false,
            })
        };
        let mut said = self.heard.get(host).into_iter().flat_map(|kept| &kept.complete);
        said.any(|copy| Some(copy.instance) == self.before.state_of() && !failed(copy.id))
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
        let may_be_had = |host: &HostId| {
            // What cannot be read is no proof of a loss.
            let known = self.view.hosts.get(host);
            let unread = self.view.unread_hosts.contains(host);
            let there = unread || known.is_some_and(|seen| seen.is_open());
            let lost = known.is_some() && !there;
            let empty = self.is_empty(host);
            there && !empty || lost && waited < STATE_WAIT
        };
        let host = before.keeping().find(|host| may_be_had(host))?;
        let detail = format!("{node} starts afresh on {} while {host} may still have its state", afresh.host);
        Some(Broken::new(Invariant::State, detail))
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
