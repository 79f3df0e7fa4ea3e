//! Keeps the services of a host as they are wanted.
//!
//! One table under one lock. Whoever starts or reaps a child holds the lock: so an exit is never seen
//! before its start was noted, and the reaper never takes a child that the standard library waits for.
//!
//! ```text
//! stopped --start--> starting --ready--> ready
//!    ^                   |                 |
//!    |<----- stop -------+------ exit -----+--restart policy--> waiting --delay--> starting
//! ```

use std::fs::{self, OpenOptions};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use crate::error::{At, Doing, LabError};
use crate::service::{Ready, Restart, ServiceSpec, ServiceState, ServiceStatus, Verb};
use crate::{tool, wait};

/// Folder of the sockets that stand for systemd's.
pub(super) const NOTIFY: &str = "/run/notify";

/// Longest sleep of the timer and of a reaper without children: a change wakes the timer earlier.
const IDLE: Duration = Duration::from_millis(100);

/// One try to reach a service that is not ready yet.
const TRY: Duration = Duration::from_millis(200);

/// A running process of a service.
struct Run {
    pid: Pid,
    /// Last sign of life, for services with a watchdog.
    alive: Instant,
}

/// A service with what is wanted and what is.
struct Entry {
    spec: ServiceSpec,
    wanted: bool,
    run: Option<Run>,
    ready: bool,
    /// Counts the starts: what watches one process stops when the next one is there.
    generation: u64,
    restarts: u64,
    last_exit: Option<String>,
    /// When the restart policy starts it again.
    due: Option<Instant>,
}

impl Entry {
    fn new(spec: ServiceSpec) -> Entry {
        Entry {
            spec,
            wanted: false,
            run: None,
            ready: false,
            generation: 0,
            restarts: 0,
            last_exit: None,
            due: None,
        }
    }

    fn state(&self) -> ServiceState {
        match (&self.run, self.ready, self.due) {
            (Some(_), true, _) => ServiceState::Ready,
            (Some(_), false, _) => ServiceState::Starting,
            (None, _, Some(_)) => ServiceState::Waiting,
            (None, _, None) => ServiceState::Stopped,
        }
    }

    /// Notes an end and what the restart policy makes of it.
    fn ended(&mut self, how: String, failed: bool) {
        self.run = None;
        self.ready = false;
        self.last_exit = Some(how);
        let delay_ms = match self.spec.restart {
            Restart::Never => None,
            Restart::OnFailure { delay_ms } => failed.then_some(delay_ms),
            Restart::Always { delay_ms } => Some(delay_ms),
        };
        self.due =
            delay_ms.filter(|_| self.wanted).map(|delay| Instant::now() + Duration::from_millis(delay));
        if self.due.is_none() {
            self.wanted = false;
        }
    }
}

struct Table {
    entries: Vec<Entry>,
    booted: bool,
}

impl Table {
    fn find(&mut self, name: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|e| e.spec.name == name)
    }
}

/// The services of the host.
pub(super) struct Supervisor {
    table: Mutex<Table>,
    changed: Condvar,
}

