//! Owns the model of the daemon's driver: its mirror of the store, its session, and what it knows of its instances.
//!
//! Promises: it decides nothing that core decides; what it does about each action of core is what the daemon does. A
//! rule that the daemon must keep for core's guarantees to hold is kept here, and can be switched off to see that the
//! simulation notices (`Weakness`). Must not do: look at the truth of another machine.

mod jobs;
mod lead;
mod work;

use std::collections::{BTreeMap, BTreeSet};

use understudy_core::host::{Lane, Local};
use understudy_core::ids::{BootId, HostId, InstanceId, NodeId};
use understudy_core::observe::Observer;
use understudy_core::plan::Report;
use understudy_core::records::{Capacity, HostFacts, NodeRecord, Phase, SessionRecord};
use understudy_core::session::{Session, SessionAction, SessionEvent};
use understudy_core::units::{Boottime, Now, Vcpus};
use understudy_core::view::Versioned;

use self::jobs::Job;
use crate::Weakness;
use crate::machine::{Domain, Stage};
use crate::store::{Key, Mirror, Txn, Value};
use crate::world::{Answer, Body, World};

/// An agent looks at its state at least this often.
const TICK_MS: u64 = 250;
/// Between two looks for domains that nobody knows of.
const SWEEP_MS: u64 = 1_000;
/// Before a silent guard is asked again.
const GUARD_RETRY_MS: u64 = 100;
/// Before facts that could not be written are tried again.
const PUBLISH_RETRY_MS: u64 = 300;

/// What a request was for.
#[derive(Debug, Clone)]
pub(crate) enum Tag {
    OpenRead,
    OpenWrite { number: u64, found: BTreeMap<InstanceId, Local>, lives: BTreeMap<InstanceId, u64> },
    Renew,
    LookAgain,
    Facts(Box<HostFacts>),
    Bid { term: u64 },
    Planned,
    Checkpoint { job: u64 },
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Busy {
    Running,
    Waiting { until: u64, tries: u32 },
}

#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) incarnation: u64,
    pub(crate) mirror: Option<Mirror>,
    observer: Observer,
    session: Session,
    pub(crate) number: u64,
    revision: u64,
    session_busy: bool,
    ask_guard: Option<(Boottime, u64)>,
    pub(crate) adopted: bool,
    pub(crate) local: BTreeMap<InstanceId, Local>,
    /// Which life of each instance it watches: a pidfd.
    watched: BTreeMap<InstanceId, u64>,
    busy: BTreeMap<(InstanceId, Lane), Busy>,
    jobs: Vec<Job>,
    next_job: u64,
    leaving: BTreeSet<InstanceId>,
    ending: BTreeSet<InstanceId>,
    filling: bool,
    fill_after: u64,
    taken: BTreeMap<NodeId, Boottime>,
    sequences: BTreeMap<NodeId, (understudy_core::ids::Epoch, u64)>,
    /// The revision and term of the leadership that it holds.
    leading: Option<(u64, u64)>,
    bidding: bool,
    writing: u32,
    planned_at: u64,
    report: Report,
    publishing: bool,
    /// The facts that it wrote last, and their revision.
    published: Option<(HostFacts, u64)>,
    publish_after: u64,
    pending: BTreeMap<u64, (Tag, u64)>,
    inbox: Vec<(u64, Answer)>,
    pub(crate) dirty: bool,
    next_look: u64,
    next_sweep: u64,
}

impl Agent {
    pub(crate) fn new(world: &World, incarnation: u64) -> Self {
        Self {
            incarnation,
            mirror: None,
            observer: Observer::default(),
            session: Session::new(world.bounds),
            number: 0,
            revision: 0,
            session_busy: false,
            ask_guard: None,
            adopted: false,
            local: BTreeMap::new(),
            watched: BTreeMap::new(),
            busy: BTreeMap::new(),
            jobs: Vec::new(),
            next_job: 0,
            leaving: BTreeSet::new(),
            ending: BTreeSet::new(),
            filling: false,
            fill_after: 0,
            taken: BTreeMap::new(),
            sequences: BTreeMap::new(),
            leading: None,
            bidding: false,
            writing: 0,
            planned_at: 0,
            report: Report::default(),
            publishing: false,
            published: None,
            publish_after: 0,
            pending: BTreeMap::new(),
            inbox: Vec::new(),
            dirty: true,
            next_look: 0,
            next_sweep: 0,
        }
    }

