//! Owns the acts in which nothing may be lost: a drain, agents and libvirtd that are killed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{ACT, Act, REPAIR, Story, TERMINAL, member};
use crate::counter::{Watch, start_of};
use crate::stage::{address_of, host_of, node_of};

/// A counter that stands still for so long has stopped. QEMU switches a guest over once it expects less than 0.3 s of
/// standstill; the longest that was seen, with checkpoints and the readings' own time-outs, was 1.3 s on two processors at
/// rest. The rest is left to a machine that others use too: what has stopped stands still for ever.
const STOPPED: Duration = Duration::from_secs(10);
/// All nodes of the terminal.
const NODES: [&str; 3] = ["alice/display", "alice/exec-1", "alice/exec-2"];

impl Story<'_> {
    /// Drains the host of the first execution node's primary.
    ///
    /// # Errors
    /// When the story cannot go on.
    pub fn host_is_drained(&self, act: &mut Act) -> Result<()> {
        act.begin("a host is drained");
        let id = "alice/exec-1";
        self.stage.wait("all three hosts are open", REPAIR, |status| {
            let hosts = status["hosts"].as_array().context("no hosts")?;
            let open = hosts.iter().filter(|host| host["state"] == "open" && host["memory_mib"] != 0).count();
            if open == 3 { Ok(()) } else { bail!("{open} of 3 hosts are open") }
        })?;
        self.stage.wait_whole(TERMINAL, 1, REPAIR)?;
        let before = self.stage.status()?;
        let node = node_of(&before, id)?;
        let (host, _) = member(&node)?;
        let address = address_of(&node)?;
        let process = start_of(self.stage.cluster(), address)?;
        let watch = Watch::start(self.stage.cluster(), address)?;
        self.picture(act, "5-before-drain")?;
        (self.say)(&format!("draining {host}"));
        let (begun, begun_at) = (Instant::now(), watch.elapsed());
        self.stage.cli(&["host", "drain", &host])?;
        self.stage.wait("the host is empty", REPAIR, |status| {
            let shown = host_of(status, &host)?;
            if shown["members"] == 0 { Ok(()) } else { bail!("{} members are left", shown["members"]) }
        })?;
        act.phase("host is empty", begun.elapsed());
        self.stage.wait_whole(TERMINAL, 1, REPAIR)?;
        act.phase("everything is whole again", begun.elapsed());
        let after = self.stage.status()?;
        let left = primaries_left(&host, &before, &after)?;
        act.judge(
            "every primary of the host left by live migration: the same instance, no failover",
            !left.is_empty() && left.iter().all(|(_, migrated)| *migrated),
            left.into_iter().map(|(what, _)| what).collect::<Vec<_>>().join("; "),
        );
        let here = nodes_on(&host, &after)?;
        act.judge("the host is empty while it is drained", here.is_empty(), format!("{here:?} on {host}"));
        // A counter that stands still at this moment is given the time to break the bound.
        let end = watch.elapsed();
        let last = watch.seen().last_before(end).map_or(0, |sample| sample.value);
        while watch.seen().samples.last().is_none_or(|sample| sample.value <= last)
            && watch.elapsed() < end + STOPPED
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        let seen = watch.seen();
        let still = seen.longest_standstill(begun_at, watch.elapsed());
        let same = start_of(self.stage.cluster(), address)? == process;
        act.judge(
            format!("the counter never stopped: it stood still for less than {} s", STOPPED.as_secs()),
            same && seen.never_back(Duration::ZERO) && still < STOPPED,
            format!(
                "longest standstill {:.2} s, no step back, the same process: {same}",
                still.as_secs_f64()
            ),
        );
        self.settle_picture(act, "6-after-drain")?;
        self.stage.cli(&["host", "undrain", &host])?;
        Ok(())
    }

    /// Kills the agent, then libvirtd, on the host of the first execution node's primary.
    ///
    /// # Errors
    /// When the story cannot go on.
    pub fn agent_and_libvirtd_die(&self, act: &mut Act) -> Result<()> {
        act.begin("an agent and a libvirtd are killed");
        let id = "alice/exec-1";
        self.stage.wait_whole(TERMINAL, 1, REPAIR)?;
        let node = self.stage.node(id)?;
        let (host, instance) = member(&node)?;
        let address = address_of(&node)?;
        let process = start_of(self.stage.cluster(), address)?;
        let watch = Watch::start(self.stage.cluster(), address)?;
        (self.say)(&format!("killing the agent of {host}, then its libvirtd"));
        let killed = Instant::now();
        self.stage.kill_agent(&host)?;
        self.stage.wait("the agent is back", ACT, |_| self.stage.status_on(self.stage.host(&host)?))?;
        act.phase("agent answers again", killed.elapsed());
        self.stage.host(&host)?.kill_libvirtd()?;
        self.stage.host(&host)?.start_libvirtd()?;
        act.phase("libvirtd answers again", killed.elapsed());
        self.stage.wait_whole(TERMINAL, 1, REPAIR)?;
        act.phase("everything is whole", killed.elapsed());
        let after = self.stage.node(id)?;
        let untouched = member(&after)? == (host, instance) && after["epoch"] == node["epoch"];
        act.judge("no VM was touched, nothing was promoted", untouched, after["primary"].to_string());
        let same =
            start_of(self.stage.cluster(), address)? == process && watch.seen().never_back(Duration::ZERO);
        act.judge("the counter went on", same, process);
        Ok(())
    }
}

