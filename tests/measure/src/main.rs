//! What has to be measured in optimised code: `cargo xtask bench` builds it for release and reads what it prints.
//!
//! - `measure-policies question RUNS SPREAD.wasm`: the policy `spread` beside its own rule in native code;
//! - `measure-policies load RUNS LIBRARY FILE.wasm`: how long a policy takes to load that is compiled already.
//!
//! Promises: one line of JSON, which `tests/bench/src/policies.rs` reads. Must not do: judge a figure; or depend on what a
//! lab needs, because the daemon's own dependencies would have to be built a second time with other features.

mod native;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use understudy_policy::{BENCH_HOSTS, Library, Limits, PolicySet, Settings, Wanted, bench};

/// How long each number of hosts is measured in a run.
const TIME: Duration = Duration::from_millis(500);
/// A Python policy takes its time for the trial question of a load, on a busy machine more than the usual deadline.
const DEADLINE: Duration = Duration::from_secs(10);

/// Medians of a question for one number of hosts, in microseconds: one for each run.
#[derive(Debug, Serialize)]
struct Question {
    hosts: u32,
    /// Whether all hosts are to be ranked.
    all: bool,
    policy_us: Vec<f64>,
    native_us: Vec<f64>,
}

/// Loads of one policy that was compiled before: its size, and one time for each run.
#[derive(Debug, Serialize)]
struct Load {
    bytes: usize,
    times_ms: Vec<f64>,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let what = arguments.next().context("say what to measure: question or load")?;
    let runs = arguments.next().and_then(|runs| runs.to_str()?.parse().ok()).context("say how many runs")?;
    let files: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    let line = match (what.to_str(), &*files) {
        (Some("question"), [component]) => serde_json::to_string(&questions(component, runs)?)?,
        (Some("load"), [library, component]) => serde_json::to_string(&loads(library, component, runs)?)?,
        _ => bail!("question RUNS SPREAD.wasm, or load RUNS LIBRARY FILE.wasm"),
    };
    println!("{line}");
    Ok(())
}

fn read(component: &Path) -> Result<Vec<u8>> {
    std::fs::read(component).with_context(|| format!("read {}", component.display()))
}

/// Medians of each run, by what is wanted and number of hosts.
fn questions(component: &Path, runs: usize) -> Result<Vec<Question>> {
    let component = read(component)?;
    let settings = Settings::without_file(Limits::default()).of("spread");
    let mut questions = Vec::new();
    for wanted in [Wanted::Few, Wanted::All] {
        let all = wanted == Wanted::All;
        let mut asked =
            BENCH_HOSTS.map(|hosts| Question { hosts, all, policy_us: Vec::new(), native_us: Vec::new() });
        for _ in 0..runs {
            let rows = bench(&component, &settings, (&BENCH_HOSTS, wanted), TIME, &native::spread)?;
            for (question, row) in asked.iter_mut().zip(rows) {
                question.policy_us.push(row.policy.as_secs_f64() * 1e6);
                question.native_us.push(row.native.as_secs_f64() * 1e6);
            }
        }
        questions.extend(asked);
    }
    Ok(questions)
}

/// A load takes what the daemon's does: mapping the compiled code, checking and linking it, the trial question.
fn loads(library: &Path, component: &Path, runs: usize) -> Result<Load> {
    let name = component.file_stem().and_then(|stem| stem.to_str()).context("a file without a name")?;
    let bytes = read(component)?;
    let limits = Limits { deadline: DEADLINE, ..Limits::default() };
    let library = Library::open(library)?;
    let digests = BTreeMap::from([(name.to_owned(), library.add(&bytes, limits.file_size)?)]);
    let settings = Settings::without_file(limits);
    let load = || {
        let start = Instant::now();
        let (set, faults) = PolicySet::load(&library, &digests, &settings, &BTreeSet::new());
        let took = start.elapsed();
        ensure!(faults.is_empty(), "{name}: {faults:?}");
        Ok((took, set.policies().any(|policy| policy.compiled.is_some())))
    };
    // Compiles it where no run before this one has.
    load()?;
    let mut times_ms = Vec::new();
    for _ in 0..runs {
        let (took, compiled) = load()?;
        ensure!(!compiled, "{name} was compiled anew: the library keeps nothing");
        times_ms.push(took.as_secs_f64() * 1e3);
    }
    Ok(Load { bytes: bytes.len(), times_ms })
}
