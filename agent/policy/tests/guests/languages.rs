//! The example policy in Python, JavaScript and C ranks as the one in Rust does, reasons and errors included.
//!
//! `cargo xtask policies --language <language>` builds them; `UNDERSTUDY_TEST_LANGUAGES` names their folder.

use std::path::PathBuf;

use crate::one::One;
use crate::{questions, root, shipped};

const QUESTIONS: usize = 200;

fn ranks_as_rust_does(language: &str) {
    let folder = std::env::var_os("UNDERSTUDY_TEST_LANGUAGES")
        .map_or_else(|| root().join("target/policies/languages"), PathBuf::from);
    let file = folder.join(format!("{language}.wasm"));
    let component = std::fs::read(&file).unwrap_or_else(|error| {
        panic!("{}: {error}: run `cargo xtask policies --language {language}`", file.display())
    });
    let rust = shipped("affinity");
    for parameters in [&[][..], &[("label", "floor")]] {
        let rust = One::load("affinity", &rust, parameters).unwrap();
        let other = One::load(language, &component, parameters).unwrap();
        let mut picked = 0;
        for (number, asked) in questions::placements(QUESTIONS).iter().enumerate() {
            let expected = rust.place(asked).unwrap();
            picked += expected.len();
            assert_eq!(other.place(asked).as_ref(), Ok(&expected), "question {number}: {asked:?}");
        }
        assert!(picked > QUESTIONS, "the questions have answers to compare");
    }
    let fault = One::load(language, &component, &[("lable", "floor")]).err().unwrap();
    assert!(fault.contains("parameter 'lable' is unknown: use label"), "{fault}");
}

#[test]
#[ignore = "needs the wasm target, the policy in python"]
fn python_ranks_as_rust_does() {
    ranks_as_rust_does("python");
}

#[test]
#[ignore = "needs the wasm target, the policy in javascript"]
fn javascript_ranks_as_rust_does() {
    ranks_as_rust_does("javascript");
}

#[test]
#[ignore = "needs the wasm target, the policy in c"]
fn c_ranks_as_rust_does() {
    ranks_as_rust_does("c");
}
