//! Owns the segments of one checkpoint as a whole: they are taken in one after the other, read back as pages, and made into
//! fewer.
//!
//! ```text
//! whole ◀─ adds to it ◀─ adds to that ◀─ …          oldest first
//!          └────────── merge ──────────┘ one that adds to the whole, and says what the newest of them said
//! ```
//!
//! Promises: a page that is given out matches its digest; a merged segment makes the same state as those that it was made
//! of, on the same base. Must not do: choose what is merged, or name files.
//!
//! Cost: a replay reads, decompresses and hashes every byte of the chain; reading back the same once more, and keeps 12
//! bytes for each page of the segment that it reads; a merge is O(what it merges) and never reads what lies below.

use std::collections::BTreeMap;
use std::io::{self, Read};

use super::receiver::{IngestError, Received, Receiver, Source};
use super::segment::{Frame, Given, Head, SegmentError, SegmentReader, SegmentWriter};
use super::table::{PageDigest, PageKey};
use crate::pieces::{AT_ONCE, Pieces};
use crate::stream::PAGE_BYTES as PAGE;

/// Why a chain of segments gives no state.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A segment cannot be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// A segment is damaged.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A segment does not fit on those before it.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// It was whole when it was taken in, and gives something else now.
    #[error("its page {0} is not what it was when it came")]
    Page(u32),
    /// What is to be merged is no chain.
    #[error("what is to be merged is no chain: {0}")]
    NoChain(&'static str),
}

/// Where pages go that are read back.
pub trait PageSink {
    /// Takes one page. They come in no order, each once.
    ///
    /// # Errors
    /// What keeps it from being taken.
    fn page(&mut self, key: PageKey, bytes: &[u8; PAGE]) -> io::Result<()>;
}

/// The frames of a segment, one after the other.
pub(super) struct Frames<'a> {
    pieces: Pieces<'a>,
    reader: SegmentReader,
}

impl<'a> Frames<'a> {
    pub(super) fn of(segment: &'a mut dyn Read) -> Self {
        Self { pieces: Pieces::new(segment), reader: SegmentReader::default() }
    }

    /// The next frame; none at the segment's end.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, ChainError> {
        loop {
            if let Some((_, frame)) = self.reader.frame()? {
                return Ok(Some(frame));
            }
            match self.pieces.next()? {
                Some(piece) => self.reader.push(piece),
                None => {
                    self.reader.ends()?;
                    return Ok(None);
                }
            }
        }
    }
}

/// Takes one whole segment in.
///
/// # Errors
/// When it is damaged, or makes no checkpoint on what the receiver has; that is as it was then.
pub fn replay(receiver: &mut Receiver, segment: &mut dyn Read) -> Result<Received, ChainError> {
    receiver.give_up();
    let received = take_all(receiver, segment);
    receiver.give_up();
    received?.ok_or(ChainError::Segment(SegmentError::Short { at: 0 }))
}

fn take_all(receiver: &mut Receiver, segment: &mut dyn Read) -> Result<Option<Received>, ChainError> {
    let (mut frames, mut received) = (Frames::of(segment), None);
    while let Some(frame) = frames.next()? {
        // What follows an end has no head, and is refused.
        if let Some(whole) = receiver.take(frame)? {
            received = Some(whole);
        }
    }
    Ok(received)
}

/// Reads all pages of what a receiver has back, out of the segments that it took in, by their numbers.
///
/// # Errors
/// When a segment is damaged or gives another page than it did, or when the sink takes one not.
pub fn read_back<R: Read>(
    receiver: &Receiver,
    mut segment: impl FnMut(u32) -> io::Result<R>,
    sink: &mut dyn PageSink,
) -> Result<(), ChainError> {
    let mut stored: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for (key, digest, source) in receiver.pages() {
        match source {
            Source::Fill(byte) => sink.page(key, &[byte; PAGE])?,
            Source::Stored { segment, page } => {
                stored.entry(segment).or_default().push((page, (key, digest)));
            }
        }
    }
    for (number, wanted) in stored {
        let mut source = segment(number)?;
        stored_pages(&mut source, wanted, |page, (key, of), digest, bytes| {
            if digest != of {
                return Err(ChainError::Page(page));
            }
            Ok(sink.page(key, bytes)?)
        })?;
    }
    Ok(())
}

