//! Owns the story that the demo tells and the end-to-end test repeats: a terminal loses its display, an execution
//! host, and has a host drained under it.
//!
//! Promises: every act ends with a verdict from what was seen from outside: the status, the guests' counters, the page
//! in a real browser. Must not reach into agents.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::browser::Browser;
use crate::counter::{Watch, start_of};
use crate::stage::{Stage, address_of, node_of};

/// Until an act's outcome is there.
const ACT: Duration = Duration::from_secs(120);
/// Until the cluster has made its backups good again.
const REPAIR: Duration = Duration::from_secs(240);
/// The demo's terminal.
pub const TERMINAL: &str = "alice";

/// One verdict with what it rests on.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// What was promised.
    pub promise: String,
    /// Whether it held.
    pub holds: bool,
    /// What was seen.
    pub seen: String,
}

/// One act: its phases with their times, and its verdicts.
#[derive(Debug, Clone, Default)]
pub struct Act {
    /// What was done.
    pub title: String,
    /// Phases with the time since the fault, in the order in which they ended.
    pub phases: Vec<(String, Duration)>,
    /// The verdicts.
    pub verdicts: Vec<Verdict>,
    /// Screenshots taken.
    pub pictures: Vec<PathBuf>,
}

impl Act {
    fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    fn judge(&mut self, promise: impl Into<String>, holds: bool, seen: impl Into<String>) {
        self.verdicts.push(Verdict { promise: promise.into(), holds, seen: seen.into() });
    }

    fn phase(&mut self, name: &str, since: Duration) {
        self.phases.push((name.to_owned(), since));
    }

    /// Whether every verdict holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.holds)
    }
}

/// The teller.
pub struct Story<'a> {
    /// The cluster.
    pub stage: &'a Stage,
    /// The browser that shows the terminal.
    pub browser: &'a Browser,
    /// Where screenshots go.
    pub pictures: PathBuf,
    /// Told what goes on.
    pub say: &'a dyn Fn(&str),
}

fn text<'v>(value: &'v Value, what: &str) -> Result<&'v str> {
    value.as_str().with_context(|| format!("no {what} in the status"))
}

fn ms(value: &Value) -> Option<u64> {
    value.as_u64()
}

