//! The metrics of failovers, backups, pool and checkpoints as Prometheus reads them, from states made for it.

pub(super) mod alerts;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use understudy_core::death::{CopyFault, Death};
use understudy_core::leader::Lack;
use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_core::model::records::{
    Capacity, CheckpointId, InstanceFact, Labels, Member, NodeSpec, Origin, Screen,
};
use understudy_core::model::units::{MiB, Vcpus};
use understudy_core::model::view::Versioned;
use uuid::Uuid;

use super::*;

const CHECKPOINT: CheckpointId = CheckpointId { epoch: Epoch(1), sequence: 7 };

/// The lines of one metric without its name, in the order in which they are printed.
fn lines(metrics: &Metrics, metric: &str) -> Vec<String> {
    let text = metrics.text(UnixMillis(60_000));
    text.lines().filter_map(|line| line.strip_prefix(metric)).map(str::to_owned).collect()
}

/// A node after a failover that took these milliseconds to be decided, ready and back on the screen, as far as it is.
fn failed_over(epoch: u64, state: StateKept, (ready, windows): (Option<u64>, Option<u64>)) -> NodeRecord {
    let spec = NodeSpec {
        memory: MiB(192),
        vcpus: Vcpus(1),
        protected: false,
        environment: "desktop".to_owned(),
        applications: Vec::new(),
        labels: Labels::new(),
        environment_labels: Labels::new(),
        screen: Screen { width: 1280, height: 720 },
    };
    let (found, decided) = (UnixMillis(10_000), UnixMillis(10_250));
    let later = |ms: u64| UnixMillis(decided.0 + ms);
    let incident = Incident {
        epoch: Epoch(epoch),
        last: None,
        cause: Death::Exited { detail: "killed".to_owned() },
        action: "promoted".to_owned(),
        state,
        found,
        decided,
        ready: ready.map(later),
        windows: windows.map(later),
    };
    NodeRecord { epoch: Epoch(epoch), incident: Some(incident), ..NodeRecord::new(spec, String::new()) }
}

fn facts(phases: &[Phase]) -> HostFacts {
    let fact = |phase: &Phase| InstanceFact {
        phase: phase.clone(),
        node: None,
        epoch: Epoch(0),
        address: None,
        memory: MiB(192),
        vcpus: Vcpus(1),
        since: UnixMillis(0),
        windows: None,
        admitted: BTreeMap::new(),
        migration_failed: None,
    };
    let named = |(number, phase)| (InstanceId::from_uuid(Uuid::from_u128(number)), fact(phase));
    HostFacts {
        lease: 1,
        capacity: Capacity { vcpus: Vcpus(4), memory: MiB(4096) },
        instances: (1..).zip(phases).map(named).collect(),
        ..HostFacts::default()
    }
}

#[test]
fn each_failover_is_counted_once_by_role_and_by_what_was_kept() {
    let metrics = Metrics::new().unwrap();
    let [display, execution] = ["alice/display", "alice/exec-1"].map(|name| name.parse::<NodeId>().unwrap());
    let kept = StateKept::Checkpoint { id: CHECKPOINT, age_ms: 900 };
    let promoted = failed_over(2, StateKept::NotNeeded, (None, None));
    metrics.assigned(&display, &promoted, None);
    // The record is written again for other reasons, and by a leader that has seen it before.
    metrics.assigned(&display, &promoted, Some(&promoted));
    let again = failed_over(3, StateKept::NotNeeded, (None, None));
    metrics.assigned(&display, &again, Some(&promoted));
    metrics.assigned(&execution, &failed_over(2, kept, (None, None)), Some(&untouched()));
    metrics.assigned(&execution, &failed_over(4, StateKept::Lost, (None, None)), None);
    // A first placement is none.
    metrics.assigned(&execution, &untouched(), None);
    assert_eq!(
        lines(&metrics, "understudy_failovers_total"),
        [
            "{outcome=\"promoted\",role=\"display\"} 2",
            "{outcome=\"restored\",role=\"execution\"} 1",
            "{outcome=\"state-lost\",role=\"execution\"} 1",
        ]
    );
}

/// A node that nothing has happened to.
fn untouched() -> NodeRecord {
    NodeRecord { incident: None, ..failed_over(1, StateKept::Lost, (None, None)) }
}

