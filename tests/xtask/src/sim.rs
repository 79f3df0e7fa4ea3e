//! Owns `cargo xtask sim` and `cargo xtask golden`: the simulator, optimised, and the stories' logs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::artifacts::{SIMULATOR, released};
use crate::run::{cargo, run as run_command};

/// Which seeds, and how: everything is handed to the simulator.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Arguments of the simulator, such as `--seed 7 --verbose` or `--seeds 1000`; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Options {
    pub(crate) fn of(arguments: Vec<String>) -> Self {
        Self { arguments }
    }
}

/// Whether the logs are compared or written.
#[derive(Debug, Args)]
pub(crate) struct GoldenOptions {
    /// Write the logs that the stories give, instead of comparing them.
    #[arg(long)]
    accept: bool,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<bool> {
    let simulator = released(root, &[SIMULATOR])?.join(SIMULATOR);
    let mut command = Command::new(&simulator);
    command.args(&options.arguments).current_dir(root);
    let status = command.status().with_context(|| format!("cannot start {}", simulator.display()))?;
    Ok(status.success())
}

pub(crate) fn golden(root: &Path, options: &GoldenOptions) -> Result<bool> {
    let mut command = cargo();
    command.args(["test", "--quiet", "--workspace", "--test", "scenarios"]).current_dir(root);
    if options.accept {
        command.env("UNDERSTUDY_ACCEPT_GOLDEN", "1");
    }
    run_command(&mut command).map(|()| true)
}
