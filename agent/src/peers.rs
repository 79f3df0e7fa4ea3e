//! Owns the talk between agents: a checkpoint goes to a backup's host, a policy comes from whoever has it, and a host says which
//! checkpoints of a node it has.
//!
//! Promises: it goes to the host that is meant and to nobody else: over TLS 1.3 where both ends have shown certificates, or
//! over loopback. An answer of success means that the peer has the image durably; a component is what its digest says and
//! no larger than a policy may be. How long an image may take is its sender's to say. Must not do: choose peers.

pub mod connection;
mod copies;
pub mod identity;
pub mod listener;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use futures_util::Stream;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::Frame;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use understudy_checkpoint::Description;
use understudy_core::model::ids::NodeId;
use understudy_core::model::records::CheckpointId;
use understudy_core::model::units::MiB;

use crate::exit::chain;
use connection::Connection;
pub use connection::{Peer, Security, SecurityError};
pub use copies::{AskError, Asked, Closing, ask_copies};

/// Header that carries the [`Shipment`] as JSON.
pub const SHIPMENT_HEADER: &str = "x-understudy-shipment";
/// Header that carries the revision of the node's record that the checkpoint was decided from.
pub const REVISION_HEADER: &str = "x-understudy-revision";
/// Reaching a peer on the same network, handshake included.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(3);
/// Fetching one component: a few MiB.
const FETCH: std::time::Duration = std::time::Duration::from_secs(60);
/// How long a peer is waited for that neither bids the image come nor refuses it (RFC 9110, 10.1.1): more than it takes to
/// look for the node.
const BIDDEN: std::time::Duration = std::time::Duration::from_secs(5);
/// Bytes read from the image at a time.
const CHUNK: usize = 1 << 20;
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What is said of a checkpoint before its bytes come: a segment of pages, which says itself what it adds to and where it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shipment {
    /// The node.
    pub node: NodeId,
    /// Which of its checkpoints.
    pub id: CheckpointId,
    /// What state it is.
    pub description: Description,
}

/// Why there is no connection to a peer.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// Nothing answers there.
    #[error("cannot reach {peer}: see whether its agent runs, and the network between the two")]
    Connect {
        /// Its address.
        peer: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The peer does not answer.
    #[error("{peer} does not answer: see whether its agent runs, and the network between the two")]
    Silent {
        /// Its address.
        peer: String,
    },
    /// Somebody answers, but the connection is not secure.
    #[error("no secure connection to {peer}")]
    Security {
        /// Its address.
        peer: String,
        /// Why.
        #[source]
        source: SecurityError,
    },
}

/// Why an image was not sent. Nothing may be assumed of the peer then.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The image cannot be read here.
    #[error("cannot read {}: see the room and the rights of that folder", .0.display())]
    Image(PathBuf, #[source] io::Error),
    /// There is no connection to the peer.
    #[error(transparent)]
    Reach(#[from] ReachError),
    /// What is asked makes no request.
    #[error("cannot ask for it: see peers.advertise of the peer's configuration")]
    Ask(#[source] hyper::http::Error),
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] hyper::Error),
    /// The peer does not have what it adds to: it is to be sent the whole.
    #[error("does not have what it adds to: {said}")]
    Lacks {
        /// What it has.
        said: String,
    },
    /// The peer refused it.
    #[error("refused the image ({status}): {said}")]
    Refused {
        /// How.
        status: StatusCode,
        /// Why.
        said: String,
    },
}

