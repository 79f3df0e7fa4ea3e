//! The command line from outside: what is printed, and with which exit code it ends.

#[path = "../policy/tests/common/guests.rs"]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod guests;

use std::path::Path;
use std::process::{Command, Output};

fn understudy(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_understudy"))
        .args(words)
        .output()
        .expect("the binary was built for this test")
}

fn shipped(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config").join(name).display().to_string()
}

fn written(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("the folder is this test's own");
    path.display().to_string()
}

#[test]
fn the_shipped_configurations_are_valid() {
    for name in ["agent.toml", "agent.minimal.toml"] {
        let output = understudy(&["check-config", "--offline", &shipped(name)]);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_wrong_configuration_ends_with_3_and_names_every_fault() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(shipped("agent.minimal.toml")).unwrap();
    let wrong = text.replace("host1", "Host_1").replace("192.168.122.219", "nowhere");
    let file = written(folder.path(), "agent.toml", &wrong);
    let output = understudy(&["check-config", "--offline", &file]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    for part in [file.as_str(), "host.name", "network.addresses"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn what_a_configuration_names_and_is_not_there_is_reported_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(shipped("agent.minimal.toml")).unwrap();
    let file =
        written(folder.path(), "agent.toml", &text.replace("/var/lib/understudy/roles", "/nonexistent"));
    let output = understudy(&["check-config", &file]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("environments.desktop") && said.contains("/nonexistent/role.erofs"), "{said}");
}

#[test]
fn an_unreadable_certificate_is_reported_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(shipped("agent.toml")).unwrap();
    let file = written(folder.path(), "agent.toml", &text.replace("/etc/understudy/pki", "/nonexistent"));
    let output = understudy(&["check-config", &file]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for key in ["store.ca", "store.cert", "store.key", "peers.ca"] {
        assert!(said.contains(key), "{key}: {said}");
    }
}

#[test]
fn without_an_agent_commands_end_with_4_and_say_what_to_look_at() {
    let output = understudy(&["--socket", "/nonexistent/api.sock", "status"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("understudy.service"), "{said}");
}

#[test]
fn a_terminal_description_with_a_mistyped_key_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), "t.toml", "screeen = \"1280x800\"\n[[execution]]\n");
    let output = understudy(&["terminal", "create", "alice", "--from", &file]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("screeen") && said.contains(&file), "{said}");
}

#[test]
fn the_bounds_are_printed_with_their_derivation() {
    let output = understudy(&["bounds", "--json"]);
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let seconds = |name: &str| {
        let rows = rows.as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).unwrap()["seconds"].as_f64().unwrap()
    };
    let sum = seconds("lease_ttl") + seconds("lease_margin");
    assert!((seconds("lease_expire_after") - sum).abs() < 1e-9);
    assert_eq!(understudy(&["bounds", "--profile", "hasty"]).status.code(), Some(2));
}

#[test]
fn a_file_that_is_no_policy_is_reported_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let module = folder.path().join("module.wasm");
    std::fs::write(&module, b"\0asm\x01\0\0\0").unwrap();
    let module = module.display().to_string();
    for verb in ["check", "bench"] {
        let output = understudy(&["policy", verb, &module]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(5), "{verb}: {said}");
        assert!(said.contains("core module") && said.contains(&module), "{verb}: {said}");
    }
    let output = understudy(&["policy", "check", &module, "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["bytes"], 8);
    assert!(report["fault"].as_str().unwrap().contains("core module"), "{report}");
}

/// A policy that picks nothing, under this file name.
fn policy(folder: &Path) -> String {
    let path = folder.join("nothing.wasm");
    std::fs::write(&path, guests::placement_guest("")).expect("the folder is this test's own");
    path.display().to_string()
}

#[test]
fn a_policy_that_can_be_used_is_shown_with_what_it_answers_takes_and_may_use() {
    let folder = tempfile::tempdir().unwrap();
    let file = policy(folder.path());
    let settings = written(folder.path(), "policies.toml", "[policy.nothing]\ndeadline_ms = 70\n");
    let output = understudy(&["policy", "check", &file, "--settings", &settings]);
    let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), said.as_ref()), (Some(0), ""));
    assert!(text.starts_with(&format!("{file}: ")) && text.ends_with("  usable\n"), "{text}");
    for part in
        ["trial of placement: answered, ", "limits   70 ms, ", "exports  understudy:policy/placement@0.1.0"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let output = understudy(&["--json", "policy", "check", &file, "--settings", &settings]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["answers"], serde_json::json!(["placement"]), "{report}");
    assert_eq!((&report["fault"], &report["deadline_ms"]), (&serde_json::Value::Null, &70.into()));
    assert_eq!(report["bytes"], std::fs::metadata(&file).unwrap().len());
    assert_eq!(report["digest"].as_str().unwrap().len(), 64);
    assert_eq!(report["trials"][0]["fault"], serde_json::Value::Null);
}