#[test]
fn each_phase_is_observed_once_when_it_ends_and_in_seconds() {
    let metrics = Metrics::new().unwrap();
    let node: NodeId = "alice/exec-1".parse().unwrap();
    let stages = [(None, None), (Some(1_500), None), (Some(1_500), Some(1_600)), (Some(1_500), Some(1_600))];
    let stages = stages.map(|stage| failed_over(2, StateKept::Lost, stage));
    let observed = |phase: &str| {
        let labels = format!("{{phase=\"{phase}\",role=\"execution\"}} ");
        let of = |part: &str| {
            let found = lines(&metrics, &format!("understudy_failover_phase_seconds_{part}{labels}"));
            found.first().and_then(|value| value.parse::<f64>().ok())
        };
        Some((of("count")?, of("sum")?))
    };
    let mut before = None;
    let wanted = [
        [Some((1.0, 0.25)), None, None],
        [Some((1.0, 0.25)), Some((1.0, 1.5)), None],
        [Some((1.0, 0.25)), Some((1.0, 1.5)), Some((1.0, 0.1))],
        [Some((1.0, 0.25)), Some((1.0, 1.5)), Some((1.0, 0.1))],
    ];
    for (stage, wanted) in stages.iter().zip(wanted) {
        metrics.assigned(&node, stage, before);
        assert_eq!(["decide", "ready", "windows"].map(observed), wanted);
        before = Some(stage);
    }
    let bucket = |le: &str| {
        let labels = format!("{{phase=\"ready\",role=\"execution\",le=\"{le}\"}} ");
        lines(&metrics, &format!("understudy_failover_phase_seconds_bucket{labels}"))
    };
    assert_eq!((bucket("1"), bucket("2.5")), (vec!["0".to_owned()], vec!["1".to_owned()]));
}

fn me() -> HostId {
    "host1".parse().unwrap()
}

/// A cluster with this node alone, in this incarnation, at work on [`me`].
fn at_work(node: &NodeId, incarnation: Epoch) -> View {
    let instance = Some(InstanceId::from_uuid(Uuid::from_u128(9)));
    let primary = Member { host: me(), lease: 1, instance, origin: Origin::Created, place: 0 };
    let record = failed_over(incarnation.0, StateKept::Lost, (None, None));
    let value = NodeRecord { incarnation, primary: Some(primary), ..record };
    let mut view = View::default();
    view.nodes.insert(node.clone(), Versioned { value, revision: 1 });
    view
}

/// What another host loses by a failure, and what a life that is over would have lost, is none of this host's.
#[test]
fn the_age_of_a_checkpoint_is_shown_where_the_primary_is_and_for_its_own_life() {
    let metrics = Metrics::new().unwrap();
    let node: NodeId = "c/exec-1".parse().unwrap();
    let age = |view: &View, host: &str| {
        metrics.checkpoint_done(&node, (CHECKPOINT, UnixMillis(52_500)), 40, 1);
        let nothing = (Report::default(), facts(&[]));
        metrics.cluster_seen((view, &host.parse().unwrap()), &nothing.0, false, None, &nothing.1);
        lines(&metrics, "understudy_checkpoint_age_seconds").len()
    };
    assert_eq!(age(&at_work(&node, Epoch(1)), "host1"), 1);
    assert_eq!(age(&at_work(&node, Epoch(1)), "host2"), 0, "it has moved");
    assert_eq!(age(&at_work(&node, Epoch(2)), "host1"), 0, "it has begun anew");
}

