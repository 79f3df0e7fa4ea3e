//! One host of a lab: its power, its links, its services, commands in it.

mod service;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::disk::{Bind, COVERED, HostConfig, read_services, write_json};
use crate::error::{At, Doing, LabError};
use crate::exec::{HostCommand, Output};
use crate::journal::Entry;
use crate::lab::Shared;
use crate::net::{self, Hearing, Net, NetNs};
use crate::proc::ProcessId;
use crate::service::{Reply, Request, ServiceSpec, ServiceState, ServiceStatus};
use crate::{helper, wait};
pub use service::Service;

/// PID 1 answers in a blink; a machine with 2 busy cores may blink slowly.
const CONTROL: Duration = Duration::from_secs(30);

/// From power to services that were started, on a machine where other guests boot.
const BOOT: Duration = Duration::from_secs(120);

/// A host of a lab. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Host {
    lab: Arc<Shared>,
    index: u8,
}

impl Host {
    pub(crate) fn new(lab: Arc<Shared>, index: u8) -> Host {
        Host { lab, index }
    }

    /// 1 for the first.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// `host1` for the first; every host resolves it.
    pub fn name(&self) -> String {
        net::host_name(self.index)
    }

    /// Its address on the management network.
    pub fn mgmt(&self) -> Ipv4Addr {
        net::mgmt(self.index)
    }

    /// Its own address on the instances' segment.
    pub fn vm(&self) -> Ipv4Addr {
        net::vm(self.index)
    }

    /// Where a file of the host's disk (`/etc/understudy/...`, `/var/lib/understudy/...`, `/var/log/...`)
    /// lies on the machine, powered on or off. None for paths that are not on the host's own disk.
    pub fn on_disk(&self, path: &str) -> Option<PathBuf> {
        crate::disk::FOLDERS.iter().find_map(|(folder, target)| {
            let rest = Path::new(path).strip_prefix(target).ok()?;
            Some(self.disk().join(folder).join(rest))
        })
    }

    /// Any path of the running host, as seen from the machine: for sockets and files below `/run`.
    ///
    /// # Errors
    /// When the host is off.
    pub fn live_path(&self, path: &str) -> Result<PathBuf, LabError> {
        let init = self.init()?;
        Ok(PathBuf::from(format!("/proc/{}/root", init.pid)).join(path.trim_start_matches('/')))
    }

    /// A libvirt address of the host that works from the machine, past its network.
    ///
    /// # Errors
    /// When the host is off.
    pub fn libvirt_uri(&self) -> Result<String, LabError> {
        let socket = self.live_path("/run/libvirt/libvirt-sock")?;
        Ok(format!("qemu+unix:///system?socket={}", socket.display()))
    }

    /// The boot id that the host reads, new at each power-on.
    ///
    /// # Errors
    /// When it was never powered on.
    pub fn boot_id(&self) -> Result<String, LabError> {
        let file = self.disk().join("boot_id");
        Ok(fs::read_to_string(&file).at("read", &file)?.trim().to_owned())
    }

    // Power

    /// Whether its PID 1 runs.
    pub fn is_on(&self) -> bool {
        self.init().is_ok()
    }

    /// Powers it on and returns as soon as its PID 1 has begun to start the services.
    ///
    /// # Errors
    /// When it is on already, or PID 1 does not come up.
    pub fn power_on(&self) -> Result<(), LabError> {
        if self.is_on() {
            return Err(LabError::On { host: self.name() });
        }
        let (cgroup, disk) = (self.cgroup()?, self.disk());
        // What is left of a host whose PID 1 crashed.
        cgroup.remove()?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/uuid").doing("make a boot id")?;
        let file = disk.join("boot_id");
        fs::write(&file, boot_id).at("write", &file)?;
        let entry = Entry::Cgroup { path: cgroup.path().to_path_buf() };
        let init = self.lab.journal.make(&entry, || {
            cgroup.create()?;
            self.start_init(&cgroup)
        })?;
        let switch = self.lab.switch_ns()?;
        net::plug(&switch, self.index, init)?;
        wait::until("PID 1 listens", CONTROL, || {
            if !init.alive() {
                return Ok(Err(LabError::Boot { host: self.name(), console: self.console_end() }));
            }
            UnixStream::connect(self.socket()).map(|_| Ok(())).map_err(|error| error.to_string())
        })??;
        self.ask(&Request::Start).map(drop)
    }

