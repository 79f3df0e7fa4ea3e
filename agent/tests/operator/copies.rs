//! Whom an agent asks which checkpoints of a node there are: as the leader of the cluster, for an operator, and for a peer.

use std::net::SocketAddr;
use std::time::Instant;

use axum::routing::post;
use axum::{Json, Router};
use tokio::task::JoinHandle;
use understudy::keys::{Key, decode};
use understudy::peers::{Asked, Closing, Peer, Security, ask_copies};
use understudy_core::bounds::ASK;
use understudy_core::model::ids::{BootId, Epoch, HostId, NodeId};
use understudy_core::model::records::{
    Age, Checkpoint, CheckpointId, HostFacts, Kept, LeaseExpiry, LeaseRecord, Member, Newest, NodeRecord,
    Origin, Protection, TerminalRecord,
};
use understudy_core::model::units::UnixMillis;
use understudy_store::{Change, Revision, Store};

use super::images::{EPOCH, protected, renewing, segment, shipment};
use super::rig::samples::spec;
use super::rig::{Agent, LIMIT, facts, played_host, wait, write};
use super::{agent, printed, said, understudy};

fn node() -> NodeId {
    "alice/exec-1".parse().unwrap()
}

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

const fn id(sequence: u64) -> CheckpointId {
    CheckpointId { epoch: EPOCH, sequence }
}

/// A checkpoint lies on the agent's own host.
fn receive(agent: &Agent, sequence: u64) {
    let bytes = segment(&node(), id(sequence), None);
    let description = shipment("alice/exec-1", EPOCH, sequence).description;
    agent.parts.images.receive(&node(), id(sequence), &mut &bytes[..], description).unwrap();
}

