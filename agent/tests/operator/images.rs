//! A peer that brings an image, and a stray one.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use understudy::keys::Key;
use understudy::peers::{Peer, Security, SendError, Shipment, send_checkpoint};
use understudy_checkpoint::Description;
use understudy_checkpoint::pages::{Blocks, Head, PageDigest, PageKey, SegmentWriter};
use understudy_checkpoint::stream::{Block, PAGE_BYTES};
use understudy_core::model::ids::{Epoch, InstanceId, NodeId};
use understudy_core::model::records::{CheckpointId, Member, NodeRecord, Origin, Phase, RenewalRecord};
use understudy_core::model::units::{MiB, UnixMillis};
use understudy_store::Store;

use super::agent;
use super::rig::samples::{fact, spec};
use super::rig::{facts, played_host, wait, write};

/// More than a connection takes in before anybody reads: what is refused is refused before it is sent.
pub(super) static IMAGE: &[u8] = &[7; 32 << 20];
pub(super) const EPOCH: Epoch = Epoch(3);

fn instance() -> InstanceId {
    InstanceId::from_uuid(uuid::Uuid::from_u128(7))
}

/// A protected node at work on `host2`, whose state `host1` keeps.
pub(super) async fn protected(store: &dyn Store, id: &NodeId) {
    let member = |host: &str, instance, origin| Member {
        host: host.parse().unwrap(),
        lease: 1,
        instance,
        origin,
        place: 0,
    };
    let mut record = NodeRecord::new(spec(), "token".to_owned());
    record.spec.protected = true;
    (record.epoch, record.incarnation) = (EPOCH, EPOCH);
    record.primary = Some(member("host2", Some(instance()), Origin::Created));
    record.backups = vec![member("host1", None, Origin::Reserved)];
    let mut there = facts(&[]);
    there.instances.insert(instance(), fact(Phase::Ready, Some(id), EPOCH));
    played_host(store, "host2", there).await;
    write(store, &Key::Node(id.clone()), &record).await;
}

/// What is said of [`IMAGE`] as a checkpoint of this node.
pub(super) fn shipment(node: &str, epoch: Epoch, sequence: u64) -> Shipment {
    let description = Description {
        instance: instance(),
        taken: UnixMillis(1),
        pause_ms: 1,
        memory: MiB(512),
        domain: Default::default(),
    };
    Shipment { node: node.parse().unwrap(), id: CheckpointId { epoch, sequence }, description }
}

/// Renews the played host's lease, so that it is not taken for lost.
pub(super) fn renewing(store: Arc<dyn Store>) -> JoinHandle<()> {
    tokio::spawn(async move {
        for at in 1.. {
            let renewal = RenewalRecord { number: 1, at: UnixMillis(at) };
            write(&*store, &Key::Renewal("host2".parse().unwrap()), &renewal).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_taken_of_a_node_whose_backup_is_here_in_its_epoch_and_no_stray_one_keeps_it_out() {
    let (home, agent) = agent("").await;
    let store = agent.parts.store.clone();
    let node: NodeId = "alice/exec-1".parse().unwrap();
    protected(&*store, &node).await;
    let renewal = renewing(store);
    wait("it knows the node", || async {
        agent.snapshots.borrow().view.nodes.contains_key(&node).then_some(())
    })
    .await;
    let path = home.path().join("image");
    std::fs::write(&path, IMAGE).unwrap();
    let known = agent.snapshots.borrow().view.nodes[&node].revision;
    let (host, address) = (&agent.parts.config.host, agent.parts.config.peer_address());
    let peer = Peer { host, address: &address, security: &Security::Loopback };
    let send = async |node: &str, epoch: Epoch, sequence: u64, revision: u64| {
        send_checkpoint(peer, &path, &shipment(node, epoch, sequence), revision, |_| {}).await
    };
    let (unknown, ahead, behind, before, after) = tokio::join!(
        send("mallory/exec-1", Epoch(1), 1, known),
        send("alice/exec-1", Epoch(1_000_000), 1, known),
        send("alice/exec-1", Epoch(2), 9, known),
        send("alice/exec-1", EPOCH, 9, known - 1),
        send("alice/exec-1", EPOCH, 9, known + 1_000),
    );
    for (sent, status, why) in [
        (unknown, "503", "host1 knows no node mallory/exec-1"),
        (ahead, "503", "taken in epoch 1000000, host1 knows alice/exec-1 in epoch 3"),
        (behind, "409", "taken in epoch 2, alice/exec-1 is in epoch 3"),
        (before, "409", "alice/exec-1 has changed"),
        (after, "503", "decided from revision"),
    ] {
        let refused = sent.unwrap_err();
        assert!(matches!(refused, SendError::Refused { .. }), "{refused:?}");
        let said = refused.to_string();
        assert!(said.contains(status) && said.contains(why), "{said}");
    }
    assert_eq!(agent.parts.images.nodes(), Vec::<NodeId>::new(), "nothing is remembered of them");
    let [first, second, ninth] = [1, 2, 9].map(|sequence| CheckpointId { epoch: EPOCH, sequence });
    let next = async |id: CheckpointId, base: Option<CheckpointId>| {
        std::fs::write(&path, segment(&node, id, base)).unwrap();
        send("alice/exec-1", EPOCH, id.sequence, known).await
    };
    next(first, None).await.unwrap();
    next(second, Some(first)).await.unwrap();
    // It adds to what is not here: nothing of it stays, and the sender is told in so many words.
    let lacks = next(CheckpointId { sequence: 10, ..ninth }, Some(ninth)).await.unwrap_err();
    assert!(
        matches!(&lacks, SendError::Lacks { said } if said.contains("3.9") && said.contains("3.2")),
        "{lacks}"
    );
    let damaged = send("alice/exec-1", EPOCH, 11, known).await.unwrap_err();
    assert!(matches!(&damaged, SendError::Refused { said, .. } if said.contains("3.10")), "{damaged}");
    assert_eq!(agent.parts.images.complete(&node), [first, second]);
    renewal.abort();
}

/// A checkpoint of a guest of one page, which each changes.
pub(super) fn segment(node: &NodeId, id: CheckpointId, base: Option<CheckpointId>) -> Vec<u8> {
    let blocks = Blocks::new(vec![Block { name: "pc.ram".to_owned(), bytes: PAGE_BYTES as u64 }]).unwrap();
    let mut page = [7; PAGE_BYTES];
    page[..8].copy_from_slice(&id.sequence.to_le_bytes());
    let (key, digest) = (PageKey { block: 0, page: 0 }, PageDigest::of(&page));
    let root = blocks.root([digest].into_iter());
    let mut writer = SegmentWriter::new(&Head { node: node.clone(), id, base, blocks });
    writer.page(key, digest, &page).unwrap();
    let mut bytes = writer.take();
    bytes.extend(writer.end(root).unwrap());
    bytes
}