/// Each primary that was on `host`, in words, and whether it left by live migration.
fn primaries_left(host: &str, before: &Value, after: &Value) -> Result<Vec<(String, bool)>> {
    let mut left = Vec::new();
    for id in NODES {
        let (old, new) = (node_of(before, id)?, node_of(after, id)?);
        if old["primary"]["host"] != host {
            continue;
        }
        let (to, instance) = member(&new)?;
        let migrated = to != host
            && old["primary"]["instance"] == *instance
            && new["incarnation"] == old["incarnation"]
            && new["incident"]["epoch"] == old["incident"]["epoch"];
        let how = if migrated { "migrated" } else { "NOT migrated" };
        left.push((format!("{id} {how} from {host} to {to} as {instance}"), migrated));
    }
    Ok(left)
}

/// The nodes that have a member on `host`, or are on the way to it.
fn nodes_on(host: &str, status: &Value) -> Result<Vec<&'static str>> {
    let mut here = Vec::new();
    for id in NODES {
        let node = node_of(status, id)?;
        let backups = node["backups"].as_array().into_iter().flatten();
        let hosts =
            backups.chain([&node["primary"]]).map(|member| &member["host"]).chain([&node["migrating_to"]]);
        if hosts.into_iter().any(|at| at == host) {
            here.push(id);
        }
    }
    Ok(here)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `alice` with its primaries on these hosts, as display, exec-1 and exec-2; every backup is on host3.
    fn status(hosts: [&str; 3]) -> Value {
        let nodes: Vec<Value> = NODES
            .iter()
            .zip(hosts)
            .zip(1..)
            .map(|((id, host), instance)| {
                json!({
                    "id": id, "incarnation": 4, "migrating_to": null, "incident": { "epoch": 4 },
                    "primary": { "host": host, "instance": format!("i{instance}") },
                    "backups": [{ "host": "host3", "instance": null }],
                })
            })
            .collect();
        json!({ "terminals": [{ "id": "alice", "nodes": nodes }] })
    }

    fn migrated(after: &Value) -> Vec<bool> {
        let before = status(["host2", "host1", "host1"]);
        primaries_left("host1", &before, after).unwrap().into_iter().map(|(_, migrated)| migrated).collect()
    }

    #[test]
    fn every_primary_of_the_host_is_judged_and_no_other() {
        assert_eq!(migrated(&status(["host3", "host2", "host2"])), [true, true]);
        assert_eq!(migrated(&status(["host2", "host2", "host1"])), [true, false], "exec-2 stayed");
        for (key, value) in [("incarnation", json!(5)), ("incident", json!({ "epoch": 5 }))] {
            let mut failed_over = status(["host2", "host2", "host2"]);
            failed_over["terminals"][0]["nodes"][2][key] = value;
            assert_eq!(migrated(&failed_over), [true, false], "{key}");
        }
        let mut replaced = status(["host2", "host2", "host2"]);
        replaced["terminals"][0]["nodes"][1]["primary"]["instance"] = json!("i9");
        assert_eq!(migrated(&replaced), [false, true], "another instance");
    }

    #[test]
    fn a_host_is_empty_without_primaries_backups_and_what_is_on_its_way_to_it() {
        let mut after = status(["host2", "host2", "host2"]);
        assert_eq!(nodes_on("host1", &after).unwrap(), Vec::<&str>::new());
        assert_eq!(nodes_on("host3", &after).unwrap(), NODES);
        after["terminals"][0]["nodes"][2]["migrating_to"] = json!("host1");
        assert_eq!(nodes_on("host1", &after).unwrap(), ["alice/exec-2"]);
    }
}
