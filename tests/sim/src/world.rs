//! Owns the simulated world: time, machines, the product's doubles of the store and of the hypervisor, and what is on its way
//! between them.
//!
//! Promises: one order of events for one seed; whatever an agent learns goes through a watch, a request or a process of
//! its own machine. Must not do: judge (`check`), break things (`fault`).

pub(crate) mod traffic;
mod weak;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use understudy_core::bounds::{Bounds, Profile};
use understudy_core::host::PoolSettings;
use understudy_core::keys::{Key, LEADER};
use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::records::NodeRecord;
use understudy_core::model::units::{Boottime, MiB, Vcpus};
use understudy_hypervisor::Template;
use understudy_hypervisor::fake::Site;
use understudy_store::election::{Bid, ElectionError, Leadership, lead, resign};
use understudy_store::{CommitFault, Committed, Entry, MemoryStore, Revision, Store, StoreError, Txn};

use crate::Weakness;
use crate::agent::Agent;
use crate::cached_store::{CachedStore, Foreign, ready};
use crate::check::Truth;
use crate::fault::Swarm;
use crate::guest::{self, Memory};
use crate::machine::Machine;
use crate::partial::Partial;
use crate::rng::Rng;

/// One step of time.
pub(crate) const STEP_MS: u64 = 25;
/// A watch hears of a change this long after it was written.
const WATCH_MS: u64 = 25;
/// After a thaw the guard may be this late, and everything else on the machine runs meanwhile.
pub(crate) const GUARD_LATE_MS: u64 = 75;
/// A request that cannot get through is given up by the network after this long.
const STRAY_MS: u64 = 8_000;
/// What each machine's pool should have.
pub(crate) const POOL: PoolSettings = PoolSettings { idle: 1, memory: MiB(512), vcpus: Vcpus(1) };

/// What each machine has.
pub(crate) const MEMORY: MiB = MiB(6144);
pub(crate) const VCPUS: Vcpus = Vcpus(32);

/// What an agent asks the store.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Read(Key),
    Commit(Txn),
    /// A bid for the term after this leadership.
    Bid(Option<Leadership>),
    Resign(Leadership),
}

/// What the store says, or that it did not.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Applied(u64),
    /// The records under these keys were not as they should have been.
    Refused {
        failed: Vec<String>,
    },
    Read(Option<Entry>),
    Bid(Bid),
    Unavailable,
}

#[derive(Debug, Clone)]
struct Request {
    id: u64,
    host: HostId,
    incarnation: u64,
    issued: u64,
    arrives: u64,
    /// It waits out what is in its way, instead of being lost.
    stays: bool,
    body: Body,
}

#[derive(Debug)]
struct Reply {
    id: u64,
    host: HostId,
    incarnation: u64,
    at: u64,
    answer: Answer,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) bounds: Bounds,
    pub(crate) rng: Rng,
    pub(crate) swarm: Swarm,
    pub(crate) weakness: Option<Weakness>,
    /// Of its own, so that runs without changing sets stay as they are.
    pub(crate) sets_rng: Rng,
    pub(crate) changing_sets: bool,
    /// Of its own too.
    pub(crate) ailing_rng: Rng,
    pub(crate) libvirtd_rng: Rng,
    pub(crate) waits_rng: Rng,
    pub(crate) pages_rng: Rng,
    pub(crate) asks_rng: Rng,
    pub(crate) ailing: bool,
    /// Parts of hosts that fail, in a run that has such faults.
    pub(crate) partial: Option<Partial>,
    pub(crate) store: MemoryStore,
    /// All hypervisors.
    pub(crate) site: Site<Memory>,
    /// What instances are made from.
    pub(crate) template: Arc<Template>,
    /// When each revision was written.
    written: Vec<(u64, Revision)>,
    pub(crate) store_down_until: u64,
    pub(crate) machines: BTreeMap<HostId, Machine>,
    /// Pairs of machines that cannot reach each other, until when.
    pub(crate) partitions: BTreeMap<(HostId, HostId), u64>,
    pub(crate) truth: Truth,
    requests: Vec<Request>,
    replies: Vec<Reply>,
    serial: u64,
    pub(crate) log: Vec<String>,
    pub(crate) detailed: bool,
    pub(crate) failure: Option<String>,
}

