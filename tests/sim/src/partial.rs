//! Owns the faults of a host that works in part: a libvirtd that fails in one kind of call and does all others, permits that
//! cannot be written, an agent that stands still alone, a wall clock that is stepped, a guard that is gone, processes that
//! take long to end, a network that carries one way, requests that arrive twice, guests that go wrong, a disk that cannot be
//! written, records of another version.
//!
//! Promises: it draws from a generator of its own, so that what else goes wrong stays as it is; each run has some of the kinds,
//! each as often as was drawn; each fault ends by itself. Must not do: decide.

use std::collections::BTreeMap;

use understudy_core::keys::Key;
use understudy_core::model::ids::{HostId, InstanceId};
use understudy_hypervisor::fake::{Fault, Operation};
use understudy_hypervisor::{Hypervisor, InstanceState, PauseCause};

use crate::Weakness;
use crate::guard::Table;
use crate::rng::Rng;
use crate::world::World;

/// What fails while the rest of its host works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Libvirtd,
    Permits,
    AgentFreeze,
    WallClock,
    /// The guard's process is gone, and a successor comes after a while.
    GuardDeath,
    SlowKill,
    OneWay,
    /// Requests to the store arrive twice.
    Repeats,
    Guest,
    ReadOnly,
    /// An agent that cannot read what a host has written.
    Foreign,
}

/// The kinds, and how often each comes at the most, in so many of 100 000 steps.
const PARTS: [(Part, u64); 11] = [
    (Part::Libvirtd, 400),
    (Part::Permits, 250),
    (Part::AgentFreeze, 250),
    (Part::WallClock, 100),
    (Part::GuardDeath, 300),
    (Part::SlowKill, 100),
    (Part::OneWay, 250),
    (Part::Repeats, 150),
    (Part::Guest, 250),
    (Part::ReadOnly, 100),
    (Part::Foreign, 100),
];

/// The longest that a killed process takes to end: `lease_margin` less the drift of two clocks over `lease_ttl`, and less
/// how late the guard may be.
const KILL_MS: u64 = 600;
/// The furthest that a wall clock is stepped.
const CLOCK_MS: u64 = 90_000;

const OPERATIONS: [Operation; 9] = [
    Operation::Query,
    Operation::Create,
    Operation::Destroy,
    Operation::RoleDisk,
    Operation::Guest,
    Operation::Save,
    Operation::Restore,
    Operation::Control,
    Operation::Migrate,
];
const FAULTS: [Fault; 3] = [Fault::Refused, Fault::LostRequest, Fault::LostAnswer];

/// The kinds of one run.
#[derive(Debug)]
pub(crate) struct Partial {
    rng: Rng,
    weights: BTreeMap<Part, u64>,
    repeats_until: u64,
}

/// A request comes to the store once more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Again {
    pub(crate) arrives: u64,
    pub(crate) first_is_lost: bool,
}

impl Partial {
    pub(crate) fn draw(seed: u64, weakness: Option<Weakness>) -> Self {
        let mut rng = Rng::new(seed ^ 0x9a27);
        if let Some(weights) = weakness.and_then(against) {
            return Self { rng, weights: weights.iter().copied().collect(), repeats_until: 0 };
        }
        let mut weights = BTreeMap::new();
        for (part, most) in PARTS {
            if rng.chance(550) {
                weights.insert(part, rng.between(most / 10, most));
            }
        }
        Self { rng, weights, repeats_until: 0 }
    }

    pub(crate) fn describe(&self) -> String {
        let kinds: Vec<String> =
            self.weights.iter().map(|(part, weight)| format!("{part:?}={weight}")).collect();
        kinds.join(" ")
    }

    /// Whether a request that arrives comes once more. It may be the second answer that is heard.
    pub(crate) fn repeats(&mut self, now: u64) -> Option<Again> {
        let repeats = now < self.repeats_until && self.rng.chance(300);
        repeats.then(|| Again {
            arrives: now + self.rng.between(25, 2_000),
            first_is_lost: self.rng.chance(500),
        })
    }

    /// Which parts of which hosts fail from this step on.
    fn hits(&mut self, hosts: &[HostId]) -> Vec<(Part, HostId)> {
        let Self { rng, weights, .. } = self;
        let hit = weights.iter().filter_map(|(&part, &weight)| {
            let hits = rng.below(100_000) < weight;
            rng.pick(hosts).filter(|_| hits).map(|host| (part, host.clone()))
        });
        hit.collect()
    }
}

