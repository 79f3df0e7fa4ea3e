//! Tables of a host's agent: what it makes of outcomes, of what the hypervisor says, and of time.

mod arriving;
mod destroying;
mod due;
mod migrating_out;
mod orphans;
mod refusing;
mod restoring;

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::fixture::{Cluster, MEMBER, host, node};
use crate::host::input::DomainEvent;
use crate::host::migration::{MigrationAnswer, MigrationStep};
use crate::model::ids::Epoch;
use crate::model::records::Phase;
use crate::model::units::Vcpus;

/// A host's agent with a cluster around it, and the jobs and the steps of migrations that are not over.
struct Rig {
    cluster: Cluster,
    agent: HostAgent,
    jobs: Vec<Job>,
    steps: Vec<(Job, MigrationStep)>,
    seen: Vec<Effect>,
    /// Copies that it had sent, for tests that tell what became of them.
    sent: Vec<Effect>,
}

impl Rig {
    fn new(cluster: Cluster, me: &str, idle: u32) -> Self {
        let agent = HostAgent::new(HostSettings {
            me: host(me),
            memory: MiB(4096),
            pool: PoolSettings { idle, memory: MEMBER, vcpus: Vcpus(1) },
            addresses: [10, 1, 0, 1].into()..=[10, 1, 0, 9].into(),
            bounds: cluster.bounds,
            names: Uuid::from_u128(7),
        });
        let mut rig =
            Self { cluster, agent, jobs: Vec::new(), steps: Vec::new(), seen: Vec::new(), sent: Vec::new() };
        let found = rig.cluster.local(me);
        let lease = rig.cluster.view.hosts[&host(me)].lease.value.number;
        rig.records();
        rig.say(Input::Recovered { lease, found });
        rig.say(Input::Listed(None));
        // No checkpoint is due.
        let nodes: Vec<NodeId> = rig.cluster.view.nodes.keys().cloned().collect();
        rig.agent.checkpoints.last_checkpoint =
            nodes.into_iter().map(|node| (node, rig.cluster.now.boottime)).collect();
        rig
    }

    /// The host of alice's execution node, whose display is elsewhere or nowhere.
    fn with_execution_node(hosts: usize) -> (Self, InstanceId) {
        let cluster = Cluster::of(hosts).with(&["alice/exec-1"]);
        let (me, instance) = cluster.primary("alice/exec-1");
        (Self::new(cluster, me.as_str(), 0), instance)
    }

    fn say(&mut self, input: Input) {
        for effect in self.agent.handle(input, self.cluster.now) {
            match &effect {
                Effect::Start(job) => self.jobs.push((**job).clone()),
                Effect::Step { job, step } => self.steps.push(((**job).clone(), *step)),
                _ => {}
            }
            self.seen.push(effect);
        }
    }

    fn records(&mut self) {
        let (view, failovers) = (self.cluster.view.clone(), BTreeMap::new());
        self.say(Input::Records(Box::new(Records { view, failovers, unreadable: false })));
    }

    fn tick(&mut self) {
        self.say(Input::Tick { open: true });
    }

    fn pass(&mut self, ms: u64) {
        self.cluster.now.boottime = self.cluster.now.boottime + Duration::from_millis(ms);
        self.cluster.now.wall.0 += ms;
        self.tick();
    }

    /// The words of the jobs that are not over.
    fn under_way(&self) -> Vec<String> {
        let word = |job: &Job| {
            let text = format!("{:?}", job.action);
            text.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
        };
        self.jobs.iter().map(word).collect()
    }

    /// The oldest job ends so.
    fn end(&mut self, outcome: Outcome) {
        let job = self.jobs.remove(0);
        self.say(Input::Finished { job: Box::new(job), outcome });
    }

    /// The words of the steps that are under way.
    fn steps(&self) -> Vec<MigrationStep> {
        self.steps.iter().map(|(_, step)| *step).collect()
    }

    /// The oldest step goes so.
    fn answer(&mut self, answer: MigrationAnswer) {
        let (job, _) = self.steps.remove(0);
        self.say(Input::Stepped { job: Box::new(job), answer });
    }

    fn exits(&mut self, instance: InstanceId) {
        let event = DomainEvent::Exited { instance, detail: "qemu process 7 ended".to_owned() };
        self.say(Input::Hypervisor(event));
    }

    fn phase(&self, instance: InstanceId) -> Option<&'static str> {
        self.agent.local.get(&instance).map(|local| local.fact.phase.as_str())
    }

    fn death(&self, instance: InstanceId) -> Option<Death> {
        match &self.agent.local.get(&instance)?.fact.phase {
            Phase::Dead { death, .. } => Some(death.clone()),
            Phase::Booting | Phase::Idle | Phase::Deploying | Phase::Restoring | Phase::Ready => None,
        }
    }

    fn condition(&self, condition: Condition) -> &str {
        self.agent.conditions.get(&condition).map_or("", String::as_str)
    }

    /// Whether it asked for a look since the last question, for this instance or for all.
    fn asked(&mut self, effect: &Effect) -> bool {
        std::mem::take(&mut self.seen).contains(effect)
    }
}

