//! The hidden faces of the binary: PID 1 of a host, the holder of the switch's network, and the one who
//! enters a host. They are re-executions, because namespaces are joined by whole single-threaded
//! processes and because `fork` without `exec` is not safe in Rust.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::SigSet;
use nix::unistd::setsid;

use crate::cgroup::Cgroup;
use crate::error::{Doing, LabError};
use crate::{enter, init, tool};

/// `SELF __lab-switch CGROUP`
pub(crate) const SWITCH: &str = "__lab-switch";
/// `SELF __lab-boot CGROUP HOST.JSON`
pub(crate) const BOOT: &str = "__lab-boot";
/// `SELF __lab-init HOST.JSON`
pub(crate) const INIT: &str = "__lab-init";
/// `SELF __lab-enter CGROUP PID START CWD ARGV...`
pub(crate) const ENTER: &str = "__lab-enter";

static ASKED: AtomicBool = AtomicBool::new(false);

/// Plays the hidden part if the process was started for one, and then never returns.
///
/// Call it first thing in `main` of every binary that raises a lab, before any thread is started.
pub fn init_if_asked() {
    ASKED.store(true, Ordering::Relaxed);
    let mut args = std::env::args_os().skip(1);
    let Some(face) = args.next().and_then(|a| a.into_string().ok()) else { return };
    if ![SWITCH, BOOT, INIT, ENTER].contains(&face.as_str()) {
        return;
    }
    // A parent that handles SIGINT and SIGTERM by a thread has them blocked; nobody here may inherit that.
    let _ = SigSet::empty().thread_set_mask();
    let args: Vec<OsString> = args.collect();
    let played = match (face.as_str(), args.as_slice()) {
        (SWITCH, [cgroup]) => hold_switch(Path::new(cgroup)),
        (BOOT, [cgroup, host]) => boot(Path::new(cgroup), host),
        (INIT, [host]) => init::main(Path::new(host)),
        (ENTER, [cgroup, pid, start, cwd, argv @ ..]) if !argv.is_empty() => {
            enter::main(Path::new(cgroup), pid, start, Path::new(cwd), argv)
        }
        _ => Err(LabError::BadOption(format!("{face} was called with {} arguments", args.len()))),
    };
    match played {
        Ok(code) => std::process::exit(code),
        Err(error) => {
            eprintln!("lab {}: {}", face.trim_start_matches("__lab-"), error.chain());
            std::process::exit(125);
        }
    }
}

/// The binary that plays the hidden parts.
pub(crate) fn resolve(option: Option<&Path>) -> Result<PathBuf, LabError> {
    if let Some(path) = option {
        return Ok(path.to_path_buf());
    }
    if let Some(path) = std::env::var_os("UNDERSTUDY_LAB_HELPER") {
        return Ok(PathBuf::from(path));
    }
    // Not current_exe(): that path is wrong once the binary was rebuilt under a running lab.
    if ASKED.load(Ordering::Relaxed) { Ok(PathBuf::from("/proc/self/exe")) } else { Err(LabError::NoHelper) }
}

/// A command that plays `face`, with a clean environment.
pub(crate) fn command(helper: &Path, face: &str) -> Command {
    let mut command = Command::new(helper);
    command.arg(face).env_clear().env("PATH", tool::PATH).env("LC_ALL", "C.UTF-8").env("HOME", "/root");
    if let Some(trace) = std::env::var_os("RUST_BACKTRACE") {
        command.env("RUST_BACKTRACE", trace);
    }
    command
}

/// Owns the network namespace of the switch until it is killed.
fn hold_switch(cgroup: &Path) -> Result<i32, LabError> {
    Cgroup::at(cgroup.to_path_buf()).join()?;
    setsid().doing("start a session")?;
    unshare(CloneFlags::CLONE_NEWNET).doing("make the network namespace of the switch")?;
    say("ready")?;
    loop {
        std::thread::park();
    }
}

/// Makes the namespaces of a host and starts its PID 1; says PID 1's id and leaves it alone.
fn boot(cgroup: &Path, host: &OsString) -> Result<i32, LabError> {
    Cgroup::at(cgroup.to_path_buf()).join()?;
    setsid().doing("start a session")?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWPID,
    )
    .doing("make the namespaces of a host")?;
    init::mounts::make_private()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(INIT).arg(host).stdin(Stdio::null()).stdout(Stdio::null());
    let child: Child = command.spawn().doing("start PID 1 of a host")?;
    say(&child.id().to_string())?;
    Ok(0)
}

fn say(line: &str) -> Result<(), LabError> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).doing("report to the lab")
}
