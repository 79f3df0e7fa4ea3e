//! What of a stream is not pages.
//!
//! Owns its form, and how the end of a stream is known. Promises: its bytes are a stream without pages, so that they say
//! themselves which blocks there are and where pages go, and are read by the same parser.

use serde::Deserialize;

use super::format::{self, PAGE_BYTES, be32};
use super::items::Items;
use super::{Block, Event, Limits, Parser, StreamError};

/// A stream with its pages taken out: all of its other bytes in their order, with one empty PART of RAM in place of all
/// PARTs.
#[derive(Clone, PartialEq, Eq)]
pub struct Skeleton {
    bytes: Vec<u8>,
    pages_at: usize,
    blocks: Vec<Block>,
    machine: String,
}

/// Of the description of the VM, what is read here.
#[derive(Deserialize)]
struct Description {
    page_size: u64,
}

impl Skeleton {
    /// `end` is the offset in the stream at which it ends.
    pub(super) fn new(items: Items, end: u64) -> Result<Self, StreamError> {
        let Items { machine, blocks, skeleton: bytes, pages_at, .. } = items;
        let json = description(&bytes).ok_or(StreamError::NoDescription { at: end })?;
        let at = end - json.len() as u64;
        let described: Description = serde_json::from_slice(json)
            .map_err(|error| StreamError::Description { why: error.to_string(), at })?;
        if described.page_size != PAGE_BYTES as u64 {
            return Err(StreamError::PageSize { bytes: described.page_size, at });
        }
        Ok(Self { bytes, pages_at, blocks, machine })
    }

    /// Reads what [`Skeleton::bytes`] gave.
    ///
    /// # Errors
    ///
    /// As [`Parser`] for any stream; a page in it.
    pub fn from_bytes(bytes: &[u8], limits: Limits) -> Result<Self, StreamError> {
        let mut parser = Parser::new(limits);
        let mut rest = bytes;
        while let Some(event) = parser.next(&mut rest)? {
            if matches!(event, Event::Page(..)) {
                return Err(StreamError::PageInSkeleton { at: (bytes.len() - rest.len()) as u64 });
            }
        }
        parser.finish()
    }

    /// A migration stream without pages. It holds device state: as secret as the guest's memory.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The RAM blocks, in QEMU's order.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// How many places for pages the blocks have. A stream of a paused VM and a background snapshot give one page for each.
    #[must_use]
    pub fn places(&self) -> u64 {
        self.blocks.iter().map(|block| block.bytes / PAGE_BYTES as u64).sum()
    }

    /// The machine type: `pc-q35-10.0`.
    #[must_use]
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// What is before the pages and what is behind them.
    pub(crate) fn halves(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at(self.pages_at)
    }
}

impl std::fmt::Debug for Skeleton {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = (&self.machine, &self.blocks, self.bytes.len());
        f.debug_tuple("Skeleton").field(&shown).finish()
    }
}

/// The JSON at a stream's end: behind the EOF of device state, a type and its length. JSON has no byte zero, so the last
/// one is that EOF or in the length: a few places to look at.
fn description(bytes: &[u8]) -> Option<&[u8]> {
    let last_zero = bytes.iter().rposition(|byte| *byte == 0)?;
    let is_eof = |eof: &usize| {
        let head = bytes.get(*eof..*eof + 2) == Some(&[format::EOF, format::DESCRIPTION]);
        head && be32(bytes, eof + 2).is_some_and(|length| length as usize == bytes.len() - eof - 6)
    };
    let eof = (last_zero.saturating_sub(5)..=last_zero).find(is_eof)?;
    bytes.get(eof + 6..).filter(|json| json.first() == Some(&b'{'))
}