    /// Whether it holds the leadership, as far as it knows.
    pub(crate) fn leads(&self) -> bool {
        self.leading.is_some()
    }

    /// What its last plan could not do.
    pub(crate) fn report(&self) -> &Report {
        &self.report
    }

    pub(crate) fn deliver(&mut self, id: u64, answer: Answer) {
        self.inbox.push((id, answer));
    }

    /// Hears of what the store wrote, up to `until`.
    pub(crate) fn hear(&mut self, world: &World, me: &HostId, until: u64) {
        let clock = world.machine(me).boottime(world.now);
        if self.mirror.is_none() {
            self.mirror = Some(world.store.list());
            self.observer.was_blind(clock);
            self.dirty = true;
        }
        let Some(mirror) = &mut self.mirror else { return };
        let mut heard = false;
        while let Some(change) = world.store.history.get(mirror.next).filter(|change| change.at <= until) {
            mirror.apply(change);
            heard = true;
        }
        if heard {
            self.dirty = true;
            mirror.observe(&mut self.observer, clock);
        }
    }

    /// Everything that it does at one moment.
    pub(crate) fn turn(&mut self, world: &mut World, me: &HostId) {
        for (id, answer) in std::mem::take(&mut self.inbox) {
            if let Some((tag, _)) = self.pending.remove(&id) {
                self.dirty = true;
                self.answered(world, me, tag, answer);
            }
        }
        let late: Vec<u64> =
            self.pending.iter().filter(|(_, (_, until))| *until <= world.now).map(|(&id, _)| id).collect();
        for id in late {
            if let Some((tag, _)) = self.pending.remove(&id) {
                self.dirty = true;
                self.answered(world, me, tag, Answer::Unavailable);
            }
        }
        if let Some((deadline, _)) = self.ask_guard.filter(|(_, at)| *at <= world.now) {
            self.ask_guard = None;
            self.perform(world, me, Some(SessionAction::Confirm(deadline)));
        }
        self.watch_processes(world, me);
        self.step_jobs(world, me);
        if !self.dirty && world.now < self.next_look {
            return;
        }
        self.dirty = false;
        self.next_look = world.now + TICK_MS;
        self.advance(world, me);
    }

    /// Ends what libvirt has and this agent knows nothing of: what an earlier agent's job left, or what arrived late.
    fn sweep(&mut self, world: &mut World, me: &HostId) {
        let Some(mirror) = &self.mirror else { return };
        let arriving = arriving(mirror, me);
        let known = |instance: &InstanceId| {
            self.local.contains_key(instance)
                || arriving.contains(instance)
                || self.jobs.iter().any(|job| job.instance == *instance)
        };
        world.machine_mut(me).domains.retain(|instance, _| known(instance));
    }

    fn advance(&mut self, world: &mut World, me: &HostId) {
        let clock = world.machine(me).boottime(world.now);
        let due = self.session.next_tick().is_some_and(|due| clock >= due);
        if due && !self.session_busy && self.mirror.is_some() {
            let action = self.session.step(SessionEvent::Tick, clock);
            self.perform(world, me, action);
        }
        if !self.adopted {
            return;
        }
        let Some(mirror) = &self.mirror else { return };
        let view = mirror.view(&self.observer, clock);
        if world.now >= self.next_sweep {
            self.next_sweep = world.now + SWEEP_MS;
            self.sweep(world, me);
        }
        self.work(world, me, &view);
        self.publish(world, me);
        let now = Now { boottime: clock, wall: world.machine(me).wall(world.now) };
        if self.session.is_open(clock) {
            self.lead(world, me, view, now);
        }
    }

    fn send(&mut self, world: &mut World, me: &HostId, tag: Tag, body: Body) {
        let id = world.submit(me, self.incarnation, body);
        self.pending.insert(id, (tag, world.now + world.request_ms()));
    }

