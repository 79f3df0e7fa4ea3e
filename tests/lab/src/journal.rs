//! The record of what a run has made, written before each thing is made, and the lock of the run.
//!
//! One line of JSON per thing in `/run/understudy-lab/PREFIX/journal`. The lock is a `flock` on a file
//! beside it, which the kernel drops when the owner dies, however it dies. Within a process the gate of
//! the journal is closed before the lab is torn down, so that nothing is made behind the tear-down's back.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{At, LabError};
use crate::proc::ProcessId;
use crate::wait;

/// Where all labs of this machine keep their records.
pub(crate) const RUN: &str = "/run/understudy-lab";

/// A held lock without a living owner is waited for so long.
const UNSIGNED_MAX: Duration = Duration::from_secs(10);

/// The journal's name in the folder of a lab's records.
const FILE: &str = "journal";

/// Folder of one lab's records.
pub(crate) fn run_dir(prefix: &str) -> PathBuf {
    Path::new(RUN).join(prefix)
}

/// One recorded thing.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entry {
    /// The run: who owns it, under which boot of the machine.
    Run { owner: ProcessId, boot: String },
    /// A folder with everything in it; removed only if it carries the lab's marker.
    Dir { path: PathBuf },
    /// A cgroup and every process in it.
    Cgroup { path: PathBuf },
    /// A process that could stand outside of the cgroups.
    Process { id: ProcessId },
    /// The owner left the lab standing on purpose.
    Kept,
}

/// The journal of one lab.
#[derive(Debug)]
pub(crate) struct Journal {
    run_dir: PathBuf,
    closed: Mutex<bool>,
}

impl Journal {
    /// The journal in `run_dir`, made when the first entry is written.
    pub(crate) fn in_dir(run_dir: &Path) -> Journal {
        Journal { run_dir: run_dir.to_path_buf(), closed: Mutex::new(false) }
    }

    /// The folder of the lab's records.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Records `entry`, then makes the thing, while the tear-down waits.
    pub(crate) fn make<T>(
        &self,
        entry: &Entry,
        make: impl FnOnce() -> Result<T, LabError>,
    ) -> Result<T, LabError> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Err(LabError::TornDown);
        }
        self.append(entry)?;
        make()
    }

    /// Records `entry` alone.
    pub(crate) fn record(&self, entry: &Entry) -> Result<(), LabError> {
        self.make(entry, || Ok(()))
    }

    /// From here on nothing is made any more in this process.
    pub(crate) fn close(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    fn append(&self, entry: &Entry) -> Result<(), LabError> {
        let mut line = serde_json::to_string(entry).expect("an entry is plain data");
        line.push('\n');
        let path = self.run_dir.join(FILE);
        let mut file = OpenOptions::new().append(true).create(true).open(&path).at("open", &path)?;
        // One write call: a line is there as a whole or not at all when the process is killed.
        file.write_all(line.as_bytes()).at("append to", &path)
    }

    /// All entries, oldest first. A torn line at the end belongs to a thing that was not made.
    pub(crate) fn read(run_dir: &Path) -> Result<Vec<Entry>, LabError> {
        let path = run_dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).at("read", &path),
        };
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

/// The ownership of a lab, for as long as the value lives.
#[derive(Debug)]
pub(crate) struct Lock {
    /// Holds the flock: never read.
    _file: File,
}

impl Lock {
    /// Takes the lock of `prefix` and makes the folder of its records.
    pub(crate) fn take(prefix: &str) -> Result<Lock, LabError> {
        let path = run_dir(prefix).join("lock");
        let begun = Instant::now();
        loop {
            if let Some(lock) = Lock::try_take(&path)? {
                return Ok(lock);
            }
            // Held by a process that is not the owner, or by one that has not signed yet: a child of a killed
            // owner, on its way from fork to exec, holds the lock a moment longer.
            let owner: Option<ProcessId> =
                fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str(&text).ok());
            if owner.is_some_and(ProcessId::alive) || begun.elapsed() > UNSIGNED_MAX {
                let pid = owner.map_or("that has not signed the lock".to_owned(), |id| id.pid.to_string());
                return Err(LabError::Busy { prefix: prefix.to_owned(), pid });
            }
            thread::sleep(wait::STEP);
        }
    }

    /// The lock, unless somebody holds it.
    fn try_take(path: &Path) -> Result<Option<Lock>, LabError> {
        let dir = path.parent().expect("the lock lies in a folder");
        loop {
            match fs::create_dir_all(dir) {
                Ok(()) => {}
                // The end of another lab removed the common folder between its making and its use.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error).at("create", dir),
            }
            let file = match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
            {
                Ok(file) => file,
                // The former owner removed the folder between the two calls.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error).at("open", path),
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error).at("lock", path),
            }
            // A former owner may have removed the file that was opened: then the lock guards nothing.
            let held = file.metadata().at("look at", path)?.ino();
            if fs::metadata(path).is_ok_and(|there| there.ino() == held) {
                let me = serde_json::to_string(&ProcessId::myself()).expect("plain data");
                fs::write(path, me).at("write", path)?;
                return Ok(Some(Lock { _file: file }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_read_back_and_a_torn_line_is_left_out() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let journal = Journal::in_dir(dir.path());
        let entry = Entry::Cgroup { path: "/sys/fs/cgroup/x".into() };
        journal.record(&entry).expect("record");
        journal.record(&Entry::Kept).expect("record");
        let path = dir.path().join("journal");
        let mut text = fs::read_to_string(&path).expect("read");
        text.push_str("{\"dir\":{\"pa");
        fs::write(&path, text).expect("write");
        assert_eq!(Journal::read(dir.path()).expect("read"), [entry, Entry::Kept]);
    }

    #[test]
    fn nothing_is_made_after_the_journal_was_closed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let journal = Journal::in_dir(dir.path());
        journal.close();
        let made = journal.make(&Entry::Kept, || Ok(()));
        assert!(matches!(made, Err(LabError::TornDown)));
        assert!(Journal::read(dir.path()).expect("read").is_empty());
    }
}