    /// Powers it on and waits until every one of its services is ready (or has run once to its end).
    ///
    /// # Errors
    /// As [`Host::power_on`], and when a service is not ready in time.
    pub fn boot(&self) -> Result<(), LabError> {
        self.power_on()?;
        self.wait_booted(BOOT)
    }

    /// Waits until every service had its turn and is ready, or has ended for good.
    ///
    /// # Errors
    /// When one is not in time.
    pub fn wait_booted(&self, limit: Duration) -> Result<(), LabError> {
        wait::until(&format!("{} is booted", self.name()), limit, || {
            let (booted, services) = self.status().map_err(|error| error.chain())?;
            let late: Vec<_> = services
                .iter()
                .filter(|s| matches!(s.state, ServiceState::Starting | ServiceState::Waiting))
                .map(|s| self.complaint(s))
                .collect();
            if booted && late.is_empty() {
                Ok(())
            } else {
                Err(format!("booted: {booted}; {}", late.join(", ")))
            }
        })
    }

    /// A power cut: the cables go dead first, then everything ends, frozen or not. Peers hear nothing.
    ///
    /// # Errors
    /// When what runs in it cannot be killed.
    pub fn power_off(&self) -> Result<(), LabError> {
        if self.is_on() {
            for net in [Net::Mgmt, Net::Vm] {
                self.cut(net)?;
            }
        }
        self.end()
    }

    /// Everything in it ends at once, but its links are up while it does: peers see their connections reset.
    ///
    /// # Errors
    /// When what runs in it cannot be killed.
    pub fn crash(&self) -> Result<(), LabError> {
        self.end()
    }

    /// [`Host::power_off`], then [`Host::boot`].
    ///
    /// # Errors
    /// As these.
    pub fn reboot(&self) -> Result<(), LabError> {
        self.power_off()?;
        self.boot()
    }

    /// Stops every process of it without killing any. Its kernel goes on: connections are accepted and
    /// acknowledged, nobody answers.
    ///
    /// # Errors
    /// When the host is off, or not frozen in time.
    pub fn freeze(&self) -> Result<(), LabError> {
        self.init()?;
        self.cgroup()?.freeze(true)
    }

    /// Lets it run on.
    ///
    /// # Errors
    /// When the host is off.
    pub fn thaw(&self) -> Result<(), LabError> {
        self.init()?;
        self.cgroup()?.freeze(false)
    }

    /// Whether it is frozen.
    ///
    /// # Errors
    /// When this machine has no cgroup v2.
    pub fn is_frozen(&self) -> Result<bool, LabError> {
        Ok(self.cgroup()?.frozen())
    }

    // Links

    /// Pulls a cable.
    ///
    /// # Errors
    /// When the host is off.
    pub fn cut(&self, net: Net) -> Result<(), LabError> {
        self.init()?;
        net::link(&self.lab.switch_ns()?, self.index, net, false)
    }

    /// Plugs a cable in again.
    ///
    /// # Errors
    /// When the host is off.
    pub fn heal(&self, net: Net) -> Result<(), LabError> {
        self.init()?;
        net::link(&self.lab.switch_ns()?, self.index, net, true)
    }

    /// From here on this host does not hear `other`, on either network; `other` still hears this host.
    ///
    /// # Errors
    /// When the host is off.
    pub fn drop_from(&self, other: &Host) -> Result<(), LabError> {
        net::hearing(&self.net_ns()?, Hearing::Drop(&[other.mgmt(), other.vm()]))
    }

    /// Hears `other` again.
    ///
    /// # Errors
    /// When the host is off.
    pub fn hear(&self, other: &Host) -> Result<(), LabError> {
        net::hearing(&self.net_ns()?, Hearing::Hear(&[other.mgmt(), other.vm()]))
    }