    fn answered(&mut self, world: &mut World, me: &HostId, tag: Tag, answer: Answer) {
        match tag {
            Tag::OpenRead => self.open(world, me, answer),
            Tag::OpenWrite { number, found, lives } => {
                self.session_busy = false;
                let event = match answer {
                    Answer::Applied(revision) => {
                        world.note(format!("{me} opens session {number}"));
                        (self.number, self.revision) = (number, revision);
                        self.adopt(found, lives);
                        SessionEvent::Written
                    }
                    Answer::Refused(_) => SessionEvent::Refused,
                    Answer::Unavailable | Answer::Read(_) => SessionEvent::Unavailable,
                };
                self.session_event(world, me, event);
            }
            Tag::Renew => match answer {
                Answer::Applied(revision) => {
                    self.revision = revision;
                    self.session_busy = false;
                    self.session_event(world, me, SessionEvent::Written);
                }
                Answer::Refused(_) => {
                    self.send(world, me, Tag::LookAgain, Body::Read(Key::Session(me.clone())));
                }
                Answer::Unavailable | Answer::Read(_) => {
                    self.session_busy = false;
                    self.session_event(world, me, SessionEvent::Unavailable);
                }
            },
            Tag::LookAgain => self.look_again(world, me, answer),
            Tag::Facts(facts) => {
                self.publishing = false;
                match answer {
                    Answer::Applied(revision) => self.published = Some((*facts, revision)),
                    Answer::Refused(_) => self.published = None,
                    Answer::Unavailable | Answer::Read(_) => {
                        self.published = None;
                        self.publish_after = world.now + PUBLISH_RETRY_MS;
                    }
                }
            }
            Tag::Bid { term } => {
                self.bidding = false;
                if let Answer::Applied(revision) = answer {
                    world.note(format!("{me} leads in term {term}"));
                    self.leading = Some((revision, term));
                    self.planned_at = revision;
                }
            }
            Tag::Planned => {
                self.writing -= 1;
                match answer {
                    Answer::Applied(revision) => self.planned_at = self.planned_at.max(revision),
                    // It may still be applied: a new term keeps it from coming after what is planned next.
                    Answer::Refused(Key::Leader) | Answer::Unavailable => self.leading = None,
                    Answer::Refused(_) | Answer::Read(_) => {}
                }
            }
            Tag::Checkpoint { job } => self.checkpoint_written(job, &answer),
        }
    }

    /// A refused renewal may be this agent's own earlier one whose answer was lost.
    fn look_again(&mut self, world: &mut World, me: &HostId, answer: Answer) {
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

    fn session_event(&mut self, world: &mut World, me: &HostId, event: SessionEvent) {
        let clock = world.machine(me).boottime(world.now);
        let action = self.session.step(event, clock);
        self.perform(world, me, action);
    }

    fn perform(&mut self, world: &mut World, me: &HostId, action: Option<SessionAction>) {
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
        for (instance, local) in &self.local {
            if local.fact.node.is_some() {
                domains.remove(instance);
            }
        }
        self.local.retain(|_, local| local.fact.node.is_none());
        self.forget_work(world);
        self.adopted = false;
    }

    fn forget_work(&mut self, world: &World) {
        if world.weakness != Some(Weakness::JobsOutliveSessions) {
            self.jobs.clear();
        }
        self.busy.clear();
        self.leaving.clear();
        self.ending.clear();
        self.filling = false;
    }

    /// Adopts the open session of this very boot, else makes sure that nothing of an earlier one runs, then opens the
    /// next.
    fn open(&mut self, world: &mut World, me: &HostId, answer: Answer) {
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
        self.forget_work(world);
        let previous = session.as_ref().filter(|session| session.boot == boot).map(|session| session.number);
        let found = self.take_stock(world, me, previous, same.is_some());
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

    /// What goes on; the rest is ended. What was reported in this session and is gone is known dead.
    fn take_stock(
        &mut self,
        world: &mut World,
        me: &HostId,
        previous: Option<u64>,
        adopting: bool,
    ) -> BTreeMap<InstanceId, Local> {
        let wall = world.machine(me).wall(world.now);
        let mirror = self.mirror.clone().unwrap_or_default();
        let reported: Option<&HostFacts> = mirror.facts(me).filter(|facts| Some(facts.session) == previous);
        let fact_of = |instance: &InstanceId| reported.and_then(|facts| facts.instances.get(instance));
        let arriving = arriving(&mirror, me);
        let mut found = BTreeMap::new();
        world.machine_mut(me).domains.retain(|instance, domain| {
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
                    true
                }
                Some(_) | None => adopting && arriving.contains(instance),
            }
        });
        if let Some(reported) = reported.filter(|_| adopting) {
            for (instance, fact) in &reported.instances {
                if !found.contains_key(instance) && !world.machine(me).domains.contains_key(instance) {
                    let mut fact = fact.clone();
                    if !fact.phase.is_dead() {
                        let reason = "found dead when the agent started".to_owned();
                        fact.phase = Phase::Dead { reason, at: wall };
                    }
                    found.insert(*instance, Local { fact, paused: false });
                }
            }
        }
        found
    }

