//! What is suspended is one fact of the cluster: whichever host saw the failures, and whichever host is asked to restore.

use std::collections::BTreeMap;

use understudy::keys::Key;
use understudy::runtime::{admission, trial};
use understudy_core::model::ids::NodeId;
use understudy_core::model::records::NodeRecord;
use understudy_core::model::units::UnixMillis;
use understudy_store::MemoryStore;

use crate::rig::samples::spec;
use crate::rig::{Agent, active, guest, wait, write};
use crate::{TRAP, generation};

/// A policy that answers is never late, however busy the machine.
const PATIENT: &str = "deadline_ms = 10000";

/// Why the policy was suspended.
async fn suspended(store: &MemoryStore) -> Option<String> {
    active(store).await.and_then(|set| set.suspended.get("p").cloned())
}

fn node_record() -> NodeRecord {
    let mut record = NodeRecord::new(spec(), "token".to_owned());
    record.spec.labels.insert("backups".to_owned(), "0".to_owned());
    record
}

fn node(name: &str) -> NodeId {
    format!("{name}/display").parse().unwrap()
}

/// A leader and a follower, both with a policy that traps at each question but the trial's.
async fn pair(home: &std::path::Path, store: &MemoryStore) -> (Agent, Agent) {
    let leader = Agent::start(home, "host1", store, PATIENT).await;
    leader.put("p.wasm", &guest(TRAP, "1"));
    generation(store, 1).await;
    wait("it leads", || async { leader.leads().then_some(()) }).await;
    let follower = Agent::start(home, "host2", store, PATIENT).await;
    wait("the other has the set", || async {
        let status = follower.status().await;
        (status.ready && status.generation == 1).then_some(())
    })
    .await;
    // What lies in its folder at the first look is no change.
    let known = home.join("host2/state/policies/folder.json");
    wait("it has looked at its folder", || async { known.exists().then_some(()) }).await;
    wait("the leader sees it", || async {
        let seen = leader.snapshots.borrow().clone();
        let host = &follower.parts.config.host;
        let facts = seen.view.hosts.get(host).and_then(|seen| seen.current_facts().cloned());
        facts.filter(|facts| facts.policies.ready.contains(&1))
    })
    .await;
    (leader, follower)
}

/// Asks for a terminal's admission on one host, which asks the policy.
async fn admit(agent: &Agent, name: &str) {
    let snapshot = agent.snapshots.borrow().clone();
    let new = BTreeMap::from([(node(name), node_record())]);
    let trial = trial(&agent.parts, &snapshot.deciding, &snapshot.view, &new);
    admission(&agent.parts, &snapshot.deciding, trial).await.unwrap();
}

/// How often the policy trapped on this host.
fn traps(agent: &Agent) -> u64 {
    let text = agent.parts.metrics.text(UnixMillis(0));
    let start = "understudy_policy_failures_total{interface=\"placement\",kind=\"trap\"} ";
    text.lines().find_map(|line| line.strip_prefix(start)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_on_a_host_that_does_not_lead_holds_on_the_leader() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let (leader, follower) = pair(home.path(), &store).await;
    for name in ["villain", "villaine", "villains"] {
        write(&store, &Key::Node(node(name)), &node_record()).await;
    }
    wait("it is suspended", || suspended(&store)).await;
    assert_eq!((traps(&leader), traps(&follower)), (3, 0));
    wait("the follower sees it", || async {
        Some(follower.status().await).filter(|status| status.policies[0].suspended.is_some())
    })
    .await;

    let (code, _) = follower.ask(hyper::Method::POST, "/v1/policies/p/restore").await;
    assert_eq!(code, hyper::StatusCode::NO_CONTENT);
    // The leader takes up what failed before it looks at a candidate: were the failures of before not forgotten, the
    // next set would have the policy suspended.
    follower.put("policies.toml", b"# nothing else\n");
    wait("the next set decides", || async {
        active(&store).await.filter(|set| set.settings.contains("nothing else"))
    })
    .await;
    assert_eq!(suspended(&store).await, None, "an operator's word stands");
    for agent in [&leader, &follower] {
        wait("both say that it decides", || async {
            let status = agent.status().await;
            (status.generation > 1 && status.deciding["placement"].as_deref() == Some("p")).then_some(())
        })
        .await;
    }
    // It is asked again, and three failures more suspend it again.
    for name in ["villainm", "villainn", "villaino"] {
        write(&store, &Key::Node(node(name)), &node_record()).await;
    }
    wait("it is suspended anew", || suspended(&store)).await;
    assert_eq!(traps(&leader), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_on_a_host_that_does_not_lead_is_suspended_for_all_and_restored_from_any() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let (leader, follower) = pair(home.path(), &store).await;
    for name in ["villain", "villaine", "villains"] {
        admit(&follower, name).await;
    }
    let reason = wait("it is suspended", || suspended(&store)).await;
    assert!(reason.contains("3 times in a row"), "{reason}");
    assert_eq!((traps(&leader), traps(&follower)), (0, 3));
    assert!(leader.leads() && !follower.leads());
    for agent in [&leader, &follower] {
        wait("both say so", || async {
            let status = agent.status().await;
            (status.policies[0].suspended.as_ref() == Some(&reason) && status.deciding["placement"].is_none())
                .then_some(())
        })
        .await;
    }

    let (code, _) = leader.ask(hyper::Method::POST, "/v1/policies/p/restore").await;
    assert_eq!(code, hyper::StatusCode::NO_CONTENT);
    wait("the follower asks it again", || async {
        admit(&follower, "villaint").await;
        (traps(&follower) > 3).then_some(())
    })
    .await;
}
