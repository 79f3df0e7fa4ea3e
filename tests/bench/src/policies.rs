//! Owns the rows of policies, which need no lab: what a question costs, what a load costs, what policies take of the
//! daemon's memory.
//!
//! Promises: what is timed is optimised code, in a program of its own (`measure-policies`), because whoever runs the
//! benchmarks is not; the floors of a question are the policy's own rule, native, in the same run.

mod memory;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::RUNS;
use crate::row::Row;

/// The benchmarks of policies by name; the first has a row for each number of hosts.
pub const NAMES: [&str; 3] = [QUESTION, LOAD, MEMORY];
const QUESTION: &str = "policy-question";
const LOAD: &str = "policy-load";
const MEMORY: &str = "policy-memory";

/// How many times longer than native code that orders all hosts a question may take, by number of hosts.
const RATIOS_MAX: [(u32, f64); 2] = [(1_000, 2.5), (10_000, 1.6)];
/// How long the load of a compiled policy may take, in milliseconds.
const LOAD_MS_MAX: f64 = 20.0;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Subjects {
    /// The folder of `measure-policies`, `understudy` and `understudy-guard`, built for release.
    pub binaries: PathBuf,
    /// The folder of the built policies of this tree.
    pub policies: PathBuf,
    /// A Python policy of 18 MB; needed for `policy-load` alone.
    pub python: Option<PathBuf>,
    /// The domain template of the tree.
    pub template: PathBuf,
    /// A folder for what is kept from one run to the next.
    pub scratch: PathBuf,
}

/// Medians of a question for one number of hosts, in microseconds: one for each run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    hosts: u32,
    /// Whether all hosts are to be ranked, or the best few.
    all: bool,
    /// The policy, in a fresh instance.
    policy_us: Vec<f64>,
    /// Its rule in native code.
    native_us: Vec<f64>,
}

impl Question {
    /// A row of the policy's times against a floor, without a target.
    fn against(&self, what: &str, floor_us: &[f64]) -> Row {
        let row = Row::stated(&format!("{QUESTION}{what}-{}", self.hosts), "us", &self.policy_us);
        let floor = Row::stated("floor", "us", floor_us).median;
        let ratio = row.median / floor;
        Row { floor: Some(floor), ratio: Some(ratio), ..row }
    }

    /// The row that has a target, against native code that puts all hosts in order.
    fn row(&self, in_order: &Self) -> Row {
        let row = self.against("", &in_order.native_us);
        match RATIOS_MAX.iter().find(|(hosts, _)| *hosts == self.hosts) {
            Some((_, most)) => {
                let holds = row.ratio.map(|ratio| ratio <= *most);
                Row { target: format!("<= {most} x floor"), holds, ..row }
            }
            None => row,
        }
    }
}

/// For each number of hosts: the question that the daemon asks, for the best few, against native code that returns the
/// indices of all hosts in order, which is the floor that the targets were set with; the same against native code that
/// selects the best few as the policy does; and a question for all hosts against native code that orders all.
fn question_rows(questions: &[Question]) -> Vec<Row> {
    let (all, few): (Vec<&Question>, Vec<&Question>) = questions.iter().partition(|question| question.all);
    let pairs = || few.iter().filter_map(|few| Some((few, all.iter().find(|all| all.hosts == few.hosts)?)));
    let asked = pairs().map(|(few, all)| few.row(all));
    let selected = few.iter().map(|few| few.against("-few", &few.native_us));
    let ordered = all.iter().map(|all| all.against("-all", &all.native_us));
    asked.chain(selected).chain(ordered).collect()
}

/// Loads of one policy that was compiled before.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    /// Size of the component.
    bytes: usize,
    /// One for each run.
    times_ms: Vec<f64>,
}

impl Load {
    fn row(&self) -> Row {
        Row::stated(LOAD, "ms", &self.times_ms).at_most(LOAD_MS_MAX)
    }
}

/// Whether a policy has to be built in another language for this.
#[must_use]
pub fn needs_python(name: Option<&str>) -> bool {
    name.is_none_or(|name| name == LOAD)
}

