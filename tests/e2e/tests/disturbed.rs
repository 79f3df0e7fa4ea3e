//! Three real hosts whose agents are killed at seeded moments, and one that stands still: no healthy instance ends, and one
//! host's trouble holds up no other host's nodes. Takes a quarter of an hour and more: `cargo xtask soak`.

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use understudy_e2e::checkpoints::{Newest, newest_on};
use understudy_e2e::counter::start_of;
use understudy_e2e::counters::Counters;
use understudy_e2e::process::healthy;
use understudy_e2e::stage::{Stage, address_of, host_of, node_of};
use understudy_e2e::story::member;
use understudy_lab::ProcessId;

const NODE: &str = "alice/exec-1";
const HOSTS: [&str; 3] = ["host1", "host2", "host3"];
const REPAIR: Duration = Duration::from_secs(240);
/// Kills of each kind: fifty in all.
const AT_REST: u32 = 20;
const IN_RESTORE: u32 = 10;
const IN_DRAIN: u32 = 10;
const WITHOUT_LIBVIRTD: u32 = 10;
/// How long libvirtd is away, and how many kills fall into it.
const AWAY: Duration = Duration::from_secs(20);
const KILLS_WHILE_AWAY: u32 = 5;
/// A checkpoint's interval and ten seconds (S4).
const GAP_MAX: Duration = Duration::from_secs(15);
/// How long a host stands still.
const FROZEN: Duration = Duration::from_secs(60);

/// Moments that can be had again: `SplitMix64`.
struct Moments(u64);

impl Moments {
    /// From the environment, else a new one; either way it is printed.
    fn seeded() -> Self {
        let given = std::env::var("UNDERSTUDY_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let nanos =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let seed = given.unwrap_or_else(|| u64::try_from(nanos & u128::from(u32::MAX)).unwrap_or_default());
        eprintln!("the moments of UNDERSTUDY_TEST_SEED={seed}");
        Self(seed)
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % below
    }

    fn wait(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_millis()).unwrap_or(1).max(1);
        Duration::from_millis(self.draw(most))
    }

    fn host(&mut self) -> &'static str {
        HOSTS[usize::try_from(self.draw(3)).unwrap_or_default()]
    }
}

/// The processes of before, without those of the instances that had to end, still run.
fn all_live(before: &BTreeMap<String, ProcessId>, but: &[String], what: &str) -> Result<()> {
    let dead: Vec<&String> = before
        .iter()
        .filter(|(instance, process)| !but.contains(instance) && !process.alive())
        .map(|(instance, _)| instance)
        .collect();
    ensure!(dead.is_empty(), "{what}: healthy instances ended: {dead:?}");
    Ok(())
}

/// Kills an agent, and waits until the one that follows has looked at its host.
fn kill(stage: &Stage, host: &str) -> Result<()> {
    let before = stage.host(host)?.service(understudy_lab::cluster::AGENT).pid()?;
    stage.kill_agent(host)?;
    stage.wait(&format!("the agent of {host} is back"), REPAIR, |_| {
        let agent = stage.host(host)?;
        let pid = agent.service(understudy_lab::cluster::AGENT).pid()?;
        ensure!(pid.is_some() && pid != before, "it has not started");
        let status = stage.status_on(agent)?;
        let seen = host_of(&status, host)?;
        ensure!(seen["state"] == "open" || seen["state"] == "draining", "{seen}");
        Ok(())
    })
}

fn at_rest(stage: &Stage, moments: &mut Moments) -> Result<()> {
    let before = healthy(stage)?;
    let epoch = stage.node(NODE)?["epoch"].clone();
    for round in 1..=AT_REST {
        // As long as from one checkpoint to the next: it is killed in each part of one.
        let (host, wait) = (moments.host(), moments.wait(Duration::from_secs(6)));
        std::thread::sleep(wait);
        kill(stage, host)?;
        all_live(&before, &[], &format!("kill {round} at rest, of {host} after {wait:?}"))?;
    }
    stage.wait_whole("alice", 1, REPAIR)?;
    all_live(&before, &[], "after the kills at rest")?;
    let after = stage.node(NODE)?["epoch"].clone();
    ensure!(after == epoch, "a failover at rest: epoch {epoch}, then {after}");
    eprintln!("{AT_REST} kills at rest: {} instances live on", before.len());
    Ok(())
}

fn in_restore(stage: &Stage, moments: &mut Moments) -> Result<()> {
    for round in 1..=IN_RESTORE {
        stage.wait_whole("alice", 1, REPAIR)?;
        let node = stage.node(NODE)?;
        let ((primary, instance), begun) = (member(&node)?, node["incarnation"].clone());
        let restores = node["backups"][0]["host"].as_str().context("no backup")?.to_owned();
        let process = start_of(stage.cluster(), address_of(&node)?)?;
        let before = healthy(stage)?;
        let wait = moments.wait(Duration::from_secs(3));
        stage.kill_instance(&primary, &instance)?;
        std::thread::sleep(wait);
        kill(stage, &restores)?;
        let what = format!("kill {round} in a restore, of {restores} after {wait:?}");
        let after = stage.wait(&what, REPAIR, |status| {
            let node = node_of(status, NODE)?;
            ensure!(node["incarnation"] != begun && node["primary"]["ready"] == true, "{node}");
            Ok(node)
        })?;
        all_live(&before, &[instance], &what)?;
        let same = start_of(stage.cluster(), address_of(&after)?)?;
        ensure!(same == process, "{what}: another process counts: {}", after["incident"]);
    }
    eprintln!("{IN_RESTORE} kills in restores: the state went on, everything else lives");
    Ok(())
}

