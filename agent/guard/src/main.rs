//! `understudy-guard`: runs the guard, or shows the one that runs.
//!
//! Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use understudy_guard::daemon::{self, Options};
use understudy_guard::{Client, SOCKET, Status, TABLE};

const USAGE: &str = "usage: understudy-guard run [--socket PATH] [--table PATH] [--watchdog PATH]
       understudy-guard status [--socket PATH]

run      keeps this host's deadline: kills every registered primary when it passes
status   prints what the running guard holds
--socket    where it listens (default /run/understudy/guard.sock)
--table     what it keeps for its successor (default /run/understudy/guard.table)
--watchdog  a hardware watchdog to feed, such as /dev/watchdog (default: none)";

enum Command {
    Run(Options),
    Status(PathBuf),
    Help,
}

fn main() -> ExitCode {
    daemon::close_inherited();
    match parse(std::env::args().skip(1)) {
        Err(fault) => {
            eprintln!("{fault}\n{USAGE}");
            ExitCode::from(2)
        }
        Ok(Command::Help) => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        Ok(Command::Run(options)) => report(daemon::run(&options)),
        Ok(Command::Status(socket)) => report(status(&socket)),
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let verb = arguments.next().ok_or("what to do is missing")?;
    let mut options = Options { socket: SOCKET.into(), table: TABLE.into(), watchdog: None };
    while let Some(key) = arguments.next() {
        let mut value = || arguments.next().map(PathBuf::from).ok_or(format!("{key} needs a path"));
        match (verb.as_str(), key.as_str()) {
            ("run" | "status", "--socket") => options.socket = value()?,
            ("run", "--table") => options.table = value()?,
            ("run", "--watchdog") => options.watchdog = Some(value()?),
            (_, "--help" | "-h") => return Ok(Command::Help),
            _ => return Err(format!("unknown argument '{key}'")),
        }
    }
    match verb.as_str() {
        "run" => Ok(Command::Run(options)),
        "status" => Ok(Command::Status(options.socket)),
        "help" | "--help" | "-h" => Ok(Command::Help),
        _ => Err(format!("unknown command '{verb}'")),
    }
}

fn status(socket: &Path) -> Result<(), understudy_guard::ClientError> {
    let status = Client::connect(socket, Duration::from_secs(5))?.status()?;
    print_status(&status);
    Ok(())
}

fn print_status(status: &Status) {
    println!("guard       pid {}, {} of {} entries", status.guard_pid, status.registered, status.capacity);
    match status.deadline {
        None => println!("deadline    none"),
        Some(deadline) => {
            let millis = (i128::from(deadline.boottime_ns) - i128::from(status.now_ns)) / 1_000_000;
            let when =
                if millis > 0 { format!("in {millis} ms") } else { format!("passed {} ms ago", -millis) };
            println!("deadline    {when}, lease {}", deadline.lease);
        }
    }
    println!("kills       {}", status.kills);
    for entry in &status.entries {
        let uuid: String = entry.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        let state = if entry.dying { "dying" } else { "running" };
        println!("{uuid}  epoch {}  pid {}  {:?}  {state}", entry.epoch, entry.pid, entry.class);
    }
}

fn report<E: Error>(outcome: Result<(), E>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    eprintln!("understudy-guard: {text}");
    ExitCode::FAILURE
}
