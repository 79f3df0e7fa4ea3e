//! Owns the measurement of a placement policy: what a question costs, and what native code costs that answers it from
//! the same columns.
//!
//! Promises: the two take turns within one run, so that a busy machine disturbs both alike; every question has a fresh
//! instance, as in the daemon. Must not do: print, or judge.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use understudy_core::model::ids::{HostId, NodeId, Role};
use understudy_core::model::units::{MiB, Vcpus};
use understudy_core::policy::{
    HostRow, HostState, MemberCounts, NodeMember, Part, PlacementQuestion, Purpose, SiblingMember, Traffic,
};
use wasmtime::component::Component;

use crate::columns;
use crate::engine::Sandbox;
use crate::fault::{FileFault, PolicyFault};
use crate::inspect::inspect;
use crate::load::Policy;
use crate::replay::ReplayFault;
use crate::settings::PolicySettings;
use crate::wire::{HostState as WireState, Hosts, Request};

/// Numbers of hosts that are measured.
pub const BENCH_HOSTS: [u32; 4] = [10, 100, 1_000, 10_000];
/// Picks asked for: more than any plan ever looks at.
pub const BENCH_WANTED: u32 = 16;
/// How many picks a measured question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// [`BENCH_WANTED`]: what a plan asks for at first.
    Few,
    /// The whole order: what a plan asks for where the first few do not settle it.
    All,
}

/// What was cold at the first questions is not measured.
const WARM_UP: usize = 5;
const SAMPLES_MIN: usize = 20;

/// Native code that has what it needs from the columns of a question, and answers it each time that it is called.
pub type Native = Box<dyn FnMut() -> Vec<u32>>;

/// One number of hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BenchRow {
    /// How many hosts the question had.
    pub hosts: u32,
    /// How many questions were measured.
    pub questions: usize,
    /// Median of a question to the policy: from the columns to the answer, in a fresh instance.
    pub policy: Duration,
    /// Median of the native code's answer from the same columns.
    pub native: Duration,
    /// Median of making the columns, which the daemon does once for each question.
    pub columns: Duration,
}

impl BenchRow {
    /// How many times longer the policy takes than native code.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.policy.as_secs_f64() / self.native.as_secs_f64().max(1e-9)
    }

    /// Questions that one thread puts to the policy within a second, the columns made for each.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        1.0 / (self.policy + self.columns).as_secs_f64().max(1e-9)
    }
}

/// Why there is no measurement.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BenchFault {
    /// It is no policy, or there is no engine.
    #[error(transparent)]
    Load(#[from] ReplayFault),
    /// It does not answer.
    #[error("with {hosts} hosts there is no answer")]
    Answer {
        /// How many hosts the question had.
        hosts: u32,
        /// Why.
        #[source]
        source: PolicyFault,
    },
}

/// Measure the policy in `component` for each number of hosts, at least `time` long, against what `native` makes of the
/// columns; [`built_in`] is the daemon's own rule.
///
/// # Errors
/// When the component is no policy for placement, or does not answer within its limits.
pub fn bench(
    component: &[u8],
    settings: &PolicySettings,
    (hosts, wanted): (&[u32], Wanted),
    time: Duration,
    native: &dyn Fn(&Request, &Hosts) -> Native,
) -> Result<Vec<BenchRow>, BenchFault> {
    let sandbox = Sandbox::clocked().map_err(ReplayFault::Engine)?;
    let load = || {
        inspect(component)?;
        let compiled = Component::from_binary(&sandbox.engine, component)
            .map_err(|e| FileFault::Compile { message: format!("{e:#}") })?;
        Policy::link(&sandbox, "bench", &compiled, settings)
    };
    let policy = load().map_err(ReplayFault::Component)?;
    let row = |&hosts| {
        measure(&sandbox, &policy, &question(hosts, wanted), time, native)
            .map_err(|source| BenchFault::Answer { hosts, source })
    };
    hosts.iter().map(row).collect()
}

