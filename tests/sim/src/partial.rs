//! Owns the faults of a host that works in part: a libvirtd that fails in one kind of call and does all others, permits that
//! cannot be written, an agent that stands still alone, a wall clock that is stepped.
//!
//! Promises: it draws from a generator of its own, so that what else goes wrong stays as it is; each run has some of the kinds,
//! each as often as was drawn; each fault ends by itself. Must not do: decide.

use std::collections::BTreeMap;

use understudy_core::model::ids::HostId;
use understudy_hypervisor::fake::{Fault, Operation};

use crate::rng::Rng;
use crate::world::World;

/// What fails while the rest of its host works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Libvirtd,
    Permits,
    AgentFreeze,
    WallClock,
}

/// The kinds, and how often each comes at the most, in so many of 100 000 steps.
const PARTS: [(Part, u64); 4] =
    [(Part::Libvirtd, 400), (Part::Permits, 250), (Part::AgentFreeze, 250), (Part::WallClock, 100)];

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
}

impl Partial {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x9a27);
        let mut weights = BTreeMap::new();
        for (part, most) in PARTS {
            if rng.chance(550) {
                weights.insert(part, rng.between(most / 10, most));
            }
        }
        Self { rng, weights }
    }

    pub(crate) fn describe(&self) -> String {
        let kinds: Vec<String> =
            self.weights.iter().map(|(part, weight)| format!("{part:?}={weight}")).collect();
        kinds.join(" ")
    }

    /// Which parts of which hosts fail from this step on.
    fn hits(&mut self, hosts: &[HostId]) -> Vec<(Part, HostId)> {
        let Self { rng, weights } = self;
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
            self.fail_part(part, &host, &mut partial.rng);
        }
        self.partial = Some(partial);
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
                    self.note(format!("the agent of {host} stands still"));
                }
            }
            Part::WallClock => {
                self.machine_mut(host).wall_skew = rng.below(CLOCK_MS);
                self.note(format!("the wall clock of {host} is stepped"));
            }
        }
    }

    /// Every part does what it is there for.
    pub(crate) fn mend_parts(&mut self) {
        self.partial = None;
        for host in self.hosts() {
            let machine = self.machine_mut(&host);
            machine.fails_until.values_mut().for_each(|until| *until = 0);
            machine.permits_fail_until = 0;
            machine.agent_frozen = machine.agent_frozen.map(|(since, _)| (since, 0));
        }
    }
}
