//! Owns `cargo xtask bench`: the rows of `tests/bench`, as a table or as JSON.
//!
//! Promises: exit 0 only if every row that has a target holds; with `--json` the last line is an array of rows.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::artifacts::{self, Profile};
use crate::setup;

/// Options of the benchmarks.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// One benchmark; all without.
    name: Option<String>,
    /// Print the rows as JSON, last.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    setup: setup::Options,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<bool> {
    setup::ensure(&options.setup)?;
    understudy_lab::tear_down_on_signals()?;
    let began = Instant::now();
    let artifacts = artifacts::all(root, Profile::Release)?;
    let say = |text: &str| println!("[{:7.1} s] {text}", began.elapsed().as_secs_f64());
    let rows = understudy_bench::run(&artifacts, options.name.as_deref(), &say)?;
    print!("{}", understudy_bench::print(&rows));
    if options.json {
        println!("{}", serde_json::to_string(&rows)?);
    }
    Ok(rows.iter().all(|row| row.holds != Some(false)))
}
