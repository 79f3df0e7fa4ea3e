//! Owns `agent-idle`: what agent and guard cost while nothing happens.
//!
//! At rest means: six members on three hosts, none of them protected. What the checkpoints of two protected nodes cost
//! on top is stated beside it, because it follows from the size of the guests and not from the agent. Each figure is that
//! of one agent and guard, the pair that used most, over several watches.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use understudy_e2e::counters::Counters;
use understudy_e2e::stage::Stage;
use understudy_lab::Host;
use understudy_lab::cluster::{AGENT, GUARD};

use crate::daemon::usage;
use crate::row::Row;
use crate::writes::{Records, Writes};

/// How long each watch is: at rest agent and guard use some forty milliseconds of processor time, of which the kernel's
/// clock shows steps of ten.
const WATCH: Duration = Duration::from_secs(10);
/// Watches of each figure.
const WATCHES: usize = 5;
/// Raises a terminal of six unprotected members, watches, and deletes it.
pub(crate) fn at_rest(stage: &Stage) -> Result<Vec<Row>> {
    // The demo's terminal without protection: a display node and two execution nodes, each with a warm backup.
    let file = Counters { executions: 2, protected: false, ..Counters::default() }.file()?;
    stage.create("rest", file.path())?;
    let watched = watch(stage)?;
    stage.cli(&["terminal", "delete", "rest"])?;
    let cpu = Row::stated("agent-idle: agent and guard", "%", &watched.busiest()).at_most(1.0);
    Ok(vec![cpu, Row::stated("agent-idle: resident memory", "MiB", &watched.largest())])
}

/// Watches while two protected nodes are checkpointed: what that takes, and what is written to the store meanwhile.
pub(crate) fn protecting(stage: &Stage) -> Result<Vec<Row>> {
    let watched = watch(stage)?;
    let cpu = Row::stated("agent-idle: with two protected nodes", "%", &watched.busiest());
    let others = Row::stated("checkpoint-store: writes in 10 s", "", &watched.writes).at_most(0.0);
    Ok(vec![cpu, others, Row::stated("checkpoint-store: reports of load in 10 s", "", &watched.loads)])
}

/// What agent and guard of each host used together, watch by watch.
struct Watched {
    /// Processor time in percent of a core, of each host.
    cpu: Vec<Vec<f64>>,
    /// Resident memory in MiB at the end of each watch, of each host.
    memory: Vec<Vec<f64>>,
    /// Writes to the cluster's records, watch by watch: reports of another load, and all others.
    loads: Vec<f64>,
    writes: Vec<f64>,
}

impl Watched {
    /// Processor time of the agent and guard that used most over all watches.
    fn busiest(&self) -> Vec<f64> {
        most(&self.cpu)
    }

    /// Memory of the agent and guard that had most over all watches.
    fn largest(&self) -> Vec<f64> {
        most(&self.memory)
    }
}

/// The figures of the host whose sum is greatest. One host in all watches: the leader works more than the others, and a
/// median over hosts would hide that.
fn most(hosts: &[Vec<f64>]) -> Vec<f64> {
    let sum = |figures: &Vec<f64>| figures.iter().sum::<f64>();
    hosts.iter().max_by(|one, other| sum(one).total_cmp(&sum(other))).cloned().unwrap_or_default()
}

/// Agent and guard of every host, by process id.
fn processes(stage: &Stage) -> Result<Vec<[u32; 2]>> {
    let pid = |host: &Host, service: &str| -> Result<u32> {
        let pid = host.service(service).pid()?.with_context(|| format!("{service} does not run"))?;
        Ok(u32::try_from(pid.pid)?)
    };
    stage.cluster().hosts().iter().map(|host| Ok([pid(host, AGENT)?, pid(host, GUARD)?])).collect()
}

/// Watches the agent and guard of every host, again and again.
fn watch(stage: &Stage) -> Result<Watched> {
    let hosts = processes(stage)?;
    let used = |pair: &[u32; 2]| -> Result<(f64, f64)> {
        let [agent, guard] = [usage(pair[0])?, usage(pair[1])?];
        Ok((agent.0 + guard.0, agent.1 + guard.1))
    };
    let each = || vec![Vec::new(); hosts.len()];
    let mut watched = Watched { cpu: each(), memory: each(), loads: Vec::new(), writes: Vec::new() };
    for _ in 0..WATCHES {
        let records = Records::read(stage)?;
        let before = hosts.iter().map(used).collect::<Result<Vec<_>>>()?;
        let begun = Instant::now();
        // The figure is of a span of time: there is no condition to wait for.
        std::thread::sleep(WATCH);
        let span = begun.elapsed().as_secs_f64();
        for (host, (pair, before)) in hosts.iter().zip(&before).enumerate() {
            let (time, memory) = used(pair)?;
            watched.cpu[host].push((time - before.0) / span * 100.0);
            watched.memory[host].push(memory);
        }
        let Writes { loads, others } = Records::read(stage)?.since(&records);
        watched.loads.push(f64::from(u32::try_from(loads)?));
        watched.writes.push(f64::from(u32::try_from(others)?));
    }
    Ok(watched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_one_host_in_every_watch() {
        let hosts = [vec![0.2, 0.2, 0.9], vec![0.5, 0.6, 0.4], vec![0.1, 0.1, 0.1]];
        assert_eq!(most(&hosts), [0.5, 0.6, 0.4], "the busiest over all, not in each");
        assert_eq!(most(&[]), Vec::<f64>::new());
    }
}
