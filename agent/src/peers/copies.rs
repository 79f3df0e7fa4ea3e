//! Owns the question to a host which checkpoints it has of some nodes.
//!
//! Promises: it is given up after its limit, whatever the peer does, and no more is read of an answer than one may be long. Must
//! not do: say what follows from an answer, or from none.

use std::error::Error;
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::timeout;
use understudy_core::leader::AskCopies;
use understudy_core::model::ids::{Epoch, HostId, InstanceId, NodeId};
use understudy_core::model::records::Kept;

use super::{Peer, ReachError, reach};

/// The longest answer that is read: 1 KiB for each of 4,000 nodes.
pub(super) const BYTES_MAX: usize = 4 << 20;

/// Why a host did not say which checkpoints it has. It may have any.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no connection to the peer.
    #[error(transparent)]
    Reach(#[from] ReachError),
    /// What is asked makes no request.
    #[error("cannot ask for it: see peers.advertise of the peer's configuration")]
    Ask(#[source] hyper::http::Error),
    /// The connection broke.
    #[error("the connection broke: see the agent's log there")]
    Broken(#[source] hyper::Error),
    /// The answer did not come in time.
    #[error(
        "{host} did not answer within {limit:?}: see whether its agent is at work, and the network between the two"
    )]
    Late {
        /// The peer.
        host: HostId,
        /// How long it was waited for.
        limit: Duration,
    },
    /// There is not one answer for each node.
    #[error("{said} answers came to {asked} questions: see that both agents are of the same version")]
    Count {
        /// What was asked.
        asked: usize,
        /// What came.
        said: usize,
    },
    /// The answer broke off, or is longer than any.
    #[error("the answer cannot be taken: see the agent's log there")]
    Answer(#[source] Box<dyn Error + Send + Sync>),
    /// The answer says something else.
    #[error("the answer cannot be read: see that both agents are of the same version")]
    Unreadable(#[source] serde_json::Error),
    /// The peer does not say it.
    #[error("does not say what it has ({status}): {said}")]
    Refused {
        /// How.
        status: StatusCode,
        /// Why.
        said: String,
    },
}

/// What a host takes no more of from its answer on, for [`understudy_core::bounds::CLOSED`]: a primary that is known dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closing {
    /// The primary's instance.
    pub instance: InstanceId,
    /// The epoch of its node, and all before.
    pub epoch: Epoch,
}

/// A question about one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The node.
    pub node: NodeId,
    /// What is to be taken no more, if a failover is decided by the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing: Option<Closing>,
}

impl From<&AskCopies> for Asked {
    fn from(ask: &AskCopies) -> Self {
        let closing = Closing { instance: ask.instance, epoch: ask.epoch };
        Self { node: ask.node.clone(), closing: Some(closing) }
    }
}

/// Asks the agent of `peer` which checkpoints of these nodes it has. The answers are in their order.
///
/// # Errors
/// Why that is not known, at the latest after `limit`.
pub async fn ask_copies(peer: Peer<'_>, asked: &[Asked], limit: Duration) -> Result<Vec<Kept>, AskError> {
    let kept = timeout(limit, get_copies(peer, asked)).await;
    let kept = kept.unwrap_or_else(|_| Err(AskError::Late { host: peer.host.clone(), limit }))?;
    if kept.len() == asked.len() {
        Ok(kept)
    } else {
        Err(AskError::Count { asked: asked.len(), said: kept.len() })
    }
}

async fn get_copies(peer: Peer<'_>, asked: &[Asked]) -> Result<Vec<Kept>, AskError> {
    let stream = reach(peer).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(AskError::Broken)?;
    // Ends with this future, however that ends.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let body = serde_json::to_vec(asked).map_err(AskError::Unreadable)?;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v1/copies")
        .header(hyper::header::HOST, peer.address)
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(AskError::Ask)?;
    let response = sender.send_request(request).await.map_err(AskError::Broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), BYTES_MAX).collect().await;
    let bytes = body.map_err(AskError::Answer)?.to_bytes();
    if status != StatusCode::OK {
        let said = String::from_utf8_lossy(&bytes).trim().to_owned();
        return Err(AskError::Refused { status, said });
    }
    serde_json::from_slice(&bytes).map_err(AskError::Unreadable)
}
