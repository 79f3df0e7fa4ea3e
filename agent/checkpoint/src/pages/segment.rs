//! Owns the bytes of a segment: the pages that one checkpoint changed, and the rest of its state, as they travel and as
//! they are kept.
//!
//! ```text
//! segment   = "UNDSPG1\n" frame…                  head first, end last
//! frame     = kind u8, length u32, check 16 bytes, payload         numbers are little-endian
//! kind 1    head: JSON
//! kind 2    pages: count u16, count × (block u16, page u32, source u32), zstd of the frame's new pages
//!           source: 0xFFFFFFbb, all bytes are bb; else the number of a page of this segment, counted over its frames
//! kind 3    the rest of the state, a piece of it: zstd
//! kind 4    end: JSON
//! ```
//!
//! The check is the first half of BLAKE3 over kind, length and payload. A page that is the same as one before it in the
//! segment costs ten bytes, and so does one of equal bytes.
//!
//! Promises: a frame that was changed anywhere is refused with its place; no length that comes in makes a buffer larger
//! than [`PAYLOAD_MAX`]. Must not do: read or write files.

use std::collections::HashMap;
use std::io;

use serde::{Deserialize, Serialize};
use understudy_core::model::ids::NodeId;
use understudy_core::model::records::CheckpointId;

use super::table::{Blocks, PageDigest, PageKey, half};
use crate::digest::Digest;
use crate::stream::PAGE_BYTES as PAGE;

const MAGIC: &[u8; 8] = b"UNDSPG1\n";
/// New pages that one frame has at most: 256 KiB compress about as well as more would, and a single page of it is read
/// back by decompressing no more than that.
pub const RUN: usize = 64;
/// Pages that one frame names at most.
pub(super) const NAMED_MAX: usize = 4096;
/// The longest payload that is read.
pub(super) const PAYLOAD_MAX: usize = 1 << 20;
/// Bytes of the rest of the state in one frame.
const PIECE: usize = 256 << 10;
/// Kind, length and check.
pub(super) const FRAME_HEAD: usize = 1 + 4 + 16;
const ENTRY: usize = 2 + 4 + 4;
const FILL: u32 = 0xFFFF_FF00;
/// zstd's fastest level: 3.3 to 1 on a guest's pages, at half a gigabyte a second and more.
const LEVEL: i32 = 1;

/// What a segment says of itself first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The node.
    pub node: NodeId,
    /// The checkpoint that it makes.
    pub id: CheckpointId,
    /// The checkpoint that it adds to; none where it is whole by itself.
    pub base: Option<CheckpointId>,
    /// The guest's RAM blocks.
    pub blocks: Blocks,
}

/// What a segment says last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    /// The digest of all pages of the checkpoint.
    pub root: Digest,
    /// The digest of the rest of its state.
    pub state: Digest,
}

/// Where a page of a frame comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    Fill(u8),
    Stored(u32),
}

/// What one frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The first.
    Head(Box<Head>),
    /// Pages: what each of them is, and the new ones' bytes.
    Pages(Pages),
    /// A piece of the rest of the state.
    State(Vec<u8>),
    /// The last: the digests of all pages, and of the rest of the state.
    End {
        /// Of all pages.
        root: Digest,
        /// Of the rest.
        state: Digest,
    },
}

/// The pages of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    pub(super) entries: Vec<(PageKey, Given)>,
    /// The new pages' bytes, one after the other.
    pub(super) bytes: Vec<u8>,
}

impl Pages {
    /// The new pages.
    pub(super) fn stored(&self) -> impl Iterator<Item = &[u8; PAGE]> {
        self.bytes.as_chunks::<PAGE>().0.iter()
    }
}

/// Why bytes are no segment.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// They begin otherwise.
    #[error("it does not begin as a segment of pages does")]
    Magic,
    /// A frame was changed, or is none.
    #[error("the frame at byte {at} is damaged: {what}")]
    Frame {
        /// Where it begins in the segment.
        at: u64,
        /// What is wrong with it.
        what: String,
    },
    /// It breaks off.
    #[error("it breaks off at byte {at}")]
    Short {
        /// Where the frame begins that is not whole.
        at: u64,
    },
}

/// Makes a segment.
pub struct SegmentWriter {
    out: Vec<u8>,
    entries: Vec<u8>,
    named: usize,
    run: Vec<u8>,
    piece: Vec<u8>,
    stored: u32,
    /// The number of each page of this segment by its digest.
    known: HashMap<PageDigest, u32>,
    state: blake3::Hasher,
}

