//! Owns the look at `/proc`: which qemu processes there are, and whose each of them is.
//!
//! Promises: a caller waits for one process at most once and for [`EACH`]; every other read takes no lock of the process
//! that is looked at. A process that is dying counts for the one instance that it may be, never for others. Must not do:
//! call a process nobody's while it may yet run a guest and could not be read.
//!
//! `cmdline` is the only file with the UUID, and it is read through the process's memory: whoever reads it waits for the
//! process's mmap lock, for as long as a hung disk or mount holds that. `stat` may have to take down the memory of a process
//! that ends meanwhile. So only processes with qemu's name are asked for them, on a thread of their own. What was read once
//! is remembered under the process's number and start time: a command line does not change.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use procfs::ProcError;
use procfs::process::{Process, Stat};
use understudy_core::model::ids::InstanceId;

use super::Pid;

/// Where libvirt notes the processes of its domains.
pub(crate) const NOTES: &str = "/run/libvirt/qemu";
/// How long one process is waited for. A busy machine takes longer than an idle one, and being wrong means an error.
const EACH: Duration = Duration::from_secs(1);
/// How long all of them together are waited for.
const ALL: Duration = Duration::from_secs(2);
/// How the names of qemu programs begin.
const QEMU_NAMES: [&[u8]; 2] = [b"qemu", b"kvm"];
/// Flags of `stat`, from the kernel's `sched.h`.
const PF_EXITING: u32 = 0x4;
const PF_KTHREAD: u32 = 0x20_0000;
/// SIGKILL in the signals that are pending by `stat`.
const KILLED: u64 = 1 << 8;

/// The qemu processes of a host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Processes {
    /// Whose UUID was read.
    pub(crate) carriers: Vec<(InstanceId, Pid)>,
    /// Those of which the UUID cannot be read, and the instance that each was or that libvirt notes it for.
    pub(crate) presumed: Vec<(InstanceId, Pid)>,
    /// Those of which nothing is known but that they may run a guest.
    pub(crate) unclear: Vec<Pid>,
}

impl Processes {
    /// The process of an instance.
    pub(crate) fn of(&self, id: InstanceId) -> io::Result<Option<Pid>> {
        let mut all = self.carriers.iter().chain(&self.presumed);
        match (all.find(|(carried, _)| *carried == id), self.unclear.first()) {
            (Some(&(_, pid)), _) => Ok(Some(pid)),
            (None, None) => Ok(None),
            (None, Some(pid)) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "process {pid} does not let its command line be read: look for a hung disk or network mount"
                ),
            )),
        }
    }
}

/// What one process said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// Nothing, so far: it holds its reader up.
    Nothing {
        /// It has been killed or exits: none of its threads comes back to run a guest.
        dying: bool,
    },
    Carries(InstanceId),
    /// It is no instance's.
    Nobodys,
    /// None of its threads has a memory any more.
    Emptied,
    /// Every thread of it has ended.
    Gone,
}

/// What each process said.
type Answer = (i32, io::Result<Said>);

/// One host's `/proc`, and what was read there before.
#[derive(Debug)]
pub(crate) struct Look {
    root: PathBuf,
    notes: PathBuf,
    each: Duration,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Debug, Default)]
struct Memory {
    known: BTreeMap<i32, Known>,
    /// Processes that hold their reader up.
    stuck: BTreeMap<i32, Weak<Reader>>,
}

/// One that reads processes for as long as it lives. True while the one that it reads is known to be dying.
type Reader = AtomicBool;

#[derive(Debug, Clone, Copy)]
struct Known {
    start: u64,
    id: InstanceId,
    since: Instant,
}

/// This host's.
pub(super) static HERE: LazyLock<Look> =
    LazyLock::new(|| Look::new(PathBuf::from("/proc"), PathBuf::from(NOTES), EACH));

impl Look {
    fn new(root: PathBuf, notes: PathBuf, each: Duration) -> Self {
        Self { root, notes, each, memory: Arc::default() }
    }

    /// All qemu processes.
    pub(crate) fn read(&self) -> io::Result<Processes> {
        let began = Instant::now();
        let (listed, named) = self.list()?;
        let mut said = self.ask(&named)?;
        let mut found = Processes::default();
        for pid in named {
            let presumed = |remembered| self.presumed(pid, remembered);
            match said.remove(&pid).transpose()? {
                Some(Said::Carries(id)) => found.carriers.push((id, Pid(pid))),
                Some(Said::Nobodys | Said::Gone) => {}
                Some(Said::Emptied) => found.presumed.extend(presumed(false).map(|id| (id, Pid(pid)))),
                Some(Said::Nothing { dying: true }) => {
                    found.presumed.extend(presumed(true).map(|id| (id, Pid(pid))));
                }
                Some(Said::Nothing { dying: false }) | None => match presumed(true) {
                    Some(id) => found.presumed.push((id, Pid(pid))),
                    None => found.unclear.push(Pid(pid)),
                },
            }
        }
        self.memory().known.retain(|pid, known| known.since > began || listed.contains(pid));
        Ok(found)
    }

