//! Runs tools of the system (`ip`, `nft`, ...) and turns their failure into an error.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::error::{Doing, LabError};

/// The search path of everything the lab starts: a developer's own may lack the sbin folders.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command line in words.
pub(crate) fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs `command` with `input` on its stdin and gives back its stdout.
pub(crate) fn run(command: &mut Command, input: &str) -> Result<String, LabError> {
    command.env("PATH", PATH).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let words = line(command);
    let mut child =
        command.spawn().map_err(|source| LabError::ToolMissing { command: words.clone(), source })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that ends before it has read everything tells why by its exit status and stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().doing(format!("wait for {words}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Tool { command: words, status: output.status.to_string(), stderr })
}

/// Runs `ip -batch` in the namespace of the calling thread: one process for many lines.
pub(crate) fn ip(lines: &str) -> Result<(), LabError> {
    run(Command::new("ip").args(["-batch", "-"]), lines).map(drop).map_err(|error| match error {
        LabError::Tool { status, stderr, .. } => {
            LabError::Tool { command: format!("ip -batch <<{}>>", lines.trim()), status, stderr }
        }
        other => other,
    })
}
