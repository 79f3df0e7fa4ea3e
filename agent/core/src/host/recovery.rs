//! Owns what becomes of each instance that an agent discovers on its host when it starts, or before its next lease.
//!
//! Promises: under a lease that goes on nothing healthy is destroyed: not for want of facts, not because it stands still
//! for a checkpoint, not because an earlier agent had not written down how far it had come; what never ran is taken up
//! again by its node, and only what is known to be gone is dead (SAFE-2). Before the next lease every member is destroyed.
//! Must not do: look at libvirt, the guard or the store; destroy what a migration brings, or may bring by a record that
//! cannot be read.
//!
//! | discovered, lease goes on | runs | stands still | cannot go on |
//! |---|---|---|---|
//! | ready, idle | goes on; one that the guard has lost is registered anew | resumed, then the same | goes on, and is judged by its state |
//! | deploying, its node names it | goes on, and is deployed again | resumed | as above |
//! | restoring, guard holds it | ready | resumed, ready | as above |
//! | restoring, guard does not | destroyed: it never ran, and its node has it restored again | the same | the same |
//! | booting for a node | left: its node has it booted | destroyed | destroyed |
//! | not reported, its node names it | by the guard's word and where it came from: ready, to be deployed, idle | the same | the same |
//! | not reported, own facts unreadable | idle, if nothing speaks against it, else left | left | left |
//! | anything else | destroyed | destroyed | destroyed |
//!
//! A member that is gone, and of which what was reported cannot be read, may have been ready: it is dead (as not here), and
//! not made again as if it had never been. A first placement that had not begun may then be told of as a loss.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::Local;
use crate::death::Death;
use crate::model::ids::{Epoch, HostId, InstanceId, NodeId};
use crate::model::records::{HostFacts, InstanceFact, NodeRecord, Origin, Phase};
use crate::model::units::{MiB, UnixMillis, Vcpus};

/// What an instance was seen to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Its processors run.
    Running,
    /// It stands still, as for a checkpoint, and can be resumed.
    Paused,
    /// It was restored or received and has not run since, or it is the source of a migration.
    Incoming,
    /// Its guest cannot go on; what that means is judged by its state once it is known here.
    Failed,
    /// libvirt has it without a process.
    Off,
}

/// One instance that was discovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it was seen to do.
    pub seen: Seen,
    /// The epoch that is noted on it.
    pub epoch: Epoch,
    /// The address that is noted on it.
    pub address: Option<Ipv4Addr>,
    /// Its memory.
    pub memory: MiB,
    /// Its processors.
    pub vcpus: Vcpus,
}

/// What this host reported last.
#[derive(Debug, Clone, Copy)]
pub enum Reported<'a> {
    /// Nothing that holds for the lease in question.
    Nothing,
    /// These facts.
    Facts(&'a HostFacts),
    /// Something that this version of the agent cannot read.
    Unreadable,
}

/// How a node names an instance of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naming {
    /// As a member under the lease in question.
    Member {
        /// The node.
        node: NodeId,
        /// From which epoch on this life of it counts.
        since: Epoch,
        /// Where it came from.
        origin: Origin,
    },
    /// As a member under another lease: it is gone, or has to go.
    Earlier,
    /// A migration brings it here.
    Arriving,
    /// A migration takes it away.
    MigratingOut {
        /// Where to.
        to: HostId,
    },
}

/// Everything that the recovery of a host follows from.
#[derive(Debug)]
pub struct Discovery<'a> {
    /// Whether the lease goes on, so that members do too.
    pub resumed: bool,
    /// What this host reported under the lease that goes on, or under the one before the next.
    pub reported: Reported<'a>,
    /// What libvirt has.
    pub found: &'a BTreeMap<InstanceId, Found>,
    /// Of what was to be looked for ([`sought`]): what neither libvirt nor any process has.
    pub gone: &'a BTreeSet<InstanceId>,
    /// What the guard holds, in which epoch.
    pub guarded: &'a BTreeMap<InstanceId, Epoch>,
    /// What nodes name here.
    pub names: &'a BTreeMap<InstanceId, Naming>,
    /// Whether a node's record cannot be read, which may name anything.
    pub unreadable: bool,
    /// The wall clock.
    pub now: UnixMillis,
}

