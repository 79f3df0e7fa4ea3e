//! Owns the model of how the daemon does what its lease's state machine asks for, and of the discovery when a lease
//! is opened or goes on.

use std::collections::BTreeMap;

use understudy_core::host::lease::{Attempt, LeaseAnswer, LeaseEffect, LeaseInput};
use understudy_core::host::opening::{GuardHolds, Identity, Opening, opening};
use understudy_core::host::recovery::{Discovery, Found, Recovery, Reported, Seen, names, recover, sought};
use understudy_core::host::{Input, Local};
use understudy_core::keys::{Key, decode, encode};
use understudy_core::model::ids::{HostId, InstanceId};
use understudy_core::model::records::{LeaseRecord, RenewalRecord, Service};
use understudy_core::model::units::Boottime;
use understudy_core::model::view::Versioned;
use understudy_core::store_cache::StoreCache;
use understudy_hypervisor::{Hypervisor, InstanceFact, InstanceState, Liveness, PauseCause, Pid};
use understudy_store::{Entry, Txn};

use super::jobs::ipv4;
use super::{Agent, Tag, boot_id};
use crate::Weakness;
use crate::cached_store::unchanged;
use crate::guard::Acknowledgement;
use crate::world::{Answer, Body, World};

/// What is asked of the store for the lease.
#[derive(Debug, Clone)]
pub(crate) enum LeaseRequest {
    Read,
    Open {
        record: LeaseRecord,
        sent: Boottime,
    },
    /// The lease of an earlier agent goes on.
    Resume {
        number: u64,
        sent: Boottime,
        acknowledged: Boottime,
    },
    Renew,
}

/// What an agent found when it looked at its host: what goes on, and which process of each instance it watches.
pub(crate) type Discovered = (BTreeMap<InstanceId, Local>, BTreeMap<InstanceId, Pid>);

impl Agent {
    /// The lease's own thread: what is due is done to the moment, whatever else the agent is at.
    pub(super) fn step_lease(&mut self, world: &mut World, me: &HostId) {
        let clock = world.machine(me).boottime(world.now);
        if self.lease.next_due().is_some_and(|due| clock >= due) {
            self.take_lease(world, me, LeaseInput::Due);
        }
        // What goes on is looked at as soon as it can be.
        if self.recovers && self.cache.is_some() {
            let number = self.number;
            if let Some(discovered) = self.discover(world, me, Some(number), true) {
                self.recovers = false;
                self.finish_recovery(world, me, discovered);
            } else {
                let guarded = world.machine(me).guard.gone_until <= world.now;
                let service = if guarded { Service::Libvirtd } else { Service::Guard };
                self.inform(world, me, Input::Unrecovered { service });
            }
        }
    }

    fn take_lease(&mut self, world: &mut World, me: &HostId, input: LeaseInput) {
        let clock = world.machine(me).boottime(world.now);
        self.dirty = true;
        match self.lease.step(input, clock) {
            None => {}
            Some(LeaseEffect::Open(attempt)) => {
                self.ask_for_lease(world, me, attempt, LeaseRequest::Read);
            }
            Some(LeaseEffect::Renew(attempt)) => {
                self.ask_for_lease(world, me, attempt, LeaseRequest::Renew);
            }
            Some(LeaseEffect::Confirm(attempt, deadline)) => {
                let answer = self.ask_guard(world, me, deadline);
                self.take_lease(world, me, LeaseInput::Answer(attempt, answer));
            }
            Some(LeaseEffect::KillMembers(_)) => self.kill_members(world, me),
        }
    }

    fn ask_guard(&mut self, world: &mut World, me: &HostId, deadline: Boottime) -> LeaseAnswer {
        let (number, now) = (self.lease.status().number, world.now);
        let answers = !world.machine(me).lacks_guard(now);
        self.inform(world, me, Input::Service { service: Service::Guard, answers });
        let machine = world.machine_mut(me);
        if !answers {
            return LeaseAnswer::GuardSilent;
        }
        match machine.confirm(deadline, number, now) {
            Acknowledgement::Given => LeaseAnswer::GuardAcknowledged,
            Acknowledgement::Refused => LeaseAnswer::GuardRefused,
            Acknowledgement::Closing => LeaseAnswer::GuardSilent,
        }
    }

