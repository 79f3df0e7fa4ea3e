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

use crate::manifest::{Damage, Manifest};
use crate::pages::{CompareError, ReadyError, ReadyImage, Receiver, Source, UnreadableImage, compare};
use crate::save_image::SaveImage;
use crate::store::{ImageError, ImageStore, StoreError};
use crate::stream::PAGE_BYTES;

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
    manifest: Manifest,
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

    /// What a node has takes so much by now.
    fn grew(&mut self, node: &NodeId, bytes: u64) {
        if let Some(taken) = self.taken.get_mut(node) {
            *taken = bytes;
        }
    }

    /// Whether there may be room where there was none.
    fn may_fit(&self, node: &NodeId, budget: u64) -> bool {
        self.left_out.get(node).is_none_or(|needed| *needed <= self.free(node, budget))
    }

    /// The file system is full, whatever the budget says: it is not tried again while this agent runs.
    fn has_none(&mut self, node: &NodeId) {
        self.taken.remove(node);
        self.left_out.insert(node.clone(), u64::MAX);
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
    ready: Option<ReadyImage>,
}

impl RestoreImage {
    /// The file that `virDomainRestore` takes.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.0
    }

    /// Whether it was there already.
    #[must_use]
    pub fn was_ready(&self) -> bool {
        self.ready.is_some()
    }
}

/// About how long an image is: the pages that are not zero, a mark for each that is, and the rest.
fn bytes_of(receiver: &Receiver) -> u64 {
    let pages = receiver.pages().map(|(_, _, source)| match source {
        Source::Fill(0) => 9,
        Source::Fill(_) | Source::Stored { .. } => PAGE_BYTES as u64 + 32,
    });
    pages.sum::<u64>() + receiver.rest().len() as u64 + SaveImage::PADDING as u64
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

    /// Brings the image of a node to the checkpoint that a restore asks for first. For one node at a time: who comes while it
    /// is under way finds nothing ready.
    ///
    /// # Errors
    /// When the checkpoint is damaged, or the disk does not do it. There is no image then.
    pub fn refresh(&self, node: &NodeId) -> Result<(), ImageError> {
        let slot = lock(&self.nodes).entry(node.clone()).or_default().clone();
        while let Some(wanted) = self.store.wanted(node) {
            {
                let mut kept = lock(&slot);
                if kept.as_ref().is_some_and(|kept| kept.image.id() == wanted) {
                    return Ok(());
                }
                // Short: a restore that comes meanwhile has it at once after that.
                *kept = kept.take().and_then(|kept| self.update(node, wanted, kept));
                if let Some(kept) = &*kept {
                    lock(&self.rooms).grew(node, kept.image.bytes());
                    continue;
                }
            }
            if !lock(&self.rooms).may_fit(node, self.budget) {
                return Ok(());
            }
            let built = self.build(node, wanted);
            let mut kept = lock(&slot);
            match built {
                Ok(Some(built)) => *kept = Some(built),
                Ok(None) => return Ok(()),
                Err(error) => {
                    lock(&self.rooms).taken.remove(node);
                    return Err(error);
                }
            }
        }
        // Its checkpoints are gone.
        *lock(&slot) = None;
        lock(&self.rooms).forget(node);
        Ok(())
    }

    /// The image with what later checkpoints changed; none where it has to be built anew.
    fn update(&self, node: &NodeId, wanted: CheckpointId, kept: Kept) -> Option<Kept> {
        let Kept { mut image, file, .. } = kept;
        let has = image.id();
        let own = self.store.shared.node(node);
        let _read = own.read();
        let (manifest, chain) = self.store.chain_of(node, wanted).ok()?;
        let mut later: Vec<&Manifest> =
            std::iter::once(&manifest).chain(&chain).take_while(|of| of.id > has).collect();
        later.reverse();
        // What it has may be no part of the chain, or have become one with others: the image says so.
        later.first()?;
        for manifest in later {
            let mut segment = self.store.segment(node, manifest).ok()?;
            image = image.apply(&mut segment).ok()?;
        }
        Some(Kept { image, file, manifest })
    }

    /// Builds one; none where there is no room for it.
    fn build(&self, node: &NodeId, id: CheckpointId) -> Result<Option<Kept>, ImageError> {
        let own = self.store.shared.node(node);
        let _read = own.read();
        let (receiver, chain) = self.store.replay_chain(node, id)?;
        let Some(manifest) = chain.last().cloned() else { return Ok(None) };
        // Before anything is written: the memory is there, or is not asked for.
        if !lock(&self.rooms).take(node, bytes_of(&receiver), self.budget) {
            return Ok(None);
        }
        let file = Temporary(self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string()));
        let segment = |number: u32| self.store.segment(node, &chain[number as usize]);
        match ReadyImage::build(&file.0, &receiver, segment) {
            Ok(image) => {
                lock(&self.rooms).grew(node, image.bytes());
                Ok(Some(Kept { image, file, manifest }))
            }
            // The file system has less room than the budget: what else lies there needs it.
            Err(ReadyError::File(source)) if source.kind() == io::ErrorKind::StorageFull => {
                lock(&self.rooms).has_none(node);
                Ok(None)
            }
            Err(ReadyError::File(source)) => Err(StoreError::Write(file.0.clone(), source).into()),
            Err(error) => Err(ImageError::Damaged(node.clone(), id, Damage::Image(error.to_string()))),
        }
    }

    /// The image of a checkpoint: the one that is ready, or one that is made now, on the disk of the checkpoints: where many
    /// are restored at once a tmpfs has no room for those that were left out.
    ///
    /// # Errors
    /// When the checkpoint is not here, damaged, or cannot be read, or when the image cannot be made.
    pub fn take(&self, node: &NodeId, id: CheckpointId) -> Result<RestoreImage, ImageError> {
        let slot = lock(&self.nodes).get(node).cloned();
        if let Some(slot) = slot {
            let mut kept = lock(&slot);
            if kept.as_ref().is_some_and(|kept| kept.image.id() == id)
                && let Some(Kept { image, file, manifest }) = kept.take()
            {
                lock(&self.rooms).taken.remove(node);
                return Ok(RestoreImage { manifest, file, ready: Some(image) });
            }
        }
        let manifest = self.store.checkpoint(node, id)?;
        // Removed also when it is not made whole.
        let file = Temporary(self.store.shared.aside());
        self.store.write_image(node, id, &file.0)?;
        Ok(RestoreImage { manifest, file, ready: None })
    }

    /// One that was ready and has not been used is ready again.
    pub fn give_back(&self, image: RestoreImage) {
        let RestoreImage { manifest, file, ready: Some(image) } = image else { return };
        let slot = lock(&self.nodes).get(&manifest.node).cloned();
        if let Some(slot) = slot {
            let mut kept = lock(&slot);
            if kept.is_none() && lock(&self.rooms).take(&manifest.node, image.bytes(), self.budget) {
                *kept = Some(Kept { image, file, manifest });
            }
        }
    }

    /// Reads all of an image and tells whether it is what the checkpoint is.
    ///
    /// # Errors
    /// When it is not, or cannot be read.
    pub fn compare(&self, image: &RestoreImage) -> Result<(), ImageError> {
        let (node, id) = (&image.manifest.node, image.manifest.id);
        let failed = |source| StoreError::Read(image.path().to_owned(), source);
        let mut file = File::open(image.path()).map_err(failed)?;
        let own = self.store.shared.node(node);
        // What is known in memory, where it is of this checkpoint: the disk may be what fails.
        let known = own.pages();
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
