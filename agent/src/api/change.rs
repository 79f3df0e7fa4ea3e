//! Owns the operator's wishes: terminals made and deleted, hosts drained, failovers asked for, states given up.
//!
//! Promises: a wish is written whole or not at all, by compare-and-swap. Must not do: carry it out.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use tokio::sync::oneshot;
use understudy_core::model::ids::{HostId, NameError, NodeId, TerminalId};
use understudy_core::model::records::{
    FailoverRequest, HostIntent, Labels, NodeRecord, NodeSpec, Screen, StateWait, TerminalRecord,
};
use understudy_core::model::units::{MiB, Vcpus};
use understudy_core::model::view::{Liveness, SharedNode};
use understudy_core::transaction::Transaction;
use understudy_store::{Committed, Condition, Txn};
use uuid::Uuid;

use super::types::{NodeRequest, TerminalRequest};
use super::{ApiState, Refusal, unknown_terminal};
use crate::config::{MEMORY_MIB, VCPUS};
use crate::exit::chain;
use crate::keys::{Key, encode};
use crate::runtime::{Event, Snapshot, admission, now};

/// The environment of nodes that name none.
const ENVIRONMENT: &str = "desktop";
/// Longest name of a terminal: with its node's, it is a name of at most 64 bytes inside guests.
const NAME_BYTES_MAX: usize = 48;
/// More execution nodes than this are taken for a mistake.
const EXECUTIONS_MAX: usize = 32;

fn bad(text: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, text)
}

fn named<T: std::str::FromStr<Err = NameError>>(text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|error: NameError| bad(error.to_string()))
}

async fn commit(state: &ApiState, txn: &Txn) -> Result<Committed, Refusal> {
    let failed = |error| {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("the store did not take it: {}", chain(&error)))
    };
    state.parts.store.commit(txn).await.map_err(failed)
}

pub(super) async fn create_terminal(
    State(state): State<ApiState>,
    Json(request): Json<TerminalRequest>,
) -> Result<StatusCode, Refusal> {
    let snapshot = state.snapshot()?;
    let (record, nodes) = records(&state, &request)?;
    let exists = || {
        let text = format!("terminal '{}' exists already: delete it first, or use another name", record.id);
        Refusal::new(StatusCode::CONFLICT, text)
    };
    if snapshot.view.terminals.contains_key(&record.id) {
        return Err(exists());
    }
    let (reply, trial) = oneshot::channel();
    let _ = state.events.send(Event::Trial { new: nodes.clone(), reply });
    let trial = trial.await.map_err(|_| {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is about to end: ask another".to_owned())
    })?;
    admission(&state.parts, &snapshot.deciding, trial).await.map_err(|missing| {
        let text = format!("terminal '{}' does not fit:\n  {}", record.id, missing.join("\n  "));
        Refusal::new(StatusCode::CONFLICT, text)
    })?;
    let key = Key::Terminal(record.id.clone()).to_string();
    let mut txn = Txn::new().when(Condition::Absent(key.clone())).put(key, encode(&record));
    for (node, node_record) in &nodes {
        txn = txn.put(Key::Node(node.clone()).to_string(), encode(node_record));
    }
    match commit(&state, &txn).await? {
        Committed::Applied { .. } => Ok(StatusCode::CREATED),
        Committed::Refused { .. } => Err(exists()),
    }
}

fn records(
    state: &ApiState,
    request: &TerminalRequest,
) -> Result<(TerminalRecord, BTreeMap<NodeId, NodeRecord>), Refusal> {
    let id: TerminalId = named(&request.name)?;
    if request.name.len() > NAME_BYTES_MAX {
        return Err(bad(format!("name: '{}' is longer than {NAME_BYTES_MAX} bytes", request.name)));
    }
    let screen = screen(&request.screen)?;
    if request.execution.is_empty() || request.execution.len() > EXECUTIONS_MAX {
        let given = request.execution.len();
        return Err(bad(format!("execution: {given} nodes are given, use 1 to {EXECUTIONS_MAX}")));
    }
    let mut nodes = BTreeMap::new();
    let mut add = |node: NodeId, wanted: &NodeRequest| {
        let spec = spec(state, &node, wanted, &request.labels, screen)?;
        nodes.insert(node, NodeRecord::new(spec, Uuid::new_v4().simple().to_string()));
        Ok::<_, Refusal>(())
    };
    add(NodeId::display(&id), &request.display)?;
    for (number, execution) in (1..).zip(&request.execution) {
        add(NodeId::execution(&id, number), execution)?;
    }
    let record = TerminalRecord {
        id,
        labels: request.labels.clone(),
        screen,
        nodes: nodes.keys().cloned().collect(),
        created: now().wall,
    };
    Ok((record, nodes))
}

