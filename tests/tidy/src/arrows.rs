//! Who may depend on whom: the walls for which the crates exist.
use std::collections::BTreeSet;

use toml::Table;

use crate::repository::{expect_none, read};

/// A member of the workspace and what it names.
struct Member {
    path: String,
    name: String,
    manifest: Table,
    /// Named in any kind of dependencies but those of tests, under the package's own name.
    uses: BTreeSet<String>,
    /// Named for its tests only.
    tests_use: BTreeSet<String>,
}

impl Member {
    fn parse(path: &str, text: &str) -> Self {
        let manifest: Table = toml::from_str(text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let name = manifest["package"]["name"].as_str().expect("a package has a name").to_owned();
        let (mut uses, mut tests_use) = (BTreeSet::new(), BTreeSet::new());
        let of_targets = manifest.get("target").and_then(|value| value.as_table()).into_iter().flatten();
        let of_targets = of_targets.filter_map(|(_, value)| value.as_table());
        for table in std::iter::once(&manifest).chain(of_targets) {
            uses.extend(names(table, "dependencies"));
            uses.extend(names(table, "build-dependencies"));
            tests_use.extend(names(table, "dev-dependencies"));
        }
        Self { path: path.to_owned(), name, manifest, uses, tests_use }
    }
}

/// The packages that a table of dependencies names, whatever they are called in the code.
fn names(table: &Table, kind: &str) -> Vec<String> {
    let entries = table.get(kind).and_then(|value| value.as_table()).into_iter().flatten();
    let package = |(key, value): (&String, &toml::Value)| {
        value.get("package").and_then(|value| value.as_str()).unwrap_or(key).to_owned()
    };
    entries.map(package).collect()
}

fn members() -> Vec<Member> {
    let root: Table = toml::from_str(&read("Cargo.toml")).expect("the root manifest parses");
    let paths = root["workspace"]["members"].as_array().expect("a list of members");
    let paths = paths.iter().map(|path| path.as_str().expect("a path"));
    paths.map(|path| Member::parse(path, &read(&format!("{path}/Cargo.toml")))).collect()
}

const AGENT: &str = "understudy";

/// What of ours a member may use; its own tests may use no more.
fn allowed(path: &str) -> Allowed {
    match path {
        "agent" => Allowed::All,
        "agent/core" | "agent/guard" => Allowed::Only(&[]),
        "agent/checkpoint" | "agent/hypervisor" | "agent/policy" | "agent/store" => {
            Allowed::Only(&["understudy-core"])
        }
        "agent/checkpoint/fuzz" => Allowed::Only(&["understudy-checkpoint"]),
        "agent/policy/fuzz" => Allowed::Only(&["understudy-core", "understudy-policy"]),
        "policies/sdk" => Allowed::Only(&[]),
        path if path.starts_with("policies/") => Allowed::Only(&["understudy-policy-sdk"]),
        path if path.starts_with("tests/") => Allowed::AllButAgent,
        _ => Allowed::Unknown,
    }
}

enum Allowed {
    Only(&'static [&'static str]),
    All,
    /// Nothing is built upon the agent; a test may link a part of it, as a dependency of tests.
    AllButAgent,
    Unknown,
}

fn arrow_faults(members: &[Member]) -> Vec<String> {
    let ours: BTreeSet<&str> = members.iter().map(|member| &*member.name).collect();
    let mut faults = Vec::new();
    for member in members {
        for used in member.uses.union(&member.tests_use) {
            if !ours.contains(&**used) || *used == member.name {
                continue;
            }
            let fine = match allowed(&member.path) {
                Allowed::Only(list) => list.contains(&&**used),
                Allowed::All => true,
                Allowed::AllButAgent => used != AGENT || !member.uses.contains(used),
                Allowed::Unknown => false,
            };
            if !fine {
                faults.push(format!("{} must not depend on {used}", member.path));
            }
        }
        if matches!(allowed(&member.path), Allowed::Unknown) {
            faults.push(format!("{}: say in tests/tidy what it may depend on", member.path));
        }
    }
    faults
}

/// Crates that are walled off, and the one member that may name them.
const WALLS: [(&[&str], &str); 4] = [
    (&["virt", "virt-sys"], "agent/hypervisor"),
    (&["wasmtime", "wasmtime-wasi"], "agent/policy"),
    (&["etcd-client", "redb"], "agent/store"),
    (&["wit-bindgen"], "policies/sdk"),
];

fn wall_faults(members: &[Member]) -> Vec<String> {
    let mut faults = Vec::new();
    for member in members {
        for (crates, owner) in WALLS {
            let inside = member.path == owner;
            for named in crates.iter().filter(|name| !inside && member.uses.contains(**name)) {
                faults.push(format!("{} must not name {named}: only {owner} does", member.path));
            }
        }
    }
    faults
}

