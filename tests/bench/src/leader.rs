//! Owns the rows of the leader and of the simulator, which need no lab: how long decisions take after the loss of a
//! host, at rest, and for an admission; how many seeds are simulated in a minute.
//!
//! Promises: what is timed is optimised code, in programs of their own; the floor of a loss is a copy of every record of
//! the same cluster in the same run, the floor of rest is a cluster of ten hosts. Must not do: decide.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::RUNS;
use crate::row::Row;

/// The benchmarks of the leader by name, and the simulator's.
pub const NAMES: [&str; 7] =
    ["plan-host-lost-100", "plan-host-lost-1000", "plan-host-lost-10000", POLICY, REST, ADMIT, SIM];
const POLICY: &str = "plan-policy-1000";
const REST: &str = "plan-rest-1000";
const ADMIT: &str = "admit-1000";
const SIM: &str = "sim";

/// The loss of a host, by number of hosts: most milliseconds, and most of a copy of the view.
const LOST: [(usize, f64, Option<f64>); 3] =
    [(100, 3.0, Some(0.5)), (1_000, 15.0, None), (10_000, 120.0, None)];
/// The same where a policy is asked for each place.
const POLICY_MS_MAX: f64 = 30.0;
/// A renewal, or a fact that changes one instance, at 1,000 hosts: alone, and against 10 hosts.
const REST_US_MAX: f64 = 50.0;
const REST_RATIO_MAX: f64 = 2.0;
const ADMIT_MS_MAX: f64 = 10.0;
/// Seeds of one run of the simulator: always the first ones.
const SEEDS: u32 = 40;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Subjects {
    /// The folder of `measure-leader` and `understudy-sim`, built for release.
    pub binaries: PathBuf,
    /// The built policy `spread`; needed for `plan-policy-1000` alone.
    pub spread: Option<PathBuf>,
    /// A folder for what is kept from one run to the next.
    pub scratch: PathBuf,
}

/// The loss of a host: a figure for each run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lost {
    hosts: usize,
    nodes: usize,
    decided: usize,
    asked: usize,
    times_ms: Vec<f64>,
    settled_ms: Vec<f64>,
    copies_ms: Vec<f64>,
}

impl Lost {
    fn row(&self, name: &str, most_ms: f64, ratio_max: Option<f64>) -> Row {
        let row = Row::stated(name, "ms", &self.times_ms).beside(&self.copies_ms);
        let row = ratio_max.into_iter().fold(row, Row::at_most_of_floor);
        row.at_most(most_ms)
    }
}

/// What a change of one host costs: a figure for each run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rest {
    hosts: usize,
    renewal_us: Vec<f64>,
    fact_us: Vec<f64>,
    fact_cold_us: Vec<f64>,
}

/// The processor's cache holds all that ten hosts' facts concern, and not what a thousand's do: how a fact's cost grows
/// with the number of hosts is judged where it holds neither.
fn rest_rows(small: &Rest, large: &Rest) -> [Row; 3] {
    let row = |what: &str, figures: &[f64], floor: &[f64]| {
        Row::stated(&format!("plan-rest-{}-{what}", large.hosts), "us", figures).beside(floor)
    };
    let renewal = row("renewal", &large.renewal_us, &small.renewal_us);
    let fact = row("fact", &large.fact_us, &small.fact_us);
    let cold = row("fact-cold", &large.fact_cold_us, &small.fact_cold_us);
    [
        renewal.at_most_of_floor(REST_RATIO_MAX).at_most(REST_US_MAX),
        fact.at_most(REST_US_MAX),
        cold.at_most_of_floor(REST_RATIO_MAX),
    ]
}

/// Admissions: a figure for each run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Admitted {
    hosts: usize,
    times_ms: Vec<f64>,
}

/// The loss of a rack: what was decided at which moment, and what that took.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rack {
    hosts: usize,
    nodes: usize,
    lost: usize,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    after_s: f64,
    expired: usize,
    assigned: usize,
    took_ms: f64,
    longest_ms: f64,
}

/// Loses so many hosts of a cluster at once, until every node is whole again. A line for each step, with what it took.
///
/// # Errors
/// When a node stays without what there is room for.
pub fn rack(subjects: &Subjects, hosts: usize, lost: usize) -> Result<Vec<String>> {
    let rack: Rack = said(subjects, &["rack", &hosts.to_string(), &lost.to_string()])?;
    let line = |step: &Step| {
        let Step { after_s, expired, assigned, took_ms, longest_ms } = step;
        format!(
            "after {after_s:>5.1} s: {expired:>3} leases expired, {assigned:>5} assignments, planned in {took_ms:>8.2} ms, \
             the longest turn {longest_ms:>7.2} ms"
        )
    };
    let whole =
        format!("{} hosts, {} nodes, {} hosts lost: every node is whole", rack.hosts, rack.nodes, rack.lost);
    Ok(rack.steps.iter().map(line).chain([whole]).collect())
}

/// Whether a policy has to be built for this.
#[must_use]
pub fn needs_spread(name: Option<&str>) -> bool {
    name.is_none_or(|name| name == POLICY)
}

/// Whether the simulator has to be built for this.
#[must_use]
pub fn needs_simulator(name: Option<&str>) -> bool {
    name.is_none_or(|name| name == SIM)
}