/// A host's agent that says this, or takes a question and says nothing.
async fn peer(says: Option<Kept>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move || async move {
        match says {
            Some(kept) => Json(vec![kept]),
            None => std::future::pending().await,
        }
    };
    let router = Router::new().route("/v1/copies", post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// A node whose primary was on `host9`, which is lost. `host2`, which says this of its checkpoints, and the agent's own host
/// are its backups'.
async fn lost(agent: &Agent, says: Option<Kept>) -> JoinHandle<()> {
    let store = &*agent.parts.store;
    let there = HostFacts { api: peer(says).await.to_string(), ..facts(&[]) };
    played_host(store, "host2", there).await;
    let renewal = renewing(agent.parts.store.clone());
    let at = UnixMillis(1);
    let expired = LeaseExpiry { reason: "silent".to_owned(), silent_since: at, at };
    let lease = LeaseRecord::open(BootId("b".to_owned()), Default::default(), 1);
    write(store, &Key::Lease(host("host9")), &LeaseRecord { expired: Some(expired), ..lease }).await;
    let member = |name, instance, origin| Member { host: host(name), lease: 1, instance, origin, place: 0 };
    let mut record = NodeRecord::new(spec(), "token".to_owned());
    record.spec.protected = true;
    (record.epoch, record.incarnation) = (EPOCH, EPOCH);
    let instance = shipment("alice/exec-1", EPOCH, 1).description.instance;
    record.primary = Some(member("host9", Some(instance), Origin::Created));
    record.backups = ["host2", "host1"].map(|name| member(name, None, Origin::Reserved)).to_vec();
    write(store, &Key::Node(node()), &record).await;
    renewal
}

/// The host and the checkpoint of the first successor, whatever becomes of it: what lies on the agent's own host is no image of
/// a guest.
async fn successor(agent: &Agent) -> (HostId, Option<CheckpointId>) {
    let key = Key::Node(node()).to_string();
    let mut watch = agent.parts.store.watch(&key, Revision(0)).await.unwrap();
    loop {
        let batch = tokio::time::timeout(LIMIT, watch.next()).await.unwrap().unwrap();
        for change in &batch.changes {
            let Change::Put(entry) = change else { continue };
            let record: NodeRecord = decode(&key, &entry.value).unwrap();
            if let Some(primary) = record.primary.filter(|_| record.epoch > EPOCH) {
                return (primary.host, primary.origin.restored());
            }
        }
    }
}

fn copy(sequence: u64) -> Checkpoint {
    let description = shipment("alice/exec-1", EPOCH, sequence).description;
    let (taken, instance) = (description.taken, description.instance);
    Checkpoint { id: id(sequence), taken, instance, pause_ms: 1 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_checkpoint_is_restored_that_any_host_says_it_has() {
    let there = Kept { complete: vec![copy(1), copy(7)], arriving: false, ..Kept::default() };
    for (here, expected) in [(6, ("host2", 7)), (8, ("host1", 8))] {
        let (_home, agent) = agent("").await;
        receive(&agent, here);
        let renewal = lost(&agent, Some(there.clone())).await;
        assert_eq!(successor(&agent).await, (host(expected.0), Some(id(expected.1))));
        renewal.abort();
    }
}

/// It holds the failover up for as long as a host may take for its answer, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_does_not_answer_is_decided_without() {
    let (_home, agent) = agent("").await;
    receive(&agent, 6);
    let begun = Instant::now();
    let renewal = lost(&agent, None).await;
    assert_eq!(successor(&agent).await, (host("host1"), Some(id(6))));
    assert!(begun.elapsed() >= ASK, "{:?}", begun.elapsed());
    renewal.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_are_listed_as_the_hosts_say_that_may_have_any_and_why_others_do_not() {
    let (_home, agent) = agent("").await;
    let store = &*agent.parts.store;
    protected(store, &node()).await;
    let renewal = renewing(agent.parts.store.clone());
    let there = Kept { complete: vec![copy(7)], arriving: true, ..Kept::default() };
    for (name, says) in [("host3", Some(there)), ("host4", None)] {
        let there = HostFacts { api: peer(says).await.to_string(), ..facts(&[]) };
        played_host(store, name, there).await;
    }
    let mut record: NodeRecord = read(store, &Key::Node(node())).await;
    record.keepers = ["host3", "host4", "host8"].map(host).into();
    write(store, &Key::Node(node()), &record).await;
    for sequence in [8, 9] {
        receive(&agent, sequence);
    }
    wait("it knows who keeps any", || async {
        let seen = agent.snapshots.borrow();
        let known = seen.view.nodes.get(&node())?;
        let hosts = ["host3", "host4"].map(host).iter().all(|host| seen.view.current_facts(host).is_some());
        (hosts && known.value.keepers.len() == 3).then_some(())
    })
    .await;
    let begun = Instant::now();
    let output = understudy(&agent, &["checkpoint", "list", "alice/exec-1"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(begun.elapsed() < 3 * ASK, "all are asked side by side");
    let text = printed(&output);
    let lines: Vec<String> = text.lines().map(squeezed).collect();
    for (line, expected) in lines.iter().zip([
        "NODE HOST CHECKPOINT AGE PAUSE",
        "alice/exec-1 host1 3.9 ",
        "alice/exec-1 host1 3.8 ",
        "alice/exec-1 host3 3.7 ",
        " another one is on its way there",
        "alice/exec-1 host4 - - -",
        " host4 did not answer within 1s: see whether its agent is at work",
        "alice/exec-1 host8 - - -",
        " host8 is no host of this cluster",
    ]) {
        assert!(line.starts_with(expected), "{expected}: {text}");
    }
    assert_eq!(lines.len(), 9, "{text}");
    let output = understudy(&agent, &["--json", "checkpoint", "list", "alice/exec-1"]).await;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let newest = &json["hosts"][0]["checkpoints"][1];
    assert_eq!((&newest["id"]["sequence"], &newest["taken"]), (&9.into(), &1.into()), "{json}");
    let unknown = understudy(&agent, &["checkpoint", "list", "bob/exec-1"]).await;
    assert_eq!(unknown.status.code(), Some(6));
    assert!(said(&unknown).contains("understudy terminal list"), "{}", said(&unknown));
    renewal.abort();
}

async fn read<T: serde::de::DeserializeOwned>(store: &dyn Store, key: &Key) -> T {
    let entry = store.get(&key.to_string()).await.unwrap().unwrap();
    decode(&entry.key, &entry.value).unwrap()
}

/// A line with every run of spaces as one.
fn squeezed(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    let indent = if line.starts_with(' ') { " " } else { "" };
    format!("{indent}{}", words.join(" "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_on_this_machine_hears_what_lies_here_also_of_a_node_that_nobody_knows() {
    let (_home, agent) = agent("").await;
    receive(&agent, 6);
    let (own, address) = (&agent.parts.config.host, agent.parts.config.peer_address());
    let peer = Peer { host: own, address: &address, security: &Security::Loopback };
    let asked = [node(), "bob/exec-1".parse().unwrap()].map(|node| Asked { node, closing: None });
    let kept = ask_copies(peer, &asked, ASK).await.unwrap();
    assert_eq!(kept, [Kept { complete: vec![copy(6)], ..Kept::default() }, Kept::default()]);
    // Where a failover is decided by it nothing more of the dead primary is taken.
    let closing = Some(Closing { instance: copy(6).instance, epoch: EPOCH });
    let kept = ask_copies(peer, &[Asked { node: node(), closing }], ASK).await.unwrap();
    assert_eq!(kept[0].complete, [copy(6)]);
    let description = shipment("alice/exec-1", EPOCH, 7).description;
    let late =
        agent.parts.images.receive(&node(), id(7), &mut &segment(&node(), id(7), None)[..], description);
    assert!(late.unwrap_err().to_string().contains("the primary that it is of is dead"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_of_each_backups_host_what_the_primarys_host_says_and_only_a_fresh_one_is_ready() {
    let (_home, agent) = agent("").await;
    let store = &*agent.parts.store;
    protected(store, &node()).await;
    let renewal = renewing(agent.parts.store.clone());
    let terminal = TerminalRecord {
        id: node().terminal().clone(),
        labels: Default::default(),
        screen: spec().screen,
        nodes: vec![node()],
        created: UnixMillis(1),
    };
    write(store, &Key::Terminal(terminal.id.clone()), &terminal).await;
    let key = Key::Facts(host("host2"));
    for (known, incarnation, word) in [
        (Some(Age::Fresh), EPOCH, "fresh"),
        (Some(Age::Behind), EPOCH, "behind"),
        (Some(Age::Fresh), Epoch(EPOCH.0 - 1), "none"),
        (None, EPOCH, "none"),
    ] {
        let mut facts: HostFacts = read(store, &key).await;
        let hosts = known.map(|age| (host("host1"), Newest { place: 0, age })).into_iter().collect();
        facts.protection = [(node(), Protection { incarnation, hosts, bytes: 1 << 20 })].into();
        write(store, &key, &facts).await;
        let seen = wait(word, || async {
            let output = understudy(&agent, &["--json", "terminal", "show", "alice"]).await;
            let shown: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            let node = shown["nodes"][0].clone();
            (node["protection"]["host1"] == word).then_some(node)
        })
        .await;
        assert_eq!(seen["backups"][0]["ready"], word == "fresh", "{seen}");
        let text = printed(&understudy(&agent, &["terminal", "show", "alice"]).await);
        assert!(text.contains(&format!("checkpoints: {word} on host1\n")), "{text}");
    }
    renewal.abort();
}
