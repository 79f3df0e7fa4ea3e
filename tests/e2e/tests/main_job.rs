//! The main job from outside, on three real hosts: what `cargo xtask demo` shows, as a test, and what it does not show:
//! agents and libvirtd that are killed, policies that change, wishes that cannot be had.

mod common;

use understudy_e2e::browser::Browser;
use understudy_e2e::stage::Stage;
use understudy_e2e::story::{Act, Story, table};

#[test]
fn a_terminal_survives_its_display_an_execution_host_a_drain_and_its_agents() {
    let name = "a_terminal_survives_its_display_an_execution_host_a_drain_and_its_agents";
    let Some(artifacts) = common::artifacts(name) else { return };
    let scratch = tempfile::tempdir().expect("a folder for the browser");
    let stage = Stage::raise(&artifacts, "ustlab-e2e").expect("three hosts");
    let browser = Browser::start(&scratch.path().join("browser")).expect("a browser");
    let say = |text: &str| eprintln!("{text}");
    let story =
        Story { stage: &stage, browser: &browser, pictures: scratch.path().join("pictures"), say: &say };
    let terminal = artifacts.root.join("config/terminals/alice.toml");
    let acts = common::with_logs(&stage, "understudy-e2e-logs", || {
        story.raise(&terminal)?;
        let mut acts = [
            Story::display_dies,
            Story::execution_host_dies,
            Story::host_is_drained,
            Story::agent_and_libvirtd_die,
        ]
        .iter()
        .map(|act| act(&story))
        .collect::<anyhow::Result<Vec<Act>>>()?;
        acts.push(story.policies_change(&artifacts.root.join("target/policies/out/pack.wasm"))?);
        acts.push(story.wishes_are_refused_and_a_terminal_is_deleted(&terminal)?);
        Ok(acts)
    });
    eprintln!("{}", table(&acts));
    assert!(acts.iter().all(Act::holds), "{}", table(&acts));
}
