//! A guest's sender and the host of its backup: images go in, segments come out and are taken in.
#![allow(dead_code, reason = "each of those that share it uses a part")]

use understudy_checkpoint::pages::{Receiver, Tracker, Wanted, capture, rebuild, replay};
use understudy_core::model::ids::{Epoch, NodeId};
use understudy_core::model::records::CheckpointId;

#[derive(Default)]
pub(crate) struct Chain {
    pub(crate) tracker: Option<Tracker>,
    pub(crate) receiver: Receiver,
    pub(crate) segments: Vec<Vec<u8>>,
    last: Option<(CheckpointId, u32)>,
}

pub(crate) fn node() -> NodeId {
    "alice/exec-1".parse().expect("a node")
}

pub(crate) const fn id(sequence: u64) -> CheckpointId {
    CheckpointId { epoch: Epoch(2), sequence }
}

impl Chain {
    /// Captures an image and takes the segment in: what changed since the one before.
    pub(crate) fn add(&mut self, image: &[u8]) -> Vec<u8> {
        let of = id(self.segments.len() as u64 + 1);
        let mut segment = Vec::new();
        let mut wanted = [Wanted { base: self.last, out: &mut segment }];
        let captured =
            capture(&mut &*image, &mut self.tracker, (&node(), of), &mut wanted).expect("an image");
        self.last = Some((of, captured.image));
        self.take(segment)
    }

    pub(crate) fn take(&mut self, segment: Vec<u8>) -> Vec<u8> {
        replay(&mut self.receiver, &mut &segment[..]).expect("a segment");
        self.segments.push(segment.clone());
        segment
    }

    pub(crate) fn rebuilt(&self) -> Vec<u8> {
        let mut out = Vec::new();
        rebuild(&self.receiver, |number| Ok(&self.segments[number as usize][..]), &mut out)
            .expect("an image");
        out
    }
}
