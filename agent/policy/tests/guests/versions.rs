//! A component for each version of the interface: `affinity` speaks 0.1 through the SDK, `trial` speaks 0.2.

use std::path::Path;

use wasmparser::{Parser, Payload};

use crate::common::question;
use crate::one::One;
use crate::{policies, root, shipped, toolchain};

/// The policy beside this file, with the trial version of the interface.
fn trial() -> Vec<u8> {
    let toolchain = toolchain();
    let folder = tempfile::tempdir().unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/trial");
    for below in ["src", "wit"] {
        std::fs::create_dir(folder.path().join(below)).unwrap();
    }
    for file in ["Cargo.toml", "src/lib.rs"] {
        std::fs::copy(sources.join(file), folder.path().join(file)).unwrap();
    }
    for entry in std::fs::read_dir(root().join("wit/0.2")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "wit") {
            std::fs::copy(&path, folder.path().join("wit").join(path.file_name().unwrap())).unwrap();
        }
    }
    // What is newest today is none of the test's business.
    std::fs::copy(root().join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
    let component = policies::build_crate(&root(), folder.path(), "policy-trial", &toolchain).unwrap();
    std::fs::read(component).unwrap()
}

/// The names of what a component exports.
fn exports(component: &[u8]) -> Vec<String> {
    let mut depth = 0_usize;
    let mut names = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        match payload.unwrap() {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentExportSection(section) if depth == 0 => {
                names.extend(section.into_iter().map(|export| export.unwrap().name.name.to_owned()));
            }
            _ => {}
        }
    }
    names
}

#[test]
#[ignore = "needs the wasm target"]
fn a_component_names_the_version_that_it_speaks() {
    let (released, trial) = (shipped("affinity"), trial());
    assert_eq!(exports(&released), ["understudy:policy/placement@0.1.0"]);
    let mut trial = exports(&trial);
    trial.sort();
    assert_eq!(trial, ["understudy:policy/backup-count@0.2.0", "understudy:policy/placement@0.2.0"]);
}

#[test]
#[ignore = "needs the wasm target"]
fn a_policy_of_the_trial_version_decides_by_what_only_that_has() {
    let component = trial();
    let trial = One::load("trial", &component, &[]).unwrap();
    let mut asked = question("alice");
    asked.template = Some("standard".to_owned());
    for (row, template, count) in [(0, "standard", 1), (1, "other", 7), (2, "standard", 3)] {
        asked.hosts[row].idle.insert(template.to_owned(), count);
    }
    let picks = trial.place(&asked).unwrap();
    let reported: Vec<_> = picks.iter().map(|pick| (pick.index, pick.reason.as_deref().unwrap())).collect();
    assert_eq!(reported, [(2, "3 idle"), (0, "1 idle")]);

    let refused = trial.place(&question("nobody")).unwrap_err();
    assert!(refused.contains("nobody is no terminal"), "{refused}");
    let refused = One::load("trial", &component, &[("weight", "1")]).err().unwrap();
    assert!(refused.contains("'weight' is unknown"), "{refused}");
}
