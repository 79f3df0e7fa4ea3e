//! Owns what this host remembers of its policies folder: a change of it is told from what was always there.
//!
//! Promises: a file that cannot be used counts as unchanged, never as removed; what was proposed and refused is not
//! remembered as done. Must not do: propose.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use understudy_core::sets::{FolderState, PolicySets};
use understudy_policy::{Folder, SETTINGS_FILE};

/// The file of the memory.
const FILE: &str = "folder.json";

/// A change that was proposed and is not decided yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Proposed {
    generation: u64,
    before: FolderState,
}

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// The folder as the cluster knows it; none on a host that never looked.
    folder: Option<FolderState>,
    proposed: Option<Proposed>,
}

/// What this host remembers of its folder.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    kept: Kept,
}

impl Memory {
    /// Reads the memory in `dir`. One that cannot be read is as good as none: the host is taken for a fresh one.
    pub(super) fn open(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let kept = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(file = %path.display(), %error, "what was known of the policies folder cannot be read: it is looked at as a fresh one");
                Kept::default()
            }),
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::warn!(file = %path.display(), %error, "what was known of the policies folder cannot be read: it is looked at as a fresh one");
                }
                Kept::default()
            }
        };
        Self { path, kept }
    }

    /// The folder as the cluster knows it; none on a host that never looked.
    pub(super) fn folder(&self) -> Option<&FolderState> {
        self.kept.folder.as_ref()
    }

    /// The cluster has the folder as it is.
    pub(super) fn is_known(&mut self, folder: FolderState) {
        self.keep(Kept { folder: Some(folder), proposed: self.kept.proposed.clone() });
    }

    /// The folder was proposed as this generation.
    pub(super) fn was_proposed(&mut self, folder: FolderState, generation: u64) {
        // A second change before the first is decided is undone together with it.
        let before = match self.kept.proposed.take() {
            Some(earlier) => earlier.before,
            None => self.kept.folder.clone().unwrap_or_default(),
        };
        self.keep(Kept { folder: Some(folder), proposed: Some(Proposed { generation, before }) });
    }

    /// Whether something is proposed and not decided.
    pub(super) fn is_pending(&self) -> bool {
        self.kept.proposed.is_some()
    }

    /// Looks what became of the proposal. Gives the folder that was refused.
    pub(super) fn settle(&mut self, sets: &PolicySets) -> Option<FolderState> {
        let proposed = self.kept.proposed.clone()?;
        let decided = |generation: u64| generation >= proposed.generation;
        if sets.active.as_ref().is_some_and(|set| decided(set.value.generation)) {
            self.keep(Kept { proposed: None, ..self.kept.clone() });
            return None;
        }
        if sets.candidate.is_none() && sets.refused.as_ref().is_some_and(|set| decided(set.value.generation))
        {
            let refused = self.kept.folder.clone();
            self.keep(Kept { folder: Some(proposed.before), proposed: None });
            return refused;
        }
        None
    }

    fn keep(&mut self, kept: Kept) {
        if self.kept == kept {
            return;
        }
        self.kept = kept;
        let written = serde_json::to_vec(&self.kept)
            .map_err(std::io::Error::other)
            .and_then(|bytes| replace(&self.path, &bytes));
        if let Err(error) = written {
            tracing::warn!(file = %self.path.display(), %error, "what is known of the policies folder cannot be kept: after a restart a change is taken for what was always there");
        }
    }
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, bytes)?;
    std::fs::File::open(&partial)?.sync_all()?;
    std::fs::rename(partial, path)
}

/// The state of a folder. A file that is there and cannot be used stays as it was `before`.
pub(super) fn state(folder: &Folder, before: Option<&FolderState>) -> FolderState {
    let mut components: std::collections::BTreeMap<String, String> =
        folder.components.iter().map(|(name, digest)| (name.clone(), digest.to_string())).collect();
    for name in folder.names.iter().filter(|name| !folder.components.contains_key(*name)) {
        if let Some(digest) = before.and_then(|before| before.components.get(name)) {
            components.insert(name.clone(), digest.clone());
        }
    }
    let unreadable = folder.faults.iter().any(|fault| match fault {
        understudy_policy::LoadFault::File { file, .. } => file.ends_with(SETTINGS_FILE),
        _ => false,
    });
    let settings =
        if unreadable { before.and_then(|before| before.settings.clone()) } else { folder.settings.clone() };
    FolderState { components, settings }
}

