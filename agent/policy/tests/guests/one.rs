//! One policy by itself: loaded from bytes, asked, and what it says as text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use understudy_core::model::units::MiB;
use understudy_core::policy::{Pick, PlacementQuestion};
use understudy_policy::{Library, Limits, PolicySet, Settings};

use super::common::chain;

/// A policy that decides alone.
pub(crate) struct One {
    pub(crate) set: PolicySet,
}

impl One {
    /// With limits that no guest that behaves runs into, however busy the machine and whatever its language.
    ///
    /// The library stays from run to run, because compiling a component of 18 MB takes a minute.
    pub(crate) fn load(name: &str, bytes: &[u8], parameters: &[(&str, &str)]) -> Result<Self, String> {
        let library = Library::open(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("library")).unwrap();
        let limits = Limits { deadline: Duration::from_secs(10), memory: MiB(256), ..Limits::default() };
        let digest = library.add(bytes, limits.file_size).unwrap();
        let mut settings = Settings::without_file(limits);
        let mut policy = settings.of(name);
        policy.parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        settings.policies.insert(name.to_owned(), policy);
        let components = BTreeMap::from([(name.to_owned(), digest)]);
        let (set, faults) = PolicySet::load(&library, &components, &settings, &BTreeSet::new());
        match faults.first() {
            Some(fault) => Err(chain(fault)),
            None => Ok(Self { set }),
        }
    }

    /// What it picks.
    pub(crate) fn place(&self, question: &PlacementQuestion) -> Result<Vec<Pick>, String> {
        self.set.ask_placement(question).outcome.map(|answer| answer.picks).map_err(|fault| chain(&fault))
    }

    /// The rows that it picks.
    pub(crate) fn rows(&self, question: &PlacementQuestion) -> Result<Vec<u32>, String> {
        Ok(self.place(question)?.iter().map(|pick| pick.index).collect())
    }
}
