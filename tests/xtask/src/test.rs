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
    #[command(flatten)]
    guests: artifacts::Guests,
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
        dependencies(root, cargo)?,
    ];
    let artifacts = artifacts::all(root, Profile::Test, options.guests)?;
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

/// What may be linked in, by `.config/deny.toml`. Advisories are left out: they need a database from the network, and
/// change without any change here. cargo-deny takes minutes to compile, so it is not installed for this.
fn dependencies(root: &Path, cargo: impl Fn() -> Command) -> Result<Stage> {
    let name = "dependencies";
    let probe = cargo().args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        let reason = format!(
            "{name}: licences, bans and sources were not checked, cargo-deny is not installed: \
             cargo install --locked cargo-deny"
        );
        return Ok(Stage { name, holds: true, seconds: 0.0, skipped: vec![reason] });
    }
    let mut deny = cargo();
    deny.args(["deny", "--locked", "--log-level", "error", "--config", ".config/deny.toml", "check"]);
    stage(name, deny.args(["licenses", "bans", "sources"]).current_dir(root))
}

/// Tells tests where everything is that they run.
pub(crate) fn with<'c>(tests: &'c mut Command, root: &Path, artifacts: &Artifacts) -> &'c mut Command {
    tests.current_dir(root).envs([
        ("UNDERSTUDY_TEST_IMAGES", artifacts.images.clone()),
        ("UNDERSTUDY_TEST_POLICIES", artifacts.policies.clone()),
        ("UNDERSTUDY_TEST_LANGUAGES", languages::folder(root)),
        ("UNDERSTUDY_TEST_BINARIES", artifacts.binaries.clone()),
        ("UNDERSTUDY_TEST_HELPER", artifacts.binaries.join("lab")),
    ]);
    if artifacts.emulate {
        tests.env("UNDERSTUDY_TEST_EMULATE", "1");
    }
    tests
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_that_cannot_be_checked_are_skipped_by_name_and_those_that_fail_fail() {
        let root = crate::root();
        let absent = dependencies(&root, || Command::new("/nonexistent/cargo")).unwrap();
        assert!(absent.holds && absent.skipped.len() == 1 && absent.skipped[0].contains("cargo-deny"));
        let shell = |script: &'static str| {
            move || {
                let mut command = Command::new("sh");
                command.args(["-c", script, "cargo"]);
                command
            }
        };
        let good = dependencies(&root, shell("true")).unwrap();
        assert!(good.holds && good.skipped.is_empty());
        // Installed, and not content.
        let bad = dependencies(&root, shell("case \"$*\" in *--version*) ;; *) exit 1;; esac")).unwrap();
        assert!(!bad.holds && bad.skipped.is_empty());
    }
}
