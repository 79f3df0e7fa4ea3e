//! Owns what is known here of the pages of this host's primaries, so that only what changed travels.
//!
//! Promises: what is said to add to a checkpoint holds all that changed since that one was taken; what is not known any more
//! makes a copy that is whole by itself. Must not do: choose what a host gets.
//!
//! Cost: 20 bytes for each page of 4 KiB of a primary's memory; one pass over the image for each checkpoint.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use understudy_checkpoint::pages::{CaptureError, Tracker, Wanted, capture};
use understudy_core::model::ids::{InstanceId, NodeId};
use understudy_core::model::records::CheckpointId;

/// Checkpoints of one instance to which can be added: more than a host lags behind while it counts as one that takes copies.
const KNOWN: usize = 32;
/// Bytes that are written at a time.
const AT_ONCE: usize = 256 << 10;

/// What of a checkpoint goes to some hosts: a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// What it adds to; none where it is whole by itself.
    pub(super) base: Option<CheckpointId>,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

/// What is known of one instance.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    tracker: Option<Tracker>,
    /// The tracker's number of each checkpoint.
    images: BTreeMap<CheckpointId, u32>,
}

/// What is known of all.
#[derive(Debug, Default)]
pub struct Trackers(Mutex<BTreeMap<InstanceId, Arc<Mutex<Tracked>>>>);

impl Trackers {
    pub(super) fn of(&self, instance: InstanceId) -> Arc<Mutex<Tracked>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(instance).or_default().clone()
    }

    /// Forgets those that are not here any more.
    pub(super) fn keep(&self, is_here: impl Fn(InstanceId) -> bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|instance, _| is_here(*instance));
    }
}

impl Tracked {
    /// Takes an image apart: one file for each of these bases, and for all of those that are not known one that is whole.
    pub(super) fn take(
        &mut self,
        image: &mut dyn Read,
        of: (&NodeId, CheckpointId),
        bases: impl IntoIterator<Item = Option<CheckpointId>>,
        path: impl Fn(usize) -> PathBuf,
    ) -> Result<Vec<Segment>, CaptureError> {
        let known = |base: Option<CheckpointId>| {
            let base = base?;
            Some((base, *self.images.get(&base)?))
        };
        let mut wanted: Vec<Option<(CheckpointId, u32)>> = bases.into_iter().map(known).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let paths: Vec<PathBuf> = (0..wanted.len()).map(path).collect();
        let files: io::Result<Vec<_>> = paths.iter().map(|path| create(path)).collect();
        let mut files = files.map_err(CaptureError::Write)?;
        let mut copies: Vec<Wanted<'_>> =
            wanted.iter().zip(&mut files).map(|(base, out)| Wanted { base: *base, out }).collect();
        let blocks = self.tracker.as_ref().map(|tracker| tracker.blocks().clone());
        let captured = capture(image, &mut self.tracker, of, &mut copies);
        // Another tracker counts anew, also where the image came to nothing after that.
        if blocks.as_ref() != self.tracker.as_ref().map(Tracker::blocks) {
            self.images.clear();
        }
        let captured = captured?;
        self.images.insert(of.1, captured.image);
        while self.images.len() > KNOWN {
            self.images.pop_first();
        }
        let mut segments = Vec::new();
        for ((base, path), file) in wanted.into_iter().zip(paths).zip(files) {
            let written = file.into_inner().map_err(io::IntoInnerError::into_error);
            let bytes = written.and_then(|file| file.metadata()).map_err(CaptureError::Write)?.len();
            let base = base.map(|(base, _)| base).filter(|_| !captured.anew);
            segments.push(Segment { base, path, bytes });
        }
        Ok(segments)
    }
}

/// A guest's memory is nobody else's to read.
fn create(path: &Path) -> io::Result<BufWriter<std::fs::File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(BufWriter::with_capacity(AT_ONCE, file))
}