    /// A process that has ended since stock was taken is found dead at the next look.
    fn adopt(&mut self, found: BTreeMap<InstanceId, Local>, lives: BTreeMap<InstanceId, u64>) {
        self.watched = lives;
        self.local = found;
        self.adopted = true;
        self.dirty = true;
    }

    /// The pidfds: a process that has ended is known dead at once.
    fn watch_processes(&mut self, world: &World, me: &HostId) {
        let machine = world.machine(me);
        let alive = |instance: &InstanceId, life: u64| {
            machine.domains.get(instance).is_some_and(|domain: &Domain| domain.life == life)
        };
        let died: Vec<InstanceId> = self
            .watched
            .iter()
            .filter(|(instance, life)| !alive(instance, **life))
            .map(|(instance, _)| *instance)
            .collect();
        for instance in died {
            self.watched.remove(&instance);
            // The source of a migration ends when the instance has moved: its job knows how to read that.
            if !self.leaving.contains(&instance) && !self.ending.contains(&instance) {
                self.dead(world, me, instance, None, "qemu ended".to_owned());
            }
        }
    }

    fn facts(&self, world: &World, me: &HostId) -> HostFacts {
        HostFacts {
            session: self.number,
            capacity: Capacity { vcpus: Vcpus(32), memory: world.machine(me).memory },
            labels: BTreeMap::new(),
            api: String::new(),
            gateway: String::new(),
            migration_uri: format!("qemu://{me}"),
            load_milli: 0,
            instances: self.local.iter().map(|(&id, local)| (id, local.fact.clone())).collect(),
            complaints: Vec::new(),
            version: String::new(),
        }
    }

    /// Written over the revision that this agent knows of: a write whose answer was lost may still come, and must not
    /// come after a newer one.
    fn publish(&mut self, world: &mut World, me: &HostId) {
        let facts = self.facts(world, me);
        let Some(mirror) = &self.mirror else { return };
        let heard = mirror.facts_revision(me);
        let own = self.published.as_ref().filter(|(_, revision)| *revision > heard);
        let (known, revision) = match own {
            Some((facts, revision)) => (Some(facts), *revision),
            None => (mirror.facts(me), heard),
        };
        if self.publishing || world.now < self.publish_after || known == Some(&facts) {
            return;
        }
        self.publishing = true;
        let txn = Txn {
            when: vec![(Key::Facts(me.clone()), revision)],
            writes: vec![(Key::Facts(me.clone()), Some(Value::Facts(Box::new(facts.clone()))))],
        };
        self.send(world, me, Tag::Facts(Box::new(facts)), Body::Commit(txn));
    }
}

/// Instances that a migration brings to `me`.
fn arriving(mirror: &Mirror, me: &HostId) -> BTreeSet<InstanceId> {
    let comes = |node: &&Versioned<NodeRecord>| {
        node.value.migration.as_ref().is_some_and(|migration| &migration.to == me)
    };
    let instance = |node: &Versioned<NodeRecord>| node.value.primary.as_ref()?.instance;
    mirror.nodes.values().filter(comes).filter_map(instance).collect()
}

fn boot_id(world: &World, me: &HostId) -> BootId {
    BootId(format!("boot-{}", world.machine(me).boot))
}
