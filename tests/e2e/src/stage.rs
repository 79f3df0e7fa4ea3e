//! Owns a whole cluster for a story: three lab hosts with agents, gateways reachable on 127.0.0.1, and the questions
//! that a story asks.
//!
//! Promises: what it waits for is a condition, with a limit; what it kills is what it says. Must not judge: stories do.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use understudy_lab::cluster::{AGENT, Cluster, ClusterOptions, HostFacts};
use understudy_lab::{Forward, Host, LabOptions, Output};

use crate::kvm;

mod config;

use config::{agent_toml, minimal_toml};

/// The gateway's port on each host.
const GATEWAY_PORT: u16 = 7481;
/// The API's port on each host.
const API_PORT: u16 = 7480;
/// Where agents reach each other on each host.
const PEERS_PORT: u16 = 7482;
/// Until the hosts have their idle instances and everything is deployed: several emulated guests boot at once.
const RAISE: Duration = Duration::from_secs(240);
/// Longest wait for an agent's answer.
const ANSWER: Duration = Duration::from_secs(3);
/// Memory that each lab host gives to instances.
const MEMORY_MIB: u64 = 2048;

/// What a cluster is raised from.
#[derive(Debug, Clone)]
pub struct Artifacts {
    /// The folder with `understudy` and `understudy-guard`.
    pub binaries: PathBuf,
    /// The guest images.
    pub images: PathBuf,
    /// The policies' components.
    pub policies: PathBuf,
    /// The checkout.
    pub root: PathBuf,
    /// The program that plays PID 1 of the hosts; the calling one when not given.
    pub helper: Option<PathBuf>,
    /// Whether guests are emulated also where KVM works.
    pub emulate: bool,
}

impl Artifacts {
    /// What the agents are told to run guests with. Where KVM cannot work, emulation is what the lab asks for: left to
    /// them, they would report it as a condition of their hosts.
    fn accelerator(&self) -> &'static str {
        if self.emulate || !kvm::may_work() { "qemu" } else { "auto" }
    }
}

/// A cluster that stands.
pub struct Stage {
    cluster: Cluster,
    forwards: Vec<Forward>,
    understudy: PathBuf,
}

/// A port that nobody listens on.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn memory_of_machine_mib() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 = total.and_then(|rest| rest.split_whitespace().next()).context("no MemTotal")?.parse()?;
    Ok(kib / 1024)
}

impl Stage {
    /// Raises a cluster of three hosts.
    ///
    /// # Errors
    /// What is missing or did not start.
    pub fn raise(artifacts: &Artifacts, prefix: &str) -> Result<Self> {
        Self::raise_with(artifacts, prefix, MEMORY_MIB)
    }

    /// Raises a cluster of three hosts that give so much memory to instances.
    ///
    /// # Errors
    /// What is missing or did not start.
    pub fn raise_with(artifacts: &Artifacts, prefix: &str, memory_mib: u64) -> Result<Self> {
        let ports = (0..3).map(|_| free_port()).collect::<Result<Vec<u16>>>()?;
        let reserved = memory_of_machine_mib()?.saturating_sub(memory_mib);
        let accelerator = artifacts.accelerator();
        let toml =
            |facts: &HostFacts| agent_toml(facts, ports[usize::from(facts.index) - 1], reserved, accelerator);
        Self::with(artifacts, prefix, &ports, &toml)
    }

    /// Raises one host without etcd, as `config/agent.minimal.toml` describes it.
    ///
    /// # Errors
    /// What is missing or did not start.
    pub fn raise_one(artifacts: &Artifacts, prefix: &str) -> Result<Self> {
        let shipped = std::fs::read_to_string(artifacts.root.join("config/agent.minimal.toml"))?;
        let ports = [free_port()?];
        let toml = |facts: &HostFacts| minimal_toml(&shipped, facts, ports[0], artifacts.accelerator());
        Self::with(artifacts, prefix, &ports, &toml)
    }

    fn with(
        artifacts: &Artifacts,
        prefix: &str,
        ports: &[u16],
        toml: &(dyn Fn(&HostFacts) -> String + Sync),
    ) -> Result<Self> {
        let hook = artifacts.root.join("config/libvirt/qemu-hook");
        let mut options =
            ClusterOptions::new(&artifacts.binaries, &artifacts.images, &artifacts.policies, &hook, toml);
        let hosts = u8::try_from(ports.len()).context("too many hosts")?;
        options.lab = LabOptions {
            prefix: prefix.to_owned(),
            hosts,
            etcd: hosts > 1,
            replace_kept: true,
            helper: artifacts.helper.clone(),
            ..LabOptions::default()
        };
        options.template = Some(artifacts.root.join("config/guest/template.xml"));
        let understudy = options.understudy.clone();
        let cluster = Cluster::raise(options)?;
        let forwards = cluster
            .hosts()
            .iter()
            .zip(ports)
            .map(|(host, &port)| cluster.forward(port, SocketAddr::from((host.mgmt(), GATEWAY_PORT))))
            .collect::<Result<Vec<Forward>, _>>()?;
        Ok(Self { cluster, forwards, understudy })
    }