impl World {
    pub(crate) fn new(seed: u64, hosts: usize, swarm: Swarm, weakness: Option<Weakness>) -> Self {
        let site = Site::new(guest::commands());
        let machine = |number: usize| {
            let host = host(number);
            let hypervisor = site.host(&uri(&host), VCPUS, MEMORY);
            hypervisor.require_permits();
            hypervisor.put_role_disk(guest::role_disk(true), Ok(()));
            (host, Machine::new(hypervisor, MEMORY))
        };
        let store = MemoryStore::new();
        Self {
            now: 0,
            bounds: Profile::Safe.bounds(),
            rng: Rng::new(seed),
            swarm,
            weakness,
            sets_rng: Rng::new(seed ^ 0x5e75),
            changing_sets: false,
            ailing_rng: Rng::new(seed ^ 0xa111),
            libvirtd_rng: Rng::new(seed ^ 0x11b1),
            waits_rng: Rng::new(seed ^ 0x3a17),
            pages_rng: Rng::new(seed ^ 0x70a6),
            asks_rng: Rng::new(seed ^ 0xa5c5),
            ailing: false,
            partial: None,
            truth: Truth::new(&store),
            store,
            template: guest::template(),
            written: Vec::new(),
            store_down_until: 0,
            machines: (1..=hosts).map(machine).collect(),
            partitions: BTreeMap::new(),
            site,
            requests: Vec::new(),
            replies: Vec::new(),
            serial: 0,
            log: Vec::new(),
            detailed: false,
            failure: None,
        }
    }

    pub(crate) fn note(&mut self, text: impl AsRef<str>) {
        let (seconds, millis) = (self.now / 1_000, self.now % 1_000);
        self.log.push(format!("{seconds:>4}.{millis:03} {}", text.as_ref()));
    }

    /// For what comes so often that it would hide the rest.
    pub(crate) fn verbose(&mut self, text: impl FnOnce() -> String) {
        if self.detailed {
            self.note(text());
        }
    }

    pub(crate) fn fail(&mut self, text: String) {
        self.note(format!("BROKEN {text}"));
        self.failure.get_or_insert(text);
    }

    /// Whether libvirtd of a host does not answer at the moment.
    pub(crate) fn lacks_libvirtd(&self, host: &HostId) -> bool {
        self.machine(host).libvirtd_back > self.now
    }

    pub(crate) fn machine(&self, host: &HostId) -> &Machine {
        &self.machines[host]
    }

    pub(crate) fn machine_mut(&mut self, host: &HostId) -> &mut Machine {
        self.machines.get_mut(host).expect("machines are never removed")
    }

