//! The tree: what lies at the top, what the README names, what must not be in any file, and what CI calls.
use std::path::Path;

use crate::repository::{expect_none, read, root, tracked};

/// The top level, as agreed.
const TOP: [&str; 14] = [
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".config",
    ".gitignore",
    ".rustfmt.toml",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "agent",
    "config",
    "policies",
    "wit",
];

fn top_faults<'a>(files: impl Iterator<Item = &'a String>) -> Vec<String> {
    let top = files.map(|name| name.split('/').next().unwrap_or(name));
    let mut faults: Vec<String> = top
        .filter(|name| !TOP.contains(name) && *name != "tests")
        .map(|name| format!("{name}: not one of the agreed names at the top level"))
        .collect();
    faults.dedup();
    faults
}

/// The paths that a Markdown text names: targets of links, code spans that begin with a name of this tree, and every
/// line of a block marked `tree`, where deeper lines lie in the folder above them.
fn named_paths(text: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut block: Option<Vec<(usize, String)>> = None;
    let mut in_other_block = false;
    for line in text.lines() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut block, fence) {
            (Some(_), Some(_)) => block = None,
            (None, Some(_)) if in_other_block => in_other_block = false,
            (None, Some("tree")) => block = Some(Vec::new()),
            (None, Some(_)) => in_other_block = true,
            (Some(folders), None) => paths.extend(tree_line(folders, line)),
            (None, None) if !in_other_block => paths.extend(prose_line(line)),
            (None, None) => {}
        }
    }
    paths
}

/// The path of a line `  name/   what it is` below the folders that are open.
fn tree_line(folders: &mut Vec<(usize, String)>, line: &str) -> Option<String> {
    let indent = line.len() - line.trim_start().len();
    let name = line.split_whitespace().next()?;
    while folders.last().is_some_and(|(depth, _)| *depth >= indent) {
        folders.pop();
    }
    let path = format!("{}{name}", folders.last().map_or("", |(_, folder)| folder));
    if name.ends_with('/') {
        folders.push((indent, path.clone()));
    }
    Some(path)
}

fn prose_line(line: &str) -> Vec<String> {
    let spans = line.split('`').skip(1).step_by(2);
    let spans = spans.filter(|span| {
        let first = span.split('/').next().unwrap_or(span);
        let plain = !span.contains([' ', '<', '>', '*', '{', '$', '…']);
        plain && (TOP.contains(&first) || first == "tests") && (span.contains('/') || span.contains('.'))
    });
    let links = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let links = links.filter(|link| !link.contains("://") && !link.starts_with(['#', 'm']));
    spans.chain(links).map(|path| path.split('#').next().unwrap_or(path).to_owned()).collect()
}

fn path_faults(document: &str, text: &str, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let folder = Path::new(document).parent().unwrap_or(Path::new(""));
    let missing = |path: &String| !exists(&folder.join(path)) && !exists(Path::new(path));
    named_paths(text)
        .into_iter()
        .filter(missing)
        .map(|path| format!("{document}: {path} does not exist"))
        .collect()
}

/// Paths that look like this machine's and are not: where, which, and why.
const ELSEWHERE: [(&str, [&str; 2], &str); 1] =
    [("config/guest/", ["/ho", "me/user"], "the user inside the guest")];

/// Paths of one machine and hosts of packages: what works here only.
fn place_faults(name: &str, text: &str) -> Vec<String> {
    // Built from parts, so that this file does not find itself.
    let paths = [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"]].map(|parts| parts.concat());
    let hosts = [
        ["deb.deb", "ian.org"],
        ["security.deb", "ian.org"],
        ["snapshot.deb", "ian.org"],
        ["ftp.deb", "ian.org"],
        ["archive.ubu", "ntu.com"],
        ["index.cra", "tes.io"],
        ["static.cra", "tes.io"],
        ["registry.np", "mjs.org"],
        ["files.python", "hosted.org"],
        ["proxy.go", "lang.org"],
    ]
    .map(|parts| parts.concat());
    let mut faults = Vec::new();
    let elsewhere = ELSEWHERE.iter().filter(|(folder, _, _)| name.starts_with(folder));
    let elsewhere: Vec<String> = elsewhere.map(|(_, parts, _)| parts.concat()).collect();
    for (number, line) in (1..).zip(text.lines()) {
        let line = &elsewhere.iter().fold(line.to_owned(), |line, path| line.replace(path, ""));
        let begins = |path: &String| {
            // A path of the machine begins there; `/proc/{pid}/root/` and `net/work/` only pass by.
            line.match_indices(&**path).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                before.is_none_or(|c| !c.is_alphanumeric() && !".-_})>]$*".contains(c))
            })
        };
        for path in paths.iter().filter(|path| begins(path)) {
            faults.push(format!("{name}:{number}: names the machine path {path}"));
        }
        for host in hosts.iter().filter(|host| line.contains(&***host)) {
            faults.push(format!("{name}:{number}: names the package host {host}"));
        }
    }
    faults
}

