//! Owns the look at a whole save image before a guest runs from it: whether it is the checkpoint that a receiver has.
//!
//! Promises: from an image that passes, libvirt reads the XML and QEMU loads the pages and devices that came. What may
//! differ makes no difference to them: the length of the header's padding, the order of pages, the number of PARTs, and
//! what a place was before its last record. A page of one byte other than zero in short form is refused, since QEMU has
//! refused it since release 9. Must not do: open files.
//!
//! Cost: reads and hashes the image once; a bit for each page.

use std::io::Read;

use super::image::{UnreadableImage, read_image};
use super::receiver::Receiver;
use super::rest::{Rest, RestError};
use super::table::{Blocks, PageDigest, PageKey};
use crate::save_image::SaveImage;
use crate::stream::{Event, PAGE_BYTES as PAGE, Page, Place};

/// How an image is not the checkpoint that a receiver has.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The receiver has none.
    #[error("there is no checkpoint to compare the image with")]
    Nothing,
    /// What the receiver has of the rest is none.
    #[error(transparent)]
    Rest(#[from] RestError),
    /// It cannot be read.
    #[error(transparent)]
    Image(#[from] UnreadableImage),
    /// Its header differs.
    #[error("the header of the image is not that of the checkpoint")]
    Header,
    /// It is of another guest.
    #[error("the RAM blocks of the image are not those of the checkpoint")]
    Blocks,
    /// A page is in no block, or is of a byte that QEMU does not take in this form.
    #[error("the image has a page of RAM block {} at {} that QEMU does not load", .0.block.0, .0.offset)]
    Place(Place),
    /// Pages differ, or are missing.
    #[error("{wrong} pages of the image are not those of the checkpoint, first page {} of RAM block {}", .first.page, .first.block)]
    Pages {
        /// How many.
        wrong: u64,
        /// The first of them.
        first: PageKey,
    },
    /// The device state, or what else of the stream is not pages, differs.
    #[error("the device state of the image is not that of the checkpoint")]
    Devices,
}

/// Compares a save image with what a receiver has.
///
/// # Errors
/// How it differs, or why it cannot be read.
pub fn compare(image: &mut dyn Read, receiver: &Receiver) -> Result<(), CompareError> {
    let blocks = receiver.blocks().ok_or(CompareError::Nothing)?;
    let expected = Rest::parse(receiver.rest())?;
    let mut pages = Pages::new(receiver, blocks);
    let (header, skeleton) = read_image(image, |event| pages.event(event))?;
    pages.finish()?;
    let bare = |header| SaveImage { padding: 0, ..header };
    if bare(header) != bare(expected.header) {
        return Err(CompareError::Header);
    }
    if skeleton != expected.skeleton {
        return Err(CompareError::Devices);
    }
    Ok(())
}

struct Pages<'a> {
    receiver: &'a Receiver,
    blocks: &'a Blocks,
    /// A bit for each page: whether it came, and was right when it came last.
    right: Vec<u64>,
    zero: PageDigest,
}

impl<'a> Pages<'a> {
    fn new(receiver: &'a Receiver, blocks: &'a Blocks) -> Self {
        let words = usize::try_from(blocks.pages().div_ceil(64)).unwrap_or(usize::MAX);
        Self { receiver, blocks, right: vec![0; words], zero: PageDigest::of(&[0; PAGE]) }
    }

    fn event(&mut self, event: Event<'_>) -> Result<(), CompareError> {
        match event {
            Event::Blocks(blocks) if blocks != self.blocks.all() => Err(CompareError::Blocks),
            Event::Page(place, Page::Fill(0)) => self.page(place, self.zero),
            Event::Page(place, Page::Fill(_)) => Err(CompareError::Place(place)),
            Event::Page(place, Page::Bytes(bytes)) => self.page(place, PageDigest::of(bytes)),
            Event::Machine(_) | Event::Blocks(_) | Event::RamEnd => Ok(()),
        }
    }

    fn page(&mut self, place: Place, digest: PageDigest) -> Result<(), CompareError> {
        let index = PageKey::at(place).and_then(|key| self.blocks.index(key));
        let index = index.ok_or(CompareError::Place(place))?;
        let (word, bit) = (&mut self.right[index / 64], 1 << (index % 64));
        if self.receiver.digest(index) == Some(digest) {
            *word |= bit;
        } else {
            *word &= !bit;
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), CompareError> {
        let is_right = |index: usize| self.right[index / 64] & 1 << (index % 64) != 0;
        let keys = self.blocks.keys().enumerate();
        let mut wrong = keys.filter(|(index, _)| !is_right(*index)).map(|(_, key)| key);
        match wrong.next() {
            Some(first) => Err(CompareError::Pages { wrong: 1 + wrong.count() as u64, first }),
            None => Ok(()),
        }
    }
}