impl World {
    /// What works in part from this step on.
    pub(crate) fn fail_in_part(&mut self) {
        let Some(mut partial) = self.partial.take() else { return };
        for (part, host) in partial.hits(&self.hosts()) {
            if part == Part::Repeats {
                partial.repeats_until = self.now + partial.rng.between(500, 10_000);
                self.note("requests to the store arrive twice");
            } else {
                self.fail_part(part, &host, &mut partial.rng);
            }
        }
        self.partial = Some(partial);
        self.wake_guests();
        self.update_agents();
    }

    fn fail_part(&mut self, part: Part, host: &HostId, rng: &mut Rng) {
        let now = self.now;
        match part {
            Part::Libvirtd => {
                let (Some(&operation), Some(&fault)) = (rng.pick(&OPERATIONS), rng.pick(&FAULTS)) else {
                    return;
                };
                let until = now + rng.between(500, 15_000);
                let machine = self.machine_mut(host);
                machine.fails_until.insert(operation, until);
                machine.hypervisor.set_failing(operation, Some(fault));
                self.note(format!("libvirtd of {host} fails in {operation:?}: {fault:?}"));
            }
            Part::Permits => {
                self.machine_mut(host).permits_fail_until = now + rng.between(500, 15_000);
                self.note(format!("permits of {host} cannot be written"));
            }
            Part::AgentFreeze => {
                let until = now + rng.between(200, 15_000);
                let machine = self.machine_mut(host);
                if machine.agent.is_some() && machine.agent_frozen.is_none() {
                    machine.agent_frozen = Some((now, until));
                    machine.restart_guard(now);
                    self.note(format!("the agent of {host} stands still"));
                }
            }
            Part::WallClock => {
                self.machine_mut(host).wall_skew = rng.below(CLOCK_MS);
                self.note(format!("the wall clock of {host} is stepped"));
            }
            Part::GuardDeath => self.kill_guard(host, rng),
            Part::SlowKill => {
                self.machine_mut(host).kills_take = rng.below(KILL_MS);
                self.note(format!("what is killed on {host} takes its time"));
            }
            Part::OneWay => {
                let until = now + rng.between(500, 15_000);
                let machine = self.machine_mut(host);
                let is_mute = rng.chance(500);
                *(if is_mute { &mut machine.mute_until } else { &mut machine.deaf_until }) = until;
                let what =
                    if is_mute { "is heard by nobody, and hears" } else { "hears nothing, and is heard" };
                self.note(format!("{host} {what}"));
            }
            Part::Guest => self.hit_guest(host, rng),
            Part::ReadOnly => {
                self.machine_mut(host).read_only_until = now + rng.between(1_000, 60_000);
                self.note(format!("the disk of {host} is read-only"));
            }
            Part::Foreign => {
                let hosts = self.hosts();
                let Some(of) = rng.pick(&hosts).cloned() else { return };
                let key = if rng.chance(500) { Key::Lease(of) } else { Key::Facts(of) };
                let until = now + rng.between(5_000, 40_000);
                self.replace_agent(host, &key, until);
            }
            // Not of a host.
            Part::Repeats => {}
        }
    }

    /// The guard dies while its agent works.
    fn kill_guard(&mut self, host: &HostId, rng: &mut Rng) {
        let now = self.now;
        let (until, damaged) = (now + rng.between(100, 12_000), rng.chance(200));
        let machine = self.machine_mut(host);
        let is_alone = machine.agent.is_none() || machine.agent_frozen.is_some();
        if !machine.runs() || is_alone || machine.guard.gone_until != 0 {
            return;
        }
        machine.guard.gone_until = until;
        machine.guard.table = if damaged { Table::Damaged } else { Table::Whole };
        let table = if damaged { ", and its table is damaged" } else { "" };
        self.note(format!("the guard of {host} dies{table}"));
    }

