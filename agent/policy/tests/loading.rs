//! Files that are no policies, and choices that cannot be made: each is named with its reason, the rest goes on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{Site, chain, component, placement_guest, question, settings};
use understudy_core::model::units::MiB;
use understudy_core::policy::{Interface, PlacementAnswer};
use understudy_policy::{Digest, Limits, LoadFault, Mode, PolicyFault, Settings};

const DEADLINE: Duration = Duration::from_secs(10);

fn honest() -> Vec<u8> {
    placement_guest("")
}

fn text(component: &str) -> Vec<u8> {
    wat::parse_str(component).unwrap()
}

/// Name, content, and a part of the reason.
fn broken_files(good: &[u8]) -> [(&'static str, Vec<u8>, &'static str); 14] {
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
            text(&format!(r#"(component (instance $i) (export "{placement}@0.3.0" (instance $i)))"#)),
            "placement@0.3.0, but this daemon speaks versions 0.1 and 0.2",
        ),
        (
            "hollow",
            text(&format!(r#"(component (instance $i) (export "{placement}@0.1.0" (instance $i)))"#)),
            "does not fit wit/",
        ),
        (
            "two-tongues",
            text(&format!(
                r#"(component (import "understudy:policy/log@0.1.0" (instance)) (instance $i)
                    (export "{placement}@0.2.0" (instance $i)))"#
            )),
            "uses understudy:policy/log@0.1.0 and understudy:policy/placement@0.2.0",
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
    let site = Site::new();
    site.add("honest", &good);
    for (name, bytes, _) in &broken {
        site.add(name, bytes);
    }
    std::fs::write(site.path().join("README.md"), "no policy at all").unwrap();
    let limits = Limits { file_size: MiB(1), deadline: DEADLINE, ..Limits::default() };
    let (set, faults) = site.load(&Settings::without_file(limits));
    let said: Vec<String> = faults.iter().map(|f| chain(f)).collect();
    for (name, _, part) in &broken {
        let is_named =
            |s: &&String| s.contains(&format!("/{name}.wasm is")) || s.contains(&format!("policy {name} ("));
        let hits = said.iter().filter(|s| is_named(s) && s.contains(part)).count();
        assert_eq!(hits, 1, "{name}: {said:#?}");
    }
    assert_eq!(faults.len(), broken.len(), "{said:#?}");
    assert!(faults.iter().all(|fault| fault.policy().is_some()), "{said:#?}");
    assert_eq!(set.ask_placement(&question("anyone")).outcome, Ok(PlacementAnswer::default()));
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

fn choose(name: &str) -> Settings {
    Settings { choice: BTreeMap::from([(Interface::Placement, name.to_owned())]), ..settings(DEADLINE) }
}

/// Settings in which the policies have these modes.
fn modes(of: Settings, modes: &[(&str, Mode)]) -> Settings {
    let mut settings = of;
    for &(name, mode) in modes {
        let mut policy = settings.of(name);
        policy.mode = mode;
        settings.policies.insert(name.to_owned(), policy);
    }
    settings
}

#[test]
fn of_several_none_decides_until_one_is_chosen() {
    let site = Site::new();
    site.add("one", &honest());
    site.add("two", &honest());
    let (set, faults) = site.load(&settings(DEADLINE));
    assert_eq!(set.deciding(Interface::Placement), None);
    let asked = set.ask_placement(&question("anyone"));
    assert_eq!(asked.outcome, Err(PolicyFault::Unavailable { interface: Interface::Placement }));
    assert_eq!(asked.by, None);
    let [fault] = &faults[..] else { panic!("{faults:?}") };
    assert_eq!(
        fault.to_string(),
        "one, two all answer placement: set choice.placement in policies.toml, or remove the others or set their \
         mode to shadow or off"
    );

    let (set, faults) = site.load(&choose("two"));
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(set.deciding(Interface::Placement).unwrap().name, "two");
    assert_eq!(set.ask_placement(&question("anyone")).by.unwrap().name, "two");

    let (set, faults) = site.load(&choose("three"));
    assert!(matches!(&faults[..], [LoadFault::Chosen { policy, .. }] if policy == "three"), "{faults:?}");
    assert_eq!(set.deciding(Interface::Placement), None);
}

#[test]
fn a_shadow_answers_beside_the_one_that_decides_and_makes_no_choice_necessary() {
    let site = Site::new();
    site.add("one", &honest());
    site.add("two", &honest());
    site.add("three", &honest());
    let settings = modes(settings(DEADLINE), &[("two", Mode::Shadow), ("three", Mode::Off)]);
    let (set, faults) = site.load(&settings);
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(set.deciding(Interface::Placement).unwrap().name, "one");
    let shadows = set.shadow_placement(&question("anyone"));
    let [shadow] = &shadows[..] else { panic!("{shadows:?}") };
    assert_eq!(shadow.by.as_ref().unwrap().name, "two");
    assert_eq!(shadow.outcome, Ok(PlacementAnswer::default()));
    let off = set.policies().find(|info| info.name == "three").unwrap();
    assert!(off.mode == Mode::Off && off.exports.is_empty());

    for (name, mode) in [("two", Mode::Shadow), ("three", Mode::Off)] {
        let settings = Settings { choice: choose(name).choice, ..settings.clone() };
        let (set, faults) = site.load(&settings);
        assert!(matches!(&faults[..], [LoadFault::ChosenMode { mode: m, .. }] if *m == mode), "{faults:?}");
        assert_eq!(set.deciding(Interface::Placement), None);
    }
}

#[test]
fn what_is_off_is_not_loaded_so_that_a_broken_policy_can_be_turned_off() {
    let site = Site::new();
    site.add("broken", &invalid_inside(&honest()));
    let (_, faults) = site.load(&settings(DEADLINE));
    assert_eq!(faults.len(), 1, "{faults:?}");
    let (_, faults) = site.load(&modes(settings(DEADLINE), &[("broken", Mode::Off)]));
    assert!(faults.is_empty(), "{faults:?}");
}

#[test]
fn a_suspended_policy_decides_nothing_and_no_other_takes_its_place() {
    let site = Site::new();
    let dir = site.path().join("library");
    let library = understudy_policy::Library::open(&dir).unwrap();
    let digest = library.add(&honest(), MiB(1)).unwrap();
    let components = ["one", "two"].map(|name| (name.to_owned(), digest.clone())).into();
    let suspended = BTreeSet::from(["two".to_owned()]);
    let (set, faults) = understudy_policy::PolicySet::load(&library, &components, &choose("two"), &suspended);
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(set.deciding(Interface::Placement), None);
    assert!(set.policies().all(|info| info.suspended == (info.name == "two")));
    assert_eq!(set.ask_placement(&question("anyone")).by, None);
}

#[test]
fn a_chosen_policy_that_is_broken_is_one_fault_not_two() {
    let site = Site::new();
    site.add("one", &honest());
    site.add("two", &invalid_inside(&honest()));
    let (set, faults) = site.load(&choose("two"));
    assert!(matches!(&faults[..], [LoadFault::Policy { policy, .. }] if policy == "two"), "{faults:?}");
    assert_eq!(set.deciding(Interface::Placement), None);
}

#[test]
fn a_loaded_policy_is_known_by_name_digest_and_size() {
    let site = Site::new();
    let bytes = honest();
    site.add("honest", &bytes);
    let (set, _) = site.load(&settings(DEADLINE));
    let info = set.policies().next().unwrap();
    assert_eq!(info.name, "honest");
    assert_eq!(info.digest, Digest::of(&bytes));
    assert_eq!(info.bytes, bytes.len() as u64);
    assert_eq!(info.exports, BTreeSet::from([Interface::Placement]));
    assert_eq!(info.decides, info.exports);
    assert!(info.compiled.is_some());
    assert_eq!(set.deciding(Interface::BackupCount), None);
    let (set, _) = site.load(&settings(DEADLINE));
    assert!(set.policies().all(|info| info.compiled.is_none()), "the second time it is in the cache");
}

#[test]
fn settings_for_a_policy_that_is_not_there_are_reported() {
    let site = Site::new();
    let (_, faults) = site.load(&modes(settings(DEADLINE), &[("spraed", Mode::Decide)]));
    assert!(matches!(&faults[..], [LoadFault::Stray { policy }] if policy == "spraed"), "{faults:?}");
}

#[test]
fn each_policy_has_its_own_deadline_and_memory() {
    let site = Site::new();
    site.add("hog", &placement_guest("(drop (memory.grow (i32.const 64)))"));
    site.add("slow", &placement_guest("(loop $l (br $l))"));
    let mut settings = choose("slow");
    settings.policies.insert("hog".to_owned(), settings.of("hog"));
    settings.policies.get_mut("hog").unwrap().limits.memory = MiB(2);
    settings.policies.get_mut("hog").unwrap().mode = Mode::Shadow;
    let mut slow = settings.of("slow");
    slow.limits.deadline = Duration::from_millis(300);
    settings.policies.insert("slow".to_owned(), slow);
    let (set, faults) = site.load(&settings);
    assert!(faults.is_empty(), "{faults:?}");
    let fault = set.ask_placement(&question("villain")).outcome.unwrap_err();
    assert_eq!(fault, PolicyFault::Deadline { policy: "slow".to_owned(), limit: Duration::from_millis(300) });
    let fault = set.shadow_placement(&question("villain")).remove(0).outcome.unwrap_err();
    assert_eq!(fault, PolicyFault::Memory { policy: "hog".to_owned(), limit: MiB(2) });
}

#[test]
fn imports_are_looked_at_before_anything_is_compiled() {
    // A function that no compiler would accept: it promises an i32 and gives an i64.
    let broken = "(core module (func (result i32) (i64.const 0)))";
    let site = Site::new();
    site.add("wasi", &text(&format!(r#"(component (import "wasi:io/poll@0.2.9" (instance)) {broken})"#)));
    let (_, faults) = site.load(&settings(DEADLINE));
    assert!(chain(&faults[0]).contains("imports wasi:io/poll"), "{faults:?}");
}

#[test]
fn both_interfaces_of_one_component_are_used() {
    let module = common::module("", "if (i32.const 0)");
    // A count of no primaries and no backups, without a reason, is all zeros as well.
    let counts = r#"(func (export "understudy:policy/backup-count@0.1.0#count") (param i32) (result i32) (i32.const 1024)))"#;
    let module = module.trim_end().strip_suffix(')').unwrap().to_owned() + counts;
    let site = Site::new();
    site.add("both", &component(&module, "policy"));
    let (set, faults) = site.load(&settings(DEADLINE));
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(set.policies().next().unwrap().decides, Interface::ALL.into());
    assert!(set.ask_placement(&question("anyone")).outcome.is_ok());
    assert!(set.deciding(Interface::BackupCount).is_some());
}
