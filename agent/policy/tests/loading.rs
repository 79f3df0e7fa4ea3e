//! Files that are no policies, and choices that cannot be made: each is named with its reason, the rest goes on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Folder, chain, component, placement_guest, question};
use understudy_core::policy::{Interface, PlacementAnswer};
use understudy_core::units::MiB;
use understudy_policy::{LoadFault, PolicyConfig, PolicyFault, PolicyHost};

fn honest() -> Vec<u8> {
    placement_guest("")
}

fn text(component: &str) -> Vec<u8> {
    wat::parse_str(component).unwrap()
}

/// Name, content, and a part of the reason.
fn broken_files(good: &[u8]) -> [(&'static str, Vec<u8>, &'static str); 13] {
    let placement = "understudy:policy/placement";
    [
        ("empty", Vec::new(), "no whole WebAssembly component"),
        ("noise", b"#!/bin/sh\nexit 0\n".to_vec(), "no whole WebAssembly component"),
        ("truncated", good[..good.len() / 2].to_vec(), "no whole WebAssembly component"),
        ("core-module", text("(module)"), "core module, not a component"),
        ("huge", vec![0; (1 << 20) + 1], "larger than 1 MiB"),
        (
            "wasi",
            text(r#"(component (import "wasi:io/poll@0.2.9" (instance)))"#),
            "imports wasi:io/poll@0.2.9",
        ),
        ("greedy", text(r#"(component (import "a:b/c@1.0.0" (instance)))"#), "imports a:b/c@1.0.0"),
        ("nothing", text("(component)"), "exports neither"),
        (
            "other",
            text(r#"(component (instance $i) (export "a:b/c@1.0.0" (instance $i)))"#),
            "exports neither",
        ),
        (
            "newer",
            text(&format!(r#"(component (instance $i) (export "{placement}@0.2.0" (instance $i)))"#)),
            "placement@0.2.0, but this daemon speaks version 0.1",
        ),
        (
            "hollow",
            text(&format!(r#"(component (instance $i) (export "{placement}@0.1.0" (instance $i)))"#)),
            "does not fit wit/",
        ),
        // The name of an import that is allowed, with a function that is not there.
        (
            "log-more",
            text(
                r#"(component (import "understudy:policy/log@0.1.0" (instance (export "read" (func))))
                    (instance $i) (export "understudy:policy/placement@0.1.0" (instance $i)))"#,
            ),
            "does not fit wit/",
        ),
        // Well-formed outside, broken inside: only the compiler's validation finds it.
        ("invalid", invalid_inside(good), "does not compile"),
    ]
}

#[test]
fn what_is_no_policy_is_named_with_its_reason_and_the_rest_goes_on() {
    let good = honest();
    let broken = broken_files(&good);
    let folder = Folder::new();
    folder.add("honest", &good);
    for (name, bytes, _) in &broken {
        folder.add(name, bytes);
    }
    std::fs::write(folder.path().join("README.md"), "no policy at all").unwrap();
    let config = PolicyConfig { file_size: MiB(1), ..PolicyConfig::default() };
    let (host, faults) = PolicyHost::load(folder.path(), &config);
    let said: Vec<String> = faults.iter().map(|f| chain(f)).collect();
    for (name, _, part) in &broken {
        let hits =
            said.iter().filter(|s| s.contains(&format!("/{name}.wasm is")) && s.contains(part)).count();
        assert_eq!(hits, 1, "{name}: {said:#?}");
    }
    assert_eq!(faults.len(), broken.len(), "{said:#?}");
    assert_eq!(host.ask_placement(&question("anyone")), Ok(PlacementAnswer::default()));
}

/// Turn the call of `log` into an instruction that does not exist.
fn invalid_inside(good: &[u8]) -> Vec<u8> {
    let loop_forever = placement_guest("(loop $l (br $l))");
    assert!(loop_forever.len() > good.len());
    // `loop; br 0; end` is 03 40 0c 00 0b.
    let at = loop_forever.windows(5).position(|w| w == [0x03, 0x40, 0x0c, 0x00, 0x0b]).unwrap();
    let mut bytes = loop_forever;
    bytes[at + 3] = 0x7f;
    bytes
}

#[test]
fn files_that_are_not_files_of_the_folder_are_refused() {
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let link = |to: &std::path::Path, name: &str| {
        std::os::unix::fs::symlink(to, folder.path().join(format!("{name}.wasm"))).unwrap();
    };
    elsewhere.add("outside", &honest());
    folder.add("honest", &honest());
    folder.add("Bad Name", &honest());
    link(&elsewhere.path().join("outside.wasm"), "escape");
    link(&folder.path().join("gone"), "dangling");
    std::fs::create_dir(folder.path().join("folder.wasm")).unwrap();
    // Opening this one would wait for ever.
    let socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket.wasm")).unwrap();
    let (host, faults) = PolicyHost::load(folder.path(), &PolicyConfig::default());
    drop(socket);
    let said: Vec<String> = faults.iter().map(|f| chain(f)).collect();
    for part in [
        "Bad Name.wasm is not used: its name is not one",
        "escape.wasm is not used: leads out of the folder",
        "dangling.wasm is not used: cannot be read",
        "folder.wasm is not used: is no regular file",
        "socket.wasm is not used: is no regular file",
    ] {
        assert!(said.iter().any(|s| s.contains(part)), "{part}: {said:#?}");
    }
    assert_eq!(faults.len(), 5, "{said:#?}");
    assert!(faults.iter().all(|f| f.file().is_some()));
    assert_eq!(host.policies().count(), 1);
}

#[test]
fn of_several_none_decides_until_one_is_chosen() {
    let folder = Folder::new();
    folder.add("one", &honest());
    folder.add("two", &honest());
    let (host, faults) = PolicyHost::load(folder.path(), &PolicyConfig::default());
    assert_eq!(host.deciding(Interface::Placement), None);
    assert_eq!(
        host.ask_placement(&question("anyone")),
        Err(PolicyFault::Unavailable { interface: Interface::Placement })
    );
    let [fault] = &faults[..] else { panic!("{faults:?}") };
    assert_eq!(
        fault.to_string(),
        "one, two all answer placement: choose one in the configuration or remove the others"
    );

    let choose = |name: &str| PolicyConfig {
        choice: BTreeMap::from([(Interface::Placement, name.to_owned())]),
        ..PolicyConfig::default()
    };
    let (host, faults) = PolicyHost::load(folder.path(), &choose("two"));
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(host.deciding(Interface::Placement).unwrap().name, "two");

    let (host, faults) = PolicyHost::load(folder.path(), &choose("three"));
    assert!(matches!(&faults[..], [LoadFault::Chosen { policy, .. }] if policy == "three"), "{faults:?}");
    assert_eq!(host.deciding(Interface::Placement), None);
}

#[test]
fn a_loaded_policy_is_known_by_name_digest_and_size() {
    let folder = Folder::new();
    let bytes = honest();
    folder.add("honest", &bytes);
    let (host, _) = PolicyHost::load(folder.path(), &PolicyConfig::default());
    let info = host.policies().next().unwrap();
    assert_eq!(info.name, "honest");
    assert_eq!(info.digest, blake3::hash(&bytes).to_hex().to_string());
    assert_eq!(info.bytes, bytes.len() as u64);
    assert_eq!(info.exports, BTreeSet::from([Interface::Placement]));
    assert_eq!(info.decides, info.exports);
    assert_eq!(host.deciding(Interface::BackupCount), None);
}

#[test]
fn parameters_for_a_policy_that_is_not_there_are_reported() {
    let folder = Folder::new();
    let mut config = PolicyConfig::default();
    config.parameters.insert("spraed".to_owned(), BTreeMap::new());
    let (_, faults) = PolicyHost::load(folder.path(), &config);
    assert!(matches!(&faults[..], [LoadFault::Parameters { policy }] if policy == "spraed"), "{faults:?}");
}

#[test]
fn without_a_folder_there_are_no_policies_and_one_fault() {
    let folder = Folder::new();
    let (host, faults) = PolicyHost::load(&folder.path().join("absent"), &PolicyConfig::default());
    assert!(matches!(&faults[..], [LoadFault::Folder { .. }]), "{faults:?}");
    assert_eq!(host.policies().count(), 0);
}

#[test]
fn imports_are_looked_at_before_anything_is_compiled() {
    // A function that no compiler would accept: it promises an i32 and gives an i64.
    let broken = "(core module (func (result i32) (i64.const 0)))";
    let folder = Folder::new();
    folder.add("wasi", &text(&format!(r#"(component (import "wasi:io/poll@0.2.9" (instance)) {broken})"#)));
    let (_, faults) = PolicyHost::load(folder.path(), &PolicyConfig::default());
    assert!(chain(&faults[0]).contains("imports wasi:io/poll"), "{faults:?}");
}

#[test]
fn both_interfaces_of_one_component_are_used() {
    let module = common::module("", "if (i32.const 0)");
    // A count of no primaries and no backups, without a reason, is all zeros as well.
    let counts = r#"(func (export "understudy:policy/backup-count@0.1.0#count") (param i32) (result i32) (i32.const 1024)))"#;
    let module = module.trim_end().strip_suffix(')').unwrap().to_owned() + counts;
    let folder = Folder::new();
    folder.add("both", &component(&module, "policy"));
    let (host, faults) = PolicyHost::load(folder.path(), &PolicyConfig::default());
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(host.policies().next().unwrap().decides, Interface::ALL.into());
    assert!(host.ask_placement(&question("anyone")).is_ok());
}
