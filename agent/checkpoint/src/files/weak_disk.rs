//! A disk in memory that keeps only what POSIX promises when the power goes, and that can fail.
//!
//! Bytes are safe after [`WriteFile::sync`], names after [`Files::sync_dir`] of their folder. Everything else is, after
//! a loss of power, there or not there, each name and each file by itself; unsynced bytes may be cut or zero.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{Files, WriteFile};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Dir,
    File(usize),
}

#[derive(Clone, Debug, Default)]
struct Content {
    written: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    root: PathBuf,
    names: BTreeMap<PathBuf, Name>,
    synced_names: BTreeMap<PathBuf, Name>,
    files: Vec<Content>,
    steps: usize,
    /// The step at which an operation fails, and whether all later ones do.
    fault: Option<(usize, Fault)>,
}

/// How a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// One operation fails, the next ones do not.
    Once,
    /// Nothing is done any more.
    PowerLost,
}

#[derive(Clone)]
pub(crate) struct WeakDisk(Arc<Mutex<State>>);

impl WeakDisk {
    pub(crate) fn new(root: &Path) -> Self {
        let names = BTreeMap::from([(root.to_owned(), Name::Dir)]);
        let state = State { root: root.to_owned(), synced_names: names.clone(), names, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    pub(crate) fn fail_at(&self, step: usize, fault: Fault) {
        self.0.lock().unwrap().fault = Some((step, fault));
    }

    /// How many operations were asked for.
    pub(crate) fn steps(&self) -> usize {
        self.0.lock().unwrap().steps
    }

    /// Every name there is now.
    pub(crate) fn paths(&self) -> BTreeSet<PathBuf> {
        self.0.lock().unwrap().names.keys().cloned().collect()
    }

    /// What is on the disk when the power comes back: one of the many outcomes, chosen by `seed`.
    pub(crate) fn after_power_loss(&self, seed: u64) -> Self {
        let state = self.0.lock().unwrap();
        let mut random = seed;
        let mut draw = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(random >> 33).unwrap() % below
        };
        let mut names = BTreeMap::new();
        let all: BTreeSet<&PathBuf> = state.names.keys().chain(state.synced_names.keys()).collect();
        for path in all {
            let (new, old) = (state.names.get(path), state.synced_names.get(path));
            // Sorted: a folder comes before what is in it.
            let folder = path.parent().and_then(|parent| names.get(parent));
            let lost_folder = folder != Some(&Name::Dir) && *path != state.root;
            if let Some(name) = [new, old][draw(2)].filter(|_| !lost_folder) {
                names.insert(path.clone(), *name);
            }
        }
        let mut files = Vec::new();
        for content in &state.files {
            let mut bytes = if content.written == content.synced || draw(3) == 0 {
                content.synced.clone()
            } else {
                content.written[..draw(content.written.len() + 1)].to_vec()
            };
            if bytes != content.synced && draw(2) == 0 {
                // The size went to the disk before the bytes did.
                bytes.resize(content.written.len(), 0);
            }
            files.push(Content { written: bytes.clone(), synced: bytes });
        }
        let root = state.root.clone();
        let state = State { root, synced_names: names.clone(), names, files, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn step<T>(&self, operation: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.0.lock().unwrap();
        let step = state.steps;
        state.steps += 1;
        match state.fault {
            Some((at, Fault::Once)) if step == at => Err(io::Error::other("the disk failed")),
            Some((at, Fault::PowerLost)) if step >= at => Err(io::Error::other("the power is gone")),
            _ => operation(&mut state),
        }
    }
}

impl State {
    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.names.get(path) {
            Some(Name::File(file)) => Ok(*file),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn in_folder(&self, path: &Path) -> io::Result<()> {
        let parent = path.parent().and_then(|parent| self.names.get(parent));
        if parent == Some(&Name::Dir) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

struct WeakFile(WeakDisk, usize);

impl Write for WeakFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Short writes are legal, and callers must cope.
        let taken = bytes.len().min(40_000);
        self.0.step(|state| {
            state.files[self.1].written.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteFile for WeakFile {
    fn sync(&mut self) -> io::Result<()> {
        self.0.step(|state| {
            let content = &mut state.files[self.1];
            content.synced = content.written.clone();
            Ok(())
        })
    }
}

impl Files for WeakDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.step(|state| {
            state.in_folder(path)?;
            if state.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.files.push(Content::default());
            state.names.insert(path.to_owned(), Name::File(state.files.len() - 1));
            Ok(Box::new(WeakFile(self.clone(), state.files.len() - 1)) as Box<dyn WriteFile>)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|state| {
            state.in_folder(to)?;
            let file = state.file(from)?;
            state.names.remove(from);
            state.names.insert(to.to_owned(), Name::File(file));
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step(|state| {
            let inside = |path: &PathBuf| path.parent() == Some(dir);
            state.synced_names.retain(|path, _| !inside(path));
            let names: Vec<_> = state.names.iter().filter(|(path, _)| inside(path)).collect();
            let names: Vec<_> = names.into_iter().map(|(path, name)| (path.clone(), *name)).collect();
            state.synced_names.extend(names);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(|state| {
            state.names.remove(path);
            Ok(())
        })
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.step(|state| {
            if state.names.keys().any(|path| path.parent() == Some(dir)) {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
            state.names.remove(dir);
            Ok(())
        })
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.step(|state| {
            state.in_folder(dir)?;
            state.names.insert(dir.to_owned(), Name::Dir);
            Ok(())
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.step(|state| Ok(state.names.keys().filter(|path| path.parent() == Some(dir)).cloned().collect()))
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        self.step(|state| Ok(state.file(path).ok().map(|file| state.files[file].written.len() as u64)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        self.step(|state| {
            let content = state.files[state.file(path)?].written.clone();
            Ok(Box::new(Cursor::new(content)) as Box<dyn Read + Send>)
        })
    }
}
