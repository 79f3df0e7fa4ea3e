//! A whole lab: raises it, finds it again, takes it down.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::disk::{self, COVERED, HostConfig, write_json};
use crate::error::{At, Doing, LabError};
use crate::forward::Forward;
use crate::host::Host;
use crate::journal::{Entry, Journal, Lock, run_dir};
use crate::net::{self, NetNs};
use crate::options::LabOptions;
use crate::pki::Pki;
use crate::proc::ProcessId;
use crate::service::{Ready, ServiceSpec};
use crate::sweep::{self, MARKER, Swept};
use crate::{etcd, helper, interrupt, proc, tool};

/// Time for a connection into the lab.
const CONNECT: Duration = Duration::from_secs(5);

/// Time for etcd to find its first quorum on a busy machine.
const ETCD: Duration = Duration::from_secs(60);

/// Addresses are 10.77.0.(10 + N).
const HOSTS_MAX: u8 = 80;

/// What every handle of a lab knows.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) prefix: String,
    pub(crate) run_dir: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) helper: PathBuf,
    pub(crate) journal: Arc<Journal>,
    switch: ProcessId,
    hosts: u8,
    etcd: bool,
}

/// `lab.json`: what another process needs to find the lab again.
#[derive(Serialize, Deserialize)]
struct Found {
    dir: PathBuf,
    switch: ProcessId,
    hosts: u8,
    etcd: bool,
}

impl Shared {
    pub(crate) fn switch_ns(&self) -> Result<NetNs, LabError> {
        NetNs::of(self.switch)
    }
}

/// A lab. The one that was raised by [`Lab::up`] owns it and takes it down when dropped, unless it is kept.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
    hosts: Vec<Host>,
    /// Present in the process that owns the lab.
    lock: Option<Lock>,
    logs: Option<PathBuf>,
}

impl Lab {
    /// Raises a lab: switch, disks, hosts, their services; returns when libvirtd answers on each host and etcd
    /// takes writes. What a dead run of this prefix has left is removed first.
    ///
    /// # Errors
    /// What could not be made; all that was made until then is removed again.
    pub fn up(options: LabOptions) -> Result<Lab, LabError> {
        let lab = Lab::prepare(options)?;
        // From here on a failure drops the lab, which takes it down.
        lab.each_host(Host::boot)?;
        if lab.shared.etcd {
            lab.wait_etcd(ETCD)?;
        }
        Ok(lab)
    }

    /// The lab of this prefix that stands, without owning it: dropping it leaves it alone.
    ///
    /// # Errors
    /// [`LabError::None`] when there is none.
    pub fn attach(prefix: &str, helper: Option<&Path>) -> Result<Lab, LabError> {
        let run_dir = run_dir(prefix);
        let text = fs::read_to_string(run_dir.join("lab.json")).unwrap_or_default();
        let found: Option<Found> = serde_json::from_str(&text).ok();
        let Some(found) = found.filter(|found| found.switch.alive()) else {
            return Err(LabError::None { prefix: prefix.to_owned() });
        };
        let helper = helper::resolve(helper)?;
        let journal = Arc::new(Journal::in_dir(&run_dir));
        Ok(Lab::with(Lab::share(prefix, found, helper, journal), None))
    }

    fn share(prefix: &str, found: Found, helper: PathBuf, journal: Arc<Journal>) -> Arc<Shared> {
        let run_dir = run_dir(prefix);
        let Found { dir, switch, hosts, etcd } = found;
        Arc::new(Shared { prefix: prefix.to_owned(), run_dir, dir, helper, journal, switch, hosts, etcd })
    }

    fn with(shared: Arc<Shared>, lock: Option<Lock>) -> Lab {
        let hosts = (1..=shared.hosts).map(|index| Host::new(Arc::clone(&shared), index)).collect();
        Lab { shared, hosts, lock, logs: None }
    }