    /// The instance whose UUID a process carries, read from the process itself.
    pub(crate) fn carried_by(&self, pid: Pid) -> io::Result<Option<InstanceId>> {
        match self.ask(&[pid.0])?.remove(&pid.0).transpose()? {
            Some(Said::Carries(id)) => Ok(Some(id)),
            _ => Ok(None),
        }
    }

    /// The instance that a process carries, or that libvirt notes it for when it cannot be read.
    pub(crate) fn carried_or_noted(&self, pid: Pid) -> io::Result<Option<InstanceId>> {
        match self.ask(&[pid.0])?.remove(&pid.0).transpose()? {
            Some(Said::Carries(id)) => Ok(Some(id)),
            Some(Said::Nobodys | Said::Gone) => Ok(None),
            Some(Said::Emptied) => Ok(self.presumed(pid.0, false)),
            Some(Said::Nothing { .. }) | None => Ok(self.presumed(pid.0, true)),
        }
    }

    /// Every process, and those with qemu's name. Takes no lock of theirs.
    fn list(&self) -> io::Result<(BTreeSet<i32>, Vec<i32>)> {
        let (mut listed, mut named) = (BTreeSet::new(), Vec::new());
        for entry in std::fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            listed.insert(pid);
            let folder = self.root.join(name);
            // The name may have been changed; which program runs is told only to those who may trace it.
            match std::fs::read(folder.join("comm")) {
                Ok(name) if is_qemu(&name) || runs_qemu(&folder) => named.push(pid),
                Ok(_) => {}
                Err(error) if ended(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((listed, named))
    }

    /// Asks processes, each by one reader at a time. What is missing did not answer anything.
    fn ask(&self, pids: &[i32]) -> io::Result<BTreeMap<i32, io::Result<Said>>> {
        let until = Instant::now() + ALL;
        let mut said = BTreeMap::new();
        {
            // One that holds a reader up already is not waited for again.
            let mut memory = self.memory();
            memory.stuck.retain(|_, reader| reader.strong_count() > 0);
            for pid in pids {
                if let Some(reader) = memory.stuck.get(pid).and_then(Weak::upgrade) {
                    said.insert(*pid, Ok(Said::Nothing { dying: reader.load(Ordering::Acquire) }));
                }
            }
        }
        let mut left: Vec<i32> = pids.iter().copied().filter(|pid| !said.contains_key(pid)).collect();
        while !left.is_empty() {
            let time = until.saturating_duration_since(Instant::now());
            if time.is_zero() {
                break;
            }
            let (reader, answers) = self.begin(left.clone())?;
            if !gather(&answers, self.each.min(time), &mut said) {
                break;
            }
            left.retain(|pid| !said.contains_key(pid));
            // Read in their order: the first without an answer is the one that is waited for.
            if !left.is_empty() {
                let pid = left.remove(0);
                tracing::warn!(
                    pid,
                    "a process does not let itself be read: look for a hung disk or network mount"
                );
                let dying = reader.upgrade().is_some_and(|reader| reader.load(Ordering::Acquire));
                said.insert(pid, Ok(Said::Nothing { dying }));
                self.memory().stuck.insert(pid, reader);
            }
        }
        Ok(said)
    }

    /// Begins to read processes one after the other, on a thread of its own.
    fn begin(&self, pids: Vec<i32>) -> io::Result<(Weak<Reader>, Receiver<Answer>)> {
        let (sender, answers) = channel();
        let (root, memory, alive) =
            (self.root.clone(), Arc::clone(&self.memory), Arc::new(Reader::new(false)));
        let reader = Arc::downgrade(&alive);
        std::thread::Builder::new().name("procread".to_owned()).spawn(move || {
            for pid in pids {
                let answer = read_one(&root.join(pid.to_string()), pid, &memory, &alive);
                if sender.send((pid, answer)).is_err() {
                    break;
                }
            }
        })?;
        Ok((reader, answers))
    }

    /// The instance that a process which cannot be read was when it could be, or is by libvirt's notes. A process of which
    /// not even the start time is known is taken for the one that had its number before.
    fn presumed(&self, pid: i32, remembered: bool) -> Option<InstanceId> {
        let known = remembered.then(|| self.memory().known.get(&pid).map(|known| known.id)).flatten();
        known.or_else(|| noted(&self.notes, pid))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }
}

fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes answers as they come. True when one did not come in time.
fn gather(answers: &Receiver<Answer>, each: Duration, said: &mut BTreeMap<i32, io::Result<Said>>) -> bool {
    loop {
        match answers.recv_timeout(each) {
            Ok((pid, answer)) => {
                said.insert(pid, answer);
            }
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

/// What one process says; may take as long as the process holds its memory.
fn read_one(folder: &Path, pid: i32, memory: &Mutex<Memory>, reader: &Reader) -> io::Result<Said> {
    reader.store(false, Ordering::Release);
    let read = || -> Result<Said, ProcError> {
        let process = Process::new_with_root(folder.to_owned())?;
        let stat = process.stat()?;
        if stat.flags & PF_KTHREAD != 0 {
            return Ok(Said::Nobodys);
        }
        if wholly_ended(&stat) {
            return Ok(Said::Gone);
        }
        let start = stat.starttime;
        if let Some(known) = lock(memory).known.get(&pid).filter(|known| known.start == start) {
            return Ok(Said::Carries(known.id));
        }
        reader.store(stat.flags & PF_EXITING != 0 || stat.signal & KILLED != 0, Ordering::Release);
        let command = command_line(&process)?;
        if command.is_empty() {
            return Ok(if wholly_ended(&process.stat()?) { Said::Gone } else { Said::Emptied });
        }
        let Some(id) = carried(&command) else { return Ok(Said::Nobodys) };
        lock(memory).known.insert(pid, Known { start, id, since: Instant::now() });
        Ok(Said::Carries(id))
    };
    match read() {
        Ok(said) => Ok(said),
        Err(ProcError::NotFound(_)) => Ok(Said::Gone),
        Err(ProcError::Io(error, _)) if ended(&error) => Ok(Said::Gone),
        Err(ProcError::Io(error, _)) => Err(error),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// The command line, through whichever thread still has the memory that it lies in. The first thread of a process may have
/// ended long before one that hangs in a disk.
fn command_line(process: &Process) -> Result<Vec<u8>, ProcError> {
    let read = |file: &Path| -> Result<Vec<u8>, ProcError> {
        let mut bytes = Vec::new();
        process.open_relative(file)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let command = read(Path::new("cmdline"))?;
    if !command.is_empty() {
        return Ok(command);
    }
    for task in process.tasks()? {
        let Ok(task) = task else { continue };
        match read(&Path::new("task").join(task.tid.to_string()).join("cmdline")) {
            Ok(command) if !command.is_empty() => return Ok(command),
            _ => {}
        }
    }
    Ok(Vec::new())
}

fn wholly_ended(stat: &Stat) -> bool {
    stat.state == 'X' || (stat.state == 'Z' && stat.num_threads <= 1)
}

/// The process ended between the listing and the look.
fn ended(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ESRCH))
}

fn is_qemu(name: &[u8]) -> bool {
    QEMU_NAMES.iter().any(|start| name.starts_with(start))
}

fn runs_qemu(folder: &Path) -> bool {
    let program = std::fs::read_link(folder.join("exe")).ok();
    program.as_deref().and_then(Path::file_name).is_some_and(|name| is_qemu(name.as_encoded_bytes()))
}

/// The UUID on a qemu command line.
fn carried(command: &[u8]) -> Option<InstanceId> {
    let mut arguments = command.split(|&byte| byte == 0);
    arguments.find(|&argument| argument == b"-uuid")?;
    std::str::from_utf8(arguments.next()?).ok()?.parse().ok()
}

/// The instance of the domain that libvirt notes a process for: beside each pid file lies the domain's state.
fn noted(notes: &Path, pid: i32) -> Option<InstanceId> {
    let files = std::fs::read_dir(notes).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut pid_files = files.filter(|path| path.extension().is_some_and(|end| end == "pid"));
    let file = pid_files.find(|file| noted_pid(file) == Some(Pid(pid)))?;
    let state = std::fs::read_to_string(file.with_extension("xml")).ok()?;
    let (_, domain) = state.split_once("<domain ")?;
    let (_, id) = domain.split_once("<uuid>")?;
    id.split_once("</uuid>")?.0.trim().parse().ok()
}

/// The number in one of libvirt's pid files.
pub(super) fn noted_pid(file: &Path) -> Option<Pid> {
    Some(Pid(std::fs::read_to_string(file).ok()?.trim().parse().ok()?))
}

#[cfg(test)]
mod tests;
