//! Owns the measurement of a host's loss: how long the leader takes until every assignment is decided.
//!
//! Promises: what is timed are the leader's own calls, and the policy's answers where it is asked; each run has a leader
//! that has followed the cluster to rest; a result counts only if every node is whole after it. Must not do: print.

use std::collections::{BTreeMap, VecDeque};
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use understudy_core::bounds::Profile;
use understudy_core::leader::{Input, Leader, Outcome, Policies, Question, Reply};
use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::records::{HostFacts, LeaseRecord, NodeRecord};
use understudy_core::model::view::{Answer, Versioned, View};
use understudy_policy::PolicySet;

use crate::cluster::{Cluster, NODES, host};

/// The loss of a host: a figure for each run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Lost {
    hosts: usize,
    nodes: usize,
    /// Nodes that had to be decided about.
    decided: usize,
    /// Questions that were put to the policy.
    asked: usize,
    /// Until the last assignment was decided.
    times_ms: Vec<f64>,
    /// The same, with what comes of the answers of the store, until nothing is left to do.
    settled_ms: Vec<f64>,
    /// A copy of every record of the view in the same run.
    copies_ms: Vec<f64>,
}

/// A leader that has followed the cluster to rest.
pub(crate) fn at_rest(cluster: &Cluster, policies: Policies) -> Result<Leader> {
    let mut leader = Leader::new(Profile::Safe.bounds());
    leader.handle(Input::Policies(policies), cluster.now);
    let decisions = leader.handle(Input::View(cluster.view.clone()), cluster.now);
    ensure!(decisions.is_empty(), "the cluster is not at rest: {decisions:?}");
    Ok(leader)
}

/// Loses another host in each run; with a policy it is asked for each place.
pub(crate) fn measure(hosts: usize, runs: usize, policy: Option<&PolicySet>) -> Result<Lost> {
    let cluster = Cluster::of(hosts)?;
    cluster.check()?;
    let mut lost = Lost { hosts, nodes: cluster.view.nodes.len(), ..Lost::default() };
    let policies = Policies { placement: policy.is_some(), backup_count: false, version: 1 };
    // What is cold in the first run is not counted.
    for run in 0..=runs {
        let mut cluster = cluster.clone();
        let mut leader = at_rest(&cluster, policies)?;
        let copied = copy(&cluster.view);
        cluster.lose(&host(hosts * (run + 1) / (runs + 2))?)?;
        let followed = follow(&mut leader, &mut cluster, policy, |_| false)?;
        cluster.check()?;
        ensure!(followed.decided == 2 * NODES, "{} nodes were decided about", followed.decided);
        ensure!(policy.is_none() || followed.asked >= 2 * NODES, "{} questions were asked", followed.asked);
        (lost.decided, lost.asked) = (followed.decided, followed.asked);
        if run > 0 {
            lost.times_ms.push(followed.until_decided.as_secs_f64() * 1e3);
            lost.settled_ms.push(followed.took.as_secs_f64() * 1e3);
            lost.copies_ms.push(copied.as_secs_f64() * 1e3);
        }
    }
    Ok(lost)
}

/// What the leader wanted, and what that took it.
#[derive(Default)]
pub(crate) struct Followed {
    pub(crate) took: Duration,
    /// Of that, until the last assignment was decided.
    until_decided: Duration,
    /// The longest of its turns.
    pub(crate) longest: Duration,
    pub(crate) expired: usize,
    pub(crate) decided: usize,
    asked: usize,
}

/// Shows the leader the cluster, and has done what it wants, until it wants nothing more at this moment. The leases of those
/// hosts alone may be expired that are `silent`.
pub(crate) fn follow(
    leader: &mut Leader,
    cluster: &mut Cluster,
    policy: Option<&PolicySet>,
    silent: impl Fn(&HostId) -> bool,
) -> Result<Followed> {
    let mut followed = Followed::default();
    let mut inputs = VecDeque::from([Input::View(cluster.view.clone())]);
    let mut unseen = false;
    loop {
        let Some(input) = inputs.pop_front() else {
            if !unseen {
                return Ok(followed);
            }
            unseen = false;
            inputs.push_back(Input::View(cluster.view.clone()));
            continue;
        };
        let start = Instant::now();
        let decisions = leader.handle(input, cluster.now);
        let took = start.elapsed();
        followed.took += took;
        followed.longest = followed.longest.max(took);
        ensure!(decisions.refusals.is_empty(), "answers are refused: {:?}", decisions.refusals);
        for expiry in decisions.expiries {
            ensure!(silent(&expiry.host), "the lease of {} is expired, which renews it", expiry.host);
            let revision = cluster.lose(&expiry.host)?;
            inputs.push_back(Input::Expired(expiry.host, Outcome::Applied(revision)));
            unseen = true;
            followed.expired += 1;
        }
        if !decisions.assignments.is_empty() {
            followed.until_decided = followed.took;
        }
        for assignment in decisions.assignments {
            let revision = cluster.write(&assignment, leader)?;
            inputs.push_back(Input::Written(assignment.node, Outcome::Applied(revision)));
            unseen = true;
            followed.decided += 1;
        }
        for ask in decisions.copies {
            let said = cluster.says(&ask);
            inputs.push_front(Input::Copies(ask, said));
        }
        for question in decisions.questions {
            let start = Instant::now();
            let reply = answer(policy, question)?;
            followed.took += start.elapsed();
            // An answer takes less time than a write.
            inputs.push_front(Input::Reply(reply));
            followed.asked += 1;
        }
    }
}

fn answer(policy: Option<&PolicySet>, question: Question) -> Result<Reply> {
    let policy = policy.context("there is nobody to ask")?;
    match question {
        Question::Placement(question) => {
            let answer = policy.ask_placement(&question).outcome?;
            Ok(Reply::Placement(question, Answer::Given(answer)))
        }
        Question::BackupCount(question) => Ok(Reply::BackupCount(question, Answer::Unavailable)),
    }
}

/// The records of a view, each a copy of its own.
struct Copied {
    hosts: BTreeMap<HostId, (Option<HostFacts>, Versioned<LeaseRecord>)>,
    nodes: BTreeMap<NodeId, Versioned<NodeRecord>>,
}

/// How long a copy of every record takes.
fn copy(view: &View) -> Duration {
    let start = Instant::now();
    let hosts = view.hosts.iter().map(|(host, seen)| {
        let facts = seen.facts.as_ref().map(|facts| facts.as_ref().clone());
        (host.clone(), (facts, seen.lease.clone()))
    });
    let nodes = view.nodes.iter().map(|(node, known)| (node.clone(), known.as_ref().clone()));
    let copied = Copied { hosts: hosts.collect(), nodes: nodes.collect() };
    let took = start.elapsed();
    black_box((&copied.hosts, &copied.nodes));
    took
}
