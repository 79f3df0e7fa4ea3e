//! Peers that show certificates: what a host may bring and fetch.

use std::path::Path;
use std::sync::Arc;

use understudy::config::PeerFiles;
use understudy::peers::identity::Identity;
use understudy::peers::{
    AskError, Asked, Peer, Security, SendError, ask_copies, fetch_component, send_checkpoint,
};
use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::records::CheckpointId;
use understudy_core::model::units::MiB;
use understudy_policy::Digest;

use super::images::{EPOCH, IMAGE, protected, renewing, segment, shipment};
use super::rig::certificates::Authority;
use super::rig::{Agent, facts, peers, played_host, wait};
use super::{MemoryStore, leading};

/// What this host would show.
fn shown(authority: &Authority, folder: &Path, host: &str) -> Security {
    let [ca, certificate, key] = authority.issue(folder, host);
    let identity = Identity::new(host.parse().unwrap(), PeerFiles { authority: ca, certificate, key });
    identity.look().unwrap();
    Security::Certificates(Arc::new(identity))
}

/// The agent is a backup's; the state comes from the host of the primary, and no other host of the cluster may send some
/// in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_taken_from_the_primarys_host_and_any_host_of_the_cluster_hears_of_it_and_gets_components()
 {
    let (home, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let more = peers(&authority.issue(home.path(), "host1"));
    let agent = Agent::start(home.path(), "host1", &MemoryStore::new(), &more).await;
    leading(&agent).await;
    let store = agent.parts.store.clone();
    let node: NodeId = "alice/exec-1".parse().unwrap();
    protected(&*store, &node).await;
    played_host(&*store, "host3", facts(&[])).await;
    let renewal = renewing(store);
    let known = wait("it knows node and hosts", || async {
        let seen = agent.snapshots.borrow();
        let hosts = ["host2", "host3"].map(|host| host.parse::<HostId>().unwrap());
        let known = seen.view.nodes.get(&node).map(|node| node.revision);
        known.filter(|_| hosts.iter().all(|host| seen.view.hosts.contains_key(host)))
    })
    .await;
    let path = home.path().join("image");
    std::fs::write(&path, IMAGE).unwrap();
    let (host, address) = (&agent.parts.config.host, agent.parts.config.peer_address());
    let [primary, other, stranger] =
        ["host2", "host3", "mallory"].map(|name| shown(&authority, home.path(), name));
    let send = async |security: &Security| {
        let peer = Peer { host, address: &address, security };
        send_checkpoint(peer, &path, &shipment("alice/exec-1", EPOCH, 1), known, |_| {}).await
    };
    for (security, names) in [(&other, "names host3"), (&stranger, "names no host of this cluster")] {
        let refused = send(security).await.unwrap_err();
        assert!(matches!(refused, SendError::Refused { .. }), "{refused:?}");
        let said = refused.to_string();
        let words = ["503", "the primary of alice/exec-1 is on host2, but the sender's certificate", names];
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    assert_eq!(agent.parts.images.nodes(), Vec::<NodeId>::new(), "nothing is remembered of them");
    let id = CheckpointId { epoch: EPOCH, sequence: 1 };
    std::fs::write(&path, segment(&node, id, None)).unwrap();
    send(&primary).await.unwrap();
    assert_eq!(agent.parts.images.complete(&node), [id]);

    for (security, said) in [(&other, "404"), (&stranger, "403")] {
        let peer = Peer { host, address: &address, security };
        let error = fetch_component(peer, &Digest::of(b"none"), MiB(1)).await.unwrap_err();
        assert!(error.contains(said), "{error}");
    }
    let asked = [Asked { node: node.clone(), closing: None }];
    let ask = async |security: &Security| {
        ask_copies(Peer { host, address: &address, security }, &asked, understudy_core::bounds::ASK).await
    };
    let kept = ask(&other).await.unwrap();
    assert_eq!(kept[0].complete.iter().map(|copy| copy.id).collect::<Vec<_>>(), [id]);
    let refused = ask(&stranger).await.unwrap_err();
    let names_nobody = |said: &str| said.contains("your certificate names no host of this cluster");
    assert!(
        matches!(&refused, AskError::Refused { status, said } if status.as_u16() == 403 && names_nobody(said)),
        "{refused:?}"
    );
    renewal.abort();
}