    /// The lab below.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The lab alone, to keep it standing or to take it down.
    #[must_use]
    pub fn into_cluster(self) -> Cluster {
        self.cluster
    }

    /// The cluster, and the way to its gateways, which is open as long as it lives.
    #[must_use]
    pub fn into_parts(self) -> (Cluster, Vec<Forward>) {
        (self.cluster, self.forwards)
    }

    /// The page of a terminal through the gateway of host `index` (from 1).
    #[must_use]
    pub fn page(&self, terminal: &str, index: usize) -> String {
        format!("http://{}/t/{terminal}/", self.forwards[index - 1].local())
    }

    /// The host of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.cluster
            .hosts()
            .iter()
            .find(|host| host.name() == name)
            .with_context(|| format!("no host {name}"))
    }

    /// Runs `understudy` with these words on the first host that is on and whose agent answers.
    ///
    /// # Errors
    /// What it said.
    pub fn cli(&self, words: &[&str]) -> Result<String> {
        let mut last = anyhow!("no host is on");
        for host in self.cluster.hosts().iter().filter(|host| host.is_on()) {
            match self.cli_on(host, words) {
                Ok(text) => return Ok(text),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Runs `understudy` on a host, however it ends.
    ///
    /// # Errors
    /// When it could not be run.
    pub fn understudy(&self, host: &Host, words: &[&str]) -> Result<Output> {
        let program = self.understudy.display().to_string();
        let argv = std::iter::once(program).chain(words.iter().map(|&word| word.to_owned()));
        Ok(host.command(argv)?.limit(Duration::from_secs(20)).output()?)
    }

    /// Runs `understudy` on a host.
    ///
    /// # Errors
    /// What it said.
    pub fn cli_on(&self, host: &Host, words: &[&str]) -> Result<String> {
        let output = self.understudy(host, words)?;
        if output.status.success() {
            Ok(output.text())
        } else {
            bail!("understudy {} on {}: {}", words.join(" "), host.name(), output.errors().trim())
        }
    }

    /// The status as the leader sees it, else as the first host that answers does.
    ///
    /// # Errors
    /// When no agent answers.
    pub fn status(&self) -> Result<Value> {
        let mut last = anyhow!("no host is on");
        let mut any = None;
        for host in self.cluster.hosts().iter().filter(|host| host.is_on()) {
            match self.status_on(host) {
                Ok(status) if status["leader"] == status["host"] => return Ok(status),
                Ok(status) => any = Some(status),
                Err(error) => last = error,
            }
        }
        any.ok_or(last)
    }

    /// The status as one host sees it.
    ///
    /// # Errors
    /// When its agent does not answer.
    pub fn status_on(&self, host: &Host) -> Result<Value> {
        let text = self.get(host.mgmt(), API_PORT, "/v1/status", ANSWER)?;
        serde_json::from_str(&text).context("status is no JSON")
    }

    /// One node out of a status.
    ///
    /// # Errors
    /// When it is not there.
    pub fn node(&self, id: &str) -> Result<Value> {
        node_of(&self.status()?, id)
    }

    /// Waits until `probe` gives something, with what was seen last in the error.
    ///
    /// # Errors
    /// When the limit passed.
    pub fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut probe: impl FnMut(&Value) -> Result<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        loop {
            let seen = self.status().and_then(|status| probe(&status));
            match seen {
                Ok(value) => return Ok(value),
                Err(error) if begun.elapsed() > limit => {
                    return Err(error.context(format!("{what}: not within {limit:?}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Waits until every host has an idle instance, creates a terminal and waits until it is whole.
    ///
    /// # Errors
    /// When it does not come to be.
    pub fn create(&self, terminal: &str, description: &Path) -> Result<Duration> {
        self.wait_pools(RAISE)?;
        let file = description.display().to_string();
        self.cli(&["terminal", "create", terminal, "--from", &file])?;
        // On one host there is no place for a backup.
        self.wait_whole(terminal, self.cluster.hosts().len().saturating_sub(1).min(1), RAISE)
    }

    /// Waits until every host has an idle instance.
    ///
    /// # Errors
    /// When the limit passed.
    pub fn wait_pools(&self, limit: Duration) -> Result<()> {
        self.wait("pools are filled", limit, |status| {
            let hosts = status["hosts"].as_array().context("no hosts")?;
            let filled = hosts.iter().filter(|host| host["idle"].as_u64().unwrap_or(0) >= 1).count();
            let all = self.cluster.hosts().len();
            if filled == all { Ok(()) } else { bail!("{filled} of {all} hosts have an idle instance") }
        })
    }

    /// The secret of a node's windows, out of the store.
    ///
    /// # Errors
    /// When the store does not have it.
    pub fn token(&self, node: &str) -> Result<String> {
        let key = format!("/understudy/v2/cluster/nodes/{node}");
        let record: Value =
            serde_json::from_str(&self.cluster.etcdctl(&["get", "--print-value-only", &key])?)?;
        Ok(record["token"].as_str().context("no token")?.to_owned())
    }

    /// Waits until every node of a terminal has a ready primary, ready backups, and its windows where they belong.
    ///
    /// # Errors
    /// When the limit passed; with what is lacking.
    pub fn wait_whole(&self, terminal: &str, backups: usize, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        self.wait(&format!("{terminal} is whole"), limit, |status| whole(status, terminal, backups))?;
        Ok(begun.elapsed())
    }

    /// The qemu process of an instance, as its host numbers it.
    ///
    /// # Errors
    /// When libvirt knows none.
    pub fn qemu_pid(&self, host: &Host, instance: &str) -> Result<u32> {
        let path = host.live_path(&format!("/run/libvirt/qemu/understudy-{instance}.pid"))?;
        let text = std::fs::read_to_string(&path).with_context(|| format!("no pid file of {instance}"))?;
        Ok(text.trim().parse()?)
    }

    /// SIGKILL to the qemu process of an instance.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_instance(&self, host: &str, instance: &str) -> Result<()> {
        let host = self.host(host)?;
        let pid = self.qemu_pid(host, instance)?;
        host.run(["kill", "-9", &pid.to_string()])?;
        Ok(())
    }

    /// One HTTP GET inside the lab, with `limit` for each step.
    ///
    /// # Errors
    /// When nobody answers with 200.
    pub fn get(&self, address: Ipv4Addr, port: u16, path: &str, limit: Duration) -> Result<String> {
        let mut stream = self.cluster.connect(SocketAddr::from((address, port)))?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: guest\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        if !head.contains(" 200 ") {
            bail!("{}", head.lines().next().unwrap_or_default());
        }
        Ok(body.to_owned())
    }

    /// Keeps the logs of all hosts.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save_logs(&self, to: &Path) -> Result<()> {
        Ok(self.cluster.save_logs(to)?)
    }

    /// Kills the agent of a host; its supervisor starts it again.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_agent(&self, host: &str) -> Result<()> {
        Ok(self.host(host)?.service(AGENT).kill()?)
    }
}

/// One node out of a status.
///
/// # Errors
/// When it is not there.
pub fn node_of(status: &Value, id: &str) -> Result<Value> {
    let terminals = status["terminals"].as_array().context("no terminals")?;
    terminals
        .iter()
        .flat_map(|terminal| terminal["nodes"].as_array().into_iter().flatten())
        .find(|node| node["id"] == id)
        .cloned()
        .with_context(|| format!("no node {id}"))
}

/// One host out of a status.
///
/// # Errors
/// When it is not there.
pub fn host_of(status: &Value, name: &str) -> Result<Value> {
    let hosts = status["hosts"].as_array().context("no hosts")?;
    hosts.iter().find(|host| host["id"] == name).cloned().with_context(|| format!("no host {name}"))
}

/// Whether every node of a terminal has a ready primary, `backups` ready backups and its windows where they belong.
///
/// # Errors
/// With what is lacking.
pub fn whole(status: &Value, terminal: &str, backups: usize) -> Result<()> {
    let terminals = status["terminals"].as_array().context("no terminals")?;
    let found = terminals.iter().find(|found| found["id"] == terminal).context("no such terminal")?;
    for node in found["nodes"].as_array().context("no nodes")? {
        let id = node["id"].as_str().unwrap_or_default();
        if node["primary"]["ready"] != true {
            bail!("{id}: primary is {}, notes {}", node["primary"], node["notes"]);
        }
        let ready =
            node["backups"].as_array().map_or(0, |all| all.iter().filter(|one| one["ready"] == true).count());
        if ready < backups {
            bail!(
                "{id}: {ready} of {backups} backups are ready: {}, notes {}",
                node["backups"],
                node["notes"]
            );
        }
        if !id.ends_with("/display") && node["windows_sent"] != true {
            bail!("{id}: windows are not sent");
        }
        if !node["migrating_to"].is_null() {
            bail!("{id}: is moving");
        }
    }
    Ok(())
}

/// The address of a node's primary.
///
/// # Errors
/// When it has none.
pub fn address_of(node: &Value) -> Result<Ipv4Addr> {
    Ok(node["primary"]["address"].as_str().context("no address")?.parse()?)
}
