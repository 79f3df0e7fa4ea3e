//! Owns `cargo xtask test`: every test of the project, with a summary that names what was skipped.
//!
//! Promises: exit 0 only if nothing failed; a test that cannot run here is counted and named.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use understudy_e2e::stage::Artifacts;

use crate::artifacts::{self, Profile};
use crate::languages::{self, Language};
use crate::run::cargo;
use crate::{assets, setup};

/// How a test says that it cannot run here.
const SKIPPED: &str = "SKIPPED: ";

/// Options of the tests.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    setup: setup::Options,
}

struct Stage {
    name: &'static str,
    holds: bool,
    seconds: f64,
    skipped: Vec<String>,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<bool> {
    setup::ensure(&options.setup)?;
    assets::ensure(root)?;
    let mut stages = vec![
        stage("format", cargo().args(["fmt", "--all", "--check"]).current_dir(root))?,
        stage(
            "lints",
            cargo()
                .args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])
                .current_dir(root),
        )?,
    ];
    let artifacts = artifacts::all(root, Profile::Test)?;
    // The others take longer: `cargo xtask soak` builds them too.
    if let Err(missing) = languages::build(root, Language::Python) {
        println!("the example policy in Python is left out: {missing:#}");
    }
    // One test at a time for those that raise hosts and guests: two cores carry one lab.
    let mut tests = cargo();
    tests.args(["test", "--workspace", "--no-fail-fast", "--", "--nocapture", "--test-threads=1"]);
    stages.push(stage("tests", with(&mut tests, root, &artifacts))?);
    Ok(summary(&stages))
}

/// Tells tests where everything is that they run.
pub(crate) fn with<'c>(tests: &'c mut Command, root: &Path, artifacts: &Artifacts) -> &'c mut Command {
    tests.current_dir(root).envs([
        ("UNDERSTUDY_TEST_IMAGES", artifacts.images.clone()),
        ("UNDERSTUDY_TEST_POLICIES", artifacts.policies.clone()),
        ("UNDERSTUDY_TEST_LANGUAGES", languages::folder(root)),
        ("UNDERSTUDY_TEST_BINARIES", artifacts.binaries.clone()),
        ("UNDERSTUDY_TEST_HELPER", artifacts.binaries.join("lab")),
    ])
}

/// Runs a command, shows what it prints, and gathers what was skipped.
fn stage(name: &'static str, command: &mut Command) -> Result<Stage> {
    println!("== {name}");
    let began = Instant::now();
    let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("cannot start {name}"))?;
    let mut skipped = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines() {
            let line = line?;
            if let Some(at) = line.find(SKIPPED) {
                skipped.push(line[at + SKIPPED.len()..].to_owned());
            }
            eprintln!("{line}");
        }
    }
    let status = child.wait()?;
    Ok(Stage { name, holds: status.success(), seconds: began.elapsed().as_secs_f64(), skipped })
}

fn summary(stages: &[Stage]) -> bool {
    println!("\n== summary");
    for Stage { name, holds, seconds, skipped } in stages {
        let word = if *holds { "passed" } else { "FAILED" };
        println!("{word} {name} in {seconds:.0} s, {} skipped", skipped.len());
        for reason in skipped {
            println!("    skipped {reason}");
        }
    }
    let passed = stages.iter().filter(|stage| stage.holds).count();
    println!("{passed} passed, {} failed", stages.len() - passed);
    passed == stages.len()
}
