//! Owns what the sender knows of a guest's pages: the digest of each, and at which image it changed last.
//!
//! Promises: whatever changed after an image that a receiver has is named; an image that did not have every page is told,
//! and counts for nothing. Must not do: keep pages, or know receivers.

use super::table::{Blocks, PageDigest, PageKey};
use crate::digest::Digest;
use crate::stream::PAGE_BYTES as PAGE;

#[derive(Debug, Clone, Copy)]
struct Known {
    digest: PageDigest,
    /// The image in which it was another than in the one before; 0 where it was always zero.
    changed: u32,
}

/// What the sender knows of a guest's pages.
#[derive(Debug, Clone)]
pub struct Tracker {
    blocks: Blocks,
    pages: Vec<Known>,
    /// Counts the images that were begun.
    image: u32,
    /// A bit for each page: whether the image that is under way has had it.
    had: Vec<u64>,
    missing: u64,
    zero: PageDigest,
}

/// Which pages go to a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// It has nothing: all that are not zero.
    Whole,
    /// It has this image: all that changed after it.
    Since(u32),
}

impl Tracker {
    /// Of a guest of which nothing is known yet.
    #[must_use]
    pub fn new(blocks: Blocks) -> Self {
        let count = usize::try_from(blocks.pages()).unwrap_or(usize::MAX);
        let zero = PageDigest::of(&[0; PAGE]);
        Self {
            pages: vec![Known { digest: zero, changed: 0 }; count],
            had: vec![0; count.div_ceil(64)],
            blocks,
            image: 0,
            missing: 0,
            zero,
        }
    }

    /// Its blocks.
    #[must_use]
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Begins another image, whatever became of the one before; its number, from 1.
    pub fn begin(&mut self) -> u32 {
        self.had.fill(0);
        self.missing = self.blocks.pages();
        self.image =
            self.image.checked_add(1).expect("4 billion images of one guest are 136 years of one a second");
        self.image
    }

    /// The image has this page. One that comes again takes the place of what it was. Its digest; none where no block has it.
    pub fn page(&mut self, key: PageKey, bytes: &[u8; PAGE]) -> Option<PageDigest> {
        let index = self.blocks.index(key)?;
        let digest = PageDigest::of(bytes);
        let (word, bit) = (self.had.get_mut(index / 64)?, 1 << (index % 64));
        if *word & bit == 0 {
            *word |= bit;
            self.missing -= 1;
        }
        let known = self.pages.get_mut(index)?;
        if known.digest != digest {
            *known = Known { digest, changed: self.image };
        }
        Some(digest)
    }

    /// The digest of the whole image; none while it has not had every page.
    #[must_use]
    pub fn root(&self) -> Option<Digest> {
        let whole = self.image > 0 && self.missing == 0;
        whole.then(|| self.blocks.root(self.pages.iter().map(|known| known.digest)))
    }

    /// How many pages the image lacks.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// The pages that go to a receiver, in their order.
    pub fn changes(&self, changes: Changes) -> impl Iterator<Item = (PageKey, PageDigest)> + '_ {
        let all = self.blocks.keys().zip(&self.pages);
        let goes = move |known: &Known| self.known_goes(known, changes);
        all.filter(move |(_, known)| goes(known)).map(|(key, known)| (key, known.digest))
    }

    /// Whether a page, as the image has it, goes to a receiver.
    #[must_use]
    pub fn goes(&self, key: PageKey, changes: Changes) -> bool {
        let known = self.blocks.index(key).and_then(|index| self.pages.get(index));
        known.is_some_and(|known| self.known_goes(known, changes))
    }

    fn known_goes(&self, known: &Known, changes: Changes) -> bool {
        match changes {
            Changes::Whole => known.digest != self.zero,
            Changes::Since(image) => known.changed > image,
        }
    }
}
