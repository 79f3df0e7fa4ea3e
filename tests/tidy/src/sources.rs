//! What Rust sources look like: heads, sizes, unsafe code, and what tests must not do.
use std::collections::BTreeMap;

use crate::repository::{expect_none, read, texts};

/// The length at which a file needs a second look.
const LINES_MAX: usize = 500;

/// Longer files and why they are better whole.
const LONG: [(&str, &str); 0] = [];

/// Modules that may hold unsafe code: one per crate, plus tests that need it and what a macro generates.
const UNSAFE: [&str; 3] =
    ["agent/guard/src/primaries/tests.rs", "agent/policy/src/bindings.rs", "policies/sdk/src/wit.rs"];

fn head_fault(name: &str, text: &str) -> Option<String> {
    let headed =
        text.lines().find(|line| !line.trim().is_empty()).is_some_and(|line| line.starts_with("//!"));
    (!headed).then(|| format!("{name}: begins without a //! head"))
}

fn length_fault(name: &str, text: &str, long: &[(&str, &str)]) -> Option<String> {
    let lines = text.lines().count();
    let reason = long.iter().find(|(path, _)| *path == name);
    match reason {
        None if lines > LINES_MAX => Some(format!("{name}: {lines} lines, more than {LINES_MAX}: split it")),
        Some(_) if lines <= LINES_MAX => {
            Some(format!("{name}: has {lines} lines and is no exception any more"))
        }
        Some((_, "")) => Some(format!("{name}: its exception has no reason")),
        _ => None,
    }
}

/// The part of a file that is tests: all of a test file, else what follows the first `cfg(test)` that opens a module
/// in place.
fn tests_of<'a>(name: &str, text: &'a str) -> &'a str {
    let is_test = name.starts_with("tests/") || name.contains("/tests/") || name.ends_with("/tests.rs");
    if is_test { text } else { text.find("#[cfg(test)]\nmod tests {").map_or("", |at| &text[at..]) }
}

/// What a test may not do: be left out for another reason than that a machine lacks what it needs, say by itself that it was
/// skipped and pass, sleep.
fn test_faults(name: &str, text: &str, words: &str) -> Vec<String> {
    // Built from parts, so that this file does not find itself.
    let (ignore, needs) = (["#[ig", "nore"].concat(), ["#[ig", "nore=\"needs"].concat());
    let skipped = ["SKIP", "PED:"].concat();
    let sleeps = ["sleep(Duration::from", "_secs"].concat();
    let known = |needs: &str| needs.split(", ").all(|word| !word.is_empty() && names(words, word));
    let mut faults = Vec::new();
    for line in tests_of(name, text).lines() {
        let (line, dense) = (line.trim(), line.replace(' ', ""));
        let needed = line.split_once("\"needs ").and_then(|(_, rest)| rest.strip_suffix("\"]"));
        let advice = if dense.contains(&ignore) && !dense.contains(&needs) {
            "an ignored test is no test: fix it, or say \"needs ...\" where a machine may lack something"
        } else if dense.contains(&ignore) && !needed.is_some_and(known) {
            "one of the words is not in tests/xtask/src/needs.rs"
        } else if dense.contains(&skipped) {
            "a test that did not run may not pass: have it ignored with what it needs"
        } else if dense.contains(&sleeps) {
            "wait for a condition with a limit instead of sleeping"
        } else {
            continue;
        };
        faults.push(format!("{name}: `{line}`: {advice}"));
    }
    faults
}

/// Whether the list of words that xtask understands has this one, in quotes or as a language of policies.
fn names(words: &str, word: &str) -> bool {
    let word = word.strip_prefix("the policy in ").unwrap_or(word);
    words.contains(&format!("\"{word}\""))
}

