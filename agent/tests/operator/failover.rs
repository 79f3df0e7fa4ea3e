//! What an operator sees of a terminal, and the failover that an operator asks for.

use serde_json::Value;
use tempfile::TempDir;
use understudy::keys::{Key, encode};
use understudy_core::model::ids::NodeId;
use understudy_core::model::records::NodeRecord;
use understudy_core::model::units::MiB;
use understudy_store::{Committed, Txn};

use super::instances::Instances;
use super::rig::samples::spec;
use super::rig::{Agent, wait};
use super::{agent, printed, said, understudy};

const ALICE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/terminals/alice.toml");

/// An agent with the terminal `alice`, all of whose nodes have a primary at work.
async fn with_alice() -> (TempDir, Agent, Instances) {
    let (home, agent) =
        agent("[gateway]\nlisten = \"127.0.0.1:7481\"\nadvertise = \"http://host1:7481\"").await;
    let output = understudy(&agent, &["terminal", "create", "alice", "--from", ALICE]).await;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let mut instances = Instances::default();
    wait("all nodes are at work", || {
        instances.follow(&agent);
        let agent = &agent;
        async move {
            let terminal = json(agent, &["terminal", "show", "alice"]).await;
            let ready = |node: &Value| node["primary"]["ready"] == true;
            terminal["nodes"].as_array()?.iter().all(ready).then_some(())
        }
    })
    .await;
    (home, agent, instances)
}

async fn json(agent: &Agent, words: &[&str]) -> Value {
    let output = understudy(agent, &[&["--json"], words].concat()).await;
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Standard output, with every run of spaces as one.
async fn text(agent: &Agent, words: &[&str]) -> String {
    let output = understudy(agent, words).await;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let lines = printed(&output);
    lines
        .lines()
        .map(|line| line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ") + "\n")
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_terminals_and_the_whole_are_listed_as_text_and_as_json() {
    let (_home, agent, _instances) = with_alice().await;
    let node =
        |name: &str, epoch: u64| format!("alice/{name} epoch {epoch}: primary host1 (ready); backups none\n");
    let terminal = [
        "terminal alice\n".to_owned(),
        "page http://host1:7481/t/alice/\n".to_owned(),
        node("display", 1),
        node("exec-1", 1),
        node("exec-2", 1),
    ]
    .concat();
    assert_eq!(text(&agent, &["terminal", "show", "alice"]).await, terminal);
    assert_eq!(
        text(&agent, &["terminal", "list"]).await,
        "TERMINAL NODES PAGE\nalice 3 http://host1:7481/t/alice/\n"
    );
    let hosts = "HOST STATE LEASE IDLE MEMBERS FREE MEMORY\nhost1 open 1 0 3 15808/16384 MiB\n";
    assert_eq!(text(&agent, &["host", "list"]).await, hosts);
    let status = text(&agent, &["status"]).await;
    let (head, rest) = status.split_once('\n').unwrap();
    assert!(head.starts_with("host host1, leader host1, lease for another "), "{status}");
    assert!(rest.contains(hosts) && rest.ends_with(&terminal), "{status}");

    let whole = json(&agent, &["status"]).await;
    assert_eq!((&whole["host"], &whole["leader"]), (&"host1".into(), &"host1".into()), "{whole}");
    assert_eq!(json(&agent, &["host", "list"]).await[0]["members"], 3);
    assert_eq!(json(&agent, &["terminal", "list"]).await[0]["id"], "alice");
    assert_eq!(json(&agent, &["terminal", "show", "alice"]).await["nodes"][2]["id"], "alice/exec-2");
    for words in [&["terminal", "show", "bob"], &["terminal", "delete", "bob"], &["host", "drain", "host9"]] {
        let output = understudy(&agent, words).await;
        assert_eq!(output.status.code(), Some(6), "{words:?}: {}", said(&output));
        assert!(said(&output).contains(words[2]) && said(&output).contains("list"), "{}", said(&output));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_is_asked_for_ends_the_primary_and_a_successor_takes_over() {
    let (_home, agent, mut instances) = with_alice().await;
    let display = |terminal: &Value| terminal["nodes"][0].clone();
    let before = display(&json(&agent, &["terminal", "show", "alice"]).await);
    let output = understudy(&agent, &["node", "failover", "alice/display"]).await;
    assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()));
    let after = wait("the successor is at work", || {
        instances.follow(&agent);
        let agent = &agent;
        async move {
            let node = display(&json(agent, &["terminal", "show", "alice"]).await);
            (node["epoch"] != 1 && node["primary"]["ready"] == true).then_some(node)
        }
    })
    .await;
    assert_eq!(after["epoch"], 2, "one, and no other after it: {after}");
    assert_ne!(after["primary"]["instance"], before["primary"]["instance"]);
    let cause = "an operator asked for a failover";
    assert_eq!(after["incident"]["cause"]["destroyed"]["reason"], cause, "{after}");
    // The other nodes have not been touched.
    let all = json(&agent, &["terminal", "show", "alice"]).await;
    assert!((1..3).all(|at| all["nodes"][at]["epoch"] == 1), "{all}");
    let shown = text(&agent, &["status"]).await;
    assert!(shown.contains(&format!("last failover: {cause}: ")), "{shown}");
    let (_, metrics) = agent.request(hyper::Method::GET, "/metrics", "").await;
    assert!(
        metrics.contains("\nunderstudy_failovers_total{outcome=\"promoted\",role=\"display\"} 1\n"),
        "{metrics}"
    );
    assert!(metrics.contains("\nunderstudy_instances{phase=\"ready\"} 3\n"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_of_what_has_no_primary_or_is_not_there_is_refused() {
    let (_home, agent) = agent("").await;
    let mut record = NodeRecord::new(spec(), "token".to_owned());
    record.spec.memory = MiB(1 << 20);
    let id: NodeId = "large/display".parse().unwrap();
    let txn = Txn::new().put(Key::Node(id.clone()).to_string(), encode(&record));
    assert!(matches!(agent.parts.store.commit(&txn).await.unwrap(), Committed::Applied { .. }));
    wait("it is planned for in vain", || async {
        agent.snapshots.borrow().report.lacks.get(&id).filter(|lack| lack.primary).map(drop)
    })
    .await;
    for (words, code, part) in [
        (["node", "failover", "large/display"], 5, "large/display has no primary"),
        (["node", "failover", "alice/display"], 6, "there is no node 'alice/display'"),
        (["node", "start-afresh", "large/display"], 5, "large/display does not wait for its state"),
        (["node", "start-afresh", "alice/display"], 6, "there is no node 'alice/display'"),
        // What cannot be a name never reaches the agent, whose interface has no such path.
        (
            ["node", "failover", "alice"],
            2,
            "'alice' is not a node: use <terminal>/display or <terminal>/exec-",
        ),
        (["node", "failover", "alice/display/x"], 2, "is not a node"),
        (["terminal", "show", "alice/display"], 2, "'alice/display' is not a valid terminal"),
        (["terminal", "delete", "Alice"], 2, "'Alice' is not a valid terminal"),
        (["host", "drain", "host 1"], 2, "'host 1' is not a valid host"),
        (["host", "undrain", "../host1"], 2, "'../host1' is not a valid host"),
    ] {
        let output = understudy(&agent, &words).await;
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", said(&output));
        assert!(said(&output).contains(part), "{words:?}: {}", said(&output));
    }
}