impl std::fmt::Debug for SegmentWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentWriter").field("stored", &self.stored).finish_non_exhaustive()
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("it is plain data with text keys")
}

fn check(kind: u8, payload: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[kind]).update(&(payload.len() as u64).to_le_bytes()).update(payload);
    half(&hasher.finalize())
}

impl SegmentWriter {
    /// Begins one.
    #[must_use]
    pub fn new(head: &Head) -> Self {
        let mut writer = Self {
            out: MAGIC.to_vec(),
            entries: Vec::new(),
            named: 0,
            run: Vec::with_capacity(RUN * PAGE),
            piece: Vec::new(),
            stored: 0,
            known: HashMap::new(),
            state: blake3::Hasher::new(),
        };
        writer.frame(1, &json(head));
        writer
    }

    /// What has been made since this was asked last.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// How much [`Self::take`] would give now.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.out.len()
    }

    /// Adds a page.
    ///
    /// # Errors
    /// When zstd has no memory.
    pub fn page(&mut self, key: PageKey, digest: PageDigest, bytes: &[u8; PAGE]) -> io::Result<()> {
        let source = match self.known.get(&digest) {
            Some(number) => *number,
            None => match fill_of(bytes) {
                Some(byte) => FILL | u32::from(byte),
                None => {
                    let number = self.stored;
                    self.run.extend_from_slice(bytes);
                    self.known.insert(digest, number);
                    self.stored += 1;
                    number
                }
            },
        };
        self.entries.extend_from_slice(&key.block.to_le_bytes());
        self.entries.extend_from_slice(&key.page.to_le_bytes());
        self.entries.extend_from_slice(&source.to_le_bytes());
        self.named += 1;
        if self.run.len() >= RUN * PAGE || self.named >= NAMED_MAX { self.run_ends() } else { Ok(()) }
    }

    fn run_ends(&mut self) -> io::Result<()> {
        if self.named == 0 {
            return Ok(());
        }
        let mut payload = Vec::with_capacity(2 + self.entries.len() + self.run.len() / 2);
        payload.extend_from_slice(&u16::try_from(self.named).unwrap_or(u16::MAX).to_le_bytes());
        payload.append(&mut self.entries);
        if !self.run.is_empty() {
            payload.append(&mut zstd::bulk::compress(&self.run, LEVEL)?);
        }
        self.run.clear();
        self.named = 0;
        self.frame(2, &payload);
        Ok(())
    }

    /// Adds to the rest of the state.
    ///
    /// # Errors
    /// When zstd has no memory.
    pub fn state(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.state.update(bytes);
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() == PIECE {
                self.piece_ends()?;
            }
        }
        Ok(())
    }

    fn piece_ends(&mut self) -> io::Result<()> {
        if !self.piece.is_empty() {
            let payload = zstd::bulk::compress(&self.piece, LEVEL)?;
            self.piece.clear();
            self.frame(3, &payload);
        }
        Ok(())
    }

    /// Ends it with the digest of all pages of the checkpoint.
    ///
    /// # Errors
    /// When zstd has no memory.
    pub fn end(mut self, root: Digest) -> io::Result<Vec<u8>> {
        self.run_ends()?;
        self.piece_ends()?;
        let state = Digest(*self.state.finalize().as_bytes());
        self.frame(4, &json(&End { root, state }));
        Ok(self.out)
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) {
        self.out.append(&mut framed(kind, payload));
    }
}

/// A whole frame.
pub(super) fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame has 1 MiB at the most");
    let mut bytes = Vec::with_capacity(FRAME_HEAD + payload.len());
    bytes.push(kind);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&check(kind, payload));
    bytes.extend_from_slice(payload);
    bytes
}

/// The byte that a page consists of; none where it has different ones.
fn fill_of(page: &[u8; PAGE]) -> Option<u8> {
    let first = page[0];
    page.iter().all(|byte| *byte == first).then_some(first)
}

/// Takes a segment apart as its bytes come.
#[derive(Debug, Default)]
pub struct SegmentReader {
    buffer: Vec<u8>,
    /// How much of the buffer was read.
    read: usize,
    /// Where in the segment what was not read begins.
    at: u64,
}

