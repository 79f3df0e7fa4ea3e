//! Owns the model of the daemon's runtime: its store cache, its lease, and core's agent of the host, which is the
//! one that the daemon runs.
//!
//! Promises: it decides nothing that core decides; what it does about each effect of core is what the daemon does. A
//! rule that the daemon must keep for core's guarantees to hold is kept here, and can be switched off to see that the
//! simulation notices (`Weakness`). Must not do: look at the truth of another machine.

mod asks;
mod copies;
mod jobs;
mod lead;
mod lease;
pub(crate) mod sets;
mod work;

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;

use understudy_core::host::lease::{Attempt, HostLease};
use understudy_core::host::{HostAgent, Input as HostInput};
use understudy_core::keys::{Key, encode};
use understudy_core::leader::Report;
use understudy_core::leader::leadership::{Input, Leadership, WriteId};
use understudy_core::leader::line::Line;
use understudy_core::model::ids::{BootId, HostId, InstanceId};
use understudy_core::model::records::{Capacity, HostFacts};
use understudy_hypervisor::{Hypervisor, HypervisorEvent, Pid};
use understudy_store::{Revision, Txn};

use self::jobs::Job;
use self::lease::{Discovered, LeaseRequest};
use crate::Weakness;
use crate::cached_store::{CachedStore, Foreign, unchanged};
use crate::world::{Answer, Body, VCPUS, World, uri};

/// An agent looks at its state at least this often.
const REST_MS: u64 = 1_000;
/// Before facts that could not be written are tried again.
const PUBLISH_RETRY_MS: u64 = 300;

/// What a request was for.
#[derive(Debug, Clone)]
pub(crate) enum Tag {
    Lease(Attempt, LeaseRequest),
    Facts(Box<HostFacts>),
    Bid,
    Resign,
    /// A write that the leader wants, and the set of policies that decided it.
    Written {
        id: WriteId,
        decided_by: u64,
    },
    /// The leader's last renewal.
    Renewal(HostId),
}

#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) incarnation: u64,
    pub(crate) cache: Option<CachedStore>,
    lease: HostLease,
    pub(crate) number: u64,
    /// Its place among those who may lead next.
    line: Line,
    revision: u64,
    /// What goes on under the next lease, while that is being opened.
    cleared: Option<Discovered>,
    /// A lease goes on, and what runs under it was not looked at yet.
    recovers: bool,
    /// Core has heard of what the store held when it was first read.
    informed: bool,
    pub(crate) has_recovered: bool,
    pub(crate) host: HostAgent,
    conditions: work::Conditions,
    lacks_libvirtd: bool,
    /// Which process of each instance it watches: a pidfd.
    watched: BTreeMap<InstanceId, Pid>,
    /// The processes that die with its lease, held by itself: the guard may be gone.
    members: BTreeMap<InstanceId, Pid>,
    /// What libvirt tells of its own accord.
    events: Receiver<HypervisorEvent>,
    jobs: Vec<Job>,
    steps: jobs::moving::Steps,
    copies: copies::Copies,
    asks: asks::Asks,
    next_job: u64,
    leadership: Leadership,
    publishing: bool,
    /// The facts that it wrote last, and their revision.
    published: Option<(HostFacts, u64)>,
    sets: sets::Sets,
    publish_after: u64,
    pending: BTreeMap<u64, (Tag, u64)>,
    inbox: Vec<(u64, Answer)>,
    pub(crate) dirty: bool,
    /// When it looked at its state last.
    looked: u64,
}

impl Agent {
    pub(crate) fn new(world: &mut World, me: &HostId, incarnation: u64) -> Self {
        let guard = &world.machine(me).guard;
        let members = guard.registered().collect();
        let inherited = guard.deadline.map(|deadline| (guard.lease, deadline));
        Self {
            incarnation,
            cache: None,
            line: Line::new(me.clone(), world.bounds),
            lease: HostLease::new(world.bounds, inherited),
            number: 0,
            revision: 0,
            cleared: None,
            recovers: false,
            informed: false,
            has_recovered: false,
            host: HostAgent::new(work::settings(world, me)),
            conditions: BTreeMap::new(),
            lacks_libvirtd: false,
            watched: BTreeMap::new(),
            members,
            events: world.machine(me).hypervisor.subscribe(),
            jobs: Vec::new(),
            steps: jobs::moving::Steps::default(),
            copies: copies::Copies::default(),
            asks: asks::Asks::default(),
            next_job: 0,
            leadership: Leadership::new(me.clone(), world.bounds),
            publishing: false,
            published: None,
            sets: sets::Sets::default(),
            publish_after: 0,
            pending: BTreeMap::new(),
            inbox: Vec::new(),
            dirty: true,
            looked: 0,
        }
    }

    /// Whether it holds the leadership, as far as it knows.
    pub(crate) fn leads(&self) -> bool {
        self.leadership.term().is_some()
    }

    /// What its last plan could not do.
    pub(crate) fn report(&self) -> Report {
        self.leadership.report()
    }

    pub(crate) fn deliver(&mut self, id: u64, answer: Answer) {
        self.inbox.push((id, answer));
    }

