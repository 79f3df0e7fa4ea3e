//! A checkpoint that is arriving.
//!
//! Promises: until [`Incoming::finish`] has returned `Ok` there is no checkpoint; dropped before that, it leaves
//! nothing. The order of the steps in [`Incoming::finish`] is the promise of completeness.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use understudy_core::model::ids::{Epoch, NodeId};
use understudy_core::model::records::CheckpointId;

use crate::digest::Digest;
use crate::files::WriteFile;
use crate::layout::{self, IMAGE, MANIFEST};
use crate::manifest::{self, Description, HEAD_BYTES, Manifest};
use crate::store::{Shared, StoreError};

/// What the sender says that it sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// How many bytes.
    pub bytes: u64,
    /// Their digest.
    pub digest: Digest,
}

/// Why an image that has arrived is no checkpoint. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// Bytes are missing or too many.
    #[error("checkpoint {id} of {node} has {found} bytes instead of {expected}: send it again")]
    Size {
        /// The node.
        node: NodeId,
        /// The checkpoint.
        id: CheckpointId,
        /// As announced.
        expected: u64,
        /// As arrived.
        found: u64,
    },
    /// The bytes are not those that were sent.
    #[error("checkpoint {id} of {node} does not match its digest: send it again")]
    Digest {
        /// The node.
        node: NodeId,
        /// The checkpoint.
        id: CheckpointId,
    },
    /// A newer epoch was seen while it arrived (SAFE-4).
    #[error("checkpoint {id} of {node} is older than epoch {seen}, which was seen meanwhile")]
    OldEpoch {
        /// The node.
        node: NodeId,
        /// The checkpoint.
        id: CheckpointId,
        /// The highest epoch seen.
        seen: Epoch,
    },
    /// A newer checkpoint was completed while it arrived.
    #[error("checkpoint {id} of {node} is not newer than {newest}, which was completed meanwhile")]
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

/// A checkpoint being received; write the image into it.
pub struct Incoming {
    shared: Arc<Shared>,
    node: NodeId,
    id: CheckpointId,
    path: PathBuf,
    file: Box<dyn WriteFile>,
    hasher: blake3::Hasher,
    head: blake3::Hasher,
    /// A write failed: what is on the disk is not what was hashed.
    broken: bool,
    /// The temporary file is still to be removed.
    pending: bool,
}

impl Incoming {
    pub(crate) fn new(shared: Arc<Shared>, node: NodeId, id: CheckpointId) -> Result<Self, StoreError> {
        let path = shared.aside();
        let file = shared.files.create(&path).map_err(|source| StoreError::Create(path.clone(), source))?;
        let (hasher, head) = (blake3::Hasher::new(), blake3::Hasher::new());
        Ok(Self { shared, node, id, path, file, hasher, head, broken: false, pending: true })
    }

    /// How many bytes have arrived.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.hasher.count()
    }

    /// Makes it a checkpoint: bytes compared and synced, image named, manifest synced and named. `Ok` means durable.
    pub fn finish(mut self, expected: Expected, description: Description) -> Result<Manifest, FinishError> {
        let manifest = self.compare(expected, description)?;
        self.file.sync().map_err(|source| StoreError::Write(self.path.clone(), source))?;
        let shared = Arc::clone(&self.shared);
        let mut index = shared.lock();
        let (node, id) = (self.node.clone(), self.id);
        let seen = index.seen(&node);
        if id.epoch < seen {
            return Err(FinishError::OldEpoch { node, id, seen });
        }
        if let Some(newest) = index.newest(&node).filter(|newest| id <= *newest) {
            return Err(FinishError::NotNewer { node, id, newest });
        }
        self.publish(&manifest)?;
        index.completed(&node, id);
        // What cannot be removed now is removed at the next one: it is no reason to lose this.
        drop(shared.prune(&mut index, &node));
        Ok(manifest)
    }

    /// Gives it up; as good as dropping it.
    pub fn abort(self) {}

    fn compare(&self, expected: Expected, description: Description) -> Result<Manifest, FinishError> {
        let (node, id) = (self.node.clone(), self.id);
        let found = self.received();
        if found != expected.bytes {
            return Err(FinishError::Size { node, id, expected: expected.bytes, found });
        }
        let digest = Digest(*self.hasher.finalize().as_bytes());
        if self.broken || digest != expected.digest {
            return Err(FinishError::Digest { node, id });
        }
        let head = Digest(*self.head.finalize().as_bytes());
        Ok(Manifest { node, id, description, bytes: found, digest, head })
    }

    /// The image gets its name first and keeps it durably, so that a manifest's name never stands alone.
    fn publish(&mut self, manifest: &Manifest) -> Result<(), StoreError> {
        let files = &*self.shared.files;
        let folder = layout::node(&self.shared.root, &self.node);
        let image = layout::file(&self.shared.root, &self.node, self.id, IMAGE);
        let name = layout::file(&self.shared.root, &self.node, self.id, MANIFEST);
        let aside = self.shared.aside();
        let publish = || {
            files.rename(&self.path, &image)?;
            files.sync_dir(&folder)?;
            crate::files::replace(files, &aside, &name, &manifest::encode(manifest))
        };
        let outcome = publish();
        self.pending = outcome.is_err();
        outcome.map_err(|source| {
            // The manifest first and durably, as in every removal; an image that stays is nothing by itself, and is
            // removed when the store is opened.
            drop(files.remove(&aside));
            if files.remove(&name).and_then(|()| files.sync_dir(&folder)).is_ok() {
                drop(files.remove(&image));
            }
            StoreError::Write(image, source)
        })
    }
}

impl Write for Incoming {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes).inspect_err(|error| {
            self.broken |= error.kind() != io::ErrorKind::Interrupted;
        })?;
        let room = HEAD_BYTES.saturating_sub(usize::try_from(self.head.count()).unwrap_or(usize::MAX));
        self.head.update(&bytes[..written.min(room)]);
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.pending {
            // What cannot be removed now is removed when the store is opened.
            drop(self.shared.files.remove(&self.path));
        }
    }
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("node", &self.node).field("id", &self.id).finish_non_exhaustive()
    }
}
