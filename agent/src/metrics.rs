//! Owns the metrics of the agent: what is counted, under which names.
//!
//! Promises: a scrape reads memory only; labels are enums or ids of ours, never error text. Must not do: measure
//! anything itself.

mod policies;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use understudy_core::leader::Report;
use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::records::{CheckpointId, HostFacts, Incident, NodeRecord, Phase, StateKept};
use understudy_core::model::units::UnixMillis;
use understudy_core::model::view::View;

pub use policies::PolicyMetrics;

/// Phases of a failover in seconds: milliseconds for a promotion, seconds for a deployment.
const PHASE_BUCKETS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// All metrics of one agent.
pub struct Metrics {
    registry: Registry,
    failovers: IntCounterVec,
    phases: HistogramVec,
    deaths: IntCounter,
    nodes_without_primary: IntGauge,
    nodes_waiting_for_state: IntGauge,
    backup_deficit: IntGauge,
    copy_faults: IntGauge,
    checkpoints_damaged: IntGauge,
    ready_images_left_out: IntGauge,
    instances: IntGaugeVec,
    emulated: IntGauge,
    checkpoint_tier: IntGaugeVec,
    snapshots_failed: IntCounter,
    checkpoint_age: GaugeVec,
    /// The newest ones of the primaries here, and when they were taken: their ages are worked out when somebody asks.
    newest_checkpoints: Mutex<BTreeMap<NodeId, (CheckpointId, UnixMillis)>>,
    checkpoint_pause: HistogramVec,
    checkpoint_bytes: IntGaugeVec,
    checkpoints: IntCounterVec,
    lease_remaining: Gauge,
    leader: IntGauge,
    /// Those of the sites' policies.
    pub policies: PolicyMetrics,
    invariants: IntCounterVec,
    gateway_sockets: IntGauge,
    gateway_connections: IntCounter,
    /// What that counter holds, for readers that come at once.
    gateway_connections_counted: AtomicU64,
}

