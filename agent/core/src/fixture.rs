//! A small cluster for the tests of this crate: records as the leader sees them, and hosts that obey at once.

mod copies;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::bounds::{Bounds, Profile};
use crate::death::Death;
use crate::host::{Local, PoolSettings, Situation};
use crate::invariants::{broken_by, broken_in};
use crate::leader::{AskCopies, Plan, Question, Reply, Report, plan_asking};
use crate::model::ids::{BootId, Epoch, HostId, InstanceId, NodeId, Role};
use crate::model::records::{
    Capacity, HostFacts, HostIntent, InstanceFact, Kept, LeaseExpiry, LeaseRecord, NodeRecord, NodeSpec,
    Phase, Screen,
};
use crate::model::units::{Boottime, MiB, Now, UnixMillis, Vcpus};
use crate::model::view::{Answer, HostView, Versioned, View};
use crate::policy::{BackupCountAnswer, BackupCountQuestion, PlacementAnswer, PlacementQuestion};

/// What answers the plan's questions.
pub(crate) trait Policy {
    fn place(&mut self, _question: &PlacementQuestion) -> Answer<PlacementAnswer> {
        Answer::Unavailable
    }
    fn count(&mut self, _question: &BackupCountQuestion) -> Answer<BackupCountAnswer> {
        Answer::Unavailable
    }
}

/// Puts a question to a policy.
pub(crate) fn reply(policy: &mut dyn Policy, question: Question) -> Reply {
    match question {
        Question::Placement(question) => {
            let answer = policy.place(&question);
            Reply::Placement(question, answer)
        }
        Question::BackupCount(question) => {
            let answer = policy.count(&question);
            Reply::BackupCount(question, answer)
        }
    }
}

/// No policy at all: the built-in rules.
pub(crate) struct BuiltIn;
impl Policy for BuiltIn {}

#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    pub(crate) view: View,
    pub(crate) now: Now,
    pub(crate) bounds: Bounds,
    pub(crate) report: Report,
    /// What the next plan is told that nodes were short of.
    pub(crate) deficits: BTreeMap<NodeId, u32>,
    /// What each host has of each node's checkpoints, the oldest first.
    pub(crate) disks: BTreeMap<HostId, BTreeMap<NodeId, Kept>>,
    /// Hosts that do not say what they have.
    pub(crate) silent: BTreeSet<HostId>,
    revision: u64,
}

pub(crate) fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

pub(crate) fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

/// Memory of every node's members.
pub(crate) const MEMBER: MiB = MiB(512);

pub(crate) fn spec(role: Role) -> NodeSpec {
    NodeSpec {
        memory: MEMBER,
        vcpus: Vcpus(1),
        protected: role == Role::Execution,
        environment: role.as_str().to_owned(),
        applications: Vec::new(),
        labels: BTreeMap::new(),
        environment_labels: BTreeMap::new(),
        screen: Screen { width: 1280, height: 720 },
    }
}

pub(crate) fn fact(phase: Phase, node: Option<NodeId>, epoch: Epoch) -> InstanceFact {
    InstanceFact {
        phase,
        node,
        epoch,
        address: Some([10, 0, 0, 1].into()),
        memory: MEMBER,
        vcpus: Vcpus(1),
        since: UnixMillis(0),
        windows: None,
        admitted: BTreeMap::new(),
        migration_failed: None,
    }
}

pub(crate) fn dead(detail: &str) -> Phase {
    died(Death::Exited { detail: detail.to_owned() })
}

pub(crate) fn died(death: Death) -> Phase {
    Phase::Dead { death, at: UnixMillis(1_000_500) }
}

pub(crate) fn deploy_failed(detail: &str) -> Phase {
    died(Death::DeployFailed { detail: detail.to_owned() })
}

pub(crate) fn moved(to: &HostId) -> Phase {
    died(Death::Moved { to: to.clone() })
}

impl Cluster {
    /// `count` hosts named `host1`… with open leases and room for eight members each.
    pub(crate) fn of(count: usize) -> Self {
        let now = Now { boottime: Boottime(1_000_000_000_000), wall: UnixMillis(1_000_000) };
        let view = View::default();
        let mut cluster = Self {
            view,
            now,
            bounds: Profile::Safe.bounds(),
            report: Report::default(),
            deficits: BTreeMap::new(),
            disks: BTreeMap::new(),
            silent: BTreeSet::new(),
            revision: 10,
        };
        for number in 1..=count {
            cluster.add_host(&format!("host{number}"), MiB(4096));
        }
        cluster
    }

    pub(crate) fn add_host(&mut self, name: &str, memory: MiB) {
        let lease = LeaseRecord::open(BootId("boot".to_owned()), Default::default(), 1);
        let facts = HostFacts {
            lease: 1,
            capacity: Capacity { vcpus: Vcpus(16), memory },
            migration_uri: format!("qemu://{name}"),
            ..HostFacts::default()
        };
        let seen = HostView {
            facts: Some(facts.into()),
            lease: Versioned { value: lease, revision: self.bump() },
            renewed: 0,
            silent_since: Some(self.now.boottime),
            intent: HostIntent::default(),
        };
        self.view.hosts.insert(host(name), seen.into());
    }