impl SegmentReader {
    /// Takes more bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..std::mem::take(&mut self.read));
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame that is whole, and where it begins; none while more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are no segment.
    pub fn frame(&mut self) -> Result<Option<(u64, Frame)>, SegmentError> {
        if self.at == 0 {
            let Some(magic) = self.buffer.get(..MAGIC.len()) else {
                let begins = MAGIC.starts_with(&self.buffer);
                return if begins { Ok(None) } else { Err(SegmentError::Magic) };
            };
            if magic != MAGIC {
                return Err(SegmentError::Magic);
            }
            self.drop(MAGIC.len());
        }
        let at = self.at;
        let unread = self.buffer.get(self.read..).unwrap_or_default();
        let Some(length) = frame_length(unread, at)? else { return Ok(None) };
        let Some(bytes) = unread.get(..length) else { return Ok(None) };
        let frame = decode(bytes, at)?;
        self.drop(length);
        Ok(Some((at, frame)))
    }

    /// The bytes are all there were.
    ///
    /// # Errors
    /// When the last frame is not whole.
    pub fn ends(&self) -> Result<(), SegmentError> {
        if self.at == 0 {
            return Err(SegmentError::Magic);
        }
        if self.read == self.buffer.len() { Ok(()) } else { Err(SegmentError::Short { at: self.at }) }
    }

    fn drop(&mut self, bytes: usize) {
        self.read += bytes;
        self.at += bytes as u64;
    }
}

/// How long a frame is, its head included; none while its head is not there.
pub(super) fn frame_length(bytes: &[u8], at: u64) -> Result<Option<usize>, SegmentError> {
    let Some(head) = bytes.get(1..5) else { return Ok(None) };
    let length = u32::from_le_bytes(head.try_into().expect("four bytes")) as usize;
    if length > PAYLOAD_MAX {
        let what = format!("it says that it has {length} bytes, {PAYLOAD_MAX} are the most");
        return Err(SegmentError::Frame { at, what });
    }
    Ok(Some(FRAME_HEAD + length))
}

/// What a whole frame says.
pub(super) fn decode(bytes: &[u8], at: u64) -> Result<Frame, SegmentError> {
    let damaged = |what: String| SegmentError::Frame { at, what };
    let (Some(kind), Some(said), Some(payload)) =
        (bytes.first(), bytes.get(5..FRAME_HEAD), bytes.get(FRAME_HEAD..))
    else {
        return Err(SegmentError::Short { at });
    };
    if said != check(*kind, payload) {
        return Err(damaged("it does not match its digest".to_owned()));
    }
    match kind {
        1 => {
            let head = serde_json::from_slice(payload);
            Ok(Frame::Head(head.map_err(|error| damaged(format!("its head: {error}")))?))
        }
        2 => pages(payload).map(Frame::Pages).map_err(damaged),
        3 => {
            let piece = zstd::bulk::decompress(payload, PIECE);
            Ok(Frame::State(piece.map_err(|error| damaged(format!("its state: {error}")))?))
        }
        4 => {
            let end: End =
                serde_json::from_slice(payload).map_err(|error| damaged(format!("its end: {error}")))?;
            Ok(Frame::End { root: end.root, state: end.state })
        }
        other => Err(damaged(format!("this release knows no frames of kind {other}"))),
    }
}

fn pages(payload: &[u8]) -> Result<Pages, String> {
    let (count, rest) = payload.split_at_checked(2).ok_or("it has no number of pages")?;
    let count = usize::from(u16::from_le_bytes(count.try_into().expect("two bytes")));
    let (entries, packed) = rest.split_at_checked(count * ENTRY).ok_or("it names more pages than it has")?;
    let entry = |bytes: &[u8]| {
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let key = PageKey { block: u16::from_le_bytes([bytes[0], bytes[1]]), page: number(2) };
        let source = number(6);
        let from = if source >= FILL { Given::Fill((source & 0xFF) as u8) } else { Given::Stored(source) };
        (key, from)
    };
    let entries = entries.chunks_exact(ENTRY).map(entry).collect();
    let bytes = match packed {
        [] => Vec::new(),
        packed => {
            zstd::bulk::decompress(packed, RUN * PAGE).map_err(|error| format!("its pages: {error}"))?
        }
    };
    if bytes.len().is_multiple_of(PAGE) {
        Ok(Pages { entries, bytes })
    } else {
        Err("it has a part of a page".to_owned())
    }
}
