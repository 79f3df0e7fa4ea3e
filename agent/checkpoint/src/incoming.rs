//! A checkpoint that is arriving.
//!
//! Promises: until [`Incoming::finish`] has returned `Ok` there is no checkpoint; dropped before that, it leaves nothing.
//! The order of the steps in [`Incoming::finish`] is the promise of completeness. One that stands still on its way keeps
//! no other. Must not do: take in what does not add to what this host has.
//!
//! Cost: each byte is written, hashed and decompressed once as it comes; the end is one pass over the digests of the guest's
//! pages (`pages`), four syncs, and the removal of what is old.

use std::path::PathBuf;

use understudy_core::model::ids::NodeId;
use understudy_core::model::records::CheckpointId;
use understudy_core::model::units::MiB;

use crate::files::WriteFile;
use crate::layout;
use crate::manifest::{Description, Manifest};
use crate::pages::{
    Coming, Frame, Head, IngestError, REST_MAX, Received, Receiver, SegmentError, SegmentReader,
};
use crate::store::{Arriving, BeginError, ImageError, ImageStore, Link, Node, ReceiveError, StoreError};
use crate::stream::PAGE_BYTES;

/// What a guest's RAM blocks have beside its memory: firmware, and the memory of video cards, at the most.
const BESIDE_MEMORY: u64 = 1 << 30;

/// A checkpoint being received.
pub(crate) struct Incoming {
    store: ImageStore,
    node: NodeId,
    id: CheckpointId,
    path: PathBuf,
    file: Box<dyn WriteFile>,
    bytes: u64,
    /// The most that a guest with this memory can have.
    pages_max: u64,
    reader: SegmentReader,
    coming: Option<Coming>,
    /// The temporary file is still to be removed.
    pending: bool,
    _arriving: Arriving,
}

impl Incoming {
    pub(crate) fn new(
        store: ImageStore,
        node: NodeId,
        (id, memory): (CheckpointId, MiB),
        arriving: Arriving,
    ) -> Result<Self, StoreError> {
        let path = store.shared.aside();
        let file = store.shared.files.create(&path);
        let file = file.map_err(|source| StoreError::Create(path.clone(), source))?;
        let reader = SegmentReader::default();
        let pages_max = memory.bytes().saturating_add(BESIDE_MEMORY) / PAGE_BYTES as u64;
        let coming = None;
        Ok(Self {
            store,
            node,
            id,
            path,
            file,
            bytes: 0,
            pages_max,
            reader,
            coming,
            pending: true,
            _arriving: arriving,
        })
    }

    /// Bytes of the longest segment: each page may come twice, as bytes that do not compress, and so may the rest.
    fn most(&self) -> u64 {
        let pages = self.pages_max.saturating_mul(2 * (PAGE_BYTES as u64 + 64));
        pages.saturating_add(2 * REST_MAX as u64)
    }

    /// Takes the next bytes of the segment.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(), ReceiveError> {
        if self.bytes + bytes.len() as u64 > self.most() {
            return Err(self.refused(IngestError::TooLarge { pages_max: self.pages_max }));
        }
        let failed = |source| StoreError::Write(self.path.clone(), source);
        self.file.write_all(bytes).map_err(failed)?;
        self.bytes += bytes.len() as u64;
        self.reader.push(bytes);
        while let Some((_, frame)) = self.reader.frame().map_err(|error| self.damaged(error))? {
            self.frame(frame)?;
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame) -> Result<(), ReceiveError> {
        let (node, id) = (&self.node, self.id);
        let taken = match (&mut self.coming, frame) {
            (Some(coming), frame) => coming.take(frame),
            (None, Frame::Head(head)) if head.node != *node || head.id != id => {
                let (of, found) = (head.node, head.id);
                return Err(ReceiveError::Other { node: node.clone(), id, of, found });
            }
            (None, Frame::Head(head)) if head.blocks.pages() > self.pages_max => {
                Err(IngestError::TooLarge { pages_max: self.pages_max })
            }
            (None, Frame::Head(head)) => {
                self.find_base(&head)?;
                self.coming = Some(Coming::new(*head));
                return Ok(());
            }
            (None, _) => Err(IngestError::Order("something before the head")),
        };
        taken.map_err(|error| self.refused(error))
    }

