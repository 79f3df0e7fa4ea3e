//! A host whose guard or libvirtd is gone, on three real hosts: no member outlives the host's lease, the host says what it
//! lacks, and what it had not begun runs elsewhere.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use understudy_e2e::counter::start_of;
use understudy_e2e::counters::Counters;
use understudy_e2e::process::process_of;
use understudy_e2e::stage::{Stage, address_of, host_of, node_of};
use understudy_e2e::story::member;
use understudy_lab::cluster::{AGENT, GUARD};

/// Ten members: each has a display node and an execution node, without backups.
const TERMINALS: [&str; 5] = ["one", "two", "three", "four", "five"];
/// Until one node is whole again elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(30);
/// Within which a host says what it lacks.
const SAID: Duration = Duration::from_secs(5);
const REPAIR: Duration = Duration::from_secs(240);
const LOOK: Duration = Duration::from_millis(5);
/// So many agents in turn may win before the one that is meant.
const LEADERS: usize = 12;

/// Waits until a host says that this does not answer, with what to do.
fn wait_said(stage: &Stage, host: &str, service: &str) -> Result<Duration> {
    let begun = Instant::now();
    let advice = format!("systemctl status {service}");
    stage.wait(&format!("{host} says that {service} is away"), SAID, |status| {
        let said = host_of(status, host)?["conditions"].to_string();
        ensure!(said.contains(&advice) && said.contains("does not answer"), "{said}");
        Ok(())
    })?;
    Ok(begun.elapsed())
}

fn create(stage: &Stage, name: &str, counters: &Counters) -> Result<()> {
    let file = counters.file()?;
    stage.cli(&["terminal", "create", name, "--from", &file.path().display().to_string()])?;
    Ok(())
}

/// When the store was last seen to hold the host's lease open, as a moment before the question.
fn wait_expired(stage: &Stage, host: &str) -> Result<Instant> {
    let key = format!("/understudy/v2/cluster/hosts/{host}/lease");
    let begun = Instant::now();
    let mut open = begun;
    loop {
        let asked = Instant::now();
        let record: Value =
            serde_json::from_str(&stage.cluster().etcdctl(&["get", "--print-value-only", &key])?)?;
        if !record["expired"].is_null() {
            return Ok(open);
        }
        open = asked;
        ensure!(begun.elapsed() < Duration::from_secs(60), "the lease is still open: {record}");
    }
}

/// The ready primaries on a host.
fn members_of(status: &Value, host: &str) -> Result<Vec<String>> {
    let terminals = status["terminals"].as_array().context("no terminals")?;
    let nodes = terminals.iter().flat_map(|terminal| terminal["nodes"].as_array().into_iter().flatten());
    let here = nodes.filter(|node| node["primary"]["host"] == host && node["primary"]["ready"] == true);
    here.map(|node| Ok(member(node)?.1)).collect()
}

/// S1: the guard is gone for good, and ten members die before anybody may take their places.
fn no_member_outlives_the_lease(stage: &Stage) -> Result<()> {
    let host = "host1";
    for other in ["host2", "host3"] {
        stage.cli(&["host", "drain", other])?;
    }
    let unprotected = Counters {
        protected: false,
        backups: Some(0),
        display_mib: Some(176),
        execution_mib: Some(176),
        ..Counters::default()
    };
    // One after the other: ten guests that are deployed at once take each other's time.
    for terminal in TERMINALS {
        create(stage, terminal, &unprotected)?;
        stage.wait_whole(terminal, 0, REPAIR)?;
    }
    let members = members_of(&stage.status()?, host)?;
    ensure!(members.len() == 2 * TERMINALS.len(), "{} members are ready on {host}", members.len());
    let processes = members.iter().map(|one| process_of(one)).collect::<Result<Vec<_>>>()?;
    let (stop, guard) = (AtomicBool::new(false), stage.host(host)?.service(GUARD));
    let (last_alive, open) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut last = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                // The moment after the look: none of them is later than that.
                let alive = processes.iter().any(|process| process.alive());
                std::thread::sleep(LOOK);
                if alive {
                    last = Instant::now();
                }
            }
            last
        });
        let open = guard.kill_and_hold().map_err(Into::into).and_then(|()| {
            let said = wait_said(stage, host, "understudy-guard")?;
            eprintln!("{host} said so after {said:?}");
            wait_expired(stage, host)
        });
        stop.store(true, Ordering::Relaxed);
        (watch.join().expect("the watch does not panic"), open)
    });
    let open = open?;
    let before = open.checked_duration_since(last_alive);
    eprintln!("all of them had ended {before:?} before the store was last seen to hold the lease open");
    ensure!(before.is_some(), "a member lived {:?} after the lease was last seen open", last_alive - open);
    ensure!(processes.iter().all(|process| !process.alive()), "a member lives");
    stage.host(host)?.service(GUARD).start()?;
    for terminal in TERMINALS {
        stage.cli(&["terminal", "delete", terminal])?;
    }
    for other in ["host2", "host3"] {
        stage.cli(&["host", "undrain", other])?;
    }
    stage.wait_pools(REPAIR)
}

/// Agents that are about to stand still must not lead: nobody would assign anything before their leases are over.
fn let_lead(stage: &Stage, host: &str) -> Result<()> {
    for _ in 0..LEADERS {
        let leader = stage.status()?["leader"].as_str().context("nobody leads")?.to_owned();
        if leader == host {
            return Ok(());
        }
        // One that is restarted resigns, and another wins before it is back.
        stage.host(&leader)?.service(AGENT).restart()?;
        stage.wait("another leads", REPAIR, |status| {
            let now = &status["leader"];
            ensure!(now.is_string() && *now != leader.as_str(), "{now} leads");
            // What it is given from here on comes after its first reading of the store: no agent before it can have begun it.
            stage.status_on(stage.host(&leader)?)?;
            ensure!(host_of(status, &leader)?["state"] == "open", "{}", host_of(status, &leader)?);
            Ok(())
        })?;
    }
    bail!("{host} never leads")
}

