//! The command line from outside: what is printed, and with which exit code it ends.

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
fn what_a_configuration_names_and_is_not_there_is_told_with_its_key() {
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
fn an_unreadable_certificate_is_told_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(shipped("agent.toml")).unwrap();
    let file = written(folder.path(), "agent.toml", &text.replace("/etc/understudy/pki", "/nonexistent"));
    let output = understudy(&["check-config", &file]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for key in ["store.ca", "store.cert", "store.key"] {
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
    let sum = seconds("session_ttl") + seconds("session_margin");
    assert!((seconds("session_end_after") - sum).abs() < 1e-9);
    assert_eq!(understudy(&["bounds", "--profile", "hasty"]).status.code(), Some(2));
}