    /// Something befalls a guest that runs.
    fn hit_guest(&mut self, host: &HostId, rng: &mut Rng) {
        let now = self.now;
        let (what, lasts) = (rng.below(6), rng.between(500, 20_000));
        let machine = self.machine_mut(host);
        let hypervisor = &machine.hypervisor;
        let running: Vec<InstanceId> = hypervisor.running().into_iter().collect();
        let Some(&instance) = rng.pick(&running) else { return };
        let process = hypervisor.process_of(instance);
        let runs = machine.runs() && hypervisor.look(instance, |one| one.runs()) == Some(true);
        let Some(process) = process.filter(|_| runs) else { return };
        let what = match what {
            0 => {
                hypervisor.panic_guest(instance);
                "panics"
            }
            1 | 2 => {
                hypervisor.fail_disk(instance, "vda", what == 1);
                "has an error of its disk"
            }
            3 => {
                hypervisor.hang_guest(instance);
                "hangs, and does not feed its watchdog"
            }
            4 => {
                hypervisor.set_agent_answers(instance, false);
                machine.stopped.insert(instance, (process, now + lasts));
                "is silent"
            }
            _ => {
                if hypervisor.suspend(instance).is_err() {
                    return;
                }
                machine.stopped.insert(instance, (process, now + lasts));
                "is paused by hand"
            }
        };
        self.note(format!("instance {instance} on {host} {what}"));
    }

    /// Whoever paused a guest resumes it, and one that was silent answers. What moves is nobody's to resume.
    fn wake_guests(&mut self) {
        let now = self.now;
        let moving: Vec<InstanceId> = self
            .nodes()
            .filter(|(_, record)| record.migration.is_some())
            .filter_map(|(_, record)| record.primary.as_ref()?.instance)
            .collect();
        for host in self.hosts() {
            let machine = self.machine_mut(&host);
            if !machine.runs() {
                continue;
            }
            let hypervisor = machine.hypervisor.clone();
            let due = |instance: &InstanceId, until: u64| until <= now && !moving.contains(instance);
            let over = machine.stopped.extract_if(.., |instance, (_, until)| due(instance, *until));
            for (instance, (process, _)) in over {
                if hypervisor.process_of(instance) != Some(process) {
                    continue;
                }
                hypervisor.set_agent_answers(instance, true);
                let state = hypervisor.look(instance, |one| one.fact().state);
                if state == Some(InstanceState::Paused(PauseCause::Asked)) {
                    // Tried again by whoever paused it; an agent that starts does so too.
                    let _ = hypervisor.resume(instance);
                }
            }
        }
    }

    /// Every part does what it is there for. Guests that were saved while they were silent answer again, too.
    pub(crate) fn mend_parts(&mut self) {
        if let Some(partial) = &mut self.partial {
            partial.weights.clear();
            partial.repeats_until = 0;
        }
        for host in self.hosts() {
            let machine = self.machine_mut(&host);
            machine.fails_until.values_mut().for_each(|until| *until = 0);
            machine.stopped.values_mut().for_each(|(_, until)| *until = 0);
            machine.agent_frozen = machine.agent_frozen.map(|(since, _)| (since, 0));
            machine.guard.gone_until = machine.guard.gone_until.min(1);
            (machine.permits_fail_until, machine.read_only_until) = (0, 0);
            (machine.mute_until, machine.deaf_until, machine.kills_take) = (0, 0, 0);
        }
    }

    /// In a healed world no guest is silent, whatever it was saved as.
    pub(crate) fn wake_all_guests(&mut self) {
        if self.partial.is_none() {
            return;
        }
        self.wake_guests();
        for machine in self.machines.values() {
            for instance in machine.hypervisor.running() {
                machine.hypervisor.set_agent_answers(instance, true);
            }
        }
    }
}

/// What would come through if a protection were off.
fn against(weakness: Weakness) -> Option<&'static [(Part, u64)]> {
    match weakness {
        Weakness::GuardForgets => Some(&[(Part::GuardDeath, 400), (Part::AgentFreeze, 300)]),
        Weakness::SparesMembers => Some(&[(Part::GuardDeath, 400)]),
        Weakness::ForgetsUnread => Some(&[(Part::Foreign, 300)]),
        Weakness::DeadGuard
        | Weakness::EagerRestore
        | Weakness::EagerDestination
        | Weakness::CarelessReceiver
        | Weakness::TrustsCopies
        | Weakness::StaysOpen
        | Weakness::BlindWrites
        | Weakness::LeadsWithoutSet
        | Weakness::GivesUpSets
        | Weakness::TrustsDestroys => None,
    }
}