fn screen(text: &str) -> Result<Screen, Refusal> {
    let parsed =
        text.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    match parsed {
        Some((width @ 320..=7680, height @ 200..=4320)) => Ok(Screen { width, height }),
        _ => Err(bad(format!("screen: '{text}' is not a size such as 1280x800 (320x200 to 7680x4320)"))),
    }
}

fn out_of_range<T: PartialOrd + Display>(
    key: &str,
    given: Option<T>,
    range: &RangeInclusive<T>,
) -> Option<String> {
    let value = given.filter(|value| !range.contains(value))?;
    Some(format!("{key}: {value} is out of range: use {} to {}", range.start(), range.end()))
}

fn spec(
    state: &ApiState,
    node: &NodeId,
    wanted: &NodeRequest,
    labels: &Labels,
    screen: Screen,
) -> Result<NodeSpec, Refusal> {
    let display = node.role() == understudy_core::model::ids::Role::Display;
    if display && (!wanted.application.is_empty() || wanted.protected == Some(true)) {
        return Err(bad("display: has no applications and no execution state to protect"));
    }
    if !display && wanted.application.is_empty() {
        return Err(bad(format!("{node}: name at least one application")));
    }
    for app in &wanted.application {
        let control = [&app.name, &app.geometry, &app.title, &app.command]
            .iter()
            .any(|text| text.contains(['\t', '\n']));
        if app.name.is_empty() || app.command.is_empty() || control {
            return Err(bad(format!(
                "{node}: application '{}' needs a name and a command, without tabs or line ends",
                app.name
            )));
        }
        let same = wanted.application.iter().filter(|other| other.name == app.name).count();
        if same > 1 {
            return Err(bad(format!("{node}: two applications are named '{}'", app.name)));
        }
    }
    let environment = wanted.environment.clone().unwrap_or_else(|| ENVIRONMENT.to_owned());
    if !state.parts.config.environments.contains_key(&environment) {
        let file = state.parts.config.file.display();
        return Err(bad(format!(
            "{node}: there is no environment '{environment}': see [environments] in {file}"
        )));
    }
    let faults = [
        out_of_range("memory_mib", wanted.memory_mib, &MEMORY_MIB),
        out_of_range("vcpus", wanted.vcpus, &VCPUS),
    ];
    let faults: Vec<String> = faults.into_iter().flatten().map(|fault| format!("{node}: {fault}")).collect();
    if !faults.is_empty() {
        return Err(bad(faults.join("\n")));
    }
    let config = &state.parts.config;
    let (pool, environment_labels) =
        (config.pool, config.environment_labels.get(&environment).cloned().unwrap_or_default());
    Ok(NodeSpec {
        memory: wanted.memory_mib.map_or(pool.memory, MiB),
        vcpus: wanted.vcpus.map_or(pool.vcpus, Vcpus),
        protected: !display && wanted.protected.unwrap_or(true),
        environment,
        applications: wanted.application.clone(),
        labels: labels.clone(),
        environment_labels,
        screen,
    })
}

pub(super) async fn delete_terminal(
    State(state): State<ApiState>,
    Path(terminal): Path<String>,
) -> Result<StatusCode, Refusal> {
    let id: TerminalId = named(&terminal)?;
    let snapshot = state.snapshot()?;
    let record = snapshot.view.terminals.get(&id).ok_or_else(|| unknown_terminal(&id))?;
    let key = Key::Terminal(id.clone()).to_string();
    let mut txn = Txn::new().when(Condition::Present(key.clone())).delete(key);
    for node in &record.nodes {
        // Whatever is under way for a node ends when its record does: a late assignment is refused.
        txn = txn.delete(Key::Node(node.clone()).to_string()).delete(Key::Failover(node.clone()).to_string());
    }
    match commit(&state, &txn).await? {
        Committed::Applied { .. } => Ok(StatusCode::NO_CONTENT),
        Committed::Refused { .. } => Err(unknown_terminal(&id)),
    }
}

async fn intend(state: &ApiState, host: &str, intent: HostIntent) -> Result<StatusCode, Refusal> {
    let host: HostId = named(host)?;
    if !state.snapshot()?.view.hosts.contains_key(&host) {
        let text = format!("there is no host '{host}': see `understudy host list`");
        return Err(Refusal::new(StatusCode::NOT_FOUND, text));
    }
    let txn = Txn::new().put(Key::Intent(host).to_string(), encode(&intent));
    commit(state, &txn).await.map(|_| StatusCode::NO_CONTENT)
}

