//! The guard's one loop: wakes at the deadline, at a request, at the end of a process, and at every beat.
//!
//! Order at the start: table, kill what is overdue, harden, listen, tell systemd. Order at each wake: clock, kill what
//! is overdue, then everything else; a renewal that waits in the socket when its deadline passes is too late.
//!
//! SIGTERM and SIGINT end the loop and leave the table as it is: the primaries go on, and a successor enforces what
//! was acknowledged. Until there is one, the agent pauses its primaries at the deadline, and no lease is renewed.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, getsockopt, send, sockopt};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::geteuid;

pub use crate::harden::close_inherited;
pub use crate::table::TableError;

use crate::log::{Uuid, error, info, warning};
use crate::notify::{self, Notify};
use crate::primaries::{Primaries, Wanted};
use crate::table::{Found, Table};
use crate::watchdog::Watchdog;
use crate::wire::{self, Deadline, ENTRY_LEN, REPLY_LEN, REQUEST_LEN, Refusal, ReplyHead, Request, Status};
use crate::{CAPACITY, harden, sys};

/// Connections at a time: the agent's, and a few people who look.
const CONNECTIONS_MAX: usize = 32;
const BEAT: Duration = Duration::from_secs(1);

const LISTENER: u64 = 0;
const TIMER: u64 = 1;
const BEATS: u64 = 2;
const SIGNALS: u64 = 3;
const CONNECTIONS: u64 = 1_000;
const PRIMARIES: u64 = 1_000_000;

/// Where the guard keeps and offers what.
#[derive(Clone, Debug)]
pub struct Options {
    /// The socket that it listens on.
    pub socket: PathBuf,
    /// The table that it keeps.
    pub table: PathBuf,
    /// The hardware watchdog that it feeds, if any.
    pub watchdog: Option<PathBuf>,
}

/// Why the guard ended.
#[derive(Debug)]
pub enum DaemonError {
    /// There is no table.
    Table(TableError),
    /// Registered processes of a predecessor cannot be watched; they are in the table still.
    Recover(usize),
    /// The boot's id cannot be read.
    BootId(io::Error),
    /// The socket cannot be opened.
    Listen(PathBuf, io::Error),
    /// A timer, signal or event descriptor cannot be made or used.
    Events(Errno),
}

impl fmt::Display for DaemonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(error) => error.fmt(f),
            Self::Recover(count) => {
                write!(f, "{count} registered processes cannot be watched: see the lines above")
            }
            Self::BootId(_) => f.write_str("cannot read the boot id: is /proc mounted?"),
            Self::Listen(path, _) => write!(f, "cannot listen on {}", path.display()),
            Self::Events(_) => f.write_str("cannot wait for events"),
        }
    }
}

impl std::error::Error for DaemonError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Table(error) => error.source(),
            Self::BootId(source) | Self::Listen(_, source) => Some(source),
            Self::Events(errno) => Some(errno),
            Self::Recover(_) => None,
        }
    }
}

impl From<Errno> for DaemonError {
    fn from(errno: Errno) -> Self {
        Self::Events(errno)
    }
}

/// Runs the guard until it is told to stop.
pub fn run(options: &Options) -> Result<(), DaemonError> {
    harden::raise_file_limit((CAPACITY + CONNECTIONS_MAX + 64) as u64);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let primaries = take_over(options, &epoll)?;
    let notify = Notify::from_env();
    let mut daemon = Daemon::new(options, epoll, primaries, notify)?;
    harden::lock_and_prioritise();
    daemon.notify.send("READY=1");
    info!(
        "guard ready socket={} registered={} armed={}",
        options.socket.display(),
        daemon.primaries.registered(),
        daemon.primaries.table().deadline().is_some()
    );
    let outcome = daemon.serve();
    daemon.stop(&options.socket);
    outcome
}

/// Opens the table and enforces it: nothing else of the guard exists before this has returned.
fn take_over(options: &Options, epoll: &Epoll) -> Result<Primaries, DaemonError> {
    let boot_id = read_boot_id().map_err(DaemonError::BootId)?;
    let (table, found) = Table::open(&options.table, boot_id, CAPACITY).map_err(DaemonError::Table)?;
    let mut primaries = Primaries::new(table, CAPACITY, PRIMARIES);
    let recovered = primaries.recover(epoll);
    let now_ns = sys::boottime_ns();
    match found {
        Found::Fresh => {}
        Found::Predecessor => {
            info!("took over a table registered={}", primaries.registered());
            primaries.enforce(now_ns);
        }
        // What was promised cannot be read: the one safe reading is that the deadline has passed.
        Found::Damaged => {
            error!("the table is damaged, every primary in it is killed count={}", primaries.registered());
            primaries.kill_all(now_ns, now_ns);
            primaries.table().begin(boot_id);
        }
    }
    recovered.map_err(DaemonError::Recover)?;
    Ok(primaries)
}

