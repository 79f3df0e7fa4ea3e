//! Owns the model of how the daemon does what its lease's state machine asks for, and of the taking of stock when a lease
//! is opened or goes on.

use std::collections::{BTreeMap, BTreeSet};

use understudy_core::death::Death;
use understudy_core::host::Local;
use understudy_core::host::lease::{Attempt, LeaseAnswer, LeaseEffect, LeaseInput};
use understudy_core::host::opening::{GuardHolds, Identity, Opening, opening};
use understudy_core::ids::{HostId, InstanceId};
use understudy_core::records::{HostFacts, Phase, SessionRecord};
use understudy_core::units::Boottime;
use understudy_core::view::Versioned;

use super::{Agent, Tag, arriving, boot_id};
use crate::Weakness;
use crate::machine::Stage;
use crate::store::{Key, Txn, Value};
use crate::world::{Answer, Body, World};

/// What is asked of the store for the lease.
#[derive(Debug, Clone)]
pub(crate) enum LeaseRequest {
    Read,
    Open { record: SessionRecord, sent: Boottime, acknowledged: Option<Boottime> },
    Renew { record: SessionRecord },
    LookAgain { record: SessionRecord },
}

/// What an agent found when it looked at its host: what goes on, and which life of each instance it watches.
pub(crate) type Stock = (BTreeMap<InstanceId, Local>, BTreeMap<InstanceId, u64>);

impl Agent {
    /// The lease's own thread: what is due is done to the moment, whatever else the agent is at.
    pub(super) fn tend_lease(&mut self, world: &mut World, me: &HostId) {
        let clock = world.machine(me).boottime(world.now);
        if self.lease.next_due().is_some_and(|due| clock >= due) {
            self.take_lease(world, me, LeaseInput::Due);
        }
        // What goes on is looked at as soon as it can be.
        if self.recovers && self.mirror.is_some() {
            let number = self.number;
            if let Some(stock) = self.take_stock(world, me, Some(number), true) {
                self.recovers = false;
                self.adopt(stock);
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
                let record = SessionRecord { beat: self.beat + 1, ..self.lease_record(world, me) };
                self.ask_for_lease(world, me, attempt, LeaseRequest::Renew { record });
            }
            Some(LeaseEffect::Confirm(attempt, deadline)) => {
                let answer = self.ask_guard(world, me, deadline);
                self.take_lease(world, me, LeaseInput::Answer(attempt, answer));
            }
            Some(LeaseEffect::KillMembers(_)) => self.kill_members(world, me),
        }
    }

    fn lease_record(&self, world: &World, me: &HostId) -> SessionRecord {
        SessionRecord { boot: boot_id(world, me), number: self.number, beat: self.beat, ended: None }
    }

    fn ask_guard(&self, world: &mut World, me: &HostId, deadline: Boottime) -> LeaseAnswer {
        let (number, now) = (self.lease.status().number, world.now);
        let machine = world.machine_mut(me);
        let clock = machine.boottime(now);
        match now >= machine.guard_deaf_until {
            false => LeaseAnswer::GuardSilent,
            true if machine.confirm(deadline, number, clock) => LeaseAnswer::GuardAcknowledged,
            true => LeaseAnswer::GuardRefused,
        }
    }

    fn ask_for_lease(&mut self, world: &mut World, me: &HostId, attempt: Attempt, request: LeaseRequest) {
        let key = Key::Session(me.clone());
        let write = |record: &SessionRecord| {
            Body::Commit(Txn {
                when: vec![(key.clone(), self.revision)],
                writes: vec![(key.clone(), Some(Value::Session(record.clone())))],
            })
        };
        let body = match &request {
            LeaseRequest::Read | LeaseRequest::LookAgain { .. } => Body::Read(key.clone()),
            LeaseRequest::Open { record, .. } | LeaseRequest::Renew { record } => write(record),
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
            (LeaseRequest::Read, Answer::Read(known)) => return self.open(world, me, attempt, known),
            (LeaseRequest::Open { record, sent, acknowledged }, Answer::Applied(revision)) => {
                let number = record.number;
                world.note(format!("{me} opens session {number}"));
                (self.number, self.beat, self.revision) = (number, record.beat, revision);
                self.adopted = false;
                match acknowledged {
                    Some(_) => self.recovers = true,
                    None => {
                        let stock = self.cleared.take().unwrap_or_default();
                        self.adopt(stock);
                    }
                }
                LeaseAnswer::Opened { number, sent, acknowledged }
            }
            (LeaseRequest::Open { .. }, Answer::Refused(_)) => LeaseAnswer::Refused,
            (LeaseRequest::Renew { record }, Answer::Applied(revision)) => {
                (self.beat, self.revision) = (record.beat, revision);
                LeaseAnswer::Renewed
            }
            (LeaseRequest::Renew { record }, Answer::Refused(_)) => {
                return self.ask_for_lease(world, me, attempt, LeaseRequest::LookAgain { record });
            }
            // A refused renewal may be this agent's own earlier one whose answer was lost.
            (LeaseRequest::LookAgain { record }, Answer::Read(known)) => match known {
                Some(Versioned { value: Value::Session(found), revision })
                    if found.ended.is_none()
                        && found.boot == record.boot
                        && found.number == record.number =>
                {
                    (self.beat, self.revision) = (found.beat, revision);
                    LeaseAnswer::Unavailable
                }
                Some(_) | None => LeaseAnswer::Refused,
            },
            (_, _) => LeaseAnswer::Unavailable,
        };
        self.take_lease(world, me, LeaseInput::Answer(attempt, answer));
    }

