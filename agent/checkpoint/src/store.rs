//! The folder of checkpoints: what is complete in it, what may come in, what is kept.
//!
//! Owns an index of complete checkpoints and seen epochs, read from the folder when it is opened and changed only
//! after the disk was. Must not be opened twice at a time: the agent has one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use understudy_core::model::ids::{Epoch, NodeId};
use understudy_core::model::records::CheckpointId;

use crate::digest::{Digest, digest_of};
use crate::files::{self, Disk, Files};
use crate::incoming::{Expected, FinishError, Incoming};
use crate::layout::{self, EPOCH, IMAGE, MANIFEST};
use crate::manifest::{self, BYTES_MAX, Damage, Description, HEAD_BYTES, Manifest};

/// How many complete checkpoints of a node are kept: the newest, and the one before it should the newest be damaged.
const GENERATIONS: usize = 2;
/// How many are kept that are newer than what the cluster's record names: a write that names one may be on its way. The
/// sender waits for each write's outcome, so that there are one or two.
const NEWER: usize = 8;

/// What the disk did not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be opened or made.
    #[error("cannot open the checkpoints' folder {0}: check its path and rights")]
    Open(PathBuf, #[source] io::Error),
    /// A new file cannot be made.
    #[error("cannot begin {0}: check the room on the checkpoints' disk")]
    Create(PathBuf, #[source] io::Error),
    /// A file cannot be written or made durable.
    #[error("cannot write {0}: check the room on the checkpoints' disk")]
    Write(PathBuf, #[source] io::Error),
    /// A file cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A file cannot be removed.
    #[error("cannot remove {0}")]
    Remove(PathBuf, #[source] io::Error),
    /// The highest epoch seen of a node is unreadable, so that nothing older could be refused.
    #[error(
        "the file {0} does not hold an epoch: write the node's epoch into it, or remove the node's folder"
    )]
    Epoch(PathBuf),
}

/// Why a checkpoint may not come in.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// It is of an epoch older than one that was seen (SAFE-4).
    #[error("checkpoint {id} of {node} is refused: epoch {seen} was seen")]
    OldEpoch {
        /// The node.
        node: NodeId,
        /// The checkpoint.
        id: CheckpointId,
        /// The highest epoch seen.
        seen: Epoch,
    },
    /// It, or a newer one, is complete already.
    #[error("checkpoint {id} of {node} is refused: {newest} is complete, count on from there")]
    NotNewer {
        /// The node.
        node: NodeId,
        /// The checkpoint.
        id: CheckpointId,
        /// The newest complete one.
        newest: CheckpointId,
    },
    /// The disk did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why there is no image to restore.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// This host has no such checkpoint.
    #[error("checkpoint {1} of {0} is not kept here")]
    Unknown(NodeId, CheckpointId),
    /// It was complete once and is damaged.
    #[error("checkpoint {1} of {0} cannot be used")]
    Damaged(NodeId, CheckpointId, #[source] Damage),
    /// The disk did not give it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A complete checkpoint whose manifest, size and beginning were just checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What is known of it.
    pub manifest: Manifest,
    /// The file that `virDomainRestore` takes.
    pub path: PathBuf,
}

/// A name in the store's folder for a file that is only passing through, such as an image before it is sent. The file
/// is made by whoever uses the name, and removed with this value or when the store is next opened.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Where the file is to be.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(Disk.remove(&self.path));
    }
}

#[derive(Debug, Default)]
struct Held {
    seen: Epoch,
    /// Whether the disk says so too. Not so after a removal that failed half way.
    seen_is_durable: bool,
    complete: BTreeSet<CheckpointId>,
    /// The file that should say which epoch was seen and does not: nothing comes in for the node until it does, because
    /// nothing older could be refused. What is complete is there all the same.
    unreadable: Option<PathBuf>,
    /// Never pruned: what the cluster's record names; after a start, until that is known, all that is found.
    named: BTreeSet<CheckpointId>,
}

