//! Owns what is taken of one host and moves there, as sums: of what nodes say of it, by what the store holds and as it is
//! decided, and of what it reports of its instances.
//!
//! Promises: the sums are at any time what a walk over the host's nodes and instances comes to; whoever changes says what
//! stood before and what stands after it, so that nothing else is looked at. Must not do: choose, or keep a record.
//!
//! Cost: a node's change O(its members); facts O(the host's instances) with a look-up for each that takes another place;
//! a host that comes O(its nodes and instances).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::model::ids::{Epoch, HostId, InstanceId, NodeId, Role};
use crate::model::records::{HostFacts, InstanceFact, NodeRecord, Phase, Protection};
use crate::model::units::{MiB, Vcpus};
use crate::model::view::View;
use crate::policy::{MemberCounts, Traffic};

/// Whose word counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// What the store holds.
    Stored,
    /// What it will hold once everything that is decided is written.
    Decided,
}

const SIDES: [Side; 2] = [Side::Stored, Side::Decided];

/// One for each side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Both<T>([T; 2]);

impl<T> Both<T> {
    pub(super) fn of(&self, side: Side) -> &T {
        let [stored, decided] = &self.0;
        match side {
            Side::Stored => stored,
            Side::Decided => decided,
        }
    }

    fn of_mut(&mut self, side: Side) -> &mut T {
        let [stored, decided] = &mut self.0;
        match side {
            Side::Stored => stored,
            Side::Decided => decided,
        }
    }
}

/// Memory in MiB, and processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) memory: u64,
    pub(super) vcpus: u64,
}

impl Amount {
    pub(super) fn add(&mut self, more: Self) {
        self.memory += more.memory;
        self.vcpus += more.vcpus;
    }

    pub(super) fn subtract(&mut self, less: Self) {
        self.memory -= less.memory;
        self.vcpus -= less.vcpus;
    }
}

/// What a node says of a host, or all nodes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Promised to members beyond what their instances there have.
    promised: Amount,
    counts: MemberCounts,
    migrations_in: u32,
    migrations_out: u32,
    /// Checkpoints that come and go, in KiB per second.
    copies_in: u64,
    copies_out: u64,
}

/// A change of a node's part: what it added before, and what it adds after it.
pub(super) struct Change {
    pub(super) was: Said,
    pub(super) is: Said,
}

impl Said {
    /// What a node says of `host`, which reports `facts`.
    pub(super) fn by(
        node: &NodeId,
        record: &NodeRecord,
        rated: Option<Rated<'_>>,
        host: &HostId,
        facts: Option<&HostFacts>,
    ) -> Self {
        let mut said = Self::default();
        let is_primary = record.primary.as_ref().is_some_and(|primary| &primary.host == host);
        let backups = record.backups.iter().filter(|backup| &backup.host == host).count();
        let arrives = record.migration.as_ref().is_some_and(|migration| &migration.to == host);
        if !is_primary && backups == 0 && !arrives {
            return said;
        }
        let (primaries, others) = match node.role() {
            Role::Display => (&mut said.counts.display_primaries, &mut said.counts.display_backups),
            Role::Execution => (&mut said.counts.execution_primaries, &mut said.counts.execution_backups),
        };
        *primaries = u32::from(is_primary);
        *others = u32::try_from(backups).unwrap_or(u32::MAX);
        said.migrations_in = u32::from(arrives);
        let leaves = record.migration.as_ref().is_some_and(|migration| &migration.from == host);
        said.migrations_out = u32::from(leaves);
        if let Some(Rated { protection, rate }) = rated.filter(|_| record.holds_places(node.role())) {
            let mut here = record.backups.iter().filter(|backup| &backup.host == host);
            said.copies_in = if here.any(|backup| protection.is_fresh_at(backup)) { rate } else { 0 };
            said.copies_out = if is_primary { rate } else { 0 };
        }
        let here = record.instance_on(host).zip(facts).and_then(|(id, facts)| facts.instances.get(&id));
        said.promised = promised(record, here.and_then(living));
        said
    }

    fn add(&mut self, more: &Self) {
        self.promised.add(more.promised);
        self.counts.display_primaries += more.counts.display_primaries;
        self.counts.display_backups += more.counts.display_backups;
        self.counts.execution_primaries += more.counts.execution_primaries;
        self.counts.execution_backups += more.counts.execution_backups;
        self.migrations_in += more.migrations_in;
        self.migrations_out += more.migrations_out;
        self.copies_in += more.copies_in;
        self.copies_out += more.copies_out;
    }