    pub(crate) fn bump(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// Adds nodes and lets plan and hosts settle.
    pub(crate) fn with(mut self, nodes: &[&str]) -> Self {
        self.add(nodes);
        self.settle();
        self
    }

    pub(crate) fn add(&mut self, nodes: &[&str]) {
        for name in nodes {
            let id = node(name);
            let record = NodeRecord::new(spec(id.role()), "token".to_owned());
            let revision = self.bump();
            self.view.nodes.insert(id, Versioned { value: record, revision });
        }
    }

    pub(crate) fn record(&self, name: &str) -> &NodeRecord {
        &self.view.nodes[&node(name)].value
    }

    pub(crate) fn edit(&mut self, name: &str, edit: impl FnOnce(&mut NodeRecord)) {
        let revision = self.bump();
        let known = self.view.nodes.update(&node(name), |known| {
            edit(&mut known.value);
            known.revision = revision;
        });
        assert!(known, "there is a node {name}");
    }

    pub(crate) fn seen(&mut self, name: &str) -> &mut HostView {
        Arc::make_mut(self.view.hosts.get_mut(&host(name)).unwrap())
    }

    pub(crate) fn facts(&mut self, name: &str) -> &mut HostFacts {
        Arc::make_mut(self.seen(name).facts.as_mut().unwrap())
    }

    pub(crate) fn primary(&self, name: &str) -> (HostId, InstanceId) {
        let primary = self.record(name).primary.as_ref().unwrap();
        (primary.host.clone(), primary.instance.unwrap())
    }

    pub(crate) fn primary_host(&self, name: &str) -> String {
        self.primary(name).0.to_string()
    }

    pub(crate) fn backup_hosts(&self, name: &str) -> Vec<String> {
        self.record(name).backups.iter().map(|backup| backup.host.to_string()).collect()
    }

    /// A change of what a host reports of the primary of a node.
    pub(crate) fn report_primary(&mut self, name: &str, edit: impl FnOnce(&mut InstanceFact)) {
        let (at, instance) = self.primary(name);
        edit(self.facts(at.as_str()).instances.get_mut(&instance).unwrap());
    }

    pub(crate) fn kill_primary(&mut self, name: &str) {
        self.report_primary(name, |fact| fact.phase = dead("killed"));
    }

    /// The host falls silent and its lease is expired.
    pub(crate) fn lose(&mut self, name: &str) {
        let revision = self.bump();
        let at = self.now.wall;
        let lease = &mut self.seen(name).lease;
        lease.revision = revision;
        lease.value.expired =
            Some(LeaseExpiry { reason: "silent".to_owned(), silent_since: UnixMillis(at.0 - 7_000), at });
    }

    /// The host opens its next lease, with nothing running.
    pub(crate) fn reopen(&mut self, name: &str) {
        let revision = self.bump();
        let seen = self.seen(name);
        seen.lease.revision = revision;
        seen.lease.value.number += 1;
        seen.lease.value.expired = None;
        let number = seen.lease.value.number;
        let facts = Arc::make_mut(seen.facts.as_mut().unwrap());
        facts.lease = number;
        facts.instances.clear();
    }

    pub(crate) fn idle(&mut self, name: &str, count: u8) {
        for number in 0..count {
            let serial = self.bump() + u64::from(number);
            let instance = InstanceId::derived(&node("pool/display"), Epoch(0), &host(name), serial);
            self.facts(name).instances.insert(instance, fact(Phase::Idle, None, Epoch(0)));
        }
    }

    /// For so long the host has been silent, and open still.
    pub(crate) fn silence(&mut self, name: &str, time: Duration) {
        self.seen(name).silent_since = Some(self.now.boottime - time);
    }

    /// Time goes by, and how long each host has been silent stays what it is.
    pub(crate) fn pass(&mut self, time: Duration) {
        for name in self.view.hosts.keys().cloned().collect::<Vec<_>>() {
            let seen = self.seen(name.as_str());
            seen.silent_since = seen.silent_since.map(|since| since + time);
        }
        self.now.boottime = self.now.boottime + time;
        self.now.wall = UnixMillis(self.now.wall.0 + u64::try_from(time.as_millis()).unwrap());
    }

    /// One plan from nothing with all its questions answered, checked, and not applied.
    pub(crate) fn plan_with(&mut self, policy: &mut dyn Policy) -> Plan {
        let answer = |question| reply(policy, question);
        let copies = |ask: &AskCopies| self.says(ask);
        let (plan, report) = plan_asking(&self.view, &self.deficits, &self.bounds, self.now, answer, copies);
        for assignment in &plan.assignments {
            let heard = self.heard(&assignment.node);
            assert_eq!(broken_by(&self.view, &heard, assignment), Vec::new(), "{assignment:#?}");
        }
        self.report = report;
        plan
    }

    pub(crate) fn plan(&mut self) -> Plan {
        self.plan_with(&mut BuiltIn)
    }

    pub(crate) fn apply(&mut self, plan: &Plan) {
        for expiry in &plan.expiries {
            let revision = self.bump();
            let lease = &mut self.seen(expiry.host.as_str()).lease;
            assert_eq!(lease.revision, expiry.revision);
            *lease = Versioned { value: expiry.record.clone(), revision };
        }
        for assignment in &plan.assignments {
            let revision = self.bump();
            let known = &self.view.nodes[&assignment.node];
            assert_eq!(known.revision, assignment.revision);
            let new = Versioned { value: assignment.record.clone(), revision };
            self.view.nodes.insert(assignment.node.clone(), new);
        }
        assert_eq!(broken_in(&self.view), Vec::new());
    }

    /// Plans and applies once; gives what was planned.
    pub(crate) fn step(&mut self) -> Plan {
        let plan = self.plan();
        self.apply(&plan);
        plan
    }

    /// The hosts do at once what the records say, and checkpoints are taken.
    pub(crate) fn obey(&mut self) {
        let wall = self.now.wall;
        let nodes = self.view.nodes.clone();
        let names: Vec<HostId> = self.view.hosts.keys().cloned().collect();
        for name in &names {
            let seen = self.seen(name.as_str());
            if !seen.is_open() {
                continue;
            }
            let Some(facts) = seen.facts.as_mut().map(Arc::make_mut) else { continue };
            let mut kept = BTreeMap::new();
            for (id, known) in &nodes {
                for member in known.value.members().filter(|member| &member.host == name) {
                    let Some(instance) = member.instance.filter(|_| member.lease == facts.lease) else {
                        continue;
                    };
                    let known_fact = facts.instances.get(&instance).filter(|fact| !fact.phase.is_dead());
                    let mut now = known_fact.cloned().unwrap_or_else(|| fact(Phase::Ready, None, Epoch(0)));
                    now.phase = Phase::Ready;
                    now.node = Some(id.clone());
                    now.epoch = known.value.epoch;
                    now.since = wall;
                    kept.insert(instance, now);
                }
            }
            facts.instances.retain(|_, fact| fact.phase == Phase::Idle && fact.node.is_none());
            facts.instances.append(&mut kept);
        }
        for (id, known) in &nodes {
            self.take_checkpoint(id, &known.value);
        }
    }

    /// Plans and obeys until there is nothing left to plan.
    pub(crate) fn settle(&mut self) {
        for _ in 0..50 {
            let done = self.step().is_empty();
            self.obey();
            if done && self.plan().is_empty() {
                return;
            }
        }
        panic!("the plan never becomes empty: {:#?}", self.plan());
    }

    /// The situation of one host, for [`crate::host::reconcile()`]; to be adjusted by the test.
    pub(crate) fn situation<'a>(
        &'a self,
        me: &'a HostId,
        local: &'a BTreeMap<InstanceId, Local>,
        rest: &'a Rest,
    ) -> Situation<'a> {
        Situation {
            me,
            lease: Some(self.view.hosts[me].lease.value.number),
            draining: self.view.hosts[me].intent.drain,
            nodes: &self.view.nodes,
            hosts: &self.view.hosts,
            unreadable: rest.unreadable,
            local,
            busy: &rest.busy,
            images: &rest.images,
            last_checkpoint: &rest.last_checkpoint,
            resting: &rest.resting,
            bases: &rest.bases,
            loaded: &rest.loaded,
            checkpoint_interval: self.bounds.checkpoint_interval,
            pool: rest.pool,
            filling: false,
            free: MiB(4096),
            now: self.now,
            windows_first: self.bounds.windows_first,
        }
    }

    /// What a host knows of its own instances: what it reports.
    pub(crate) fn local(&self, name: &str) -> BTreeMap<InstanceId, Local> {
        let facts = self.view.hosts[&host(name)].facts.as_ref().unwrap();
        let local = |fact: &InstanceFact| Local::of(fact.clone());
        facts.instances.iter().map(|(&instance, fact)| (instance, local(fact))).collect()
    }
}

/// What else a situation holds.
#[derive(Debug, Clone)]
pub(crate) struct Rest {
    pub(crate) busy: std::collections::BTreeSet<(InstanceId, crate::host::Lane)>,
    pub(crate) images: BTreeSet<NodeId>,
    pub(crate) last_checkpoint: BTreeMap<NodeId, Boottime>,
    pub(crate) resting: std::collections::BTreeSet<(NodeId, HostId)>,
    pub(crate) bases: crate::host::Bases,
    pub(crate) loaded: BTreeMap<InstanceId, crate::host::Loaded>,
    pub(crate) pool: PoolSettings,
    pub(crate) unreadable: bool,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            busy: Default::default(),
            images: Default::default(),
            last_checkpoint: BTreeMap::new(),
            resting: Default::default(),
            bases: Default::default(),
            loaded: BTreeMap::new(),
            pool: PoolSettings { idle: 0, memory: MEMBER, vcpus: Vcpus(1) },
            unreadable: false,
        }
    }
}
