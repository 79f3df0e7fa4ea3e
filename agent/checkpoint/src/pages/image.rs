//! Owns the way between a save image of libvirt and pages: an image is taken apart into what changed of it, and made again
//! out of segments.
//!
//! ```text
//! save image = libvirt's header | QEMU's stream
//!               │                  ├── pages ─▶ Tracker ─▶ a segment for each base that a receiver has
//!               └── the rest ◀─────┴── skeleton
//! ```
//!
//! Promises: an image is read once, however many receivers there are; one that lacks a page makes no segment; what is made
//! again has every page that the guest had, and libvirt's header as it was. Must not do: open files.
//!
//! Cost: one pass over the image, hashing all of it; nothing of it is kept but the tracker's digests and the rest, some
//! 100 KiB.

use std::io::{self, Read, Write};

use understudy_core::model::ids::NodeId;
use understudy_core::model::records::CheckpointId;

use super::chain::{ChainError, PageSink, read_back};
use super::receiver::Receiver;
use super::segment::{Head, SegmentWriter};
use super::table::{Blocks, BlocksError, PageDigest, PageKey};
use super::tracker::{Changes, Tracker};
use crate::digest::Digest;
use crate::pieces::{AT_ONCE, Pieces};
use crate::save_image::{SaveImage, SaveImageError, SaveImageParser};
use crate::stream::{
    Absent, Event, Limits, PAGE_BYTES as PAGE, Page, Parser, Skeleton, StreamError, StreamWriter, WriteError,
};

