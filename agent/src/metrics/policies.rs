//! Owns the metrics of the sites' policies.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use understudy_core::policy::{BuiltIn, Interface, Unusable};
use understudy_policy::Outcome;

/// From a Rust policy on ten hosts to the longest deadline.
const QUESTION_BUCKETS: [f64; 8] = [0.000_1, 0.000_3, 0.001, 0.01, 0.1, 0.5, 1.0, 10.0];

/// All metrics of policies.
pub struct PolicyMetrics {
    seconds: HistogramVec,
    questions: IntCounterVec,
    failures: IntCounterVec,
    refusals: IntCounterVec,
    refused_picks: IntCounterVec,
    built_in: IntCounterVec,
    shadow_answers: IntCounterVec,
    shadow_differences: IntCounterVec,
    records_dropped: IntCounter,
    generation: IntGauge,
    candidate: IntGauge,
    ready: IntGauge,
    load_faults: IntGauge,
    suspended: IntGaugeVec,
}

impl PolicyMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When two have one name: a defect.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |labels: &[&str], name: &str, help: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let options = HistogramOpts::new("policy_question_seconds", "Time to answer one question")
            .buckets(QUESTION_BUCKETS.to_vec());
        let seconds = HistogramVec::new(options, &["interface"])?;
        registry.register(Box::new(seconds.clone()))?;
        let records_dropped = IntCounter::new(
            "policy_records_dropped_total",
            "Decision records that were not written: the disk is full or slower than the decisions",
        )?;
        registry.register(Box::new(records_dropped.clone()))?;
        let suspended = IntGaugeVec::new(
            Opts::new(
                "policy_suspended",
                "1 for a policy that decides nothing because it failed too often, 0 for the others of the set",
            ),
            &["policy"],
        )?;
        registry.register(Box::new(suspended.clone()))?;
        Ok(Self {
            seconds,
            questions: counters(
                &["policy", "interface", "outcome"],
                "policy_questions_total",
                "Questions that were put to the policy that decides, by what became of them: its answer was used, \
                 was refused by core, or there was none",
            )?,
            failures: counters(
                &["interface", "kind"],
                "policy_failures_total",
                "Questions that a policy did not answer, by kind of fault",
            )?,
            refusals: counters(
                &["interface"],
                "policy_refusals_total",
                "Answers of policies that core refused as a whole",
            )?,
            refused_picks: counters(
                &["why"],
                "policy_refused_picks_total",
                "Picks of policies that core did not use, by the reason",
            )?,
            built_in: counters(
                &["interface", "why"],
                "policy_built_in_total",
                "Questions that a built-in rule decided, by the reason",
            )?,
            shadow_answers: counters(
                &["interface", "policy"],
                "policy_shadow_answers_total",
                "Questions that a shadow policy was asked",
            )?,
            shadow_differences: counters(
                &["interface", "policy"],
                "policy_shadow_differences_total",
                "Questions that a shadow policy would have decided otherwise",
            )?,
            records_dropped,
            generation: gauge("policy_set_generation", "Generation of the set of policies that decides")?,
            candidate: gauge(
                "policy_set_candidate_generation",
                "Generation of the set that is to take over; 0 where there is none",
            )?,
            ready: gauge("policy_set_ready", "1 where this host could lead with the set that decides")?,
            load_faults: gauge(
                "policy_load_faults",
                "What is wrong with this host's policies folder, or with a set that it should load",
            )?,
            suspended,
        })
    }

    pub(crate) fn asked(&self, interface: Interface, took: Duration) {
        self.seconds.with_label_values(&[interface.as_str()]).observe(took.as_secs_f64());
    }

    /// What became of a question that `policy` was asked.
    pub(crate) fn became(&self, policy: &str, interface: Interface, outcome: &Outcome) {
        let word = match outcome {
            Outcome::Used => "used",
            Outcome::Refused(_) => "refused",
            Outcome::Failed(_) => "failed",
        };
        self.questions.with_label_values(&[policy, interface.as_str(), word]).inc();
    }

    pub(crate) fn failed(&self, interface: Interface, kind: &str) {
        self.failures.with_label_values(&[interface.as_str(), kind]).inc();
    }

    pub(crate) fn pick_refused(&self, why: Unusable) {
        self.refused_picks.with_label_values(&[why.as_str()]).inc();
    }

    pub(crate) fn built_in(&self, interface: Interface, why: BuiltIn) {
        self.built_in.with_label_values(&[interface.as_str(), why.as_str()]).inc();
        if why.is_refusal() {
            self.refusals.with_label_values(&[interface.as_str()]).inc();
        }
    }

    pub(crate) fn shadowed(&self, interface: Interface, policy: &str, differs: bool) {
        let labels = [interface.as_str(), policy];
        self.shadow_answers.with_label_values(&labels).inc();
        self.shadow_differences.with_label_values(&labels).inc_by(u64::from(differs));
    }

    pub(crate) fn record_dropped(&self) {
        self.records_dropped.inc();
    }

    pub(crate) fn standing(&self, generation: u64, candidate: u64, ready: bool) {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.generation.set(number(generation));
        self.candidate.set(number(candidate));
        self.ready.set(i64::from(ready));
    }

    /// The policies of the set, and whether each is suspended. One that is in no set any more has no series: an alert
    /// about it ends.
    pub(crate) fn suspended(&self, policies: &BTreeMap<&str, bool>) {
        for family in self.suspended.collect() {
            for metric in family.get_metric() {
                for label in metric.get_label().iter().filter(|label| !policies.contains_key(label.value())) {
                    let _ = self.suspended.remove_label_values(&[label.value()]);
                }
            }
        }
        for (policy, suspended) in policies {
            self.suspended.with_label_values(&[policy]).set(i64::from(*suspended));
        }
    }

    pub(crate) fn faults(&self, count: usize) {
        self.load_faults.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How many differences there were, for status.
    pub(crate) fn differences(&self, interface: Interface, policy: &str) -> (u64, u64) {
        let labels = [interface.as_str(), policy];
        let answers = self.shadow_answers.with_label_values(&labels).get();
        (answers, self.shadow_differences.with_label_values(&labels).get())
    }
}

#[cfg(test)]
mod tests;
