//! Enters a host: joins its cgroup and namespaces, then runs one command there and ends as it ended.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, setns};

use crate::cgroup::Cgroup;
use crate::error::{At, Doing, LabError};
use crate::proc::ProcessId;

/// Exit code when the command does not exist in the host, as a shell has it.
const NOT_FOUND: i32 = 127;

/// The mount namespace comes last: after it the paths of the machine are gone.
const SPACES: [(&str, CloneFlags); 5] = [
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

pub(crate) fn main(
    cgroup: &Path,
    pid: &OsString,
    start: &OsString,
    cwd: &Path,
    argv: &[OsString],
) -> Result<i32, LabError> {
    let number = |text: &OsString| text.to_str().and_then(|t| t.parse::<u64>().ok());
    let (Some(pid), Some(start)) = (number(pid).and_then(|p| i32::try_from(p).ok()), number(start)) else {
        return Err(LabError::BadOption("enter: process id and start time are numbers".to_owned()));
    };
    // The cgroup first: what is started in a host freezes and dies with it.
    Cgroup::at(cgroup.to_path_buf()).join()?;
    let mut spaces = Vec::new();
    for (name, flag) in SPACES {
        let path = Path::new("/proc").join(pid.to_string()).join("ns").join(name);
        spaces.push((name, flag, File::open(&path).at("open", &path)?));
    }
    // The files are open: if the process still is the one meant, so are they.
    if !(ProcessId { pid, start }).alive() {
        return Err(LabError::Off { host: format!("the host of process {pid}") });
    }
    for (name, flag, file) in spaces {
        setns(file, flag).doing(format!("enter the {name} namespace of process {pid}"))?;
    }
    std::env::set_current_dir(cwd).at("enter folder", cwd)?;
    let (program, args) = argv.split_first().expect("the caller checked that argv is not empty");
    match Command::new(program).args(args).spawn() {
        Ok(mut child) => {
            let status = child.wait().doing("wait for the command")?;
            Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
        }
        Err(error) => {
            eprintln!("{}: {error}", program.to_string_lossy());
            Ok(NOT_FOUND)
        }
    }
}