/// What becomes of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// It goes on, as that.
    GoesOn(Local),
    /// Its links are brought up and it is let run; then it goes on, as that.
    Resume(Local),
    /// It is destroyed. Without a death of its own it is not dead for that: a node that names it has it made again.
    Destroy {
        /// Why.
        reason: &'static str,
        /// What is known of it from then on.
        dead: Option<Box<InstanceFact>>,
    },
    /// It is dead.
    Dead(InstanceFact),
    /// It is left alone: whoever it belongs to takes it up.
    Leave,
}

/// What nodes name on `me`, where `number` is the lease in question. `reported` tells which migrations have failed.
pub fn names<'a>(
    me: &HostId,
    number: u64,
    nodes: impl Iterator<Item = (&'a NodeId, &'a NodeRecord)>,
    reported: Option<&HostFacts>,
) -> BTreeMap<InstanceId, Naming> {
    let mut names = BTreeMap::new();
    for (node, record) in nodes {
        for member in record.members().filter(|member| &member.host == me) {
            let Some(instance) = member.instance else { continue };
            let naming = if member.lease == number {
                Naming::Member { node: node.clone(), since: record.since(member), origin: member.origin }
            } else {
                Naming::Earlier
            };
            names.insert(instance, naming);
        }
        let primary = record.primary.as_ref().and_then(|primary| primary.instance);
        let (Some(migration), Some(instance)) = (&record.migration, primary) else { continue };
        let fact = reported.and_then(|facts| facts.instances.get(&instance));
        if &migration.to == me {
            names.insert(instance, Naming::Arriving);
        } else if &migration.from == me && migration.stands(fact) {
            names.insert(instance, Naming::MigratingOut { to: migration.to.clone() });
        }
    }
    names
}

/// What is to be looked for although libvirt may not have it: what was reported and, where that cannot be read, the members
/// that nodes name.
#[must_use]
pub fn sought(reported: Reported<'_>, names: &BTreeMap<InstanceId, Naming>) -> BTreeSet<InstanceId> {
    match reported {
        Reported::Nothing => BTreeSet::new(),
        Reported::Facts(facts) => facts.instances.keys().copied().collect(),
        Reported::Unreadable => {
            let members = names.iter().filter(|(_, naming)| matches!(naming, Naming::Member { .. }));
            members.map(|(instance, _)| *instance).collect()
        }
    }
}

/// Decides for every instance that was discovered or reported.
#[must_use]
pub fn recover(discovery: &Discovery<'_>) -> BTreeMap<InstanceId, Recovery> {
    let mut recovery: BTreeMap<InstanceId, Recovery> = BTreeMap::new();
    for (&instance, found) in discovery.found {
        let outcome = if discovery.resumed {
            discovery.going_on(instance, found)
        } else {
            discovery.before_the_next(instance, found)
        };
        recovery.insert(instance, outcome);
    }
    let reported = discovery.facts().filter(|_| discovery.resumed);
    for (&instance, fact) in reported.into_iter().flat_map(|facts| &facts.instances) {
        if discovery.gone.contains(&instance) && !discovery.found.contains_key(&instance) {
            recovery.insert(instance, Recovery::Dead(discovery.dead(instance, fact)));
        }
    }
    if discovery.resumed && matches!(discovery.reported, Reported::Unreadable) {
        for (&instance, naming) in discovery.names {
            if let Naming::Member { node, since, .. } = naming
                && discovery.gone.contains(&instance)
                && !discovery.found.contains_key(&instance)
            {
                recovery.insert(instance, Recovery::Dead(discovery.not_here(node, *since)));
            }
        }
    }
    recovery
}

const HALF_WAY: Recovery = Recovery::Destroy { reason: "an earlier agent left it half-way", dead: None };
const NO_PLACE: Recovery = Recovery::Destroy { reason: "it has no place under this lease", dead: None };