    fn subtract(&mut self, less: &Self) {
        self.promised.subtract(less.promised);
        self.counts.display_primaries -= less.counts.display_primaries;
        self.counts.display_backups -= less.counts.display_backups;
        self.counts.execution_primaries -= less.counts.execution_primaries;
        self.counts.execution_backups -= less.counts.execution_backups;
        self.migrations_in -= less.migrations_in;
        self.migrations_out -= less.migrations_out;
        self.copies_in -= less.copies_in;
        self.copies_out -= less.copies_out;
    }
}

/// What a member needs beyond what its living instance has.
pub(super) fn promised(record: &NodeRecord, here: Option<Amount>) -> Amount {
    let here = here.unwrap_or_default();
    Amount {
        memory: record.spec.memory.0.saturating_sub(here.memory),
        vcpus: u64::from(record.spec.vcpus.0).saturating_sub(here.vcpus),
    }
}

/// What a living instance has.
pub(super) fn living(fact: &InstanceFact) -> Option<Amount> {
    let has = || Amount { memory: fact.memory.0, vcpus: u64::from(fact.vcpus.0) };
    (!fact.phase.is_dead()).then(has)
}

/// To whom checkpoints go, and what the copies take of the network.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rated<'a> {
    protection: &'a Protection,
    /// In KiB per second.
    rate: u64,
}

impl<'a> Rated<'a> {
    /// What one copy takes, over one interval.
    pub(super) fn new(protection: &'a Protection, interval: Duration) -> Self {
        let rate = u128::from(protection.bytes / 1024) * 1_000 / interval.as_millis().max(1);
        Self { protection, rate: u64::from(u32::try_from(rate).unwrap_or(u32::MAX)) }
    }
}

/// An instance that stands by, or comes to, for whoever needs one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spare {
    pub(super) has: Amount,
    /// Whether it is ready to be given away.
    is_idle: bool,
    /// Whether a node names it (SAFE-6).
    claimed: Both<bool>,
}

fn stands_by(fact: &InstanceFact) -> bool {
    matches!(fact.phase, Phase::Idle | Phase::Booting) && fact.node.is_none() && fact.epoch == Epoch(0)
}

/// What is counted of an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Weight {
    living: Option<Amount>,
    stands_by: bool,
    is_idle: bool,
    restores: bool,
}

impl Weight {
    fn of(fact: Option<&InstanceFact>) -> Self {
        let Some(fact) = fact else { return Self::default() };
        Self {
            living: living(fact),
            stands_by: stands_by(fact),
            is_idle: fact.phase == Phase::Idle,
            restores: fact.phase == Phase::Restoring,
        }
    }
}

/// What is taken of a host and moves there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// What the host reports in its open lease, as it is counted.
    facts: Option<Arc<HostFacts>>,
    said: Both<Said>,
    /// Taken by instances that do not give way.
    taken: Both<Amount>,
    /// Taken by those that do.
    spared: Both<Amount>,
    spares: BTreeMap<InstanceId, Spare>,
    restores: u32,
}

impl Sums {
    pub(super) fn facts(&self) -> Option<&HostFacts> {
        self.facts.as_deref()
    }

    /// Taken by members, promised to them, and taken by whatever else does not give way.
    pub(super) fn taken(&self, side: Side) -> Amount {
        let mut all = *self.taken.of(side);
        all.add(self.said.of(side).promised);
        all
    }

    /// Taken by idle instances, and those that come to be idle.
    pub(super) fn spared(&self, side: Side) -> Amount {
        *self.spared.of(side)
    }

    /// Members, as it is decided.
    pub(super) fn members(&self) -> MemberCounts {
        self.said.of(Side::Decided).counts
    }

    /// What moves, as it is decided.
    pub(super) fn traffic(&self) -> Traffic {
        let said = self.said.of(Side::Decided);
        let rate = |sum: u64| u32::try_from(sum).unwrap_or(u32::MAX);
        Traffic {
            migrations_in: said.migrations_in,
            migrations_out: said.migrations_out,
            restores: self.restores,
            checkpoint_in_kib_s: rate(said.copies_in),
            checkpoint_out_kib_s: rate(said.copies_out),
        }
    }

    /// An instance that stands by, and whether a node names it.
    pub(super) fn spare(&self, instance: InstanceId, side: Side) -> Option<(Amount, bool)> {
        self.spares.get(&instance).map(|spare| (spare.has, *spare.claimed.of(side)))
    }

    /// Idle instances that nobody has claimed, in the order of their ids.
    pub(super) fn unclaimed(&self) -> impl Iterator<Item = (InstanceId, MiB, Vcpus)> {
        let free = |spare: &Spare| spare.is_idle && !SIDES.iter().any(|side| *spare.claimed.of(*side));
        self.spares.iter().filter(move |(_, spare)| free(spare)).map(|(&instance, spare)| {
            let vcpus = u32::try_from(spare.has.vcpus).unwrap_or(u32::MAX);
            (instance, MiB(spare.has.memory), Vcpus(vcpus))
        })
    }

