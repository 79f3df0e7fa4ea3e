//! Owns the loss of a whole rack: what the leader decides from the moment at which its hosts fall silent, step by step.
//!
//! Promises: the leader finds out by itself, expires each lease, and replaces what is lost; what it wants written is
//! written, under the conditions that it names; at the end every node has a primary and a backup on open hosts. Must not
//! do: decide.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use understudy_core::bounds::Profile;
use understudy_core::leader::{Decisions, Input, Leader, Outcome, Policies};
use understudy_core::model::ids::HostId;

use crate::cluster::{Cluster, host};
use crate::lost::at_rest;

/// Until every node is whole again: longer than any wait of the leader's.
const LIMIT: Duration = Duration::from_secs(3_600);

/// What is decided at one moment, until nothing more follows from what was written.
#[derive(Debug, Default, Serialize)]
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
    incarnation: Duration,
    steps: Vec<Step>,
}

/// Loses the first `lost` hosts at once.
pub(crate) fn measure(hosts: usize, lost: usize) -> Result<Lost> {
    let cluster = Cluster::of(hosts)?;
    let leader = at_rest(&cluster, Policies::default())?;
    let silent = (0..lost).map(host).collect::<Result<BTreeSet<HostId>>>()?;
    let (nodes, incarnation) = (cluster.view.nodes.len(), Duration::from_nanos(cluster.now.boottime.0));
    let mut rack = Rack { cluster, leader, silent, incarnation, steps: Vec::new() };
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
        Duration::from_nanos(self.cluster.now.boottime.0).saturating_sub(self.incarnation)
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

    /// Shows the leader the cluster, and has done what it wants, until it wants nothing more at this moment.
    fn step(&mut self) -> Result<()> {
        let mut step = Step { after_s: self.elapsed().as_secs_f64(), ..Step::default() };
        let mut inputs = VecDeque::from([Input::View(self.cluster.view.clone()), Input::Tick]);
        loop {
            let before = step.expired + step.assigned;
            while let Some(input) = inputs.pop_front() {
                let start = Instant::now();
                let decisions = self.leader.handle(input, self.cluster.now);
                let took = start.elapsed().as_secs_f64() * 1e3;
                step.took_ms += took;
                step.longest_ms = step.longest_ms.max(took);
                self.write(decisions, &mut inputs, &mut step)?;
            }
            if step.expired + step.assigned == before {
                break;
            }
            inputs.push_back(Input::View(self.cluster.view.clone()));
        }
        if step.expired + step.assigned > 0 {
            self.steps.push(step);
        }
        Ok(())
    }

    fn write(&mut self, decisions: Decisions, inputs: &mut VecDeque<Input>, step: &mut Step) -> Result<()> {
        ensure!(decisions.questions.is_empty(), "somebody is asked: {:?}", decisions.questions);
        for expiry in decisions.expiries {
            ensure!(
                self.silent.contains(&expiry.host),
                "the lease of {} is expired, which renews it",
                expiry.host
            );
            let revision = self.cluster.lose(&expiry.host)?;
            inputs.push_back(Input::Expired(expiry.host, Outcome::Applied(revision)));
            step.expired += 1;
        }
        for assignment in decisions.assignments {
            let revision = self.cluster.write(&assignment, self.leader.decided_from())?;
            inputs.push_back(Input::Written(assignment.node, Outcome::Applied(revision)));
            step.assigned += 1;
        }
        Ok(())
    }
}
