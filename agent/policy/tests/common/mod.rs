//! What the tests of this crate share: a folder of policies, guests from text, a question.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use understudy_core::policy::{HostRow, HostState, MemberCounts, PlacementQuestion, Purpose, Traffic};
use understudy_core::units::{MiB, Vcpus};
use understudy_policy::{FolderWatch, Library, Limits, LoadFault, PolicySet, Settings};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

/// A site: a folder of policies and a library, which go away with the test.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    library: tempfile::TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), library: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn add(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(format!("{name}.wasm")), bytes).unwrap();
    }

    /// As an agent that starts: what lies in the folder decides.
    pub(crate) fn load(&self, settings: &Settings) -> (PolicySet, Vec<LoadFault>) {
        let library = Library::open(&self.library.path().join("library")).unwrap();
        load(self.path(), &library, settings)
    }
}

pub(crate) fn load(folder: &Path, library: &Library, settings: &Settings) -> (PolicySet, Vec<LoadFault>) {
    let mut watch = FolderWatch::new(folder, settings.defaults.file_size);
    let folder = watch.look(library).or_else(|| watch.look(library)).unwrap();
    let (set, faults) = PolicySet::load(library, &folder.components, settings, &BTreeSet::new());
    (set, folder.faults.into_iter().chain(faults).collect())
}

/// Limits that no guest that behaves runs into, however busy the machine.
pub(crate) fn settings(deadline: Duration) -> Settings {
    Settings::without_file(Limits { deadline, ..Limits::default() })
}

/// A component from a core module in text form.
pub(crate) fn component(module: &str, world: &str) -> Vec<u8> {
    component_of(module, world, concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit"))
}

/// The same for the trial version of the interface.
pub(crate) fn component_v02(module: &str, world: &str) -> Vec<u8> {
    component_of(module, world, concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit/0.2"))
}

fn component_of(module: &str, world: &str, wit: &str) -> Vec<u8> {
    let mut bytes = wat::parse_str(module).unwrap();
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(wit).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    wit_component::embed_component_metadata(&mut bytes, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&bytes).unwrap().validate(true).encode().unwrap()
}

/// A module that exports `place`: runs `body` where `condition` holds, then returns the result at 1024, which is
/// an empty list of picks unless `body` wrote another.
pub(crate) fn module(body: &str, condition: &str) -> String {
    module_of("0.1.0", body, condition)
}

pub(crate) fn module_of(version: &str, body: &str, condition: &str) -> String {
    format!(
        r#"(module
            (import "understudy:policy/log@{version}" "write" (func $log (param i32 i32 i32)))
            (memory (export "memory") 16)
            (table $t 1 funcref)
            (global $top (mut i32) (i32.const 4096))
            (data (i32.const 512) "out of ideas....two\0alines")
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
                (global.set $top (i32.add (local.get $at) (local.get 3)))
                (local.get $at))
            (func $deep (call $deep) (call $deep))
            (func (export "understudy:policy/placement@{version}#place") (param $request i32) (result i32)
                ({condition} (then {body}))
                (i32.const 1024)))"#
    )
}

/// Whether the terminal's name is another than that of the trial question, five letters long. A record is laid out in
/// the order of its fields, and the name is the first: its address at 0, its length at 4.
pub(crate) const NOT_TRIAL: &str = "if (i32.ne (i32.load offset=4 (local.get $request)) (i32.const 5))";

/// A policy that behaves while the terminal's name has five letters.
pub(crate) fn placement_guest(body: &str) -> Vec<u8> {
    component(&module(body, NOT_TRIAL), "placement-policy")
}

pub(crate) fn row(name: &str) -> HostRow {
    HostRow {
        host: name.parse().unwrap(),
        state: HostState::Ready,
        zone: String::new(),
        rack: String::new(),
        labels: BTreeMap::new(),
        total_vcpus: Vcpus(16),
        free_vcpus: Vcpus(16),
        total_memory: MiB(65_536),
        free_memory: MiB(65_536),
        load_permille: 0,
        idle: BTreeMap::new(),
        members: MemberCounts::default(),
        traffic: Traffic::default(),
    }
}

/// A first primary, on a cluster of three equal hosts.
pub(crate) fn question(terminal: &str) -> PlacementQuestion {
    PlacementQuestion {
        node: format!("{terminal}/exec-1").parse().unwrap(),
        purpose: Purpose::Primary,
        wanted: 10,
        reasons: true,
        vcpus: Vcpus(2),
        memory: MiB(2048),
        environment: "desktop".to_owned(),
        template: None,
        terminal_labels: BTreeMap::new(),
        environment_labels: BTreeMap::new(),
        members: Vec::new(),
        siblings: Vec::new(),
        hosts: ["a", "b", "c"].map(row).into(),
    }
}

/// An error with all that led to it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
