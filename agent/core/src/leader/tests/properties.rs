//! What holds of every plan, whatever happened and whatever a policy says. Each plan on the way is checked against all
//! invariants by the fixture.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::fixture::{BuiltIn, Cluster, Policy, dead, deploy_failed, fact, host, moved, node};
use crate::leader::plan;
use crate::model::ids::{Epoch, HostId, NodeId};
use crate::model::records::{Phase, Service};
use crate::model::units::{MiB, UnixMillis};
use crate::model::view::{Answer, View};
use crate::policy::{
    BackupCountAnswer, BackupCountQuestion, BuiltIn as Rule, HostState, Pick, PlacementAnswer,
    PlacementQuestion, Unusable,
};

pub(super) const NODES: [&str; 5] =
    ["alice/display", "alice/exec-1", "alice/exec-2", "bob/display", "bob/exec-1"];

#[derive(Debug, Clone)]
pub(super) enum Event {
    Kill(usize),
    FailDeployment(usize),
    FailMigration(usize),
    Move(usize),
    Arrive(usize),
    LoseArrival(usize),
    LoseCheckpoint(usize),
    MissCopy(usize, usize),
    RefuseCopies(usize, usize, bool),
    Behind(usize, usize),
    Silent(usize, bool),
    Lose(usize),
    Reopen(usize),
    Silence(usize),
    Forget(usize),
    Drain(usize, bool),
    Quarantine(usize, bool),
    Shrink(usize, u64),
    Idle(usize),
    Unable(usize, bool),
    GiveUp(usize),
    SetClock(i64),
    Pass(u64),
    Obey,
    Step(u64),
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    let (node, host) = (0..NODES.len(), 0..5_usize);
    prop_oneof![
        2 => node.clone().prop_map(Event::Kill),
        1 => node.clone().prop_map(Event::FailDeployment),
        1 => node.clone().prop_map(Event::FailMigration),
        2 => node.clone().prop_map(Event::Move),
        2 => node.clone().prop_map(Event::Arrive),
        1 => node.clone().prop_map(Event::LoseArrival),
        1 => node.clone().prop_map(Event::LoseCheckpoint),
        1 => (node.clone(), host.clone()).prop_map(|(node, host)| Event::MissCopy(node, host)),
        1 => (node.clone(), host.clone(), any::<bool>())
            .prop_map(|(node, host, refuses)| Event::RefuseCopies(node, host, refuses)),
        1 => (node.clone(), host.clone()).prop_map(|(node, host)| Event::Behind(node, host)),
        2 => (host.clone(), any::<bool>()).prop_map(|(host, silent)| Event::Silent(host, silent)),
        1 => node.clone().prop_map(Event::GiveUp),
        1 => (host.clone(), any::<bool>()).prop_map(|(host, unable)| Event::Unable(host, unable)),
        1 => (-100..400_i64).prop_map(Event::SetClock),
        1 => (node, any::<bool>()).prop_map(|(node, quarantined)| Event::Quarantine(node, quarantined)),
        2 => host.clone().prop_map(Event::Lose),
        2 => host.clone().prop_map(Event::Reopen),
        1 => host.clone().prop_map(Event::Silence),
        1 => host.clone().prop_map(Event::Forget),
        2 => (host.clone(), any::<bool>()).prop_map(|(host, drain)| Event::Drain(host, drain)),
        1 => (host.clone(), 0..9_u64).prop_map(|(host, members)| Event::Shrink(host, members)),
        1 => host.prop_map(Event::Idle),
        1 => (0..60_u64).prop_map(Event::Pass),
        4 => Just(Event::Obey),
        6 => any::<u64>().prop_map(Event::Step),
    ]
}

/// Answers anything at all: nothing, nonsense, repetitions, hosts that may not be taken.
struct Fuzzed(u64);

