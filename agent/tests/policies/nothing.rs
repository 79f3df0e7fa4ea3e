//! A policy that picks nothing, as it may: the built-in rule decides, and it goes on being asked.

use understudy::keys::Key;
use understudy_core::model::ids::NodeId;
use understudy_core::model::records::NodeRecord;
use understudy_core::model::units::UnixMillis;
use understudy_store::MemoryStore;

use crate::rig::samples::spec;
use crate::rig::{Agent, active, guest, wait, write};
use crate::{generation, node};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_picks_nothing_is_not_suspended() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let agent = Agent::start(home.path(), "host1", &store, "").await;
    agent.put("p.wasm", &guest("(i32.store (i32.const 1032) (i32.const 0))", "1"));
    generation(&store, 1).await;
    wait("it leads", || async { agent.leads().then_some(()) }).await;
    // More nodes than failures in a row suspend a policy.
    let nodes: Vec<NodeId> =
        (1..=5).map(|number| format!("villain{number}/display").parse().unwrap()).collect();
    for id in &nodes {
        let mut record = NodeRecord::new(spec(), "token".to_owned());
        record.spec.labels.insert("backups".to_owned(), "0".to_owned());
        write(&store, &Key::Node(id.clone()), &record).await;
    }
    for id in &nodes {
        wait("it is placed", || async { node(&store, id).await.primary.map(drop) }).await;
    }
    let line = "understudy_policy_built_in_total{interface=\"placement\",why=\"nothing-picked\"} 5";
    let text = || agent.parts.metrics.text(UnixMillis(0));
    wait("it was asked for each", || async { text().contains(line).then_some(()) }).await;
    assert!(!text().contains("understudy_policy_refusals_total{interface=\"placement\"}"), "{}", text());
    assert_eq!(active(&store).await.unwrap().suspended.get("p"), None);
    assert_eq!(agent.status().await.policies[0].suspended, None);
}
