//! What the tests of this crate share: a folder of policies, guests from text, questions, and what a damaged component
//! must not do.
#![allow(dead_code, unused_imports, reason = "each test file uses a part")]

pub(crate) mod guests;
pub(crate) mod mutant;
pub(crate) mod planning;
pub(crate) mod samples;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use understudy_policy::{FolderWatch, Library, Limits, LoadFault, PolicySet, Settings};

pub(crate) use guests::{NOT_TRIAL, component, component_v02, module, module_of, placement_guest};
pub(crate) use samples::{question, row};

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

/// An error with all that led to it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
