//! The files of this repository, as git tracks them, and how faults are reported.
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace has a root")
}

/// Every tracked file that exists, relative to the root.
pub(crate) fn tracked() -> Vec<String> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().expect("git runs");
    assert!(output.status.success(), "git lists the files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("names are text");
    let files: Vec<String> = names
        .split('\0')
        .filter(|name| !name.is_empty() && root().join(name).exists())
        .map(str::to_owned)
        .collect();
    assert!(files.contains(&"Cargo.toml".to_owned()), "the list is the repository's");
    files
}

/// The tracked files of an extension with their text.
pub(crate) fn texts(extension: &str) -> Vec<(String, String)> {
    let with = tracked()
        .into_iter()
        .filter(|name| Path::new(name).extension().is_some_and(|found| found == extension));
    let texts: Vec<_> = with.map(|name| (name.clone(), read(&name))).collect();
    assert!(!texts.is_empty(), "no file ends in .{extension}");
    texts
}

pub(crate) fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Fails with every fault on a line of its own.
#[track_caller]
pub(crate) fn expect_none(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}
