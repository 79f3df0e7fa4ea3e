//! A stream out of a skeleton and pages.
//!
//! Promises: each page once, in the order in which the caller has them, which QEMU does not mind; a place without a page is
//! what the caller said it is to be, and by default an error, since a page that is missing unnoticed is a guest with wrong
//! memory. Costs: it holds no pages, and a bit for each place; a zero page is 9 bytes of the stream, and so none is left
//! out, which would be right only for RAM that the machine has not filled itself, as it fills ROMs. Must not buffer: the
//! caller's `out` may.

use std::io::{self, Write};

use super::format;
use super::record::Records;
use super::{Block, BlockIndex, PAGE_BYTES, Page, Place, Skeleton};

/// What a place is that no page was given for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// An error.
    Refuse,
    /// Zero, and written as that: for a caller that keeps no zero pages. The stream that they are of must have given as
    /// many pages as [`Skeleton::places`] says, or memory that was sent on another way (multifd) becomes zero, too.
    Zero,
    /// Left out: the machine keeps what it has there. Only right for places that the original stream left out as well
    /// (unplugged memory of virtio-mem, pages that the guest has reported as free).
    LeaveOut,
}

/// Why a stream was not written. What is written until then is no stream.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The destination did not take it.
    #[error("cannot write the migration stream")]
    Write(#[source] io::Error),
    /// A page once more.
    #[error("the page at {offset:#x} of the RAM block '{block}' comes twice")]
    Twice {
        /// The block.
        block: String,
        /// Where in the block, in bytes.
        offset: u64,
    },
    /// A page where the skeleton has no memory.
    #[error("there is no page at {offset:#x} of RAM block {block}")]
    NoPlace {
        /// The block's place in the list.
        block: usize,
        /// Where in the block, in bytes.
        offset: u64,
    },
    /// A page was not given.
    #[error("the page at {offset:#x} of the RAM block '{block}' is missing")]
    Missing {
        /// The block.
        block: String,
        /// Where in the block, in bytes.
        offset: u64,
    },
}

/// Writes a stream; give it pages in any order, then finish it.
#[derive(Debug)]
pub struct StreamWriter<'a, W> {
    skeleton: &'a Skeleton,
    absent: Absent,
    out: W,
    records: Records,
    /// The record that is written.
    record: Vec<u8>,
    /// The number of places before each block.
    starts: Vec<u64>,
    /// A bit for each place: whether it is written.
    written: Vec<u64>,
}

impl<'a, W: Write> StreamWriter<'a, W> {
    /// Writes what is before the pages.
    ///
    /// # Errors
    ///
    /// [`WriteError::Write`].
    pub fn new(skeleton: &'a Skeleton, absent: Absent, mut out: W) -> Result<Self, WriteError> {
        out.write_all(skeleton.halves().0).map_err(WriteError::Write)?;
        let mut places = 0;
        let mut starts = Vec::new();
        for block in skeleton.blocks() {
            starts.push(places);
            places += block.bytes / PAGE_BYTES as u64;
        }
        let words = usize::try_from(places.div_ceil(64)).unwrap_or(usize::MAX);
        let (records, record) = (Records::default(), Vec::new());
        Ok(Self { skeleton, absent, out, records, record, starts, written: vec![0; words] })
    }

    /// Writes a page.
    ///
    /// # Errors
    ///
    /// Any [`WriteError`].
    pub fn page(&mut self, place: Place, page: Page<'_>) -> Result<(), WriteError> {
        let Place { block: BlockIndex(block), offset } = place;
        let aligned = offset & format::FLAGS == 0;
        let Some(of) = self.skeleton.blocks().get(block).filter(|of| aligned && offset < of.bytes) else {
            return Err(WriteError::NoPlace { block, offset });
        };
        if !self.mark(place) {
            return Err(WriteError::Twice { block: of.name.clone(), offset });
        }
        self.put(place, of, page)
    }

    /// Whether a place had not been written.
    fn mark(&mut self, place: Place) -> bool {
        let page = self.starts[place.block.0] + place.offset / PAGE_BYTES as u64;
        let at = usize::try_from(page / 64).unwrap_or(usize::MAX);
        let (word, bit) = (&mut self.written[at], 1 << (page % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Writes what is behind the pages and gives `out` back, not flushed.
    ///
    /// # Errors
    ///
    /// [`WriteError::Write`], [`WriteError::Missing`].
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.fill()?;
        self.out.write_all(self.skeleton.halves().1).map_err(WriteError::Write)?;
        Ok(self.out)
    }

    /// Does with the places that have no page what is to be done with them.
    fn fill(&mut self) -> Result<(), WriteError> {
        let skeleton = self.skeleton;
        if self.absent == Absent::LeaveOut {
            return Ok(());
        }
        for (index, block) in skeleton.blocks().iter().enumerate() {
            for offset in (0..block.bytes).step_by(PAGE_BYTES) {
                let place = Place { block: BlockIndex(index), offset };
                if !self.mark(place) {
                    continue;
                }
                if self.absent == Absent::Refuse {
                    return Err(WriteError::Missing { block: block.name.clone(), offset });
                }
                self.put(place, block, Page::Fill(0))?;
            }
        }
        Ok(())
    }

    fn put(&mut self, place: Place, block: &Block, page: Page<'_>) -> Result<(), WriteError> {
        self.record.clear();
        self.records.put(place, block, page, &mut self.record);
        self.out.write_all(&self.record).map_err(WriteError::Write)
    }
}