#[test]
fn what_the_cluster_lacks_what_the_pool_has_and_how_old_a_checkpoint_is_follow_the_state() {
    let metrics = Metrics::new().unwrap();
    let nodes = ["a/display", "b/display", "c/exec-1"].map(|name| name.parse::<NodeId>().unwrap());
    let lacks = [(true, false, 2), (true, true, 0), (false, false, 1)];
    let lacks = lacks.map(|(primary, state, backups)| Lack { primary, state, backups });
    let report = Report { lacks: nodes.clone().into_iter().zip(lacks).collect(), ..Report::default() };
    let view = at_work(&nodes[2], Epoch(1));
    let dead = Phase::Dead { death: Death::Exited { detail: "killed".to_owned() }, at: UnixMillis(1) };
    let mut busy = facts(&[Phase::Idle, Phase::Idle, Phase::Ready, Phase::Booting, dead]);
    let fault = [("host2".parse().unwrap(), CopyFault::Stalled)];
    busy.copy_faults.insert(nodes[2].clone(), fault.into());
    metrics.checkpoint_done(&nodes[2], (CHECKPOINT, UnixMillis(52_500)), 40, 1 << 20);
    metrics.cluster_seen((&view, &me()), &report, true, Some(Duration::from_millis(4_500)), &busy);
    metrics.kept(2, 1);
    metrics.checkpoint_tier(true);
    metrics.checkpoint_tier(false);
    metrics.snapshot_failed();
    let shown = |wanted: [(&str, &[&str]); 15]| {
        for (metric, wanted) in wanted {
            assert_eq!(lines(&metrics, &format!("understudy_{metric}")), wanted, "{metric}");
        }
    };
    shown([
        ("nodes_without_primary", &[" 2"]),
        ("nodes_waiting_for_state", &[" 1"]),
        ("backup_deficit", &[" 3"]),
        ("checkpoint_copy_faults", &[" 1"]),
        ("checkpoints_damaged", &[" 2"]),
        ("ready_images_left_out", &[" 1"]),
        ("checkpoint_tier", &["{tier=\"background\"} 0", "{tier=\"saved\"} 1"]),
        ("checkpoint_snapshots_failed_total", &[" 1"]),
        ("leader", &[" 1"]),
        ("lease_remaining_seconds", &[" 4.5"]),
        (
            "instances",
            &[
                "{phase=\"booting\"} 1",
                "{phase=\"deploying\"} 0",
                "{phase=\"idle\"} 2",
                "{phase=\"ready\"} 1",
                "{phase=\"restoring\"} 0",
            ],
        ),
        ("checkpoint_age_seconds", &["{node=\"c/exec-1\"} 7.5"]),
        ("checkpoints_total", &["{node=\"c/exec-1\"} 1"]),
        ("checkpoint_bytes", &["{node=\"c/exec-1\"} 1048576"]),
        ("checkpoint_pause_seconds_sum", &["{node=\"c/exec-1\"} 0.04"]),
    ]);
    // It leads no more, has lost its lease, its pool is gone, and so is the terminal with the checkpoint.
    let gone = View::default();
    metrics.cluster_seen((&gone, &me()), &Report::default(), false, None, &facts(&[Phase::Ready]));
    for (metric, wanted) in [
        ("nodes_without_primary", &[" 0"][..]),
        ("nodes_waiting_for_state", &[" 0"]),
        ("backup_deficit", &[" 0"]),
        ("checkpoint_copy_faults", &[" 0"]),
        ("leader", &[" 0"]),
        ("lease_remaining_seconds", &[" 0"]),
        ("instances{phase=\"idle\"}", &[" 0"]),
        ("checkpoint_age_seconds", &[]),
    ] {
        assert_eq!(lines(&metrics, &format!("understudy_{metric}")), wanted, "{metric}");
    }
}

/// Everything that an agent can print, with at least one series of each metric.
fn everything() -> String {
    let metrics = Metrics::new().unwrap();
    let node: NodeId = "alice/exec-1".parse().unwrap();
    metrics.assigned(&node, &failed_over(2, StateKept::Lost, (Some(1), Some(2))), None);
    let nothing = View::default();
    metrics.cluster_seen((&nothing, &me()), &Report::default(), true, None, &facts(&[Phase::Idle]));
    metrics.checkpoint_done(&node, (CHECKPOINT, UnixMillis(1)), 40, 1);
    metrics.invariant_broken("SAFE-6");
    metrics.death_seen();
    metrics.checkpoint_tier(true);
    metrics.text(UnixMillis(0))
}

#[test]
fn every_metric_has_a_help_and_a_name_that_says_its_unit() {
    let text = everything();
    let mut seen = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
        assert!(name.starts_with("understudy_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}");
        assert!(!["_ms", "_mib", "_milli"].iter().any(|unit| name.ends_with(unit)), "{name}");
        seen += 1;
    }
    assert!(seen >= 15, "only {seen} metrics: {text}");
}

#[test]
#[ignore = "needs promtool"]
fn promtool_finds_no_fault_with_the_metrics() {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(everything().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn connections_of_terminals_are_counted_once_however_often_they_are_read() {
    let (metrics, counters) = (Metrics::new().unwrap(), crate::gateway::Counters::default());
    for (arriving, expected) in [(2, 2), (0, 2), (3, 5)] {
        (0..arriving).for_each(|_| counters.enter());
        metrics.gateway_seen(&counters);
        assert_eq!(lines(&metrics, "understudy_gateway_connections_total "), [expected.to_string()]);
    }
}