/// Runs the named benchmark, or all of [`NAMES`]; `say` is told what goes on.
///
/// # Errors
/// When something cannot be measured: a plan that leaves a node without its members, a seed that breaks something.
pub fn run(subjects: &Subjects, name: Option<&str>, say: &dyn Fn(&str)) -> Result<Vec<Row>> {
    let wanted = |each: &str| name.is_none_or(|name| name == each);
    let mut rows = Vec::new();
    for (hosts, most_ms, ratio_max) in LOST {
        let each = format!("plan-host-lost-{hosts}");
        if wanted(&each) {
            say(&each);
            let lost: Lost = measured(subjects, "lost", &[&hosts.to_string()])?;
            say(&stated(&lost));
            rows.push(lost.row(&each, most_ms, ratio_max));
        }
    }
    if wanted(POLICY) {
        say(POLICY);
        let spread = subjects.spread.as_deref().and_then(Path::to_str).context("there is no policy")?;
        let library = subjects.scratch.join("library");
        let library = library.to_str().context("a folder whose name is no text")?;
        let lost: Lost = measured(subjects, "policy", &["1000", library, spread])?;
        say(&stated(&lost));
        rows.push(lost.row(POLICY, POLICY_MS_MAX, None));
    }
    if wanted(REST) {
        say(REST);
        let [small, large]: [Rest; 2] = measured(subjects, "rest", &["10", "1000"])?;
        rows.extend(rest_rows(&small, &large));
    }
    if wanted(ADMIT) {
        say(ADMIT);
        let admitted: Admitted = measured(subjects, "admit", &["1000"])?;
        let name = format!("admit-{}", admitted.hosts);
        rows.push(Row::stated(&name, "ms", &admitted.times_ms).at_most(ADMIT_MS_MAX));
    }
    if wanted(SIM) {
        say(SIM);
        rows.push(simulated(subjects)?);
    }
    Ok(rows)
}

fn stated(lost: &Lost) -> String {
    let Lost { hosts, nodes, decided, asked, settled_ms, .. } = lost;
    let settled = Row::stated("settled", "ms", settled_ms);
    format!(
        "  {hosts} hosts, {nodes} nodes: {decided} nodes decided, {asked} questions asked; with what follows each write \
         {:.2} ms ({:.2}-{:.2})",
        settled.median, settled.min, settled.max
    )
}

/// Seeds a minute, on one processor.
fn simulated(subjects: &Subjects) -> Result<Row> {
    let program = subjects.binaries.join("understudy-sim");
    let mut rates = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        let said = Command::new(&program)
            .args(["--seed", "1", "--seeds", &SEEDS.to_string()])
            .output()
            .with_context(|| format!("start {}", program.display()))?;
        let minutes = start.elapsed().as_secs_f64() / 60.0;
        ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr).trim());
        rates.push(f64::from(SEEDS) / minutes);
    }
    Ok(Row::stated(SIM, "/min", &rates))
}

/// What the program measured.
/// Figures of [`RUNS`] runs.
fn measured<T: DeserializeOwned>(subjects: &Subjects, what: &str, more: &[&str]) -> Result<T> {
    said(subjects, &[&[what, &RUNS.to_string()], more].concat())
}

fn said<T: DeserializeOwned>(subjects: &Subjects, words: &[&str]) -> Result<T> {
    std::fs::create_dir_all(&subjects.scratch)
        .with_context(|| format!("create {}", subjects.scratch.display()))?;
    let program = subjects.binaries.join("measure-leader");
    let said = Command::new(&program)
        .args(words)
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    ensure!(said.status.success(), "{}: {}", words.join(" "), String::from_utf8_lossy(&said.stderr).trim());
    serde_json::from_slice(&said.stdout).with_context(|| format!("read what {} said", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_held_against_its_limit_and_a_copy_of_the_view() {
        let lost = |times_ms: &[f64], copies_ms: &[f64]| {
            let (times_ms, copies_ms) = (times_ms.to_vec(), copies_ms.to_vec());
            let settled_ms = vec![7.0];
            Lost { hosts: 100, nodes: 2_000, decided: 40, asked: 0, times_ms, settled_ms, copies_ms }.row(
                "plan-host-lost-100",
                3.0,
                Some(0.5),
            )
        };
        let row = lost(&[1.0, 9.0, 2.0], &[4.0]);
        assert_eq!((row.median, row.floor, row.ratio, row.holds), (2.0, Some(4.0), Some(0.5), Some(true)));
        assert_eq!(row.target, "<= 0.5 x floor and <= 3 ms");
        assert_eq!(lost(&[2.1], &[4.0]).holds, Some(false), "more than half of a copy");
        assert_eq!(lost(&[3.1], &[40.0]).holds, Some(false), "more than three milliseconds");
    }

    #[test]
    fn rest_at_a_thousand_hosts_is_held_against_ten() {
        let rest = |hosts, renewal: f64, fact: f64, cold: f64| Rest {
            hosts,
            renewal_us: vec![renewal],
            fact_us: vec![fact],
            fact_cold_us: vec![cold],
        };
        let ten = rest(10, 1.0, 20.0, 60.0);
        let held = |large: Rest| rest_rows(&ten, &large).map(|row| row.holds);
        assert_eq!(held(rest(1_000, 2.0, 50.0, 120.0)), [Some(true); 3]);
        assert_eq!(held(rest(1_000, 2.1, 50.1, 121.0)), [Some(false); 3]);
    }
}
