//! Owns the waiting for a cluster at rest, from which runs begin.
//!
//! Promises: what the run before it left to be done is done, and has been for a while: what boots or is to end takes part of
//! the processors, and nothing does beside the bare tools. Must not change anything.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use understudy_e2e::stage::{Stage, node_of};

/// All nodes of the terminal.
pub(crate) const NODES: [&str; 3] = ["alice/display", "alice/exec-1", "alice/exec-2"];
/// Looks in a row that have to find a cluster at rest.
const LOOKS: u32 = 4;
/// Between two looks.
const STEP: Duration = Duration::from_millis(500);
/// Longest wait.
const LIMIT: Duration = Duration::from_secs(360);

/// Waits until the terminal is whole and no instance runs but the members of its nodes and one idle instance on each host.
/// One that is to end, such as a backup that was given up while it was being deployed, shows in no status; one that boots in
/// the place of an idle one that a drain has ended shows there only after a moment, so that it has to stay so for several
/// looks.
pub(crate) fn wait(stage: &Stage) -> Result<()> {
    stage.wait_whole("alice", 1, LIMIT)?;
    let (begun, mut at_rest) = (Instant::now(), 0);
    loop {
        stage.wait_pools(LIMIT)?;
        let status = stage.status()?;
        let instances = |id: &&str| {
            let node = node_of(&status, id).ok()?;
            let backups = node["backups"].as_array().into_iter().flatten();
            Some(backups.chain([&node["primary"]]).filter(|member| member["instance"].is_string()).count())
        };
        let wanted: usize = NODES.iter().filter_map(instances).sum::<usize>() + stage.cluster().hosts().len();
        let mut running = 0;
        for host in stage.cluster().hosts() {
            running += host.run(["virsh", "-q", "list", "--name"])?.split_whitespace().count();
        }
        at_rest = if running == wanted { at_rest + 1 } else { 0 };
        if at_rest == LOOKS {
            return Ok(());
        }
        ensure!(begun.elapsed() < LIMIT, "{running} instances run, {wanted} should after {LIMIT:?}");
        std::thread::sleep(STEP);
    }
}