pub(super) async fn drain(
    State(state): State<ApiState>,
    Path(host): Path<String>,
) -> Result<StatusCode, Refusal> {
    intend(&state, &host, HostIntent { drain: true }).await
}

pub(super) async fn undrain(
    State(state): State<ApiState>,
    Path(host): Path<String>,
) -> Result<StatusCode, Refusal> {
    intend(&state, &host, HostIntent { drain: false }).await
}

pub(super) async fn failover(
    State(state): State<ApiState>,
    Path((terminal, node)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let snapshot = state.snapshot()?;
    let (node, known) = known_node(&snapshot, &terminal, &node)?;
    if known.value.primary.is_none() || known.value.migration.is_some() {
        let text = format!("{node} has no primary, or is moving at this moment: see `understudy status`");
        return Err(Refusal::new(StatusCode::CONFLICT, text));
    }
    let request = FailoverRequest { epoch: known.value.epoch };
    let write = Transaction::new()
        .when(Key::Node(node.clone()), Some(known.revision))
        .put(Key::Failover(node.clone()), &request);
    accepted(&node, &commit(&state, &write.into()).await?)
}

/// Ends a node's wait for its state: what can be had at once is taken, an older copy or nothing.
pub(super) async fn start_afresh(
    State(state): State<ApiState>,
    Path((terminal, node)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let snapshot = state.snapshot()?;
    let (node, known) = known_node(&snapshot, &terminal, &node)?;
    // One that is being restored does not wait any more: should that fail, the operator is asked again.
    let lives = known
        .value
        .primary
        .as_ref()
        .is_some_and(|primary| matches!(snapshot.view.liveness(&known.value, primary), Liveness::Alive));
    let record = without_waiting(&known.value).filter(|_| !lives).ok_or_else(|| {
        let text = format!("{node} does not wait for its state: see `understudy status`");
        Refusal::new(StatusCode::CONFLICT, text)
    })?;
    let key = Key::Node(node.clone());
    let write = Transaction::new().when(key.clone(), Some(known.revision)).put(key, &record);
    let committed = commit(&state, &write.into()).await?;
    tracing::warn!(%node, "an operator ends its wait for its state");
    accepted(&node, &committed)
}

/// The record of a node that is to wait for its state no longer; none where it does not wait.
fn without_waiting(known: &NodeRecord) -> Option<NodeRecord> {
    let wait = StateWait { given_up: true, ..known.state_wait? };
    Some(NodeRecord { state_wait: Some(wait), ..known.clone() })
}

/// The node that a path names, and its record.
fn known_node<'a>(
    snapshot: &'a Snapshot,
    terminal: &str,
    node: &str,
) -> Result<(NodeId, &'a SharedNode), Refusal> {
    let node: NodeId = named(&format!("{terminal}/{node}"))?;
    match snapshot.view.nodes.get(&node) {
        Some(known) => Ok((node, known)),
        None => {
            let text = format!("there is no node '{node}': see `understudy terminal show {terminal}`");
            Err(Refusal::new(StatusCode::NOT_FOUND, text))
        }
    }
}

fn accepted(node: &NodeId, committed: &Committed) -> Result<StatusCode, Refusal> {
    match committed {
        Committed::Applied { .. } => Ok(StatusCode::ACCEPTED),
        Committed::Refused { .. } => Err(Refusal::new(
            StatusCode::CONFLICT,
            format!("{node} changed at this very moment: look, then ask again"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use understudy_core::model::ids::Role;
    use understudy_core::model::units::UnixMillis;

    use super::*;

    fn waiting(state_wait: Option<StateWait>) -> NodeRecord {
        let spec = NodeSpec {
            memory: MiB(512),
            vcpus: Vcpus(1),
            protected: true,
            environment: Role::Execution.as_str().to_owned(),
            applications: Vec::new(),
            labels: Labels::new(),
            environment_labels: Labels::new(),
            screen: Screen { width: 1280, height: 720 },
        };
        NodeRecord { state_wait, ..NodeRecord::new(spec, String::new()) }
    }

    #[test]
    fn only_a_wait_can_be_ended_and_nothing_else_of_the_record_changes() {
        assert_eq!(without_waiting(&waiting(None)), None);
        let wait = StateWait { waited_ms: 30_000, newer_since: None, at: UnixMillis(7), given_up: false };
        let ended = waiting(Some(StateWait { given_up: true, ..wait }));
        assert_eq!(without_waiting(&waiting(Some(wait))), Some(ended));
    }
}