impl Supervisor {
    pub(super) fn new(specs: Vec<ServiceSpec>) -> Supervisor {
        let entries = specs.into_iter().map(Entry::new).collect();
        Supervisor { table: Mutex::new(Table { entries, booted: false }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `ip -batch`, with the reaper held off its children.
    pub(super) fn ip(&self, lines: &str) -> Result<(), LabError> {
        let _table = self.lock();
        tool::ip(lines)
    }

    pub(super) fn status(&self) -> (bool, Vec<ServiceStatus>) {
        let table = self.lock();
        let status = |entry: &Entry| ServiceStatus {
            name: entry.spec.name.clone(),
            state: entry.state(),
            inner_pid: entry.run.as_ref().map(|run| run.pid.as_raw()),
            restarts: entry.restarts,
            last_exit: entry.last_exit.clone(),
        };
        (table.booted, table.entries.iter().map(status).collect())
    }

    /// Takes new and changed services over; a changed one runs on as it was until it is started again.
    pub(super) fn reload(&self, specs: Vec<ServiceSpec>) {
        let mut table = self.lock();
        for spec in specs {
            match table.find(&spec.name) {
                Some(entry) => entry.spec = spec,
                None => table.entries.push(Entry::new(spec)),
            }
        }
    }

    /// Starts every service, each after the one before it is ready or its time for that is over.
    pub(super) fn start_in_order(self: &Arc<Self>) {
        let names: Vec<String> = self.lock().entries.iter().map(|e| e.spec.name.clone()).collect();
        for name in names {
            let limit = match self.lock().find(&name) {
                Some(entry) => Duration::from_millis(entry.spec.ready_ms_max),
                None => continue,
            };
            if let Err(error) = self.act(&name, Verb::Start) {
                eprintln!("{name}: {}", error.chain());
                continue;
            }
            // Ready, or ended for good (a service that runs once).
            let settled = self.wait_for(&name, limit, |e| e.ready || (e.run.is_none() && e.due.is_none()));
            if !settled {
                eprintln!("{name}: not ready after {limit:?}, going on");
            }
        }
        self.lock().booted = true;
    }

    pub(super) fn act(self: &Arc<Self>, name: &str, verb: Verb) -> Result<(), LabError> {
        match verb {
            Verb::Start => self.start(name),
            Verb::Stop => self.stop(name, Signal::SIGTERM),
            Verb::KillAndHold => self.stop(name, Signal::SIGKILL),
            Verb::Restart => {
                self.stop(name, Signal::SIGTERM)?;
                self.start(name)
            }
            Verb::Signal(number) => {
                let signal = Signal::try_from(number).doing(format!("find signal {number}"))?;
                let mut table = self.lock();
                let entry = table.find(name).ok_or_else(|| unknown(name))?;
                let run = entry.run.as_ref().ok_or_else(|| down(name))?;
                kill(run.pid, signal).doing(format!("send {signal} to {name}"))
            }
        }
    }

    fn start(self: &Arc<Self>, name: &str) -> Result<(), LabError> {
        let mut table = self.lock();
        let entry = table.find(name).ok_or_else(|| unknown(name))?;
        entry.wanted = true;
        if entry.run.is_some() {
            return Ok(());
        }
        self.launch(entry)
    }

    fn stop(&self, name: &str, signal: Signal) -> Result<(), LabError> {
        let limit = {
            let mut table = self.lock();
            let entry = table.find(name).ok_or_else(|| unknown(name))?;
            entry.wanted = false;
            entry.due = None;
            let Some(run) = &entry.run else { return Ok(()) };
            kill(run.pid, signal).doing(format!("send {signal} to {name}"))?;
            Duration::from_millis(entry.spec.stop_ms_max)
        };
        if self.wait_for(name, limit, |entry| entry.run.is_none()) {
            return Ok(());
        }
        if let Some(run) = self.lock().find(name).and_then(|entry| entry.run.as_ref()) {
            eprintln!("{name}: still there {limit:?} after {signal}, killed");
            let _ = kill(run.pid, Signal::SIGKILL);
        }
        if self.wait_for(name, limit, |entry| entry.run.is_none()) {
            return Ok(());
        }
        let detail = "it does not end on SIGKILL".to_owned();
        Err(LabError::Timeout { what: format!("{name} stops"), limit, detail })
    }

    /// Starts the process of `entry`. The caller holds the lock.
    fn launch(self: &Arc<Self>, entry: &mut Entry) -> Result<(), LabError> {
        entry.due = None;
        entry.generation += 1;
        let spec = entry.spec.clone();
        match self.spawn(&spec, entry.generation) {
            Ok(pid) => {
                eprintln!("{}: started as {pid}", spec.name);
                entry.ready = spec.ready == Ready::Started;
                entry.run = Some(Run { pid, alive: Instant::now() });
                if !entry.ready && spec.ready != Ready::Notify {
                    let (supervisor, generation) = (Arc::clone(self), entry.generation);
                    thread::spawn(move || supervisor.watch_ready(&spec, generation));
                }
                self.changed.notify_all();
                Ok(())
            }
            Err(error) => {
                entry.ended(format!("cannot start: {}", error.chain()), true);
                self.changed.notify_all();
                Err(error)
            }
        }
    }

    fn spawn(self: &Arc<Self>, spec: &ServiceSpec, generation: u64) -> Result<Pid, LabError> {
        if let Some(folder) = spec.log.parent() {
            fs::create_dir_all(folder).at("create", folder)?;
        }
        let log = OpenOptions::new().append(true).create(true).open(&spec.log).at("open", &spec.log)?;
        let error_log = log.try_clone().at("open", &spec.log)?;
        let (program, args) = spec
            .argv
            .split_first()
            .ok_or_else(|| LabError::BadOption(format!("service {} has no program", spec.name)))?;
        let mut command = Command::new(program);
        command.args(args).env_clear().env("PATH", tool::PATH).env("LC_ALL", "C.UTF-8").env("HOME", "/root");
        if spec.ready == Ready::Notify || spec.watchdog_ms.is_some() {
            command.env("NOTIFY_SOCKET", self.listen(&spec.name, generation)?);
        }
        if let Some(ms) = spec.watchdog_ms {
            command.env("WATCHDOG_USEC", (ms * 1000).to_string());
        }
        command.envs(&spec.env).current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(log).stderr(error_log);
        let child = command.spawn().doing(format!("start {}", spec.argv.join(" ")))?;
        Ok(Pid::from_raw(i32::try_from(child.id()).expect("a process id fits")))
    }

    /// Listens for `READY=1` and `WATCHDOG=1` of one process of a service.
    fn listen(self: &Arc<Self>, name: &str, generation: u64) -> Result<PathBuf, LabError> {
        // A path per start: what a former process has still said is not taken for the new one's word.
        let path = Path::new(NOTIFY).join(format!("{name}.{generation}"));
        let socket = UnixDatagram::bind(&path).at("bind", &path)?;
        socket.set_read_timeout(Some(IDLE)).at("configure", &path)?;
        let (supervisor, name, file) = (Arc::clone(self), name.to_owned(), path.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let said =
                    socket.recv(&mut buffer).map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned());
                let mut table = supervisor.lock();
                let Some(entry) = table.find(&name).filter(|e| e.generation == generation) else { break };
                let Some(run) = entry.run.as_mut() else { break };
                let said = said.unwrap_or_default();
                if said.lines().any(|l| l == "WATCHDOG=1" || l == "READY=1") {
                    run.alive = Instant::now();
                }
                if said.lines().any(|l| l == "READY=1") {
                    entry.ready = true;
                    supervisor.changed.notify_all();
                }
            }
            let _ = fs::remove_file(file);
        });
        Ok(path)
    }