/// Hands on pages that a segment stores, by their numbers, each with its digest and with what goes with its number.
fn stored_pages<T>(
    segment: &mut dyn Read,
    mut wanted: Vec<(u32, T)>,
    mut take: impl FnMut(u32, T, PageDigest, &[u8; PAGE]) -> Result<(), ChainError>,
) -> Result<(), ChainError> {
    wanted.sort_unstable_by_key(|(page, _)| *page);
    let mut wanted = wanted.into_iter().peekable();
    let mut next = 0_u32;
    let mut frames = Frames::of(segment);
    while let Some(frame) = frames.next()? {
        let Frame::Pages(pages) = frame else { continue };
        for bytes in pages.stored() {
            let mut digest = None;
            while let Some((page, with)) = wanted.next_if(|(page, _)| *page == next) {
                take(page, with, *digest.get_or_insert_with(|| PageDigest::of(bytes)), bytes)?;
            }
            next += 1;
        }
    }
    wanted.next().map_or(Ok(()), |(page, _)| Err(ChainError::Page(page)))
}

/// Makes one segment of several that follow on each other, the oldest first. It is handed on in pieces.
///
/// # Errors
/// When one is damaged or does not follow on the one before it, or when `out` takes a piece not.
pub fn merge<R: Read>(
    count: usize,
    mut segment: impl FnMut(usize) -> io::Result<R>,
    out: &mut dyn io::Write,
) -> Result<Head, ChainError> {
    let mut head: Option<Head> = None;
    let mut newest: BTreeMap<PageKey, (usize, Given)> = BTreeMap::new();
    let (mut rest, mut root) = (Vec::new(), None);
    for number in 0..count {
        rest.clear();
        root = None;
        let mut source = segment(number)?;
        let mut frames = Frames::of(&mut source);
        while let Some(frame) = frames.next()? {
            match frame {
                Frame::Head(of) => match &mut head {
                    Some(head)
                        if of.base != Some(head.id) || of.blocks != head.blocks || of.node != head.node =>
                    {
                        return Err(ChainError::NoChain("one does not add to the one before it"));
                    }
                    Some(head) => head.id = of.id,
                    None => head = Some(*of),
                },
                Frame::Pages(pages) => {
                    let named = pages.entries.into_iter().map(|(key, given)| (key, (number, given)));
                    newest.extend(named);
                }
                Frame::State(bytes) => rest.extend_from_slice(&bytes),
                Frame::End { root: of, .. } => root = Some(of),
            }
        }
    }
    let (Some(head), Some(root)) = (head, root) else { return Err(ChainError::NoChain("there is none")) };
    let mut writer = SegmentWriter::new(&head);
    let mut stored: BTreeMap<usize, Vec<(u32, PageKey)>> = BTreeMap::new();
    for (key, (number, given)) in newest {
        match given {
            Given::Fill(byte) => {
                let bytes = [byte; PAGE];
                writer.page(key, PageDigest::of(&bytes), &bytes)?;
            }
            Given::Stored(page) => stored.entry(number).or_default().push((page, key)),
        }
    }
    for (number, wanted) in stored {
        let mut source = segment(number)?;
        stored_pages(&mut source, wanted, |_, key, digest, bytes| {
            writer.page(key, digest, bytes)?;
            if writer.ready() >= AT_ONCE {
                out.write_all(&writer.take())?;
            }
            Ok(())
        })?;
    }
    writer.state(&rest)?;
    out.write_all(&writer.end(root)?)?;
    Ok(head)
}
