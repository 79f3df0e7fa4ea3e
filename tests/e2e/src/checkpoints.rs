//! Owns the question which checkpoints of a node there are.
//!
//! Promises: it is answered by the hosts that have them, as `understudy checkpoint list` asks them. Must not do: read a host's
//! folder.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use understudy_lab::Host;

use crate::stage::Stage;

/// The newest complete checkpoint of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    /// Its epoch and sequence.
    pub id: (u64, u64),
    /// When it was taken, in milliseconds since 1970.
    pub taken: u64,
    /// How long ago that was when the hosts were asked.
    pub age: Duration,
    /// The hosts that have it.
    pub hosts: Vec<String>,
}

/// The newest checkpoint of a node that any host has, as the agent of `host` hears.
///
/// # Errors
/// When the agent does not answer, or no host has any.
pub fn newest_on(stage: &Stage, host: &Host, node: &str) -> Result<Newest> {
    newest_of(&stage.cli_on(host, &["--json", "checkpoint", "list", node])?)
}

/// The same as the first agent hears that answers.
///
/// # Errors
/// When none answers, or no host has any.
pub fn newest(stage: &Stage, node: &str) -> Result<Newest> {
    newest_of(&stage.cli(&["--json", "checkpoint", "list", node])?)
}

fn newest_of(listed: &str) -> Result<Newest> {
    let listed: Value = serde_json::from_str(listed).context("the list is no JSON")?;
    let mut newest: Option<Newest> = None;
    for on in listed["hosts"].as_array().context("no hosts")? {
        let host = on["host"].as_str().context("no host")?.to_owned();
        for one in on["checkpoints"].as_array().context("no checkpoints")? {
            let number = |value: &Value| value.as_u64().context("no number");
            let id = (number(&one["id"]["epoch"])?, number(&one["id"]["sequence"])?);
            match &mut newest {
                Some(known) if known.id > id => {}
                Some(known) if known.id == id => known.hosts.push(host.clone()),
                _ => {
                    let (taken, age) = (number(&one["taken"])?, number(&one["age_ms"])?);
                    let age = Duration::from_millis(age);
                    newest = Some(Newest { id, taken, age, hosts: vec![host.clone()] });
                }
            }
        }
    }
    newest.with_context(|| format!("no host has a checkpoint: {listed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_found_with_all_hosts_that_have_it() {
        let copy = |epoch: u64, sequence: u64| serde_json::json!({ "id": { "epoch": epoch, "sequence": sequence }, "taken": 10 + sequence, "age_ms": 5 });
        let on = |host: &str, copies: Vec<Value>| serde_json::json!({ "host": host, "checkpoints": copies, "arriving": false, "error": null });
        let hosts = [on("a", vec![copy(2, 9), copy(3, 1)]), on("b", vec![]), on("c", vec![copy(3, 1)])];
        let found = newest_of(&serde_json::json!({ "node": "n", "hosts": hosts }).to_string()).unwrap();
        let hosts = ["a", "c"].map(str::to_owned).to_vec();
        assert_eq!(found, Newest { id: (3, 1), taken: 11, age: Duration::from_millis(5), hosts });
        assert!(newest_of(r#"{"hosts":[]}"#).is_err());
    }
}
