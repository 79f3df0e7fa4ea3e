//! `cargo xtask`: every task of the project, from a fresh machine on.

mod artifacts;
mod assets;
mod bench;
mod demo;
mod fuzz;
mod languages;
mod needs;
#[allow(dead_code, unreachable_pub, reason = "tests of agent/policy include this file")]
mod policies;
mod reference;
mod run;
mod setup;
mod sim;
mod soak;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Tasks of this project.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what is missing and show the main job for real: three hosts, failures, verdicts.
    Demo(demo::Options),
    /// Install what is missing and run every test.
    Test(test::Options),
    /// Measure failovers and drains as ratios to the bare tools.
    Bench(bench::Options),
    /// Simulate clusters under faults: seeds of your own, or more of them than the tests run.
    Sim(sim::Options),
    /// Tell the stories of tests/scenarios; with --accept their logs are written anew.
    Golden(sim::GoldenOptions),
    /// Run what takes longer than the tests may: thousands of seeds, the main job again and again.
    Soak(soak::Options),
    /// Build the policies' components into target/policies/out.
    Policies(PolicyOptions),
    /// Build the guest images and print their folder.
    Images,
    /// Install the terminal page's packages.
    Assets,
    /// Install the system packages that are missing.
    Setup(setup::Options),
}

/// What of the policies is built.
#[derive(Debug, clap::Args)]
struct PolicyOptions {
    /// Instead build the example in another language, into target/policies/languages.
    #[arg(long = "language", value_name = "LANGUAGE")]
    languages: Vec<languages::Language>,
    /// Instead write the reference pages of wit/.
    #[arg(long, conflicts_with = "languages")]
    reference: bool,
}

fn main() -> ExitCode {
    // The lab's hosts are re-executions of this binary.
    understudy_lab::init_if_asked();
    exit_code(run_verb(Cli::parse().verb))
}

/// 0 when the task was done and all that it judges holds, else 1.
fn exit_code(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_verb(verb: Verb) -> Result<bool> {
    let root = root();
    match verb {
        Verb::Demo(options) => demo::run(&root, &options),
        Verb::Test(options) => test::run(&root, &options),
        Verb::Bench(options) => bench::run(&root, &options),
        Verb::Sim(options) => sim::run(&root, &options),
        Verb::Golden(options) => sim::golden(&root, &options),
        Verb::Soak(options) => soak::run(&root, &options),
        Verb::Policies(options) => {
            for written in policy_files(&root, &options)? {
                println!("{}", written.display());
            }
            Ok(true)
        }
        Verb::Images => {
            println!("{}", artifacts::images(&root)?.display());
            Ok(true)
        }
        Verb::Assets => assets::ensure(&root).map(|()| true),
        Verb::Setup(options) => setup::ensure(&options).map(|()| true),
    }
}

/// Builds or writes what is asked for, and gives the files.
fn policy_files(root: &Path, options: &PolicyOptions) -> Result<Vec<PathBuf>> {
    if options.reference {
        reference::write(root)
    } else if options.languages.is_empty() {
        artifacts::policies(root)
    } else {
        options.languages.iter().map(|language| languages::build(root, *language)).collect()
    }
}

/// The checkout that this binary was built from.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    here.canonicalize().unwrap_or(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_hold_and_what_cannot_be_done_exit_alike() {
        assert_eq!(exit_code(Ok(true)), ExitCode::SUCCESS);
        assert_eq!(exit_code(Ok(false)), ExitCode::FAILURE);
        assert_eq!(exit_code(Err(anyhow::anyhow!("packages are missing"))), ExitCode::FAILURE);
    }

    #[test]
    fn an_unknown_benchmark_ends_before_anything_is_installed_or_raised() {
        let cli = Cli::try_parse_from(["xtask", "bench", "no-such-row"]).unwrap();
        let error = run_verb(cli.verb).unwrap_err().to_string();
        assert!(error.contains("'no-such-row'") && error.contains("agent-idle"), "{error}");
    }
}
