//! Runs the tools of Debian, as root where they change something.

use std::io::Write;
use std::process::{Command, Stdio};

use super::{PackageError, Plan};

/// Runs a tool that only tells.
pub(super) fn capture(argv: &[&str]) -> Result<String, PackageError> {
    let command = argv.join(" ");
    let output = Command::new(argv[0])
        .args(&argv[1..])
        .env("LC_ALL", "C")
        .output()
        .map_err(|source| PackageError::Start { command: command.clone(), source })?;
    if !output.status.success() {
        return Err(PackageError::Failed { command, status: output.status.to_string() });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The way to root: directly or by sudo.
pub(super) struct Root {
    sudo: bool,
}

impl Root {
    pub(super) fn find(plan: &Plan) -> Result<Root, PackageError> {
        if nix::unistd::geteuid().is_root() {
            return Ok(Root { sudo: false });
        }
        let there =
            Command::new("sudo").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if there.is_ok_and(|status| status.success()) {
            return Ok(Root { sudo: true });
        }
        let names: Vec<&str> = plan.missing.iter().map(|p| p.name).collect();
        Err(PackageError::NotRoot { names: names.join(" ") })
    }

    fn command(&self, argv: &[&str]) -> Command {
        // sudo drops the environment: `env` sets it on the other side.
        let words = ["env", "DEBIAN_FRONTEND=noninteractive"].iter().chain(argv);
        let mut words = words.copied();
        let mut command =
            if self.sudo { Command::new("sudo") } else { Command::new(words.next().expect("not empty")) };
        command.args(words);
        command
    }

    /// Runs a tool that changes the machine, and shows it.
    pub(super) fn run(&self, argv: &[&str]) -> Result<(), PackageError> {
        let command = argv.join(" ");
        println!("{command}");
        let status = self.command(argv).stdin(Stdio::null()).status();
        check(command, status)
    }

    pub(super) fn write(&self, path: &str, text: &str) -> Result<(), PackageError> {
        let command = format!("tee {path}");
        let mut tee = self.command(&["tee", path]);
        let mut child = tee
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|source| PackageError::Start { command: command.clone(), source })?;
        let mut stdin = child.stdin.take().expect("the pipe was asked for");
        stdin
            .write_all(text.as_bytes())
            .map_err(|source| PackageError::File { path: path.to_owned(), source })?;
        drop(stdin);
        check(command, child.wait())
    }
}

fn check(command: String, status: std::io::Result<std::process::ExitStatus>) -> Result<(), PackageError> {
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(PackageError::Failed { command, status: status.to_string() }),
        Err(source) => Err(PackageError::Start { command, source }),
    }
}
