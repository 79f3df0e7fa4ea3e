//! Owns the acts in which nothing may be lost: a drain, agents and libvirtd that are killed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{ACT, Act, REPAIR, Story, TERMINAL, member};
use crate::counter::{Watch, start_of};
use crate::stage::{address_of, node_of};

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
        let node = self.stage.node(id)?;
        let (host, _) = member(&node)?;
        let address = address_of(&node)?;
        let process = start_of(self.stage.cluster(), address)?;
        let watch = Watch::start(self.stage.cluster(), address)?;
        self.picture(act, "5-before-drain")?;
        (self.say)(&format!("draining {host}"));
        let (begun, begun_at) = (Instant::now(), watch.elapsed());
        self.stage.cli(&["host", "drain", &host])?;
        self.stage.wait("the host is empty", REPAIR, |status| {
            let hosts = status["hosts"].as_array().context("no hosts")?;
            let shown = hosts.iter().find(|shown| shown["id"] == host.as_str()).context("no such host")?;
            let primaries = ["alice/display", "alice/exec-1", "alice/exec-2"]
                .iter()
                .filter(|id| node_of(status, id).is_ok_and(|node| node["primary"]["host"] == host.as_str()))
                .count();
            if primaries == 0 && shown["members"] == 0 {
                Ok(())
            } else {
                bail!("{} members are left", shown["members"])
            }
        })?;
        act.phase("host is empty", begun.elapsed());
        self.stage.wait_whole(TERMINAL, 1, REPAIR)?;
        act.phase("everything is whole again", begun.elapsed());
        let moved = self.stage.node(id)?;
        let (new_host, _) = member(&moved)?;
        act.judge(
            "its instances left by live migration",
            new_host != host && moved["begun"] == node["begun"],
            format!("{host} to {new_host}"),
        );
        let seen = watch.seen();
        let gap = seen.longest_gap(begun_at);
        let same = start_of(self.stage.cluster(), address)? == process;
        act.judge(
            "the counter never stopped",
            same && seen.never_back(Duration::ZERO),
            format!("longest silence {:.2} s, no step back", gap.as_secs_f64()),
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
