//! The folder of checkpoints: what is complete in it, what may come in, what is kept.
//!
//! Owns an index of complete checkpoints and seen epochs, read from the folder when it is opened and changed only
//! after the disk was; and what is known of the pages of each node whose checkpoints come in. Must not be opened twice at a
//! time: the agent has one.

mod compact;
mod error;
mod index;
mod looking;
mod reading;
mod said;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};

use understudy_core::model::ids::{Epoch, InstanceId, NodeId};
use understudy_core::model::records::CheckpointId;

pub use error::{BeginError, ImageError, ReceiveError, StoreError};
pub(crate) use index::{Index, Link};

use crate::files::{self, Disk, Files};
use crate::incoming::Incoming;
use crate::layout::{self, EPOCH};
use crate::manifest::{self, Description, Manifest};
use crate::pages::Receiver;
use crate::pieces::Pieces;
use looking::read_node;
use said::{Closed, Locked, Said};

/// What is held while somebody works with the checkpoints of one node: first this, then the index.
#[derive(Debug, Default)]
pub(crate) struct Node {
    /// What is known of the pages of one checkpoint, the newest as a rule. Taken before `files`, where both are.
    pages: Mutex<Receiver>,
    /// Held by whoever reads segments, so that none of them goes meanwhile, and alone by whoever removes or replaces some.
    files: RwLock<()>,
    /// How many checkpoints are being received.
    arriving: AtomicUsize,
}

/// Counts a checkpoint that is being received, for as long as it is.
pub(crate) struct Arriving(Arc<Node>);

