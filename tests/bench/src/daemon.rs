//! Owns real daemons that need no lab: agent and guard over libvirt's simulated driver, so that nothing of the machine is
//! touched, and an etcd of their own where they want one.
//!
//! Promises: what was started is ended, and its files are removed, however it goes.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Longest wait for a daemon that has loaded its policies, compiling included, or for an etcd that is ready.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(50);

/// Who decides where several could: without that a set is refused.
const SETTINGS: &str = "[choice]\nplacement = \"spread\"\nbackup-count = \"count\"\n";

/// What a daemon is started from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Binaries<'a> {
    /// The folder of `understudy` and `understudy-guard`.
    pub(crate) folder: &'a Path,
    /// The domain template of the tree.
    pub(crate) template: &'a Path,
}

/// A guard and an agent.
pub(crate) struct Daemon {
    agent: Process,
    guard: Process,
    understudy: PathBuf,
    socket: PathBuf,
    _files: Files,
}

impl Daemon {
    /// Starts them in a folder that is made anew; `store` is what stands in the configuration's section of that name.
    pub(crate) fn start(
        binaries: Binaries<'_>,
        folder: &Path,
        (name, store): (&str, &str),
        policies: &BTreeMap<String, PathBuf>,
    ) -> Result<Self> {
        let files = Files::make(folder)?;
        let config = set_up(binaries.template, folder, (name, store), policies)?;
        let socket = folder.join("guard.sock");
        let mut command = Command::new(binaries.folder.join("understudy-guard"));
        command.arg("run").arg("--socket").arg(&socket).arg("--table").arg(folder.join("guard.table"));
        let mut guard = Process::start(&mut command)?;
        wait(&mut [&mut guard], || Ok(socket.exists().then_some(())), "the guard's socket")?;
        let understudy = binaries.folder.join("understudy");
        let agent = Process::start(Command::new(&understudy).arg("agent").arg("--config").arg(&config))?;
        Ok(Self { agent, guard, understudy, socket: folder.join("api.sock"), _files: files })
    }

    /// Asks it until `done` gives something.
    pub(crate) fn wait<T>(
        &mut self,
        words: &[&str],
        done: impl Fn(&Value) -> Option<T>,
        what: &str,
    ) -> Result<T> {
        let Self { agent, guard, understudy, socket, .. } = self;
        let asked = || {
            let said = Command::new(&*understudy)
                .arg("--json")
                .arg("--socket")
                .arg(&*socket)
                .args(words)
                .output()?;
            Ok(serde_json::from_slice(&said.stdout).ok().and_then(|value| done(&value)))
        };
        wait(&mut [guard, agent], asked, what)
    }

    /// The agent's process.
    pub(crate) fn agent(&self) -> u32 {
        self.agent.0.id()
    }
}

/// Processor time in seconds, the kernel's included, and resident memory in MiB of a process.
pub(crate) fn usage(pid: u32) -> Result<(f64, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("no stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok((ticks / TICKS, rss_mib(&std::fs::read_to_string(format!("/proc/{pid}/status"))?)?))
}

/// Clock ticks a second in `/proc/<pid>/stat`: `USER_HZ`, 100 on every Linux of this architecture.
const TICKS: f64 = 100.0;

/// Resident memory as `/proc/<pid>/status` says it.
fn rss_mib(status: &str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().next().context("no VmRSS")?.parse()?;
    Ok(kib / 1024.0)
}

/// Writes what an agent needs, and gives its configuration.
fn set_up(
    template: &Path,
    folder: &Path,
    (name, store): (&str, &str),
    policies: &BTreeMap<String, PathBuf>,
) -> Result<PathBuf> {
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
name = "{name}"
state_dir = {folder:?}
runtime_dir = {folder:?}
[libvirt]
uri = "test:///default"
accelerator = "qemu"
template = {template:?}
[store]
{store}
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
        socket = folder.join("api.sock"),
        guard = folder.join("guard.sock"),
    );
    let config = folder.join("agent.toml");
    std::fs::write(&config, text).context("write the agent's configuration")?;
    Ok(config)
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Waits until `done` gives something, for as long as all processes live.
pub(crate) fn wait<T>(
    processes: &mut [&mut Process],
    done: impl Fn() -> Result<Option<T>>,
    what: &str,
) -> Result<T> {
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
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
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
pub(crate) struct Files(PathBuf);

impl Files {
    pub(crate) fn make(folder: &Path) -> Result<Self> {
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
    fn an_end_of_a_process_that_is_waited_for_is_reported() {
        let mut process = Process::start(&mut Command::new("false")).unwrap();
        let error = wait(&mut [&mut process], || Ok(None::<()>), "a sign").unwrap_err().to_string();
        assert!(error.contains("waiting for a sign") && error.contains("ended with"), "{error}");
    }

    #[test]
    fn the_usage_of_a_process_is_read() {
        let (before, _) = usage(std::process::id()).unwrap();
        // The kernel counts in hundredths of a second.
        let until = Instant::now() + Duration::from_secs(20);
        let after = loop {
            let (time, memory) = usage(std::process::id()).unwrap();
            assert!(memory > 0.5, "{memory} MiB");
            if time > before || Instant::now() > until {
                break time;
            }
        };
        assert!(after > before, "a process that works uses processor time");
    }
}