/// Runs the named benchmark of policies, or all; `say` is told what goes on.
///
/// # Errors
/// When something cannot be measured: a policy does not answer, the daemon does not start.
pub fn run(subjects: &Subjects, name: Option<&str>, say: &dyn Fn(&str)) -> Result<Vec<Row>> {
    let wanted = |each: &str| name.is_none_or(|name| name == each);
    let mut rows = Vec::new();
    if wanted(QUESTION) {
        say(QUESTION);
        let component = subjects.policies.join("spread.wasm");
        let questions: Vec<Question> = measured(subjects, "question", &[&component])?;
        rows.extend(question_rows(&questions));
    }
    if wanted(LOAD) {
        say(LOAD);
        let component = subjects.python.as_ref().context("there is no Python policy")?;
        let load: Load = measured(subjects, "load", &[&subjects.scratch.join("library"), component])?;
        say(&format!("  a component of {:.1} MB", load.bytes as f64 / 1e6));
        rows.push(load.row());
    }
    if wanted(MEMORY) {
        say(MEMORY);
        rows.push(memory::memory(subjects, RUNS)?);
    }
    Ok(rows)
}

/// What the program measured.
fn measured<T: DeserializeOwned>(subjects: &Subjects, what: &str, files: &[&Path]) -> Result<T> {
    std::fs::create_dir_all(&subjects.scratch)
        .with_context(|| format!("create {}", subjects.scratch.display()))?;
    let program = subjects.binaries.join("measure-policies");
    let said = Command::new(&program)
        .arg(what)
        .arg(RUNS.to_string())
        .args(files)
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    ensure!(said.status.success(), "{what}: {}", String::from_utf8_lossy(&said.stderr).trim());
    serde_json::from_slice(&said.stdout).with_context(|| format!("read what {} said", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(hosts: u32, all: bool, policy_us: &[f64], native_us: &[f64]) -> Question {
        Question { hosts, all, policy_us: policy_us.to_vec(), native_us: native_us.to_vec() }
    }

    #[test]
    fn a_question_is_held_against_native_code_that_orders_all_at_the_sizes_that_have_a_target() {
        let row = |hosts, policy_us: &[f64], all_us: &[f64]| {
            question(hosts, false, policy_us, &[1.0]).row(&question(hosts, true, &[1.0], all_us))
        };
        let first = row(1_000, &[50.0, 20.0, 25.0], &[10.0, 9.0, 30.0]);
        assert_eq!((&*first.name, &*first.unit), ("policy-question-1000", "us"));
        assert_eq!((first.median, first.min, first.max), (25.0, 20.0, 50.0));
        assert_eq!((first.floor, first.ratio, first.holds), (Some(10.0), Some(2.5), Some(true)));
        let over = row(1_000, &[25.1], &[10.0]);
        assert_eq!((&*over.target, over.holds), ("<= 2.5 x floor", Some(false)));
        let over = row(10_000, &[170.0], &[100.0]);
        assert_eq!((&*over.target, over.holds), ("<= 1.6 x floor", Some(false)));
        let small = row(10, &[170.0], &[100.0]);
        assert_eq!((&*small.target, small.ratio, small.holds), ("stated", Some(1.7), None));
    }

    #[test]
    fn each_size_has_a_row_for_each_floor() {
        let rows = question_rows(&[
            question(1_000, false, &[40.0], &[10.0]),
            question(1_000, true, &[90.0], &[30.0]),
        ]);
        let seen: Vec<_> = rows.iter().map(|row| (&*row.name, row.floor, row.holds)).collect();
        assert_eq!(
            seen,
            [
                ("policy-question-1000", Some(30.0), Some(true)),
                ("policy-question-few-1000", Some(10.0), None),
                ("policy-question-all-1000", Some(30.0), None),
            ]
        );
    }

    #[test]
    fn a_load_has_twenty_milliseconds() {
        let row = |times_ms: &[f64]| Load { bytes: 1, times_ms: times_ms.to_vec() }.row();
        assert_eq!(row(&[30.0, 19.0, 20.0]).holds, Some(true));
        let row = row(&[20.5]);
        assert_eq!((&*row.target, row.holds), ("<= 20 ms", Some(false)));
    }
}
