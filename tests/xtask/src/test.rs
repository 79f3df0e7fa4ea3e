//! Owns `cargo xtask test`: every test of the project, with a summary that names what was skipped and what failed.
//!
//! Promises: exit 0 only if nothing failed; a test that needs more than a compiler is run where that is there, else counted
//! and named with what it lacks. Must not do: call a test passed that did not run.

mod failed;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use understudy_e2e::stage::Artifacts;

use self::failed::Failed;
use crate::artifacts::{self, Profile};
use crate::languages::{self, Language};
use crate::run::cargo;
use crate::{assets, needs, setup};

/// How the runner tells of a test that is left out unless it is asked for, and of what that test needs.
const IGNORED: &str = " ... ignored, needs ";

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
    /// What failed, where that is known.
    failed: Vec<String>,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<bool> {
    setup::ensure(&options.setup)?;
    assets::ensure(root)?;
    let mut stages = vec![
        stage("format", cargo().args(["fmt", "--all", "--check"]).current_dir(root))?,
        stage(
            "lints",
            cargo()
                .args([
                    "clippy",
                    "--quiet",
                    "--workspace",
                    "--all-targets",
                    "--features",
                    "understudy-e2e/soak",
                    "--",
                    "-D",
                    "warnings",
                ])
                .current_dir(root),
        )?,
        dependencies(root, cargo)?,
    ];
    let began = Instant::now();
    let artifacts = artifacts::all(root, Profile::Test, options.guests)?;
    let seconds = began.elapsed().as_secs_f64();
    stages.push(Stage { name: "build", holds: true, seconds, skipped: Vec::new(), failed: Vec::new() });
    // The others take longer: `cargo xtask soak` builds them too.
    if let Err(missing) = languages::build(root, Language::Python) {
        println!("the example policy in Python is left out: {missing:#}");
    }
    let (plain, ignored) = tests("tests", root, &artifacts, &[])?;
    stages.push(plain);
    let (mut skipped, mut skip) = (Vec::new(), vec!["--ignored", "--exact"]);
    for (name, needs) in &ignored {
        let lacks = needs::lacking(root, needs)?;
        if !lacks.is_empty() {
            skipped.push(format!("{name}: lacks {}", lacks.join(", ")));
            skip.extend(["--skip", name]);
        }
    }
    let (mut needing, _) = tests("tests that need more than a compiler", root, &artifacts, &skip)?;
    needing.skipped = skipped;
    stages.push(needing);
    Ok(summary(&stages))
}

/// Runs tests; those that were left out, each with what it needs, come with the stage.
fn tests(
    name: &'static str,
    root: &Path,
    artifacts: &Artifacts,
    more: &[&str],
) -> Result<(Stage, Vec<(String, String)>)> {
    println!("== {name}");
    let began = Instant::now();
    let mut tests = cargo();
    // One test at a time for those that raise hosts and guests: two cores carry one lab.
    tests.args(["test", "--workspace", "--no-fail-fast", "--", "--nocapture", "--test-threads=1"]);
    let command = with(tests.args(more), root, artifacts).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let (mut left_out, mut failed) = (Vec::new(), Failed::default());
    let errors = std::thread::spawn(move || -> Result<Failed> {
        let mut failed = Failed::default();
        for line in lines(errors) {
            let line = line?;
            eprintln!("{line}");
            failed.error(&line);
        }
        Ok(failed)
    });
    for line in lines(output) {
        let line = line?;
        left_out.extend(ignored(&line));
        failed.output(&line);
        println!("{line}");
    }
    let holds = child.wait()?.success();
    let errors = errors.join().expect("reading lines does not panic")?;
    let (seconds, failed) = (began.elapsed().as_secs_f64(), failed.with_errors_of(errors).summary());
    Ok((Stage { name, holds, seconds, skipped: Vec::new(), failed }, left_out))
}

fn lines(from: Option<impl Read>) -> impl Iterator<Item = std::io::Result<String>> {
    let lines = from.into_iter().flat_map(|from| BufReader::new(from).split(b'\n'));
    lines.map(|line| Ok(String::from_utf8_lossy(&line?).into_owned()))
}

/// The test that a line of the runner says was left out, and what it needs.
fn ignored(line: &str) -> Option<(String, String)> {
    let (before, needs) = line.split_once(IGNORED)?;
    let (_, name) = before.rsplit_once("test ")?;
    Some((name.to_owned(), needs.to_owned()))
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
        return Ok(Stage { name, holds: true, seconds: 0.0, skipped: vec![reason], failed: Vec::new() });
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

/// Runs a command.
fn stage(name: &'static str, command: &mut Command) -> Result<Stage> {
    println!("== {name}");
    let began = Instant::now();
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    let (holds, seconds) = (status.success(), began.elapsed().as_secs_f64());
    Ok(Stage { name, holds, seconds, skipped: Vec::new(), failed: Vec::new() })
}

fn summary(stages: &[Stage]) -> bool {
    println!("\n== summary");
    for Stage { name, holds, seconds, skipped, failed } in stages {
        let word = if *holds { "passed" } else { "FAILED" };
        println!("{word} {name} in {seconds:.0} s, {} skipped", skipped.len());
        for reason in skipped {
            println!("    skipped {reason}");
        }
        for line in failed {
            println!("    FAILED {line}");
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
    fn a_test_that_is_left_out_is_read_from_the_runners_line_with_what_it_needs() {
        let summary = ignored("test real::qemu_conforms ... ignored, needs a host, root");
        assert_eq!(summary, Some(("real::qemu_conforms".to_owned(), "a host, root".to_owned())));
        // What a test before it printed without a line end stands before it.
        let summary = ignored("figure: 7test etcd_conforms ... ignored, needs etcd");
        assert_eq!(summary, Some(("etcd_conforms".to_owned(), "etcd".to_owned())));
        for other in ["test a ... ok", "test a ... ignored", "test result: ok. 3 passed; 1 ignored"] {
            assert_eq!(ignored(other), None, "{other}");
        }
    }

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
