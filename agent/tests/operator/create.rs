//! A terminal that cannot be is refused with what to write instead.

use super::{agent, said, understudy};

const NODES: &str = "[display]\nDISPLAY\n[[execution]]\nEXECUTION\n\
    [[execution.application]]\nname = 'c'\ngeometry = ''\ntitle = ''\ncommand = 'c'\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_no_instance_can_have_are_refused_with_node_key_and_what_would_be_right() {
    let (home, agent) = agent("").await;
    let file = home.path().join("terminal.toml").display().to_string();
    for (display, execution, words) in [
        ("memory_mib = 0", "", &["alice/display: memory_mib: 0 is out of range: use 96 to 1048576"][..]),
        ("", "memory_mib = 95", &["alice/exec-1: memory_mib: 95 is out of range"]),
        ("memory_mib = 18446744073709551615", "", &["terminal.toml"]),
        ("memory_mib = 9223372036854775807", "", &["memory_mib: 9223372036854775807 is out of range"]),
        (
            "",
            "vcpus = 0\nmemory_mib = 1",
            &["exec-1: vcpus: 0 is out of range: use 1 to 256", "exec-1: memory_mib: 1"],
        ),
        ("vcpus = 1000", "", &["alice/display: vcpus: 1000 is out of range: use 1 to 256"]),
        // What an instance could have, and none of this cluster: its one host has 16 and 16384 MiB.
        ("vcpus = 17", "", &["alice/display", "host1 has 16 vCPUs of 17 vCPUs needed"]),
        ("", "memory_mib = 16385", &["alice/exec-1", "free of 16385 MiB needed"]),
        ("vcpus = 16\nmemory_mib = 96", "vcpus = 16\nmemory_mib = 96", &[]),
    ] {
        std::fs::write(&file, NODES.replace("DISPLAY", display).replace("EXECUTION", execution)).unwrap();
        let output = understudy(&agent, &["terminal", "create", "alice", "--from", &file]).await;
        let (said, code) = (said(&output), output.status.code());
        assert_eq!(code, Some(if words.is_empty() { 0 } else { 5 }), "{display} {execution}: {said}");
        assert!(words.iter().all(|part| said.contains(part)), "{display} {execution}: {said}");
    }
}
