//! What `understudy policy new` writes builds outside of this repository into a policy that decides.

use std::collections::BTreeSet;

use crate::common::{question, row};
use crate::one::One;
use crate::{policies, root, toolchain};

#[path = "../../../../policies/template/skeleton.rs"]
#[allow(unreachable_pub, reason = "a module that the agent includes as well")]
pub(crate) mod skeleton;

#[test]
#[ignore = "needs the wasm target"]
fn a_new_policy_builds_and_decides() {
    let toolchain = toolchain();
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in skeleton::files("calm-first").unwrap() {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    // A site resolves its own dependencies; the test must not depend on what is newest today.
    std::fs::copy(root().join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
    let component = policies::build_crate(&root(), folder.path(), "policy-calm-first", &toolchain).unwrap();
    let policy = One::load("calm-first", &std::fs::read(component).unwrap(), &[]).unwrap();
    let mut asked = question("alice");
    asked.hosts = ["busy", "full", "calm"].map(row).into();
    asked.hosts[0].load_permille = 900;
    asked.hosts[1].free_vcpus = understudy_core::model::units::Vcpus(4);
    assert_eq!(policy.rows(&asked), Ok(vec![2, 1, 0]));
}

#[test]
fn a_name_is_checked_and_put_everywhere() {
    for (name, fine) in [
        ("calm", true),
        ("calm-first", true),
        ("c3", true),
        ("", false),
        ("Calm", false),
        ("3c", false),
        ("calm_first", false),
        ("calm-", false),
        ("calm--first", false),
        ("../calm", false),
        ("a.b", false),
    ] {
        assert_eq!(skeleton::is_name(name), fine, "{name}");
        assert_eq!(skeleton::files(name).is_some(), fine, "{name}");
    }
    let files = skeleton::files("calm-first").unwrap();
    let own = files.iter().filter(|(path, _)| !path.starts_with("understudy/"));
    for (path, text) in own {
        assert!(!text.contains("my-policy") && !text.contains("my_policy"), "{path} has the template's name");
    }
}

#[test]
fn a_new_policy_has_the_whole_sdk_and_interface() {
    let root = root();
    let mut expected = BTreeSet::new();
    let mut folders = vec![root.join("policies/sdk/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                expected.insert(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    for entry in std::fs::read_dir(root.join("wit")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "wit") {
            expected.insert(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
        }
    }
    expected.insert("policies/sdk/Cargo.toml".to_owned());
    let files = skeleton::files("calm").unwrap();
    let copied = files.iter().filter_map(|(path, text)| Some((path.strip_prefix("understudy/")?, text)));
    let copied: BTreeSet<String> = copied
        .map(|(path, text)| {
            assert_eq!(&std::fs::read_to_string(root.join(path)).unwrap(), text, "{path}");
            path.to_owned()
        })
        .collect();
    assert_eq!(copied, expected);
}

#[test]
fn a_new_policy_names_the_versions_of_this_repository() {
    let root_manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let files = skeleton::files("calm").unwrap();
    let (_, manifest) = files.iter().find(|(path, _)| path == "Cargo.toml").unwrap();
    for key in ["wit-bindgen = ", "rust-version = ", "license = "] {
        let line = root_manifest.lines().find(|line| line.starts_with(key)).unwrap();
        assert!(manifest.lines().any(|own| own == line), "the template's manifest lacks {line}");
    }
}
