//! Owns `failover-mass`: a host with twelve unprotected nodes is cut, whose backups are warm, from the decision to the last
//! assignment that is written.
//!
//! Promises: when something was decided and written is what the leader itself says, in the incidents and in its log; the
//! hosts of the lab have one clock. The guests' role does nothing (`light`): what they do is not timed, and twenty-four of
//! them would take two processors for themselves. Must not do: time what comes before the decision, which is the lease's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use understudy_e2e::counters::Counters;
use understudy_e2e::stage::{Artifacts, Stage, host_of};

use crate::RUNS;
use crate::display::{logged_at, time_of_day};
use crate::light;
use crate::row::Row;

/// The benchmark's name.
pub(crate) const NAME: &str = "failover-mass";
/// The benchmark's lab.
const PREFIX: &str = "ustlab-mass";
/// Each has a display node and an execution node.
const TERMINALS: [&str; 6] = ["one", "two", "three", "four", "five", "six"];
const NODES: usize = 2 * TERMINALS.len();
/// The host that is cut, and those that have the backups.
const LOST: &str = "host1";
const OTHERS: [&str; 2] = ["host2", "host3"];
/// What each host gives to instances: room for all primaries, or half of them and as many backups.
const MEMORY_MIB: u64 = 4_096;
const MEMBER_MIB: u64 = 176;
/// Until twelve emulated guests have booted, or moved.
const LIMIT: Duration = Duration::from_secs(600);
/// Until a line of a log is in its file.
const LOGGED: Duration = Duration::from_secs(10);
/// The most from the decision to the last write, in seconds.
const MASS_MAX: f64 = 0.25;

/// Raises a lab of its own, and loses its host with all primaries again and again.
pub(crate) fn measure(artifacts: &Artifacts, say: &dyn Fn(&str)) -> Result<Row> {
    let artifacts = light::role(artifacts, &artifacts.root.join("target/bench/light"))?;
    let stage = Stage::raise_with(&artifacts, PREFIX, MEMORY_MIB)?;
    let times = all(&stage, say);
    let logs = artifacts.root.join("target/bench/logs-mass");
    match stage.save_logs(&logs) {
        Ok(()) => say(&format!("the logs of all hosts are in {}", logs.display())),
        Err(error) => say(&format!("the logs could not be kept: {error:#}")),
    }
    stage.into_cluster().into_lab().down()?;
    Ok(Row::stated(NAME, "s", &times?).at_most(MASS_MAX))
}

fn all(stage: &Stage, say: &dyn Fn(&str)) -> Result<Vec<f64>> {
    stage.wait_pools(LIMIT)?;
    let unprotected = Counters {
        protected: false,
        backups: Some(1),
        display_mib: Some(MEMBER_MIB),
        execution_mib: Some(MEMBER_MIB),
        ..Counters::default()
    };
    for terminal in TERMINALS {
        let file = unprotected.file()?;
        stage.cli(&["terminal", "create", terminal, "--from", &file.path().display().to_string()])?;
        // One after the other: guests that are deployed at once take each other's time.
        stage.wait_whole(terminal, 1, LIMIT)?;
    }
    let mut times = Vec::new();
    for run in 1..=RUNS {
        gather(stage)?;
        let took = lose(stage)?;
        say(&format!("  run {run}: {took:.3} s from the decision to the last of {NODES} assignments"));
        times.push(took);
        stage.host(LOST)?.boot()?;
        stage.wait(&format!("{LOST} is back"), LIMIT, |status| {
            let seen = host_of(status, LOST)?;
            ensure!(seen["state"] == "open", "{seen}");
            Ok(())
        })?;
    }
    Ok(times)
}

/// All primaries move to the host that is to be lost, and have warm backups on the others.
fn gather(stage: &Stage) -> Result<()> {
    OTHERS.iter().try_for_each(|host| stage.cli(&["host", "drain", host]).map(drop))?;
    stage.wait(&format!("all primaries are on {LOST}"), LIMIT, |status| {
        let away: Vec<Value> = nodes(status)?.into_iter().filter(|node| !is_here(node)).collect();
        ensure!(away.is_empty(), "{} are elsewhere", away.len());
        Ok(())
    })?;
    OTHERS.iter().try_for_each(|host| stage.cli(&["host", "undrain", host]).map(drop))?;
    TERMINALS.iter().try_for_each(|terminal| stage.wait_whole(terminal, 1, LIMIT).map(drop))
}

fn nodes(status: &Value) -> Result<Vec<Value>> {
    let terminals = status["terminals"].as_array().context("no terminals")?;
    Ok(terminals
        .iter()
        .flat_map(|terminal| terminal["nodes"].as_array().cloned().unwrap_or_default())
        .collect())
}

fn is_here(node: &Value) -> bool {
    node["primary"]["host"] == LOST && node["primary"]["ready"] == true
}

/// Seconds from the first decision to the last write.
fn lose(stage: &Stage) -> Result<f64> {
    let before = nodes(&stage.status()?)?;
    ensure!(before.len() == NODES && before.iter().all(is_here), "not all primaries are on {LOST}");
    stage.host(LOST)?.crash()?;
    let after = stage.wait("all nodes go on elsewhere", LIMIT, |status| {
        let after = nodes(status)?;
        let waits =
            after.iter().find(|node| node["primary"]["host"] == LOST || node["primary"]["ready"] != true);
        ensure!(waits.is_none(), "{waits:?}");
        Ok(after)
    })?;
    // A node may be seen to go on before the line of its assignment is in the file.
    stage.wait("the assignments are in the logs", LOGGED, |_| logged(stage, &after))
}

/// The same, as incidents and logs have it.
fn logged(stage: &Stage, after: &[Value]) -> Result<f64> {
    let logs = OTHERS.iter().filter_map(|host| stage.host(host).ok()?.on_disk("/var/log/agent.log"));
    let log: String = logs.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    let mut decided = f64::MAX;
    let mut written = f64::MIN;
    for node in after {
        let id = node["id"].as_str().context("no id")?;
        let at =
            node["incident"]["decided"].as_u64().with_context(|| format!("{id}: {}", node["incident"]))?;
        decided = decided.min(time_of_day(Duration::from_millis(at)));
        let begins = [format!("node={id} "), format!("epoch={} ", node["incarnation"])];
        let line = log
            .lines()
            .filter(|line| {
                line.contains("assignment written") && begins.iter().all(|word| line.contains(word))
            })
            .find_map(logged_at);
        written = written.max(line.with_context(|| format!("{id}: no assignment in the logs: {begins:?}"))?);
    }
    Ok(written - decided)
}
