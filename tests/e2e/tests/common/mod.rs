//! What the tests over a whole cluster share: what it is raised from, and its logs when a test fails.

use std::path::PathBuf;

use anyhow::Result;
use understudy_e2e::stage::{Artifacts, Stage};

/// What a cluster is raised from; `None`, with the reason said, where it cannot run.
pub(crate) fn artifacts(test: &str) -> Option<Artifacts> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: {test}: needs root for network namespaces");
        return None;
    }
    given().map_err(|reason| eprintln!("SKIPPED: {test}: {reason}; run it by `cargo xtask test`")).ok()
}

fn given() -> Result<Artifacts, String> {
    let given = |name: &str| std::env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set"));
    let root =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().map_err(|e| e.to_string())?;
    Ok(Artifacts {
        binaries: given("UNDERSTUDY_TEST_BINARIES")?,
        images: given("UNDERSTUDY_TEST_IMAGES")?,
        policies: given("UNDERSTUDY_TEST_POLICIES")?,
        helper: Some(given("UNDERSTUDY_TEST_HELPER")?),
        emulate: std::env::var_os("UNDERSTUDY_TEST_EMULATE").is_some(),
        root,
    })
}

/// Runs a story; when it cannot go on, the hosts' logs are kept in a folder of this name and the test fails.
pub(crate) fn with_logs<T>(stage: &Stage, folder: &str, story: impl FnOnce() -> Result<T>) -> T {
    story().unwrap_or_else(|error| {
        let logs = std::env::temp_dir().join(folder);
        let _ = std::fs::remove_dir_all(&logs);
        let kept = stage.save_logs(&logs);
        panic!("{error:#}; logs in {} ({kept:?})", logs.display());
    })
}
