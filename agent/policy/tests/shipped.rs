//! The shipped policies as components: built as users build them, asked through the host.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "../../../tests/xtask/src/policies.rs"]
#[allow(dead_code, unreachable_pub, reason = "a module of xtask, included because xtask is a program")]
mod policies;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::planning::{host, planned};
use common::samples::{count_question, fact, six_hosts, spec};
use common::{chain, load, question, row};
use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_core::model::records::{NodeRecord, Phase};
use understudy_core::model::units::MiB;
use understudy_core::model::view::{Versioned, View};
use understudy_core::policy::{HostRow, Interface};
use understudy_policy::{Library, LoadFault, PolicyFault, PolicySet, Settings};

/// A folder with one built policy for each question.
fn shipped() -> PathBuf {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).canonicalize().unwrap();
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("policies");
    let built = policies::build(&root, &out, false).unwrap();
    let names: Vec<_> = built.iter().map(|b| b.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["affinity", "count", "pack", "spread", "zones"]);
    // Several that answer one question would have to be chosen from.
    let deciding = out.with_file_name("deciding");
    std::fs::create_dir_all(&deciding).unwrap();
    for file in ["count.wasm", "spread.wasm"] {
        let partial = deciding.join(format!("{file}.{}.partial", std::process::id()));
        std::fs::copy(out.join(file), &partial).unwrap();
        std::fs::rename(&partial, deciding.join(file)).unwrap();
    }
    deciding
}

fn loaded(folder: &Path, settings: &Settings) -> (PolicySet, Vec<LoadFault>) {
    let library = tempfile::tempdir().unwrap();
    load(folder, &Library::open(&library.path().join("library")).unwrap(), settings)
}

fn settings() -> Settings {
    common::settings(Duration::from_secs(10))
}

fn set(folder: &Path) -> PolicySet {
    let (set, faults) = loaded(folder, &settings());
    assert!(faults.is_empty(), "{faults:?}");
    set
}

#[test]
#[ignore = "needs the wasm target"]
fn spread_places_by_room_anti_affinity_and_load() {
    let folder = shipped();
    let set = set(&folder);
    assert_eq!(set.deciding(Interface::Placement).unwrap().name, "spread");
    let asked = six_hosts();
    let answer = set.ask_placement(&asked).outcome.unwrap();
    let rows: Vec<u32> = answer.picks.iter().map(|p| p.index).collect();
    assert_eq!(rows, [5, 2, 1, 0], "{answer:?}");
    assert_eq!(
        answer.picks[3].reason.as_deref(),
        Some("no idle instance, has the node's primary, strain 0, 65536 MiB free")
    );
    assert_eq!(set.ask_placement(&asked).outcome.unwrap(), answer, "the same question");
}

#[test]
#[ignore = "needs the wasm target"]
fn ten_thousand_hosts_fit_the_memory_that_a_policy_begins_with() {
    let folder = shipped();
    let mut settings = settings();
    // 4 MiB to begin with, some bytes for tables, and less than the MiB that its heap would ask for.
    settings.defaults.memory = MiB(5);
    let (set, faults) = loaded(&folder, &settings);
    assert!(faults.is_empty(), "{faults:?}");
    let host = |number: u32| HostRow {
        labels: BTreeMap::from([("disk".to_owned(), format!("disk-{}", number % 7))]),
        rack: format!("rack-{}", number / 40),
        idle: BTreeMap::from([("standard".to_owned(), 1)]),
        ..row(&format!("host-{number:05}"))
    };
    let mut asked = question("alice");
    asked.wanted = 16;
    asked.hosts = (0..10_000).map(host).collect();
    assert_eq!(set.ask_placement(&asked).outcome.unwrap().picks.len(), 16);
    asked.hosts = (0..50_000).map(host).collect();
    let fault = set.ask_placement(&asked).outcome.unwrap_err();
    assert_eq!(fault, PolicyFault::Memory { policy: "spread".to_owned(), limit: MiB(5) });
}

