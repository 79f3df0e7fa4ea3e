//! Owns the receiving end of a checkpoint.
//!
//! Promises: success is answered only once the checkpoint is durable; nothing is read of one that this host has no use for, or
//! that comes from another host than its node's primary is on; whoever adds to what is not here is told so (412) and sends
//! the whole; one that stands still ends. Must not do: take one that the store of images refuses (an older epoch, a wrong
//! digest).

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode};
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use understudy_core::bounds::COPY_STALL;
use understudy_core::host::{Offer, SentBy, offered};
use understudy_core::model::ids::{Epoch, HostId, InstanceId, NodeId};

use super::{ApiState, Asking, Refusal};
use crate::exit::chain;
use crate::peers::listener::Caller;
use crate::peers::{REVISION_HEADER, SHIPMENT_HEADER, Shipment};
use crate::runtime::{Snapshot, keep_ready};

/// Chunks that may wait for the disk.
const AHEAD: usize = 8;

/// A sender that says nothing for so long has given it up: twice what its own agent waits for.
const SILENCE: Duration = COPY_STALL.saturating_mul(2);

/// How far this host's store cache may be behind the sender's: a few milliseconds, unless it is busy.
const BEHIND: Duration = Duration::from_secs(2);

/// Whether `me` takes an image of this epoch and revision from this peer, once it knows. One that it knows nothing of after [`BEHIND`] may be sent
/// again: the sender takes the next state then, as after any attempt that failed.
async fn wanted(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    me: &HostId,
    peer: Option<&Caller>,
    node: &NodeId,
    decided: (Epoch, Option<u64>),
    instance: InstanceId,
) -> Result<(), Refusal> {
    let mut offer = Offer::NotYet(format!("{me} has not read the store yet"));
    let decided = snapshots.wait_for(|seen| {
        if seen.synced {
            let named = peer.map(|peer| peer.named_of(seen.view.hosts.keys()));
            let sender = named.as_ref().map_or(SentBy::Local, SentBy::Certified);
            offer = offered(&seen.view, me, sender, node, decided, instance);
        }
        !matches!(offer, Offer::NotYet(_))
    });
    // Whether it was decided, time is up or the agent ends: what was known last is the answer.
    drop(timeout(BEHIND, decided).await);
    match offer {
        Offer::Taken => Ok(()),
        Offer::NotYet(why) => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why)),
        Offer::Over(why) => Err(Refusal::new(StatusCode::CONFLICT, why)),
    }
}

