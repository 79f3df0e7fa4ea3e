//! Owns the fuzzing of the loader of policies (`agent/policy/fuzz`), as a part of `cargo xtask soak`.
//!
//! Promises: bounded in time; what was reached is kept in `target/fuzz/corpus` and gone on from; an input of which
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
/// Larger than every seed, and small enough to compile in milliseconds.
const BYTES_MAX: u32 = 16 * 1024;
/// Three times the deadline of its trials, and a busy machine.
const SECONDS_MAX: u32 = 60;
/// An input may ask for the whole memory of a question, several times.
const MEMORY_MIB_MAX: u32 = 2_048;

/// Fuzzes for `time`. Whether everything held.
pub(crate) fn run(root: &Path, time: Duration) -> Result<bool> {
    println!("== the loader of policies, fuzzed for {} s", time.as_secs());
    if Command::new("c++").arg("--version").output().is_err() {
        bail!("no C++ compiler: install the package g++, or leave fuzzing out by --fuzz-minutes 0");
    }
    let folder = target(root).join("fuzz");
    let mut build = cargo();
    build
        .args(["build", "--package", "understudy-policy-fuzz", "--target", TARGET])
        .arg("--target-dir")
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        .current_dir(root);
    crate::run::run(&mut build)?;
    let (corpus, found) = (folder.join("corpus"), folder.join("found"));
    for folder in [&corpus, &found] {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let status = Command::new(folder.join(TARGET).join("debug/loader"))
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!("-max_len={BYTES_MAX}"))
        .arg(format!("-timeout={SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg("-print_final_stats=1")
        .arg(&corpus)
        .env("LOADER_SEEDS", &corpus)
        .status()
        .context("cannot start the fuzzer")?;
    if !status.success() {
        println!("the fuzzer ended with {status}: what it found is in {}", found.display());
    }
    Ok(status.success())
}
