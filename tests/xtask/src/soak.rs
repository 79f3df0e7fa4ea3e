//! Owns `cargo xtask soak`: what takes longer than the tests may.
//!
//! Promises: bounded in rounds and seeds; ends at the first failure, which is named.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use understudy_bench::leader;

use crate::artifacts::{self, Profile};
use crate::languages::{self, Language};
use crate::run::cargo;
use crate::{fuzz, setup, sim, test};

/// How long is soaked.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seeds of the simulator with each mix of faults, from the first one that the tests do not run.
    #[arg(long, default_value_t = 5_000)]
    seeds: u64,
    /// Minutes for which the loader of policies, and then the parser of migration streams, is fuzzed; 0 leaves that out.
    #[arg(long, default_value_t = 10)]
    fuzz_minutes: u64,
    /// How often the end-to-end tests are run.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    #[command(flatten)]
    setup: setup::Options,
    #[command(flatten)]
    guests: artifacts::Guests,
}

/// The tests run the seeds up to this one.
const TESTED: u64 = 200;
/// The test that only this runs.
const DISTURBED: &str = "disturbed";
/// Hosts of the cluster that loses a rack, and hosts of that.
const HOSTS: usize = 1_000;
const RACK: usize = 40;

pub(crate) fn run(root: &Path, options: &Options) -> Result<bool> {
    setup::ensure(&options.setup)?;
    for more in [&[][..], &["--ailing"], &["--sets"], &["--partial"]] {
        println!("== simulator, {} seeds {}", options.seeds, more.join(" "));
        let (first, count) = ((TESTED + 1).to_string(), options.seeds.to_string());
        let words = [&["--seed", &first, "--seeds", &count], more].concat();
        let words = words.into_iter().map(str::to_owned).collect();
        if !sim::run(root, &sim::Options::of(words))? {
            return Ok(false);
        }
    }
    println!("== a rack of {RACK} hosts is lost, of {HOSTS}");
    let subjects = artifacts::measured_leader(root, Some("admit-1000"))?;
    for line in leader::rack(&subjects, HOSTS, RACK)? {
        println!("{line}");
    }
    if options.fuzz_minutes > 0 && !fuzz::run(root, Duration::from_secs(60 * options.fuzz_minutes))? {
        return Ok(false);
    }
    let artifacts = artifacts::all(root, Profile::Test, options.guests)?;
    println!("== the example policy in every language");
    for language in [Language::Python, Language::JavaScript, Language::C] {
        languages::build(root, language)?;
    }
    let mut alike = cargo();
    alike.args(["test", "--workspace", "--test", "guests", "--", "--include-ignored", "--nocapture"]);
    if !test::with(&mut alike, root, &artifacts).status()?.success() {
        return Ok(false);
    }
    println!("== agents are killed at fifty moments, a host stands still");
    let mut disturbed = cargo();
    disturbed.args(["test", "--workspace", "--features", "understudy-e2e/soak", "--test", DISTURBED]);
    disturbed.args(["--", "--nocapture"]);
    if !test::with(&mut disturbed, root, &artifacts).status()?.success() {
        return Ok(false);
    }
    let end_to_end = end_to_end(root)?;
    for round in 1..=options.rounds {
        println!("== end to end, round {round} of {}", options.rounds);
        let mut tests = cargo();
        tests.args(["test", "--workspace"]);
        for name in &end_to_end {
            tests.args(["--test", name]);
        }
        tests.args(["--", "--include-ignored", "--nocapture", "--test-threads=1"]);
        if !test::with(&mut tests, root, &artifacts).status()?.success() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The end-to-end tests that `cargo xtask test` runs too, by the names of their files. Tests are chosen out of the whole
/// workspace, not by package, so that nothing is built with other features than there.
fn end_to_end(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("tests/e2e/tests");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        if path.extension() == Some(OsStr::new("rs")) && name != DISTURBED {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_to_end_tests_of_a_round_are_those_that_ci_runs() {
        let names = end_to_end(&crate::root()).unwrap();
        assert!(
            ["lease", "main_job", "page"].iter().all(|name| names.iter().any(|known| known == name)),
            "{names:?}"
        );
        assert!(!names.iter().any(|name| name == DISTURBED), "{names:?}");
    }
}
