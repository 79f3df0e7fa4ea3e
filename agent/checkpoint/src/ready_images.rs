//! Owns the restore images that are kept ready for the nodes whose checkpoints lie here, so that a failover is one
//! `virDomainRestore`: a folder, and a budget that they take no more than.
//!
//! ```text
//! a checkpoint is complete ─▶ refresh ─▶ what changed is written into the image, or a new one is built
//! a restore ─▶ take ─▶ the image, if it is of that checkpoint, else one that is made now ─▶ compare ─▶ the guest may run
//! ```
//!
//! Promises: an image that was taken is nobody else's, and goes with whoever took it; one that is not of the checkpoint that
//! is asked for is never given; where the budget is full, that is told by node. Nothing here is durable, or needs to be: it
//! is made of the checkpoints. Must not do: say whether an image is right; [`ReadyImages::compare`] reads all of it for that,
//! beside the restore.
//!
//! Cost: as `pages::ready` for each checkpoint; memory as there, and on the folder's disk (a tmpfs: memory too) what the
//! guest's pages take that are not zero, up to the budget.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use understudy_core::model::ids::NodeId;
use understudy_core::model::records::CheckpointId;

use crate::incoming::locked;
use crate::manifest::{Damage, Manifest};
use crate::pages::{CompareError, ReadyError, ReadyImage, UnreadableImage, compare};
use crate::store::{ImageError, ImageStore, StoreError};

/// A file that goes with whoever has it.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// One that is ready.
#[derive(Debug)]
struct Kept {
    image: ReadyImage,
    file: Temporary,
}

/// The images that are kept ready.
#[derive(Debug)]
pub struct ReadyImages {
    store: ImageStore,
    folder: PathBuf,
    budget: u64,
    rooms: Mutex<Rooms>,
    nodes: Mutex<BTreeMap<NodeId, Arc<Mutex<Option<Kept>>>>>,
    next: AtomicU64,
}

/// What of the budget is taken, in bytes.
#[derive(Debug, Default)]
struct Rooms {
    taken: BTreeMap<NodeId, u64>,
    /// The nodes for which there is no room, and how much their images needed when that was found.
    left_out: BTreeMap<NodeId, u64>,
}

impl Rooms {
    /// How much there is for a node.
    fn free(&self, node: &NodeId, budget: u64) -> u64 {
        let others = self.taken.iter().filter(|(of, _)| *of != node).map(|(_, bytes)| bytes);
        budget.saturating_sub(others.sum())
    }

    /// Whether an image of this size may stay.
    fn take(&mut self, node: &NodeId, bytes: u64, budget: u64) -> bool {
        let fits = bytes <= self.free(node, budget);
        let (into, out_of) = match fits {
            true => (&mut self.taken, &mut self.left_out),
            false => (&mut self.left_out, &mut self.taken),
        };
        out_of.remove(node);
        into.insert(node.clone(), bytes);
        fits
    }

    fn forget(&mut self, node: &NodeId) {
        self.taken.remove(node);
        self.left_out.remove(node);
    }
}

/// An image for a restore. The file goes with it.
#[derive(Debug)]
pub struct RestoreImage {
    /// What is known of the checkpoint.
    pub manifest: Manifest,
    file: Temporary,
    /// Whether it was there already.
    pub was_ready: bool,
}

