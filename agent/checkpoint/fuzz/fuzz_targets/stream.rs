//! The parser of migration streams under any bytes at all: what must hold is what the property test over mutants asks, in
//! the same function.
//!
//! Built without `--cfg fuzzing` it does nothing, so that the workspace builds without LLVM's fuzzer. With it, it first
//! writes the handwritten streams into the folder that `SEEDS` names.
#![cfg_attr(fuzzing, no_main)]
#![cfg_attr(fuzzing, allow(clippy::unwrap_used, reason = "what cannot go on has found something"))]

#[path = "../../tests/common/mod.rs"]
mod common;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(
    init: {
        if let Some(folder) = std::env::var_os("SEEDS").map(std::path::PathBuf::from) {
            for (at, seed) in common::seeds().iter().enumerate() {
                std::fs::write(folder.join(format!("seed-{at}")), seed).unwrap();
            }
        }
    },
    |bytes: &[u8]| {
        if let Err(why) = common::examine(bytes) {
            panic!("{why}");
        }
    }
);

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("built without a fuzzer: `cargo xtask soak` builds and runs it with one");
}
