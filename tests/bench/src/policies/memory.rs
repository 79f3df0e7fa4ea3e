//! Owns what policies take of the daemon's memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{MEMORY, Subjects};
use crate::daemon::{Binaries, Daemon, usage};
use crate::row::Row;

/// Resident memory of the agent with all policies of this tree, in MiB; the floor is the same agent without any.
pub(super) fn memory(subjects: &Subjects, runs: usize) -> Result<Row> {
    let folder = subjects.scratch.join("daemon");
    let mut with = Vec::new();
    let mut without = Vec::new();
    let mut policies = 0;
    for _ in 0..runs {
        without.push(resident(subjects, &folder, &BTreeMap::new())?);
        let all = components(&subjects.policies)?;
        policies = all.len();
        with.push(resident(subjects, &folder, &all)?);
    }
    let name = format!("{MEMORY}: agent, {policies} policies");
    let floor = Row::stated("floor", "MiB", &without).median;
    let row = Row::stated(&name, "MiB", &with);
    Ok(Row { floor: Some(floor), ratio: Some(row.median / floor), ..row })
}

/// The components of a folder by name.
fn components(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            found.insert(name, path);
        }
    }
    Ok(found)
}

/// Resident memory of an agent that has loaded these policies.
fn resident(subjects: &Subjects, folder: &Path, policies: &BTreeMap<String, PathBuf>) -> Result<f64> {
    let binaries = Binaries { folder: &subjects.binaries, template: &subjects.template };
    let store = format!("kind = \"embedded\"\npath = {:?}", folder.join("store.redb"));
    let mut daemon = Daemon::start(binaries, folder, ("host1", &store), policies)?;
    let loaded = |status: &serde_json::Value| is_loaded(status, policies.len()).then_some(());
    daemon.wait(&["policy", "list"], loaded, "an agent with all policies")?;
    Ok(usage(daemon.agent())?.1)
}

/// Whether the agent answers and has that many policies that can be asked.
fn is_loaded(status: &serde_json::Value, policies: usize) -> bool {
    let listed = status["policies"].as_array().map_or(0, Vec::len);
    let decides = |interface: &str| status["deciding"][interface].is_string();
    // The folder is looked at moments after the agent answers first.
    listed == policies && (policies == 0 || (decides("placement") && decides("backup-count")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_that_are_listed_and_decide_nothing_are_not_loaded_yet() {
        let status = |policies: usize, decides: bool| {
            let who = |name: &str| decides.then(|| name.to_owned());
            serde_json::json!({
                "policies": vec![0; policies],
                "deciding": {"placement": who("spread"), "backup-count": who("count")},
            })
        };
        assert!(is_loaded(&status(5, true), 5) && is_loaded(&status(0, false), 0));
        assert!(!is_loaded(&status(4, true), 5) && !is_loaded(&status(5, false), 5));
        assert!(!is_loaded(&serde_json::Value::Null, 5));
    }
}