/// Why an image makes no segments.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The image cannot be read.
    #[error("the image cannot be read")]
    Read(#[source] io::Error),
    /// A segment cannot be written.
    #[error("what changed cannot be written")]
    Write(#[source] io::Error),
    /// It has no header of libvirt's.
    #[error(transparent)]
    Header(#[from] SaveImageError),
    /// It has no stream of QEMU's that is known.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Its RAM blocks are none.
    #[error(transparent)]
    Blocks(#[from] BlocksError),
    /// It has pages before its blocks, or one that is in none of them.
    #[error("the image has a page of RAM block {} at {} that cannot be named", .0.block.0, .0.offset)]
    Place(crate::stream::Place),
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

struct Segment<'a, 'b> {
    changes: Changes,
    writer: SegmentWriter,
    wanted: &'b mut Wanted<'a>,
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
    let mut pieces = Pieces::new(image);
    let mut header = SaveImageParser::default();
    let (mut parser, mut header_bytes) = (Parser::new(Limits::default()), Vec::new());
    let (mut segments, mut wanted, mut begun) = (Vec::new(), Some(wanted), None);
    while let Some(mut rest) = pieces.next().map_err(CaptureError::Read)? {
        if header_bytes.is_empty() {
            match header.next(&mut rest)? {
                Some(known) => header_bytes = known.encode()?,
                None => continue,
            }
        }
        while let Some(event) = parser.next(&mut rest)? {
            match event {
                Event::Blocks(blocks) => {
                    let blocks = Blocks::new(blocks.to_vec())?;
                    let anew = tracker.as_ref().is_none_or(|known| *known.blocks() != blocks);
                    if anew {
                        *tracker = Some(Tracker::new(blocks.clone()));
                    }
                    let head = |base| Head { node: node.clone(), id, base, blocks: blocks.clone() };
                    for one in wanted.take().into_iter().flatten() {
                        let base = one.base.filter(|_| !anew);
                        let changes = base.map_or(Changes::Whole, |(_, image)| Changes::Since(image));
                        let writer = SegmentWriter::new(&head(base.map(|(base, _)| base)));
                        segments.push(Segment { changes, writer, wanted: one });
                    }
                    begun = tracker.as_mut().map(|tracker| (tracker.begin(), anew));
                }
                Event::Page(place, page) => {
                    let filled;
                    let bytes = match page {
                        Page::Bytes(bytes) => bytes,
                        Page::Fill(byte) => {
                            filled = [byte; PAGE];
                            &filled
                        }
                    };
                    let nowhere = CaptureError::Place(place);
                    let (Some(tracker), Some(key)) = (tracker.as_mut(), PageKey::at(place)) else {
                        return Err(nowhere);
                    };
                    let Some(digest) = tracker.page(key, bytes) else { return Err(nowhere) };
                    for segment in segments.iter_mut().filter(|one| tracker.goes(key, one.changes)) {
                        segment.add(key, digest, bytes).map_err(CaptureError::Write)?;
                    }
                }
                Event::Machine(_) | Event::RamEnd => {}
            }
        }
    }
    if header_bytes.is_empty() {
        return Err(header.truncated().into());
    }
    let skeleton = parser.finish()?;
    let (Some((image, anew)), Some(tracker)) = (begun, tracker) else {
        return Err(CaptureError::Incomplete(skeleton.places()));
    };
    let root = tracker.root().ok_or_else(|| CaptureError::Incomplete(tracker.missing()))?;
    for mut segment in segments {
        let rest = rest_of(&header_bytes, &skeleton);
        let ended = rest.iter().try_for_each(|bytes| segment.writer.state(bytes));
        let ended = ended.and_then(|()| segment.writer.end(root));
        ended.and_then(|bytes| segment.wanted.out.write_all(&bytes)).map_err(CaptureError::Write)?;
    }
    Ok(Captured { image, root, anew })
}

impl Segment<'_, '_> {
    fn add(&mut self, key: PageKey, digest: PageDigest, bytes: &[u8; PAGE]) -> io::Result<()> {
        self.writer.page(key, digest, bytes)?;
        if self.writer.ready() >= AT_ONCE {
            self.wanted.out.write_all(&self.writer.take())?;
        }
        Ok(())
    }
}

/// The rest of a state: the length of libvirt's header, the header, the stream without its pages.
fn rest_of<'a>(header: &'a [u8], skeleton: &'a Skeleton) -> [std::borrow::Cow<'a, [u8]>; 3] {
    let length = u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes();
    [length.to_vec().into(), header.into(), skeleton.bytes().into()]
}

/// Why no image can be made out of segments.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The rest of the state is not what an image was taken apart into.
    #[error("the rest of the state has no header of libvirt's")]
    Rest,
    /// The skeleton is none.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The stream cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The pages cannot be had.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// Makes the save image of what a receiver has, out of the segments that it took in, by their numbers.
///
/// # Errors
/// When a segment is damaged, or the image cannot be written.
pub fn rebuild<R: Read>(
    receiver: &Receiver,
    segment: impl FnMut(u32) -> io::Result<R>,
    out: &mut dyn Write,
) -> Result<(), RebuildError> {
    let (length, rest) = receiver.rest().split_at_checked(4).ok_or(RebuildError::Rest)?;
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    let (header, skeleton) = rest.split_at_checked(length).ok_or(RebuildError::Rest)?;
    let skeleton = Skeleton::from_bytes(skeleton, Limits::default())?;
    out.write_all(header).map_err(WriteError::Write)?;
    // Every page is given, the zero ones too.
    let mut sink = Sink(Some(StreamWriter::new(&skeleton, Absent::Refuse, out)?), None);
    let read = read_back(receiver, segment, &mut sink);
    if let Some(error) = sink.1.take() {
        return Err(error.into());
    }
    read?;
    if let Some(writer) = sink.0 {
        writer.finish()?;
    }
    Ok(())
}

/// The stream, and what went wrong with it.
struct Sink<'a, W>(Option<StreamWriter<'a, W>>, Option<WriteError>);

impl<W: Write> PageSink for Sink<'_, W> {
    fn page(&mut self, key: PageKey, bytes: &[u8; PAGE]) -> io::Result<()> {
        let page = if *bytes == [0; PAGE] { Page::Fill(0) } else { Page::Bytes(bytes) };
        let Some(writer) = &mut self.0 else { return Ok(()) };
        writer.page(key.place(), page).map_err(|error| {
            let told = io::Error::other(error.to_string());
            self.1 = Some(error);
            told
        })
    }
}

/// The header that an image begins with, for whoever needs its XML.
///
/// # Errors
/// When the rest of the state has none.
pub fn header_of(receiver: &Receiver) -> Result<SaveImage, RebuildError> {
    let mut rest = receiver.rest().get(4..).ok_or(RebuildError::Rest)?;
    let header = SaveImageParser::default().next(&mut rest).map_err(|_| RebuildError::Rest)?;
    header.ok_or(RebuildError::Rest)
}