impl RestoreImage {
    /// The file that `virDomainRestore` takes.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.0
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ReadyImages {
    /// Images in this folder, which is made and emptied; `budget` is in bytes.
    ///
    /// # Errors
    /// When the folder cannot be made or emptied.
    pub fn open(store: ImageStore, folder: &Path, budget: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        for left in fs::read_dir(folder)? {
            fs::remove_file(left?.path())?;
        }
        Ok(Self {
            store,
            folder: folder.to_owned(),
            budget,
            rooms: Mutex::default(),
            nodes: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    /// The nodes whose image is made only when it is needed, because the budget is full.
    #[must_use]
    pub fn left_out(&self) -> BTreeSet<NodeId> {
        lock(&self.rooms).left_out.keys().cloned().collect()
    }

    /// Brings the image of a node to its newest checkpoint.
    ///
    /// # Errors
    /// When the checkpoint is damaged, or the disk does not do it. There is no image then.
    pub fn refresh(&self, node: &NodeId) -> Result<(), ImageError> {
        let kept = lock(&self.nodes).entry(node.clone()).or_default().clone();
        let mut kept = lock(&kept);
        while let Some(newest) = self.store.complete(node).last().copied() {
            if kept.as_ref().is_some_and(|kept| kept.image.id() == newest) {
                return Ok(());
            }
            let before = kept.take();
            let updated = before.and_then(|before| self.update(node, newest, before));
            let image = match updated {
                Some(image) => image,
                None if self.may_fit(node) => self.build(node, newest)?,
                None => return Ok(()),
            };
            if !lock(&self.rooms).take(node, image.image.bytes(), self.budget) {
                return Ok(());
            }
            *kept = Some(image);
        }
        // Its checkpoints are gone.
        *kept = None;
        lock(&self.rooms).forget(node);
        Ok(())
    }

    /// The image with what later checkpoints changed; none where it has to be built anew.
    fn update(&self, node: &NodeId, newest: CheckpointId, kept: Kept) -> Option<Kept> {
        let Kept { mut image, file } = kept;
        let has = image.id();
        let (last, chain) = self.store.chain_of(node, newest).ok()?;
        let mut later: Vec<Manifest> =
            std::iter::once(last).chain(chain).take_while(|of| of.id > has).collect();
        later.reverse();
        // What it has may be no part of the chain, or have become one with others: the image says so.
        for manifest in &later {
            let mut segment = self.store.segment(node, manifest).ok()?;
            image = image.apply(&mut segment).ok()?;
        }
        Some(Kept { image, file })
    }

    fn build(&self, node: &NodeId, id: CheckpointId) -> Result<Kept, ImageError> {
        let file = Temporary(self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string()));
        let (receiver, chain) = self.store.replayed(node, id)?;
        let segment = |number: u32| self.store.segment(node, &chain[number as usize]);
        let image = ReadyImage::build(&file.0, &receiver, segment).map_err(|error| match error {
            ReadyError::File(source) => StoreError::Write(file.0.clone(), source).into(),
            error => ImageError::Damaged(node.clone(), id, Damage::Image(error.to_string())),
        })?;
        Ok(Kept { image, file })
    }

    /// Whether there may be room by now where there was none.
    fn may_fit(&self, node: &NodeId) -> bool {
        let rooms = lock(&self.rooms);
        rooms.left_out.get(node).is_none_or(|needed| *needed <= rooms.free(node, self.budget))
    }

    /// The image of a checkpoint: the one that is ready, or one that is made now.
    ///
    /// # Errors
    /// When the checkpoint is not here, damaged, or cannot be read, or when the image cannot be made.
    pub fn take(&self, node: &NodeId, id: CheckpointId) -> Result<RestoreImage, ImageError> {
        let manifest = self.store.checkpoint(node, id)?;
        let kept = lock(&self.nodes).get(node).cloned();
        let ready = kept.and_then(|kept| lock(&kept).take());
        lock(&self.rooms).taken.remove(node);
        if let Some(ready) = ready.filter(|ready| ready.image.id() == id) {
            return Ok(RestoreImage { manifest, file: ready.file, was_ready: true });
        }
        // Removed also when it is not made whole.
        let file = Temporary(self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string()));
        self.store.write_image(node, id, &file.0)?;
        Ok(RestoreImage { manifest, file, was_ready: false })
    }

    /// Reads all of an image and tells whether it is what the checkpoint is.
    ///
    /// # Errors
    /// When it is not, or cannot be read.
    pub fn compare(&self, image: &RestoreImage) -> Result<(), ImageError> {
        let (node, id) = (&image.manifest.node, image.manifest.id);
        let failed = |source| StoreError::Read(image.path().to_owned(), source);
        let mut file = File::open(image.path()).map_err(failed)?;
        let pages = self.store.shared.pages(node);
        let known = locked(&pages);
        let compared = if known.has() == Some(id) {
            compare(&mut file, &known)
        } else {
            drop(known);
            compare(&mut file, &self.store.replayed(node, id)?.0)
        };
        compared.map_err(|error| match error {
            CompareError::Image(UnreadableImage::Read(source)) => failed(source).into(),
            error => ImageError::Damaged(node.clone(), id, Damage::Image(error.to_string())),
        })
    }

    /// Nothing is kept ready for a node any more.
    pub fn forget(&self, node: &NodeId) {
        lock(&self.nodes).remove(node);
        lock(&self.rooms).forget(node);
    }
}
