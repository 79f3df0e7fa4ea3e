//! Owns `agent-idle`: what agent and guard cost while nothing happens.
//!
//! At rest means: six members on three hosts, none of them protected. What the checkpoints of two protected nodes cost
//! on top is stated beside it, because it follows from the size of the guests and not from the agent.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use understudy_e2e::stage::Stage;
use understudy_lab::cluster::{AGENT, GUARD};

use crate::row::Row;

/// How long is watched.
const WATCH: Duration = Duration::from_secs(30);
/// Clock ticks a second in `/proc/<pid>/stat`: `USER_HZ`, 100 on every Linux of this architecture.
const TICKS: f64 = 100.0;

/// Processor time in seconds and resident memory in MiB of a process.
fn usage(pid: u32) -> Result<(f64, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("no stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = rss.split_whitespace().next().context("no VmRSS")?.parse()?;
    Ok((ticks / TICKS, kib / 1024.0))
}

/// The demo's terminal without protection: a display node and two execution nodes, each with a warm backup.
const AT_REST: &str = r#"
screen = "1280x800"
[[execution]]
protected = false
[[execution.application]]
name = "counter"
geometry = "460x200+40+40"
title = "counter"
command = "counter"
[[execution]]
protected = false
[[execution.application]]
name = "counter"
geometry = "460x200+40+40"
title = "counter"
command = "counter"
"#;

/// Raises a terminal of six unprotected members, watches, and deletes it.
pub(crate) fn at_rest(stage: &Stage, folder: &Path) -> Result<Vec<Row>> {
    let file = folder.join("at-rest.toml");
    std::fs::create_dir_all(folder)?;
    std::fs::write(&file, AT_REST)?;
    stage.create("rest", &file)?;
    let (cpu, memory) = watch(stage)?;
    stage.cli(&["terminal", "delete", "rest"])?;
    let cpu = Row::stated("agent-idle: agent and guard", "%", &cpu).at_most(1.0);
    Ok(vec![cpu, Row::stated("agent-idle: resident memory", "MiB", &memory)])
}

/// Watches while two protected nodes are checkpointed.
pub(crate) fn protecting(stage: &Stage) -> Result<Row> {
    let (cpu, _) = watch(stage)?;
    Ok(Row::stated("agent-idle: with two protected nodes", "%", &cpu))
}

/// Watches the agent and guard of every host: processor time in percent of a core, resident memory in MiB.
fn watch(stage: &Stage) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut processes = Vec::new();
    for host in stage.cluster().hosts() {
        for service in [AGENT, GUARD] {
            let pid = host.service(service).pid()?.with_context(|| format!("{service} does not run"))?;
            processes.push(u32::try_from(pid.pid)?);
        }
    }
    let before = processes.iter().map(|&pid| usage(pid)).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    // The figure is of a span of time: there is no condition to wait for.
    std::thread::sleep(WATCH);
    let span = begun.elapsed().as_secs_f64();
    let after = processes.iter().map(|&pid| usage(pid)).collect::<Result<Vec<_>>>()?;
    let pairs: Vec<(f64, f64)> =
        before.iter().zip(&after).map(|(b, a)| ((a.0 - b.0) / span * 100.0, a.1)).collect();
    let hosts = pairs.chunks(2).map(|pair| (pair[0].0 + pair[1].0, pair[0].1 + pair[1].1));
    Ok(hosts.unzip())
}