/// Members whose outside dependencies are a closed list: what decides, what must not fail, and what every site builds
/// for its policies.
const CLOSED: [(&str, &[&str]); 3] = [
    ("agent/core", &["imbl", "serde", "serde_json", "thiserror", "uuid"]),
    ("agent/guard", &["nix"]),
    ("policies/sdk", &["wit-bindgen"]),
];

fn closed_faults(members: &[Member]) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, list) in CLOSED {
        let Some(member) = members.iter().find(|member| member.path == path) else {
            faults.push(format!("{path} is gone"));
            continue;
        };
        for named in member.uses.iter().filter(|name| !list.contains(&&***name)) {
            faults.push(format!("{path} must not depend on {named}: its list is {list:?}"));
        }
    }
    faults
}

/// One lint table, one version, one licence: each member inherits them.
fn inheritance_faults(members: &[Member]) -> Vec<String> {
    let mut faults = Vec::new();
    for member in members {
        let inherits = |value: Option<&toml::Value>| {
            value.and_then(|value| value.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
        };
        if !inherits(member.manifest.get("lints")) {
            faults.push(format!("{}: [lints] workspace = true is missing", member.path));
        }
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            if !inherits(member.manifest["package"].get(key)) {
                faults.push(format!("{}: {key}.workspace = true is missing", member.path));
            }
        }
        for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let entries = member.manifest.get(kind).and_then(|value| value.as_table()).into_iter().flatten();
            for (name, _) in entries.filter(|(_, value)| !inherits(Some(value))) {
                faults.push(format!("{}: the version of {name} belongs into the root manifest", member.path));
            }
        }
    }
    faults
}

#[test]
fn crates_depend_only_on_what_they_may() {
    expect_none(&arrow_faults(&members()));
}

#[test]
fn walled_off_crates_are_named_by_their_owner_alone() {
    expect_none(&wall_faults(&members()));
}

#[test]
fn core_guard_and_sdk_keep_their_short_lists() {
    expect_none(&closed_faults(&members()));
}

#[test]
fn every_member_inherits_lints_versions_and_licence() {
    expect_none(&inheritance_faults(&members()));
}

#[test]
fn wrong_arrows_are_found() {
    let parse = |path: &str, text: &str| Member::parse(path, text);
    let members = [
        parse("agent", "[package]\nname='understudy'\n[dependencies]\nunderstudy-core={}\nvirt={}"),
        parse(
            "agent/core",
            "[package]\nname='understudy-core'\n[dependencies]\ntokio={}\n[dev-dependencies]\nx={package='understudy-store'}",
        ),
        parse(
            "agent/guard",
            "[package]\nname='understudy-guard'\n[target.'cfg(unix)'.dependencies]\nlibc='0'\nnix.workspace=true",
        ),
        parse(
            "agent/store",
            "[package]\nname='understudy-store'\n[build-dependencies]\nunderstudy-guard={}\n[dependencies]\nredb={}",
        ),
        parse(
            "policies/a",
            "[package]\nname='policy-a'\n[dependencies]\nunderstudy-core={}\nunderstudy-policy-sdk={}\nwit-bindgen={}",
        ),
        parse(
            "policies/sdk",
            "[package]\nname='understudy-policy-sdk'\n[dependencies]\nserde={}\nwit-bindgen={}\n[dev-dependencies]\npolicy-a={}",
        ),
        parse(
            "tests/e2e",
            "[package]\nname='understudy-e2e'\n[dependencies]\nunderstudy={}\nunderstudy-core={}",
        ),
        parse("tools", "[package]\nname='tools'"),
    ];
    assert_eq!(
        arrow_faults(&members),
        [
            "agent/core must not depend on understudy-store",
            "agent/store must not depend on understudy-guard",
            "policies/a must not depend on understudy-core",
            "policies/sdk must not depend on policy-a",
            "tests/e2e must not depend on understudy",
            "tools: say in tests/tidy what it may depend on",
        ]
    );
    assert_eq!(
        wall_faults(&members),
        [
            "agent must not name virt: only agent/hypervisor does",
            "policies/a must not name wit-bindgen: only policies/sdk does",
        ]
    );
    let closed = closed_faults(&members);
    assert_eq!(closed.len(), 3, "{closed:?}");
    for (fault, named) in closed.iter().zip(["tokio", "libc", "serde"]) {
        assert!(fault.contains(named), "{closed:?}");
    }
    let inheritance = inheritance_faults(&members[2..3]);
    assert!(inheritance.iter().any(|fault| fault.contains("[lints]")), "{inheritance:?}");
    assert!(inheritance.iter().any(|fault| fault.contains("publish")), "{inheritance:?}");
}