/// What is in the folder, by node.
#[derive(Debug, Default)]
pub(crate) struct Index(BTreeMap<NodeId, Held>);

impl Index {
    pub(crate) fn seen(&self, node: &NodeId) -> Epoch {
        self.0.get(node).map_or(Epoch(0), |held| held.seen)
    }

    pub(crate) fn newest(&self, node: &NodeId) -> Option<CheckpointId> {
        self.0.get(node)?.complete.last().copied()
    }

    pub(crate) fn completed(&mut self, node: &NodeId, id: CheckpointId) {
        self.0.entry(node.clone()).or_default().complete.insert(id);
    }
}

pub(crate) struct Shared {
    pub(crate) root: PathBuf,
    pub(crate) files: Box<dyn Files>,
    index: Mutex<Index>,
    next: AtomicU64,
}

impl Shared {
    /// The index is changed in single steps after the disk was, so that a panic elsewhere leaves it true.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free name for a file that is not yet what it is to be.
    pub(crate) fn aside(&self) -> PathBuf {
        layout::incoming(&self.root).join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Removes checkpoints: their manifests first, and durably, so that a manifest never comes back without its image.
    fn remove(&self, index: &mut Index, node: &NodeId, ids: &[CheckpointId]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let remove = |id: CheckpointId, kind: &str| {
            let path = layout::file(&self.root, node, id, kind);
            self.files.remove(&path).map_err(|source| StoreError::Remove(path, source))
        };
        for id in ids {
            remove(*id, MANIFEST)?;
            if let Some(held) = index.0.get_mut(node) {
                held.complete.remove(id);
                held.named.remove(id);
            }
        }
        let folder = layout::node(&self.root, node);
        self.files.sync_dir(&folder).map_err(|source| StoreError::Remove(folder, source))?;
        ids.iter().try_for_each(|id| remove(*id, IMAGE))
    }

    /// Removes what is neither among the newest nor named, and may not be named in a moment.
    pub(crate) fn prune(&self, index: &mut Index, node: &NodeId) -> Result<usize, StoreError> {
        let Some(held) = index.0.get(node) else { return Ok(0) };
        let is_kept = |at: usize, id: &CheckpointId| {
            let is_newer = held.named.last().is_none_or(|named| id > named);
            at < if is_newer { NEWER } else { GENERATIONS } || held.named.contains(id)
        };
        let old = held.complete.iter().rev().enumerate().filter(|(at, id)| !is_kept(*at, id));
        let old: Vec<CheckpointId> = old.map(|(_, id)| *id).collect();
        self.remove(index, node, &old).map(|()| old.len())
    }

    /// Makes a node's folder if need be and its highest epoch seen durable.
    fn raise(&self, index: &mut Index, node: &NodeId, epoch: Epoch) -> Result<(), StoreError> {
        let seen = index.seen(node);
        if let Some(path) = index.0.get(node).and_then(|held| held.unreadable.clone()) {
            return Err(StoreError::Epoch(path));
        }
        if epoch <= seen && index.0.get(node).is_some_and(|held| held.seen_is_durable) {
            return Ok(());
        }
        let epoch = epoch.max(seen);
        let folder = layout::node(&self.root, node);
        let failed = |source| StoreError::Write(folder.clone(), source);
        self.files.create_dir(&folder).map_err(failed)?;
        self.files.sync_dir(&layout::nodes(&self.root)).map_err(failed)?;
        let aside = self.aside();
        let written =
            files::replace(&*self.files, &aside, &folder.join(EPOCH), format!("{epoch}\n").as_bytes());
        written.map_err(|source| {
            drop(self.files.remove(&aside));
            failed(source)
        })?;
        let held = index.0.entry(node.clone()).or_default();
        (held.seen, held.seen_is_durable) = (epoch, true);
        Ok(())
    }
}

/// Checkpoints in a folder. Clones share it.
#[derive(Clone)]
pub struct ImageStore {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageStore").field("root", &self.shared.root).finish_non_exhaustive()
    }
}

