//! What operators and peers ask a running agent for: the command as a process, the agent in this one, its instances played
//! by processes that carry their names.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../policies/rig.rs"]
#[allow(dead_code, reason = "the stage has more on it than these tests need")]
mod rig;

mod certified;
mod copies;
mod create;
mod facts;
mod failover;
mod images;
mod instances;

use std::process::{Command, Output};

use rig::{Agent, wait};
use understudy_store::MemoryStore;

/// An agent with an open lease, and the folder that it lives in.
async fn agent(more: &str) -> (tempfile::TempDir, Agent) {
    let home = tempfile::tempdir().unwrap();
    let agent = Agent::start(home.path(), "host1", &MemoryStore::new(), more).await;
    leading(&agent).await;
    (home, agent)
}

/// Until it has an open lease and leads.
async fn leading(agent: &Agent) {
    wait("it leads and has reported", || async {
        let seen = agent.snapshots.borrow();
        (seen.leading && seen.view.hosts.values().any(|host| host.current_facts().is_some())).then_some(())
    })
    .await;
}

/// The command, while the agent goes on.
async fn understudy(agent: &Agent, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_understudy"));
    command.arg("--socket").arg(&agent.parts.config.api_socket).args(words);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
