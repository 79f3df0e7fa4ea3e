//! Commands run inside of a host from outside: in its cgroup and all of its namespaces.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::error::{Doing, LabError};
use crate::proc::ProcessId;
use crate::{helper, wait};

/// Limit of a command unless another is set. Everything is slow when several guests boot on two cores.
const LIMIT: Duration = Duration::from_secs(60);

/// How long the output of a command that ended may stay open: a daemon that it left would hold it for ever.
const AFTERMATH: Duration = Duration::from_secs(5);

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    /// How it ended. A command killed by signal S ends with code 128 + S, as in a shell.
    pub status: ExitStatus,
    /// Its stdout.
    pub stdout: Vec<u8>,
    /// Its stderr.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Its stdout as text, without white space at the ends.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Its stderr as text, without white space at the ends.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }
}

/// A command to run in a host.
#[derive(Clone, Debug)]
pub struct HostCommand {
    helper: PathBuf,
    cgroup: Cgroup,
    init: ProcessId,
    host: String,
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: PathBuf,
    stdin: Vec<u8>,
    limit: Duration,
}

impl HostCommand {
    pub(crate) fn new(helper: &Path, cgroup: Cgroup, init: ProcessId, host: &str, argv: Vec<String>) -> Self {
        HostCommand {
            helper: helper.to_path_buf(),
            cgroup,
            init,
            host: host.to_owned(),
            argv,
            env: BTreeMap::new(),
            cwd: PathBuf::from("/"),
            stdin: Vec::new(),
            limit: LIMIT,
        }
    }

    /// Sets a variable besides PATH, LC_ALL and HOME.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> HostCommand {
        self.env.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets the working folder, which is `/` otherwise.
    #[must_use]
    pub fn cwd(mut self, folder: &Path) -> HostCommand {
        self.cwd = folder.to_path_buf();
        self
    }

    /// What [`HostCommand::output`] writes to its stdin.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> HostCommand {
        self.stdin = bytes.into();
        self
    }

    /// After this time [`HostCommand::output`] kills it (60 s otherwise).
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> HostCommand {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it cannot be started or does not end in time; an exit with failure is no error here.
    pub fn output(self) -> Result<Output, LabError> {
        let (limit, input) = (self.limit, self.stdin.clone());
        let mut child = self.spawn()?;
        let mut stdin = child.stdin().expect("taken for the first time");
        // A command that does not read its stdin is none of ours to judge.
        thread::spawn(move || stdin.write_all(&input));
        let (stdout, stderr) = (drain(child.stdout()), drain(child.stderr()));
        let status = child.wait(limit)?;
        let whole = |bytes: Receiver<Vec<u8>>| {
            bytes.recv_timeout(AFTERMATH).map_err(|_| LabError::Timeout {
                what: child.what.clone(),
                limit: AFTERMATH,
                detail: "it ended, but what it started still holds its output".to_owned(),
            })
        };
        Ok(Output { status, stdout: whole(stdout)?, stderr: whole(stderr)? })
    }

    /// Runs it to its end and gives its stdout; an exit with failure is an error.
    ///
    /// # Errors
    /// As [`HostCommand::output`], and when it fails.
    pub fn run(self) -> Result<String, LabError> {
        let command = self.words();
        let output = self.output()?;
        if output.status.success() {
            return Ok(output.text());
        }
        Err(LabError::Tool { command, status: output.status.to_string(), stderr: output.errors() })
    }

    /// Starts it with pipes for stdin, stdout and stderr. It is killed when the value is dropped.
    ///
    /// # Errors
    /// When the helper cannot be started.
    pub fn spawn(self) -> Result<HostChild, LabError> {
        let what = self.words();
        let mut command = self.command();
        // A group of its own, so that the one who entered and the command die together.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().doing(format!("start {what}"))?;
        Ok(HostChild { child, what })
    }

    /// Runs it on the caller's terminal in place of the calling process.
    pub fn replace_self(self) -> LabError {
        let what = self.words();
        let source = self.command().exec();
        LabError::Sys { attempt: format!("start {what}"), source }
    }

    fn command(&self) -> Command {
        let mut command = helper::command(&self.helper, helper::ENTER);
        command.arg(self.cgroup.path()).arg(self.init.pid.to_string()).arg(self.init.start.to_string());
        command.arg(&self.cwd).args(&self.argv).envs(&self.env);
        command
    }

    fn words(&self) -> String {
        format!("{}: {}", self.host, self.argv.join(" "))
    }
}

/// Reads a stream to its end on a thread of its own.
fn drain(stream: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What came before an error is what there is.
            let _ = stream.read_to_end(&mut bytes);
        }
        // Nobody waits any more when the command was given up.
        let _ = sender.send(bytes);
    });
    receiver
}

/// A command that runs in a host. Dropping it kills it.
#[derive(Debug)]
pub struct HostChild {
    child: Child,
    what: String,
}

impl HostChild {
    /// Its stdin, once.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its stdout, once.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its stderr, once.
    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time; it then still runs.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        wait::until(&self.what, limit, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it still runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Kills it, with what it started in its process group.
    pub fn kill(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // Not reaped yet: the id is still its own.
            let group = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id fits"));
            let _ = killpg(group, Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

impl Drop for HostChild {
    fn drop(&mut self) {
        self.kill();
    }
}
