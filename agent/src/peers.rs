//! Owns the talk between agents: a checkpoint goes to a backup's host, a policy comes from whoever has it.
//!
//! Promises: an answer of success means that the peer has the image durably; a component is what its digest says and no
//! larger than a policy may be. Must not do: choose peers.

use std::path::Path;

use axum::body::Bytes;
use futures_util::TryStreamExt;
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
use understudy_checkpoint::{Description, Digest};
use understudy_core::ids::NodeId;
use understudy_core::records::CheckpointId;
use understudy_core::units::MiB;

use crate::exit::chain;

/// Header that carries the [`Shipment`] as JSON.
pub const SHIPMENT_HEADER: &str = "x-understudy-shipment";
/// Reaching a peer on the same network.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(3);
/// Sending one image: a few hundred MiB at a tenth of a gigabit.
const SEND: std::time::Duration = std::time::Duration::from_secs(60);
/// How long a peer is waited for that neither bids the image come nor refuses it (RFC 9110, 10.1.1): more than it takes to
/// look for the node.
const BIDDEN: std::time::Duration = std::time::Duration::from_secs(5);
/// Bytes read from the image at a time.
const CHUNK: usize = 1 << 20;
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What is said of an image before its bytes come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shipment {
    /// The node.
    pub node: NodeId,
    /// Which of its checkpoints.
    pub id: CheckpointId,
    /// How many bytes come.
    pub bytes: u64,
    /// Their digest.
    pub digest: Digest,
    /// What state it is.
    pub description: Description,
}

/// Sends one image to the agent at `peer` (`host:port`).
///
/// # Errors
/// A text that says what did not work; nothing may be assumed of the peer then.
pub async fn send_checkpoint(peer: &str, image: &Path, shipment: &Shipment) -> Result<(), String> {
    match timeout(SEND, send(peer, image, shipment)).await {
        Ok(sent) => sent,
        Err(_) => Err(format!("did not take the image within {SEND:?}")),
    }
}

async fn send(peer: &str, image: &Path, shipment: &Shipment) -> Result<(), String> {
    let file = tokio::fs::File::open(image)
        .await
        .map_err(|error| format!("cannot read {}: {error}", image.display()))?;
    let stream = reach(peer).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
    // Ends with this future, however that ends: an image that nobody waits for any more is not sent on.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    // What the peer does not want is not sent: while it reads nothing, its refusal would be lost in a broken connection.
    let (asked, mut wanted) = watch::channel(false);
    let bidden = async move { drop(timeout(BIDDEN, wanted.wait_for(|wanted| *wanted)).await) };
    let chunks = futures_util::stream::try_unfold((file, Some(bidden)), |(mut file, bidden)| async move {
        if let Some(bidden) = bidden {
            bidden.await;
        }
        let mut chunk = Vec::with_capacity(CHUNK);
        (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await?;
        let rest = (file, None);
        Ok::<_, std::io::Error>(if chunk.is_empty() { None } else { Some((Bytes::from(chunk), rest)) })
    });
    let body = StreamBody::new(chunks.map_ok(Frame::data));
    let header = serde_json::to_string(shipment).map_err(|error| chain(&error))?;
    let mut request = Request::builder()
        .method(Method::PUT)
        .uri("/v1/checkpoints")
        .header(hyper::header::HOST, peer)
        .header(hyper::header::EXPECT, "100-continue")
        .header(SHIPMENT_HEADER, header)
        .body(body)
        .map_err(|error| chain(&error))?;
    hyper::ext::on_informational(&mut request, move |_| {
        asked.send_replace(true);
    });
    let response = sender.send_request(request).await.map_err(|error| chain(&error))?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    if status == StatusCode::NO_CONTENT {
        return Ok(());
    }
    let said =
        answer.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
    Err(format!("refused the image ({status}): {said}"))
}

async fn reach(peer: &str) -> Result<TcpStream, String> {
    timeout(CONNECT, TcpStream::connect(peer))
        .await
        .map_err(|_| format!("{peer} does not answer"))?
        .map_err(|error| format!("cannot reach {peer}: {error}"))
}

/// Fetches a component from the agent at `peer` (`host:port`).
///
/// # Errors
/// A text that says what did not work: not reached, not there, larger than `limit`, or not what the digest says.
pub async fn fetch_component(
    peer: &str,
    digest: &understudy_policy::Digest,
    limit: MiB,
) -> Result<Bytes, String> {
    match timeout(SEND, get_component(peer, digest, limit)).await {
        Ok(fetched) => fetched,
        Err(_) => Err(format!("did not send it within {SEND:?}")),
    }
}

async fn get_component(peer: &str, digest: &understudy_policy::Digest, limit: MiB) -> Result<Bytes, String> {
    let stream = reach(peer).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::GET)
        .uri(format!("/v1/policies/{digest}"))
        .header(hyper::header::HOST, peer)
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
