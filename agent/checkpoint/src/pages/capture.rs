//! Owns the way from a save image to segments: an image is taken apart into what changed of it.
//!
//! ```text
//! save image = libvirt's header | QEMU's stream
//!               │                  ├── pages ─▶ Tracker ─▶ a segment for each base that a receiver has
//!               └── the rest ◀─────┴── skeleton
//! ```
//!
//! Promises: an image is read once, however many receivers there are; one that lacks a page makes no segment. Must not do:
//! open files.
//!
//! Cost: one pass over the image, hashing all of it; nothing of it is kept but the tracker's digests and the rest, some
//! 100 KiB.

use std::io::{self, Read, Write};

use understudy_core::model::ids::NodeId;
use understudy_core::model::records::CheckpointId;

use super::image::{UnreadableImage, read_image};
use super::rest;
use super::segment::{Head, SegmentWriter};
use super::table::{Blocks, BlocksError, PageKey};
use super::tracker::{Changes, Tracker};
use crate::digest::Digest;
use crate::pieces::AT_ONCE;
use crate::save_image::SaveImage;
use crate::stream::{Event, PAGE_BYTES as PAGE, Page, Place, Skeleton};

/// Why an image makes no segments.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It is no save image that can be read.
    #[error(transparent)]
    Image(#[from] UnreadableImage),
    /// A segment cannot be written.
    #[error("what changed cannot be written")]
    Write(#[source] io::Error),
    /// Its RAM blocks are none.
    #[error(transparent)]
    Blocks(#[from] BlocksError),
    /// It has pages before its blocks, or one that is in none of them.
    #[error("the image has a page of RAM block {} at {} that cannot be named", .0.block.0, .0.offset)]
    Place(Place),
    /// It does not have every page.
    #[error("the image lacks {0} pages")]
    Incomplete(u64),
}

/// A segment that is asked for.
pub struct Wanted<'a> {
    /// The checkpoint that its receivers have, and the number of the tracker's image that it was; none for the whole.
    pub base: Option<(CheckpointId, u32)>,
    /// Where it goes.
    pub out: &'a mut dyn Write,
}

/// What was taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// The tracker's number of the image: what later ones name as their base.
    pub image: u32,
    /// The digest of all pages.
    pub root: Digest,
    /// Whether every segment is whole by itself: the guest's blocks are not what they were.
    pub anew: bool,
}

/// Takes a save image apart: tells the tracker of every page, and writes what each receiver lacks. What is written until an
/// error is no segment.
///
/// # Errors
/// What is wrong with the image, or what could not be written.
pub fn capture(
    image: &mut dyn Read,
    tracker: &mut Option<Tracker>,
    (node, id): (&NodeId, CheckpointId),
    wanted: &mut [Wanted<'_>],
) -> Result<Captured, CaptureError> {
    let mut capture = Capture { tracker, node, id, wanted, segments: Vec::new(), begun: None };
    let (header, skeleton) = read_image(image, |event| capture.event(event))?;
    capture.finish(&header, &skeleton)
}

/// A capture that is under way.
struct Capture<'a, 'b> {
    tracker: &'a mut Option<Tracker>,
    node: &'a NodeId,
    id: CheckpointId,
    wanted: &'a mut [Wanted<'b>],
    /// For each of those that are wanted, once the blocks are known.
    segments: Vec<Segment>,
    /// The tracker's number of the image, and whether the blocks are not what they were.
    begun: Option<(u32, bool)>,
}

struct Segment {
    changes: Changes,
    writer: SegmentWriter,
}

impl Capture<'_, '_> {
    fn event(&mut self, event: Event<'_>) -> Result<(), CaptureError> {
        match event {
            Event::Blocks(blocks) => {
                self.begin(&Blocks::new(blocks.to_vec())?);
                Ok(())
            }
            Event::Page(place, Page::Bytes(bytes)) => self.page(place, bytes),
            Event::Page(place, Page::Fill(byte)) => self.page(place, &[byte; PAGE]),
            Event::Machine(_) | Event::RamEnd => Ok(()),
        }
    }

    fn begin(&mut self, blocks: &Blocks) {
        let known = self.tracker.take().filter(|known| known.blocks() == blocks);
        let anew = known.is_none();
        let tracker = self.tracker.insert(known.unwrap_or_else(|| Tracker::new(blocks.clone())));
        self.begun = Some((tracker.begin(), anew));
        for wanted in &*self.wanted {
            let base = wanted.base.filter(|_| !anew);
            let changes = base.map_or(Changes::Whole, |(_, image)| Changes::Since(image));
            let (node, base) = (self.node.clone(), base.map(|(base, _)| base));
            let head = Head { node, id: self.id, base, blocks: blocks.clone() };
            self.segments.push(Segment { changes, writer: SegmentWriter::new(&head) });
        }
    }

    fn page(&mut self, place: Place, bytes: &[u8; PAGE]) -> Result<(), CaptureError> {
        let nowhere = CaptureError::Place(place);
        let (Some(tracker), Some(key)) = (self.tracker.as_mut(), PageKey::at(place)) else {
            return Err(nowhere);
        };
        let Some(digest) = tracker.page(key, bytes) else { return Err(nowhere) };
        for (segment, wanted) in self.segments.iter_mut().zip(&mut *self.wanted) {
            if !tracker.goes(key, segment.changes) {
                continue;
            }
            segment.writer.page(key, digest, bytes).map_err(CaptureError::Write)?;
            if segment.writer.ready() >= AT_ONCE {
                wanted.out.write_all(&segment.writer.take()).map_err(CaptureError::Write)?;
            }
        }
        Ok(())
    }

    fn finish(self, header: &SaveImage, skeleton: &Skeleton) -> Result<Captured, CaptureError> {
        let (Some((image, anew)), Some(tracker)) = (self.begun, self.tracker) else {
            return Err(CaptureError::Incomplete(skeleton.places()));
        };
        let root = tracker.root().ok_or_else(|| CaptureError::Incomplete(tracker.missing()))?;
        let rest = rest::encode(&header.encode().map_err(UnreadableImage::Header)?, skeleton);
        for (mut segment, wanted) in self.segments.into_iter().zip(self.wanted) {
            let ended = segment.writer.state(&rest).and_then(|()| segment.writer.end(root));
            ended.and_then(|bytes| wanted.out.write_all(&bytes)).map_err(CaptureError::Write)?;
        }
        Ok(Captured { image, root, anew })
    }
}