fn vec(names: &[&'static str], name: &str, help: &str) -> (Opts, Vec<&'static str>) {
    (Opts::new(name, help), names.to_vec())
}

impl Metrics {
    /// Registers all metrics under the prefix `understudy_`.
    ///
    /// # Errors
    /// When two have one name: a defect.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new_custom(Some("understudy".to_owned()), None)?;
        let counters = |labels: &[&'static str], name: &str, help: &str| {
            let (opts, labels) = vec(labels, name, help);
            let counter = IntCounterVec::new(opts, &labels)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let gauges = |labels: &[&'static str], name: &str, help: &str| {
            let (opts, labels) = vec(labels, name, help);
            let gauge = IntGaugeVec::new(opts, &labels)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let histogram = |labels: &[&str], name: &str, help: &str, buckets: &[f64]| {
            let histogram =
                HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?;
            registry.register(Box::new(histogram.clone()))?;
            prometheus::Result::Ok(histogram)
        };
        let lease_remaining = Gauge::new(
            "lease_remaining_seconds",
            "How long primaries may still run on this host without another renewal",
        )?;
        registry.register(Box::new(lease_remaining.clone()))?;
        let checkpoint_age = GaugeVec::new(
            Opts::new(
                "checkpoint_age_seconds",
                "Age of the newest complete checkpoint of a primary on this host: what a failure now would lose",
            ),
            &["node"],
        )?;
        registry.register(Box::new(checkpoint_age.clone()))?;
        let deaths = IntCounter::new("instance_deaths_total", "Deaths of qemu processes seen on this host")?;
        registry.register(Box::new(deaths.clone()))?;
        let snapshots_failed = IntCounter::new(
            "checkpoint_snapshots_failed_total",
            "Snapshots that failed: the checkpoint was a save, which holds its guest up, or there was none",
        )?;
        registry.register(Box::new(snapshots_failed.clone()))?;
        let gateway_connections =
            IntCounter::new("gateway_connections_total", "Connections of terminals since the agent started")?;
        registry.register(Box::new(gateway_connections.clone()))?;
        Ok(Self {
            failovers: counters(
                &["role", "outcome"],
                "failovers_total",
                "Failovers decided by this leader, by what was kept of the state",
            )?,
            phases: histogram(
                &["role", "phase"],
                "failover_phase_seconds",
                "Phases of a failover: found to decided, decided to ready, ready to windows back",
                &PHASE_BUCKETS,
            )?,
            deaths,
            nodes_without_primary: gauge("nodes_without_primary", "Nodes that lack a primary (leader only)")?,
            nodes_waiting_for_state: gauge(
                "nodes_waiting_for_state",
                "Nodes that lack a primary because a host with their state is waited for (leader only)",
            )?,
            backup_deficit: gauge(
                "backup_deficit",
                "Backups that all nodes together are short of (leader only)",
            )?,
            copy_faults: gauge(
                "checkpoint_copy_faults",
                "Backups' hosts that take no copies of checkpoints from this host, once for each node",
            )?,
            checkpoints_damaged: gauge(
                "checkpoints_damaged",
                "Nodes of whose checkpoints on this host one was found damaged, until a whole one has replaced it",
            )?,
            ready_images_left_out: gauge(
                "ready_images_left_out",
                "Nodes whose image is made only when it is restored: host.ready_images_mib is full",
            )?,
            instances: gauges(
                &["phase"],
                "instances",
                "Instances of this host by phase; phase idle is the pool",
            )?,
            emulated: gauge(
                "emulated",
                "1 where instances are emulated because KVM does not work on this host, though emulation was not asked for",
            )?,
            checkpoint_tier: gauges(
                &["tier"],
                "checkpoint_tier",
                "1 at the means by which this host takes checkpoints: background, or saved, which holds guests up",
            )?,
            snapshots_failed,
            checkpoint_age,
            newest_checkpoints: Mutex::default(),
            checkpoint_pause: histogram(
                &["node"],
                "checkpoint_pause_seconds",
                "How long a guest stood still for a checkpoint",
                &PHASE_BUCKETS,
            )?,
            checkpoint_bytes: gauges(
                &["node"],
                "checkpoint_bytes",
                "Bytes that the newest checkpoint sent to a backup's host: what changed since the one before",
            )?,
            checkpoints: counters(&["node"], "checkpoints_total", "Complete checkpoints")?,
            lease_remaining,
            leader: gauge("leader", "1 where this agent leads")?,
            policies: PolicyMetrics::register(&registry)?,
            invariants: counters(
                &["invariant"],
                "invariant_violations_total",
                "Assignments that were not written because they would break an invariant: report each",
            )?,
            gateway_sockets: gauge("gateway_sockets", "Terminals connected through this gateway")?,
            gateway_connections,
            gateway_connections_counted: AtomicU64::new(0),
            registry,
        })
    }

    /// The text that Prometheus reads. Ages are computed here, because they grow while nothing happens.
    #[must_use]
    pub fn text(&self, now: UnixMillis) -> String {
        let newest = self.newest_checkpoints.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.checkpoint_age.reset();
        for (node, (_, taken)) in &newest {
            let age = now.since(*taken).as_secs_f64();
            self.checkpoint_age.with_label_values(&[&node.to_string()]).set(age);
        }
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    /// Until the agent is started again.
    pub(crate) fn emulates(&self) {
        self.emulated.set(1);
    }

    /// Until the agent is started again.
    pub(crate) fn checkpoint_tier(&self, background: bool) {
        for (tier, used) in [("background", background), ("saved", !background)] {
            self.checkpoint_tier.with_label_values(&[tier]).set(i64::from(used));
        }
    }

    pub(crate) fn snapshot_failed(&self) {
        self.snapshots_failed.inc();
    }

    /// What is kept here for others.
    pub(crate) fn kept(&self, damaged: usize, left_out: usize) {
        self.checkpoints_damaged.set(i64::try_from(damaged).unwrap_or(i64::MAX));
        self.ready_images_left_out.set(i64::try_from(left_out).unwrap_or(i64::MAX));
    }

    pub(crate) fn death_seen(&self) {
        self.deaths.inc();
    }

    pub(crate) fn checkpoint_done(
        &self,
        node: &NodeId,
        newest: (CheckpointId, UnixMillis),
        pause_ms: u64,
        bytes: u64,
    ) {
        self.newest_checkpoints.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone(), newest);
        let node = node.to_string();
        self.checkpoints.with_label_values(&[&node]).inc();
        self.checkpoint_pause
            .with_label_values(&[&node])
            .observe(Duration::from_millis(pause_ms).as_secs_f64());
        self.checkpoint_bytes.with_label_values(&[&node]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(crate) fn invariant_broken(&self, invariant: &str) {
        self.invariants.with_label_values(&[invariant]).inc();
    }

    /// Counts what an assignment changed in the node's last failover.
    pub(crate) fn assigned(&self, node: &NodeId, new: &NodeRecord, old: Option<&NodeRecord>) {
        let role = node.role().as_str();
        let Some(incident) = &new.incident else { return };
        let before =
            old.and_then(|old| old.incident.as_ref()).filter(|before| before.epoch == incident.epoch);
        if before.is_none() {
            let outcome = match incident.state {
                StateKept::NotNeeded => "promoted",
                StateKept::Checkpoint { .. } => "restored",
                StateKept::Lost => "state-lost",
            };
            self.failovers.with_label_values(&[role, outcome]).inc();
        }
        for (phase, from, to) in phases(incident) {
            let known = before.is_some_and(|before| phases(before).iter().any(|(name, ..)| *name == phase));
            if !known {
                self.phases.with_label_values(&[role, phase]).observe(to.since(from).as_secs_f64());
            }
        }
    }

    pub(crate) fn cluster_seen(
        &self,
        (view, me): (&View, &HostId),
        report: &Report,
        leading: bool,
        lease_remaining: Option<Duration>,
        facts: &HostFacts,
    ) {
        self.leader.set(i64::from(leading));
        self.lease_remaining.set(lease_remaining.unwrap_or_default().as_secs_f64());
        self.nodes_without_primary.set(count(report.lacks.values().filter(|lack| lack.primary)));
        self.nodes_waiting_for_state.set(count(report.lacks.values().filter(|lack| lack.state)));
        self.backup_deficit.set(report.lacks.values().map(|lack| i64::from(lack.backups)).sum());
        self.copy_faults.set(count(facts.copy_faults.values().flatten()));
        let alive = [Phase::Booting, Phase::Idle, Phase::Deploying, Phase::Restoring, Phase::Ready];
        for phase in alive {
            let number = count(facts.instances.values().filter(|fact| fact.phase == phase));
            self.instances.with_label_values(&[phase.as_str()]).set(number);
        }
        // That of another host, or of an earlier life, says nothing of what a failure would lose.
        let is_of_a_primary_here = |node: &NodeId, id: CheckpointId| {
            let record = view.nodes.get(node).map(|known| &known.value);
            let primary = record.and_then(|record| Some((record.primary.as_ref()?, record.incarnation)));
            primary.is_some_and(|(primary, since)| &primary.host == me && id.epoch >= since)
        };
        let mut newest = self.newest_checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        newest.retain(|node, (id, _)| is_of_a_primary_here(node, *id));
    }

    pub(crate) fn gateway_seen(&self, counters: &crate::gateway::Counters) {
        self.gateway_sockets.set(counters.open());
        let all = counters.connections();
        let counted = self.gateway_connections_counted.fetch_max(all, Ordering::Relaxed);
        self.gateway_connections.inc_by(all.saturating_sub(counted));
    }
}

fn count(items: impl Iterator) -> i64 {
    i64::try_from(items.count()).unwrap_or(i64::MAX)
}

/// The phases of a failover that have ended.
fn phases(incident: &Incident) -> Vec<(&'static str, UnixMillis, UnixMillis)> {
    let mut phases = vec![("decide", incident.found, incident.decided)];
    if let Some(ready) = incident.ready {
        phases.push(("ready", incident.decided, ready));
        if let Some(windows) = incident.windows {
            phases.push(("windows", ready, windows));
        }
    }
    phases
}
