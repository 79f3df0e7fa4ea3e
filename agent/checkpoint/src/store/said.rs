//! What is said of a node's checkpoints to whoever decides by it, and how that stays true.
//!
//! Promises: what is complete is said as the index has it, and nobody who asks waits for the disk, whatever is written there at the
//! moment; once a primary is said to be dead nothing
//! of it begins to come for a while, so that nothing is complete a moment later that was not said. Must not do: choose.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use understudy_core::model::ids::{Epoch, InstanceId, NodeId};
use understudy_core::model::records::{Checkpoint, CheckpointId, Kept};

use super::{BeginError, ImageStore, Index, Shared};

/// What comes no more, and until when.
#[derive(Debug)]
pub(super) struct Closed {
    instance: InstanceId,
    epoch: Epoch,
    until: Instant,
}

/// What is said of every node.
#[derive(Debug, Default)]
pub(super) struct Said {
    of: BTreeMap<NodeId, (Vec<Checkpoint>, bool)>,
    /// Whether it is not even known which nodes there are.
    unsure: bool,
}

impl Said {
    pub(super) fn of(index: &Index, unsure: bool) -> Self {
        let of = index.0.iter().map(|(node, held)| (node.clone(), (held.offered(), held.unsure)));
        Self { of: of.collect(), unsure }
    }
}

/// The index, for whoever works with it. What is said follows it once that is over, so that nothing is said of what is on its way
/// to the disk; the whole of it, which takes O(checkpoints that are kept).
pub(crate) struct Locked<'a> {
    index: MutexGuard<'a, Index>,
    said: &'a Mutex<Said>,
    is_changed: bool,
}

impl<'a> Locked<'a> {
    pub(super) fn new(index: MutexGuard<'a, Index>, said: &'a Mutex<Said>) -> Self {
        Self { index, said, is_changed: false }
    }

    /// For a change of which nothing is said.
    pub(super) fn quietly(&mut self) -> &mut Index {
        &mut self.index
    }

    /// Whether something of a node could not be read.
    pub(super) fn is_unsure(&self, node: &NodeId) -> bool {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.of.get(node).map_or(said.unsure, |(_, unsure)| *unsure)
    }
}

impl Deref for Locked<'_> {
    type Target = Index;

    fn deref(&self) -> &Index {
        &self.index
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Index {
        self.is_changed = true;
        &mut self.index
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.is_changed {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            *said = Said::of(&self.index, said.unsure);
        }
    }
}

impl Shared {
    /// Whether nobody was told meanwhile that no more of it comes.
    pub(super) fn is_open(
        &self,
        node: &NodeId,
        id: CheckpointId,
        instance: InstanceId,
    ) -> Result<(), BeginError> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_closed = |closed: &&Closed| {
            closed.instance == instance && id.epoch <= closed.epoch && closed.until > Instant::now()
        };
        match closed.get(node).filter(is_closed) {
            Some(_) => Err(BeginError::Closed { node: node.clone(), id }),
            None => Ok(()),
        }
    }
}

impl ImageStore {
    /// What this host can restore of a node as far as anybody knows, and whether more is on its way. The disk is not looked at,
    /// and may say otherwise when it is.
    #[must_use]
    pub fn kept(&self, node: &NodeId) -> Kept {
        self.say(node, |_| ())
    }

    /// The same, and from now on no checkpoint of this instance begins to come that is of an epoch up to this one, for `time`:
    /// what was said stays true meanwhile. One that was on its way is said to be, and may come.
    #[must_use]
    pub fn close(&self, node: &NodeId, (instance, epoch): (InstanceId, Epoch), time: Duration) -> Kept {
        self.say(node, |closed| {
            let until = Instant::now() + time;
            closed.retain(|_, closed| closed.until > Instant::now());
            closed.insert(node.clone(), Closed { instance, epoch, until });
        })
    }

    fn say(&self, node: &NodeId, close: impl FnOnce(&mut BTreeMap<NodeId, Closed>)) -> Kept {
        let own = self.shared.node(node);
        close(&mut self.shared.closed.lock().unwrap_or_else(PoisonError::into_inner));
        // Whatever begins to come is counted before it is looked whether it may, and until it is said to be complete: so it is
        // looked at in this order.
        let arriving = own.arriving.load(Ordering::SeqCst) > 0;
        let said = self.shared.said.lock().unwrap_or_else(PoisonError::into_inner);
        let (complete, unsure) = said.of.get(node).cloned().unwrap_or((Vec::new(), said.unsure));
        Kept { complete, arriving, unsure }
    }
}