impl Fuzzed {
    fn draw(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    /// Mostly a host, by preference one that takes no work; else just behind the list, or far from it.
    fn pick(&mut self, question: &PlacementQuestion, before: &[Pick]) -> u32 {
        let hosts = u64::try_from(question.hosts.len()).unwrap();
        let busy = |state: HostState| state != HostState::Ready;
        let barred =
            question.hosts.iter().position(|row| busy(row.state) || row.free_memory < question.memory);
        match (self.draw(8), barred, before.last()) {
            (0, _, _) => u32::MAX,
            (1, _, _) => u32::try_from(hosts).unwrap(),
            (2, _, Some(last)) => last.index,
            (3, Some(at), _) => u32::try_from(at).unwrap(),
            (_, _, _) => u32::try_from(self.draw(hosts)).unwrap(),
        }
    }
}

impl Policy for Fuzzed {
    fn place(&mut self, question: &PlacementQuestion) -> Answer<PlacementAnswer> {
        if self.draw(5) == 0 {
            return Answer::Unavailable;
        }
        let mut picks = Vec::new();
        for _ in 0..self.draw(7) {
            let index = self.pick(question, &picks);
            picks.push(Pick { index, reason: None });
        }
        Answer::Given(PlacementAnswer { picks })
    }
    fn count(&mut self, _: &BackupCountQuestion) -> Answer<BackupCountAnswer> {
        let (primaries, backups) = match self.draw(8) {
            0 => return Answer::Unavailable,
            1 => (0, u32::MAX),
            2 => (2, 1),
            3 => (1, 17),
            4 => (1, 16),
            _ => (1, u32::try_from(self.draw(4)).unwrap()),
        };
        Answer::Given(BackupCountAnswer { primaries, backups, reason: None })
    }
}

pub(super) fn apply(cluster: &mut Cluster, event: &Event) {
    let hosts: Vec<String> = cluster.view.hosts.keys().map(ToString::to_string).collect();
    let named = |index: &usize| hosts[index % hosts.len()].clone();
    match event {
        Event::Kill(at) => edit_primary(cluster, *at, |fact| fact.phase = dead("killed")),
        Event::FailDeployment(at) => {
            edit_primary(cluster, *at, |fact| fact.phase = deploy_failed("disk"));
        }
        Event::FailMigration(at) => {
            edit_primary(cluster, *at, |fact| {
                fact.migration_failed = Some((fact.epoch.next(), "timeout".to_owned()));
            });
        }
        Event::Move(at) => edit_primary(cluster, *at, |fact| fact.phase = moved(&host("host1"))),
        Event::Arrive(at) => report_arrival(cluster, *at, Phase::Ready),
        Event::LoseArrival(at) => report_arrival(cluster, *at, dead("is not on this host")),
        Event::LoseCheckpoint(at) => {
            for disk in cluster.disks.values_mut() {
                disk.remove(&node(NODES[*at]));
            }
        }
        Event::MissCopy(at, by) => cluster.miss_copy(NODES[*at], &named(by)),
        Event::Behind(at, by) => cluster.fall_behind(NODES[*at], &named(by)),
        Event::Silent(at, true) => drop(cluster.silent.insert(host(&named(at)))),
        Event::Silent(at, false) => drop(cluster.silent.remove(&host(&named(at)))),
        Event::RefuseCopies(at, by, refuses) => cluster.refuse_copies(NODES[*at], &named(by), *refuses),
        Event::Lose(at) => {
            if cluster.seen(&named(at)).is_open() {
                cluster.lose(&named(at));
            }
        }
        Event::Reopen(at) => cluster.reopen(&named(at)),
        Event::Silence(at) => cluster.silence(&named(at), Duration::from_secs(60)),
        Event::Forget(at) => cluster.facts(&named(at)).lease = 0,
        Event::Drain(at, drain) => cluster.seen(&named(at)).intent.drain = *drain,
        Event::Quarantine(at, true) => drop(cluster.view.quarantined.insert(node(NODES[*at]))),
        Event::Quarantine(at, false) => drop(cluster.view.quarantined.remove(&node(NODES[*at]))),
        Event::Shrink(at, members) => cluster.facts(&named(at)).capacity.memory = MiB(512 * members),
        Event::Idle(at) => cluster.idle(&named(at), 1),
        Event::Unable(at, true) => drop(cluster.facts(&named(at)).unable.insert(Service::Guard)),
        Event::Unable(at, false) => cluster.facts(&named(at)).unable.clear(),
        Event::GiveUp(at) => give_up(cluster, NODES[*at]),
        Event::SetClock(seconds) => {
            cluster.now.wall = UnixMillis(cluster.now.wall.0.saturating_add_signed(seconds * 1_000));
        }
        Event::Pass(seconds) => cluster.pass(Duration::from_secs(*seconds)),
        Event::Obey => cluster.obey(),
        Event::Step(seed) => checked_step(cluster, &mut Fuzzed(*seed)),
    }
}

fn edit_primary(
    cluster: &mut Cluster,
    at: usize,
    edit: impl FnOnce(&mut crate::model::records::InstanceFact),
) {
    let Some(primary) = cluster.record(NODES[at]).primary.clone() else { return };
    let facts = cluster.facts(primary.host.as_str());
    if let Some(fact) = facts.instances.get_mut(&primary.instance.unwrap()) {
        edit(fact);
    }
}

/// An operator wants a node to wait for its state no longer.
fn give_up(cluster: &mut Cluster, name: &str) {
    if cluster.record(name).state_wait.is_some_and(|wait| !wait.given_up) {
        cluster.edit(name, |record| {
            if let Some(wait) = &mut record.state_wait {
                wait.given_up = true;
            }
        });
    }
}

fn report_arrival(cluster: &mut Cluster, at: usize, phase: Phase) {
    let record = cluster.record(NODES[at]).clone();
    if let (Some(migration), Some(primary)) = (record.migration, record.primary) {
        let arrived = fact(phase, Some(node(NODES[at])), migration.epoch);
        cluster.facts(migration.to.as_str()).instances.insert(primary.instance.unwrap(), arrived);
    }
}

type Epochs = BTreeMap<NodeId, (Epoch, Epoch)>;

fn epochs(view: &View) -> Epochs {
    view.nodes
        .iter()
        .map(|(node, known)| (node.clone(), (known.value.epoch, known.value.incarnation)))
        .collect()
}

/// Applies one plan and checks of the whole what no single assignment shows.
fn checked_step(cluster: &mut Cluster, policy: &mut dyn Policy) {
    let before = cluster.view.clone();
    let plan = cluster.plan_with(policy);
    let quarantined = plan.assignments.iter().find(|one| before.quarantined.contains(&one.node));
    assert_eq!(quarantined, None, "a node of which a record was not read");
    cluster.apply(&plan);
    for (node, (epoch, incarnation)) in epochs(&cluster.view) {
        let (old_epoch, old_incarnation) = epochs(&before)[&node];
        assert!(epoch >= old_epoch && incarnation >= old_incarnation, "{node}: epochs never fall");
    }
    new_members_are_where_they_may_be(&before, cluster);
    for (name, seen) in &cluster.view.hosts {
        let Some(facts) = seen.current_facts() else { continue };
        let (was, is) = (promised(&before, name), promised(&cluster.view, name));
        assert!(is <= was.max(facts.capacity.memory), "{name} holds {is} of {}", facts.capacity.memory);
    }
}

/// SAFE-5 in its own words, beside the predicate that the fixture checks every assignment with. A backup that is promoted
/// and a place that is restored into were there before.
fn new_members_are_where_they_may_be(before: &View, cluster: &Cluster) {
    for (node, known) in &cluster.view.nodes {
        let (was, is) = (&before.nodes[node].value, &known.value);
        let mut hosts: Vec<&HostId> = is.members().map(|member| &member.host).collect();
        hosts.extend(is.migration.as_ref().map(|migration| &migration.to));
        let all = hosts.len();
        hosts.sort();
        hosts.dedup();
        assert_eq!(hosts.len(), all, "{node}: each member has a host of its own");
        let kept = |host: &HostId| was.touches(host) || was.keepers.contains(host);
        for host in hosts.into_iter().filter(|host| !kept(host)) {
            let seen = &before.hosts[host];
            assert!(seen.accepts_work(), "{node}: {host} takes no work");
        }
        assert!(is.backups.len() <= 16, "{node}: {} backups", is.backups.len());
    }
}

/// What members may take on a host once what they gave up has ended.
fn promised(view: &View, host: &HostId) -> MiB {
    let nodes = view.nodes.values().filter(|node| node.value.touches(host));
    nodes.map(|node| node.value.spec.memory).sum()
}

/// Every host back, nothing draining, every record read, room for all: then every node must become whole.
fn heal(cluster: &mut Cluster) {
    cluster.silent.clear();
    cluster.view.quarantined.clear();
    let now = cluster.now.boottime;
    for name in cluster.view.hosts.keys().cloned().collect::<Vec<_>>() {
        let open = cluster.view.hosts[&name].current_facts().is_some();
        if !open {
            cluster.reopen(name.as_str());
        }
        let seen = cluster.seen(name.as_str());
        seen.silent_since = Some(now);
        seen.intent.drain = false;
        let facts = Arc::make_mut(seen.facts.as_mut().unwrap());
        facts.capacity.memory = MiB(16 * 1024);
        facts.copy_faults.clear();
        facts.unable.clear();
    }
    cluster.pass(Duration::from_secs(60));
    for name in NODES {
        // What is moving arrives or has been given up by the source.
        let at = NODES.iter().position(|other| *other == name).unwrap();
        report_arrival(cluster, at, Phase::Ready);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_and_whatever_a_policy_answers_no_invariant_breaks_and_the_plan_comes_to_rest(
        hosts in 1..6_usize,
        events in prop::collection::vec(event(), 0..40),
    ) {
        let mut cluster = Cluster::of(hosts);
        cluster.add(&NODES);
        for event in &events {
            apply(&mut cluster, event);
        }
        let mut rounds = 0;
        while !cluster.plan().is_empty() {
            checked_step(&mut cluster, &mut BuiltIn);
            rounds += 1;
            prop_assert!(rounds <= 8, "with the same facts the plan comes to rest: {:#?}", cluster.plan());
        }
        heal(&mut cluster);
        cluster.settle();
        // A death that is found only now, of a node whose record could not be read, keeps its host from it for a while.
        cluster.pass(cluster.bounds.cooldown);
        cluster.settle();
        for name in NODES {
            let record = cluster.record(name);
            prop_assert!(record.primary.as_ref().is_some_and(|primary| cluster.view.is_ready(record, primary)));
            prop_assert_eq!(record.backups.len(), usize::from(hosts > 1), "{}", name);
            prop_assert_eq!(&record.migration, &None);
        }
    }

    #[test]
    fn the_order_in_which_records_came_makes_no_difference(
        hosts in 1..6_usize,
        events in prop::collection::vec(event(), 0..20),
    ) {
        let mut cluster = Cluster::of(hosts);
        cluster.add(&NODES);
        for event in &events {
            apply(&mut cluster, event);
        }
        let mut reversed = View::default();
        reversed.hosts.extend(cluster.view.hosts.clone().into_iter().rev());
        for (node, known) in cluster.view.nodes.iter().rev() {
            reversed.nodes.insert(node.clone(), known.clone());
        }
        reversed.quarantined.clone_from(&cluster.view.quarantined);
        prop_assert_eq!(
            plan(&cluster.view, &cluster.bounds, cluster.now, |ask| cluster.says(ask)),
            plan(&reversed, &cluster.bounds, cluster.now, |ask| cluster.says(ask))
        );
    }

    #[test]
    fn nothing_new_is_put_on_a_host_that_takes_no_work(
        drained in 0..4_usize,
        lost in 0..4_usize,
        seed in any::<u64>(),
    ) {
        let mut cluster = Cluster::of(4);
        let (drained, lost) = (format!("host{}", drained + 1), format!("host{}", lost + 1));
        cluster.lose(&lost);
        cluster.seen(&drained).intent.drain = true;
        cluster.add(&NODES);
        checked_step(&mut cluster, &mut Fuzzed(seed));
        for name in NODES {
            for member in cluster.record(name).members() {
                prop_assert!(member.host != host(&drained) && member.host != host(&lost), "{}", name);
            }
        }
    }
}

/// The property above is worth what its answers are: every kind of refusal must come up, and be survived.
#[test]
fn the_fuzzed_answers_reach_every_kind_of_refusal() {
    let (mut picks, mut rules) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    let mut details = String::new();
    for seed in 0..400 {
        let mut cluster = Cluster::of(5);
        cluster.seen("host2").intent.drain = true;
        cluster.facts("host3").capacity.memory = MiB(600);
        cluster.lose("host4");
        cluster.add(&NODES);
        checked_step(&mut cluster, &mut Fuzzed(seed));
        cluster.obey();
        checked_step(&mut cluster, &mut Fuzzed(seed + 1_000));
        let judged = &cluster.report.judged;
        for (_, verdict) in &judged.placements {
            picks.extend(verdict.refused.iter().map(|pick| pick.why));
            rules.extend(verdict.built_in);
            details.extend(verdict.refused.iter().map(|pick| format!("{}; ", pick.detail)));
        }
        rules.extend(judged.backup_counts.iter().filter_map(|(_, verdict)| verdict.built_in));
    }
    assert_eq!(picks.into_iter().collect::<Vec<_>>(), Unusable::ALL);
    let all = [Rule::NoAnswer, Rule::NothingPicked, Rule::NothingUsable, Rule::OutOfBounds];
    assert_eq!(rules.into_iter().collect::<Vec<_>>(), all);
    for why in ["is draining", "free of", "is lost", "has a member of this node"] {
        assert!(details.contains(why), "no answer picked a host that {why}");
    }
}
