//! One host without etcd, by the shipped minimal configuration: a killed instance's role is taken over by another
//! instance of that host, and an agent that is killed finds everything again.

mod common;

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;
use understudy_e2e::counter::start_of;
use understudy_e2e::counters::Counters;
use understudy_e2e::stage::{Stage, address_of, node_of};
use understudy_e2e::story::member;

const DISPLAY: &str = "solo/display";
const EXECUTION: &str = "solo/exec-1";
/// Until another instance has the role: one boots and is deployed under emulation.
const TAKEN_OVER: Duration = Duration::from_secs(120);

/// Kills the primary of a node and waits until another instance has its role and the windows are back.
fn replace(stage: &Stage, id: &str) -> Result<Value> {
    let node = stage.node(id)?;
    let (host, instance) = member(&node)?;
    stage.kill_instance(&host, &instance)?;
    let successor = stage.wait("another instance takes over", TAKEN_OVER, |status| {
        let seen = node_of(status, id)?;
        if seen["incarnation"] == node["incarnation"] || seen["primary"]["ready"] != true {
            bail!("{id} is {}, notes {}", seen["primary"], seen["notes"]);
        }
        Ok(seen)
    })?;
    assert_ne!(member(&successor)?.1, instance);
    stage.wait_whole("solo", 0, TAKEN_OVER)?;
    Ok(successor)
}

fn tell(stage: &Stage) -> Result<()> {
    let file = Counters { screen: "1024x768", ..Counters::default() }.file()?;
    stage.create("solo", file.path())?;

    let display = replace(stage, DISPLAY)?;
    assert_eq!(display["incident"]["state"], "not-needed", "{}", display["incident"]);
    let process = start_of(stage.cluster(), address_of(&stage.node(EXECUTION)?)?)?;

    // Nothing holds a checkpoint: the role begins anew, and the record says so.
    let execution = replace(stage, EXECUTION)?;
    assert_eq!(execution["incident"]["state"], "lost", "{}", execution["incident"]);
    let address = address_of(&execution)?;
    let begun_anew = start_of(stage.cluster(), address)?;
    assert_ne!(begun_anew, process);

    let before = stage.node(EXECUTION)?;
    stage.kill_agent("host1")?;
    stage.wait_whole("solo", 0, TAKEN_OVER)?;
    let after = stage.node(EXECUTION)?;
    assert_eq!((&after["epoch"], member(&after)?), (&before["epoch"], member(&before)?), "no VM was touched");
    assert_eq!(start_of(stage.cluster(), address)?, begun_anew);
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn on_one_host_another_instance_takes_over() {
    let artifacts = common::artifacts();
    let stage = Stage::raise_one(&artifacts, "ustlab-one").expect("one host");
    common::with_logs(&stage, "understudy-one-host-logs", || tell(&stage));
}
