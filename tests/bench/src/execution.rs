//! Owns `failover-execution`: from the kill of an execution primary's qemu to the answer of its service with its state.

use std::time::Duration;

use anyhow::{Result, ensure};
use understudy_e2e::counter::{Watch, start_of};
use understudy_e2e::stage::{Stage, address_of};
use understudy_e2e::story::member;

use crate::rest;

/// The node that is killed.
pub(crate) const NODE: &str = "alice/exec-1";
/// Longest wait for a failover.
const LIMIT: Duration = Duration::from_secs(180);

/// Kills the primary again and again. The first run is not measured: the guests have just been started and are still busy
/// with it, the one that the bare tools restore is not.
pub(crate) fn measure(stage: &Stage, runs: usize, say: &dyn Fn(&str)) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for run in 0..=runs {
        rest::wait(stage)?;
        let node = stage.node(NODE)?;
        let (host, instance) = member(&node)?;
        let address = address_of(&node)?;
        let process = start_of(stage.cluster(), address)?;
        let watch = Watch::start(stage.cluster(), address)?;
        let killed = watch.elapsed();
        stage.kill_instance(&host, &instance)?;
        let dead = watch.elapsed();
        // Only its service is watched, as that of the bare guest: who asks for a status takes from the processors.
        let until = std::time::Instant::now() + LIMIT;
        let answered = loop {
            // A reading that began before the kill may end just after it.
            if let Some(sample) = watch.seen().first_after(dead + Duration::from_millis(100)) {
                break sample.at;
            }
            ensure!(std::time::Instant::now() < until, "the counter did not answer within {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(10));
        };
        ensure!(start_of(stage.cluster(), address)? == process, "the state was lost: another process counts");
        let after = stage.node(NODE)?;
        ensure!(after["incarnation"] != node["incarnation"], "no failover is on record: {after}");
        if run > 0 {
            times.push(answered.saturating_sub(killed));
        }
        say(&format!("  run {run}: answered after {:.2} s", answered.saturating_sub(killed).as_secs_f64()));
    }
    Ok(times)
}
