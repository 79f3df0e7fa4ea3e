//! The main job from outside, on three real hosts: what `cargo xtask demo` shows, as a test.

use std::path::PathBuf;

use understudy_e2e::browser::Browser;
use understudy_e2e::stage::{Artifacts, Stage};
use understudy_e2e::story::{Act, Story, table};

fn artifacts() -> Result<Artifacts, String> {
    let given = |name: &str| std::env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set"));
    let root =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().map_err(|e| e.to_string())?;
    Ok(Artifacts {
        binaries: given("UNDERSTUDY_TEST_BINARIES")?,
        images: given("UNDERSTUDY_TEST_IMAGES")?,
        policies: given("UNDERSTUDY_TEST_POLICIES")?,
        helper: Some(given("UNDERSTUDY_TEST_HELPER")?),
        root,
    })
}

#[test]
fn a_terminal_survives_its_display_an_execution_host_and_a_drain() {
    let name = "a_terminal_survives_its_display_an_execution_host_and_a_drain";
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: {name}: needs root for network namespaces");
        return;
    }
    let artifacts = match artifacts() {
        Ok(artifacts) => artifacts,
        Err(reason) => {
            eprintln!("SKIPPED: {name}: {reason}; run it by `cargo xtask test`");
            return;
        }
    };
    let scratch = tempfile::tempdir().unwrap();
    let stage = Stage::raise(&artifacts, "ustlab-e2e").unwrap();
    let browser = Browser::start(&scratch.path().join("browser")).unwrap();
    let say = |text: &str| eprintln!("{text}");
    let story =
        Story { stage: &stage, browser: &browser, pictures: scratch.path().join("pictures"), say: &say };
    let told = (|| {
        story.raise(&artifacts.root.join("config/terminals/alice.toml"))?;
        [Story::display_dies, Story::execution_host_dies, Story::host_is_drained]
            .iter()
            .map(|act| act(&story))
            .collect::<anyhow::Result<Vec<Act>>>()
    })();
    let acts = match told {
        Ok(acts) => acts,
        Err(error) => {
            let logs = std::env::temp_dir().join("understudy-e2e-logs");
            let _ = std::fs::remove_dir_all(&logs);
            let kept = stage.save_logs(&logs);
            panic!("{error:#}; logs in {} ({kept:?})", logs.display());
        }
    };
    eprintln!("{}", table(&acts));
    assert!(acts.iter().all(Act::holds), "{}", table(&acts));
}