fn measure(
    sandbox: &Sandbox,
    policy: &Policy,
    question: &PlacementQuestion,
    time: Duration,
    native: &dyn Fn(&Request, &Hosts) -> Native,
) -> Result<BenchRow, PolicyFault> {
    let columns = columns::placement(question);
    let mut native = native(&columns.0, &columns.1);
    let (mut policy_took, mut native_took, mut columns_took) = (Vec::new(), Vec::new(), Vec::new());
    let begin = Instant::now();
    while policy_took.len() < WARM_UP + SAMPLES_MIN || begin.elapsed() < time {
        let start = Instant::now();
        let made = columns::placement(question);
        columns_took.push(start.elapsed());
        std::hint::black_box(made);
        let start = Instant::now();
        let (answer, _) = policy.place_columns(sandbox, &columns);
        policy_took.push(start.elapsed());
        std::hint::black_box(answer?);
        let start = Instant::now();
        let answer = native();
        native_took.push(start.elapsed());
        std::hint::black_box(answer);
    }
    Ok(BenchRow {
        hosts: u32::try_from(question.hosts.len()).unwrap_or(u32::MAX),
        questions: policy_took.len() - WARM_UP,
        policy: median(policy_took),
        native: median(native_took),
        columns: median(columns_took),
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.drain(..WARM_UP);
    let middle = times.len() / 2;
    *times.select_nth_unstable(middle).1
}

/// The order of the daemon's own rule, from columns: few members of the terminal first, then few members, then much
/// free memory, then the row.
#[must_use]
pub fn built_in(request: &Request, hosts: &Hosts) -> Native {
    let (request, hosts) = (request.clone(), hosts.clone());
    Box::new(move || rank_built_in(&request, &hosts))
}

fn rank_built_in(request: &Request, hosts: &Hosts) -> Vec<u32> {
    let rows = hosts.state.len();
    let mut siblings = vec![0_u32; rows];
    for sibling in &request.siblings {
        siblings[sibling.host as usize] += 1;
    }
    let mut taken = vec![false; rows];
    for member in &request.members {
        taken[member.host as usize] = true;
    }
    let takes_work = |row: usize| match hosts.state[row] {
        WireState::Ready | WireState::Degraded => true,
        WireState::Draining | WireState::Fenced | WireState::Unknown => false,
    };
    let mut ranked: Vec<(u32, u32, std::cmp::Reverse<u64>, u32)> = (0_u32..)
        .zip(0..rows)
        .filter(|&(_, row)| {
            takes_work(row) && !taken[row] && hosts.free_memory_mib[row] >= request.memory_mib
        })
        .map(|(index, row)| {
            let members = hosts.display_primaries[row]
                + hosts.display_backups[row]
                + hosts.execution_primaries[row]
                + hosts.execution_backups[row];
            (siblings[row], members, std::cmp::Reverse(hosts.free_memory_mib[row]), index)
        })
        .collect();
    let wanted = usize::try_from(request.wanted).unwrap_or(usize::MAX);
    if wanted < ranked.len() {
        ranked.select_nth_unstable(wanted);
        ranked.truncate(wanted);
    }
    ranked.sort_unstable();
    ranked.into_iter().map(|(.., index)| index).collect()
}

/// A warm backup on a cluster in which every column has something to say; the same at every call.
fn question(hosts: u32, wanted: Wanted) -> PlacementQuestion {
    let mut dice = Dice(u64::from(hosts) + 1);
    let rows: Vec<HostRow> = (0..hosts).map(|number| row(number, &mut dice)).collect();
    let at = |number: u32| host(number % hosts.max(1));
    PlacementQuestion {
        node: "bench/exec-1".parse::<NodeId>().expect("the name of a node"),
        purpose: Purpose::WarmBackup,
        wanted: match wanted {
            Wanted::Few => BENCH_WANTED,
            Wanted::All => hosts,
        },
        reasons: false,
        vcpus: Vcpus(2),
        memory: MiB(2048),
        environment: "desktop".to_owned(),
        template: Some("standard".to_owned()),
        terminal_labels: BTreeMap::from([("floor".to_owned(), "2".to_owned())]),
        environment_labels: BTreeMap::from([("disk".to_owned(), "fast".to_owned())]),
        members: vec![NodeMember { host: at(3), part: Part::Primary }],
        siblings: vec![
            SiblingMember { host: at(1), role: Role::Display, part: Part::Primary },
            SiblingMember { host: at(5), role: Role::Display, part: Part::Backup },
        ],
        hosts: rows.into(),
    }
}

fn host(number: u32) -> HostId {
    format!("host-{number:05}").parse().expect("the name of a host")
}

fn row(number: u32, dice: &mut Dice) -> HostRow {
    let state = match dice.below(20) {
        0 => HostState::Draining,
        1 => HostState::Unknown,
        2 => HostState::Degraded,
        _ => HostState::Ready,
    };
    let label = |key: &str, value: u32| (key.to_owned(), format!("{key}-{value}"));
    let idle = dice.below(3);
    HostRow {
        host: host(number),
        state,
        zone: format!("zone-{}", number % 4),
        rack: format!("rack-{}", number / 40),
        labels: BTreeMap::from([label("disk", dice.below(2)), label("floor", dice.below(8))]),
        total_vcpus: Vcpus(64),
        free_vcpus: Vcpus(dice.below(65)),
        total_memory: MiB(262_144),
        free_memory: MiB(dice.below(262_145).into()),
        load_permille: dice.below(1_001),
        idle: if idle == 0 { BTreeMap::new() } else { BTreeMap::from([("standard".to_owned(), idle)]) },
        members: MemberCounts {
            display_primaries: dice.below(10),
            display_backups: dice.below(10),
            execution_primaries: dice.below(30),
            execution_backups: dice.below(30),
        },
        traffic: Traffic {
            migrations_in: dice.below(2),
            migrations_out: dice.below(2),
            restores: dice.below(2),
            checkpoint_in_kib_s: dice.below(50_000),
            checkpoint_out_kib_s: dice.below(50_000),
        },
    }
}

/// Numbers without a pattern that sorting could profit from; xorshift, seeded.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from((self.0 >> 16) % u64::from(end)).expect("below a u32")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_native_rule_ranks_as_core_does() {
        let question = question(200, Wanted::Few);
        let (request, hosts) = columns::placement(&question);
        let ranked = built_in(&request, &hosts)();
        assert_eq!(ranked.len(), BENCH_WANTED as usize);
        // Core's rule over rows, in full.
        let siblings = |row: &HostRow| question.siblings.iter().filter(|s| s.host == row.host).count();
        let mut rows: Vec<(u32, &HostRow)> = (0..).zip(&question.hosts).collect();
        rows.retain(|(_, row)| {
            matches!(row.state, HostState::Ready | HostState::Degraded)
                && row.free_memory >= question.memory
                && question.members.iter().all(|member| member.host != row.host)
        });
        rows.sort_by_key(|(_, row)| {
            let m = row.members;
            let members =
                m.display_primaries + m.display_backups + m.execution_primaries + m.execution_backups;
            (siblings(row), members, std::cmp::Reverse(row.free_memory), row.host.clone())
        });
        let expected: Vec<u32> = rows.into_iter().map(|(index, _)| index).take(ranked.len()).collect();
        assert_eq!(ranked, expected);
    }

    #[test]
    fn a_ratio_and_a_rate_are_what_they_say() {
        let row = BenchRow {
            hosts: 10,
            questions: 1,
            policy: Duration::from_micros(80),
            native: Duration::from_micros(40),
            columns: Duration::from_micros(20),
        };
        assert!((row.ratio() - 2.0).abs() < 1e-9);
        assert!((row.per_second() - 10_000.0).abs() < 1e-6);
    }
}