/// The body's chunks as a blocking reader. A body that broke off is an error, never an end.
struct Chunks {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let taken = self.current.split_to(buffer.len().min(self.current.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

pub(super) async fn receive(
    State(state): State<ApiState>,
    peer: Asking,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let bad = |text: String| Refusal::new(StatusCode::BAD_REQUEST, text);
    let header = headers.get(SHIPMENT_HEADER).and_then(|value| value.to_str().ok());
    let header = header.ok_or_else(|| bad(format!("the header {SHIPMENT_HEADER} is missing")))?;
    let shipment: Shipment =
        serde_json::from_str(header).map_err(|error| bad(format!("{SHIPMENT_HEADER}: {error}")))?;
    let revision = headers.get(REVISION_HEADER).map(|value| {
        let revision = value.to_str().ok().and_then(|text| text.parse().ok());
        revision.ok_or_else(|| bad(format!("{REVISION_HEADER} is no revision")))
    });
    let decided = (shipment.id.epoch, revision.transpose()?);
    let me = &state.parts.config.host;
    let peer = peer.map(|Extension(ConnectInfo(peer))| peer);
    wanted(
        state.snapshots.clone(),
        me,
        peer.as_ref(),
        &shipment.node,
        decided,
        shipment.description.instance,
    )
    .await?;
    let most = state.snapshots.borrow().view.nodes.get(&shipment.node).map(|known| known.value.spec.memory);
    let memory = shipment.description.memory;
    if let Some(most) = most.filter(|most| memory > *most) {
        return Err(bad(format!("it is of a guest of {memory}, {} has {most}", shipment.node)));
    }
    let (sender, receiver) = mpsc::channel(AHEAD);
    let node = shipment.node.clone();
    let images = state.parts.images.clone();
    let writer = tokio::task::spawn_blocking(move || {
        let Shipment { node, id, description } = shipment;
        let mut chunks = Chunks { receiver, current: Bytes::new() };
        images.receive(&node, id, &mut chunks, description)
    });
    let mut stream = body.into_data_stream();
    let silent = || io::Error::other(format!("nothing of it came for {SILENCE:?}"));
    while let Some(chunk) =
        timeout(SILENCE, stream.next()).await.unwrap_or_else(|_| Some(Err(axum::Error::new(silent()))))
    {
        if sender.send(chunk.map_err(io::Error::other)).await.is_err() {
            // The writer has given up; it says why.
            break;
        }
    }
    drop(sender);
    match writer.await {
        Ok(Ok(_)) => {
            keep_ready(&state.parts, &state.events, vec![node]);
            Ok(StatusCode::NO_CONTENT)
        }
        Ok(Err(error)) if error.lacks_base() => {
            // It may be damaged: that is told.
            keep_ready(&state.parts, &state.events, Vec::new());
            Err(Refusal::new(StatusCode::PRECONDITION_FAILED, chain(&error)))
        }
        Ok(Err(error)) => Err(Refusal::new(StatusCode::CONFLICT, chain(&error))),
        Err(error) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use understudy_core::model::records::{Labels, Member, NodeRecord, NodeSpec, Origin, Screen};
    use understudy_core::model::units::{MiB, Vcpus};
    use understudy_core::model::view::Versioned;

    use super::*;

    fn primary() -> InstanceId {
        "11111111-2222-4333-8444-000000000001".parse().unwrap()
    }

    /// The cluster with a protected node in this epoch, of which `host2` keeps images.
    fn seen(epoch: Epoch) -> Arc<Snapshot> {
        let spec = NodeSpec {
            memory: MiB(128),
            vcpus: Vcpus(1),
            protected: true,
            environment: "desktop".to_owned(),
            applications: Vec::new(),
            labels: Labels::new(),
            environment_labels: Labels::new(),
            screen: Screen { width: 1280, height: 720 },
        };
        let host = "host2".parse().unwrap();
        let backups = vec![Member { host, lease: 1, instance: None, origin: Origin::Reserved, place: 0 }];
        let primary = Member {
            host: "host1".parse().unwrap(),
            lease: 1,
            instance: Some(primary()),
            origin: Origin::Created,
            place: 0,
        };
        let value =
            NodeRecord { epoch, primary: Some(primary), backups, ..NodeRecord::new(spec, String::new()) };
        let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
        snapshot.view.nodes.insert("alice/exec-1".parse().unwrap(), Versioned { value, revision: 1 });
        Arc::new(snapshot)
    }

    /// The sender acts on a record that the receiver's store cache does not show yet.
    #[tokio::test]
    async fn an_image_that_is_ahead_of_the_store_cache_is_waited_for_and_taken_when_the_record_comes() {
        let (me, node): (HostId, NodeId) = ("host2".parse().unwrap(), "alice/exec-1".parse().unwrap());
        let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let mut waiting =
            std::pin::pin!(wanted(snapshots.clone(), &me, None, &node, (Epoch(5), Some(1)), primary()));
        for behind in [None, Some(Epoch(4))] {
            if let Some(epoch) = behind {
                sender.send(seen(epoch)).unwrap();
            }
            let once =
                std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending()));
            assert!(once.await, "{behind:?}");
        }
        sender.send(seen(Epoch(5))).unwrap();
        assert!(waiting.await.is_ok());
        sender.send(seen(Epoch(6))).unwrap();
        let over = wanted(snapshots, &me, None, &node, (Epoch(5), None), primary()).await.unwrap_err();
        assert_eq!(over.status, StatusCode::CONFLICT);
    }
}
