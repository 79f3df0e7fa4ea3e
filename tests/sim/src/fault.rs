//! Owns what goes wrong: which kinds of fault a run has, how often, and each of them.
//!
//! Promises: each seed draws its own weights, and switches most kinds off, so that rare mixes come up. Must not do:
//! break a bound that the product states (clock drift stays within `lease_margin`).

use std::collections::BTreeMap;

use understudy_core::keys::{Key, encode};
use understudy_core::leader::{Admission, Input, Leader, Trial};
use understudy_core::model::ids::{HostId, NodeId, Role, TerminalId};
use understudy_core::model::records::{HostIntent, NodeRecord, NodeSpec, Screen};
use understudy_core::model::units::{Boottime, MiB, Now, UnixMillis, Vcpus};
use understudy_store::{Store, Txn};

use crate::Weakness;
use crate::cached_store::{ready, unchanged};
use crate::rng::Rng;
use crate::world::World;

/// A kind of fault that comes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    PowerCut,
    Freeze,
    AgentCrash,
    CutFromStore,
    Partition,
    KillInstance,
    StoreOutage,
    SlowWatch,
    DeafGuard,
    Drain,
    Undrain,
    AddTerminal,
    DeleteTerminal,
    LabelChange,
}

const KINDS: [Kind; 14] = [
    Kind::PowerCut,
    Kind::Freeze,
    Kind::AgentCrash,
    Kind::CutFromStore,
    Kind::Partition,
    Kind::KillInstance,
    Kind::StoreOutage,
    Kind::SlowWatch,
    Kind::DeafGuard,
    Kind::Drain,
    Kind::Undrain,
    Kind::AddTerminal,
    Kind::DeleteTerminal,
    Kind::LabelChange,
];

/// The most that clocks may differ: `lease_margin` covers 1 % of drift over `lease_ttl`.
const DRIFT_PPM: u64 = 4_000;

/// How often a set of policies is proposed where they change, in so many of 100 000 steps.
const SET_WEIGHT: u64 = 150;

/// The faults of one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Swarm {
    /// How often each kind comes, in so many of 100 000 steps.
    weights: BTreeMap<Kind, u64>,
    /// In so many of a thousand cases.
    pub(crate) lost_answers: u64,
    pub(crate) lost_finishes: u64,
    pub(crate) work_fails: u64,
    pub(crate) mad_policy: bool,
    /// Whether times vary.
    pub(crate) jitter: bool,
    pub(crate) drift: bool,
}