/// Unsafe code sits in one module per crate, behind an attribute that says why.
fn unsafe_faults(sources: &[(String, String)]) -> Vec<String> {
    let lint = ["unsafe", "_code"].concat();
    let mut by_crate: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut faults = Vec::new();
    for (name, text) in sources {
        let attributes =
            text.split("#[").chain(text.split("#![")).skip(1).filter_map(|rest| rest.split(")]").next());
        let lifted: Vec<&str> = attributes
            .filter(|attribute| attribute.starts_with("allow(") || attribute.starts_with("expect("))
            .filter(|attribute| attribute.contains(&lint))
            .collect();
        if lifted.iter().any(|attribute| !attribute.contains("reason = \"")) {
            faults.push(format!("{name}: unsafe code is let in without a reason"));
        }
        if !lifted.is_empty() && !UNSAFE.contains(&&**name) {
            by_crate.entry(name.split("/src/").next().unwrap_or(name)).or_default().push(name);
        }
    }
    for (owner, files) in by_crate.into_iter().filter(|(_, files)| files.len() > 1) {
        faults.push(format!("{owner}: unsafe code in more than one module: {}", files.join(", ")));
    }
    faults
}

#[test]
fn every_source_has_a_head_and_a_size_to_read_in_one_sitting() {
    let sources = texts("rs");
    let heads = sources.iter().filter_map(|(name, text)| head_fault(name, text));
    let lengths = sources.iter().filter_map(|(name, text)| length_fault(name, text, &LONG));
    let mut faults: Vec<String> = heads.chain(lengths).collect();
    faults.extend(
        LONG.iter()
            .filter(|(path, _)| !sources.iter().any(|(name, _)| name == path))
            .map(|(path, _)| format!("{path}: an exception for a file that is gone")),
    );
    expect_none(&faults);
}

#[test]
fn no_test_is_left_out_but_for_what_a_machine_lacks_and_none_sleeps() {
    let words = read("tests/xtask/src/needs.rs");
    let faults: Vec<String> =
        texts("rs").iter().flat_map(|(name, text)| test_faults(name, text, &words)).collect();
    expect_none(&faults);
}

#[test]
fn unsafe_code_has_one_module_per_crate() {
    expect_none(&unsafe_faults(&texts("rs")));
}

#[test]
fn faults_of_sources_are_found() {
    assert_eq!(head_fault("a.rs", "\n//! Head.\n"), None);
    assert!(head_fault("a.rs", "use std::fmt;\n//! Late.").is_some());
    assert!(head_fault("a.rs", "").is_some());
    let long = "//!\n".repeat(LINES_MAX + 1);
    assert!(length_fault("a.rs", &long, &[]).is_some());
    assert_eq!(length_fault("a.rs", &long, &[("a.rs", "a table")]), None);
    assert!(length_fault("a.rs", &long, &[("a.rs", "")]).is_some());
    assert!(length_fault("a.rs", "//!", &[("a.rs", "a table")]).is_some());
    let ignore = |reason: &str| ["#[ig", "nore", reason, "]"].concat();
    let sleeps = ["thread::sleep(Duration::from", "_secs(1));"].concat();
    let skips = ["eprintln!(\"SKIP", "PED: a: no etcd\");"].concat();
    let words = "[\"etcd\", \"a lab\", \"c\"]";
    let reasons = ["", " = \"slow\"", " = \"needs etdc\"", " = \"needs etcd, lab\""];
    for bad in reasons.map(ignore).iter().chain([&sleeps, &skips]) {
        assert_eq!(test_faults("agent/tests/a.rs", bad, words).len(), 1, "{bad}");
        assert_eq!(test_faults("agent/src/a.rs", bad, words), [""; 0], "production code may wait");
        let inline = format!("//!\n#[cfg(test)]\nmod tests {{\n    {bad}\n}}");
        assert_eq!(test_faults("agent/src/a.rs", &inline, words).len(), 1, "{bad}");
    }
    for good in [" = \"needs etcd\"", " = \"needs a lab, the policy in c\""].map(ignore) {
        assert_eq!(test_faults("agent/tests/a.rs", &good, words), [""; 0]);
    }
    let holder = |name: &str, end: &str| (name.to_owned(), ["#![expect(unsafe", "_code", end].concat());
    let why = ", reason = \"C\")]";
    assert_eq!(unsafe_faults(&[holder("a/src/sys.rs", why), holder("b/src/sys.rs", why)]), [""; 0]);
    assert_eq!(unsafe_faults(&[holder("a/src/sys.rs", why), holder("a/src/b/ffi.rs", why)]).len(), 1);
    assert_eq!(unsafe_faults(&[holder("a/src/sys.rs", ")]")]).len(), 1);
}
