//! What the tests over a whole cluster share: what it is raised from, and its logs when a test fails.

use std::path::PathBuf;

use anyhow::Result;
use understudy_e2e::stage::{Artifacts, Stage};

/// What a cluster is raised from, as `cargo xtask test` has built it.
pub(crate) fn artifacts() -> Artifacts {
    let given = |name: &str| {
        let given = std::env::var_os(name).map(PathBuf::from);
        given.unwrap_or_else(|| panic!("{name} is not set: run this by `cargo xtask test`"))
    };
    Artifacts {
        binaries: given("UNDERSTUDY_TEST_BINARIES"),
        images: given("UNDERSTUDY_TEST_IMAGES"),
        policies: given("UNDERSTUDY_TEST_POLICIES"),
        helper: Some(given("UNDERSTUDY_TEST_HELPER")),
        emulate: std::env::var_os("UNDERSTUDY_TEST_EMULATE").is_some(),
        root: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("a checkout"),
    }
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