    pub(crate) fn next_life(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(crate) fn request_ms(&self) -> u64 {
        millis(self.bounds.store_request)
    }

    /// How long something takes. Without faults the shortest time, so that a story reads the same every time.
    pub(crate) fn duration(&mut self, least: u64, most: u64) -> u64 {
        if self.swarm.jitter { self.rng.between(least, most) } else { least }
    }

    pub(crate) fn work_fails(&mut self) -> bool {
        let permille = self.swarm.work_fails;
        self.rng.chance(permille)
    }

    pub(crate) fn policy_is_mad(&self) -> bool {
        self.swarm.mad_policy
    }

    /// Whether two machines can reach each other.
    pub(crate) fn reach(&self, one: &HostId, other: &HostId) -> bool {
        let pair = if one < other { (one.clone(), other.clone()) } else { (other.clone(), one.clone()) };
        one == other || self.partitions.get(&pair).is_none_or(|until| self.now >= *until)
    }

    /// One step of everything.
    pub(crate) fn step(&mut self) {
        self.now += STEP_MS;
        let hosts: Vec<HostId> = self.machines.keys().cloned().collect();
        for host in &hosts {
            self.wake(host);
            self.guard(host);
        }
        self.reconnect();
        self.site.advance(Duration::from_millis(STEP_MS));
        self.run_arrivals();
        self.serve();
        for host in &hosts {
            self.run_agent(host);
        }
        self.check();
    }

    /// Ends a power cut, a freeze, or an agent's absence that is over.
    fn wake(&mut self, host: &HostId) {
        let now = self.now;
        let machine = self.machine_mut(host);
        if machine.off_until.is_some_and(|until| until <= now) {
            machine.off_until = None;
            machine.frozen_until = None;
            machine.boot += 1;
            machine.booted_at = now;
            machine.agent_back = now + 300;
            machine.hypervisor.power_on();
            machine.hypervisor.set_libvirt_up(machine.libvirtd_back <= now);
            self.note(format!("{host} has booted"));
        }
        let machine = self.machine_mut(host);
        if machine.off_until.is_none() && machine.frozen_until.is_some_and(|until| until <= now) {
            machine.frozen_until = None;
            machine.hypervisor.set_frozen(false);
            machine.thawed_at = now;
            let (since, lost) = (machine.frozen_at, now - machine.frozen_at);
            if let Some(agent) = &mut machine.agent {
                agent.stood_still(since, lost);
            }
            self.note(format!("{host} goes on"));
        }
        let machine = self.machine_mut(host);
        machine.recover(now);
        if machine.runs() && machine.agent.is_none() && machine.agent_back <= now {
            let incarnation = machine.incarnation + 1;
            let agent = Agent::new(self, host, incarnation);
            let machine = self.machine_mut(host);
            machine.incarnation = incarnation;
            machine.agent = Some(Box::new(agent));
        }
    }

    fn guard(&mut self, host: &HostId) {
        let (now, weakness) = (self.now, self.weakness);
        if weakness != Some(Weakness::DeadGuard) {
            let forgets = weakness == Some(Weakness::GuardForgets);
            self.machine_mut(host).step_guard(now, (GUARD_LATE_MS, forgets));
        }
    }

    /// Ends the partitions that are over.
    fn reconnect(&mut self) {
        let Self { now, site, partitions, .. } = self;
        partitions.retain(|(one, other), until| {
            let lasts = *now < *until;
            if !lasts {
                site.set_reach(&uri(one), &uri(other), true);
            }
            lasts
        });
    }

    /// Two machines cannot reach each other for a while.
    pub(crate) fn part(&mut self, one: HostId, other: HostId, until: u64) {
        self.site.set_reach(&uri(&one), &uri(&other), false);
        let pair = if one < other { (one, other) } else { (other, one) };
        self.partitions.insert(pair, until);
    }

    fn run_agent(&mut self, host: &HostId) {
        let (now, jitter) = (self.now, self.swarm.jitter);
        let machine = self.machine_mut(host);
        if !machine.runs() || !machine.agent_goes_on(now) {
            return;
        }
        let (linked, lag) = (machine.hears(now) && now >= self.store_down_until, self.machine(host).lag);
        let Some(mut agent) = self.machine_mut(host).agent.take() else { return };
        if linked {
            let late = if jitter { self.rng.below(2) * STEP_MS } else { 0 };
            let until = now.saturating_sub(WATCH_MS + lag + late);
            agent.hear(self, host, self.written_by(until));
        }
        let mut index = 0;
        while index < self.replies.len() {
            let reply = &self.replies[index];
            if &reply.host == host && reply.at <= now && (linked || reply.incarnation != agent.incarnation) {
                let reply = self.replies.swap_remove(index);
                if reply.incarnation == agent.incarnation {
                    agent.deliver(reply.id, reply.answer);
                }
            } else {
                index += 1;
            }
        }
        agent.turn(self, host);
        self.machine_mut(host).agent = Some(agent);
    }

    pub(crate) fn submit(&mut self, host: &HostId, incarnation: u64, body: Body) -> u64 {
        self.serial += 1;
        let latency = self.duration(STEP_MS, 2 * STEP_MS);
        let request = Request {
            id: self.serial,
            host: host.clone(),
            incarnation,
            issued: self.now,
            arrives: self.now + latency,
            stays: self.rng.chance(500),
            body,
        };
        self.requests.push(request);
        self.serial
    }

    /// Serves what has arrived at the store, in the order of arrival.
    fn serve(&mut self) {
        let now = self.now;
        let mut waiting = Vec::new();
        let mut requests = std::mem::take(&mut self.requests);
        requests.sort_by_key(|request| (request.arrives, request.id));
        for mut request in requests {
            if request.arrives > now {
                waiting.push(request);
                continue;
            }
            let cut = now < self.store_down_until || !self.machine(&request.host).is_heard(now);
            if cut {
                if request.stays && now < request.issued + STRAY_MS {
                    request.arrives = now + STEP_MS;
                    waiting.push(request);
                }
                continue;
            }
            let lost = self.swarm.lost_answers;
            let lost = self.rng.chance(lost);
            let again = self.partial.as_mut().and_then(|partial| partial.repeats(now));
            let lost = lost || again.is_some_and(|again| again.first_is_lost);
            if let Some(again) = again {
                waiting.push(Request { arrives: again.arrives, ..request.clone() });
            }
            if let Some(answer) = self.answer(&request.host, request.body, lost) {
                let at = now + self.duration(STEP_MS, 2 * STEP_MS);
                let Request { id, host, incarnation, .. } = request;
                self.replies.push(Reply { id, host, incarnation, at, answer });
            }
        }
        self.requests.append(&mut waiting);
    }

    /// What the store answers; nothing when that is lost: who asked learns it when its time is up, as from the network.
    ///
    /// What is late is on its way in this world, and not with the store ([`CommitFault::Late`]): each request arrives at a
    /// time of its own, and its answer may yet be in time.
    fn answer(&mut self, host: &HostId, body: Body, lost: bool) -> Option<Answer> {
        if lost && !matches!(body, Body::Read(_)) {
            self.store.fail_commits([CommitFault::AnswerLost]);
        }
        let answer = match body {
            Body::Read(key) => {
                let entry =
                    ready(self.store.get(&key.to_string())).expect("this connection is never cut off");
                (!lost).then_some(Answer::Read(entry))
            }
            Body::Commit(mut txn) => {
                self.forget_conditions(&mut txn);
                heard(ready(self.store.commit(&txn))).map(|committed| match committed {
                    Committed::Applied { revision } => Answer::Applied(revision.0),
                    Committed::Refused { failed, .. } => Answer::Refused { failed },
                })
            }
            Body::Bid(previous) => {
                let bid = ready(lead(&self.store, LEADER, host, previous.as_ref()));
                settled(bid).map(Answer::Bid)
            }
            Body::Resign(mine) => {
                // Whoever resigned need not know whether the leadership still stood.
                settled(ready(resign(&self.store, &mine))).map(|_| Answer::Read(None))
            }
        };
        self.look_at_writes();
        answer
    }

    /// What an operator writes; whether it was applied.
    pub(crate) fn commit(&mut self, txn: &Txn) -> bool {
        let committed = heard(ready(self.store.commit(txn)));
        self.look_at_writes();
        matches!(committed, Some(Committed::Applied { .. }))
    }

    /// The newest revision that was written by then.
    fn written_by(&self, until: u64) -> Revision {
        let count = self.written.partition_point(|(at, _)| *at <= until);
        count.checked_sub(1).map_or(Revision(0), |last| self.written[last].1)
    }

    /// Everything that is written is seen here by the judge, in the same moment.
    fn look_at_writes(&mut self) {
        let clock = Boottime(self.now * 1_000_000);
        while let Some(seen) = self.truth.see(clock) {
            self.written.push((self.now, seen.revision));
            self.judge_writes(seen);
        }
    }

    pub(crate) fn record(&self, node: &NodeId) -> Option<&NodeRecord> {
        self.truth.store().view().nodes.get(node).map(|known| &known.value)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&NodeId, &NodeRecord)> {
        self.truth.store().view().nodes.iter().map(|(node, known)| (node, &known.value))
    }

    /// The store as somebody sees it who lists it at this moment.
    pub(crate) fn listed(&self) -> CachedStore {
        CachedStore::new(&self.store, Foreign::default(), true, Boottime(self.now * 1_000_000))
    }

    /// A decision on its way to the store, for the log.
    pub(crate) fn decided(&mut self, node: &NodeId, record: &NodeRecord, reasons: &[String]) {
        self.note(format!("{node} epoch {}: {}", record.epoch, reasons.join("; ")));
    }
}

/// Where a host's hypervisor is reached.
pub(crate) fn uri(host: &HostId) -> String {
    format!("qemu://{host}")
}

pub(crate) fn host(number: usize) -> HostId {
    format!("host{number}").parse().expect("a letter and a digit")
}

pub(crate) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The answer to a commit; nothing when it was lost.
fn heard(committed: Result<Committed, StoreError>) -> Option<Committed> {
    match committed {
        Ok(committed) => Some(committed),
        Err(StoreError::Ambiguous { .. }) => None,
        Err(error) => panic!("the simulated store refuses a request: {error}"),
    }
}

/// The same for what an election came to.
fn settled<T>(came: Result<T, ElectionError>) -> Option<T> {
    match came {
        Ok(value) => Some(value),
        Err(ElectionError::Store(StoreError::Ambiguous { .. })) => None,
        Err(error) => panic!("the simulated store refuses an election: {error}"),
    }
}
