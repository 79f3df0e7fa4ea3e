//! Owns `agent-scale-1000`: what an agent costs beside 1,000 hosts with 20,000 nodes, as the leader and as one that
//! follows.
//!
//! Promises: the agents, their guards and the etcd are the real ones; only the other hosts are records that one program
//! renews and changes as their agents would. How many of both the etcd took is stated. Must not do: decide.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::RUNS;
use crate::daemon::{Binaries, Daemon, Files, Process, free_port, usage, wait};
use crate::row::Row;

/// The benchmark's name.
pub const NAME: &str = "agent-scale-1000";
const HOSTS: usize = 1_000;
/// How long each watch is.
const WATCH: Duration = Duration::from_secs(10);
/// Most of a core.
const FOLLOWER_MAX: f64 = 2.0;
const LEADER_MAX: f64 = 25.0;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Subjects {
    /// The folder of `measure-leader`, `understudy` and `understudy-guard`, built for release.
    pub binaries: PathBuf,
    /// The domain template of the tree.
    pub template: PathBuf,
    /// A folder for what is kept from one run to the next.
    pub scratch: PathBuf,
}

/// What the etcd has taken of the other hosts, a second.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Taken {
    renewals: f64,
    changes: f64,
}

/// The hosts beside which the agents are watched.
struct Others {
    _process: Process,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Others {
    fn start(binaries: &Path, endpoint: &str) -> Result<Self> {
        let mut command = Command::new(binaries.join("measure-leader"));
        command
            .arg("beside")
            .arg(endpoint)
            .arg(HOSTS.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = Process(command.spawn().context("start measure-leader")?);
        let out = process.0.stdout.take().context("its output is piped")?;
        Ok(Self { _process: process, lines: BufReader::new(out).lines() })
    }

    fn taken(&mut self) -> Result<Taken> {
        let line = self.lines.next().context("measure-leader has ended")??;
        serde_json::from_str(&line).with_context(|| format!("measure-leader says '{line}'"))
    }
}

/// Watches a leader and a follower; `say` is told what goes on.
///
/// # Errors
/// When etcd or an agent does not start, or does not see the other hosts.
pub fn run(subjects: &Subjects, say: &dyn Fn(&str)) -> Result<Vec<Row>> {
    say(NAME);
    let folder = subjects.scratch.join("scale");
    let _files = Files::make(&folder)?;
    let [client, peer] = [free_port()?, free_port()?].map(|port| format!("http://127.0.0.1:{port}"));
    let mut etcd = Process::start(
        Command::new("etcd")
            .args(["--name", "one", "--log-level", "error", "--data-dir"])
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")]),
    )?;
    let healthy = || {
        let said = Command::new("etcdctl").args(["--endpoints", &client, "endpoint", "health"]).output()?;
        Ok(said.status.success().then_some(()))
    };
    wait(&mut [&mut etcd], healthy, "an etcd that is ready")?;
    let mut others = Others::start(&subjects.binaries, &client)?;
    others.taken()?;
    say("  the hosts are loaded");
    let binaries = Binaries { folder: &subjects.binaries, template: &subjects.template };
    let store = format!("kind = \"etcd\"\nendpoints = [{client:?}]");
    let start = |name: &str| Daemon::start(binaries, &folder.join(name), (name, &store), &BTreeMap::new());
    let sees_all = |status: &Value| status["hosts"].as_array().is_some_and(|hosts| hosts.len() > HOSTS);
    let mut leader = start("leader")?;
    let leads = |status: &Value| (sees_all(status) && status["leader"] == "leader").then_some(());
    leader.wait(&["status"], leads, "an agent that leads")?;
    let mut follower = start("follower")?;
    let follows = |status: &Value| (sees_all(status) && status["leader"] == "leader").then_some(());
    follower.wait(&["status"], follows, "an agent that follows")?;
    say("  both agents see all hosts");
    watch(&mut others, [("leader", LEADER_MAX, leader.agent()), ("follower", FOLLOWER_MAX, follower.agent())])
}

fn watch(others: &mut Others, agents: [(&str, f64, u32); 2]) -> Result<Vec<Row>> {
    let mut cpu = [Vec::new(), Vec::new()];
    let mut memory = [Vec::new(), Vec::new()];
    let (mut renewals, mut changes) = (Vec::new(), Vec::new());
    // The first spans are those of the start.
    for _ in 0..2 {
        others.taken()?;
    }
    for _ in 0..RUNS {
        let before = agents.map(|(_, _, pid)| usage(pid));
        let begun = Instant::now();
        while begun.elapsed() < WATCH {
            let taken = others.taken()?;
            renewals.push(taken.renewals);
            changes.push(taken.changes);
        }
        let span = begun.elapsed().as_secs_f64();
        for (at, ((_, _, pid), before)) in agents.iter().zip(before).enumerate() {
            let (time, resident) = usage(*pid)?;
            cpu[at].push((time - before?.0) / span * 100.0);
            memory[at].push(resident);
        }
    }
    let mut rows = Vec::new();
    for (at, (who, most, _)) in agents.into_iter().enumerate() {
        rows.push(Row::stated(&format!("{NAME}: {who}"), "%", &cpu[at]).at_most(most));
        rows.push(Row::stated(&format!("{NAME}: {who}, memory"), "MiB", &memory[at]));
    }
    rows.push(Row::stated(&format!("{NAME}: renewals"), "/s", &renewals));
    rows.push(Row::stated(&format!("{NAME}: changed facts"), "/s", &changes));
    Ok(rows)
}
