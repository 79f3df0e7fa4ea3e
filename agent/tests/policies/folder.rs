//! Files that lie in a folder when an agent looks at it for the first time, and those that come later.

use understudy_policy::Digest;
use understudy_store::MemoryStore;

use crate::generation;
use crate::rig::{Agent, active, candidate, guest, wait};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_file_in_a_folder_that_was_not_there_is_a_change() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let first = Agent::start(home.path(), "host1", &store, "").await;
    first.put("p.wasm", &guest("", "1"));
    generation(&store, 1).await;
    let second = Agent::start_without_folder(home.path(), "host2", &store, "").await;
    let known = home.path().join("host2/state/policies/folder.json");
    wait("the second has looked", || async { known.exists().then_some(()) }).await;
    let status = second.status().await;
    assert_eq!((status.faults, status.unproposed), (Vec::new(), Vec::new()), "no folder is no fault");

    std::fs::create_dir(&second.folder).unwrap();
    second.put("p.wasm", &guest("", "2"));
    generation(&store, 2).await;
    let set = active(&store).await.unwrap();
    assert_eq!(set.by, second.parts.config.host);
    assert_eq!(set.components["p"], Digest::of(&guest("", "2")).to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_knows_to_be_a_change_is_proposed_when_an_operator_says_so() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let mut agent = Agent::start(home.path(), "host1", &store, "").await;
    agent.put("p.wasm", &guest("", "1"));
    agent.put("gone.wasm", &guest("", "9"));
    agent.put("policies.toml", b"[policy.gone]\nmode = 'off'\n");
    wait("all of it decides", || async {
        active(&store).await.filter(|set| set.components.len() == 2 && set.settings.contains("off"))
    })
    .await;
    let before = active(&store).await.unwrap();
    let (code, said) = agent.ask(hyper::Method::POST, "/v1/policies").await;
    assert_eq!(code, hyper::StatusCode::CONFLICT, "{said}");
    // What is active in the store is remembered a moment later: after that nothing is kept any more.
    let memory = home.path().join("host1/state/policies/folder.json");
    wait("what is known of the folder is kept", || async {
        std::fs::read_to_string(&memory).ok().filter(|kept| kept.contains(r#""proposed":null"#))
    })
    .await;
    agent.stop().await;

    // The memory is lost, and while the agent is down a file comes and another goes.
    std::fs::remove_file(&memory).unwrap();
    agent.put("p.wasm", &guest("", "2"));
    std::fs::remove_file(agent.folder.join("gone.wasm")).unwrap();
    let agent = Agent::start(home.path(), "host1", &store, "").await;
    let status = wait("the difference is told", || async {
        Some(agent.status().await).filter(|status| !status.unproposed.is_empty())
    })
    .await;
    assert_eq!(status.unproposed, ["p.wasm"], "what is not there cannot be proposed");
    assert_eq!(status.differs, ["gone.wasm", "p.wasm"]);
    assert!(candidate(&store).await.is_none());
    assert_eq!(active(&store).await.unwrap(), before);

    let (code, _) = agent.ask(hyper::Method::POST, "/v1/policies").await;
    assert_eq!(code, hyper::StatusCode::ACCEPTED);
    generation(&store, before.generation + 1).await;
    let set = active(&store).await.unwrap();
    assert_eq!(set.components["p"], Digest::of(&guest("", "2")).to_string());
    assert_eq!((&set.components["gone"], &set.settings), (&before.components["gone"], &before.settings));
    wait("nothing is left to propose", || async { agent.status().await.unproposed.is_empty().then_some(()) })
        .await;
}