fn failed() -> Outcome {
    Outcome::Failed("no answer".to_owned())
}

#[test]
fn what_failed_is_tried_again_after_a_wait_that_doubles_and_begins_anew_after_a_success() {
    let mut cluster = Cluster::of(1);
    cluster.idle("host1", 1);
    cluster.add(&["alice/display"]);
    cluster.step();
    let instance = cluster.primary("alice/display").1;
    let mut rig = Rig::new(cluster, "host1", 0);
    rig.tick();
    for wait in [200, 400, 800] {
        assert_eq!(rig.under_way(), ["Guard"]);
        rig.end(failed());
        rig.pass(wait - 1);
        assert_eq!(rig.under_way(), [""; 0], "{wait}");
        rig.pass(1);
    }
    rig.end(Outcome::Guarded(Epoch(1)));
    rig.tick();
    assert_eq!((rig.under_way(), rig.phase(instance)), (vec!["Deploy".to_owned()], Some("deploying")));
    rig.end(failed());
    rig.pass(200);
    assert_eq!(rig.under_way(), ["Deploy"]);
    rig.end(Outcome::Done);
    assert_eq!(rig.phase(instance), Some("ready"));
}

#[test]
fn an_idle_instance_that_cannot_be_made_is_reported_and_another_is_tried_after_fifteen_seconds() {
    let mut rig = Rig::new(Cluster::of(1), "host1", 2);
    rig.tick();
    assert_eq!(rig.under_way(), ["CreateIdle"], "one at a time");
    let first = rig.jobs[0].clone();
    rig.end(Outcome::Died("no room in /run".to_owned()));
    assert!(rig.condition(Condition::Pool).contains("no room in /run"));
    rig.pass(14_999);
    assert_eq!(rig.under_way(), [""; 0]);
    rig.pass(1);
    assert_eq!(rig.under_way(), ["CreateIdle"]);
    assert_ne!(rig.jobs[0].instance, first.instance);
    let address = rig.jobs[0].address;
    rig.end(Outcome::Done);
    assert_eq!(rig.condition(Condition::Pool), "");
    rig.tick();
    assert_ne!(rig.jobs[0].address, address, "that one is taken");
}

#[test]
fn a_job_of_a_lease_that_is_over_changes_nothing_and_what_it_made_goes() {
    let mut rig = Rig::new(Cluster::of(1), "host1", 1);
    rig.tick();
    let old = rig.jobs.remove(0);
    rig.say(Input::LeaseLost);
    rig.say(Input::Recovered { lease: 2, found: BTreeMap::new() });
    rig.say(Input::Finished { job: Box::new(old.clone()), outcome: Outcome::Done });
    assert_eq!(rig.under_way(), ["Destroy"]);
    assert_eq!((rig.jobs[0].instance, rig.phase(old.instance)), (old.instance, None));
}

#[test]
fn no_checkpoint_is_taken_while_windows_are_sent() {
    let (mut rig, instance) = Rig::with_execution_node(2);
    rig.agent.lanes.insert((instance, Lane::Windows), Busy::Running { tries: 0 });
    rig.pass(5_000);
    assert_eq!(rig.under_way(), [""; 0], "a guest that stands still sends nothing");
    rig.agent.lanes.clear();
    rig.tick();
    assert_eq!(rig.under_way(), ["Checkpoint"]);
    assert!(rig.jobs[0].sequence.is_some());
}

#[test]
fn a_death_clears_what_is_known_of_its_windows_and_a_move_keeps_it() {
    let sent = crate::model::records::WindowsSent {
        display: InstanceId::derived(&node("alice/display"), Epoch(1), &host("host1"), 0),
        display_incarnation: Epoch(1),
        incarnation: Epoch(1),
        at: crate::model::units::UnixMillis(1),
    };
    for moves in [false, true] {
        let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
        let (me, instance) = cluster.primary("alice/exec-1");
        cluster.report_primary("alice/exec-1", |fact| fact.windows = Some(sent));
        if moves {
            cluster.seen(me.as_str()).intent.drain = true;
            cluster.step();
        }
        let mut rig = Rig::new(cluster, me.as_str(), 0);
        rig.exits(instance);
        let local = &rig.agent.local[&instance];
        assert_eq!(local.fact.windows.is_some(), moves, "{:?}", local.fact.phase);
    }
}