fn in_drain(stage: &Stage, moments: &mut Moments) -> Result<()> {
    for round in 1..=IN_DRAIN {
        stage.wait_whole("alice", 1, REPAIR)?;
        let node = stage.node(NODE)?;
        let (source, begun) = (member(&node)?.0, node["incarnation"].clone());
        let process = start_of(stage.cluster(), address_of(&node)?)?;
        let (host, wait) = (moments.host(), moments.wait(Duration::from_secs(8)));
        stage.cli(&["host", "drain", &source])?;
        std::thread::sleep(wait);
        kill(stage, host)?;
        let what = format!("kill {round} in a drain of {source}, of {host} after {wait:?}");
        let after = stage.wait(&what, REPAIR, |status| {
            let node = node_of(status, NODE)?;
            ensure!(node["migrating_to"].is_null() && node["primary"]["ready"] == true, "{node}");
            ensure!(node["primary"]["host"] != source.as_str(), "it is still on {source}");
            Ok(node)
        })?;
        ensure!(
            after["incarnation"] == begun,
            "{what}: it was not moved but begun anew: {}",
            after["incident"]
        );
        let same = start_of(stage.cluster(), address_of(&after)?)?;
        ensure!(same == process, "{what}: another process counts");
        stage.cli(&["host", "undrain", &source])?;
    }
    eprintln!("{IN_DRAIN} kills in drains: each primary was moved alive");
    Ok(())
}

fn without_libvirtd(stage: &Stage, moments: &mut Moments) -> Result<()> {
    for _ in 0..WITHOUT_LIBVIRTD / KILLS_WHILE_AWAY {
        stage.wait_whole("alice", 1, REPAIR)?;
        stage.wait_pools(REPAIR)?;
        let before = healthy(stage)?;
        let host = moments.host();
        let mut waits: Vec<Duration> = (0..KILLS_WHILE_AWAY).map(|_| moments.wait(AWAY)).collect();
        waits.sort();
        let begun = Instant::now();
        stage.host(host)?.kill_libvirtd()?;
        for wait in &waits {
            std::thread::sleep(wait.saturating_sub(begun.elapsed()));
            // Two moments may be closer than an agent takes to be started again.
            stage.wait(&format!("the agent of {host} runs"), REPAIR, |_| {
                let agent = stage.host(host)?.service(understudy_lab::cluster::AGENT);
                agent.pid()?.map(drop).context("it has not started")
            })?;
            stage.kill_agent(host)?;
        }
        std::thread::sleep(AWAY.saturating_sub(begun.elapsed()));
        stage.host(host)?.start_libvirtd()?;
        stage.wait("nothing is wrong any more", REPAIR, |status| {
            let seen = host_of(status, host)?;
            let said = seen["conditions"].as_array().map_or(0, Vec::len);
            ensure!(seen["state"] == "open" && said == 0, "{seen}");
            Ok(())
        })?;
        all_live(&before, &[], &format!("{host} without libvirtd, its agent killed after {waits:?}"))?;
    }
    eprintln!("{WITHOUT_LIBVIRTD} kills without libvirtd: everything lives");
    Ok(())
}

/// A node's newest checkpoint, and the longest time between one and the next, as an agent hears of them meanwhile. The
/// guest's own times count: a host that does not answer holds up the question, not the checkpoints.
fn longest_gap(stage: &Stage, by: &str, node: &str, watched: Duration) -> Result<(Duration, Newest)> {
    let look = || newest_on(stage, stage.host(by)?, node);
    let (begun, mut last, mut longest) = (Instant::now(), look()?, Duration::ZERO);
    let mut since = Instant::now();
    while begun.elapsed() < watched {
        // Where the only host that has any stands still, none is heard of until another has one.
        if let Some(seen) = look().ok().filter(|seen| seen.id > last.id) {
            longest = longest.max(Duration::from_millis(seen.taken.saturating_sub(last.taken)));
            (since, last) = (Instant::now(), seen);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok((longest.max(since.elapsed() + last.age), last))
}

/// S4: a host that stands still is no reason for the others' nodes to go without checkpoints.
fn a_frozen_backups_host(stage: &Stage) -> Result<()> {
    stage.wait_whole("alice", 1, REPAIR)?;
    let node = stage.node(NODE)?;
    let backup = node["backups"][0]["host"].as_str().context("no backup")?.to_owned();
    let (primary, _) = member(&node)?;
    stage.host(&backup)?.freeze()?;
    let seen = longest_gap(stage, &primary, NODE, FROZEN);
    stage.host(&backup)?.thaw()?;
    let (longest, last) = seen?;
    eprintln!(
        "{backup} stood still for {FROZEN:?}: the longest time between two checkpoints was {longest:?}"
    );
    ensure!(longest <= GAP_MAX, "{longest:?} without a new checkpoint; the last is {last:?}");
    stage.wait_whole("alice", 1, REPAIR)?;
    Ok(())
}

#[test]
fn agents_that_are_killed_at_any_moment_end_no_healthy_instance_and_a_frozen_host_holds_up_no_other() {
    let stage = Stage::raise(&common::artifacts(), "ustlab-disturbed").expect("three hosts");
    common::with_logs(&stage, "understudy-disturbed-logs", || {
        let file = Counters { backups: Some(1), ..Counters::default() }.file()?;
        stage.create("alice", file.path())?;
        let mut moments = Moments::seeded();
        at_rest(&stage, &mut moments)?;
        in_restore(&stage, &mut moments)?;
        without_libvirtd(&stage, &mut moments)?;
        in_drain(&stage, &mut moments)?;
        a_frozen_backups_host(&stage)
    });
}