impl Swarm {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let mut weights = BTreeMap::new();
        for kind in KINDS {
            if rng.chance(550) {
                let most = if kind == Kind::DeleteTerminal { 60 } else { 450 };
                weights.insert(kind, rng.between(20, most));
            }
        }
        let some = |rng: &mut Rng, most: u64| if rng.chance(500) { rng.below(most) } else { 0 };
        Self {
            weights,
            lost_answers: some(rng, 60),
            lost_finishes: some(rng, 400),
            work_fails: some(rng, 150),
            mad_policy: rng.chance(400),
            jitter: true,
            drift: rng.chance(500),
        }
    }

    /// The faults that would come through if a protection were off.
    pub(crate) fn against(weakness: Weakness) -> Self {
        let (kinds, lost_finishes): (&[(Kind, u64)], u64) = match weakness {
            Weakness::DeadGuard => (&[(Kind::AgentCrash, 400), (Kind::CutFromStore, 400)], 0),
            Weakness::EagerRestore => {
                (&[(Kind::Freeze, 600), (Kind::KillInstance, 900), (Kind::CutFromStore, 400)], 0)
            }
            Weakness::EagerDestination => (&[(Kind::Drain, 400), (Kind::Undrain, 600)], 500),
            Weakness::LeadsWithoutSet => (&[(Kind::AgentCrash, 400), (Kind::PowerCut, 200)], 0),
            Weakness::GivesUpSets => (&[(Kind::AgentCrash, 100)], 0),
            Weakness::TrustsDestroys => (&[(Kind::KillInstance, 100)], 0),
            Weakness::ForgetsUnread => (&[(Kind::AgentCrash, 400)], 0),
            Weakness::GuardForgets | Weakness::SparesMembers => (&[(Kind::CutFromStore, 400)], 0),
            Weakness::TrustsCopies => (&[(Kind::KillInstance, 100)], 0),
            Weakness::StaysOpen => {
                (&[(Kind::KillInstance, 1_500), (Kind::AddTerminal, 600), (Kind::DeleteTerminal, 300)], 0)
            }
            Weakness::CarelessReceiver => (&[(Kind::SlowWatch, 400), (Kind::LabelChange, 400)], 0),
            Weakness::BlindWrites => (
                &[
                    (Kind::SlowWatch, 600),
                    (Kind::CutFromStore, 450),
                    (Kind::KillInstance, 900),
                    (Kind::LabelChange, 400),
                ],
                0,
            ),
        };
        let weights = kinds.iter().copied().collect();
        Self { weights, lost_finishes, jitter: true, ..Self::default() }
    }

    pub(crate) fn describe(&self) -> String {
        let kinds: Vec<String> =
            self.weights.iter().map(|(kind, weight)| format!("{kind:?}={weight}")).collect();
        format!(
            "{} lost-answers={} lost-finishes={} work-fails={} mad-policy={} drift={}",
            kinds.join(" "),
            self.lost_answers,
            self.lost_finishes,
            self.work_fails,
            self.mad_policy,
            self.drift
        )
    }
}

impl World {
    pub(crate) fn skew_clocks(&mut self) {
        for host in self.hosts() {
            let drift = if self.swarm.drift { self.rng.below(2 * DRIFT_PPM) } else { DRIFT_PPM };
            let skew = if self.swarm.drift { self.rng.below(120_000) } else { 0 };
            let machine = self.machine_mut(&host);
            machine.drift_ppm = i64::try_from(drift).unwrap_or(0) - i64::try_from(DRIFT_PPM).unwrap_or(0);
            machine.wall_skew = skew;
        }
    }

    /// What goes wrong in this step.
    pub(crate) fn go_wrong(&mut self) {
        let weights: Vec<(Kind, u64)> =
            self.swarm.weights.iter().map(|(&kind, &weight)| (kind, weight)).collect();
        for (kind, weight) in weights {
            if self.rng.below(100_000) < weight {
                self.strike(kind);
            }
        }
        if self.changing_sets && self.sets_rng.below(100_000) < SET_WEIGHT {
            self.propose_set();
        }
        if self.ailing {
            self.ail();
        }
        self.fail_in_part();
    }

    fn strike(&mut self, kind: Kind) {
        let hosts = self.hosts();
        let Some(host) = self.rng.pick(&hosts).cloned() else { return };
        let now = self.now;
        match kind {
            Kind::PowerCut if self.machine(&host).off_until.is_none() => {
                let until = now + self.rng.between(3_000, 40_000);
                self.cut_power(&host, until);
            }
            Kind::Freeze if self.machine(&host).runs() => {
                let until = now + self.rng.between(200, 20_000);
                self.freeze(&host, until);
                self.note(format!("{host} stands still"));
            }
            Kind::AgentCrash if self.machine(&host).agent.is_some() => {
                let until = now + self.rng.between(200, 9_000);
                self.crash_agent(&host, until);
            }
            Kind::CutFromStore => {
                self.machine_mut(&host).cut_until = now + self.rng.between(300, 15_000);
                self.note(format!("{host} is cut off from the store"));
            }
            Kind::Partition => {
                let Some(other) = self.rng.pick(&hosts).cloned() else { return };
                let until = now + self.rng.between(1_000, 20_000);
                self.part(host, other, until);
            }
            Kind::KillInstance => {
                let all: Vec<_> = self.instances().into_iter().collect();
                let Some((host, instance)) = self.rng.pick(&all).cloned() else { return };
                if self.machine(&host).runs() {
                    self.kill(&host, instance);
                }
            }
            Kind::StoreOutage => {
                self.store_down_until = now + self.rng.between(500, 12_000);
                self.note("the store does not answer");
            }
            Kind::SlowWatch => {
                let lag = self.rng.below(3_000);
                self.machine_mut(&host).lag = lag;
            }
            Kind::DeafGuard => {
                self.machine_mut(&host).guard_deaf_until = now + self.rng.between(500, 9_000);
                self.note(format!("the guard of {host} does not answer"));
            }
            Kind::Drain => self.drain(&host, true),
            Kind::Undrain => self.drain(&host, false),
            Kind::AddTerminal => self.add_some_terminal(),
            Kind::DeleteTerminal => self.delete_some_terminal(),
            Kind::LabelChange => self.change_some_label(),
            Kind::PowerCut | Kind::Freeze | Kind::AgentCrash => {}
        }
    }