impl ImageStore {
    /// Opens a folder, making it if need be, and removes what was left half received.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(root).map_err(|source| StoreError::Open(root.to_owned(), source))?;
        Self::open_on(root, Box::new(Disk))
    }

    /// Opens a folder whatever is wrong with it, and says what: what can be read may be restored, and what cannot be written
    /// fails when it is tried. For whoever must not stay away for one bad file.
    #[must_use]
    pub fn open_as_it_is(root: &Path) -> (Self, Vec<StoreError>) {
        let made = std::fs::create_dir_all(root);
        let (store, mut faults) = Self::look(root, Box::new(Disk));
        faults.splice(0..0, made.err().map(|source| StoreError::Open(root.to_owned(), source)));
        (store, faults)
    }

    pub(crate) fn open_on(root: &Path, files: Box<dyn Files>) -> Result<Self, StoreError> {
        let (store, faults) = Self::look(root, files);
        faults.into_iter().next().map_or(Ok(store), Err)
    }

    fn look(root: &Path, files: Box<dyn Files>) -> (Self, Vec<StoreError>) {
        let mut faults = Vec::new();
        let failed = |source| StoreError::Open(root.to_owned(), source);
        let (incoming, nodes) = (layout::incoming(root), layout::nodes(root));
        let made = files.create_dir(&incoming).and_then(|()| files.create_dir(&nodes));
        faults.extend(made.and_then(|()| files.sync_dir(root)).map_err(failed).err());
        let mut list = |folder: &Path| {
            let listed = files.list(folder).map_err(failed);
            listed.map_err(|fault| faults.push(fault)).unwrap_or_default()
        };
        let (leftovers, folders) = (list(&incoming), list(&nodes));
        for leftover in leftovers {
            let removed = files.remove(&leftover);
            faults.extend(removed.map_err(|source| StoreError::Remove(leftover, source)).err());
        }
        let mut index = Index::default();
        for folder in folders {
            // Anything else was put there by somebody else.
            if let Some(node) = layout::node_of(&folder) {
                let (held, more) = read_node(&*files, &folder);
                index.0.insert(node, held);
                faults.extend(more);
            }
        }
        let shared =
            Shared { root: root.to_owned(), files, index: Mutex::new(index), next: AtomicU64::new(0) };
        (Self { shared: Arc::new(shared) }, faults)
    }

    /// The highest epoch seen of a node; 0 for an unknown one.
    #[must_use]
    pub fn seen_epoch(&self, node: &NodeId) -> Epoch {
        self.shared.lock().seen(node)
    }

    /// From now on, checkpoints of epochs older than this are refused. Durable when it returns; lower ones change
    /// nothing.
    pub fn saw_epoch(&self, node: &NodeId, epoch: Epoch) -> Result<(), StoreError> {
        self.shared.raise(&mut self.shared.lock(), node, epoch)
    }

    /// Begins to receive a checkpoint.
    pub fn begin(&self, node: &NodeId, id: CheckpointId) -> Result<Incoming, BeginError> {
        let mut index = self.shared.lock();
        let seen = index.seen(node);
        if id.epoch < seen {
            return Err(BeginError::OldEpoch { node: node.clone(), id, seen });
        }
        if let Some(newest) = index.newest(node).filter(|newest| id <= *newest) {
            return Err(BeginError::NotNewer { node: node.clone(), id, newest });
        }
        self.shared.raise(&mut index, node, id.epoch)?;
        drop(index);
        Ok(Incoming::new(Arc::clone(&self.shared), node.clone(), id)?)
    }

    /// Receives a whole checkpoint from a reader.
    pub fn receive(
        &self,
        node: &NodeId,
        id: CheckpointId,
        image: &mut dyn Read,
        expected: Expected,
        description: Description,
    ) -> Result<Manifest, ReceiveError> {
        let mut incoming = self.begin(node, id)?;
        // One byte more than announced is enough to know that it is not what was announced.
        let mut limited = image.take(expected.bytes.saturating_add(1));
        io::copy(&mut limited, &mut incoming)
            .map_err(|source| ReceiveError::Copy(node.clone(), id, source))?;
        Ok(incoming.finish(expected, description)?)
    }

    /// The nodes of which anything is kept, be it only the highest epoch.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.shared.lock().0.keys().cloned().collect()
    }

    /// The complete checkpoints of a node, oldest first, as far as names tell.
    #[must_use]
    pub fn complete(&self, node: &NodeId) -> Vec<CheckpointId> {
        self.shared.lock().0.get(node).map(|held| held.complete.iter().copied().collect()).unwrap_or_default()
    }

    /// The newest checkpoint of a node that can be used, and what was found wrong with newer ones.
    pub fn newest_complete(&self, node: &NodeId) -> Result<(Option<Image>, Vec<ImageError>), StoreError> {
        let mut damaged = Vec::new();
        for id in self.complete(node).into_iter().rev() {
            match self.image(node, id) {
                Ok(image) => return Ok((Some(image), damaged)),
                Err(ImageError::Store(error)) => return Err(error),
                Err(error) => damaged.push(error),
            }
        }
        Ok((None, damaged))
    }

    /// A complete checkpoint, after a look at its manifest, its size and its beginning: milliseconds, since it is on
    /// the way of a failover.
    pub fn image(&self, node: &NodeId, id: CheckpointId) -> Result<Image, ImageError> {
        if !self.complete(node).contains(&id) {
            return Err(ImageError::Unknown(node.clone(), id));
        }
        let image = self.look_at(node, id)?;
        image.map_err(|damage| ImageError::Damaged(node.clone(), id, damage))
    }

    /// Reads a whole image again and compares it with its digest; seconds for a large one.
    pub fn verify(&self, image: &Image) -> Result<(), ImageError> {
        let (node, id) = (&image.manifest.node, image.manifest.id);
        let failed = |source| StoreError::Read(image.path.clone(), source);
        let mut file = self.shared.files.open(&image.path).map_err(failed)?;
        let (digest, _) = digest_of(&mut file).map_err(failed)?;
        if digest == image.manifest.digest {
            Ok(())
        } else {
            Err(ImageError::Damaged(node.clone(), id, Damage::Content))
        }
    }

    /// The checkpoint that the cluster's record names for a node: it is kept, however many newer ones arrive, until
    /// another is named. Without this, a host that received what its peers did not would remove the one they share.
    pub fn name(&self, node: &NodeId, id: CheckpointId) {
        if let Some(held) = self.shared.lock().0.get_mut(node) {
            held.named = BTreeSet::from([id]);
        }
    }

    /// Removes what is neither among a node's newest two, nor named, nor newer than that; how many. [`Incoming::finish`] does so by itself.
    pub fn prune(&self, node: &NodeId) -> Result<usize, StoreError> {
        self.shared.prune(&mut self.shared.lock(), node)
    }

    /// Removes a node's checkpoints; the highest epoch seen stays, so that nothing older comes in later.
    pub fn drop_images(&self, node: &NodeId) -> Result<(), StoreError> {
        let mut index = self.shared.lock();
        let ids: Vec<CheckpointId> =
            index.0.get(node).map_or_else(Vec::new, |held| held.complete.iter().copied().collect());
        self.shared.remove(&mut index, node, &ids)
    }

    /// Removes all of a node, its highest epoch included: for a node that was deleted, whose name may come again.
    pub fn forget(&self, node: &NodeId) -> Result<(), StoreError> {
        self.drop_images(node)?;
        let mut index = self.shared.lock();
        let Some(held) = index.0.get_mut(node) else { return Ok(()) };
        held.seen_is_durable = false;
        let (files, folder) = (&*self.shared.files, layout::node(&self.shared.root, node));
        let failed = |source| StoreError::Remove(folder.clone(), source);
        files.remove(&folder.join(EPOCH)).map_err(failed)?;
        files.remove_dir(&folder).map_err(failed)?;
        files.sync_dir(&layout::nodes(&self.shared.root)).map_err(failed)?;
        index.0.remove(node);
        Ok(())
    }

    /// A name for a file that is only passing through, on the checkpoints' disk.
    #[must_use]
    pub fn scratch(&self) -> Scratch {
        Scratch { path: self.shared.aside() }
    }

    fn look_at(&self, node: &NodeId, id: CheckpointId) -> Result<Result<Image, Damage>, StoreError> {
        let files = &*self.shared.files;
        let path = layout::file(&self.shared.root, node, id, MANIFEST);
        let bytes = files.read(&path, BYTES_MAX).map_err(|source| StoreError::Read(path, source))?;
        let manifest = match manifest::decode(&bytes.unwrap_or_default()) {
            Ok(manifest) if manifest.node != *node || manifest.id != id => return Ok(Err(Damage::Misplaced)),
            Ok(manifest) => manifest,
            Err(damage) => return Ok(Err(damage)),
        };
        let path = layout::file(&self.shared.root, node, id, IMAGE);
        let failed = |source| StoreError::Read(path.clone(), source);
        match files.size(&path).map_err(failed)? {
            None => return Ok(Err(Damage::Missing)),
            Some(found) if found != manifest.bytes => {
                return Ok(Err(Damage::Size { expected: manifest.bytes, found }));
            }
            Some(_) => {}
        }
        let head = files.read(&path, HEAD_BYTES as u64).map_err(failed)?.unwrap_or_default();
        let whole = Digest::of(&head) == manifest.head;
        Ok(if whole { Ok(Image { manifest, path }) } else { Err(Damage::Head) })
    }
}