    /// Whether this host has what the segment adds to. After a start, and after an answer that the sender did not hear, that
    /// is read from the disk.
    fn find_base(&self, head: &Head) -> Result<(), ReceiveError> {
        let Some(base) = head.base else { return Ok(()) };
        let index = self.store.shared.lock();
        let (is_there, can) = (index.has(&self.node, base), index.can_be_added_to(&self.node, base));
        drop(index);
        if !can {
            return Err(self.refused(IngestError::OtherBase { base: Some(base), has: None }));
        }
        let own = self.store.shared.node(&self.node);
        let has = own.pages().has();
        if has != Some(base) && is_there {
            let replayed = match self.store.replayed(&self.node, base) {
                Ok((replayed, _)) => replayed,
                Err(ImageError::Store(error)) => return Err(error.into()),
                Err(error) => return Err(ReceiveError::Base(self.node.clone(), self.id, Box::new(error))),
            };
            let mut receiver = own.pages();
            // Another may have been completed meanwhile: it is not put back.
            if receiver.has() == has {
                *receiver = replayed;
            }
        }
        own.pages().accepts(head).map_err(|error| self.refused(error))
    }

    /// Makes it a checkpoint: all of it compared and synced, segment named, manifest synced and named. `Ok` means durable.
    pub(crate) fn finish(mut self, description: Description) -> Result<Manifest, ReceiveError> {
        self.reader.ends().map_err(|error| self.damaged(error))?;
        let Some(coming) = self.coming.take().filter(Coming::is_whole) else {
            return Err(self.damaged(SegmentError::Short { at: self.bytes }));
        };
        self.file.sync().map_err(|source| StoreError::Write(self.path.clone(), source))?;
        // Another may have been completed while this one came.
        self.store.shared.lock().may_come(&self.node, self.id, description.instance)?;
        self.find_base(coming.head())?;
        let own = self.store.shared.node(&self.node);
        let mut receiver = own.pages();
        let received = receiver.complete(coming).map_err(|error| self.refused(error))?;
        let manifest = self.complete(&own, received, description);
        if manifest.is_err() {
            // It knows pages now that are in no checkpoint: what was there is read from the disk when it is needed.
            *receiver = Receiver::default();
        }
        manifest
    }

    fn complete(
        &mut self,
        own: &Node,
        received: Received,
        description: Description,
    ) -> Result<Manifest, ReceiveError> {
        let store = self.store.clone();
        let mut index = store.shared.lock();
        let (node, id) = (self.node.clone(), self.id);
        index.may_come(&node, id, description.instance)?;
        let base = received.head.base;
        if let Some(base) = base.filter(|base| !index.has(&node, *base)) {
            // Removed while this was on its way.
            return Err(self.refused(IngestError::OtherBase { base: Some(base), has: None }));
        }
        let Received { root, state, .. } = received;
        let manifest = Manifest { node, id, base, description, bytes: self.bytes, root, state };
        self.publish(&manifest)?;
        index.completed(&self.node, id, Link::of(&manifest));
        // What cannot be removed now, also because somebody reads, is removed at the next one: it is no reason to lose this.
        if let Some(_change) = own.try_change() {
            drop(store.shared.prune(&mut index, &self.node));
        }
        Ok(manifest)
    }

    fn publish(&mut self, manifest: &Manifest) -> Result<(), StoreError> {
        let shared = &self.store.shared;
        let files = &*shared.files;
        let folder = layout::node(&shared.root, &self.node);
        let segment = layout::segment(&shared.root, &self.node, self.id, manifest.base);
        let name = layout::manifest(&shared.root, &self.node, self.id);
        let outcome = shared.publish(&self.path, manifest);
        self.pending = outcome.is_err();
        outcome.map_err(|source| {
            // The manifest first and durably, as in every removal; a segment that stays is nothing by itself, and is
            // removed when the store is opened.
            if files.remove(&name).and_then(|()| files.sync_dir(&folder)).is_ok() {
                drop(files.remove(&segment));
            }
            StoreError::Write(segment, source)
        })
    }

    fn refused(&self, error: IngestError) -> ReceiveError {
        ReceiveError::Ingest(self.node.clone(), self.id, Box::new(error))
    }

    fn damaged(&self, error: SegmentError) -> ReceiveError {
        ReceiveError::Segment(self.node.clone(), self.id, error)
    }
}

impl From<StoreError> for ReceiveError {
    fn from(error: StoreError) -> Self {
        Self::Begin(BeginError::Store(error))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.pending {
            // What cannot be removed now is removed when the store is opened.
            drop(self.store.shared.files.remove(&self.path));
        }
    }
}