    pub(crate) fn kill(&mut self, host: &HostId, instance: understudy_core::model::ids::InstanceId) {
        let hypervisor = &self.machine(host).hypervisor;
        if let Some(node) = hypervisor.look(instance, |instance| instance.memory().node.clone()) {
            hypervisor.kill(instance);
            let what = node.map_or_else(|| "an idle instance".to_owned(), |node| format!("{node}'s qemu"));
            self.note(format!("{what} on {host} is killed"));
        }
    }

    pub(crate) fn drain(&mut self, host: &HostId, drain: bool) {
        self.note(format!("{host} {}", if drain { "is to drain" } else { "takes work again" }));
        self.write(Key::Intent(host.clone()), Some(encode(&HostIntent { drain })));
    }

    pub(crate) fn write(&mut self, key: Key, value: Option<Vec<u8>>) {
        let known = ready(self.store.get(&key.to_string())).expect("operators are never cut off");
        let txn = Txn::new().when(unchanged(&key, known.map_or(0, |entry| entry.modified.0)));
        let written = self.commit(&match value {
            Some(value) => txn.put(key.to_string(), value),
            None => txn.delete(key.to_string()),
        });
        debug_assert!(written, "an operator reads before it writes");
    }

    fn terminals(&self) -> Vec<TerminalId> {
        let mut terminals: Vec<TerminalId> = self.nodes().map(|(node, _)| node.terminal().clone()).collect();
        terminals.dedup();
        terminals
    }

    /// With one host draining, members of all nodes with two backups each must fit.
    fn terminals_max(&self) -> usize {
        if self.machines.len() < 4 { 2 } else { 3 }
    }

    fn add_some_terminal(&mut self) {
        let names = ["alice", "bob", "carol"];
        let taken = self.terminals();
        let free = names.iter().find(|name| taken.iter().all(|terminal| terminal.as_str() != **name));
        if let Some(name) = free.filter(|_| taken.len() < self.terminals_max()) {
            let executions = u32::try_from(self.rng.between(1, 2)).unwrap_or(1);
            self.ask_for_terminal(name, executions);
        }
    }

    fn nodes_of(&mut self, name: &str, executions: u32) -> BTreeMap<NodeId, NodeRecord> {
        let Ok(terminal) = name.parse::<TerminalId>() else { return BTreeMap::new() };
        let executions = (1..=executions).map(|number| NodeId::execution(&terminal, number));
        let nodes: Vec<NodeId> = std::iter::once(NodeId::display(&terminal)).chain(executions).collect();
        let mut records = BTreeMap::new();
        for node in nodes {
            let mut spec = spec(node.role());
            if self.swarm.jitter && self.rng.chance(250) {
                spec.protected = false;
            }
            let serial = self.next_life();
            records.insert(node, NodeRecord::new(spec, format!("token-{serial}")));
        }
        records
    }