    /// What a node says has changed. Whether that makes a difference.
    pub(super) fn exchange(&mut self, side: Side, change: &Change) -> bool {
        if change.was == change.is {
            return false;
        }
        let said = self.said.of_mut(side);
        said.subtract(&change.was);
        said.add(&change.is);
        true
    }

    /// An instance that stands by is named by a node from now on, or is not. Whether that makes a difference.
    pub(super) fn claim(&mut self, side: Side, instance: InstanceId, claimed: bool) -> bool {
        let Some(spare) = self.spares.get_mut(&instance) else { return false };
        if std::mem::replace(spare.claimed.of_mut(side), claimed) == claimed {
            return false;
        }
        let (taken, spared) = (self.taken.of_mut(side), self.spared.of_mut(side));
        let (from, to) = if claimed { (spared, taken) } else { (taken, spared) };
        from.subtract(spare.has);
        to.add(spare.has);
        true
    }

    /// The host reports something else. The instances that came to stand by, and those that no longer do.
    pub(super) fn report(
        &mut self,
        host: &HostId,
        (stored, decided): (&View, &View),
        new: Option<&Arc<HostFacts>>,
    ) -> (Vec<InstanceId>, Vec<InstanceId>) {
        let (mut come, mut gone) = (Vec::new(), Vec::new());
        let old = std::mem::replace(&mut self.facts, new.cloned());
        if old.as_ref().map(Arc::as_ptr) == new.map(Arc::as_ptr) {
            return (come, gone);
        }
        for (instance, was, is) in changed(old.as_deref(), new.map(Arc::as_ref)) {
            self.restores = self.restores + u32::from(is.restores) - u32::from(was.restores);
            if was.stands_by && !is.stands_by {
                gone.push(instance);
            }
            if is.stands_by && !was.stands_by {
                come.push(instance);
            }
            let known = self.spares.remove(&instance);
            for (side, view) in SIDES.into_iter().zip([stored, decided]) {
                if let Some(has) = was.living {
                    let named = known.is_none_or(|spare| *spare.claimed.of(side));
                    self.held_mut(side, named).subtract(has);
                }
                for node in view.nodes.naming(instance) {
                    let record = &view.nodes[node].value;
                    if record.instance_on(host) == Some(instance) {
                        let said = &mut self.said.of_mut(side).promised;
                        said.subtract(promised(record, was.living));
                        said.add(promised(record, is.living));
                    }
                }
                if let Some(has) = is.living {
                    let named = !is.stands_by || view.is_claimed(instance);
                    self.held_mut(side, named).add(has);
                }
            }
            if let Some(has) = is.living.filter(|_| is.stands_by) {
                let claimed = Both([stored.is_claimed(instance), decided.is_claimed(instance)]);
                self.spares.insert(instance, Spare { has, is_idle: is.is_idle, claimed });
            }
        }
        (come, gone)
    }

    fn held_mut(&mut self, side: Side, stays: bool) -> &mut Amount {
        if stays { self.taken.of_mut(side) } else { self.spared.of_mut(side) }
    }
}

/// The instances of which something else is counted, with what was and what is.
fn changed<'a>(
    old: Option<&'a HostFacts>,
    new: Option<&'a HostFacts>,
) -> impl Iterator<Item = (InstanceId, Weight, Weight)> + 'a {
    let weighed = pairs(old, new).map(|(instance, was, is)| (instance, Weight::of(was), Weight::of(is)));
    weighed.filter(|(_, was, is)| was != is)
}

/// All instances of either report, with what both say of each.
pub(super) fn pairs<'a>(
    old: Option<&'a HostFacts>,
    new: Option<&'a HostFacts>,
) -> impl Iterator<Item = (InstanceId, Option<&'a InstanceFact>, Option<&'a InstanceFact>)> {
    let [mut old, mut new] =
        [old, new].map(|facts| facts.into_iter().flat_map(|facts| &facts.instances).peekable());
    std::iter::from_fn(move || {
        let next = match (old.peek(), new.peek()) {
            (None, None) => return None,
            (Some((id, _)), None) | (None, Some((id, _))) => **id,
            (Some((one, _)), Some((other, _))) => **one.min(other),
        };
        let was = old.next_if(|(id, _)| **id == next).map(|(_, fact)| fact);
        let is = new.next_if(|(id, _)| **id == next).map(|(_, fact)| fact);
        Some((next, was, is))
    })
}