/// Files that package managers write, hosts and all.
fn is_lock_file(name: &str) -> bool {
    name.ends_with("Cargo.lock") || name.ends_with("package-lock.json")
}

/// What CI runs is what the README names, and nothing that only CI knows.
fn ci_faults(text: &str) -> Vec<String> {
    let harmless = ["set -eu", "cd \"$(dirname \"$0\")/..\""];
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let lines: Vec<&str> = lines.filter(|line| !harmless.contains(line)).collect();
    if lines == ["exec cargo xtask test"] {
        Vec::new()
    } else {
        vec![format!(".ci/run: does more than it may: {lines:?}")]
    }
}

#[test]
fn the_top_level_holds_only_the_agreed_names() {
    expect_none(&top_faults(tracked().iter()));
}

#[test]
fn every_path_in_a_readme_exists() {
    let files = tracked();
    assert!(files.contains(&"README.md".to_owned()), "README.md is missing or not tracked");
    let documents = files.iter().filter(|name| name.ends_with(".md"));
    let exists = |path: &Path| root().join(path).exists();
    let faults: Vec<String> = documents.flat_map(|name| path_faults(name, &read(name), exists)).collect();
    expect_none(&faults);
    assert!(!named_paths(&read("README.md")).is_empty(), "README.md names no path: its map is missing");
}

#[test]
fn no_file_names_a_machine_path_or_a_package_host() {
    let mut faults = Vec::new();
    for name in tracked().iter().filter(|name| !is_lock_file(name)) {
        // What is not text names nothing.
        if let Ok(text) = std::fs::read_to_string(root().join(name)) {
            faults.extend(place_faults(name, &text));
        }
    }
    expect_none(&faults);
}

#[test]
fn ci_runs_the_one_command() {
    expect_none(&ci_faults(&read(".ci/run")));
}

#[test]
fn faults_of_the_tree_are_found() {
    let files = ["agent/src/main.rs", "tests/a", "docs/a.md", "docs/b.md"].map(str::to_owned);
    assert_eq!(top_faults(files.iter()).len(), 1);
    assert!(ci_faults("#!/bin/sh\nset -eu\ncd \"$(dirname \"$0\")/..\"\nexec cargo xtask test\n").is_empty());
    assert!(!ci_faults("#!/bin/sh\napt install x\nexec cargo xtask test\n").is_empty());
    for bad in ["cat /ro", "cd \"/wo", "=/ho"] {
        let end = if bad.ends_with("ro") {
            "ot/x"
        } else if bad.ends_with("wo") {
            "rk/x"
        } else {
            "me/x"
        };
        assert_eq!(place_faults("a", &format!("{bad}{end}")).len(), 1, "{bad}{end}");
    }
    let guest = ["HOME=/ho", "me/user"].concat();
    assert_eq!(place_faults("config/guest/role", &guest), [""; 0]);
    assert_eq!(place_faults("config/agent.toml", &guest).len(), 1);
    let passing_by = ["/proc/{pid}/ro", "ot/run and net/wo", "rk/ and $HOME/ro", "ot/"].concat();
    assert_eq!(place_faults("a", &passing_by), [""; 0]);
    assert_eq!(place_faults("a", &["https://deb.deb", "ian.org/debian"].concat()).len(), 1);
}

#[test]
fn paths_of_a_document_are_found() {
    let text = "See `agent/core` and [the map](config/x.toml#keys), not `cargo test` or [web](https://x/y).\n\
                ```tree\nagent/    the agent\n  src/    wiring\n    main.rs\n  core/\nwit/\n```\n\
                ```\nagent/nothing\n```\n`tests/tidy/<case>` `README.md`";
    let expected = [
        "agent/core",
        "config/x.toml",
        "agent/",
        "agent/src/",
        "agent/src/main.rs",
        "agent/core/",
        "wit/",
        "README.md",
    ];
    assert_eq!(named_paths(text), expected);
    let faults = path_faults("README.md", text, |path| path != Path::new("config/x.toml"));
    assert_eq!(faults, ["README.md: config/x.toml does not exist"]);
}
