//! The metrics of policies as Prometheus reads them, and the alerts that rest on them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use prometheus::{Encoder, TextEncoder};
use understudy_policy::PolicyFault;
use yaml_rust2::{Yaml, YamlLoader};

use super::*;

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

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/prometheus")
}

/// Every rule of every file of alerts, with the file's name.
fn rules() -> Vec<(String, Yaml)> {
    let mut rules = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".rules.yml") {
            let text = std::fs::read_to_string(folder().join(&name)).unwrap();
            for document in YamlLoader::load_from_str(&text).unwrap() {
                for group in document["groups"].as_vec().unwrap() {
                    rules.extend(
                        group["rules"].as_vec().unwrap().iter().map(|rule| (name.clone(), rule.clone())),
                    );
                }
            }
        }
    }
    rules
}

/// The names of metrics of ours in an expression.
fn named(expression: &str) -> Vec<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| word.starts_with("understudy_")).collect()
}

#[test]
fn every_alert_of_policies_rests_on_metrics_that_exist_and_says_what_to_do() {
    let names = names();
    let rules: Vec<_> = rules().into_iter().filter(|(file, _)| file == "policies.rules.yml").collect();
    let alerts: Vec<&str> = rules.iter().map(|(_, rule)| rule["alert"].as_str().unwrap()).collect();
    assert_eq!(alerts, ["UnderstudyPolicySuspended", "UnderstudyPolicyLoadFaults"]);
    for (file, rule) in &rules {
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
    assert_eq!(named("max(understudy_a) / understudy_b:rate"), ["understudy_a", "understudy_b:rate"]);
}

#[test]
#[ignore = "needs promtool"]
fn promtool_finds_the_alerts_sound_and_they_fire() {
    let run =
        |words: &[&str], file: &str| Command::new("promtool").args(words).arg(folder().join(file)).output();
    for (words, file) in
        [(["check", "rules"], "policies.rules.yml"), (["test", "rules"], "policies.tests.yml")]
    {
        let output = run(&words, file).unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{file}: {said}");
    }
}
