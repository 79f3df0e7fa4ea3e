//! Owns `drain`: from the command to the host without primaries.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use understudy_e2e::stage::{Stage, node_of};
use understudy_e2e::story::member;

use crate::rest::{self, NODES};
use crate::row::Row;

/// Between two looks at whether the host is empty.
const LOOK: Duration = Duration::from_millis(40);
/// Longest wait for a drain.
const LIMIT: Duration = Duration::from_secs(300);

/// What was measured.
pub(crate) struct Drained {
    times: Vec<Duration>,
    /// The nodes whose primaries each drain moved: the floor moves the same.
    pub(crate) moved: Vec<Vec<&'static str>>,
}

impl Drained {
    /// The row, against the bare migrations of the same guests one after the other.
    pub(crate) fn row(&self, floor: &[Duration]) -> Row {
        Row::times("drain", &self.times).against(floor, 1.2, 0.0)
    }
}

/// Drains the host that has the first execution primary, again and again. The first drain is not measured: its guests
/// have just been started and are still busy with it, those that the bare tools move are not.
pub(crate) fn measure(stage: &Stage, runs: usize, say: &dyn Fn(&str)) -> Result<Drained> {
    let (mut times, mut moved) = (Vec::new(), Vec::new());
    for run in 0..=runs {
        rest::wait(stage)?;
        let status = stage.status()?;
        let (host, _) = member(&node_of(&status, "alice/exec-1")?)?;
        let here = |status: &serde_json::Value| -> Vec<&'static str> {
            let is_here =
                |id: &&str| node_of(status, id).is_ok_and(|node| node["primary"]["host"] == host.as_str());
            NODES.into_iter().filter(is_here).collect()
        };
        let leaving = here(&status);
        let leader = stage.host(status["leader"].as_str().context("nobody leads")?)?;
        let begun = Instant::now();
        stage.cli(&["host", "drain", &host])?;
        // The leader alone, and not too often: who answers takes from the processors that are measured.
        while let left = here(&stage.status_on(leader)?)
            && !left.is_empty()
        {
            ensure!(begun.elapsed() < LIMIT, "{} still on {host} after {LIMIT:?}", left.join(" and "));
            std::thread::sleep(LOOK);
        }
        let took = begun.elapsed();
        say(&format!("  run {run}: {} left within {:.2} s", leaving.join(" and "), took.as_secs_f64()));
        if run > 0 {
            times.push(took);
            moved.push(leaving);
        }
        stage.cli(&["host", "undrain", &host])?;
    }
    Ok(Drained { times, moved })
}

/// Name and host of the running instance of a node.
pub(crate) fn domain(stage: &Stage, id: &str) -> Result<(String, String)> {
    let (host, instance) = member(&stage.node(id)?).with_context(|| format!("{id} has no primary"))?;
    Ok((host, instance))
}
