//! Policies that are fetched over TLS.

use super::rig::certificates::Authority;
use super::rig::{Agent, guest, peers, wait};
use super::{MemoryStore, SetFault, generation};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_fetches_from_one_with_a_certificate_of_its_authority_and_from_no_other() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let (authority, folder) = (Authority::new(), home.path());
    let first = Agent::start(folder, "host1", &store, &peers(&authority.issue(folder, "host1"))).await;
    first.put("p.wasm", &guest("", "1"));
    generation(&store, 1).await;

    let elsewhere = folder.join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let theirs = Authority::new().issue(&elsewhere, "host3");
    let stranger = Agent::start(folder, "host3", &store, &peers(&theirs)).await;
    let fault = wait("it says why it cannot fetch", || async {
        let snapshot = stranger.snapshots.borrow().clone();
        snapshot.facts.as_ref()?.policies.faults.get(&1).cloned()
    })
    .await;
    let SetFault::Missing(why) = fault else { panic!("{fault:?}") };
    assert!(why.contains("host1: no secure connection") && why.contains("peers.ca"), "{why}");

    let second = Agent::start(folder, "host2", &store, &peers(&authority.issue(folder, "host2"))).await;
    wait("the second host has it", || async {
        let status = second.status().await;
        (status.ready && status.generation == 1).then_some(())
    })
    .await;
}