    /// Hears everybody again.
    ///
    /// # Errors
    /// When the host is off.
    pub fn hear_all(&self) -> Result<(), LabError> {
        net::hearing(&self.net_ns()?, Hearing::All)
    }

    /// Limits its management cable to `rate` (as `tc` writes it: `20mbit`), in both directions.
    ///
    /// # Errors
    /// When the host is off or `tc` does not know the rate.
    pub fn slow(&self, rate: &str) -> Result<(), LabError> {
        net::slow(&self.lab.switch_ns()?, &self.net_ns()?, self.index, Some(rate))
    }

    /// Takes the limit away.
    ///
    /// # Errors
    /// When the host is off.
    pub fn fast(&self) -> Result<(), LabError> {
        net::slow(&self.lab.switch_ns()?, &self.net_ns()?, self.index, None)
    }

    /// Its network namespace: for connections and commands that come from the host itself.
    ///
    /// # Errors
    /// When the host is off.
    pub fn net_ns(&self) -> Result<NetNs, LabError> {
        NetNs::of(self.init()?)
    }

    // Commands and services

    /// A command to run in the host.
    ///
    /// # Errors
    /// When the host is off.
    pub fn command<S: Into<String>>(
        &self,
        argv: impl IntoIterator<Item = S>,
    ) -> Result<HostCommand, LabError> {
        let argv: Vec<String> = argv.into_iter().map(Into::into).collect();
        if argv.is_empty() {
            return Err(LabError::BadOption("a command needs a program".to_owned()));
        }
        Ok(HostCommand::new(&self.lab.helper, self.cgroup()?, self.init()?, &self.name(), argv))
    }

    /// Runs a command to its end, whatever that is.
    ///
    /// # Errors
    /// When the host is off, or the command does not end within a minute.
    pub fn exec<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Output, LabError> {
        self.command(argv)?.output()
    }

    /// Runs a command and gives its stdout; its failure is an error.
    ///
    /// # Errors
    /// As [`Host::exec`], and when the command fails.
    pub fn run<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Result<String, LabError> {
        self.command(argv)?.run()
    }

    /// Shows the host a folder or file of the machine, now (if it is on) and after each boot.
    ///
    /// # Errors
    /// When the source is missing or covered in the host.
    pub fn bind(&self, bind: Bind) -> Result<(), LabError> {
        if let Some(covered) = COVERED.iter().find(|covered| bind.source.starts_with(covered)) {
            let source = bind.source.display();
            return Err(LabError::BadOption(format!("{source} lies below {covered}, which a host covers")));
        }
        let mut config = HostConfig::read(&HostConfig::file(&self.disk()))?;
        if self.is_on() {
            self.ask(&Request::Bind(bind.clone()))?;
        }
        config.binds.push(bind);
        config.write()
    }

    /// Adds a service at the end of the start order, or replaces the one of that name. It is not started.
    ///
    /// # Errors
    /// When the host's file of services cannot be written.
    pub fn define_service(&self, spec: ServiceSpec) -> Result<(), LabError> {
        let file = HostConfig::services_file(&self.disk());
        let mut specs = read_services(&file)?;
        match specs.iter_mut().find(|s| s.name == spec.name) {
            Some(old) => *old = spec,
            None => specs.push(spec),
        }
        write_json(&file, &specs)?;
        if self.is_on() { self.ask(&Request::Reload).map(drop) } else { Ok(()) }
    }

    /// A service of the host by its name.
    pub fn service(&self, name: &str) -> Service {
        Service::of(self.clone(), name)
    }

    /// All services of the running host in start order.
    ///
    /// # Errors
    /// When the host is off or does not answer.
    pub fn services(&self) -> Result<Vec<ServiceStatus>, LabError> {
        Ok(self.status()?.1)
    }

    /// SIGKILL to libvirtd, which then stays down. Its guests run on.
    ///
    /// # Errors
    /// When the host is off.
    pub fn kill_libvirtd(&self) -> Result<(), LabError> {
        self.service("libvirtd").kill_and_hold()
    }

