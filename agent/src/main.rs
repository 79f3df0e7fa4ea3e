//! The `understudy` binary: the daemon and the operator's commands.

use std::process::ExitCode;

use clap::Parser;
use understudy::cli::Cli;
use understudy::exit::Exit;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            eprintln!("understudy: {}", failure.message);
            failure.exit.into()
        }
    }
}