/// Why a checkpoint was not received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It may not come in.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// The reader or the disk failed on the way.
    #[error("checkpoint {1} of {0} did not arrive whole: send it again")]
    Copy(NodeId, CheckpointId, #[source] io::Error),
    /// It has arrived and is no checkpoint.
    #[error(transparent)]
    Finish(#[from] FinishError),
}

/// Reads a node's folder and removes images whose checkpoint was never completed, or is half removed.
fn read_node(files: &dyn Files, folder: &Path) -> (Held, Vec<StoreError>) {
    let path = folder.join(EPOCH);
    let mut faults = Vec::new();
    let bytes = files.read(&path, 64).map_err(|source| StoreError::Read(path.clone(), source));
    let entries = files.list(folder).map_err(|source| StoreError::Read(folder.to_owned(), source));
    let entries = entries.map_err(|fault| faults.push(fault)).unwrap_or_default();
    let complete: BTreeSet<CheckpointId> =
        entries.iter().filter_map(|path| layout::id_of(path, MANIFEST)).collect();
    let images = entries.iter().filter_map(|path| Some((path, layout::id_of(path, IMAGE)?)));
    for (path, _) in images.filter(|(_, id)| !complete.contains(id)) {
        faults.extend(files.remove(path).map_err(|source| StoreError::Remove(path.clone(), source)).err());
    }
    let durable = !matches!(bytes, Ok(None));
    let seen = bytes.and_then(|bytes| match bytes {
        Some(bytes) => {
            let epoch = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
            epoch.map(Epoch).ok_or_else(|| StoreError::Epoch(path.clone()))
        }
        // Power was lost between making the folder and writing the epoch: nothing can have come in.
        None => Ok(Epoch(0)),
    });
    let unreadable = seen.is_err().then_some(path);
    let seen = seen.map_err(|fault| faults.push(fault)).unwrap_or_default();
    // A checkpoint proves that its epoch was seen.
    let proven = complete.last().map_or(seen, |newest| seen.max(newest.epoch));
    let seen_is_durable = durable && proven == seen;
    (Held { seen: proven, seen_is_durable, unreadable, named: complete.clone(), complete }, faults)
}

#[cfg(test)]
#[path = "store/tests.rs"]
mod tests;