    /// All of a lab but power: records, folder, certificates, switch, disks.
    fn prepare(options: LabOptions) -> Result<Lab, LabError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        check(&options)?;
        let helper = helper::resolve(options.helper.as_deref())?;
        let prefix = options.prefix.as_str();
        let dir = options.dir.clone().unwrap_or_else(|| format!("/var/tmp/understudy-lab-{prefix}").into());
        let run_dir = run_dir(prefix);
        // The lock is taken anew after the sweep, which removes the file that it is held on.
        {
            let _lock = Lock::take(prefix)?;
            if sweep::kept(prefix)? && !options.replace_kept {
                return Err(LabError::Kept { prefix: prefix.to_owned() });
            }
            sweep::tear_down(&run_dir)?;
        }
        let lock = Lock::take(prefix)?;
        let journal = Arc::new(Journal::in_dir(&run_dir));
        interrupt::own(&journal);
        match Lab::build(&options, &dir, &helper, &journal) {
            Ok(shared) => {
                let mut lab = Lab::with(shared, Some(lock));
                lab.logs.clone_from(&options.logs);
                lab.lay_out(&options)?;
                Ok(lab)
            }
            Err(error) => {
                interrupt::release(&journal, || {
                    journal.close();
                    sweep::tear_down(&run_dir)
                })?;
                Err(error)
            }
        }
    }

    /// Records, folder and switch.
    fn build(
        options: &LabOptions,
        dir: &Path,
        helper: &Path,
        journal: &Arc<Journal>,
    ) -> Result<Arc<Shared>, LabError> {
        let prefix = options.prefix.as_str();
        journal.record(&Entry::Run { owner: ProcessId::myself(), boot: proc::machine_boot() })?;
        if !sweep::remove_marked(dir)? && dir.exists() {
            return Err(LabError::ForeignDir(dir.to_path_buf()));
        }
        journal.make(&Entry::Dir { path: dir.to_path_buf() }, || {
            fs::create_dir_all(dir).at("create", dir)?;
            let marker = dir.join(MARKER);
            fs::write(&marker, "made by the lab; removed by `lab sweep`\n").at("write", &marker)
        })?;
        let cgroup = Cgroup::named(&format!("{prefix}-sw"))?;
        let switch = journal.make(&Entry::Cgroup { path: cgroup.path().to_path_buf() }, || {
            cgroup.create()?;
            hold_switch(helper, &cgroup, &dir.join("switch.log"))
        })?;
        journal.record(&Entry::Process { id: switch })?;
        net::build_switch(&NetNs::of(switch)?)?;
        let found = Found { dir: dir.to_path_buf(), switch, hosts: options.hosts, etcd: options.etcd };
        write_json(&journal.run_dir().join("lab.json"), &found)?;
        Ok(Lab::share(prefix, found, helper.to_path_buf(), Arc::clone(journal)))
    }

    /// Certificates and the hosts' disks.
    fn lay_out(&self, options: &LabOptions) -> Result<(), LabError> {
        let hosts = self.shared.hosts;
        let pki = self.pki();
        pki.generate(hosts)?;
        for host in &self.hosts {
            let mut services = Vec::new();
            if options.etcd && host.index() <= etcd::members(hosts) {
                let (heartbeat, election) = (options.etcd_heartbeat_ms, options.etcd_election_ms);
                services.push(etcd::service(host.index(), hosts, heartbeat, election));
            }
            if options.libvirt {
                services.push(libvirtd());
            }
            let config = HostConfig {
                index: host.index(),
                name: host.name(),
                disk: host.disk(),
                socket: host.socket(),
                mgmt: host.mgmt(),
                vm: host.vm(),
                binds: Vec::new(),
            };
            disk::lay_out(&config, hosts, &pki, options.libvirt_hook.as_deref(), &services)?;
        }
        Ok(())
    }

    /// All hosts, the first one first.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Host `index`, 1 for the first.
    ///
    /// # Panics
    /// When the lab has no such host.
    pub fn host(&self, index: u8) -> &Host {
        self.hosts.iter().find(|h| h.index() == index).expect("the lab has a host of this index")
    }

    /// The folder with the hosts' disks.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Runs `work` for every host at the same time and gives the first error.
    ///
    /// # Errors
    /// What `work` gave.
    pub fn each_host(&self, work: impl Fn(&Host) -> Result<(), LabError> + Sync) -> Result<(), LabError> {
        thread::scope(|scope| {
            let threads: Vec<_> = self.hosts.iter().map(|host| scope.spawn(|| work(host))).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    // Where the tests, the browser and the terminals are: at the switch, on both networks.

    /// The switch's network namespace.
    ///
    /// # Errors
    /// When the lab is gone.
    pub fn switch(&self) -> Result<NetNs, LabError> {
        self.shared.switch_ns()
    }

    /// Runs `work` on a thread inside the switch's network namespace; a command spawned there stays there.
    ///
    /// # Errors
    /// When the lab is gone.
    pub fn in_switch<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        self.switch()?.run(work)
    }

    /// A TCP connection from the switch to an address of the lab.
    ///
    /// # Errors
    /// When nobody answers within 5 s.
    pub fn connect(&self, addr: SocketAddr) -> Result<TcpStream, LabError> {
        self.switch()?.connect(addr, CONNECT)
    }

    /// Carries 127.0.0.1:`port` of the machine (0: a free port) to an address of the lab.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn forward(&self, port: u16, target: SocketAddr) -> Result<Forward, LabError> {
        Forward::open(self.switch()?, port, target)
    }

    // etcd

    /// Client addresses of the etcd members.
    pub fn etcd_endpoints(&self) -> Vec<String> {
        etcd::endpoints(self.shared.hosts)
    }

    /// Runs etcdctl at the switch, with its client certificate, and gives its stdout.
    ///
    /// # Errors
    /// When it fails, or takes longer than 10 s.
    pub fn etcdctl(&self, args: &[&str]) -> Result<String, LabError> {
        let limit = Duration::from_secs(10);
        etcd::ctl(&self.switch()?, &self.pki(), &self.etcd_endpoints(), limit, args)
    }

    /// Waits until etcd takes a write.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_etcd(&self, limit: Duration) -> Result<(), LabError> {
        etcd::wait_writable(&self.switch()?, &self.pki(), &self.etcd_endpoints(), limit)
    }

    /// The certificate, key and authority with which the switch may talk to etcd and agents, as paths.
    pub fn client_cert(&self) -> (PathBuf, PathBuf, PathBuf) {
        let pki = self.pki();
        (pki.cert("switch"), pki.key("switch"), pki.ca())
    }

    fn pki(&self) -> Pki {
        Pki::in_dir(&self.shared.dir)
    }

    // The end

    /// Copies the consoles and logs of all hosts to `to/hostN/`.
    ///
    /// # Errors
    /// When `to` cannot be written.
    pub fn save_logs(&self, to: &Path) -> Result<(), LabError> {
        for host in &self.hosts {
            let target = to.join(host.name());
            fs::create_dir_all(&target).at("create", &target)?;
            // A host that was never powered on has neither.
            let parts = ["log", "console.log"].map(|name| host.disk().join(name));
            let there: Vec<_> = parts.iter().filter(|part| part.exists()).collect();
            if !there.is_empty() {
                tool::run(Command::new("cp").arg("-r").args(there).arg(&target), "")?;
            }
        }
        Ok(())
    }

    /// Leaves the lab standing after this process: `Lab::attach` finds it, `sweep` takes it down.
    ///
    /// # Errors
    /// When that cannot be recorded; the lab is then taken down.
    pub fn keep(mut self) -> Result<(), LabError> {
        interrupt::release(&self.shared.journal, || self.shared.journal.record(&Entry::Kept))?;
        self.lock = None;
        Ok(())
    }

    /// Takes the lab down and says what went wrong with that, which dropping it only prints.
    ///
    /// # Errors
    /// What could not be removed. When another process owns the lab: [`LabError::Busy`].
    pub fn down(mut self) -> Result<Swept, LabError> {
        match self.lock.take() {
            Some(lock) => self.tear_down(&lock),
            None => sweep::sweep(&self.shared.prefix),
        }
    }

    fn tear_down(&self, _held: &Lock) -> Result<Swept, LabError> {
        if let Some(to) = &self.logs
            && let Err(error) = self.save_logs(to)
        {
            eprintln!("save the logs of lab {}: {}", self.shared.prefix, error.chain());
        }
        interrupt::release(&self.shared.journal, || {
            self.shared.journal.close();
            sweep::tear_down(&self.shared.run_dir)
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take()
            && let Err(error) = self.tear_down(&lock)
        {
            eprintln!("take lab {} down: {}; `lab sweep` tries again", self.shared.prefix, error.chain());
        }
    }
}

/// Starts the process that holds the switch's network namespace.
fn hold_switch(helper: &Path, cgroup: &Cgroup, log: &Path) -> Result<ProcessId, LabError> {
    let mut command = helper::command(helper, helper::SWITCH);
    // It outlives this process when the lab is kept: it must not hold a pipe that somebody reads to its end.
    let file = File::create(log).at("create", log)?;
    command.arg(cgroup.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    let mut child = command.spawn().doing(format!("start {}", helper.display()))?;
    let mut line = String::new();
    let stdout = child.stdout.take().expect("the pipe was asked for");
    BufReader::new(stdout).read_line(&mut line).doing("wait for the switch")?;
    let id = i32::try_from(child.id()).ok().and_then(ProcessId::of);
    // Its end is noticed by process id and start time; a zombie of this process must not look alive.
    thread::spawn(move || child.wait());
    id.filter(|_| line == "ready\n").ok_or_else(|| {
        LabError::BadOption(format!(
            "{} does not act as the lab's switch: does its main call understudy_lab::init_if_asked()? {}",
            helper.display(),
            fs::read_to_string(log).unwrap_or_default().trim()
        ))
    })
}

/// As its unit file has it (`Type=notify`): its sockets are all there then, which it opens one after the other.
fn libvirtd() -> ServiceSpec {
    ServiceSpec::new("libvirtd", ["libvirtd", "--listen"]).ready(Ready::Notify)
}

fn check(options: &LabOptions) -> Result<(), LabError> {
    let bad = |why: String| Err(LabError::BadOption(why));
    let rest = options.prefix.strip_prefix("ustlab");
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !rest.is_some_and(|rest| rest.len() <= 12 && rest.chars().all(word)) {
        return bad(format!(
            "prefix {:?} must be `ustlab` and at most 12 lower-case letters, digits or dashes",
            options.prefix
        ));
    }
    if !(1..=HOSTS_MAX).contains(&options.hosts) {
        return bad(format!("{} hosts: 1 to {HOSTS_MAX} are possible", options.hosts));
    }
    if let Some(dir) = &options.dir {
        if !dir.is_absolute() || dir.to_str().is_none_or(|text| text.contains([',', ':', '\\', '"'])) {
            return bad(format!("folder {} must be an absolute path without , : \\ \"", dir.display()));
        }
        if let Some(covered) = COVERED.iter().find(|covered| dir.starts_with(covered)) {
            return bad(format!("folder {} lies below {covered}, which a host covers", dir.display()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_out_of_range_are_refused_by_name() {
        let table: [(&str, u8, Option<&str>, Option<&str>); 7] = [
            ("ustlab", 3, None, None),
            ("ustlab-e2e", 1, Some("/srv/lab"), None),
            ("lab", 3, None, Some("prefix")),
            ("ustlab/../x", 3, None, Some("prefix")),
            ("ustlab", 0, None, Some("0 hosts")),
            ("ustlab", 3, Some("/var/lib/lab"), Some("/var/lib")),
            ("ustlab", 3, Some("lab"), Some("absolute")),
        ];
        for (prefix, hosts, dir, complaint) in table {
            let options = LabOptions {
                prefix: prefix.to_owned(),
                hosts,
                dir: dir.map(PathBuf::from),
                ..LabOptions::default()
            };
            match (check(&options), complaint) {
                (Ok(()), None) => {}
                (Err(LabError::BadOption(why)), Some(word)) => assert!(why.contains(word), "{why}"),
                (other, _) => panic!("{prefix} {hosts} {dir:?}: {other:?}"),
            }
        }
    }
}