    fn ask_for_lease(&mut self, world: &mut World, me: &HostId, attempt: Attempt, request: LeaseRequest) {
        let key = Key::Lease(me.clone());
        let put = |of: &Key, record| {
            Body::Commit(Txn::new().when(unchanged(&key, self.revision)).put(of.to_string(), record))
        };
        let renewal = |number| {
            let record = RenewalRecord { number, at: world.machine(me).wall(world.now) };
            put(&Key::Renewal(me.clone()), encode(&record))
        };
        let body = match &request {
            LeaseRequest::Read => Body::Read(key.clone()),
            LeaseRequest::Open { record, .. } => put(&key, encode(record)),
            LeaseRequest::Resume { number, .. } => renewal(*number),
            LeaseRequest::Renew => renewal(self.number),
        };
        self.send(world, me, Tag::Lease(attempt, request), body);
    }

    pub(super) fn lease_answered(
        &mut self,
        world: &mut World,
        me: &HostId,
        attempt: Attempt,
        request: LeaseRequest,
        answer: Answer,
    ) {
        let answer = match (request, answer) {
            (LeaseRequest::Read, Answer::Read(known)) => {
                let foreign = world.machine(me).foreign.contains_key(&Key::Lease(me.clone()).to_string());
                if foreign && known.is_some() {
                    return self.lease_is_unavailable(world, me, attempt);
                }
                return self.open(world, me, attempt, lease_of(known));
            }
            (LeaseRequest::Open { record, sent }, Answer::Applied(revision)) => {
                (self.number, self.revision, self.has_recovered) = (record.number, revision, false);
                world.note(format!("{me} opens lease {}", record.number));
                let discovered = self.cleared.take().unwrap_or_default();
                self.finish_recovery(world, me, discovered);
                LeaseAnswer::Opened { number: record.number, sent, acknowledged: None }
            }
            (LeaseRequest::Resume { number, sent, acknowledged }, Answer::Applied(_)) => {
                world.note(format!("{me} opens lease {number}"));
                (self.number, self.has_recovered, self.recovers) = (number, false, true);
                self.inform(world, me, Input::Resumed { lease: number });
                LeaseAnswer::Opened { number, sent, acknowledged: Some(acknowledged) }
            }
            (LeaseRequest::Renew, Answer::Applied(_)) => LeaseAnswer::Renewed,
            (
                LeaseRequest::Open { .. } | LeaseRequest::Resume { .. } | LeaseRequest::Renew,
                Answer::Refused { .. },
            ) => LeaseAnswer::Refused,
            (_, _) => LeaseAnswer::Unavailable,
        };
        self.take_lease(world, me, LeaseInput::Answer(attempt, answer));
    }

    fn kill_members(&mut self, world: &mut World, me: &HostId) {
        world.note(format!("{me} has lost lease {}: every member ends", self.number));
        let (members, now) = (std::mem::take(&mut self.members), world.now);
        if world.weakness != Some(Weakness::SparesMembers) {
            for (instance, process) in members {
                world.machine_mut(me).kill(instance, process, now);
            }
        }
        self.inform(world, me, Input::LeaseLost);
        (self.has_recovered, self.recovers) = (false, false);
    }

    /// Goes on with the open lease of this very boot, else makes sure that nothing of an earlier one runs, then opens the
    /// next.
    fn open(
        &mut self,
        world: &mut World,
        me: &HostId,
        attempt: Attempt,
        known: Option<Versioned<LeaseRecord>>,
    ) {
        let (known, revision) = known.map_or((None, 0), |known| (Some(known.value), known.revision));
        let machine = world.machine(me);
        let (clock, deaf) = (machine.boottime(world.now), machine.lacks_guard(world.now));
        let guard =
            machine.guard.deadline.map(|deadline| GuardHolds { number: machine.guard.lease, deadline });
        let own = Identity { boot: boot_id(world, me), machine: Default::default() };
        self.revision = revision;
        let request = match opening(known.as_ref(), &own, guard, clock) {
            _ if deaf => return self.lease_is_unavailable(world, me, attempt),
            Opening::Taken { .. } => return self.lease_is_unavailable(world, me, attempt),
            Opening::Resume { number, acknowledged } => {
                LeaseRequest::Resume { number, sent: clock, acknowledged }
            }
            // What may go on is told by the store.
            Opening::Next { .. } if self.cache.is_none() => {
                return self.lease_is_unavailable(world, me, attempt);
            }
            Opening::Next { record, previous } => {
                self.cleared = self.discover(world, me, previous, false);
                if self.cleared.is_none() {
                    return self.lease_is_unavailable(world, me, attempt);
                }
                LeaseRequest::Open { record, sent: clock }
            }
        };
        self.ask_for_lease(world, me, attempt, request);
    }

