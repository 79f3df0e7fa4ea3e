//! Owns the policies' part of the interface: their status, their components for peers, explanations, proposing, restoring.
//!
//! Promises: a peer gets a component by its digest and nothing else of this host's files; over TLS nobody does but a host of
//! this cluster. Must not do: load anything.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use understudy_core::leader;
use understudy_core::transaction::Transaction;
use understudy_policy::Digest;
use understudy_store::Committed;

use super::{ApiState, Asking, Refusal, node_of, unknown_node};
use crate::exit::chain;
use crate::keys::Key;
use crate::policy_manager::explain::{Explained, explained};
use crate::policy_manager::status::PoliciesStatus;
use crate::runtime::now;

pub(super) async fn status(State(state): State<ApiState>) -> Result<Json<PoliciesStatus>, Refusal> {
    Ok(Json(PoliciesStatus::of(state.snapshot()?.as_ref(), &state.parts.policies)))
}

/// A component, for a peer. What comes is not trusted: it is a digest, or refused before any file is looked at.
pub(super) async fn component(
    State(state): State<ApiState>,
    peer: Asking,
    Path(digest): Path<String>,
) -> Result<Bytes, Refusal> {
    state.is_for(peer.as_ref())?;
    let digest: Digest = digest.parse().map_err(|error: understudy_policy::NoDigest| {
        Refusal::new(StatusCode::BAD_REQUEST, error.to_string())
    })?;
    let absent =
        || Refusal::new(StatusCode::NOT_FOUND, format!("there is no component {digest} on this host"));
    let library = state.parts.policies.library().cloned().ok_or_else(absent)?;
    let (limit, wanted) = (state.parts.policies.defaults().file_size, digest.clone());
    let read = tokio::task::spawn_blocking(move || library.read(&wanted, limit)).await;
    match read {
        Ok(Ok(bytes)) => Ok(bytes.into()),
        Ok(Err(understudy_policy::FileFault::Absent)) => Err(absent()),
        Ok(Err(fault)) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&fault))),
        Err(error) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

pub(super) async fn explain(
    State(state): State<ApiState>,
    Path(name): Path<(String, String)>,
) -> Result<Json<Explained>, Refusal> {
    let node = node_of(name)?;
    let snapshot = state.snapshot()?;
    let bounds = &state.parts.config.bounds;
    let explanation =
        leader::explain(&snapshot.view, &node, bounds, now()).ok_or_else(|| unknown_node(&node))?;
    let deciding = snapshot.deciding.clone();
    let asked = tokio::task::spawn_blocking(move || explained(&deciding, &explanation)).await;
    asked.map(Json).map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// What differs in this host's folder is proposed, although it did not change.
pub(super) async fn propose(State(state): State<ApiState>) -> Result<StatusCode, Refusal> {
    state.snapshot()?;
    if state.parts.policies.standing().unproposed.is_empty() {
        let folder = state.parts.config.policies_dir.display();
        let text = format!(
            "nothing in {folder} of this host is to be proposed: see `understudy policy list` for what decides"
        );
        return Err(Refusal::new(StatusCode::CONFLICT, text));
    }
    state.parts.policies.want_proposal();
    Ok(StatusCode::ACCEPTED)
}

/// A policy that was suspended is asked again, on every host.
pub(super) async fn restore(
    State(state): State<ApiState>,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    let snapshot = state.snapshot()?;
    let active = snapshot.sets.active.as_ref();
    let Some((active, record)) = active.zip(snapshot.sets.restored(&name)) else {
        let text = format!("there is no policy '{name}': see `understudy policy list`");
        return Err(Refusal::new(StatusCode::NOT_FOUND, text));
    };
    // What failed on this host may not have come into the record yet.
    let failed_here = state.parts.policies.failed().iter().any(|(failed, ..)| *failed == name);
    if !active.value.suspended.contains_key(&name) && !failed_here {
        let text = format!("policy '{name}' is not suspended: see `understudy policy list`");
        return Err(Refusal::new(StatusCode::CONFLICT, text));
    }
    let write =
        Transaction::new().when(Key::PolicyActive, Some(active.revision)).put(Key::PolicyActive, &record);
    match state.parts.store.commit(&write.into()).await {
        Ok(Committed::Applied { .. }) => Ok(StatusCode::NO_CONTENT),
        Ok(Committed::Refused { .. }) => Err(Refusal::new(
            StatusCode::CONFLICT,
            "the set of policies changed at this very moment: look, then ask again",
        )),
        Err(error) => Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the store did not take it: {}", chain(&error)),
        )),
    }
}
