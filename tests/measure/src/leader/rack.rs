//! Owns the loss of a whole rack: what the leader decides from the moment at which its hosts fall silent, step by step.
//!
//! Promises: the leader finds out by itself, expires each lease, and replaces what is lost; what it wants written is
//! written, under the conditions that it names; at the end every node has a primary and a backup on open hosts. Must not
//! do: decide.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;
use understudy_core::bounds::Profile;
use understudy_core::leader::{Leader, Policies};
use understudy_core::model::ids::HostId;

use crate::cluster::{Cluster, host};
use crate::lost::{Followed, at_rest, follow};

/// Until every node is whole again: longer than any wait of the leader's.
const LIMIT: Duration = Duration::from_secs(3_600);

/// What is decided at one moment, until nothing more follows from what was written.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    /// Since the rack fell silent, as the cluster's clocks go.
    after_s: f64,
    expired: usize,
    assigned: usize,
    /// What the leader took for all of it, and for the longest of its turns.
    took_ms: f64,
    longest_ms: f64,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Lost {
    hosts: usize,
    nodes: usize,
    lost: usize,
    steps: Vec<Step>,
}

struct Rack {
    cluster: Cluster,
    leader: Leader,
    silent: BTreeSet<HostId>,
    begun: Duration,
    steps: Vec<Step>,
}

/// Loses the first `lost` hosts at once.
pub(crate) fn measure(hosts: usize, lost: usize) -> Result<Lost> {
    let cluster = Cluster::of(hosts)?;
    let leader = at_rest(&cluster, Policies::default())?;
    let silent = (0..lost).map(host).collect::<Result<BTreeSet<HostId>>>()?;
    let (nodes, begun) = (cluster.view.nodes.len(), Duration::from_nanos(cluster.now.boottime.0));
    let mut rack = Rack { cluster, leader, silent, begun, steps: Vec::new() };
    let bounds = Profile::Safe.bounds();
    while rack.expired() < lost || rack.cluster.check().is_err() {
        ensure!(rack.elapsed() < LIMIT, "not whole after {LIMIT:?}: {:?}", rack.cluster.check());
        rack.pass(bounds.lease_renew)?;
        rack.step()?;
    }
    Ok(Lost { hosts, nodes, lost, steps: rack.steps })
}

impl Rack {
    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.cluster.now.boottime.0).saturating_sub(self.begun)
    }

    fn expired(&self) -> usize {
        self.steps.iter().map(|step| step.expired).sum()
    }

    /// Time goes on, and whoever is there renews its lease.
    fn pass(&mut self, time: Duration) -> Result<()> {
        self.cluster.now.boottime = self.cluster.now.boottime + time;
        self.cluster.now.wall = self.cluster.now.wall + time;
        let open: Vec<HostId> =
            self.cluster.view.hosts.keys().filter(|host| !self.silent.contains(*host)).cloned().collect();
        open.iter().try_for_each(|host| self.cluster.renew(host))
    }

    fn step(&mut self) -> Result<()> {
        let after_s = self.elapsed().as_secs_f64();
        let Self { cluster, leader, silent, .. } = self;
        let followed = follow(leader, cluster, None, |host| silent.contains(host))?;
        let Followed { took, longest, expired, decided: assigned, .. } = followed;
        if expired + assigned > 0 {
            let (took_ms, longest_ms) = (took.as_secs_f64() * 1e3, longest.as_secs_f64() * 1e3);
            self.steps.push(Step { after_s, expired, assigned, took_ms, longest_ms });
        }
        Ok(())
    }
}
