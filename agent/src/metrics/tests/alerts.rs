//! The alerts in `config/prometheus`, held against the metrics that the agent exports.

use std::path::{Path, PathBuf};
use std::process::Command;

use yaml_rust2::{Yaml, YamlLoader};

use super::everything;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/prometheus")
}

/// The files of the folder whose names end so, in their order.
fn files(end: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.ends_with(end));
    names.sort();
    names
}

/// Every rule of a file of alerts.
pub(in crate::metrics) fn rules_of(file: &str) -> Vec<Yaml> {
    let text = std::fs::read_to_string(folder().join(file)).unwrap();
    let documents = YamlLoader::load_from_str(&text).unwrap();
    let groups = documents.iter().flat_map(|document| document["groups"].as_vec().unwrap());
    groups.flat_map(|group| group["rules"].as_vec().unwrap().clone()).collect()
}

/// The names of metrics of ours in an expression.
pub(in crate::metrics) fn named(expression: &str) -> Vec<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| word.starts_with("understudy_")).collect()
}

#[test]
fn names_of_metrics_are_read_out_of_expressions() {
    assert_eq!(named("max(understudy_a) / understudy_b:rate"), ["understudy_a", "understudy_b:rate"]);
}

#[test]
fn the_alert_about_state_that_is_waited_for_looks_at_a_metric_that_exists_and_says_what_ends_the_wait() {
    let rules = rules_of("nodes.rules.yml");
    let alerts: Vec<&str> = rules.iter().map(|rule| rule["alert"].as_str().unwrap()).collect();
    let all = [
        "UnderstudyNodeWaitsForState",
        "UnderstudyCheckpointDamaged",
        "UnderstudyCheckpointsHoldGuestsUp",
        "UnderstudySnapshotsFail",
    ];
    assert_eq!(alerts, all);
    let (used, text) = (named(rules[0]["expr"].as_str().unwrap()), everything());
    assert_eq!(used, ["understudy_nodes_waiting_for_state"]);
    assert!(text.contains(&format!("# TYPE {} gauge", used[0])), "no such metric in {text}");
    assert_eq!(rules[0]["labels"]["severity"].as_str(), Some("critical"));
    let next = rules[0]["annotations"]["description"].as_str().unwrap();
    // What `status` says of each host, as `core::leader::restore` words it, and the commands that help.
    let hindrances = [
        "which is lost",
        "does not answer",
        "free of ... needed",
        "which has not reported yet",
        "whose lease cannot be read by this version",
    ];
    let commands = ["understudy status", "understudy host drain", "understudy node start-afresh"];
    for part in hindrances.into_iter().chain(commands) {
        assert!(next.contains(part), "nothing about {part}");
    }
}

#[test]
fn the_alerts_about_checkpoints_look_at_metrics_that_exist_and_say_where_to_look() {
    let table = [
        (
            "UnderstudyCheckpointDamaged",
            "understudy_checkpoints_damaged gauge",
            &["understudy status", "smartctl", "understudy host drain"][..],
        ),
        (
            "UnderstudyCheckpointsHoldGuestsUp",
            "understudy_checkpoint_tier gauge",
            &["understudy status", "vm.unprivileged_userfaultfd", "systemctl restart understudy"],
        ),
        (
            "UnderstudySnapshotsFail",
            "understudy_checkpoint_snapshots_failed_total counter",
            &["understudy status", "log", "it is saved instead", "understudy host drain"],
        ),
    ];
    let rules = rules_of("nodes.rules.yml");
    for (alert, metric, parts) in table {
        let rule = rules.iter().find(|rule| rule["alert"].as_str() == Some(alert)).unwrap();
        let (name, _) = metric.split_once(' ').unwrap();
        assert_eq!(named(rule["expr"].as_str().unwrap()), [name]);
        assert!(everything().contains(&format!("# TYPE {metric}")), "{alert}: no such metric");
        let next = rule["annotations"]["description"].as_str().unwrap();
        for part in parts {
            assert!(next.contains(part), "{alert}: nothing about {part}");
        }
    }
}

#[test]
#[ignore = "needs promtool"]
fn promtool_finds_the_alerts_sound_and_they_fire() {
    let (rules, tests) = (files(".rules.yml"), files(".tests.yml"));
    let tested: Vec<String> = rules.iter().map(|name| name.replace(".rules.", ".tests.")).collect();
    assert!(!rules.is_empty() && tests == tested, "{rules:?} are tested by {tests:?}");
    let checks = rules.iter().map(|file| ("check", file)).chain(tests.iter().map(|file| ("test", file)));
    for (verb, file) in checks {
        let output =
            Command::new("promtool").args([verb, "rules"]).arg(folder().join(file)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{file}: {said}");
    }
}
