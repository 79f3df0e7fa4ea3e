//! Owns the model of how the daemon executes its session's state machine, and of the taking of stock when one is opened or
//! adopted.

use std::collections::{BTreeMap, BTreeSet};

use understudy_core::death::Death;
use understudy_core::host::{Input, Local};
use understudy_core::ids::{HostId, InstanceId};
use understudy_core::records::{HostFacts, Phase, SessionRecord};
use understudy_core::session::{SessionAction, SessionEvent};
use understudy_core::view::Versioned;

use super::{Agent, Tag, arriving, boot_id};
use crate::machine::Stage;
use crate::store::{Key, Txn, Value};
use crate::world::{Answer, Body, World};

/// Before a silent guard is asked again.
const GUARD_RETRY_MS: u64 = 100;

impl Agent {
    /// A refused renewal may be this agent's own earlier one whose answer was lost.
    pub(super) fn look_again(&mut self, world: &mut World, me: &HostId, answer: Answer) {
        self.session_busy = false;
        let boot = boot_id(world, me);
        let event = match answer {
            Answer::Read(Some(Versioned { value: Value::Session(found), revision })) => {
                if found.ended.is_none() && found.boot == boot && found.number == self.number {
                    self.revision = revision;
                    SessionEvent::Unavailable
                } else {
                    SessionEvent::Refused
                }
            }
            Answer::Read(_) => SessionEvent::Refused,
            Answer::Unavailable | Answer::Applied(_) | Answer::Refused(_) => SessionEvent::Unavailable,
        };
        self.session_event(world, me, event);
    }

    pub(super) fn session_event(&mut self, world: &mut World, me: &HostId, event: SessionEvent) {
        let clock = world.machine(me).boottime(world.now);
        let action = self.session.step(event, clock);
        self.perform(world, me, action);
    }

    pub(super) fn perform(&mut self, world: &mut World, me: &HostId, action: Option<SessionAction>) {
        match action {
            None => {}
            Some(SessionAction::Open) => {
                self.session_busy = true;
                self.send(world, me, Tag::OpenRead, Body::Read(Key::Session(me.clone())));
            }
            Some(SessionAction::Renew) => {
                self.session_busy = true;
                let known = self.mirror.as_ref().and_then(|mirror| mirror.session(me));
                let beat = known.map_or(0, |known| known.value.beat) + 1;
                let record =
                    SessionRecord { boot: boot_id(world, me), number: self.number, beat, ended: None };
                let txn = Txn {
                    when: vec![(Key::Session(me.clone()), self.revision)],
                    writes: vec![(Key::Session(me.clone()), Some(Value::Session(record)))],
                };
                self.send(world, me, Tag::Renew, Body::Commit(txn));
            }
            Some(SessionAction::Confirm(deadline)) => {
                let (number, now) = (self.number, world.now);
                let machine = world.machine_mut(me);
                let clock = machine.boottime(now);
                let heard = now >= machine.guard_deaf_until;
                let event = if heard && machine.guard.confirm(deadline, number, clock) {
                    SessionEvent::GuardAcknowledged
                } else {
                    SessionEvent::GuardSilent
                };
                match self.session.step(event, clock) {
                    // A silent guard is asked again after a while.
                    Some(SessionAction::Confirm(deadline)) => {
                        self.ask_guard = Some((deadline, now + GUARD_RETRY_MS));
                    }
                    action => self.perform(world, me, action),
                }
            }
            Some(SessionAction::StopAll) => self.stop_all(world, me),
        }
    }

    fn stop_all(&mut self, world: &mut World, me: &HostId) {
        world.note(format!("{me} has lost session {}: every member ends", self.number));
        let domains = &mut world.machine_mut(me).domains;
        for (instance, local) in self.host.local() {
            if local.fact.node.is_some() {
                domains.remove(instance);
            }
        }
        self.inform(world, me, Input::LeaseLost);
        self.adopted = false;
    }

    /// Adopts the open session of this very boot, else makes sure that nothing of an earlier one runs, then opens the
    /// next.
    pub(super) fn open(&mut self, world: &mut World, me: &HostId, answer: Answer) {
        let known = match answer {
            Answer::Read(known) => known,
            Answer::Unavailable | Answer::Applied(_) | Answer::Refused(_) => {
                self.session_busy = false;
                return self.session_event(world, me, SessionEvent::Unavailable);
            }
        };
        let (session, revision) = match known {
            Some(Versioned { value: Value::Session(session), revision }) => (Some(session), revision),
            Some(_) | None => (None, 0),
        };
        let boot = boot_id(world, me);
        // A session whose deadline has passed is over, whether or not anybody wrote so: its members are dead.
        let stands = !world.machine(me).guard.expired(world.machine(me).boottime(world.now));
        let same =
            session.clone().filter(|session| stands && session.boot == boot && session.ended.is_none());
        let previous = session.as_ref().filter(|session| session.boot == boot).map(|session| session.number);
        let Some(found) = self.take_stock(world, me, previous, same.is_some()) else {
            self.session_busy = false;
            return self.session_event(world, me, SessionEvent::Unavailable);
        };
        let record = match (same, session) {
            (Some(same), _) => SessionRecord { beat: same.beat + 1, ..same },
            (None, session) => SessionRecord {
                boot,
                number: session.map_or(1, |session| session.number + 1),
                beat: 0,
                ended: None,
            },
        };
        let domains = &world.machine(me).domains;
        let life = |instance: &InstanceId| Some((*instance, domains.get(instance)?.life));
        let lives = found.keys().filter_map(life).collect();
        let tag = Tag::OpenWrite { number: record.number, found, lives };
        let txn = Txn {
            when: vec![(Key::Session(me.clone()), revision)],
            writes: vec![(Key::Session(me.clone()), Some(Value::Session(record)))],
        };
        self.send(world, me, tag, Body::Commit(txn));
    }

    /// What goes on; the rest is ended, or else nothing does. What was reported in this session and is gone is known dead.
    fn take_stock(
        &mut self,
        world: &mut World,
        me: &HostId,
        previous: Option<u64>,
        adopting: bool,
    ) -> Option<BTreeMap<InstanceId, Local>> {
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
        Some(found)
    }

    /// A process that has ended since stock was taken is found dead at the next look.
    pub(super) fn adopt(
        &mut self,
        world: &mut World,
        me: &HostId,
        found: BTreeMap<InstanceId, Local>,
        lives: BTreeMap<InstanceId, u64>,
    ) {
        self.watched = lives;
        self.adopted = true;
        self.dirty = true;
        self.inform(world, me, Input::Recovered { session: self.number, found });
    }
}