    fn lease_is_unavailable(&mut self, world: &mut World, me: &HostId, attempt: Attempt) {
        self.take_lease(world, me, LeaseInput::Answer(attempt, LeaseAnswer::Unavailable));
    }

    /// What goes on, by core's word; the rest is destroyed, or else nothing goes on and all of it is tried again.
    fn discover(
        &mut self,
        world: &mut World,
        me: &HostId,
        previous: Option<u64>,
        resumed: bool,
    ) -> Option<Discovered> {
        let machine = world.machine(me);
        let hypervisor = machine.hypervisor.clone();
        if machine.guard.gone_until > world.now {
            return None;
        }
        let here = hypervisor.instances().ok()?;
        let nothing = StoreCache::default();
        let cache = self.cache.as_deref().unwrap_or(&nothing);
        let facts = cache.facts(me).filter(|facts| Some(facts.lease) == previous);
        let nodes = cache.view().nodes.iter().map(|(node, known)| (node, &known.value));
        let number = if resumed { self.number } else { 0 };
        let guarded = here
            .iter()
            .filter(|fact| !machine.dying.contains_key(&fact.id))
            .filter_map(|fact| Some((fact.id, machine.guard.epoch_of(fact.id, fact.pid?)?)));
        let reported = if cache.has_quarantined_facts(me) {
            Reported::Unreadable
        } else {
            facts.map_or(Reported::Nothing, Reported::Facts)
        };
        let names = names(me, number, nodes, facts);
        let gone = |instance: &InstanceId| {
            hypervisor.liveness(*instance).is_ok_and(|liveness| liveness == Liveness::Gone)
        };
        let discovery = Discovery {
            resumed,
            reported,
            found: &here.iter().map(|fact| (fact.id, found(fact))).collect(),
            gone: &sought(reported, &names).into_iter().filter(gone).collect(),
            guarded: &guarded.collect(),
            names: &names,
            unreadable: cache.has_quarantined_nodes(),
            now: machine.wall(world.now),
        };
        let mut goes_on = BTreeMap::new();
        for (instance, outcome) in recover(&discovery) {
            let local = match outcome {
                Recovery::GoesOn(local) => Some(local),
                Recovery::Resume(local) => {
                    hypervisor.set_link(instance, true).ok()?;
                    hypervisor.resume(instance).ok()?;
                    Some(local)
                }
                Recovery::Destroy { dead, .. } => {
                    hypervisor.destroy(instance).ok()?;
                    dead.map(|fact| Local::of(*fact))
                }
                Recovery::Dead(fact) => Some(Local::of(fact)),
                Recovery::Leave => None,
            };
            goes_on.extend(local.map(|local| (instance, local)));
        }
        let process = |instance: &InstanceId| Some((*instance, hypervisor.process_of(*instance)?));
        let processes = goes_on.keys().filter_map(process).collect();
        Some((goes_on, processes))
    }

    /// What goes on could not be looked at yet: it stands as an earlier agent reported it.
    pub(super) fn await_recovery(&mut self, world: &mut World, me: &HostId) {
        let reported = self.cache.as_ref().and_then(|cache| cache.facts(me));
        if !self.recovers || reported.is_none_or(|facts| facts.lease != self.number) {
            return;
        }
        self.work(world, me);
        self.publish(world, me);
    }

    /// A process that has ended since the discovery is found dead at the next look.
    fn finish_recovery(&mut self, world: &mut World, me: &HostId, (found, processes): Discovered) {
        self.watched = processes;
        self.has_recovered = true;
        self.dirty = true;
        self.inform(world, me, Input::Recovered { lease: self.number, found });
    }
}

/// What a read of a host's lease gave.
fn lease_of(entry: Option<Entry>) -> Option<Versioned<LeaseRecord>> {
    let entry = entry?;
    let value =
        decode(&entry.key, &entry.value).expect("what was written is read by an agent of this version");
    Some(Versioned { value, revision: entry.modified.0 })
}

fn found(fact: &InstanceFact) -> Found {
    let seen = match fact.state {
        InstanceState::Running | InstanceState::ShuttingDown => Seen::Running,
        InstanceState::Paused(PauseCause::Migration) => Seen::Incoming,
        InstanceState::Paused(PauseCause::IoError | PauseCause::Watchdog | PauseCause::Panicked)
        | InstanceState::Crashed => Seen::Failed,
        InstanceState::Paused(_) => Seen::Paused,
        InstanceState::Off => Seen::Off,
    };
    let (epoch, address) = (fact.note.epoch, ipv4(fact.note.address));
    Found { seen, epoch, address, memory: fact.memory, vcpus: fact.vcpus }
}
