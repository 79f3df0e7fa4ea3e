//! Owns the bound on what the checkpoints of a node take: what lies below the oldest that is kept becomes one segment.
//!
//! ```text
//! whole ◀ a ◀ b ◀ … ◀ oldest kept ◀ newest      many small ones:  whole ◀ oldest kept ◀ newest
//! └────────── merged ──────────┘                half of the whole: oldest kept ◀ newest
//! ```
//!
//! Promises: every checkpoint that was complete is so at each moment, power lost or not; what was merged says of its state
//! what the checkpoint said. Must not do: run on the way of a checkpoint or of a failover; the caller does it when there is
//! nothing else to do.
//!
//! Cost: what was added to a whole is read and written once more for each [`ADDED`] checkpoints, and the whole once more for
//! each half of its size: together each byte that comes is written up to five times, and a node takes up to twice the whole.

use std::sync::TryLockError;

use understudy_core::model::ids::NodeId;
use understudy_core::model::records::CheckpointId;

use super::{ImageError, ImageStore, Link, StoreError};
use crate::files::WriteFile;
use crate::layout;
use crate::manifest::{self, Damage, Manifest};
use crate::pages::{ChainError, merge};

/// How many add to a whole before they become one.
pub(super) const ADDED: usize = 16;

impl ImageStore {
    /// Makes fewer segments of a node's, if there are too many or they take too much; whether it did. While it is at work for
    /// one, it does nothing for others: the next checkpoint asks again.
    ///
    /// # Errors
    /// When one is damaged, or when the disk does not do it. All is as it was then.
    pub fn compact(&self, node: &NodeId) -> Result<bool, ImageError> {
        let _one = match self.shared.compacting.try_lock() {
            Ok(one) => one,
            // It guards no value.
            Err(TryLockError::Poisoned(one)) => one.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        let (chain, merge_from) = {
            let index = self.shared.lock();
            let Some(held) = index.0.get(node) else { return Ok(false) };
            (held.below(), held.merge_from)
        };
        if chain.len() < merge_from {
            return Ok(false);
        }
        let Some(((_, whole), added)) = chain.split_first() else { return Ok(false) };
        let bytes: u64 = added.iter().map(|(_, link)| link.bytes).sum();
        let merged = if added.is_empty() || whole.base.is_some() {
            return Ok(false);
        } else if bytes >= whole.bytes / 2 {
            &chain[..]
        } else if added.len() > ADDED {
            added
        } else {
            return Ok(false);
        };
        let aside = self.shared.aside();
        let made = self.merge(node, merged, &aside).inspect_err(|error| self.remember(error));
        if let Some(held) = self.shared.lock().0.get_mut(node) {
            // A disk without room has none for the next try either, and other nodes' checkpoints need what there is.
            held.merge_from = if made.is_err() { chain.len() + ADDED } else { 0 };
        }
        // Nothing of it is left where it failed, or where the checkpoint went meanwhile.
        if !matches!(made, Ok(true)) {
            drop(self.shared.files.remove(&aside));
        }
        made
    }

    fn merge(
        &self,
        node: &NodeId,
        merged: &[(CheckpointId, Link)],
        aside: &std::path::Path,
    ) -> Result<bool, ImageError> {
        let Some((id, link)) = merged.last().copied() else { return Ok(false) };
        let files = &*self.shared.files;
        let failed = |source| StoreError::Write(aside.to_owned(), source);
        let mut file = files.create(aside).map_err(|source| StoreError::Create(aside.to_owned(), source))?;
        let mut out = Counted { file: &mut *file, bytes: 0, failed: false };
        let segment = |number: usize| {
            let (id, link) = merged[number];
            files.open(&layout::segment(&self.shared.root, node, id, link.base))
        };
        let own = self.shared.node(node);
        let read = own.read();
        let head = merge(merged.len(), segment, &mut out).map_err(|error| match error {
            ChainError::Read(source) if out.failed => failed(source).into(),
            ChainError::Read(source) => {
                ImageError::Store(StoreError::Read(layout::node(&self.shared.root, node), source))
            }
            error => ImageError::Damaged(node.clone(), id, Damage::Image(error.to_string())),
        })?;
        let bytes = out.bytes;
        file.sync().map_err(failed)?;
        drop(read);
        let _change = own.change();
        let mut index = self.shared.lock();
        let base_is_there = head.base.is_none_or(|base| index.has(node, base));
        let held = index.0.get_mut(node);
        let known = held.and_then(|held| held.complete.get_mut(&id)).filter(|known| **known == Some(link));
        let Some(known) = known.filter(|_| base_is_there) else { return Ok(false) };
        let name = layout::manifest(&self.shared.root, node, id);
        let damaged = |damage| ImageError::Damaged(node.clone(), id, damage);
        let before = files.read(&name, manifest::BYTES_MAX);
        let before = before.map_err(|source| StoreError::Read(name.clone(), source))?.unwrap_or_default();
        let manifest = Manifest { base: head.base, bytes, ..manifest::decode(&before).map_err(damaged)? };
        if let Err(source) = self.shared.publish(aside, &manifest) {
            // Which of the two manifests is there now is read from the disk; the other segment goes when the store is next
            // opened, and is needed until then if power is lost.
            let now = files.read(&name, manifest::BYTES_MAX).ok().flatten();
            *known = now.and_then(|bytes| manifest::decode(&bytes).ok()).map(|now| Link::of(&now));
            return Err(StoreError::Write(name, source).into());
        }
        *known = Some(Link::of(&manifest));
        // What cannot be removed now is removed at the next one, or when the store is opened.
        drop(files.remove(&layout::segment(&self.shared.root, node, id, link.base)));
        drop(self.shared.prune(&mut index, node));
        Ok(true)
    }
}

/// Counts what is written.
struct Counted<'a> {
    file: &'a mut dyn WriteFile,
    bytes: u64,
    failed: bool,
}

impl std::io::Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes).inspect_err(|error| {
            self.failed |= error.kind() != std::io::ErrorKind::Interrupted;
        })?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
