//! The main job from outside, on three real hosts: what `cargo xtask demo` shows, as a test, and what it does not show:
//! agents and libvirtd that are killed, policies that change, wishes that cannot be had.

mod common;

use understudy_e2e::browser::Browser;
use understudy_e2e::stage::Stage;
use understudy_e2e::story::{Story, table, tell};

#[test]
#[ignore = "needs a cluster"]
fn a_terminal_survives_its_display_an_execution_host_a_drain_and_its_agents() {
    let artifacts = common::artifacts();
    let scratch = tempfile::tempdir().expect("a folder for the browser");
    let stage = Stage::raise(&artifacts, "ustlab-e2e").expect("three hosts");
    let browser = Browser::start(&scratch.path().join("browser")).expect("a browser");
    let say = |text: &str| eprintln!("{text}");
    let story =
        Story { stage: &stage, browser: &browser, pictures: scratch.path().join("pictures"), say: &say };
    let terminal = artifacts.root.join("config/terminals/alice.toml");
    let pack = artifacts.root.join("target/policies/out/pack.wasm");
    let acts = tell(
        &[
            &|act| story.raise(act, &terminal),
            &|act| story.display_dies(act),
            &|act| story.execution_host_dies(act),
            &|act| story.host_is_drained(act),
            &|act| story.agent_and_libvirtd_die(act),
            &|act| story.policies_change(act, &pack),
            &|act| story.wishes_are_refused_and_a_terminal_is_deleted(act, &terminal),
        ],
        &say,
    );
    eprintln!("{}", table(&acts));
    common::with_logs(&stage, "understudy-e2e-logs", || {
        let failed: Vec<&str> =
            acts.iter().filter(|act| !act.holds()).map(|act| act.title.as_str()).collect();
        anyhow::ensure!(failed.is_empty(), "not every verdict holds in: {}", failed.join("; "));
        Ok(())
    });
}