impl Arriving {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        node.arriving.fetch_add(1, Ordering::AcqRel);
        Self(node)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.arriving.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Node {
    /// What is known of its pages; nothing at first, or where a panic came between.
    pub(crate) fn pages(&self) -> MutexGuard<'_, Receiver> {
        self.pages.lock().unwrap_or_else(|poisoned| {
            let mut receiver = poisoned.into_inner();
            *receiver = Receiver::default();
            self.pages.clear_poison();
            receiver
        })
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, ()> {
        self.files.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn change(&self) -> RwLockWriteGuard<'_, ()> {
        self.files.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// None while somebody reads.
    pub(crate) fn try_change(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        match self.files.try_write() {
            Ok(change) => Some(change),
            Err(TryLockError::Poisoned(change)) => Some(change.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

pub(crate) struct Shared {
    pub(crate) root: PathBuf,
    pub(crate) files: Box<dyn Files>,
    index: Mutex<Index>,
    /// What is taken before the index, where both are: each node's own. It stays for as long as the store is open.
    nodes: Mutex<BTreeMap<NodeId, Arc<Node>>>,
    /// What is being restored, until somebody needs to know it: whoever says so does not wait for the disk.
    names: Mutex<BTreeMap<NodeId, Option<CheckpointId>>>,
    /// What is said of each node, as the index has it: whoever asks does not wait for the disk. Taken after the index, where
    /// both are.
    said: Mutex<Said>,
    /// What comes no more for a while. The same.
    closed: Mutex<BTreeMap<NodeId, Closed>>,
    /// Taken while segments are merged: one node's at a time.
    compacting: Mutex<()>,
    next: AtomicU64,
}

impl Shared {
    /// The index is changed in single steps after the disk was, so that a panic elsewhere leaves it true.
    pub(crate) fn lock(&self) -> Locked<'_> {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let mut index = Locked::new(index, &self.said);
        let names = std::mem::take(&mut *self.names.lock().unwrap_or_else(PoisonError::into_inner));
        for (node, id) in names {
            if let Some(held) = index.quietly().0.get_mut(&node) {
                held.named = id;
            }
        }
        index
    }

    pub(crate) fn node(&self, node: &NodeId) -> Arc<Node> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.entry(node.clone()).or_default().clone()
    }

    /// A free name for a file that is not yet what it is to be.
    pub(crate) fn aside(&self) -> PathBuf {
        layout::incoming(&self.root).join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Removes checkpoints, with each all that add to it. Their manifests go first, and durably, so that a manifest never comes
    /// back without its segment; one that comes back without what it adds to is half removed.
    fn remove(&self, index: &mut Index, node: &NodeId, ids: &[CheckpointId]) -> Result<(), StoreError> {
        let folder = layout::node(&self.root, node);
        let remove =
            |path: PathBuf| self.files.remove(&path).map_err(|source| StoreError::Remove(path, source));
        let mut segments = Vec::new();
        for id in ids {
            remove(layout::manifest(&self.root, node, *id))?;
            let Some(held) = index.0.get_mut(node) else { continue };
            held.named = held.named.filter(|named| named != id);
            held.unsound.remove(id);
            // Of one whose manifest is damaged the segment's name is not known: it goes when the store is next opened.
            segments.extend(held.complete.remove(id).flatten().map(|link| (*id, link.base)));
        }
        if ids.is_empty() {
            return Ok(());
        }
        self.files.sync_dir(&folder).map_err(|source| StoreError::Remove(folder.clone(), source))?;
        let mut segments = segments.into_iter();
        segments.try_for_each(|(id, base)| remove(layout::segment(&self.root, node, id, base)))
    }

    /// Removes what is neither among the newest nor named, and is not added to by any of those.
    pub(crate) fn prune(&self, index: &mut Index, node: &NodeId) -> Result<usize, StoreError> {
        let Some(held) = index.0.get(node) else { return Ok(0) };
        let old = held.old();
        self.remove(index, node, &old).map(|()| old.len())
    }

    /// Makes what lies at `from` the segment of a checkpoint. It gets its name first and keeps it durably, so that a manifest's
    /// name never stands alone.
    pub(crate) fn publish(&self, from: &Path, manifest: &Manifest) -> io::Result<()> {
        let files = &*self.files;
        let (node, id) = (&manifest.node, manifest.id);
        files.rename(from, &layout::segment(&self.root, node, id, manifest.base))?;
        files.sync_dir(&layout::node(&self.root, node))?;
        let (aside, name) = (self.aside(), layout::manifest(&self.root, node, id));
        let replaced = files::replace(files, &aside, &name, &manifest::encode(manifest));
        replaced.inspect_err(|_| drop(files.remove(&aside)))
    }

    /// Makes a node's folder if need be and its highest epoch seen durable. That of another node of this name, to which another
    /// instance belonged, is no bound.
    fn raise(
        &self,
        index: &mut Index,
        node: &NodeId,
        epoch: Epoch,
        instance: Option<InstanceId>,
    ) -> Result<(), StoreError> {
        let is_another = instance.is_some_and(|instance| index.is_of_another(node, instance));
        let seen = if is_another { Epoch(0) } else { index.seen(node) };
        if let Some(path) = index.0.get(node).and_then(|held| held.unreadable.clone()) {
            return Err(StoreError::Epoch(path));
        }
        if !is_another && epoch <= seen && index.0.get(node).is_some_and(|held| held.seen_is_durable) {
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
    pub(crate) shared: Arc<Shared>,
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
        let leftovers = files.list(&incoming).map_err(failed);
        let leftovers = leftovers.map_err(|fault| faults.push(fault)).unwrap_or_default();
        let folders = files.list(&nodes).map_err(failed);
        let unsure = folders.is_err();
        let folders = folders.map_err(|fault| faults.push(fault)).unwrap_or_default();
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
        let said = Said::of(&index, unsure);
        let shared = Shared {
            root: root.to_owned(),
            files,
            index: Mutex::new(index),
            nodes: Mutex::default(),
            names: Mutex::default(),
            said: Mutex::new(said),
            closed: Mutex::default(),
            compacting: Mutex::default(),
            next: AtomicU64::new(0),
        };
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
        self.shared.raise(&mut self.shared.lock(), node, epoch, None)
    }

    /// Receives a checkpoint: the segment of this node and number that a reader gives, of a guest with no more memory than its
    /// description says. `Ok` means durable.
    ///
    /// # Errors
    /// Why it is none. [`ReceiveError::lacks_base`] tells whether the sender has to send the whole.
    pub fn receive(
        &self,
        node: &NodeId,
        id: CheckpointId,
        segment: &mut dyn Read,
        description: Description,
    ) -> Result<Manifest, ReceiveError> {
        let mut incoming = self.begin(node, id, &description)?;
        let mut pieces = Pieces::new(segment);
        while let Some(piece) = pieces.next().map_err(|error| ReceiveError::Read(node.clone(), id, error))? {
            incoming.take(piece)?;
        }
        incoming.finish(description)
    }

    /// Begins to receive a checkpoint.
    pub(crate) fn begin(
        &self,
        node: &NodeId,
        id: CheckpointId,
        description: &Description,
    ) -> Result<Incoming, ReceiveError> {
        let arriving = Arriving::new(self.shared.node(node));
        let mut index = self.shared.lock();
        self.shared.is_open(node, id, description.instance)?;
        index.may_come(node, id, description.instance)?;
        self.shared
            .raise(&mut index, node, id.epoch, Some(description.instance))
            .map_err(BeginError::Store)?;
        drop(index);
        Ok(Incoming::new(self.clone(), node.clone(), (id, description.memory), arriving)?)
    }

    /// The checkpoint that a restore asks for first: the one that is being restored, else the newest.
    #[must_use]
    pub fn wanted(&self, node: &NodeId) -> Option<CheckpointId> {
        self.shared.lock().wanted(node)
    }

    /// The nodes of which something was found damaged since this was opened, and has not been replaced, each with what and
    /// which.
    #[must_use]
    pub fn damaged(&self) -> Vec<ImageError> {
        let index = self.shared.lock();
        let damaged = index.0.iter().filter_map(|(node, held)| Some((node, held.damaged.clone()?)));
        damaged.map(|(node, (id, damage))| ImageError::Damaged(node.clone(), id, damage)).collect()
    }

    /// The nodes of which anything is kept, be it only the highest epoch.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.shared.lock().0.keys().cloned().collect()
    }

    /// The complete checkpoints of a node, oldest first, as far as names tell.
    #[must_use]
    pub fn complete(&self, node: &NodeId) -> Vec<CheckpointId> {
        self.shared.lock().0.get(node).map(|held| held.complete.keys().copied().collect()).unwrap_or_default()
    }

    /// What of a node is being restored here: it is kept, however many newer ones there are, and is what is made ready. None:
    /// nothing is.
    pub fn name(&self, node: &NodeId, id: Option<CheckpointId>) {
        let mut names = self.shared.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(node.clone(), id);
    }

    /// Removes what is neither among a node's newest two, nor named, nor added to by those; how many.
    /// Whatever comes in does so by itself.
    pub fn prune(&self, node: &NodeId) -> Result<usize, StoreError> {
        let own = self.shared.node(node);
        let _change = own.change();
        self.shared.prune(&mut self.shared.lock(), node)
    }

    /// Removes a node's checkpoints; the highest epoch seen stays, so that nothing older comes in later.
    pub fn drop_images(&self, node: &NodeId) -> Result<(), StoreError> {
        let own = self.shared.node(node);
        *own.pages() = Receiver::default();
        let _change = own.change();
        let mut index = self.shared.lock();
        let ids: Vec<CheckpointId> =
            index.0.get(node).map_or_else(Vec::new, |held| held.complete.keys().rev().copied().collect());
        self.shared.remove(&mut index, node, &ids)?;
        if let Some(held) = index.0.get_mut(node) {
            held.damaged = None;
            held.unsound.clear();
        }
        Ok(())
    }

    /// Removes all of a node, its highest epoch included: for a node that was deleted, whose name may come again.
    pub fn forget(&self, node: &NodeId) -> Result<(), StoreError> {
        self.drop_images(node)?;
        let mut index = self.shared.lock();
        self.shared.closed.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
        let Some(held) = index.0.get_mut(node) else { return Ok(()) };
        held.seen_is_durable = false;
        let (files, folder) = (&*self.shared.files, layout::node(&self.shared.root, node));
        let failed = |source| StoreError::Remove(folder.clone(), source);
        // Segments that nothing named any more, too.
        for left in files.list(&folder).map_err(failed)? {
            files.remove(&left).map_err(failed)?;
        }
        files.remove_dir(&folder).map_err(failed)?;
        files.sync_dir(&layout::nodes(&self.shared.root)).map_err(failed)?;
        index.0.remove(node);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
