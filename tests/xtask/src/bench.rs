//! Owns `cargo xtask bench`: the rows of `tests/bench`, as a table or as JSON. Policies are measured without a lab.
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
    let name = options.name.as_deref();
    let needs = understudy_bench::needs(name)?;
    setup::ensure(&options.setup)?;
    understudy_lab::tear_down_on_signals()?;
    let began = Instant::now();
    let say = |text: &str| println!("[{:7.1} s] {text}", began.elapsed().as_secs_f64());
    let mut rows = Vec::new();
    // First what is quick and disturbed by everything.
    if needs.policies {
        let subjects = artifacts::measured_policies(root, understudy_bench::policies::needs_python(name))?;
        rows.extend(understudy_bench::policies::run(&subjects, name, &say)?);
    }
    if needs.lab {
        let artifacts = artifacts::all(root, Profile::Release)?;
        rows.extend(understudy_bench::run(&artifacts, name, &say)?);
    }
    print!("{}", understudy_bench::print(&rows));
    if options.json {
        println!("{}", serde_json::to_string(&rows)?);
    }
    Ok(rows.iter().all(|row| row.holds != Some(false)))
}
