//! Policies in running agents: a file is dropped in and decides, a bad one does not, a peer fetches what it lacks, and a
//! policy that loops costs a failover one deadline.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod again;
mod certified;
mod folder;
mod inputs;
mod nothing;
mod replayed;
mod rig;
mod suspended;
mod swap;

use std::path::Path;
use std::time::{Duration, Instant};

use rig::samples::{fact, spec};
use rig::{Agent, active, candidate, facts, guest, played_host, refused, wait, write};
use understudy::keys::{Key, decode};
use understudy::policy_manager::records::{self, Matter};
use understudy_core::death::Death;
use understudy_core::model::ids::{Epoch, HostId, InstanceId, NodeId};
use understudy_core::model::records::{HostFacts, Member, NodeRecord, Origin, Phase, TerminalRecord};
use understudy_core::model::units::UnixMillis;
use understudy_core::sets::{RefusedSet, SetFacts, SetFault};
use understudy_store::MemoryStore;
use understudy_store::Store;

const LOOP: &str = "(loop $l (br $l))";
const TRAP: &str = "unreachable";

async fn generation(store: &MemoryStore, wanted: u64) {
    wait(&format!("generation {wanted}"), || async {
        active(store).await.filter(|set| set.generation == wanted)
    })
    .await;
}

/// An agent whose second set is refused for another open host, which has the first and cannot load the second.
async fn refused_elsewhere(home: &Path, store: &MemoryStore) -> (Agent, HostId, HostFacts, RefusedSet) {
    let agent = Agent::start(home, "host1", store, "").await;
    agent.put("p.wasm", &guest("", "1"));
    generation(store, 1).await;
    let mut other = facts(&[1]);
    other.policies.faults.insert(2, SetFault::Unusable("no room".to_owned()));
    let host = played_host(store, "host2", other.clone()).await;
    agent.put("p.wasm", &guest("", "2"));
    let said = wait("it is refused", || async { refused(store).await }).await;
    (agent, host, other, said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_dropped_in_decides_and_a_bad_one_leaves_the_old_one_deciding() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let agent = Agent::start(home.path(), "host1", &store, "").await;
    agent.put("first.wasm", &guest("", "1"));
    generation(&store, 1).await;
    let status = wait("it decides", || async {
        Some(agent.status().await).filter(|status| status.deciding["placement"].as_deref() == Some("first"))
    })
    .await;
    assert_eq!((status.generation, status.ready, status.faults.len()), (1, true, 0), "{status:?}");

    // Bad: no component at all, then one that cannot decide beside the first, then settings for nobody.
    agent.put("bad.wasm", b"\0asm\x01\0\0\0");
    let status = wait("its fault is told", || async {
        Some(agent.status().await).filter(|status| !status.faults.is_empty())
    })
    .await;
    assert!(status.faults[0].contains("bad.wasm") && status.faults[0].contains("core module"), "{status:?}");
    let metrics = || agent.parts.metrics.text(UnixMillis(0));
    assert!(metrics().contains("understudy_policy_load_faults 1\n"), "{}", metrics());
    std::fs::remove_file(agent.folder.join("bad.wasm")).unwrap();
    wait("the metric says that it is gone", || async {
        metrics().contains("understudy_policy_load_faults 0\n").then_some(())
    })
    .await;
    agent.put("second.wasm", &guest("", "2"));
    let status = wait("both answer", || async {
        Some(agent.status().await)
            .filter(|status| status.faults.iter().any(|fault| fault.contains("first, second")))
    })
    .await;
    assert_eq!(status.deciding["placement"].as_deref(), Some("first"));
    assert_eq!(active(&store).await.unwrap().generation, 1);
    assert!(candidate(&store).await.is_none());

    // Settings say which: both become one set.
    let before = Instant::now();
    agent.put("policies.toml", b"[choice]\nplacement = 'second'\n[policy.first]\nmode = 'shadow'\n");
    generation(&store, 2).await;
    eprintln!("settings decided after {:?}", before.elapsed());
    let status = wait("the other decides", || async {
        Some(agent.status().await).filter(|status| status.deciding["placement"].as_deref() == Some("second"))
    })
    .await;
    assert_eq!(status.faults, Vec::<String>::new());
    assert_eq!(status.policies[0].shadows[0].interface, "placement");

    // Removed files leave the set.
    std::fs::remove_file(agent.folder.join("policies.toml")).unwrap();
    std::fs::remove_file(agent.folder.join("second.wasm")).unwrap();
    generation(&store, 3).await;
    assert_eq!(active(&store).await.unwrap().components.keys().collect::<Vec<_>>(), ["first"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_fetches_what_it_lacks_and_a_restart_changes_nothing() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let mut first = Agent::start(home.path(), "host1", &store, "").await;
    first.put("p.wasm", &guest("", "1"));
    generation(&store, 1).await;
    let mut second = Agent::start(home.path(), "host2", &store, "").await;
    // Its own folder has no such file.
    wait("the second host has it", || async {
        let status = second.status().await;
        (status.ready && status.generation == 1 && status.differs == ["p.wasm"]).then_some(())
    })
    .await;
    assert!(first.leads() && !second.leads());

    // The other leads, with the same policy, although its folder never had it.
    first.stop().await;
    wait("the second leads", || async { second.leads().then_some(()) }).await;
    assert_eq!(second.status().await.deciding["placement"].as_deref(), Some("p"));
    // What changed while it was down is proposed when it is back; what did not is not.
    std::fs::write(first.folder.join("p.wasm"), guest("", "2")).unwrap();
    let first = Agent::start(home.path(), "host1", &store, "").await;
    generation(&store, 2).await;
    assert_eq!(active(&store).await.unwrap().by, first.parts.config.host);
    wait("both are ready", || async {
        let (one, two) = (first.status().await, second.status().await);
        (one.ready && two.ready && two.generation == 2).then_some(())
    })
    .await;
    second.stop().await;
    let second = Agent::start(home.path(), "host2", &store, "").await;
    wait("the second is back", || async { Some(()).filter(|()| second.snapshots.borrow().synced) }).await;
    wait("and ready", || async { Some(second.status().await).filter(|status| status.ready) }).await;
    assert_eq!(active(&store).await.unwrap().generation, 2, "nothing changed");
    let (code, _) = second.get("/v1/policies/..%2F..%2Fetc%2Fpasswd").await;
    assert_eq!(code, hyper::StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_cannot_load_a_set_refuses_it_and_no_host_leads_without_the_set() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let (agent, host, mut other, said) = refused_elsewhere(home.path(), &store).await;
    assert_eq!((said.generation, said.reason.as_str()), (2, "host2: no room"));
    let status = wait("the proposer says so", || async {
        Some(agent.status().await)
            .filter(|status| status.faults.iter().any(|fault| fault.contains("no room")))
    })
    .await;
    assert_eq!(status.generation, 1, "the old set decides");
    assert!(candidate(&store).await.is_none(), "it is not proposed again and again");
    // Another change is.
    other.policies = SetFacts { ready: [1, 3].into(), ..SetFacts::default() };
    write(&store, &Key::Facts(host.clone()), &other).await;
    agent.put("p.wasm", &guest("", "3"));
    generation(&store, 3).await;

    // A set that is active and that this host cannot have: it gives up the leadership.
    let mut set = active(&store).await.unwrap();
    set.generation = 9;
    set.components.insert("p".to_owned(), "0".repeat(64));
    other.policies = SetFacts { ready: [9].into(), ..SetFacts::default() };
    write(&store, &Key::Facts(host), &other).await;
    write(&store, &Key::PolicyActive, &set).await;
    wait("it resigns", || async {
        let entry = store.get(understudy::keys::LEADER).await.unwrap()?;
        String::from_utf8(entry.value).unwrap().contains("\"host\":null").then_some(())
    })
    .await;
    assert!(!agent.status().await.ready);
}

async fn node(store: &MemoryStore, id: &NodeId) -> NodeRecord {
    let entry = store.get(&Key::Node(id.clone()).to_string()).await.unwrap().unwrap();
    decode(&entry.key, &entry.value).unwrap()
}

/// A display node whose primary is on a played host, which the leader has seen ready. Gives its instance.
async fn with_primary(store: &MemoryStore, id: &NodeId) -> InstanceId {
    let instance = InstanceId::from_uuid(uuid::Uuid::from_u128(7));
    let host = "host2".parse().unwrap();
    let member = Member { host, lease: 1, instance: Some(instance), origin: Origin::Created, place: 0 };
    let mut record = NodeRecord::new(spec(), "token".to_owned());
    (record.epoch, record.incarnation, record.primary) = (Epoch(1), Epoch(1), Some(member));
    // No backup is wanted, so that none is placed before the failure.
    record.spec.labels.insert("backups".to_owned(), "0".to_owned());
    let mut there = facts(&[1]);
    there.instances.insert(instance, fact(Phase::Ready, Some(id), Epoch(1)));
    played_host(store, "host2", there).await;
    let terminal = TerminalRecord {
        id: id.terminal().clone(),
        labels: Default::default(),
        screen: record.spec.screen,
        nodes: vec![id.clone()],
        created: UnixMillis(0),
    };
    write(store, &Key::Terminal(terminal.id.clone()), &terminal).await;
    write(store, &Key::Node(id.clone()), &record).await;
    instance
}

/// The story of one failover, with a policy in place or without. How long the decision took.
async fn failover(policy: Option<&[u8]>, deadline: Duration) -> (Duration, tempfile::TempDir) {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let settings = format!("deadline_ms = {}", deadline.as_millis());
    let agent = Agent::start(home.path(), "host1", &store, &settings).await;
    if let Some(policy) = policy {
        agent.put("p.wasm", policy);
        generation(&store, 1).await;
    }
    wait("it leads", || async { agent.leads().then_some(()) }).await;
    let id: NodeId = "villain/display".parse().unwrap();
    let instance = with_primary(&store, &id).await;
    wait("it sees the node", || async {
        agent.snapshots.borrow().view.nodes.contains_key(&id).then_some(())
    })
    .await;
    // From here on two backups are wanted: the failover asks for three places.
    let mut record = node(&store, &id).await;
    record.spec.labels.insert("backups".to_owned(), "1".to_owned());
    let mut there = facts(&[1]);
    there.instances.insert(
        instance,
        fact(
            Phase::Dead { death: Death::Exited { detail: "killed".to_owned() }, at: UnixMillis(1) },
            Some(&id),
            Epoch(1),
        ),
    );
    let killed = Instant::now();
    let txn = understudy_store::Txn::new()
        .put(Key::Node(id.clone()).to_string(), understudy::keys::encode(&record))
        .put(Key::Facts("host2".parse().unwrap()).to_string(), understudy::keys::encode(&there));
    let _ = store.commit(&txn).await.unwrap();
    let decided = wait("a successor and its backup", || async {
        let record = node(&store, &id).await;
        (record.epoch > Epoch(1) && record.backups.len() == 1).then(|| killed.elapsed())
    })
    .await;
    drop(agent);
    (decided, home)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_under_a_policy_that_loops_is_later_by_one_deadline_once() {
    let deadline = Duration::from_secs(2);
    let (plain, _home) = failover(None, deadline).await;
    let (looped, home) = failover(Some(&guest(LOOP, "1")), deadline).await;
    eprintln!("decided after {plain:?} without a policy, after {looped:?} under one that loops");
    assert!(looped >= deadline, "the policy was asked");
    // Two questions at least: were both waited for, it would be 4 s.
    assert!(looped < deadline * 2, "{looped:?}");
    let kinds = wait("the records", || async {
        let history = records::read(&home.path().join("host1/state/policies"), UnixMillis(0)).ok()?;
        let fault = |matter: &Matter| match matter {
            Matter::Placement(asking) => asking.decided.fault.as_ref().map(|fault| fault.kind.clone()),
            Matter::BackupCount(_) => None,
        };
        let kinds: Vec<String> = history.decisions.iter().filter_map(|one| fault(&one.matter)).collect();
        (kinds.len() >= 2).then_some(kinds)
    })
    .await;
    assert_eq!(kinds[..2], ["deadline", "held-off"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_traps_is_suspended_for_the_cluster_and_comes_back_when_it_is_restored() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let agent = Agent::start(home.path(), "host1", &store, "").await;
    agent.put("p.wasm", &guest(TRAP, "1"));
    generation(&store, 1).await;
    wait("it leads", || async { agent.leads().then_some(()) }).await;
    // Three nodes to be placed, each of which the policy traps at.
    for name in ["villain", "villaine", "villains"] {
        let id: NodeId = format!("{name}/display").parse().unwrap();
        let mut record = NodeRecord::new(spec(), "token".to_owned());
        record.spec.labels.insert("backups".to_owned(), "0".to_owned());
        write(&store, &Key::Node(id), &record).await;
    }
    let suspended = wait("it is suspended", || async {
        active(&store).await.and_then(|set| set.suspended.get("p").cloned())
    })
    .await;
    assert!(suspended.contains("3 times in a row"), "{suspended}");
    for name in ["villain", "villaine", "villains"] {
        let id: NodeId = format!("{name}/display").parse().unwrap();
        assert!(node(&store, &id).await.primary.is_some(), "the built-in rule placed {id}");
    }
    let status = wait("status says so", || async {
        Some(agent.status().await).filter(|status| status.policies[0].suspended.is_some())
    })
    .await;
    assert_eq!(status.deciding["placement"], None);
    for line in [
        "understudy_policy_failures_total{interface=\"placement\",kind=\"trap\"} 3",
        "understudy_policy_questions_total{interface=\"placement\",outcome=\"failed\",policy=\"p\"} 3",
        "understudy_policy_suspended{policy=\"p\"} 1",
    ] {
        wait(line, || async { agent.parts.metrics.text(UnixMillis(0)).contains(line).then_some(()) }).await;
    }

    let (code, _) = agent.ask(hyper::Method::POST, "/v1/policies/p/restore").await;
    assert_eq!(code, hyper::StatusCode::NO_CONTENT);
    wait("it decides again", || async {
        Some(agent.status().await).filter(|status| status.deciding["placement"].as_deref() == Some("p"))
    })
    .await;
    wait("the metric says so", || async {
        let metrics = agent.parts.metrics.text(UnixMillis(0));
        metrics.contains("understudy_policy_suspended{policy=\"p\"} 0").then_some(())
    })
    .await;
    for (path, code) in [("/v1/policies/p/restore", 409), ("/v1/policies/q/restore", 404)] {
        assert_eq!(agent.ask(hyper::Method::POST, path).await.0.as_u16(), code, "{path}");
    }
    let (code, shown) = agent.get("/v1/nodes/villain/display/explain").await;
    assert_eq!(code, hyper::StatusCode::OK, "{shown}");
    assert_eq!(shown["said"]["fault"]["kind"], "trap");
    assert_eq!(shown["hosts"][0]["excluded"], "has a member of this node");
}

/// Picks the second host of the question, whatever it is.
const SECOND: &str = "(i32.store (i32.const 2048) (i32.const 1))
    (i32.store (i32.const 1028) (i32.const 2048)) (i32.store (i32.const 1032) (i32.const 1))";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_is_compared_and_a_replay_tells_the_same_difference() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let agent = Agent::start(home.path(), "host1", &store, "").await;
    let shadow = guest(SECOND, "1");
    agent.put("p.wasm", &shadow);
    agent.put("policies.toml", b"[policy.p]\nmode = 'shadow'\n");
    wait("the shadow is there", || async {
        let set = active(&store).await?;
        (set.settings.contains("shadow") && set.components.contains_key("p")).then_some(())
    })
    .await;
    let set = active(&store).await.unwrap().generation;
    played_host(&store, "host2", facts(&[set])).await;
    wait("it leads and sees both hosts", || async {
        (agent.leads() && agent.snapshots.borrow().view.hosts.len() == 2).then_some(())
    })
    .await;
    let id: NodeId = "villain/display".parse().unwrap();
    let mut record = NodeRecord::new(spec(), "token".to_owned());
    record.spec.labels.insert("backups".to_owned(), "0".to_owned());
    write(&store, &Key::Node(id.clone()), &record).await;
    let records = home.path().join("host1/state/policies");
    let asking = wait("the decision is recorded", || async {
        let history = records::read(&records, UnixMillis(0)).ok()?;
        history.decisions.into_iter().find_map(|one| match one.matter {
            Matter::Placement(asking) => Some(asking),
            Matter::BackupCount(_) => None,
        })
    })
    .await;
    let made = asking.made.as_ref().unwrap();
    assert_eq!(made.first.as_ref().unwrap().as_str(), "host1", "the built-in rule decided");
    assert_eq!(asking.shadows.len(), 1);
    assert!(asking.shadows[0].differs);
    assert_eq!(asking.shadows[0].said.answer.as_ref().unwrap().picks[0].index, 1);
    let primary = node(&store, &id).await.primary.unwrap();
    assert_eq!(primary.host.as_str(), "host1", "a shadow decides nothing");
    // An explanation shows its order beside what decides: the first host has the primary, the second is its only pick.
    let (_, explained) = agent.get("/v1/nodes/villain/display/explain").await;
    let order = serde_json::json!(["host2"]);
    assert_eq!((&explained["shadows"][0]["ranked"], &explained["first"]), (&order, &order[0]), "{explained}");
    assert_eq!(explained["shadows"][0]["said"]["policy"]["name"], "p");
    assert_eq!(explained["said"]["policy"], serde_json::Value::Null, "the built-in rule decides");
    let shown = agent.status().await;
    assert_eq!((shown.policies[0].shadows[0].answers, shown.policies[0].shadows[0].differences), (1, 1));

    let mut replayer = understudy_policy::Replayer::new(
        "p",
        &shadow,
        &Default::default(),
        understudy_policy::Limits::default(),
        understudy_policy::FUEL,
    )
    .unwrap();
    let history = records::read(&records, UnixMillis(0)).unwrap();
    let replayed = understudy::policy_manager::replay::replay(&history, &mut replayer, true).unwrap();
    assert_eq!((replayed.questions, replayed.same, replayed.failures), (1, 0, 0), "{replayed:?}");
    let difference = &replayed.differences[0];
    assert_eq!((difference.was.as_str(), difference.would.as_str()), ("host1", "host2"));
    assert_eq!(difference.by, "built-in rule");
    assert!(replayed.passed_over > 0, "it does not answer backup counts");

    // The command finds the same in the same records.
    let file = home.path().join("p.wasm");
    std::fs::write(&file, &shadow).unwrap();
    let command = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_understudy"));
        command.args(["policy", "replay", "--since", "1h", "--policy"]).arg(&file);
        let output = command.arg("--records").arg(&records).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let reported = command(&[]);
    let (difference, count) = reported.split_once('\n').unwrap();
    let words = "placement of villain/display: host1 by built-in rule, would be host2";
    assert!(difference.contains(words), "{reported}");
    assert!(count.starts_with("1 questions: 0 alike, 1 otherwise, 0 not answered; "), "{reported}");
    let reported: serde_json::Value = serde_json::from_str(&command(&["--json"])).unwrap();
    assert_eq!(reported, serde_json::json!(replayed));
}