pub(crate) fn read_boot_id() -> io::Result<[u64; 2]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    let half = |range: std::ops::Range<usize>| {
        let digits = digits.get(range).ok_or(io::ErrorKind::InvalidData)?;
        u64::from_str_radix(digits, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    };
    Ok([half(0..16)?, half(16..32)?])
}

struct Daemon {
    epoll: Epoll,
    primaries: Primaries,
    listener: OwnedFd,
    timer: TimerFd,
    beats: TimerFd,
    signals: SignalFd,
    connections: [Option<OwnedFd>; CONNECTIONS_MAX],
    watchdog: Option<Watchdog>,
    notify: Notify,
    started_ns: u64,
    reply: Box<[u8]>,
}

impl Daemon {
    fn new(
        options: &Options,
        epoll: Epoll,
        primaries: Primaries,
        notify: Notify,
    ) -> Result<Self, DaemonError> {
        let timer =
            TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let beats =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        // A third of what systemd allows, so that one lost beat is no restart.
        let beat = notify::watchdog_interval().map_or(BEAT, |allowed| (allowed / 3).min(BEAT));
        beats.set(Expiration::Interval(TimeSpec::from_duration(beat)), TimerSetTimeFlags::empty())?;
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGTERM);
        stop.add(Signal::SIGINT);
        // A closed terminal is no reason to end.
        stop.add(Signal::SIGHUP);
        stop.thread_block()?;
        let signals = SignalFd::with_flags(&stop, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let watchdog = options.watchdog.as_deref().and_then(Watchdog::open);
        let listener = listen(&options.socket)?;
        for (fd, token) in [
            (listener.as_fd(), LISTENER),
            (timer.as_fd(), TIMER),
            (beats.as_fd(), BEATS),
            (signals.as_fd(), SIGNALS),
        ] {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        }
        let daemon = Self {
            epoll,
            primaries,
            listener,
            timer,
            beats,
            signals,
            connections: [const { None }; CONNECTIONS_MAX],
            watchdog,
            notify,
            started_ns: sys::boottime_ns(),
            reply: vec![0; REPLY_LEN + CAPACITY * ENTRY_LEN].into_boxed_slice(),
        };
        daemon.arm()?;
        Ok(daemon)
    }

