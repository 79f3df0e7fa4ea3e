//! Settings: every TOML file parses, and the tools' own files say what the style asks of them.
use toml::{Table, Value};

use crate::repository::{expect_none, read, texts};

fn parse(name: &str) -> Table {
    toml::from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn every_toml_file_parses() {
    let files = texts("toml");
    assert!(
        files.iter().any(|(name, _)| name.starts_with("config/")),
        "config/ holds the agent's configuration"
    );
    let broken = files.iter().filter_map(|(name, text)| {
        toml::from_str::<Table>(text).err().map(|error| format!("{name}: {}", error.message()))
    });
    expect_none(&broken.collect::<Vec<_>>());
}

#[test]
fn core_may_not_look_at_clocks_files_sockets_or_random_orders() {
    let clippy = parse("agent/core/clippy.toml");
    let paths = |key: &str| -> Vec<String> {
        let list = clippy[key].as_array().expect("a list").iter();
        list.map(|entry| entry["path"].as_str().expect("a path").to_owned()).collect()
    };
    let (methods, types) = (paths("disallowed-methods"), paths("disallowed-types"));
    for method in ["std::time::Instant::now", "std::time::SystemTime::now", "std::fs::read", "std::fs::write"]
    {
        assert!(methods.iter().any(|path| path == method), "{method} is not banned");
    }
    for banned in
        ["std::time::SystemTime", "std::collections::HashMap", "std::fs::File", "std::net::TcpStream"]
    {
        assert!(types.iter().any(|path| path == banned), "{banned} is not banned");
    }
    // It stands in for the root's file, so that the root's settings must be in it.
    for (key, value) in &parse(".clippy.toml") {
        assert_eq!(clippy.get(key), Some(value), "{key} of .clippy.toml is missing in core's");
    }
}

/// A retried test hides what it was written to find.
fn retries(settings: &Table) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in settings {
        let tables: Vec<&Table> = match value {
            Value::Table(table) => vec![table],
            Value::Array(list) => list.iter().filter_map(Value::as_table).collect(),
            _ => Vec::new(),
        };
        if key == "retries" && *value != Value::Integer(0) {
            found.push(format!("retries = {value}"));
        }
        found.extend(tables.into_iter().flat_map(retries));
    }
    found
}

#[test]
fn tests_are_not_retried() {
    expect_none(&retries(&parse(".config/nextest.toml")));
    let bad = "[[profile.default.overrides]]\nfilter = 'all()'\nretries = 2";
    assert_eq!(retries(&toml::from_str(bad).unwrap()).len(), 1);
}

#[test]
fn licences_bans_and_sources_are_checked_strictly() {
    let deny = parse(".config/deny.toml");
    for key in ["unknown-registry", "unknown-git"] {
        assert_eq!(deny["sources"][key].as_str(), Some("deny"), "sources.{key}");
    }
    assert_eq!(deny["bans"]["wildcards"].as_str(), Some("deny"));
    let allowed = deny["licenses"]["allow"].as_array().expect("a list of licences");
    let copyleft =
        allowed.iter().filter_map(Value::as_str).filter(|name| name.contains("GPL") || name.contains("MPL"));
    let copyleft: Vec<String> = copyleft.map(|name| format!("{name}: allow it crate by crate")).collect();
    expect_none(&copyleft);
}
