//! Owns the agent's HTTP interface: all of it on a unix socket for the operator, one part on TCP for Prometheus and other
//! readers, one for peers.
//!
//! Promises: whatever changes something is only on the unix socket, except that a peer may bring a checkpoint: over TLS, from
//! the host that its certificate names, or over loopback; what else peers may ask over TLS only hosts of this cluster may; a
//! guest's memory is in no part for readers. Every refusal says what
//! to do. Must not do: decide; it writes wishes into the store and reads the runtime's snapshots.

mod change;
mod checkpoints;
mod images;
mod policies;
pub mod types;

use std::sync::Arc;

use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Extension, Json, Router};
use tokio::sync::{mpsc, watch};
use understudy_core::model::ids::{NameError, NodeId, TerminalId};

use crate::gateway::Counters;
use crate::peers::listener::Caller;
use crate::runtime::{Event, Parts, Snapshot, now};
use types::Status;

/// What the handlers work with.
#[derive(Clone)]
pub struct ApiState {
    /// The agent's parts.
    pub parts: Arc<Parts>,
    /// The runtime's state.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The gateway's counters.
    pub gateway: Arc<Counters>,
    /// The way to the runtime.
    pub events: mpsc::UnboundedSender<Event>,
}

/// A refusal, with its HTTP status.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    text: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(serde_json::json!({ "error": self.text }))).into_response()
    }
}

impl ApiState {
    /// Whether this is told to whoever asks: over TLS to the hosts of this cluster, and to all of this machine.
    fn is_for(&self, peer: Option<&Extension<ConnectInfo<Caller>>>) -> Result<(), Refusal> {
        let Some(Extension(ConnectInfo(peer))) = peer else { return Ok(()) };
        if peer.named_of(self.snapshot()?.view.hosts.keys()).is_empty() {
            let text = "your certificate names no host of this cluster: issue one with subjectAltName=DNS:NAME, the \
                        host.name of its configuration";
            return Err(Refusal::new(StatusCode::FORBIDDEN, text));
        }
        Ok(())
    }

    /// The runtime's state, once it has read the store.
    fn snapshot(&self) -> Result<Arc<Snapshot>, Refusal> {
        let snapshot = self.snapshots.borrow().clone();
        if snapshot.synced {
            return Ok(snapshot);
        }
        let text = if snapshot.conditions.is_empty() {
            "the agent has just started and reads the store: ask again".to_owned()
        } else {
            let lines = snapshot.conditions.join("\n  ");
            format!("the agent is not at work yet, and goes on by itself when it can:\n  {lines}")
        };
        Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text))
    }
}

/// Everything, for the unix socket.
pub fn local(state: ApiState) -> Router {
    Router::new()
        .route("/v1/terminals", post(change::create_terminal))
        .route("/v1/terminals/{terminal}", delete(change::delete_terminal))
        .route("/v1/hosts/{host}/drain", put(change::drain).delete(change::undrain))
        .route("/v1/nodes/{terminal}/{node}/explain", get(policies::explain))
        .route("/v1/nodes/{terminal}/{node}/checkpoints", get(checkpoints::list))
        .route("/v1/policies/{name}/restore", post(policies::restore))
        .route("/v1/policies", post(policies::propose))
        .route("/v1/nodes/{terminal}/{node}/failover", post(change::failover))
        .route("/v1/nodes/{terminal}/{node}/start-afresh", post(change::start_afresh))
        .with_state(state.clone())
        .merge(peers(state.clone()))
        .merge(public(state))
}

/// Who asks, where that is known: a connection of a unix socket or of loopback has no certificate.
type Asking = Option<Extension<ConnectInfo<Caller>>>;

/// What peers may do, for TLS; in the clear for loopback alone.
pub fn peers(state: ApiState) -> Router {
    Router::new()
        .route("/v1/policies/{name}", get(policies::component))
        .route("/v1/checkpoints", put(images::receive))
        .route("/v1/copies", post(checkpoints::copies))
        .with_state(state)
}

/// What Prometheus and other readers may do, for TCP.
pub fn public(state: ApiState) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/terminals/{terminal}", get(terminal))
        .route("/v1/policies", get(policies::status))
        .route("/metrics", get(metrics))
        .with_state(state)
}

async fn status(State(state): State<ApiState>) -> Result<Json<Status>, Refusal> {
    Ok(Json(Status::of(state.snapshot()?.as_ref(), &state.parts)))
}

async fn terminal(
    State(state): State<ApiState>,
    Path(terminal): Path<String>,
) -> Result<Json<types::Terminal>, Refusal> {
    let terminal: TerminalId = terminal
        .parse()
        .map_err(|error: NameError| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let status = Status::of(state.snapshot()?.as_ref(), &state.parts);
    let found = status.terminals.into_iter().find(|found| found.id == terminal);
    found.map(Json).ok_or_else(|| unknown_terminal(&terminal))
}

/// The node that a path names.
fn node_of((terminal, node): (String, String)) -> Result<NodeId, Refusal> {
    let name = format!("{terminal}/{node}");
    name.parse().map_err(|error: NameError| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))
}

fn unknown_node(node: &NodeId) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("there is no node '{node}': see `understudy terminal list`"))
}

pub(crate) fn unknown_terminal(terminal: &TerminalId) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!("there is no terminal '{terminal}': see `understudy terminal list`"),
    )
}

async fn metrics(State(state): State<ApiState>) -> String {
    state.parts.metrics.gateway_seen(&state.gateway);
    state.parts.metrics.text(now().wall)
}