impl Story<'_> {
    /// Creates the terminal and waits until it is whole and shown.
    ///
    /// # Errors
    /// When it does not come to be.
    pub fn raise(&self, description: &Path) -> Result<()> {
        (self.say)(
            "filling the pools, then creating terminal alice: a display node, two execution nodes, a backup of each",
        );
        let took = self.stage.create(TERMINAL, description)?;
        (self.say)(&format!("alice is whole after {:.1} s", took.as_secs_f64()));
        self.browser.goto(&self.stage.page(TERMINAL, 1))?;
        self.connected(ACT)?;
        Ok(())
    }

    fn connected(&self, limit: Duration) -> Result<Duration> {
        Ok(self.browser.wait(
            "the page shows the display",
            "document.body.dataset.state === 'connected'",
            limit,
        )?)
    }

    fn picture(&self, act: &mut Act, name: &str) -> Result<()> {
        std::fs::create_dir_all(&self.pictures)?;
        let path = self.pictures.join(format!("{name}.png"));
        let picture = self.browser.screenshot(&path)?;
        act.judge(
            format!("screenshot {name} shows windows"),
            !picture.is_black(),
            path.display().to_string(),
        );
        act.pictures.push(path);
        Ok(())
    }

    /// Kills the display primary's qemu.
    ///
    /// # Errors
    /// When the story cannot go on.
    pub fn display_dies(&self) -> Result<Act> {
        let mut act = Act::new("display primary's qemu is killed");
        let before = self.stage.status()?;
        let display = node_of(&before, "alice/display")?;
        let (host, instance) = member(&display)?;
        let execs = ["alice/exec-1", "alice/exec-2"];
        let addresses = execs.map(|id| node_of(&before, id).and_then(|node| address_of(&node)));
        let [first, second] = addresses;
        let watches =
            [Watch::start(self.stage.cluster(), first?)?, Watch::start(self.stage.cluster(), second?)?];
        self.picture(&mut act, "1-before-display-failover")?;
        let connections = self.connections()?;
        (self.say)(&format!("killing the display primary {instance} on {host}"));
        let killed_at = watches.each_ref().map(Watch::elapsed);
        let killed = Instant::now();
        self.stage.kill_instance(&host, &instance)?;
        let epoch = display["begun"].as_u64().unwrap_or(0);
        let after = self.stage.wait("a backup is promoted", ACT, |status| {
            let node = node_of(status, "alice/display")?;
            let newer = node["begun"].as_u64().unwrap_or(0) > epoch && node["primary"]["ready"] == true;
            if newer { Ok(node) } else { bail!("display is {}", node["primary"]) }
        })?;
        act.phase("promoted (seen in status)", killed.elapsed());
        self.stage.wait("windows are sent", ACT, |status| {
            let back =
                execs.iter().all(|id| node_of(status, id).is_ok_and(|node| node["windows_sent"] == true));
            if back { Ok(()) } else { bail!("not all windows are sent") }
        })?;
        act.phase("all windows accepted by the new display (seen in status)", killed.elapsed());
        self.reconnected(connections, ACT)?;
        act.phase("page shows the new display", killed.elapsed());
        let display = self.stage.wait("the timeline is complete", ACT, |status| {
            let node = node_of(status, "alice/display")?;
            if node["incident"]["windows"].is_null() {
                bail!("windows are not back")
            }
            Ok(node)
        })?;
        incident_phases(&mut act, &display);
        let (new_host, new_instance) = member(&after)?;
        act.judge(
            "a warm backup on another host was promoted",
            new_host != host && new_instance != instance,
            format!("{host} to {new_host}"),
        );
        let counted = watches.iter().zip(killed_at).map(|(watch, at)| (watch.seen(), at));
        let untouched = counted
            .clone()
            .all(|(seen, at)| seen.never_back(Duration::ZERO) && seen.first_after(at).is_some());
        let gaps: Vec<String> =
            counted.map(|(seen, at)| format!("{:.2} s", seen.longest_gap(at).as_secs_f64())).collect();
        act.judge(
            "applications were untouched",
            untouched,
            format!("longest silence of each counter {}", gaps.join(", ")),
        );
        self.settle_picture(&mut act, "2-after-display-failover")?;
        Ok(act)
    }

    /// Waits until the page has made a new connection since `before`.
    fn reconnected(&self, before: u64, limit: Duration) -> Result<Duration> {
        let condition = format!(
            "document.body.dataset.state === 'connected' && Number(document.body.dataset.connections) > {before}"
        );
        Ok(self.browser.wait("the page is connected anew", &condition, limit)?)
    }

    fn connections(&self) -> Result<u64> {
        Ok(self.browser.dataset("connections")?.and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// A screenshot once the windows have been drawn: sent is not yet painted.
    fn settle_picture(&self, act: &mut Act, name: &str) -> Result<()> {
        self.connected(ACT)?;
        let mut last = None;
        let until = Instant::now() + ACT;
        loop {
            let shown = self.shown_windows();
            if shown.as_ref().is_ok_and(|&shown| shown >= 4) || Instant::now() > until {
                act.judge(
                    "all four windows are on the screen",
                    shown.as_ref().is_ok_and(|&shown| shown >= 4),
                    format!("{shown:?}"),
                );
                break;
            }
            last = Some(shown);
            std::thread::sleep(Duration::from_millis(200));
        }
        drop(last);
        // What libvirt and the guest call shown still has to cross the gateway and be painted by the browser.
        std::thread::sleep(Duration::from_millis(1500));
        self.picture(act, name)
    }

    /// Windows mapped on the display primary, as the guest itself says.
    fn shown_windows(&self) -> Result<usize> {
        let display = self.stage.node("alice/display")?;
        let (host, instance) = member(&display)?;
        let lines = guest_us(self.stage, &host, &instance, &["display", "windows"])?;
        Ok(lines.lines().filter(|line| line.starts_with("alice.")).count())
    }

    /// Powers off the host of the first execution node's primary.
    ///
    /// # Errors
    /// When the story cannot go on.
    pub fn execution_host_dies(&self) -> Result<Act> {
        let mut act = Act::new("the host of an execution primary is powered off");
        let id = "alice/exec-1";
        self.stage.wait_whole(TERMINAL, 1, REPAIR)?;
        let node = self.stage.node(id)?;
        let (host, _) = member(&node)?;
        let address = address_of(&node)?;
        let process = start_of(self.stage.cluster(), address)?;
        let watch = Watch::start(self.stage.cluster(), address)?;
        self.picture(&mut act, "3-before-power-cut")?;
        // Power is cut when the checkpoint is a few seconds old, so that what is lost can be told from what is kept.
        let age = self.stage.wait("a checkpoint of some age", ACT, |status| {
            let age = ms(&node_of(status, id)?["checkpoint"]["age_ms"]).context("no checkpoint")?;
            if (2500..6000).contains(&age) { Ok(age) } else { bail!("age is {age} ms") }
        })?;
        let taken = watch.elapsed().saturating_sub(Duration::from_millis(age));
        (self.say)(&format!(
            "powering off {host}, which runs {id}; its newest checkpoint is {:.1} s old",
            Duration::from_millis(age).as_secs_f64()
        ));
        self.stage.host(&host)?.power_off()?;
        let (cut, cut_at) = (Instant::now(), watch.elapsed());
        let begun = node["begun"].as_u64().unwrap_or(0);
        let after = self.stage.wait("the node is restored", ACT, |status| {
            let node = node_of(status, id)?;
            let newer = node["begun"].as_u64().unwrap_or(0) > begun && node["primary"]["ready"] == true;
            if newer { Ok(node) } else { bail!("{id} is {}", node["primary"]) }
        })?;
        act.phase("restored and ready (seen in status)", cut.elapsed());
        let first = wait_sample(&watch, cut_at, ACT)?;
        act.phase("counter answers again", first.at.saturating_sub(cut_at));
        self.stage.wait("windows are back", ACT, |status| {
            let node = node_of(status, id)?;
            if node["windows_sent"] == true && !node["incident"]["windows"].is_null() {
                Ok(())
            } else {
                bail!("windows are not sent")
            }
        })?;
        act.phase("windows accepted again (seen in status)", cut.elapsed());
        incident_phases(&mut act, &self.stage.node(id)?);
        let seen = watch.seen();
        let last = seen.last_before(cut_at).map_or(0, |sample| sample.value);
        let floor = seen.last_before(taken).map_or(0, |sample| sample.value);
        // Samples follow the counter by one reading and one tick.
        let holds = first.value + 3 >= floor && first.value <= last && first.value > 0;
        act.judge(
            "restored value is at least the checkpoint's, at most the last seen, never from 0",
            holds,
            format!("at the checkpoint {floor}, last seen {last}, first after the restore {}", first.value),
        );
        let new_host = member(&after)?.0;
        act.judge(
            "its state was restored on its backup's host",
            new_host != host,
            format!("{host} to {new_host}"),
        );
        let kept = &after["incident"]["state"]["checkpoint"];
        act.judge("the record names the checkpoint and its age", !kept.is_null(), kept.to_string());
        let same = start_of(self.stage.cluster(), address)? == process;
        act.judge("the very same process counts on", same, process);
        self.settle_picture(&mut act, "4-after-power-cut")?;
        (self.say)(&format!("powering {host} on again"));
        self.stage.host(&host)?.boot()?;
        Ok(act)
    }

    /// Drains the host of the first execution node's primary.
    ///
    /// # Errors
    /// When the story cannot go on.
    pub fn host_is_drained(&self) -> Result<Act> {
        let mut act = Act::new("a host is drained");
        let id = "alice/exec-1";
        self.stage.wait("all three hosts are open", REPAIR, |status| {
            let hosts = status["hosts"].as_array().context("no hosts")?;
            let open = hosts.iter().filter(|host| host["state"] == "open" && host["memory_mib"] != 0).count();
            if open == 3 { Ok(()) } else { bail!("{open} of 3 hosts are open") }
        })?;
        self.stage.wait_whole(TERMINAL, 1, REPAIR)?;
        let node = self.stage.node(id)?;
        let (host, _) = member(&node)?;
        let address = address_of(&node)?;
        let process = start_of(self.stage.cluster(), address)?;
        let watch = Watch::start(self.stage.cluster(), address)?;
        self.picture(&mut act, "5-before-drain")?;
        (self.say)(&format!("draining {host}"));
        let (begun, begun_at) = (Instant::now(), watch.elapsed());
        self.stage.cli(&["host", "drain", &host])?;
        self.stage.wait("the host is empty", REPAIR, |status| {
            let hosts = status["hosts"].as_array().context("no hosts")?;
            let shown = hosts.iter().find(|shown| shown["id"] == host.as_str()).context("no such host")?;
            let primaries = ["alice/display", "alice/exec-1", "alice/exec-2"]
                .iter()
                .filter(|id| node_of(status, id).is_ok_and(|node| node["primary"]["host"] == host.as_str()))
                .count();
            if primaries == 0 && shown["members"] == 0 {
                Ok(())
            } else {
                bail!("{} members are left", shown["members"])
            }
        })?;
        act.phase("host is empty", begun.elapsed());
        self.stage.wait_whole(TERMINAL, 1, REPAIR)?;
        act.phase("everything is whole again", begun.elapsed());
        let moved = self.stage.node(id)?;
        let (new_host, _) = member(&moved)?;
        act.judge(
            "its instances left by live migration",
            new_host != host && moved["begun"] == node["begun"],
            format!("{host} to {new_host}"),
        );
        let seen = watch.seen();
        let gap = seen.longest_gap(begun_at);
        let same = start_of(self.stage.cluster(), address)? == process;
        act.judge(
            "the counter never stopped",
            same && seen.never_back(Duration::ZERO),
            format!("longest silence {:.2} s, no step back", gap.as_secs_f64()),
        );
        self.settle_picture(&mut act, "6-after-drain")?;
        self.stage.cli(&["host", "undrain", &host])?;
        Ok(act)
    }
}

impl Story<'_> {
    /// Kills the agent, then libvirtd, on the host of the first execution node's primary.
    ///
    /// # Errors
    /// When the story cannot go on.
    pub fn agent_and_libvirtd_die(&self) -> Result<Act> {
        let mut act = Act::new("an agent and a libvirtd are killed");
        let id = "alice/exec-1";
        self.stage.wait_whole(TERMINAL, 1, REPAIR)?;
        let node = self.stage.node(id)?;
        let (host, instance) = member(&node)?;
        let address = address_of(&node)?;
        let process = start_of(self.stage.cluster(), address)?;
        let watch = Watch::start(self.stage.cluster(), address)?;
        (self.say)(&format!("killing the agent of {host}, then its libvirtd"));
        let killed = Instant::now();
        self.stage.kill_agent(&host)?;
        self.stage.wait("the agent is back", ACT, |_| self.stage.status_on(self.stage.host(&host)?))?;
        act.phase("agent answers again", killed.elapsed());
        self.stage.host(&host)?.kill_libvirtd()?;
        self.stage.host(&host)?.start_libvirtd()?;
        act.phase("libvirtd answers again", killed.elapsed());
        self.stage.wait_whole(TERMINAL, 1, REPAIR)?;
        act.phase("everything is whole", killed.elapsed());
        let after = self.stage.node(id)?;
        let untouched = member(&after)? == (host, instance) && after["epoch"] == node["epoch"];
        act.judge("no VM was touched, nothing was promoted", untouched, after["primary"].to_string());
        let same =
            start_of(self.stage.cluster(), address)? == process && watch.seen().never_back(Duration::ZERO);
        act.judge("the counter went on", same, process);
        Ok(act)
    }
}

