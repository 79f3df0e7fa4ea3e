//! Owns what is said of checkpoints: which ones of a node lie here, to peers, and which lie anywhere, to the operator.
//!
//! Promises: nothing but their names, times and instances is told; over TLS a peer hears it that is a host of this cluster, and
//! nobody else; all hosts are asked side by side, so that one that is silent costs core's `ASK` and keeps no other answer. Must
//! not do: read a checkpoint.

use axum::Json;
use axum::extract::{Path, State};
use futures_util::future::join_all;
use understudy_core::bounds::ASK;
use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::records::{Checkpoint, Kept};
use understudy_core::model::units::UnixMillis;
use understudy_core::model::view::View;

use super::types::{CheckpointStatus, Checkpoints, HostCheckpoints, millis};
use super::{ApiState, Asking, Refusal, node_of, unknown_node};
use crate::exit::chain;
use crate::peers::Asked;
use crate::runtime::{kept_on, now, said};

/// Which checkpoints of these nodes lie here; where a failover is decided by that, no more of a dead primary is taken from then
/// on.
pub(super) async fn copies(
    State(state): State<ApiState>,
    peer: Asking,
    Json(asked): Json<Vec<Asked>>,
) -> Result<Json<Vec<Kept>>, Refusal> {
    state.is_for(peer.as_ref())?;
    Ok(Json(asked.iter().map(|asked| said(&state.parts, asked)).collect()))
}

/// Which checkpoints of a node lie on any host that may have some.
pub(super) async fn list(
    State(state): State<ApiState>,
    Path(name): Path<(String, String)>,
) -> Result<Json<Checkpoints>, Refusal> {
    let node = node_of(name)?;
    let snapshot = state.snapshot()?;
    let record = &snapshot.view.nodes.get(&node).ok_or_else(|| unknown_node(&node))?.value;
    let asked = record.keeping().map(|host| on_host(&state, &snapshot.view, &node, host));
    let hosts = join_all(asked).await;
    Ok(Json(Checkpoints { node, hosts }))
}

async fn on_host(state: &ApiState, view: &View, node: &NodeId, host: &HostId) -> HostCheckpoints {
    let asked = match reported(view, host) {
        // This host knows what it has whatever the store says of it.
        _ if host == &state.parts.config.host => Ok(String::new()),
        reported => reported,
    };
    let kept = match asked {
        Ok(api) => {
            let asked = [Asked { node: node.clone(), closing: None }];
            let kept = kept_on(&state.parts, (host, &api), &asked, ASK).await;
            kept.map(|kept| kept.into_iter().next().unwrap_or_default()).map_err(|error| chain(&error))
        }
        Err(why) => Err(why),
    };
    let (kept, error) = match kept {
        Ok(kept) => (kept, None),
        Err(why) => (Kept::default(), Some(why)),
    };
    HostCheckpoints::of(host, kept, error, now().wall)
}

/// Where a host's agent is, or why that is not known.
fn reported(view: &View, host: &HostId) -> Result<String, String> {
    match view.hosts.get(host) {
        None => Err(format!("{host} is no host of this cluster any more: what it had is not to be had")),
        Some(seen) if !seen.is_open() => {
            Err(format!("{host} is lost: power it on, and see that its agent starts"))
        }
        Some(seen) => seen.current_facts().map(|facts| facts.api.clone()).ok_or_else(|| {
            format!("{host} has not reported yet: ask again, or see `understudy status` there")
        }),
    }
}

impl HostCheckpoints {
    fn of(host: &HostId, kept: Kept, error: Option<String>, now: UnixMillis) -> Self {
        let status = |copy: &Checkpoint| CheckpointStatus {
            id: copy.id,
            taken: copy.taken,
            age_ms: millis(now.since(copy.taken)),
            instance: copy.instance,
            pause_ms: copy.pause_ms,
        };
        let checkpoints = kept.complete.iter().map(status).collect();
        Self { host: host.clone(), checkpoints, arriving: kept.arriving, error }
    }
}