#[test]
#[ignore = "needs the wasm target"]
fn count_answers_by_role_and_label_and_refuses_what_it_cannot_read() {
    let folder = shipped();
    let set = set(&folder);
    let mut asked = count_question();
    let mut backups = |label: Option<&str>| {
        asked.terminal_labels = label.map(|l| ("backups".to_owned(), l.to_owned())).into_iter().collect();
        set.ask_backup_count(&asked).outcome.map(|a| (a.primaries, a.backups))
    };
    assert_eq!(backups(None), Ok((1, 1)));
    assert_eq!(backups(Some("2")), Ok((1, 2)));
    assert_eq!(backups(Some("9")), Ok((1, 4)));
    assert_eq!(
        backups(Some("many")).unwrap_err().to_string(),
        "policy count says: label backups='many' of alice/display is no number from 0 on"
    );
}

#[test]
#[ignore = "needs the wasm target"]
fn a_parameter_that_a_policy_does_not_know_keeps_it_from_being_used() {
    let folder = shipped();
    let mut settings = settings();
    for (name, key) in [("count", "display"), ("spread", "wieght")] {
        let mut policy = settings.of(name);
        policy.parameters.insert(key.to_owned(), "2".to_owned());
        settings.policies.insert(name.to_owned(), policy);
    }
    let (set, faults) = loaded(&folder, &settings);
    let said: Vec<String> = faults.iter().map(|f| chain(f)).collect();
    assert!(said.len() == 1 && said[0].contains("parameter 'wieght' is unknown"), "{said:?}");
    assert_eq!(set.policies().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["count"]);
}

#[test]
#[ignore = "needs the wasm target"]
fn shipped_components_hold_no_path_of_the_machine_that_built_them() {
    let folder = shipped();
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .canonicalize()
        .unwrap()
        .display()
        .to_string();
    for name in ["spread", "count"] {
        let bytes = std::fs::read(folder.join(format!("{name}.wasm"))).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for path in ["/.cargo/", "/.cache/", "/.rustup/", root.as_str()] {
            assert!(!text.contains(path), "{name}.wasm names {path}");
        }
        assert!(bytes.len() < 100 << 10, "{name}.wasm has {} bytes", bytes.len());
    }
}

#[test]
#[ignore = "needs the wasm target"]
fn zones_parts_primary_and_backup_though_only_the_primarys_zone_has_an_idle_instance() {
    let folder = shipped();
    let zones = tempfile::tempdir().unwrap();
    let built = folder.with_file_name("policies").join("zones.wasm");
    std::fs::copy(built, zones.path().join("zones.wasm")).unwrap();
    let set = set(zones.path());
    let mut view = View::default();
    for (name, zone) in [("east", "east"), ("west-1", "west"), ("west-2", "west")] {
        let mut host = host(MiB(4096), false);
        let facts = Arc::make_mut(Arc::make_mut(&mut host).facts.as_mut().unwrap());
        facts.labels.insert("zone".to_owned(), zone.to_owned());
        if zone == "west" {
            let id =
                InstanceId::derived(&"pool/display".parse().unwrap(), Epoch(0), &name.parse().unwrap(), 1);
            facts.instances.insert(id, fact(Phase::Idle, None, Epoch(0)));
        }
        view.hosts.insert(name.parse().unwrap(), host);
    }
    let record = NodeRecord::new(spec(), "token".to_owned());
    view.nodes.insert("alice/display".parse().unwrap(), Versioned { value: record, revision: 2 });
    let (plan, report) = planned(&mut view, &set);
    let [assignment] = &plan.assignments[..] else { panic!("{plan:?}") };
    let (primary, backups) = (assignment.record.primary.as_ref().unwrap(), &assignment.record.backups);
    assert!(primary.host.as_str().starts_with("west"), "an idle instance takes the primary: {primary:?}");
    assert_eq!(backups.iter().map(|backup| backup.host.as_str()).collect::<Vec<_>>(), ["east"]);
    assert_eq!(report.refusals, Vec::new());
}
