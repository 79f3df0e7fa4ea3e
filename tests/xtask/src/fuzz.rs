//! Owns the fuzzing of what reads bytes of others, the loader of policies (`agent/policy/fuzz`) and the parser of migration
//! streams (`agent/checkpoint/fuzz`), as a part of `cargo xtask soak`.
//!
//! Promises: bounded in time; what was reached is kept in `target/fuzz/corpus/<target>` and gone on from; an input of which
//! something does not hold is kept and named. Needs no other toolchain and no cargo-fuzz: instrumenting is a matter of
//! code generation. Where no C++ compiler can build LLVM's fuzzer nothing is called fuzzed.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::artifacts::target;
use crate::run::cargo;

/// What cargo-fuzz gives the compiler, sanitizers left out: they need a nightly compiler, and the code is safe Rust.
const FLAGS: [&str; 8] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
];
/// Flags do not reach build scripts and macros only where a target is named.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Three times the deadline of the loader's trials, and a busy machine.
const SECONDS_MAX: u32 = 60;
/// An input may ask for the whole memory of a question, several times.
const MEMORY_MIB_MAX: u32 = 2_048;

/// Something that is fuzzed.
struct Subject {
    title: &'static str,
    package: &'static str,
    binary: &'static str,
    /// Larger than every seed.
    bytes_max: u32,
}

const SUBJECTS: [Subject; 2] = [
    // Small enough to compile in milliseconds.
    Subject {
        title: "the loader of policies",
        package: "understudy-policy-fuzz",
        binary: "loader",
        bytes_max: 16 * 1024,
    },
    // Eight pages, and what goes with them.
    Subject {
        title: "the parser of migration streams",
        package: "understudy-checkpoint-fuzz",
        binary: "stream",
        bytes_max: 40 * 1024,
    },
];

/// Fuzzes each subject for `time`. Whether everything held.
pub(crate) fn run(root: &Path, time: Duration) -> Result<bool> {
    let mut all_hold = true;
    for subject in &SUBJECTS {
        all_hold &= fuzz(root, subject, time)?;
    }
    Ok(all_hold)
}

fn fuzz(root: &Path, subject: &Subject, time: Duration) -> Result<bool> {
    println!("== {}, fuzzed for {} s", subject.title, time.as_secs());
    if Command::new("c++").arg("--version").output().is_err() {
        bail!("no C++ compiler: install the package g++, or leave fuzzing out by --fuzz-minutes 0");
    }
    let folder = target(root).join("fuzz");
    let mut build = cargo();
    build
        .args(["build", "--package", subject.package, "--target", TARGET])
        .arg("--target-dir")
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        .current_dir(root);
    crate::run::run(&mut build)?;
    let [corpus, found] = ["corpus", "found"].map(|kind| folder.join(kind).join(subject.binary));
    for folder in [&corpus, &found] {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let status = Command::new(folder.join(TARGET).join("debug").join(subject.binary))
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!("-max_len={}", subject.bytes_max))
        .arg(format!("-timeout={SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg("-print_final_stats=1")
        .arg(&corpus)
        .env("SEEDS", &corpus)
        .status()
        .context("cannot start the fuzzer")?;
    if !status.success() {
        println!("the fuzzer ended with {status}: what it found is in {}", found.display());
    }
    Ok(status.success())
}
