//! Removes what the journal of a run says, and nothing else.
//!
//! A cgroup is the lab's by its recorded path below the lab's prefix, a process by id and start time, a
//! folder by the marker that the lab put into it. Namespaces and mounts end with the processes that hold
//! them. Each step may be repeated: a sweep that is killed is finished by the next one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::error::{At, LabError};
use crate::journal::{Entry, Journal, Lock, RUN, run_dir};
use crate::{proc, wait};

/// The file that marks a folder as made by the lab.
pub(crate) const MARKER: &str = ".understudy-lab";

/// A folder is removed again and again while a dying helper may still write into it.
const REMOVE_MAX: Duration = Duration::from_secs(10);

/// What a sweep has removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Cgroups, with everything that ran in them.
    pub cgroups: Vec<PathBuf>,
    /// Folders.
    pub dirs: Vec<PathBuf>,
}

/// Removes the lab of this prefix, unless a living process owns it. Kept labs are removed too.
///
/// # Errors
/// [`LabError::Busy`] when a run owns it; otherwise what could not be removed.
pub fn sweep(prefix: &str) -> Result<Swept, LabError> {
    if !run_dir(prefix).exists() {
        return Ok(Swept::default());
    }
    let _lock = Lock::take(prefix)?;
    tear_down(&run_dir(prefix))
}

/// Sweeps every lab whose prefix begins so, whose owner is dead and that was not kept on purpose. `ustlab`
/// means all labs of this machine.
///
/// # Errors
/// The first lab that could not be removed.
pub fn sweep_dead(begin: &str) -> Result<Vec<(String, Swept)>, LabError> {
    let mut done = Vec::new();
    for prefix in prefixes().into_iter().filter(|prefix| prefix.starts_with(begin)) {
        if kept(&prefix)? {
            continue;
        }
        match sweep(&prefix) {
            Ok(swept) => done.push((prefix, swept)),
            Err(LabError::Busy { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Whether the lab of this prefix was left standing on purpose.
pub(crate) fn kept(prefix: &str) -> Result<bool, LabError> {
    Ok(Journal::read(&run_dir(prefix))?.contains(&Entry::Kept))
}

fn prefixes() -> Vec<String> {
    let entries = fs::read_dir(RUN).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Removes everything that the journal in `run_dir` names, then the journal. The caller holds the lock.
pub(crate) fn tear_down(run_dir: &Path) -> Result<Swept, LabError> {
    let entries = Journal::read(run_dir)?;
    let mut swept = Swept::default();
    // After a reboot of the machine only folders are left, and process ids belong to others.
    let same_boot =
        entries.iter().any(|e| matches!(e, Entry::Run { boot, .. } if *boot == proc::machine_boot()));
    let mut dirs = Vec::new();
    for entry in entries.into_iter().rev() {
        match entry {
            Entry::Cgroup { path } if same_boot => {
                let cgroup = Cgroup::at(path);
                if cgroup.exists() {
                    cgroup.remove()?;
                    swept.cgroups.push(cgroup.path().to_path_buf());
                }
            }
            Entry::Process { id } if same_boot => id.kill(),
            Entry::Dir { path } => dirs.push(path),
            Entry::Run { .. } | Entry::Kept | Entry::Cgroup { .. } | Entry::Process { .. } => {}
        }
    }
    for dir in dirs {
        if remove_marked(&dir)? {
            swept.dirs.push(dir);
        }
    }
    remove_tree(run_dir)?;
    // The last lab takes the common folder with it; it is not empty while another one stands.
    let _ = fs::remove_dir(RUN);
    Ok(swept)
}

/// Removes a folder of the lab; one without the marker is left as it is, unless it is empty.
pub(crate) fn remove_marked(dir: &Path) -> Result<bool, LabError> {
    if !dir.exists() {
        return Ok(false);
    }
    if dir.join(MARKER).exists() {
        remove_tree(dir)?;
        return Ok(true);
    }
    // Killed between the making of the folder and of its marker.
    let _ = fs::remove_dir(dir);
    Ok(!dir.exists())
}

/// Removes a tree, its marker and lock last: what is left of a killed sweep is recognised by the next.
fn remove_tree(dir: &Path) -> Result<(), LabError> {
    let last = [MARKER, "journal", "lock"];
    wait::until("a folder of the lab is removed", REMOVE_MAX, || {
        let entries = fs::read_dir(dir).map_err(|error| error.to_string())?;
        for entry in entries.flatten().filter(|e| !last.iter().any(|name| e.file_name() == *name)) {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let path = entry.path();
            if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) }
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    })?;
    fs::remove_dir_all(dir).at("remove", dir)
}
