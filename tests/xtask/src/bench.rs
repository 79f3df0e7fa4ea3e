//! Owns `cargo xtask bench`: the rows of `tests/bench`, as a table or as JSON. The leader, the simulator and
//! policies are measured without a lab.
//!
//! Promises: exit 0 only if every row that has a target holds; with `--json` the last line is an array of rows.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use understudy_bench::Row;

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
    #[command(flatten)]
    guests: artifacts::Guests,
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
    if needs.leader {
        let subjects = artifacts::measured_leader(root, name)?;
        rows.extend(understudy_bench::leader::run(&subjects, name, &say)?);
    }
    if needs.pages {
        let subjects = artifacts::measured_pages(root)?;
        rows.extend(understudy_bench::pages::run(&subjects, &say)?);
    }
    if needs.policies {
        let subjects = artifacts::measured_policies(root, understudy_bench::policies::needs_python(name))?;
        rows.extend(understudy_bench::policies::run(&subjects, name, &say)?);
    }
    if needs.scale {
        let subjects = artifacts::measured_scale(root)?;
        rows.extend(understudy_bench::scale::run(&subjects, &say)?);
    }
    if needs.lab {
        let artifacts = artifacts::all(root, Profile::Release, options.guests)?;
        rows.extend(understudy_bench::run(&artifacts, name, &say)?);
    }
    print!("{}", understudy_bench::print(&rows));
    if options.json {
        println!("{}", serde_json::to_string(&rows)?);
    }
    Ok(all_hold(&rows))
}

/// Whether every row that has a target holds.
fn all_hold(rows: &[Row]) -> bool {
    rows.iter().all(|row| row.holds != Some(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_that_does_not_hold_is_enough_and_a_stated_one_is_none() {
        let stated = || Row::stated("stated", "MiB", &[1000.0]);
        let within = || Row::stated("within", "%", &[0.5, 0.9, 3.0]).at_most(1.0);
        let beyond = Row::stated("beyond", "%", &[0.5, 1.1, 1.2]).at_most(1.0);
        assert!(all_hold(&[]) && all_hold(&[stated(), within()]));
        assert!(!all_hold(&[stated(), beyond, within()]));
    }
}
