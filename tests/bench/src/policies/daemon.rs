//! Owns the real daemon with and without policies, for its memory: one host, the embedded store, libvirt's simulated
//! driver, so that nothing of the machine is touched.
//!
//! Promises: what was started is ended, and its files are removed, however it goes.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{MEMORY, Subjects};
use crate::row::Row;

/// Longest wait for a daemon that has loaded its policies, compiling included.
const LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(50);

/// Who decides where several could: without that a set is refused.
const SETTINGS: &str = "[choice]\nplacement = \"spread\"\nbackup-count = \"count\"\n";

/// Resident memory of the agent with all policies of this tree, in MiB; the floor is the same agent without any.
pub(super) fn memory(subjects: &Subjects, runs: usize) -> Result<Row> {
    let folder = subjects.scratch.join("daemon");
    let mut with = Vec::new();
    let mut without = Vec::new();
    let mut policies = 0;
    for _ in 0..runs {
        without.push(resident(subjects, &folder, &BTreeMap::new())?);
        let all = components(&subjects.policies)?;
        policies = all.len();
        with.push(resident(subjects, &folder, &all)?);
    }
    let name = format!("{MEMORY}: agent, {policies} policies");
    let floor = Row::stated("floor", "MiB", &without).median;
    let row = Row::stated(&name, "MiB", &with);
    Ok(Row { floor: Some(floor), ratio: Some(row.median / floor), ..row })
}

/// The components of a folder by name.
fn components(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            found.insert(name, path);
        }
    }
    Ok(found)
}

/// Resident memory of an agent that has loaded these policies.
fn resident(subjects: &Subjects, folder: &Path, policies: &BTreeMap<String, PathBuf>) -> Result<f64> {
    let _files = Files::make(folder)?;
    let config = set_up(subjects, folder, policies)?;
    let guard = folder.join("guard.sock");
    let mut command = Command::new(subjects.binaries.join("understudy-guard"));
    command.arg("run").arg("--socket").arg(&guard).arg("--table").arg(folder.join("guard.table"));
    let mut guard_process = Process::start(&mut command)?;
    wait(&mut [&mut guard_process], || Ok(guard.exists().then_some(())), "the guard's socket")?;
    let understudy = subjects.binaries.join("understudy");
    let mut agent = Process::start(Command::new(&understudy).arg("agent").arg("--config").arg(&config))?;
    let socket = folder.join("api.sock");
    let loaded = || {
        let mut list = Command::new(&understudy);
        let said = list.arg("--json").arg("--socket").arg(&socket).args(["policy", "list"]).output()?;
        Ok(serde_json::from_slice(&said.stdout).ok().filter(|status| is_loaded(status, policies.len())))
    };
    wait(&mut [&mut guard_process, &mut agent], loaded, "an agent with all policies")?;
    rss_mib(&std::fs::read_to_string(format!("/proc/{}/status", agent.0.id()))?)
}

/// Whether the agent answers and has that many policies that can be asked.
fn is_loaded(status: &serde_json::Value, policies: usize) -> bool {
    let listed = status["policies"].as_array().map_or(0, Vec::len);
    let decides = |interface: &str| status["deciding"][interface].is_string();
    // The folder is looked at moments after the agent answers first.
    listed == policies && (policies == 0 || (decides("placement") && decides("backup-count")))
}

/// Resident memory as `/proc/<pid>/status` says it.
fn rss_mib(status: &str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().next().context("no VmRSS")?.parse()?;
    Ok(kib / 1024.0)
}

/// Writes what an agent needs, and gives its configuration.
fn set_up(subjects: &Subjects, folder: &Path, policies: &BTreeMap<String, PathBuf>) -> Result<PathBuf> {
    // Not `policies`: that is the agent's own, within its state.
    let site = folder.join("site");
    std::fs::create_dir(&site).context("make the folder of policies")?;
    for (name, component) in policies {
        let to = site.join(format!("{name}.wasm"));
        std::fs::copy(component, &to).with_context(|| format!("write {}", to.display()))?;
    }
    if !policies.is_empty() {
        std::fs::write(site.join("policies.toml"), SETTINGS).context("write the settings of policies")?;
    }
    let role = folder.join("role.erofs");
    std::fs::write(&role, "no terminal is made, so it is never looked into").context("write a role disk")?;
    let (api, gateway) = (free_port()?, free_port()?);
    let text = format!(
        r#"[host]
name = "host1"
state_dir = {folder:?}
runtime_dir = {folder:?}
[libvirt]
uri = "test:///default"
accelerator = "qemu"
template = {template:?}
[store]
kind = "embedded"
path = {store:?}
[network]
addresses = "192.168.122.200-192.168.122.219"
[environments]
desktop = {role:?}
[policies]
dir = {site:?}
[api]
socket = {socket:?}
listen = "127.0.0.1:{api}"
[gateway]
listen = "127.0.0.1:{gateway}"
[guard]
socket = {guard:?}
"#,
        template = subjects.template,
        store = folder.join("store.redb"),
        socket = folder.join("api.sock"),
        guard = folder.join("guard.sock"),
    );
    let config = folder.join("agent.toml");
    std::fs::write(&config, text).context("write the agent's configuration")?;
    Ok(config)
}

/// A port that nobody listens on.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Waits until `done` gives something, for as long as all processes live.
fn wait<T>(processes: &mut [&mut Process], done: impl Fn() -> Result<Option<T>>, what: &str) -> Result<T> {
    let give_up = Instant::now() + LIMIT;
    loop {
        if let Some(found) = done()? {
            return Ok(found);
        }
        for process in &mut *processes {
            if let Some(status) = process.0.try_wait()? {
                bail!("waiting for {what}: process {} ended with {status}", process.0.id());
            }
        }
        if Instant::now() > give_up {
            bail!("{what}: not within {} s", LIMIT.as_secs());
        }
        std::thread::sleep(LOOK);
    }
}

/// A process that ends with this.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Result<Self> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = quiet.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Self(started))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already, or ends now: there is nobody left to tell otherwise.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that goes with this.
struct Files(PathBuf);

impl Files {
    fn make(folder: &Path) -> Result<Self> {
        if folder.exists() {
            std::fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self(folder.to_owned()))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_mib() {
        assert_eq!(rss_mib("Name:\tx\nVmHWM:\t 9999 kB\nVmRSS:\t 2048 kB\n").unwrap(), 2.0);
        assert!(rss_mib("Name:\tx\n").is_err());
    }

    #[test]
    fn policies_that_are_listed_and_decide_nothing_are_not_loaded_yet() {
        let status = |policies: usize, decides: bool| {
            let who = |name: &str| decides.then(|| name.to_owned());
            serde_json::json!({
                "policies": vec![0; policies],
                "deciding": {"placement": who("spread"), "backup-count": who("count")},
            })
        };
        assert!(is_loaded(&status(5, true), 5) && is_loaded(&status(0, false), 0));
        assert!(!is_loaded(&status(4, true), 5) && !is_loaded(&status(5, false), 5));
        assert!(!is_loaded(&serde_json::Value::Null, 5));
    }

    #[test]
    fn an_end_of_a_process_that_is_waited_for_is_told() {
        let mut process = Process::start(&mut Command::new("false")).unwrap();
        let error = wait(&mut [&mut process], || Ok(None::<()>), "a sign").unwrap_err().to_string();
        assert!(error.contains("waiting for a sign") && error.contains("ended with"), "{error}");
    }
}