#[cfg(test)]
mod tests {
    use understudy_core::model::units::UnixMillis;
    use understudy_core::model::view::Versioned;
    use understudy_core::sets::{PolicySetRecord, RefusedSet};
    use understudy_policy::{Digest, FileFault, LoadFault};

    use super::*;

    fn folder(mark: &str) -> FolderState {
        FolderState { components: [("p".to_owned(), mark.to_owned())].into(), settings: None }
    }

    fn record(generation: u64) -> Option<Versioned<PolicySetRecord>> {
        let value = PolicySetRecord {
            generation,
            components: Default::default(),
            settings: String::new(),
            suspended: Default::default(),
            restored: Default::default(),
            by: "host1".parse().unwrap(),
        };
        Some(Versioned { value, revision: 1 })
    }

    fn refused(generation: u64) -> PolicySets {
        let reason = "why".to_owned();
        let value = RefusedSet {
            generation,
            by: "host1".parse().unwrap(),
            reason,
            at: UnixMillis(0),
            refusers: Default::default(),
        };
        PolicySets { refused: Some(Versioned { value, revision: 1 }), ..PolicySets::default() }
    }

    #[test]
    fn a_refused_change_is_forgotten_and_a_taken_one_is_not_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Memory::open(dir.path());
        assert_eq!(open().folder(), None);
        open().is_known(folder("old"));
        open().was_proposed(folder("new"), 5);
        assert_eq!(open().folder(), Some(&folder("new")));
        assert_eq!(open().settle(&refused(4)), None, "an earlier one");
        assert_eq!(
            open().settle(&PolicySets { candidate: record(5), ..refused(5) }),
            None,
            "a newer one stands"
        );
        assert_eq!(open().settle(&refused(5)), Some(folder("new")));
        assert_eq!(open().folder(), Some(&folder("old")));
        open().was_proposed(folder("newer"), 6);
        let taken = PolicySets { active: record(6), ..PolicySets::default() };
        assert_eq!(open().settle(&taken), None);
        assert_eq!(open().settle(&refused(9)), None, "nothing is open any more");
        assert_eq!(open().folder(), Some(&folder("newer")));
    }

    #[test]
    fn two_changes_before_a_decision_are_undone_together() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::open(dir.path());
        memory.is_known(folder("old"));
        memory.was_proposed(folder("1"), 5);
        memory.was_proposed(folder("2"), 6);
        assert_eq!(memory.settle(&refused(6)), Some(folder("2")));
        assert_eq!(memory.folder(), Some(&folder("old")));
    }

    #[test]
    fn a_file_that_cannot_be_used_is_neither_changed_nor_removed() {
        let fault =
            |file: &str| LoadFault::File { file: Path::new("/p").join(file), source: FileFault::CoreModule };
        let good = Digest::of(b"good");
        let seen = Folder {
            listed: true,
            components: [("good".to_owned(), good.clone())].into(),
            settings: None,
            names: ["good".to_owned(), "bad".to_owned(), "new".to_owned()].into(),
            faults: vec![fault("bad.wasm"), fault("new.wasm"), fault(SETTINGS_FILE)],
        };
        let before = FolderState {
            components: [("bad".to_owned(), "b".to_owned()), ("gone".to_owned(), "g".to_owned())].into(),
            settings: Some("s".to_owned()),
        };
        let now = state(&seen, Some(&before));
        let names: Vec<(&str, &str)> = now.components.iter().map(|(n, d)| (n.as_str(), d.as_str())).collect();
        assert_eq!(names, [("bad", "b"), ("good", good.as_str())]);
        assert_eq!(now.settings.as_deref(), Some("s"));
        assert_eq!(
            state(&Folder { faults: Vec::new(), ..seen }, Some(&before)).settings,
            None,
            "the file is gone"
        );
    }
}
