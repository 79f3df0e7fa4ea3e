//! Owns the look at the processes that run instances, past the agents: what a test says has ended or lives on.
//!
//! Promises: a process is named so that another with its number is never taken for it. Must not do: end one.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use understudy_lab::ProcessId;

use crate::stage::Stage;

/// The process that runs an instance, as this machine numbers it.
///
/// # Errors
/// When there is none.
pub fn process_of(instance: &str) -> Result<ProcessId> {
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let pid = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let Some(pid) = pid else { continue };
        let Ok(words) = std::fs::read(Path::new("/proc").join(format!("{pid}/cmdline"))) else { continue };
        if String::from_utf8_lossy(&words).contains(&format!("guest=understudy-{instance}")) {
            return ProcessId::of(pid).context("it has ended");
        }
    }
    bail!("no process runs {instance}")
}

/// The instances that their hosts report as idle or ready, each with its process.
///
/// # Errors
/// When the store does not say, or a process is not there.
pub fn healthy(stage: &Stage) -> Result<BTreeMap<String, ProcessId>> {
    let mut all = BTreeMap::new();
    for host in stage.cluster().hosts() {
        let key = format!("/understudy/v2/cluster/hosts/{}/facts", host.name());
        let text = stage.cluster().etcdctl(&["get", "--print-value-only", &key])?;
        let facts: Value =
            serde_json::from_str(&text).with_context(|| format!("the facts of {}", host.name()))?;
        let instances = facts["instances"].as_object().context("no instances")?;
        let well = instances.iter().filter(|(_, fact)| fact["phase"] == "idle" || fact["phase"] == "ready");
        for (id, _) in well {
            all.insert(id.clone(), process_of(id).with_context(|| format!("{id} on {}", host.name()))?);
        }
    }
    Ok(all)
}
