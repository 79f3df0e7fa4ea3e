//! What a node's folder says of its checkpoints: at the start, and once more where something of it could not be read.
//!
//! Promises: what could not be read is neither damaged nor gone; what was never completed is removed. Must not do: look at pages.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use understudy_core::model::ids::{Epoch, NodeId};
use understudy_core::model::records::CheckpointId;

use super::index::{Held, Link};
use super::{ImageStore, StoreError};
use crate::files::Files;
use crate::layout::{self, EPOCH};
use crate::manifest::{self, BYTES_MAX, Damage};

impl ImageStore {
    /// Looks once more at what a node has here, if something of it could not be read before.
    ///
    /// # Errors
    /// That it still cannot.
    pub fn look_again(&self, node: &NodeId) -> Result<(), StoreError> {
        let own = self.shared.node(node);
        let _change = own.change();
        let mut index = self.shared.lock();
        if !index.is_unsure(node) {
            return Ok(());
        }
        let (mut held, faults) = read_node(&*self.shared.files, &layout::node(&self.shared.root, node));
        let is_absent = |fault: &StoreError| match fault {
            StoreError::Read(_, source) => source.kind() == ErrorKind::NotFound,
            _ => false,
        };
        // A node of which nothing was ever kept has no folder.
        if let Some(fault) = faults.into_iter().find(|fault| !is_absent(fault)) {
            return Err(fault);
        }
        held.unsure = false;
        index.found(node, held);
        Ok(())
    }
}

/// Reads a node's folder and removes segments whose checkpoint was never completed, is half removed, or has another.
pub(super) fn read_node(files: &dyn Files, folder: &Path) -> (Held, Vec<StoreError>) {
    let path = folder.join(EPOCH);
    let mut faults = Vec::new();
    let bytes = files.read(&path, 64).map_err(|source| StoreError::Read(path.clone(), source));
    let entries = files.list(folder).map_err(|source| StoreError::Read(folder.to_owned(), source));
    let entries = entries.map_err(|fault| faults.push(fault)).unwrap_or_default();
    // What cannot be read may be anything.
    let mut unsure = !faults.is_empty();
    let (mut complete, mut damaged) = (BTreeMap::new(), None);
    for (path, id) in entries.iter().filter_map(|path| Some((path, layout::manifest_of(path)?))) {
        let bytes = files.read(path, BYTES_MAX).map_err(|source| StoreError::Read(path.clone(), source));
        unsure |= bytes.is_err();
        let bytes = bytes.map_err(|fault| faults.push(fault)).ok().flatten();
        let manifest = bytes.map(|bytes| manifest::decode(&bytes)).and_then(|manifest| match manifest {
            Ok(manifest) if manifest.id == id => Some(manifest),
            Ok(_) => {
                damaged = Some((id, Damage::Misplaced));
                None
            }
            Err(damage) => {
                damaged = Some((id, damage));
                None
            }
        });
        complete.insert(id, manifest.as_ref().map(Link::of));
    }
    // Half removed: what it adds to is gone.
    for id in complete.keys().copied().collect::<Vec<_>>() {
        let base = complete.get(&id).copied().flatten().and_then(|link: Link| link.base);
        if base.is_some_and(|base| !complete.contains_key(&base)) {
            complete.remove(&id);
            let path = folder.join(layout::manifest_name(id));
            faults.extend(files.remove(&path).map_err(|source| StoreError::Remove(path, source)).err());
        }
    }
    let segments = entries.iter().filter_map(|path| Some((path, layout::segment_of(path)?)));
    // What a damaged manifest says is not known: whoever mends it needs the segment.
    let is_none = |id: &CheckpointId, base: &Option<CheckpointId>| match complete.get(id) {
        None => true,
        Some(link) => link.is_some_and(|link| link.base != *base),
    };
    for (path, _) in segments.filter(|(_, (id, base))| is_none(id, base)) {
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
    let proven = complete.last_key_value().map_or(seen, |(newest, _)| seen.max(newest.epoch));
    let seen_is_durable = durable && proven == seen;
    let newest = complete.values().flatten().max_by_key(|link: &&Link| link.taken);
    let instance = newest.map(|link| link.instance);
    let held = Held {
        seen: proven,
        seen_is_durable,
        unreadable,
        damaged,
        instance,
        unsure,
        complete,
        ..Held::default()
    };
    (held, faults)
}