    fn kill_members(&mut self, world: &mut World, me: &HostId) {
        world.note(format!("{me} has lost session {}: every member ends", self.number));
        world.machine_mut(me).kill_registered();
        self.local.retain(|_, local| local.fact.node.is_none());
        self.forget_work(world);
        (self.adopted, self.recovers) = (false, false);
    }

    fn forget_work(&mut self, world: &World) {
        if world.weakness != Some(Weakness::JobsOutliveSessions) {
            self.jobs.clear();
        }
        self.busy.clear();
        self.leaving.clear();
        self.ending.clear();
        self.again.clear();
        self.filling = false;
    }

    /// Goes on with the open lease of this very boot, else makes sure that nothing of an earlier one runs, then opens the
    /// next.
    fn open(&mut self, world: &mut World, me: &HostId, attempt: Attempt, known: Option<Versioned<Value>>) {
        let (known, revision) = match known {
            Some(Versioned { value: Value::Session(session), revision }) => (Some(session), revision),
            Some(_) | None => (None, 0),
        };
        let machine = world.machine(me);
        let (clock, deaf) = (machine.boottime(world.now), world.now < machine.guard_deaf_until);
        let guard =
            machine.guard.deadline.map(|deadline| GuardHolds { number: machine.guard.session, deadline });
        let own = Identity { boot: boot_id(world, me) };
        self.forget_work(world);
        self.revision = revision;
        let (record, acknowledged) = match opening(known.as_ref(), &own, guard, clock) {
            _ if deaf => return self.lease_is_unavailable(world, me, attempt),
            Opening::Resume { record, acknowledged } => (record, Some(acknowledged)),
            // What may go on is told by the store.
            Opening::Next { .. } if self.mirror.is_none() => {
                return self.lease_is_unavailable(world, me, attempt);
            }
            Opening::Next { record, previous } => {
                self.cleared = self.take_stock(world, me, previous, false);
                if self.cleared.is_none() {
                    return self.lease_is_unavailable(world, me, attempt);
                }
                (record, None)
            }
        };
        let request = LeaseRequest::Open { record, sent: clock, acknowledged };
        self.ask_for_lease(world, me, attempt, request);
    }

    fn lease_is_unavailable(&mut self, world: &mut World, me: &HostId, attempt: Attempt) {
        self.take_lease(world, me, LeaseInput::Answer(attempt, LeaseAnswer::Unavailable));
    }

    /// What goes on; the rest is ended, or else nothing does. What was reported in this session and is gone is known dead.
    fn take_stock(
        &mut self,
        world: &mut World,
        me: &HostId,
        previous: Option<u64>,
        adopting: bool,
    ) -> Option<Stock> {
        let wall = world.machine(me).wall(world.now);
        let mirror = self.mirror.clone().unwrap_or_default();
        let reported: Option<&HostFacts> = mirror.facts(me).filter(|facts| Some(facts.session) == previous);
        let fact_of = |instance: &InstanceId| reported.and_then(|facts| facts.instances.get(instance));
        let arriving = arriving(&mirror, me);
        let (mut found, mut ends) = (BTreeMap::new(), BTreeSet::new());
        for (instance, domain) in &world.machine(me).domains {
            let fact = fact_of(instance);
            let goes_on = domain.stage == Stage::Running
                && fact.is_some_and(|fact| match fact.phase {
                    Phase::Idle => adopting || fact.node.is_none(),
                    Phase::Ready => adopting,
                    Phase::Booting | Phase::Deploying | Phase::Restoring | Phase::Dead { .. } => false,
                });
            match fact {
                Some(fact) if goes_on => {
                    found.insert(*instance, Local { fact: fact.clone(), paused: false });
                }
                Some(_) | None if adopting && arriving.contains(instance) => {}
                None if adopting && !mirror.unread.is_empty() => {}
                Some(_) | None => {
                    ends.insert(*instance);
                }
            }
        }
        if world.holds(me) && !ends.is_empty() {
            return None;
        }
        world.machine_mut(me).domains.retain(|instance, _| !ends.contains(instance));
        if let Some(reported) = reported.filter(|_| adopting) {
            for (instance, fact) in &reported.instances {
                if !found.contains_key(instance) && !world.machine(me).domains.contains_key(instance) {
                    let mut fact = fact.clone();
                    if !fact.phase.is_dead() {
                        let detail = "found dead when the agent started".to_owned();
                        fact.phase = Phase::Dead { death: Death::Exited { detail }, at: wall };
                    }
                    found.insert(*instance, Local { fact, paused: false });
                }
            }
        }
        let domains = &world.machine(me).domains;
        let life = |instance: &InstanceId| Some((*instance, domains.get(instance)?.life));
        let lives = found.keys().filter_map(life).collect();
        Some((found, lives))
    }

    /// A process that has ended since stock was taken is found dead at the next look.
    fn adopt(&mut self, (found, lives): Stock) {
        (self.local, self.watched) = (found, lives);
        self.adopted = true;
        self.dirty = true;
    }
}