impl Discovery<'_> {
    fn facts(&self) -> Option<&HostFacts> {
        match self.reported {
            Reported::Facts(facts) => Some(facts),
            Reported::Nothing | Reported::Unreadable => None,
        }
    }

    fn going_on(&self, instance: InstanceId, found: &Found) -> Recovery {
        // It may be named again under the same id, to be restored: what was reported of it is of an earlier life then.
        let outdated = |fact: &&InstanceFact| match self.names.get(&instance) {
            Some(Naming::Member { since, .. }) => fact.phase.is_dead() && fact.epoch < *since,
            Some(Naming::Earlier | Naming::Arriving | Naming::MigratingOut { .. }) | None => false,
        };
        let fact =
            self.facts().and_then(|facts| facts.instances.get(&instance)).filter(|fact| !outdated(fact));
        match (self.names.get(&instance), fact) {
            (Some(Naming::Arriving), _) => Recovery::Leave,
            (Some(Naming::MigratingOut { .. }), _) if found.seen == Seen::Incoming => Recovery::Leave,
            // libvirt's word that there is no process is no proof of it.
            (_, Some(fact)) if found.seen == Seen::Off || fact.phase.is_dead() => Recovery::Destroy {
                reason: "it is dead, and something is left of it",
                dead: Some(Box::new(self.dead(instance, fact))),
            },
            (naming, Some(fact)) => self.reported(instance, found, fact, naming),
            (Some(Naming::Member { node, since, origin }), None) => {
                self.named(instance, found, (node, *since, *origin))
            }
            (Some(Naming::MigratingOut { .. }), None) => Recovery::Leave,
            (Some(Naming::Earlier) | None, None) => self.unnamed(instance, found),
        }
    }

    fn reported(
        &self,
        instance: InstanceId,
        found: &Found,
        fact: &InstanceFact,
        naming: Option<&Naming>,
    ) -> Recovery {
        let local =
            |fact: InstanceFact| Local { unguarded: self.is_unguarded(instance, &fact), fact, paused: false };
        let is_named = matches!(naming, Some(Naming::Member { .. } | Naming::MigratingOut { .. }));
        match &fact.phase {
            Phase::Ready => alive(found.seen, local(fact.clone())),
            // Nobody counts on it: one that stands still is more easily made anew.
            Phase::Idle if found.seen == Seen::Incoming => HALF_WAY,
            Phase::Idle => alive(found.seen, local(fact.clone())),
            Phase::Deploying if is_named => alive(found.seen, local(fact.clone())),
            Phase::Restoring if self.guarded.get(&instance).is_some_and(|held| *held >= fact.epoch) => {
                let (address, since) = (fact.address.or(found.address), self.now);
                let ready = InstanceFact { phase: Phase::Ready, address, since, ..fact.clone() };
                alive(found.seen, local(ready))
            }
            Phase::Booting if is_named && found.seen == Seen::Running => Recovery::Leave,
            Phase::Booting | Phase::Deploying | Phase::Restoring | Phase::Dead { .. } => HALF_WAY,
        }
    }

    /// Whether the guard has lost one that it once acknowledged: nobody would end it with the lease. Its epoch stays what it
    /// is: a death before it is registered anew is of that life.
    fn is_unguarded(&self, instance: InstanceId, fact: &InstanceFact) -> bool {
        let held = self.guarded.get(&instance).copied().unwrap_or_default();
        held < fact.epoch
    }

    /// What this host did not get to report of a member, the guard tells: it acknowledged what was about to run.
    fn named(&self, instance: InstanceId, found: &Found, whose: (&NodeId, Epoch, Origin)) -> Recovery {
        let (node, since, origin) = whose;
        let held = self.guarded.get(&instance).copied();
        let local = |phase, epoch| {
            Local::of(InstanceFact { node: Some(node.clone()), epoch, ..rebuilt(found, phase, self.now) })
        };
        match (held, found.seen) {
            (_, Seen::Off) => HALF_WAY,
            (Some(held), seen) if held >= since => alive(seen, local(Self::guarded_phase(origin), held)),
            (_, Seen::Running) if origin == Origin::Created => Recovery::Leave,
            (_, Seen::Running) => alive(Seen::Running, local(Phase::Idle, Epoch(0))),
            (_, Seen::Paused | Seen::Incoming | Seen::Failed) => HALF_WAY,
        }
    }

    /// What came with its state is whole once it may run. Whether another's environment was deployed to its end nobody
    /// noted: to deploy it again leaves alone what is right already.
    fn guarded_phase(origin: Origin) -> Phase {
        match origin {
            Origin::Restored(_) | Origin::Migrated => Phase::Ready,
            Origin::Idle | Origin::Created | Origin::Promoted | Origin::Reserved => Phase::Deploying,
        }
    }

    fn unnamed(&self, instance: InstanceId, found: &Found) -> Recovery {
        match self.reported {
            Reported::Unreadable if self.is_idle(instance, found) => Recovery::GoesOn(idle(found, self.now)),
            Reported::Unreadable => Recovery::Leave,
            Reported::Nothing | Reported::Facts(_) if self.unreadable => Recovery::Leave,
            Reported::Nothing | Reported::Facts(_) => NO_PLACE,
        }
    }

    /// Whether nothing says that it is, or was, more than an instance that waits for a role.
    fn is_idle(&self, instance: InstanceId, found: &Found) -> bool {
        found.seen == Seen::Running
            && found.epoch == Epoch(0)
            && !self.guarded.contains_key(&instance)
            && !self.names.contains_key(&instance)
    }

    fn before_the_next(&self, instance: InstanceId, found: &Found) -> Recovery {
        let fact = self.facts().and_then(|facts| facts.instances.get(&instance));
        match (self.reported, fact) {
            _ if !self.is_idle(instance, found) => NO_PLACE,
            (Reported::Facts(_), Some(fact)) if fact.phase == Phase::Idle && fact.node.is_none() => {
                Recovery::GoesOn(Local::of(fact.clone()))
            }
            (Reported::Unreadable, _) => Recovery::GoesOn(idle(found, self.now)),
            (Reported::Facts(_) | Reported::Nothing, _) => NO_PLACE,
        }
    }

    fn not_here(&self, node: &NodeId, epoch: Epoch) -> InstanceFact {
        InstanceFact {
            phase: Phase::Dead { death: Death::NotHere, at: self.now },
            node: Some(node.clone()),
            epoch,
            address: None,
            memory: MiB(0),
            vcpus: Vcpus(0),
            since: self.now,
            windows: None,
            admitted: BTreeMap::new(),
            migration_failed: None,
        }
    }

    fn dead(&self, instance: InstanceId, fact: &InstanceFact) -> InstanceFact {
        if fact.phase.is_dead() {
            return fact.clone();
        }
        let death = match self.names.get(&instance) {
            Some(Naming::MigratingOut { to }) => Death::MaybeMoved { to: to.clone() },
            Some(Naming::Member { .. } | Naming::Earlier | Naming::Arriving) | None => {
                Death::Exited { detail: "found dead when the agent started".to_owned() }
            }
        };
        InstanceFact { phase: Phase::Dead { death, at: self.now }, ..fact.clone() }
    }
}

/// What becomes of one that has a place here.
fn alive(seen: Seen, local: Local) -> Recovery {
    match seen {
        Seen::Running | Seen::Failed => Recovery::GoesOn(local),
        Seen::Paused | Seen::Incoming => Recovery::Resume(local),
        Seen::Off => HALF_WAY,
    }
}

fn idle(found: &Found, now: UnixMillis) -> Local {
    Local::of(rebuilt(found, Phase::Idle, now))
}

fn rebuilt(found: &Found, phase: Phase, since: UnixMillis) -> InstanceFact {
    InstanceFact {
        phase,
        node: None,
        epoch: found.epoch,
        address: found.address,
        memory: found.memory,
        vcpus: found.vcpus,
        since,
        windows: None,
        admitted: BTreeMap::new(),
        migration_failed: None,
    }
}

#[cfg(test)]
mod tests;