fn wait_sample(watch: &Watch, after: Duration, limit: Duration) -> Result<crate::counter::Sample> {
    let until = Instant::now() + limit;
    loop {
        if let Some(sample) = watch.seen().first_after(after + Duration::from_millis(500)) {
            return Ok(sample.clone());
        }
        if Instant::now() > until {
            bail!("the counter did not answer within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Host and instance of a node's primary.
///
/// # Errors
/// When it has none.
pub fn member(node: &Value) -> Result<(String, String)> {
    let primary = &node["primary"];
    Ok((text(&primary["host"], "host")?.to_owned(), text(&primary["instance"], "instance")?.to_owned()))
}

/// The agents' own timeline of a node's last failover.
fn incident_phases(act: &mut Act, node: &Value) {
    let incident = &node["incident"];
    let at = |name: &str| ms(&incident[name]);
    let Some(found) = at("found") else { return };
    for (name, label) in [
        ("decided", "found to decided (agents' clocks)"),
        ("ready", "found to ready (agents' clocks)"),
        ("windows", "found to windows back (agents' clocks)"),
    ] {
        if let Some(then) = at(name) {
            act.phase(label, Duration::from_millis(then.saturating_sub(found)));
        }
    }
}

/// Runs `us` in a guest, past the agents: for looking only.
///
/// # Errors
/// When the guest does not answer or the command fails.
pub fn guest_us(stage: &Stage, host: &str, instance: &str, words: &[&str]) -> Result<String> {
    let host = stage.host(host)?;
    let argv = |json: Value| {
        ["virsh", "-q", "qemu-agent-command", &format!("understudy-{instance}")]
            .map(str::to_owned)
            .into_iter()
            .chain([json.to_string()])
            .collect::<Vec<String>>()
    };
    let start = serde_json::json!({ "execute": "guest-exec", "arguments": { "path": "/sbin/us", "arg": words, "capture-output": true } });
    let answer: Value = serde_json::from_str(&host.run(argv(start))?)?;
    let pid = answer["return"]["pid"].as_u64().context("no pid")?;
    let ask = serde_json::json!({ "execute": "guest-exec-status", "arguments": { "pid": pid } });
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let answer: Value = serde_json::from_str(&host.run(argv(ask.clone()))?)?;
        if answer["return"]["exited"] == true {
            if answer["return"]["exitcode"] != 0 {
                bail!("us {} ended with {}", words.join(" "), answer["return"]["exitcode"]);
            }
            let data = answer["return"]["out-data"].as_str().unwrap_or_default();
            return Ok(String::from_utf8_lossy(&STANDARD.decode(data)?).into_owned());
        }
        if Instant::now() > until {
            bail!("us {} does not end", words.join(" "));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The table that ends the demo.
#[must_use]
pub fn table(acts: &[Act]) -> String {
    let mut out = String::new();
    for act in acts {
        let _ = writeln!(out, "\n{}", act.title);
        for (phase, took) in &act.phases {
            let _ = writeln!(out, "  {phase:58} {:>8.3} s", took.as_secs_f64());
        }
        for verdict in &act.verdicts {
            let word = if verdict.holds { "holds" } else { "DOES NOT HOLD" };
            let _ = writeln!(out, "  {word}: {} ({})", verdict.promise, verdict.seen);
        }
    }
    out
}