#[test]
fn a_policy_is_measured_against_the_built_in_rule_by_number_of_hosts() {
    let folder = tempfile::tempdir().unwrap();
    let file = policy(folder.path());
    let output = understudy(&["policy", "bench", &file, "--time", "0s"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["HOSTS", "PER", "SECOND", "POLICY", "BUILT-IN", "RATIO"]);
    let output = understudy(&["--json", "policy", "bench", &file, "--time", "0s"]);
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let hosts: Vec<String> = rows.iter().map(|row| row["hosts"].to_string()).collect();
    assert!(hosts.len() >= 3, "{rows:?}");
    assert_eq!(lines[1..].iter().map(|line| line[0]).collect::<Vec<_>>(), hosts);
    for row in &rows {
        let above = |key: &str| row[key].as_f64().is_some_and(|value| value > 0.0);
        assert!(
            ["questions", "policy_us", "built_in_us", "ratio", "per_second"].into_iter().all(above),
            "{row}"
        );
    }
}

#[test]
fn wrong_settings_of_a_policy_end_with_3_and_name_every_key() {
    let folder = tempfile::tempdir().unwrap();
    let settings = written(folder.path(), "policies.toml", "[policy.p]\nmode = 'on'\nspeed = 1\n");
    let output = understudy(&["policy", "check", "p.wasm", "--settings", &settings]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    for key in ["policy.p.mode", "policy.p.speed", settings.as_str()] {
        assert!(said.contains(key), "{key}: {said}");
    }
    // The shipped ones are right.
    let shipped = shipped("policies.toml");
    let output = understudy(&["policy", "check", "/nonexistent/p.wasm", "--settings", &shipped]);
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_new_policy_is_written_once_under_a_name_that_can_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let new = |name: &str| {
        Command::new(env!("CARGO_BIN_EXE_understudy"))
            .args(["policy", "new", name])
            .current_dir(folder.path())
            .output()
            .unwrap()
    };
    let output = new("rack-first");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let manifest = std::fs::read_to_string(folder.path().join("rack-first/Cargo.toml")).unwrap();
    assert!(manifest.contains("policy-rack-first") && !manifest.contains("my-policy"), "{manifest}");
    assert!(folder.path().join("rack-first/understudy/wit/worlds.wit").is_file());
    for (name, code) in [("rack-first", 5), ("Rack", 2), ("../rack", 2), ("", 2)] {
        assert_eq!(new(name).status.code(), Some(code), "{name}");
    }
}

#[test]
fn a_replay_without_records_says_where_it_looked() {
    let folder = tempfile::tempdir().unwrap();
    let policy = written(folder.path(), "p.wasm", "");
    let records = folder.path().display().to_string();
    let output =
        understudy(&["policy", "replay", "--policy", &policy, "--since", "1h", "--records", &records]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains(&records), "{said}");
    let output = understudy(&["policy", "replay", "--policy", &policy, "--since", "soon"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn what_an_agent_is_asked_about_policies_needs_one() {
    for words in
        [&["policy", "list"][..], &["policy", "explain", "alice/display"], &["policy", "restore", "p"]]
    {
        let output = understudy(&[&["--socket", "/nonexistent/api.sock"], words].concat());
        assert_eq!(output.status.code(), Some(4), "{words:?}");
    }
    let output = understudy(&["--socket", "/nonexistent/api.sock", "policy", "explain", "alice"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn completion_and_manual_pages_come_from_the_binary_itself() {
    let output = understudy(&["completion", "bash"]);
    let script = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && script.contains("_understudy()"), "{script}");
    assert_eq!(understudy(&["completion", "nosuch"]).status.code(), Some(2));
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1").display().to_string();
    assert!(understudy(&["man", &pages]).status.success());
    for page in ["understudy.1", "understudy-node-failover.1", "understudy-completion.1"] {
        assert!(folder.path().join("man1").join(page).exists(), "{page}");
    }
    let file = written(folder.path(), "file", "");
    let output = understudy(&["man", &file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&file));
}
