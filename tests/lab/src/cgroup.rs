//! One cgroup (v2) per host: all of its processes, and the way to freeze or kill them at once.
//!
//! Only core files of cgroup v2 are used (`cgroup.procs`, `cgroup.kill`, `cgroup.freeze`), no controller:
//! so it also works beside the v1 controllers of a hybrid machine. Unlike the v1 freezer, a frozen
//! v2 cgroup can be killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{At, LabError};
use crate::wait;

/// Killing takes as long as the kernel needs to reap a frozen or busy qemu.
const EMPTY_MAX: Duration = Duration::from_secs(30);

/// A cgroup by its path.
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup called `name` at the top of the v2 hierarchy; it is not created.
    pub(crate) fn named(name: &str) -> Result<Cgroup, LabError> {
        let mounts = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(mounts).at("read", mounts)?;
        let root = find_v2(&text).ok_or(LabError::NoCgroup)?;
        Ok(Cgroup { path: root.join(name) })
    }

    /// A cgroup out of a record.
    pub(crate) fn at(path: PathBuf) -> Cgroup {
        Cgroup { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    pub(crate) fn create(&self) -> Result<(), LabError> {
        fs::create_dir(&self.path).at("create cgroup", &self.path)
    }

    /// Moves the calling process into the cgroup.
    pub(crate) fn join(&self) -> Result<(), LabError> {
        self.write("cgroup.procs", "0")
    }

    /// The processes in it.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|l| l.parse().ok()).collect()
    }

    /// SIGKILL to everything in it, frozen or not, and waits until it is empty.
    pub(crate) fn kill(&self) -> Result<(), LabError> {
        self.write("cgroup.kill", "1")?;
        wait::until("the cgroup empties", EMPTY_MAX, || {
            let pids = self.pids();
            if pids.is_empty() { Ok(()) } else { Err(format!("left: {pids:?}")) }
        })?;
        self.write("cgroup.freeze", "0")
    }

    /// Freezes or thaws it, and waits until that is so.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), LabError> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let wanted = format!("frozen {}", u8::from(frozen));
        wait::until_true(&format!("cgroup says {wanted}"), EMPTY_MAX, || {
            let text = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
            text.lines().any(|l| l == wanted)
        })
    }

    pub(crate) fn frozen(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
    }

    /// Kills what is in it and removes it. A process that joins in between is killed too.
    pub(crate) fn remove(&self) -> Result<(), LabError> {
        wait::until("the cgroup is removed", EMPTY_MAX, || {
            if !self.exists() {
                return Ok(());
            }
            self.kill().map_err(|error| error.chain())?;
            fs::remove_dir(&self.path).map_err(|error| error.to_string())
        })
    }

    fn write(&self, file: &str, text: &str) -> Result<(), LabError> {
        let path = self.path.join(file);
        fs::write(&path, text).at("write", &path)
    }
}

/// Where `/proc/self/mountinfo` says that cgroup2 is mounted.
fn find_v2(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        (right.split(' ').next() == Some("cgroup2")).then(|| left.split(' ').nth(4))?.map(PathBuf::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_hierarchy_is_found_alone_and_beside_v1() {
        let hybrid = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_v2(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let unified = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_v2(unified), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(find_v2("40 31 0:37 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
    }
}
