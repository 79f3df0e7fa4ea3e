//! A deterministic simulation of several hosts: core's decisions against faults of every kind.
//!
//! Owns a small world (machines, guards, network, clocks, and the product's own doubles of the store and of the hypervisor,
//! which pass the conformance suites) and a model of what the daemon does about the effects of core's host agent, which is the
//! one that ships.
//! Promises: a seed gives the same run everywhere; the safety guarantees are checked against what really runs, after every
//! step; then everything is healed, and the world must come to rest. Must not do: decide anything that core decides.

mod agent;
mod ailing;
mod cached_store;
mod check;
mod fault;
mod guard;
mod guest;
mod machine;
mod partial;
mod rng;
mod scenario;
mod world;

pub use scenario::{ScenarioError, golden};

use fault::Swarm;
use partial::Partial;
use rng::Rng;
use world::{STEP_MS, World};

/// The seeds that failed once.
pub const REGRESSIONS: &str = include_str!("../regressions.txt");

/// The longest that a healed world may take to come to rest, in simulated milliseconds: a lease's end, a boot, the
/// longest back-off of a job and of a cooldown, and one migration after another from a full host.
pub const HEAL_MS_MAX: u64 = 180_000;

/// A protection that is switched off, to see that the simulation notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Weakness {
    /// The guard kills nothing.
    DeadGuard,
    /// A libvirt lets run what it restores before a guard has acknowledged it.
    EagerRestore,
    /// A destination's libvirt lets run what has arrived before the source has released it.
    EagerDestination,
    /// A host takes copies of checkpoints for nodes of which it does not know itself as a backup.
    CarelessReceiver,
    /// A sender takes the refusal of a copy for its success.
    TrustsCopies,
    /// A host goes on taking copies of an epoch after it has said which it has.
    StaysOpen,
    /// The store writes the records of nodes without comparing.
    BlindWrites,
    /// An agent leads before it has the policies that decide.
    LeadsWithoutSet,
    /// An agent takes the refusal of a set of policies for the last word.
    GivesUpSets,
    /// A destroy says that it is done when it is not.
    TrustsDestroys,
    /// An agent takes a record that it cannot read for none.
    ForgetsUnread,
    /// A guard that was restarted forgets what it had acknowledged.
    GuardForgets,
    /// An agent spares its members when its lease is lost, and leaves them to the guard.
    SparesMembers,
}

impl Weakness {
    /// The invariant that its loss breaks, as the failure names it.
    #[must_use]
    pub fn breaks(self) -> &'static str {
        match self {
            Self::EagerDestination => "SAFE-1",
            Self::DeadGuard
            | Self::EagerRestore
            | Self::TrustsDestroys
            | Self::GuardForgets
            | Self::SparesMembers => "SAFE-2",
            Self::CarelessReceiver | Self::TrustsCopies | Self::ForgetsUnread => "SAFE-3",
            Self::BlindWrites => "SAFE-4",
            Self::StaysOpen => "SAFE-9",
            Self::LeadsWithoutSet => "SETS",
            Self::GivesUpSets => "LIVE",
        }
    }
}

/// What a run is made of, besides its seed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// How many steps of time the faults go on; 4000 when not given.
    pub steps: Option<u64>,
    /// How many hosts; drawn from the seed when not given.
    pub hosts: Option<usize>,
    /// A protection that is switched off.
    pub weakness: Option<Weakness>,
    /// Whether sets of policies are proposed all the time.
    pub sets: bool,
    /// Whether instances resist their end, operators want failovers, agents of another version cannot read records, and
    /// hosts take no images.
    pub ailing: bool,
    /// Whether parts of hosts fail while the rest of them works.
    pub partial: bool,
    /// Whether the events hold also what comes all the time: checkpoints, images, facts.
    pub detailed: bool,
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The seed and everything that was drawn from it first.
    pub title: String,
    /// What happened, one line each.
    pub events: Vec<String>,
    /// The first thing that did not hold.
    pub failure: Option<String>,
    /// How long the healed world took to come to rest.
    pub rest_ms: u64,
    /// How many failovers, restores and live migrations there were.
    pub counts: [u64; 3],
}

/// Runs one seed: faults, then healing.
#[must_use]
pub fn run(seed: u64, options: Options) -> Outcome {
    let mut rng = Rng::new(seed);
    let hosts = options.hosts.unwrap_or_else(|| usize::try_from(rng.between(1, 5)).unwrap_or(3));
    let steps = options.steps.unwrap_or(4_000);
    let drawn = Swarm::draw(&mut rng);
    let swarm = options.weakness.map_or(drawn, Swarm::against);
    let weakness = options.weakness.map_or_else(String::new, |weakness| format!(" weakness={weakness:?}"));
    let partial = options.partial.then(|| Partial::draw(seed, options.weakness));
    let parts = partial.as_ref().map_or_else(String::new, |partial| format!(" {}", partial.describe()));
    let title = format!("seed={seed} hosts={hosts} steps={steps}{weakness} {}{parts}", swarm.describe());
    let mut world = World::new(rng.draw(), hosts, swarm, options.weakness);
    world.detailed = options.detailed;
    world.changing_sets = options.sets;
    world.ailing = options.ailing;
    world.partial = partial;
    world.skew_clocks();
    world.add_terminal("alice", 2);
    for _ in 0..steps {
        world.go_wrong();
        world.step();
        if world.failure.is_some() {
            break;
        }
    }
    let rest_ms = if world.failure.is_none() { come_to_rest(&mut world) } else { 0 };
    let counts = [world.truth.failovers, world.truth.restores, world.truth.migrations];
    Outcome { title, events: world.log, failure: world.failure, rest_ms, counts }
}

/// Heals the world and waits until nothing is lacking any more, and stays so.
fn come_to_rest(world: &mut World) -> u64 {
    const STEADY_MS: u64 = 5_000;
    world.heal();
    let begun = world.now;
    let mut whole_since = None;
    let mut lacking = Vec::new();
    while world.failure.is_none() && world.now < begun + HEAL_MS_MAX {
        world.step();
        if world.now % 500 < STEP_MS {
            world.wake_all_guests();
            lacking = world.lacking();
            world.check_all_reported();
        }
        if !lacking.is_empty() {
            whole_since = None;
        } else if world.now - *whole_since.get_or_insert(world.now) >= STEADY_MS {
            return whole_since.unwrap_or(world.now) - begun;
        }
    }
    if world.failure.is_none() {
        world.fail(format!("LIVE: healed and not at rest after {HEAL_MS_MAX} ms: {}", lacking.join(", ")));
        for line in world.reports() {
            world.note(line);
        }
    }
    world.now - begun
}

/// Runs one seed and panics with everything that is needed to look into it when something does not hold.
pub fn run_or_panic(seed: u64, options: Options) -> Outcome {
    let outcome = run(seed, options);
    if let Some(failure) = &outcome.failure {
        let events = outcome.events.join("\n");
        panic!("{}\n{events}\n{failure}\nadd the seed to tests/sim/regressions.txt", outcome.title);
    }
    outcome
}

/// The seeds of a text with one per line; `#` begins a comment.
#[must_use]
pub fn seeds(text: &str) -> Vec<u64> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter_map(|line| line.parse().ok())
        .collect()
}
