//! A change that was refused for a host is proposed again when that host is another one, without anybody touching a file.

use understudy::keys::Key;
use understudy_core::model::ids::BootId;
use understudy_core::model::records::LeaseRecord;
use understudy_core::sets::SetFacts;
use understudy_store::MemoryStore;

use crate::rig::{active, candidate, guest, wait, write};
use crate::{generation, refused_elsewhere};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_could_not_load_is_proposed_again_when_it_comes_back() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let (agent, host, mut other, said) = refused_elsewhere(home.path(), &store).await;
    assert_eq!((said.generation, said.refusers), (2, [(host.clone(), Some(1))].into()));
    wait("the proposer says so, and that it goes on", || async {
        let status = agent.status().await;
        status.faults.iter().any(|fault| fault.contains("no room") && fault.contains("again")).then_some(())
    })
    .await;
    assert!(candidate(&store).await.is_none());

    // Started anew, with room.
    other.policies = SetFacts { ready: [1, 3].into(), ..SetFacts::default() };
    other.lease = 2;
    let lease = LeaseRecord::open(BootId("c".to_owned()), Default::default(), 2);
    write(&store, &Key::Lease(host.clone()), &lease).await;
    write(&store, &Key::Facts(host), &other).await;
    generation(&store, 3).await;
    let digest = understudy_policy::Digest::of(&guest("", "2")).to_string();
    assert_eq!(active(&store).await.unwrap().components["p"], digest);
    let status = wait("nothing is wrong any more", || async {
        Some(agent.status().await).filter(|status| status.faults.is_empty() && status.generation == 3)
    })
    .await;
    assert_eq!((status.refused, status.differs), (None, Vec::new()));
}
