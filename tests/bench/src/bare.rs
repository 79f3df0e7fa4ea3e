//! Owns the floors: the same guests moved and restored by virsh alone, with agents and guards stopped.
//!
//! Promises: nothing of ours runs meanwhile; permits are written by hand, because the hook stays.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use understudy_e2e::checkpoints::newest;
use understudy_e2e::counter::{Watch, start_of};
use understudy_e2e::stage::{Stage, address_of};
use understudy_lab::Host;
use understudy_lab::cluster::{AGENT, GUARD};

use crate::execution::NODE;
use crate::moving::domain;
use crate::rest::{self, NODES};

/// The image that is restored: on the tmpfs on which the agent has it ready.
const IMAGE: &str = "/run/understudy/bare.image";
/// Copies the image that is kept ready of an instance.
const COPY: &str = "cp \"$(grep -alm1 \"<uuid>$1</uuid>\" /run/understudy/ready/*)\" \"$2\"";

/// Longest wait for one step.
const LIMIT: Duration = Duration::from_secs(120);

/// The cluster with agents and guards stopped, and what they knew last.
pub(crate) struct Bare<'a> {
    stage: &'a Stage,
    /// Host and instance of each node's primary.
    primaries: Vec<(String, String)>,
    /// Address of the restored guest, and the host that has its image.
    kept: (std::net::Ipv4Addr, String),
}

impl<'a> Bare<'a> {
    /// Stops agents and guards.
    pub(crate) fn take(stage: &'a Stage) -> Result<Self> {
        rest::wait(stage)?;
        let primaries = NODES.iter().map(|id| domain(stage, id)).collect::<Result<Vec<_>>>()?;
        let node = stage.node(NODE)?;
        let address = address_of(&node)?;
        let backup = newest(stage, NODE)?.hosts.first().context("no checkpoint")?.clone();
        let stop = |host: &Host| -> Result<()> {
            host.service(AGENT).stop()?;
            host.service(GUARD).stop()?;
            Ok(())
        };
        let (primary, instance) = primaries.get(1).context("no execution primary")?;
        // No further checkpoint changes the image that is copied; an agent that stops removes it.
        stop(stage.host(primary)?)?;
        stage.host(&backup)?.run(["sh", "-c", COPY, "sh", instance, IMAGE])?;
        for host in stage.cluster().hosts().iter().filter(|host| host.name() != *primary) {
            stop(host)?;
        }
        Ok(Self { stage, primaries, kept: (address, backup) })
    }

    /// Lets libvirt start or take in this instance once.
    fn permit(&self, host: &Host, instance: &str) -> Result<()> {
        let boot = host.run(["cat", "/proc/sys/kernel/random/boot_id"])?;
        let uptime = host.run(["cat", "/proc/uptime"])?;
        let now: f64 = uptime.split_whitespace().next().context("no uptime")?.parse()?;
        // An epoch that nobody reaches: the hook refuses older ones than it has heard of.
        let text = format!("{instance}\n4000000000\n{}\n{}\n", boot.trim(), now as u64 + 3600);
        std::fs::write(host.live_path(&format!("/run/understudy/permits/{instance}"))?, text)?;
        Ok(())
    }

    /// Moves the primaries of these nodes one after the other with `virsh migrate --p2p`, for each run anew.
    pub(crate) fn migrations(&self, runs: &[Vec<&str>]) -> Result<Vec<Duration>> {
        let mut places = self.primaries.clone();
        let hosts: Vec<String> = self.stage.cluster().hosts().iter().map(Host::name).collect();
        let mut times = Vec::new();
        for moved in runs {
            let mut spent = Duration::ZERO;
            for ((from, instance), _) in places.iter_mut().zip(NODES).filter(|(_, node)| moved.contains(node))
            {
                let to = hosts.iter().find(|host| *host != from).context("no other host")?.clone();
                self.permit(self.stage.host(&to)?, instance)?;
                let begun = Instant::now();
                let (name, uri) = (format!("understudy-{instance}"), format!("qemu+tls://{to}/system"));
                let source = self.stage.host(from)?;
                source
                    .command(["virsh", "-q", "migrate", "--live", "--p2p", "--tls", &name, &uri])?
                    .limit(LIMIT)
                    .run()?;
                spent += begun.elapsed();
                *from = to;
            }
            times.push(spent);
        }
        Ok(times)
    }

    /// Ends the guest and restores it with `virsh restore`, until its service answers with its state.
    pub(crate) fn restores(&self, runs: usize) -> Result<Vec<Duration>> {
        let (address, backup) = &self.kept;
        let (_, instance) = self.primaries.get(1).context("no execution primary")?;
        let name = format!("understudy-{instance}");
        let process = start_of(self.stage.cluster(), *address)?;
        let host = self.stage.host(backup)?;
        let mut times = Vec::new();
        for _ in 0..runs {
            for other in self.stage.cluster().hosts() {
                // Wherever the last step left it; it is on one host only.
                other.exec(["virsh", "-q", "destroy", &name])?;
            }
            self.permit(host, instance)?;
            let watch = Watch::start(self.stage.cluster(), *address)?;
            let begun = watch.elapsed();
            host.command(["virsh", "-q", "restore", IMAGE, "--running"])?.limit(LIMIT).run()?;
            let until = Instant::now() + LIMIT;
            let answered = loop {
                if let Some(sample) = watch.seen().first_after(begun) {
                    break sample.at;
                }
                ensure!(Instant::now() < until, "the restored guest did not answer within {LIMIT:?}");
                std::thread::sleep(Duration::from_millis(10));
            };
            ensure!(start_of(self.stage.cluster(), *address)? == process, "another process counts");
            times.push(answered.saturating_sub(begun));
        }
        Ok(times)
    }
}