    /// Looks at the condition of readiness of one process until it holds or the process is gone.
    fn watch_ready(&self, spec: &ServiceSpec, generation: u64) {
        loop {
            let reached = match &spec.ready {
                Ready::Started | Ready::Notify => return,
                Ready::UnixSocket(path) => UnixStream::connect(path).is_ok(),
                Ready::Tcp(addr) => addr
                    .parse::<SocketAddr>()
                    .is_ok_and(|addr| TcpStream::connect_timeout(&addr, TRY).is_ok()),
            };
            let mut table = self.lock();
            match table.find(&spec.name) {
                Some(entry) if entry.generation == generation && entry.run.is_some() => {
                    entry.ready |= reached;
                }
                _ => return,
            }
            if reached {
                self.changed.notify_all();
                return;
            }
            drop(table);
            thread::sleep(wait::STEP);
        }
    }

    /// Waits until `holds` for a service; false when the time is over.
    fn wait_for(&self, name: &str, limit: Duration, holds: impl Fn(&Entry) -> bool) -> bool {
        let mut table = self.lock();
        let begun = Instant::now();
        loop {
            if table.find(name).is_none_or(|entry| holds(entry)) {
                return true;
            }
            let Some(left) = limit.checked_sub(begun.elapsed()) else { return false };
            table = self.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Collects every child that ended: services and orphans of the whole host.
    pub(super) fn reap(&self) {
        loop {
            // Peeks without the lock, collects with it.
            match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Ok(_) => self.collect(),
                // No child at all.
                Err(Errno::ECHILD) => thread::sleep(IDLE),
                Err(_) => {}
            }
        }
    }

    fn collect(&self) {
        let mut table = self.lock();
        while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            let (pid, how, failed) = match status {
                WaitStatus::Exited(pid, code) => (pid, format!("exit code {code}"), code != 0),
                WaitStatus::Signaled(pid, signal, _) => (pid, format!("signal {signal}"), true),
                _ => break,
            };
            let entry = table.entries.iter_mut().find(|e| e.run.as_ref().is_some_and(|r| r.pid == pid));
            if let Some(entry) = entry {
                eprintln!("{}: {how}", entry.spec.name);
                // Its helpers go with it, as systemd has it; qemu has left the group of libvirtd long ago.
                let _ = killpg(pid, Signal::SIGKILL);
                entry.ended(how, failed);
            }
        }
        self.changed.notify_all();
    }

    /// Starts again what is due, kills what has missed its watchdog.
    pub(super) fn keep_up(self: &Arc<Self>) {
        let mut table = self.lock();
        loop {
            let now = Instant::now();
            let mut next = IDLE;
            for entry in &mut table.entries {
                if let Some(due) = entry.due {
                    if due <= now {
                        entry.restarts += 1;
                        if let Err(error) = self.launch(entry) {
                            eprintln!("{}: {}", entry.spec.name, error.chain());
                        }
                    } else {
                        next = next.min(due - now);
                    }
                }
                if let (Some(run), true, Some(ms)) = (&entry.run, entry.ready, entry.spec.watchdog_ms)
                    && now.duration_since(run.alive) > Duration::from_millis(ms)
                {
                    eprintln!("{}: no sign of life for {ms} ms, killed", entry.spec.name);
                    let _ = kill(run.pid, Signal::SIGKILL);
                }
            }
            table = self.changed.wait_timeout(table, next).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn unknown(name: &str) -> LabError {
    LabError::BadOption(format!("no service {name} on this host"))
}

fn down(name: &str) -> LabError {
    LabError::BadOption(format!("service {name} does not run"))
}