/// Sends one image to the agent of `peer`, as it was decided from this revision of its node's record, and
/// tells how much of it was accepted.
///
/// # Errors
/// What did not work.
pub async fn send_checkpoint(
    peer: Peer<'_>,
    image: &Path,
    shipment: &Shipment,
    revision: u64,
    accepted: impl FnMut(u64) + Send + 'static,
) -> Result<(), SendError> {
    let unreadable = |error| SendError::Image(image.to_owned(), error);
    let file = tokio::fs::File::open(image).await.map_err(unreadable)?;
    let stream = reach(peer).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(SendError::Broken)?;
    // Ends with this future, however that ends: an image that nobody waits for any more is not sent on.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    // What the peer does not want is not sent: while it reads nothing, its refusal would be lost in a broken connection.
    let (asked, mut wanted) = watch::channel(false);
    let bidden = async move { drop(timeout(BIDDEN, wanted.wait_for(|wanted| *wanted)).await) };
    let (failed, why) = (Arc::new(Mutex::new(None)), image.to_owned());
    let body = chunks(file, bidden, accepted, failed.clone());
    let header = serde_json::to_string(shipment).unwrap_or_default();
    let mut request = Request::builder()
        .method(Method::PUT)
        .uri("/v1/checkpoints")
        .header(hyper::header::HOST, peer.address)
        .header(hyper::header::EXPECT, "100-continue")
        .header(SHIPMENT_HEADER, header)
        .header(REVISION_HEADER, revision)
        .body(StreamBody::new(body))
        .map_err(SendError::Ask)?;
    hyper::ext::on_informational(&mut request, move |_| {
        asked.send_replace(true);
    });
    let response = sender.send_request(request).await.map_err(|error| {
        let unread = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        unread.map_or(SendError::Broken(error), |unread| SendError::Image(why, unread))
    })?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    if status == StatusCode::NO_CONTENT {
        return Ok(());
    }
    let said =
        answer.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
    Err(match status {
        StatusCode::PRECONDITION_FAILED => SendError::Lacks { said },
        status => SendError::Refused { status, said },
    })
}

/// The image's bytes, once they are bidden. What keeps them from being read is left in `failed`.
fn chunks<B: Future<Output = ()> + Send, A: FnMut(u64) + Send>(
    file: tokio::fs::File,
    bidden: B,
    accepted: A,
    failed: Arc<Mutex<Option<io::Error>>>,
) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send {
    let start = (file, Some(bidden), accepted, 0_u64);
    let next = move |(mut file, bidden, mut accepted, bytes): (tokio::fs::File, Option<B>, A, u64)| {
        let failed = failed.clone();
        async move {
            if let Some(bidden) = bidden {
                bidden.await;
            } else {
                // The one before has been taken.
                accepted(bytes);
            }
            let mut chunk = Vec::with_capacity(CHUNK);
            if let Err(error) = (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await {
                let reported = io::Error::new(error.kind(), error.to_string());
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                return Err(reported);
            }
            let bytes = bytes.saturating_add(chunk.len().try_into().unwrap_or(u64::MAX));
            let rest = (file, None, accepted, bytes);
            Ok(if chunk.is_empty() { None } else { Some((Frame::data(Bytes::from(chunk)), rest)) })
        }
    };
    futures_util::stream::try_unfold(start, next)
}

async fn reach(peer: Peer<'_>) -> Result<Connection, ReachError> {
    let address = || peer.address.to_owned();
    let reached = timeout(CONNECT, async {
        let stream = TcpStream::connect(peer.address).await;
        let stream = stream.map_err(|source| ReachError::Connect { peer: address(), source })?;
        let secured = Connection::over(stream, &peer).await;
        secured.map_err(|source| ReachError::Security { peer: address(), source })
    });
    reached.await.unwrap_or_else(|_| Err(ReachError::Silent { peer: address() }))
}

/// Fetches a component from the agent of `peer`.
///
/// # Errors
/// A text that says what did not work: not reached, not there, larger than `limit`, or not what the digest says.
pub async fn fetch_component(
    peer: Peer<'_>,
    digest: &understudy_policy::Digest,
    limit: MiB,
) -> Result<Bytes, String> {
    match timeout(FETCH, get_component(peer, digest, limit)).await {
        Ok(fetched) => fetched,
        Err(_) => Err(format!("did not send it within {FETCH:?}")),
    }
}

async fn get_component(
    peer: Peer<'_>,
    digest: &understudy_policy::Digest,
    limit: MiB,
) -> Result<Bytes, String> {
    let stream = reach(peer).await.map_err(|error| chain(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::GET)
        .uri(format!("/v1/policies/{digest}"))
        .header(hyper::header::HOST, peer.address)
        .body(http_body_util::Empty::<Bytes>::new())
        .map_err(|error| chain(&error))?;
    let response = sender.send_request(request).await.map_err(|error| chain(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), usize::try_from(limit.bytes()).unwrap_or(usize::MAX));
    let body = body.collect().await;
    connection.abort();
    if status != StatusCode::OK {
        return Err(format!("does not have it ({status})"));
    }
    let bytes = body.map_err(|error| format!("cannot be taken: {error}"))?.to_bytes();
    if understudy_policy::Digest::of(&bytes) != *digest {
        return Err("sent something else than its digest says".to_owned());
    }
    Ok(bytes)
}
