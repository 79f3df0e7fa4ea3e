//! The metrics of policies as Prometheus reads them, and the alerts that rest on them.

use std::time::Duration;

use prometheus::{Encoder, TextEncoder};
use understudy_policy::PolicyFault;

use super::*;
use crate::metrics::tests::alerts::{named, rules_of};

const INTERFACE: Interface = Interface::Placement;

struct Site {
    registry: Registry,
    metrics: PolicyMetrics,
}

impl Site {
    fn new() -> Self {
        let registry = Registry::new_custom(Some("understudy".to_owned()), None).unwrap();
        let metrics = PolicyMetrics::register(&registry).unwrap();
        Self { registry, metrics }
    }

    fn text(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn lines(&self, metric: &str) -> Vec<String> {
        let text = self.text();
        text.lines().filter_map(|line| line.strip_prefix(metric)).map(str::to_owned).collect()
    }
}

#[test]
fn what_became_of_each_question_is_counted_by_policy() {
    let site = Site::new();
    let failed = Outcome::Failed(PolicyFault::Unavailable { interface: INTERFACE });
    for outcome in [&Outcome::Used, &Outcome::Used, &Outcome::Refused("why".to_owned()), &failed] {
        site.metrics.became("site", INTERFACE, outcome);
    }
    let series = |outcome: &str, count: u64| {
        format!("{{interface=\"placement\",outcome=\"{outcome}\",policy=\"site\"}} {count}")
    };
    assert_eq!(
        site.lines("understudy_policy_questions_total"),
        [series("failed", 1), series("refused", 1), series("used", 2)]
    );
}

#[test]
fn a_policy_is_suspended_until_it_is_restored_or_leaves_the_set() {
    let site = Site::new();
    let shown = |policies: &[(&str, bool)]| {
        site.metrics.suspended(&policies.iter().copied().collect());
        site.lines("understudy_policy_suspended")
    };
    let series = |policy: &str, value: u8| format!("{{policy=\"{policy}\"}} {value}");
    assert_eq!(shown(&[("count", false), ("site", true)]), [series("count", 0), series("site", 1)]);
    assert_eq!(shown(&[("count", false), ("site", false)]), [series("count", 0), series("site", 0)]);
    assert_eq!(shown(&[("count", true)]), [series("count", 1)]);
    assert_eq!(shown(&[]), Vec::<String>::new());
}

/// The names of all metrics of policies: each is touched, since those with labels are there only once they have a value.
fn names() -> Vec<String> {
    let site = Site::new();
    let metrics = &site.metrics;
    metrics.asked(INTERFACE, Duration::ZERO);
    metrics.became("site", INTERFACE, &Outcome::Used);
    metrics.failed(INTERFACE, "trap");
    metrics.pick_refused(Unusable::Repeated);
    metrics.built_in(INTERFACE, BuiltIn::NothingPicked);
    metrics.shadowed(INTERFACE, "site", true);
    metrics.suspended(&[("site", true)].into());
    site.registry.gather().iter().map(|family| family.name().to_owned()).collect()
}

#[test]
fn every_alert_of_policies_rests_on_metrics_that_exist_and_says_what_to_do() {
    let names = names();
    let file = "policies.rules.yml";
    let rules = rules_of(file);
    let alerts: Vec<&str> = rules.iter().map(|rule| rule["alert"].as_str().unwrap()).collect();
    assert_eq!(alerts, ["UnderstudyPolicySuspended", "UnderstudyPolicyLoadFaults"]);
    for rule in &rules {
        let alert = rule["alert"].as_str().unwrap();
        let used = named(rule["expr"].as_str().unwrap());
        assert!(!used.is_empty(), "{file}: {alert} looks at no metric of ours");
        for name in used {
            assert!(
                names.iter().any(|known| known == name),
                "{file}: {alert}: no metric {name} in {names:?}"
            );
        }
        assert_eq!(rule["labels"]["severity"].as_str(), Some("warning"), "{file}: {alert}");
        let (of, commands) = if alert == "UnderstudyPolicySuspended" {
            ("policy", &["policy list", "policy explain", "policy replay", "policy restore"][..])
        } else {
            ("instance", &["policy list", "policy check"][..])
        };
        for part in ["summary", "description"] {
            let text = rule["annotations"][part].as_str().unwrap_or_default();
            let label = format!("{{{{ $labels.{of} }}}}");
            assert!(text.contains(&label), "{file}: {alert}: {part} does not say which {of}");
        }
        let next = rule["annotations"]["description"].as_str().unwrap();
        for command in commands {
            assert!(next.contains(command), "{file}: {alert}: nothing about `understudy {command}`");
        }
    }
}
