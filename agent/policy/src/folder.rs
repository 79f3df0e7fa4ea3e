//! Owns the look at a folder of policies that people copy files into.
//!
//! Promises: what is told of a file is the whole of it, as it lay there unchanged for two looks and while it was read;
//! nothing outside the folder is read, nothing too large, and nothing that reading could wait for. Must not do: decide
//! what a change means.
//!
//! ```text
//! seen -> the same at the next look -> read, the same afterwards -> told
//!   \________ different: seen ________/___________________________/
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc::O_NONBLOCK;
use understudy_core::model::units::MiB;

use crate::fault::{FileFault, LoadFault};
use crate::inspect::inspect;
use crate::library::Library;
use crate::names::{Digest, is_name};

/// The settings' file in a folder of policies.
pub const SETTINGS_FILE: &str = "policies.toml";
const SETTINGS_SIZE: MiB = MiB(1);
const COMPONENT_END: &str = ".wasm";
/// Files that belong together come one after the other: looks that wait for all to be settled. One that never settles
/// holds up the others no longer than that.
const PATIENCE_LOOKS: u32 = 3;

/// What lies in a folder.
#[derive(Debug, Clone, Default)]
pub struct Folder {
    /// Whether the folder could be listed. Where not, nothing is known of its files; they are not gone.
    pub listed: bool,
    /// Components by the policy's name; they are in the library.
    pub components: BTreeMap<String, Digest>,
    /// The text of `policies.toml`, where there is one.
    pub settings: Option<String>,
    /// Names with a file, good or bad: a name that is missing here has no file.
    pub names: BTreeSet<String>,
    /// What is wrong with which file.
    pub faults: Vec<LoadFault>,
}

impl Folder {
    /// Equal texts are equal folders: faults cannot be compared otherwise.
    fn text(&self) -> String {
        format!("{self:?}")
    }
}

/// What a file is known by, without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    target: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Of the three times, the one that nobody can set.
    changed: (i64, i64),
}