    fn serve(&mut self) -> Result<(), DaemonError> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            self.primaries.enforce(sys::boottime_ns());
            for event in &events[..count] {
                match event.data() {
                    LISTENER => self.accept(),
                    // Rung: what was due has been done above. An expired timer stays silent until it is set again.
                    TIMER => drain(&self.timer),
                    BEATS => self.beat(),
                    SIGNALS => {
                        if self.told_to_stop() {
                            return Ok(());
                        }
                    }
                    token if token >= PRIMARIES => {
                        let slot = (token - PRIMARIES) as usize;
                        self.primaries.ended(&self.epoll, slot, sys::boottime_ns());
                    }
                    token => self.attend((token - CONNECTIONS) as usize),
                }
            }
        }
    }

    /// Sets the timer to the deadline; a passed one rings at once.
    fn arm(&self) -> Result<(), Errno> {
        let Some(deadline) = self.primaries.table().deadline() else { return Ok(()) };
        let at = TimeSpec::from_duration(Duration::from_nanos(deadline.boottime_ns));
        self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
    }

    fn beat(&mut self) {
        drain(&self.beats);
        // An overdue primary that does not die is what the hardware watchdog is for.
        if let Some(watchdog) = &mut self.watchdog
            && !self.primaries.overdue(sys::boottime_ns())
        {
            watchdog.feed();
        }
        self.notify.send("WATCHDOG=1");
    }

    fn told_to_stop(&self) -> bool {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo != Signal::SIGHUP as u32 {
                return true;
            }
        }
        false
    }

    fn stop(mut self, socket: &Path) {
        self.notify.send("STOPPING=1");
        let left = self.primaries.registered();
        if left == 0 {
            if let Some(watchdog) = self.watchdog.take() {
                watchdog.disarm();
            }
            info!("guard stopped, nothing was registered");
        } else {
            warning!("guard stopped with primaries, the table is left to a successor registered={left}");
        }
        if let Err(error) = std::fs::remove_file(socket) {
            warning!("cannot remove the socket path={} error={error}", socket.display());
        }
    }

    fn accept(&mut self) {
        let connection = match sys::accept(self.listener.as_fd()) {
            Ok(connection) => connection,
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => return,
            Err(errno) => return warning!("cannot accept a connection error={errno}"),
        };
        let peer = getsockopt(&connection, sockopt::PeerCredentials).map(|peer| peer.uid());
        if peer != Ok(0) && peer != Ok(geteuid().as_raw()) {
            warning!("connection refused, the peer is not root uid={}", peer.unwrap_or(u32::MAX));
            return self.refuse(&connection, Refusal::NotRoot);
        }
        let Some(at) = self.connections.iter().position(Option::is_none) else {
            warning!("connection refused, too many are open");
            return self.refuse(&connection, Refusal::Busy);
        };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, CONNECTIONS + at as u64);
        match self.epoll.add(&connection, event) {
            Ok(()) => self.connections[at] = Some(connection),
            Err(errno) => warning!("cannot watch a connection error={errno}"),
        }
    }

    /// Serves one request of a connection, or ends it.
    fn attend(&mut self, at: usize) {
        let Some(connection) = self.connections[at].take() else { return };
        let mut bytes = [0; REQUEST_LEN + 1];
        let received = match sys::receive(connection.as_fd(), &mut bytes) {
            Err(Errno::EAGAIN | Errno::EINTR) => {
                self.connections[at] = Some(connection);
                return;
            }
            // Closing the connection takes it off the list of watched ones: nobody else holds it.
            Err(_) => return,
            Ok(received) if received.len == 0 => return,
            Ok(received) => received,
        };
        let request = if received.truncated { None } else { Request::decode(&bytes[..received.len]) };
        let Some((request, tag)) = request else {
            warning!("connection closed, not a request of this protocol length={}", received.len);
            return self.refuse(&connection, Refusal::BadRequest);
        };
        let outcome = self.perform(request, received.fd);
        let head = ReplyHead { operation: request.operation(), tag, outcome };
        if self.answer(&connection, head, matches!(request, Request::Status)) {
            self.connections[at] = Some(connection);
        }
    }

    fn perform(&mut self, request: Request, fd: Option<OwnedFd>) -> Result<(), Refusal> {
        let now_ns = sys::boottime_ns();
        // Once more: the deadline may have passed since this round began.
        self.primaries.enforce(now_ns);
        match request {
            Request::Hello | Request::Status => Ok(()),
            Request::Register { uuid, epoch, lease, pid, class } => {
                let wanted = Wanted { uuid, epoch, lease, pid, class };
                self.primaries.register(&self.epoll, &wanted, fd, now_ns).inspect_err(|refusal| {
                    warning!("registration refused uuid={} epoch={epoch} reason={refusal}", Uuid(uuid));
                })
            }
            Request::Forget { uuid, epoch } => self.primaries.forget(&self.epoll, uuid, epoch),
            Request::Deadline(deadline) => self.set_deadline(deadline, now_ns),
        }
    }

    fn set_deadline(&mut self, deadline: Deadline, now_ns: u64) -> Result<(), Refusal> {
        self.primaries.set_deadline(deadline, now_ns).inspect_err(|refusal| {
            warning!("deadline refused lease={} reason={refusal}", deadline.lease);
        })?;
        // The beat enforces it a second late at worst if the timer cannot be set; that is not what was asked for.
        self.arm().map_err(|errno| {
            error!("cannot set the timer error={errno}");
            Refusal::Failed
        })
    }

    fn refuse(&mut self, connection: &OwnedFd, refusal: Refusal) {
        self.answer(connection, ReplyHead { operation: 0, tag: 0, outcome: Err(refusal) }, false);
    }

    /// Whether the answer went out: a peer that does not read is not waited for.
    fn answer(&mut self, connection: &OwnedFd, head: ReplyHead, with_entries: bool) -> bool {
        wire::encode_reply(head, &self.status(), &mut self.reply);
        let mut len = REPLY_LEN;
        if with_entries {
            for entry in self.primaries.entries() {
                wire::encode_entry(&entry, &mut self.reply[len..len + ENTRY_LEN]);
                len += ENTRY_LEN;
            }
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(connection.as_raw_fd(), &self.reply[..len], flags).is_ok()
    }

    fn status(&self) -> Status {
        let table = self.primaries.table();
        Status {
            guard_pid: std::process::id(),
            started_ns: self.started_ns,
            now_ns: sys::boottime_ns(),
            deadline: table.deadline(),
            registered: self.primaries.registered(),
            capacity: CAPACITY as u32,
            kills: table.kills(),
            fired: table.fired(),
            entries: Vec::new(),
        }
    }
}

fn drain(timer: &TimerFd) {
    match timer.wait() {
        Ok(()) | Err(Errno::EAGAIN) => {}
        Err(errno) => warning!("cannot read a timer error={errno}"),
    }
}

/// The table's lock says that no other guard is alive, so that a socket in the way is a dead one's.
fn listen(path: &Path) -> Result<OwnedFd, DaemonError> {
    let failed = |source| DaemonError::Listen(path.to_owned(), source);
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    sys::listen_seqpacket(path, 16).map_err(failed)
}
