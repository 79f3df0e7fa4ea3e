//! What `cargo xtask bench` measures: failovers and drains as ratios to the bare tools, policies as ratios to native code,
//! the leader's decisions as ratios to a copy of its view, in one run on one machine.
//!
//! Promises: every row is the median of several runs with minimum and maximum; a floor is measured in the same run, on
//! the same cluster, with the same guests. Must not judge a time by itself: machines differ, ratios less.

mod bare;
mod daemon;
mod display;
mod execution;
mod idle;
pub mod leader;
mod light;
mod mass;
mod moving;
pub mod pages;
pub mod policies;
mod rest;
mod row;
pub mod scale;
mod writes;

pub use row::{Row, print};

use anyhow::{Result, bail};
use understudy_e2e::stage::{Artifacts, Stage};

/// Runs of each measurement.
const RUNS: usize = 5;
/// The benchmarks' lab.
const PREFIX: &str = "ustlab-bench";

/// The benchmarks of a lab by name, in the order in which they are run: the first has a lab of its own, the last two end with
/// the agents stopped.
pub const NAMES: [&str; 5] = [mass::NAME, "agent-idle", "failover-display", "failover-execution", "drain"];

/// What a benchmark needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// A lab: it is one of [`NAMES`].
    pub lab: bool,
    /// Policies: it is one of [`policies::NAMES`].
    pub policies: bool,
    /// The leader or the simulator: it is one of [`leader::NAMES`].
    pub leader: bool,
    /// An etcd with the records of many hosts: it is [`scale::NAME`].
    pub scale: bool,
    /// The page store: it is [`pages::NAME`].
    pub pages: bool,
}

/// What the named benchmark needs, or all of them.
///
/// # Errors
/// When the name is not known; the text lists those that are.
pub fn needs(name: Option<&str>) -> Result<Needs> {
    let Some(name) = name else {
        return Ok(Needs { lab: true, policies: true, leader: true, scale: true, pages: true });
    };
    let needs = Needs {
        lab: NAMES.contains(&name),
        policies: policies::NAMES.contains(&name),
        leader: leader::NAMES.contains(&name),
        scale: name == scale::NAME,
        pages: name == pages::NAME,
    };
    if !needs.lab && !needs.policies && !needs.leader && !needs.scale && !needs.pages {
        let names = [&NAMES[..], &policies::NAMES, &leader::NAMES, &[scale::NAME, pages::NAME]].concat();
        bail!("there is no benchmark '{name}': use one of {}", names.join(", "));
    }
    Ok(needs)
}

/// Runs the named benchmark in a lab, or all of [`NAMES`]; `say` is told what goes on.
///
/// # Errors
/// When the cluster does not come to be.
pub fn run(artifacts: &Artifacts, name: Option<&str>, say: &dyn Fn(&str)) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    if name.is_none_or(|name| name == mass::NAME) {
        say(mass::NAME);
        rows.push(mass::measure(artifacts, say)?);
    }
    if name != Some(mass::NAME) {
        rows.extend(beside_bare_tools(artifacts, name, say)?);
    }
    Ok(rows)
}

fn beside_bare_tools(artifacts: &Artifacts, name: Option<&str>, say: &dyn Fn(&str)) -> Result<Vec<Row>> {
    let stage = Stage::raise(artifacts, PREFIX)?;
    let rows = measure(&stage, artifacts, name, say);
    // A figure that surprises is explained by the agents' own clocks.
    let logs = artifacts.root.join("target/bench/logs");
    match stage.save_logs(&logs) {
        Ok(()) => say(&format!("the logs of all hosts are in {}", logs.display())),
        Err(error) => say(&format!("the logs could not be kept: {error:#}")),
    }
    stage.into_cluster().into_lab().down()?;
    rows
}

fn measure(stage: &Stage, artifacts: &Artifacts, name: Option<&str>, say: &dyn Fn(&str)) -> Result<Vec<Row>> {
    let wanted = |each: &str| name.is_none_or(|name| name == each);
    let mut rows = Vec::new();
    if wanted("agent-idle") {
        say("agent-idle");
        rows.extend(idle::at_rest(stage)?);
    }
    say("waiting for a whole terminal");
    stage.create("alice", &artifacts.root.join("config/terminals/alice.toml"))?;
    if wanted("agent-idle") {
        rows.extend(idle::protecting(stage)?);
    }
    if wanted("failover-display") {
        say("failover-display");
        rows.extend(display::measure(stage, RUNS, say)?);
    }
    // What is compared with the bare tools goes first on all counts: the bare tools need the agents out of the way.
    let restored = if wanted("failover-execution") {
        say("failover-execution");
        Some(execution::measure(stage, RUNS, say)?)
    } else {
        None
    };
    let drained = if wanted("drain") {
        say("drain");
        Some(moving::measure(stage, RUNS, say)?)
    } else {
        None
    };
    if restored.is_some() || drained.is_some() {
        say("the bare tools, with agents and guards stopped");
        let bare = bare::Bare::take(stage)?;
        if let Some(drained) = drained {
            let floor = bare.migrations(&drained.moved)?;
            rows.push(drained.row(&floor));
        }
        if let Some(times) = restored {
            let floor = bare.restores(RUNS)?;
            rows.push(Row::times("failover-execution", &times).against(&floor, 1.7, 0.0));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_benchmark_says_what_it_needs_and_an_unknown_one_is_shown_all() {
        let none = Needs { lab: false, policies: false, leader: false, scale: false, pages: false };
        let (lab, policies) = (Needs { lab: true, ..none }, Needs { policies: true, ..none });
        let (leader, scale) = (Needs { leader: true, ..none }, Needs { scale: true, ..none });
        for (name, expected) in [
            ("drain", lab),
            ("agent-idle", lab),
            ("policy-question", policies),
            ("policy-memory", policies),
            ("plan-host-lost-100", leader),
            ("sim", leader),
            ("agent-scale-1000", scale),
        ] {
            assert_eq!(needs(Some(name)).unwrap(), expected, "{name}");
        }
        assert_eq!(
            needs(None).unwrap(),
            Needs { lab: true, policies: true, leader: true, scale: true, pages: true }
        );
        let error = needs(Some("drian")).unwrap_err().to_string();
        assert!(
            error.contains("'drian'") && error.contains("drain") && error.contains("policy-load"),
            "{error}"
        );
    }
}
