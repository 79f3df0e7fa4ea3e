//! The record of a page in a stream.
//!
//! Promises: QEMU reads each record as the page it was made of, as long as records follow each other in the order in which
//! they were made. Must not write anywhere.

use super::format;
use super::{Block, BlockIndex, PAGE_BYTES, Page, Place};

/// Makes records that follow each other.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// The block of the last record: the next one in it does not repeat its name.
    current: Option<BlockIndex>,
}

impl Records {
    /// Adds the record of a page. One of any bytes ends with them; one of zero is 9 bytes and the block's name.
    pub(crate) fn put(&mut self, place: Place, block: &Block, page: Page<'_>, out: &mut Vec<u8>) {
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
        out.extend_from_slice(&word.to_be_bytes());
        if !goes_on {
            out.push(u8::try_from(block.name.len()).expect("a name of the stream has at most 255 bytes"));
            out.extend_from_slice(block.name.as_bytes());
        }
        out.extend_from_slice(body);
        self.current = Some(place.block);
    }
}