    /// A terminal that is there before anything else is.
    pub(crate) fn add_terminal(&mut self, name: &str, executions: u32) {
        let records = self.nodes_of(name, executions);
        self.create(name, records);
    }

    fn create(&mut self, name: &str, records: BTreeMap<NodeId, NodeRecord>) {
        self.note(format!("terminal {name} is created"));
        for (node, record) in records {
            self.write(Key::Node(node), Some(encode(&record)));
        }
    }

    /// A terminal that is created only if it fits.
    pub(crate) fn ask_for_terminal(&mut self, name: &str, executions: u32) {
        let records = self.nodes_of(name, executions);
        let clock = Boottime(self.now * 1_000_000);
        let view = self.listed().view().clone();
        let now = Now { boottime: clock, wall: UnixMillis(1_700_000_000_000 + self.now) };
        let mut leader = Leader::new(self.bounds);
        leader.handle(Input::View(view), now);
        match Trial::new(&leader, &records, now).step(Vec::new(), now) {
            Admission::Admitted(_) => self.create(name, records),
            Admission::Refused { missing, .. } => {
                self.note(format!("terminal {name} is refused: {}", missing.join("; ")));
            }
            Admission::Asks(_) => self.fail("nobody is asked, and there are questions".to_owned()),
        }
    }

    fn delete_some_terminal(&mut self) {
        let terminals = self.terminals();
        let Some(terminal) = self.rng.pick(&terminals).cloned() else { return };
        self.note(format!("terminal {terminal} is deleted"));
        let nodes: Vec<NodeId> =
            self.nodes().map(|(node, _)| node.clone()).filter(|node| node.terminal() == &terminal).collect();
        for node in nodes {
            self.write(Key::Node(node.clone()), None);
            self.truth.forget(&node);
        }
    }

    fn change_some_label(&mut self) {
        let nodes: Vec<NodeId> = self.nodes().map(|(node, _)| node.clone()).collect();
        let Some(node) = self.rng.pick(&nodes).cloned() else { return };
        if self.record(&node).is_some() {
            let backups = self.rng.below(3);
            self.wants_backups(node, backups);
        }
    }

    pub(crate) fn wants_backups(&mut self, node: NodeId, backups: u64) {
        let Some(mut record) = self.record(&node).cloned() else { return };
        record.spec.labels.insert("backups".to_owned(), backups.to_string());
        self.note(format!("{node} is to have {backups} backups"));
        self.write(Key::Node(node), Some(encode(&record)));
    }

    /// Everything works again, and the operator leaves at most one host draining.
    pub(crate) fn heal(&mut self) {
        self.note("everything is healed");
        let now = self.now;
        self.swarm = Swarm { jitter: true, ..Swarm::default() };
        self.changing_sets = false;
        self.recover();
        self.mend_parts();
        self.store_down_until = 0;
        self.partitions.values_mut().for_each(|until| *until = now);
        let mut may_drain = self.machines.len() > 2;
        for host in self.hosts() {
            let draining = self.truth.store().intent(&host).drain;
            if draining && !std::mem::take(&mut may_drain) {
                self.drain(&host, false);
            }
            let machine = self.machine_mut(&host);
            machine.off_until = machine.off_until.map(|until| until.min(now + 1_000));
            machine.frozen_until = machine.frozen_until.map(|until| until.min(now + 1_000));
            machine.agent_back = machine.agent_back.min(now + 1_000);
            machine.cut_until = 0;
            machine.lag = 0;
            machine.guard_deaf_until = 0;
        }
    }
}

fn spec(role: Role) -> NodeSpec {
    NodeSpec {
        memory: MiB(512),
        vcpus: Vcpus(1),
        protected: role == Role::Execution,
        environment: role.as_str().to_owned(),
        applications: Vec::new(),
        labels: BTreeMap::new(),
        environment_labels: BTreeMap::new(),
        screen: Screen { width: 1280, height: 720 },
    }
}