    /// Starts libvirtd again and waits until it answers.
    ///
    /// # Errors
    /// When the host is off, or libvirtd is not ready in time.
    pub fn start_libvirtd(&self) -> Result<(), LabError> {
        self.service("libvirtd").start()?;
        self.service("libvirtd").wait_ready(BOOT)
    }

    // Inside

    /// PID 1 of the running host, as the machine sees it.
    ///
    /// # Errors
    /// When the host is off.
    pub fn init(&self) -> Result<ProcessId, LabError> {
        let text = fs::read_to_string(self.pid_file()).unwrap_or_default();
        let id: Option<ProcessId> = serde_json::from_str(&text).ok();
        id.filter(|id| id.alive()).ok_or_else(|| LabError::Off { host: self.name() })
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.lab.dir.join(self.name())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.lab.run_dir.join(format!("{}.sock", self.name()))
    }

    fn pid_file(&self) -> PathBuf {
        self.lab.run_dir.join(format!("{}.pid", self.name()))
    }

    fn cgroup(&self) -> Result<Cgroup, LabError> {
        Cgroup::named(&format!("{}-h{}", self.lab.prefix, self.index))
    }

    /// Starts PID 1 and notes its id. The caller has made the cgroup.
    fn start_init(&self, cgroup: &Cgroup) -> Result<ProcessId, LabError> {
        let disk = self.disk();
        let console = disk.join("console.log");
        let log = File::options().append(true).create(true).open(&console).at("open", &console)?;
        let mut command = helper::command(&self.lab.helper, helper::BOOT);
        command.arg(cgroup.path()).arg(HostConfig::file(&disk));
        let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).output();
        let output = output.doing(format!("start {}", self.lab.helper.display()))?;
        let pid = String::from_utf8_lossy(&output.stdout).trim().parse().ok();
        let Some(init) = pid.and_then(ProcessId::of) else {
            return Err(LabError::Boot { host: self.name(), console: self.console_end() });
        };
        write_json(&self.pid_file(), &init)?;
        Ok(init)
    }

    /// Kills everything in it and takes its cables away.
    fn end(&self) -> Result<(), LabError> {
        self.cgroup()?.remove()?;
        let _ = fs::remove_file(self.pid_file());
        net::unplug(&self.lab.switch_ns()?, self.index)
    }

    fn console_end(&self) -> String {
        end_of(&self.disk().join("console.log"), 5)
    }

    /// Why a service may not be ready: how it ended the last time and what it said.
    fn complaint(&self, status: &ServiceStatus) -> String {
        let exit = status.last_exit.as_ref().map_or(String::new(), |exit| format!(", it ended with {exit}"));
        let specs = read_services(&HostConfig::services_file(&self.disk())).unwrap_or_default();
        let log = specs.iter().find(|spec| spec.name == status.name).and_then(|spec| spec.log.to_str());
        let said = log.and_then(|log| self.on_disk(log)).map(|log| end_of(&log, 2)).unwrap_or_default();
        format!("{} is {:?}{exit}; its log ends: {said}", status.name, status.state)
    }

    fn status(&self) -> Result<(bool, Vec<ServiceStatus>), LabError> {
        match self.ask(&Request::Status)? {
            Reply::Status { booted, services } => Ok((booted, services)),
            Reply::Done | Reply::Refused(_) => {
                Err(LabError::Refused { host: self.name(), why: "no status in the answer".to_owned() })
            }
        }
    }

    fn ask(&self, request: &Request) -> Result<Reply, LabError> {
        self.init()?;
        let reply = self.talk(request).map_err(|source| LabError::Control { host: self.name(), source })?;
        match reply {
            Reply::Refused(why) => Err(LabError::Refused { host: self.name(), why }),
            Reply::Done | Reply::Status { .. } => Ok(reply),
        }
    }

    fn talk(&self, request: &Request) -> std::io::Result<Reply> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(CONTROL))?;
        let text = serde_json::to_string(request).expect("plain data");
        writeln!(stream, "{text}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// The last lines of a file on one line; empty when there is none.
fn end_of(file: &Path, count: usize) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}
