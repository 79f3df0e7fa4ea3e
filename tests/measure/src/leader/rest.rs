//! Owns the measurement of a cluster at rest: what a renewal, a fact that changes one instance, and an admission cost
//! the leader.
//!
//! Promises: the two sizes of a cluster take turns within one run; a figure counts only if the leader decided what it
//! has to. A fact at ten hosts finds all it needs in the processor's cache, where that of each of a thousand hosts was
//! thrown out since it was looked at last: so facts are measured once more with a cache that holds nothing of either,
//! which shows the work itself. Must not do: print.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use understudy_core::leader::{Admission, Input, Leader, Policies, Trial};
use understudy_core::model::ids::{HostId, NodeId, TerminalId};
use understudy_core::model::records::NodeRecord;

use crate::cluster::{Cluster, host, spec};
use crate::lost::at_rest;

/// Renewals, or facts, of each size in one run: at 1,000 hosts one of each.
const CHANGES: usize = 1_000;
/// The same with a cache that was emptied before each.
const COLD_CHANGES: usize = 100;
/// What is read to empty the cache: twice what today's processors keep for one core.
const CACHE: usize = 128 << 20;
/// Between two of them: as where 1,000 hosts renew their leases once a second.
const APART: Duration = Duration::from_millis(1);
/// Admissions in one run.
const ADMISSIONS: usize = 20;

/// Medians of one number of hosts: one for each run.
#[derive(Debug, Serialize)]
pub(crate) struct Rest {
    hosts: usize,
    renewal_us: Vec<f64>,
    fact_us: Vec<f64>,
    fact_cold_us: Vec<f64>,
}

/// Admissions: a median for each run.
#[derive(Debug, Serialize)]
pub(crate) struct Admitted {
    hosts: usize,
    times_ms: Vec<f64>,
}

/// What renewals and facts cost, for each number of hosts.
pub(crate) fn measure(sizes: &[usize], runs: usize) -> Result<Vec<Rest>> {
    let mut clusters = Vec::new();
    for &hosts in sizes {
        let cluster = Cluster::of(hosts)?;
        let leader = at_rest(&cluster, Policies::default())?;
        let rest = Rest { hosts, renewal_us: Vec::new(), fact_us: Vec::new(), fact_cold_us: Vec::new() };
        clusters.push((rest, cluster, leader));
    }
    let other = vec![1_u64; CACHE / size_of::<u64>()];
    let warm = || ();
    let cold = || {
        black_box(black_box(&other).iter().sum::<u64>());
    };
    let show = |cluster: &mut Cluster, host: &HostId| cluster.show(host).map(drop);
    for run in 0..=runs {
        for (rest, cluster, leader) in &mut clusters {
            let mut took =
                |changes, before: &dyn Fn(), change: &dyn Fn(&mut Cluster, &HostId) -> Result<()>| {
                    let median = timed((changes, rest.hosts), (cluster, leader), before, change)?;
                    anyhow::Ok(median.as_secs_f64() * 1e6)
                };
            let renewal = took(CHANGES, &warm, &Cluster::renew)?;
            let fact = took(CHANGES, &warm, &show)?;
            let fact_cold = took(COLD_CHANGES, &cold, &show)?;
            // The first run is not counted.
            if run > 0 {
                rest.renewal_us.push(renewal);
                rest.fact_us.push(fact);
                rest.fact_cold_us.push(fact_cold);
            }
        }
    }
    Ok(clusters.into_iter().map(|(rest, ..)| rest).collect())
}

/// Changes one host after the other. The median of what the leader takes for one.
fn timed(
    (changes, hosts): (usize, usize),
    (cluster, leader): (&mut Cluster, &mut Leader),
    before: &dyn Fn(),
    change: &dyn Fn(&mut Cluster, &HostId) -> Result<()>,
) -> Result<Duration> {
    let mut times = Vec::new();
    for number in 0..changes {
        cluster.now.boottime = cluster.now.boottime + APART;
        cluster.now.wall = cluster.now.wall + APART;
        change(cluster, &host(number % hosts)?)?;
        let view = cluster.view.clone();
        before();
        let start = Instant::now();
        let decisions = leader.handle(Input::View(view), cluster.now);
        times.push(start.elapsed());
        ensure!(decisions.is_empty(), "the cluster is not at rest: {decisions:?}");
    }
    Ok(median(times))
}

/// What the admission of a terminal with three nodes costs.
pub(crate) fn admit(hosts: usize, runs: usize) -> Result<Admitted> {
    let cluster = Cluster::of(hosts)?;
    let leader = at_rest(&cluster, Policies::default())?;
    let terminal: TerminalId = "new".parse()?;
    let nodes =
        [NodeId::display(&terminal), NodeId::execution(&terminal, 1), NodeId::execution(&terminal, 2)];
    let record = |node: &NodeId| NodeRecord::new(spec(node.role()), "token".to_owned());
    let new: BTreeMap<NodeId, NodeRecord> = nodes.iter().map(|node| (node.clone(), record(node))).collect();
    let mut admitted = Admitted { hosts, times_ms: Vec::new() };
    for run in 0..=runs {
        let mut times = Vec::new();
        for _ in 0..ADMISSIONS {
            let start = Instant::now();
            let mut trial = Trial::new(&leader, &new, cluster.now);
            let admission = trial.step(Vec::new(), cluster.now);
            times.push(start.elapsed());
            ensure!(matches!(admission, Admission::Admitted(_)), "it is not admitted: {admission:?}");
        }
        if run > 0 {
            admitted.times_ms.push(median(times).as_secs_f64() * 1e3);
        }
    }
    Ok(admitted)
}

fn median(mut times: Vec<Duration>) -> Duration {
    let middle = times.len() / 2;
    *times.select_nth_unstable(middle).1
}