/// How often this host's agent has told a leader which checkpoints it has of the node, to decide a failover by.
fn told(stage: &Stage, host: &str, node: &str) -> Result<usize> {
    let log = stage.cluster().dir().join(host).join("log/agent.log");
    let text = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
    Ok(text.lines().filter(|line| line.contains("a leader is told") && line.contains(node)).count())
}

/// S2: libvirtd of a host is gone; what the host was given meanwhile it gives back, and the state goes on elsewhere.
fn what_is_not_begun_runs_elsewhere(stage: &Stage) -> Result<()> {
    let id = "solo/exec-1";
    create(stage, "solo", &Counters { backups: Some(2), ..Counters::default() })?;
    stage.wait_whole("solo", 2, REPAIR)?;
    let (primary, instance) = member(&stage.node(id)?)?;
    let_lead(stage, &primary)?;
    stage.wait_whole("solo", 2, REPAIR)?;
    let node = stage.node(id)?;
    ensure!(member(&node)? == (primary.clone(), instance.clone()), "the primary has moved: {node}");
    ensure!(stage.status()?["leader"] == primary.as_str(), "{primary} does not lead any more");
    let (process, begun) = (start_of(stage.cluster(), address_of(&node)?)?, node["incarnation"].clone());
    let backup = |at: usize| node["backups"][at]["host"].as_str().context("no backup").map(str::to_owned);
    let (first, second) = (backup(0)?, backup(1)?);
    let (lacking, silent) = (stage.host(&first)?, stage.host(&second)?);
    let before = told(stage, &first, id)?;
    // The leader waits for this one's answer for a second, and then decides by the other's. It has the state, too.
    silent.service(AGENT).signal(Signal::SIGSTOP)?;
    stage.kill_instance(&primary, &instance)?;
    let killed = Instant::now();
    let given = given_without_libvirtd(stage, &node, (&first, before));
    silent.service(AGENT).signal(Signal::SIGCONT)?;
    // Its agent hears of the assignment and of libvirtd's end at one moment.
    lacking.service(AGENT).signal(Signal::SIGCONT)?;
    let given = given?;
    ensure!(given != begun, "{given}");
    let said = wait_said(stage, &first, "libvirtd")?;
    let went_on = Instant::now();
    let after = stage.wait("it runs elsewhere", ELSEWHERE, |status| {
        let node = node_of(status, id)?;
        ensure!(node["incarnation"] != given && node["primary"]["ready"] == true, "{node}");
        Ok(node)
    })?;
    eprintln!(
        "said after {said:?}; ready elsewhere {:?} after the agent went on, {:?} after the kill",
        went_on.elapsed(),
        killed.elapsed()
    );
    ensure!(after["primary"]["host"] != first.as_str(), "{after}");
    ensure!(after["incident"]["state"]["checkpoint"].is_object(), "{}", after["incident"]);
    ensure!(start_of(stage.cluster(), address_of(&after)?)? == process, "another process counts");
    let status = stage.status()?;
    ensure!(host_of(&status, &first)?["state"] == "open", "it keeps its lease: {status}");
    lacking.start_libvirtd()?;
    stage.wait("nothing is wrong any more", REPAIR, |status| {
        let said = host_of(status, &first)?["conditions"].clone();
        ensure!(said.as_array().is_some_and(Vec::is_empty), "{said}");
        Ok(())
    })?;
    stage.wait_whole("solo", 2, REPAIR)?;
    Ok(())
}

/// Waits until this host has said what it has, ends its libvirtd while its agent stands still, and waits until it is given the
/// node: as which incarnation.
fn given_without_libvirtd(stage: &Stage, node: &Value, (host, before): (&str, usize)) -> Result<Value> {
    let id = node["id"].as_str().context("no id")?;
    let (leader, lacking) =
        (stage.host(node["primary"]["host"].as_str().context("no primary")?)?, stage.host(host)?);
    let begun = Instant::now();
    while told(stage, host, id)? == before {
        ensure!(begun.elapsed() < SAID, "{host} is not asked for its checkpoints");
        std::thread::sleep(LOOK);
    }
    lacking.service(AGENT).signal(Signal::SIGSTOP)?;
    lacking.kill_libvirtd()?;
    loop {
        // The others stand still.
        let seen = node_of(&stage.status_on(leader)?, id)?;
        if seen["incarnation"] != node["incarnation"] && seen["primary"]["host"] == host {
            return Ok(seen["incarnation"].clone());
        }
        ensure!(begun.elapsed() < SAID, "it is not given to the host that lacks libvirtd: {seen}");
        std::thread::sleep(LOOK);
    }
}

#[test]
#[ignore = "needs a cluster"]
fn a_host_without_its_guard_or_libvirtd_ends_its_members_in_time_and_gives_back_what_it_has_not_begun() {
    let stage = Stage::raise(&common::artifacts(), "ustlab-lease").expect("three hosts");
    common::with_logs(&stage, "understudy-lease-logs", || {
        stage.wait_pools(REPAIR)?;
        no_member_outlives_the_lease(&stage)?;
        what_is_not_begun_runs_elsewhere(&stage)
    });
}
