//! What a policy is told of a terminal that is made through the interface.

use understudy_core::model::ids::NodeId;
use understudy_core::model::units::UnixMillis;
use understudy_store::MemoryStore;

use crate::rig::{Agent, wait};
use crate::{Matter, node, records};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_has_the_labels_of_its_environment_and_its_question_names_them() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let labels = "[environment_labels]\ndesktop = { tier = \"gold\" }";
    let agent = Agent::start(home.path(), "host1", &store, labels).await;
    wait("it leads", || async { agent.leads().then_some(()) }).await;
    wait("the terminal is made", || async {
        let request = r#"{"name": "villain", "labels": {"backups": "0"}, "screen": "1280x720", "display": {},
            "execution": [{"application": [{"name": "clock", "command": "xclock", "geometry": "", "title": ""}]}]}"#;
        let (code, said) = agent.send(hyper::Method::POST, "/v1/terminals", request).await;
        // Until the host has reported, there is no room.
        assert!([201, 409, 503].contains(&code.as_u16()), "{code}: {said}");
        (code.as_u16() == 201).then_some(())
    })
    .await;
    let id: NodeId = "villain/exec-1".parse().unwrap();
    assert_eq!(node(&store, &id).await.spec.environment_labels["tier"], "gold");
    let reported = wait("the question is recorded", || async {
        let history = records::read(&home.path().join("host1/state/policies"), UnixMillis(0)).ok()?;
        history.decisions.iter().find_map(|one| match &one.matter {
            Matter::Placement(asking) => Some(asking.question.environment_labels.clone()),
            Matter::BackupCount(_) => None,
        })
    })
    .await;
    assert_eq!(reported["tier"], "gold");
}