impl Stamp {
    fn of(target: PathBuf, meta: &Metadata) -> Self {
        Self {
            target,
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A file at one look.
#[derive(Debug, Clone)]
struct Sight {
    stamp: Result<Stamp, FileFault>,
    /// Equal for equal stamps and equal faults.
    text: String,
}

#[derive(Debug, Clone)]
enum Content {
    Component(String, Digest),
    Settings(String),
}

#[derive(Debug)]
struct Entry {
    /// The sight that it was read at.
    text: String,
    content: Result<Content, FileFault>,
}

/// Looks at one folder, again and again.
#[derive(Debug)]
pub struct FolderWatch {
    dir: PathBuf,
    limit: MiB,
    before: Option<BTreeMap<String, Sight>>,
    waited: u32,
    entries: BTreeMap<String, Entry>,
    reported: Option<String>,
}

impl FolderWatch {
    /// Watch `dir`, where components may be as large as `limit`.
    #[must_use]
    pub fn new(dir: &Path, limit: MiB) -> Self {
        Self { dir: dir.to_owned(), limit, before: None, waited: 0, entries: BTreeMap::new(), reported: None }
    }

    /// What lies there, if it is settled and differs from what was told before; components go to the library. A look
    /// at files that have not changed reads none of them.
    pub fn look(&mut self, library: &Library) -> Option<Folder> {
        self.look_and(library, &mut |_| {})
    }

    /// As [`Self::look`]; `reading` is called while a file is being read.
    fn look_and(&mut self, library: &Library, reading: &mut dyn FnMut(&Path)) -> Option<Folder> {
        let folder = match sights(&self.dir) {
            Ok(sights) => {
                let before = self.before.replace(sights.clone())?;
                let moving = moving(&before, &sights);
                if !moving.is_empty() && self.waited < PATIENCE_LOOKS {
                    self.waited += 1;
                    return None;
                }
                self.waited = 0;
                self.take(&sights, &moving, library, reading);
                self.folder()
            }
            Err(source) => {
                self.before = None;
                let fault = LoadFault::Folder { dir: self.dir.clone(), source: Arc::new(source) };
                Folder { faults: vec![fault], ..Folder::default() }
            }
        };
        let text = folder.text();
        if self.reported.as_ref() == Some(&text) {
            return None;
        }
        self.reported = Some(text);
        Some(folder)
    }

    /// Read what is settled and new. What moves stays known as it was.
    fn take(
        &mut self,
        sights: &BTreeMap<String, Sight>,
        moving: &BTreeSet<String>,
        library: &Library,
        reading: &mut dyn FnMut(&Path),
    ) {
        self.entries.retain(|name, _| sights.contains_key(name) || moving.contains(name));
        for (name, Sight { stamp, text }) in sights.iter().filter(|(name, _)| !moving.contains(*name)) {
            let is_known = self.entries.get(name).is_some_and(|entry| {
                entry.text == *text
                    && match &entry.content {
                        Ok(Content::Component(_, digest)) => library.has(digest),
                        // The library may have room by then.
                        Err(FileFault::Keep(_)) => false,
                        Ok(Content::Settings(_)) | Err(_) => true,
                    }
            });
            if is_known {
                continue;
            }
            let content = match stamp {
                Ok(stamp) => self.content(name, stamp, library, reading),
                Err(fault) => Some(Err(fault.clone())),
            };
            if let Some(content) = content {
                self.entries.insert(name.clone(), Entry { text: text.clone(), content });
            }
        }
    }

    /// None where the file changed meanwhile.
    fn content(
        &self,
        name: &str,
        stamp: &Stamp,
        library: &Library,
        reading: &mut dyn FnMut(&Path),
    ) -> Option<Result<Content, FileFault>> {
        let limit = if name == SETTINGS_FILE { SETTINGS_SIZE } else { self.limit };
        let bytes = match read(stamp, limit, reading) {
            Ok(bytes) => bytes?,
            Err(fault) => return Some(Err(fault)),
        };
        if name == SETTINGS_FILE {
            return Some(String::from_utf8(bytes).map(Content::Settings).map_err(|_| FileFault::NoText));
        }
        let name = name.strip_suffix(COMPONENT_END).filter(|name| is_name(name));
        let kept = name.ok_or(FileFault::Name).and_then(|name| {
            inspect(&bytes)?;
            let digest = library.add(&bytes, limit).map_err(FileFault::Keep)?;
            Ok(Content::Component(name.to_owned(), digest))
        });
        Some(kept)
    }

    fn folder(&self) -> Folder {
        let mut folder = Folder { listed: true, ..Folder::default() };
        for (name, entry) in &self.entries {
            folder
                .names
                .extend(name.strip_suffix(COMPONENT_END).filter(|name| is_name(name)).map(str::to_owned));
            match &entry.content {
                Ok(Content::Component(policy, digest)) => {
                    folder.components.insert(policy.clone(), digest.clone());
                }
                Ok(Content::Settings(text)) => folder.settings = Some(text.clone()),
                Err(source) => {
                    let file = self.dir.join(name);
                    folder.faults.push(LoadFault::File { file, source: source.clone() });
                }
            }
        }
        folder
    }
}

/// Names whose file came, went or changed between two looks.
fn moving(before: &BTreeMap<String, Sight>, after: &BTreeMap<String, Sight>) -> BTreeSet<String> {
    let text =
        |sights: &BTreeMap<String, Sight>, name: &String| sights.get(name).map(|sight| sight.text.clone());
    before
        .keys()
        .chain(after.keys())
        .filter(|name| text(before, name) != text(after, name))
        .cloned()
        .collect()
}

/// Every file that counts, by its name. A name that is not UTF-8 is shown as well as can be.
fn sights(dir: &Path) -> std::io::Result<BTreeMap<String, Sight>> {
    let dir = dir.canonicalize()?;
    let mut sights = BTreeMap::new();
    for entry in dir.read_dir()? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == SETTINGS_FILE || (name.ends_with(COMPONENT_END) && !name.starts_with('.')) {
            let stamp = stamp(&dir, &path);
            let text = format!("{stamp:?}");
            sights.insert(name, Sight { stamp, text });
        }
    }
    Ok(sights)
}

/// The stamp of a regular file inside `dir`, which is canonical.
fn stamp(dir: &Path, file: &Path) -> Result<Stamp, FileFault> {
    let failed = |error| FileFault::Read(Arc::new(error));
    let target = file.canonicalize().map_err(failed)?;
    if !target.starts_with(dir) {
        return Err(FileFault::Outside(target));
    }
    let meta = target.metadata().map_err(failed)?;
    if meta.is_file() { Ok(Stamp::of(target, &meta)) } else { Err(FileFault::Kind) }
}

/// The whole content of the file with this stamp; none where the file has another before or after it was read.
fn read(stamp: &Stamp, limit: MiB, reading: &mut dyn FnMut(&Path)) -> Result<Option<Vec<u8>>, FileFault> {
    if stamp.size > limit.bytes() {
        return Err(FileFault::Size { limit });
    }
    let failed = |error| FileFault::Read(Arc::new(error));
    // What was a file a moment ago may be a pipe, and opening that would wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&stamp.target).map_err(failed)?;
    if !is_still(&file, stamp).map_err(failed)? {
        return Ok(None);
    }
    reading(&stamp.target);
    let mut bytes = Vec::new();
    // One byte more than there were tells of a file that grows.
    let length = (&file).take(stamp.size.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    let is_whole = length as u64 == stamp.size && is_still(&file, stamp).map_err(failed)?;
    Ok(is_whole.then_some(bytes))
}

fn is_still(file: &File, stamp: &Stamp) -> std::io::Result<bool> {
    Ok(Stamp::of(stamp.target.clone(), &file.metadata()?) == *stamp)
}

#[cfg(test)]
mod tests;
