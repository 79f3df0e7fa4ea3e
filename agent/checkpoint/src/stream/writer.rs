//! A stream out of a skeleton and pages.
//!
//! Promises: each page once and in QEMU's order; a place without a page is what the caller said it is to be, and by
//! default an error, since a page that is missing unnoticed is a guest with wrong memory. Costs: it holds no pages; a zero
//! page is 9 bytes of the stream, and so none is left out, which would be right only for RAM that the machine has not
//! filled itself, as it fills ROMs. Must not buffer: the caller's `out` may.

use std::io::{self, Write};

use super::format;
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
    /// A page before the last one, or the same.
    #[error("the page at {offset:#x} of the RAM block '{block}' comes after a later one or twice")]
    Order {
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

/// Writes a stream; give it pages in the order of their places, then finish it.
#[derive(Debug)]
pub struct StreamWriter<'a, W> {
    skeleton: &'a Skeleton,
    absent: Absent,
    out: W,
    /// The block of the last page written.
    current: Option<BlockIndex>,
    /// The first place that is not written.
    next: Place,
}

impl<'a, W: Write> StreamWriter<'a, W> {
    /// Writes what is before the pages.
    ///
    /// # Errors
    ///
    /// [`WriteError::Write`].
    pub fn new(skeleton: &'a Skeleton, absent: Absent, mut out: W) -> Result<Self, WriteError> {
        out.write_all(skeleton.halves().0).map_err(WriteError::Write)?;
        let next = Place { block: BlockIndex(0), offset: 0 };
        Ok(Self { skeleton, absent, out, current: None, next })
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
        if place < self.next {
            return Err(WriteError::Order { block: of.name.clone(), offset });
        }
        self.fill_up_to(place)?;
        self.put(place, of, page)?;
        self.next = Place { offset: offset + PAGE_BYTES as u64, ..place };
        Ok(())
    }

    /// Writes what is behind the pages and gives `out` back, not flushed.
    ///
    /// # Errors
    ///
    /// [`WriteError::Write`], [`WriteError::Missing`].
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.fill_up_to(Place { block: BlockIndex(self.skeleton.blocks().len()), offset: 0 })?;
        self.out.write_all(self.skeleton.halves().1).map_err(WriteError::Write)?;
        Ok(self.out)
    }

    /// Does with the places before this one what is to be done with places that have no page.
    fn fill_up_to(&mut self, end: Place) -> Result<(), WriteError> {
        let skeleton = self.skeleton;
        while self.next < end {
            let Place { block, offset } = self.next;
            let Some(of) = skeleton.blocks().get(block.0).filter(|of| offset < of.bytes) else {
                self.next = Place { block: BlockIndex(block.0 + 1), offset: 0 };
                continue;
            };
            match self.absent {
                Absent::Refuse => return Err(WriteError::Missing { block: of.name.clone(), offset }),
                Absent::Zero => {
                    self.put(self.next, of, Page::Fill(0))?;
                    self.next.offset += PAGE_BYTES as u64;
                }
                Absent::LeaveOut => self.next = end,
            }
        }
        Ok(())
    }

    fn put(&mut self, place: Place, block: &Block, page: Page<'_>) -> Result<(), WriteError> {
        let filled;
        let (kind, body): (u64, &[u8]) = match page {
            Page::Fill(0) => (format::ZERO, &[0]),
            // Newer releases of QEMU take no other byte.
            Page::Fill(byte) => {
                filled = [byte; PAGE_BYTES];
                (format::PAGE, &filled)
            }
            Page::Bytes(bytes) => (format::PAGE, bytes),
        };
        let goes_on = self.current == Some(place.block);
        let word = place.offset | kind | if goes_on { format::CONTINUE } else { 0 };
        let mut write = |bytes: &[u8]| self.out.write_all(bytes).map_err(WriteError::Write);
        write(&word.to_be_bytes())?;
        if !goes_on {
            let length = u8::try_from(block.name.len()).expect("a name of the stream has at most 255 bytes");
            write(&[length])?;
            write(block.name.as_bytes())?;
        }
        write(body)?;
        self.current = Some(place.block);
        Ok(())
    }
}