    /// Hears of what the store wrote, up to `until`.
    pub(crate) fn hear(&mut self, world: &World, me: &HostId, until: Revision) {
        let clock = world.machine(me).boottime(world.now);
        let (dirty, follows) = (&mut self.dirty, self.line.follows());
        // Other records are to be followed from here on: all of them are listed anew.
        self.cache.take_if(|cache| cache.follows_renewals() != follows);
        let cache = self.cache.get_or_insert_with(|| {
            *dirty = true;
            let keys = world.machine(me).foreign.keys().cloned().collect();
            let forgotten = world.weakness == Some(Weakness::ForgetsUnread);
            CachedStore::new(&world.store, Foreign { keys, forgotten }, follows, clock)
        });
        match cache.hear(until, clock) {
            Ok(heard) => self.dirty |= heard,
            // The changes are not kept any more: it lists anew at the next step.
            Err(_) => self.cache = None,
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
        if !self.informed && self.cache.is_some() {
            self.informed = true;
            self.inform_of_records(world, me);
        }
        self.step_lease(world, me);
        self.step_sets(world);
        self.watch_libvirtd(world, me);
        self.watch_guests(world, me);
        self.watch_processes(world, me);
        self.step_jobs(world, me);
        self.take_steps(world, me);
        self.step_copies(world, me);
        self.step_asks(world, me);
        let clock = world.machine(me).boottime(world.now);
        let leads = self.cache.as_ref().and_then(|cache| self.leadership.due(cache));
        let dues = [self.host.due(), leads, self.line.due()];
        let due = dues.into_iter().flatten().any(|due| due <= clock);
        let again = self.looked < self.publish_after && self.publish_after <= world.now;
        if !self.dirty && !due && !again && world.now < self.looked + REST_MS {
            return;
        }
        self.dirty = false;
        self.looked = world.now;
        self.advance(world, me);
    }

    fn advance(&mut self, world: &mut World, me: &HostId) {
        let clock = world.machine(me).boottime(world.now);
        let Some(cache) = &self.cache else { return };
        let (view, follows) = (cache.view().clone(), cache.follows_renewals());
        let leader = cache.leader.as_ref().and_then(|known| known.value.host.clone());
        if let Some(host) = self.line.step(&view, leader.as_ref(), clock) {
            let key = Key::Renewal(host.clone());
            self.send(world, me, Tag::Renewal(host), Body::Read(key));
        }
        match (follows, self.line.follows()) {
            (true, false) => world.note(format!("{me} leaves the line, and follows renewals no more")),
            (false, true) => world.note(format!("{me} is in line to lead, and follows renewals")),
            (true, true) | (false, false) => {}
        }
        if !self.has_recovered {
            return self.await_recovery(world, me);
        }
        self.work(world, me);
        self.step_change(world, me, &view, clock);
        self.publish(world, me);
        self.lead(world, me);
    }

    fn send(&mut self, world: &mut World, me: &HostId, tag: Tag, body: Body) {
        let id = world.submit(me, self.incarnation, body);
        self.pending.insert(id, (tag, world.now + world.request_ms()));
    }

    fn answered(&mut self, world: &mut World, me: &HostId, tag: Tag, answer: Answer) {
        match tag {
            Tag::Lease(attempt, request) => self.lease_answered(world, me, attempt, request, answer),
            Tag::Facts(facts) => {
                self.publishing = false;
                match answer {
                    Answer::Applied(revision) => {
                        let lease = facts.lease;
                        self.published = Some((*facts, revision));
                        self.inform(world, me, HostInput::Reported { lease });
                    }
                    Answer::Refused { .. } => self.published = None,
                    Answer::Unavailable | Answer::Read(_) | Answer::Bid(_) => {
                        self.published = None;
                        self.publish_after = world.now + PUBLISH_RETRY_MS;
                    }
                }
            }
            Tag::Bid => self.bid_ended(world, me, answer),
            Tag::Resign => self.tell_leadership(world, me, Input::Resigned),
            Tag::Written { id, decided_by } => self.written_leading(world, me, (id, decided_by), answer),
            Tag::Renewal(leader) => {
                if let Answer::Read(found) = answer {
                    self.line.read(&leader, found.map_or(0, |entry| entry.modified.0));
                }
            }
        }
    }

    fn facts(&self, world: &World, me: &HostId) -> HostFacts {
        HostFacts {
            lease: self.number,
            capacity: Capacity { vcpus: VCPUS, memory: world.machine(me).memory },
            migration_uri: uri(me),
            instances: self.host.instances(),
            conditions: self.conditions.values().cloned().collect(),
            unable: self.host.unable(),
            copy_faults: self.host.copy_faults(),
            protection: self.host.protection(),
            policies: self.sets.facts.clone(),
            ..HostFacts::default()
        }
    }

    /// Written over the revision that this agent knows of: a write whose answer was lost may still come, and must not
    /// come after a newer one.
    fn publish(&mut self, world: &mut World, me: &HostId) {
        let facts = self.facts(world, me);
        let Some(cache) = &self.cache else { return };
        let heard = cache.facts_at(me).unwrap_or(0);
        let own = self.published.as_ref().filter(|(_, revision)| *revision > heard);
        let (known, revision) = match own {
            Some((facts, revision)) => (Some(facts), *revision),
            None => (cache.facts(me), heard),
        };
        let is_known = known == Some(&facts) && !self.host.owes_report();
        if self.publishing || world.now < self.publish_after || is_known {
            return;
        }
        self.publishing = true;
        let key = Key::Facts(me.clone());
        let txn = Txn::new().when(unchanged(&key, revision)).put(key.to_string(), encode(&facts));
        self.send(world, me, Tag::Facts(Box::new(facts)), Body::Commit(txn));
    }
}

fn boot_id(world: &World, me: &HostId) -> BootId {
    BootId(format!("boot-{}", world.machine(me).boot))
}
