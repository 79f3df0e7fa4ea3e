//! Policies as sites write them: the shipped ones, the example in every language, and the template of a new one. All
//! are built as sites build them, and asked through the host.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;
mod languages;
mod one;
mod panics;
#[path = "../../../../tests/xtask/src/policies.rs"]
#[allow(dead_code, unreachable_pub, reason = "a module of xtask, included because xtask is a program")]
mod policies;
mod questions;
mod rules;
mod template;
mod versions;

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).canonicalize().unwrap()
}

/// What builds for WebAssembly.
fn toolchain() -> policies::Toolchain {
    policies::toolchain(false).unwrap()
}

/// A shipped policy as a component.
fn shipped(name: &str) -> Vec<u8> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("policies");
    policies::build(&root(), &out, false).unwrap();
    std::fs::read(out.join(format!("{name}.wasm"))).unwrap()
}
