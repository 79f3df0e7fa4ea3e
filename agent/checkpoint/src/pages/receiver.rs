//! Owns what a backup's host knows of a guest's pages: the digest of each, and where its bytes are.
//!
//! Promises: a segment counts only when all of it has come, and makes the very state whose digest its end names; one that
//! did not leaves everything as it was. Must not do: read or write files.

use understudy_core::model::records::CheckpointId;

use super::segment::{Frame, Given, Head, NAMED_MAX, Pages};
use super::table::{Blocks, PageDigest, PageKey};
use crate::digest::Digest;
use crate::stream::PAGE_BYTES as PAGE;

/// Where a page's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: all of them are this one.
    Fill(u8),
    /// In a segment.
    Stored {
        /// Which of those that were taken in, from 0.
        segment: u32,
        /// Which of its pages.
        page: u32,
    },
}

#[derive(Debug, Clone, Copy)]
struct Held {
    digest: PageDigest,
    source: Source,
}

/// A segment that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// What it says of itself.
    pub head: Head,
    /// The digest of all pages of the checkpoint.
    pub root: Digest,
    /// The digest of the rest of its state.
    pub state: Digest,
    /// Its number among those that were taken in.
    pub segment: u32,
    /// How many pages it stores.
    pub stored: u32,
}

/// Why a segment makes no checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IngestError {
    /// It adds to something that this host does not have: the sender has to send the whole.
    #[error("it adds to {}, this host has {}: send the whole", shown(*.base), shown(*.has))]
    OtherBase {
        /// What it adds to.
        base: Option<CheckpointId>,
        /// What this host has.
        has: Option<CheckpointId>,
    },
    /// It is of a guest with other RAM blocks than what it adds to.
    #[error("it has other RAM blocks than what it adds to: send the whole")]
    OtherBlocks,
    /// All of it has come, and it does not make what was sent.
    #[error("its pages do not make the state that was sent (digest {made}, not {sent}): send the whole")]
    OtherState {
        /// What it makes.
        made: Digest,
        /// What was sent.
        sent: Digest,
    },
    /// The rest of the state is not what was sent.
    #[error("the rest of its state is not what was sent: send it again")]
    OtherRest,
    /// The rest of the state is larger than any guest's.
    #[error("the rest of its state is larger than {} MiB", REST_MAX >> 20)]
    Rest,
    /// It is of a guest with more memory than was announced, or longer than any such segment.
    #[error("it has more than a guest of {pages_max} pages can have")]
    TooLarge {
        /// The most.
        pages_max: u64,
    },
    /// It names a page that no block has.
    #[error("it names page {} of RAM block {}, which is not there", .0.page, .0.block)]
    Page(PageKey),
    /// It names a page that has not come.
    #[error("it names its page {0}, which has not come")]
    NotStored(u32),
    /// Its frames are not in order.
    #[error("its frames are not in order: {0}")]
    Order(&'static str),
}

fn shown(id: Option<CheckpointId>) -> String {
    id.map_or_else(|| "nothing".to_owned(), |id| format!("checkpoint {id}"))
}

/// More of the rest of a state than any guest has: its devices, and its frame buffers where those are no RAM.
pub(crate) const REST_MAX: usize = 256 << 20;

/// A segment that is coming: it needs no receiver before its end, so that one that stands still on its way keeps nobody.
#[derive(Debug)]
pub struct Coming {
    head: Head,
    /// What becomes other than it is, by the page's place among all.
    changes: Vec<(usize, PageDigest, Given)>,
    /// The digests of its pages, in their order.
    digests: Vec<PageDigest>,
    rest: Vec<u8>,
    /// What its end says: the digest of all pages, and of the rest of the state.
    end: Option<(Digest, Digest)>,
}

impl Coming {
    /// One that begins with this head.
    #[must_use]
    pub fn new(head: Head) -> Self {
        Self { head, changes: Vec::new(), digests: Vec::new(), rest: Vec::new(), end: None }
    }

    /// What it says of itself.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Whether its end has come.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.end.is_some()
    }

    /// Takes the next frame behind the head.
    ///
    /// # Errors
    /// Why it makes no checkpoint.
    pub fn take(&mut self, frame: Frame) -> Result<(), IngestError> {
        if self.is_whole() {
            return Err(IngestError::Order("something behind the end"));
        }
        match frame {
            Frame::Head(_) => return Err(IngestError::Order("a second head")),
            Frame::Pages(pages) => return self.pages(&pages),
            Frame::State(bytes) => {
                if self.rest.len() + bytes.len() > REST_MAX {
                    return Err(IngestError::Rest);
                }
                self.rest.extend_from_slice(&bytes);
            }
            Frame::End { root, state } => {
                if Digest::of(&self.rest) != state {
                    return Err(IngestError::OtherRest);
                }
                self.end = Some((root, state));
            }
        }
        Ok(())
    }

    /// The pages of one frame.
    fn pages(&mut self, pages: &Pages) -> Result<(), IngestError> {
        let most = self.head.blocks.pages().saturating_mul(2).saturating_add(NAMED_MAX as u64);
        let named = (self.changes.len() + pages.entries.len()) as u64;
        if named > most || self.digests.len() as u64 > most {
            return Err(IngestError::TooLarge { pages_max: self.head.blocks.pages() });
        }
        self.digests.extend(pages.stored().map(|page| PageDigest::of(page)));
        for (key, given) in &pages.entries {
            let index = self.head.blocks.index(*key).ok_or(IngestError::Page(*key))?;
            let digest = match *given {
                Given::Fill(byte) => PageDigest::of(&[byte; PAGE]),
                Given::Stored(page) => {
                    *self.digests.get(page as usize).ok_or(IngestError::NotStored(page))?
                }
            };
            self.changes.push((index, digest, *given));
        }
        Ok(())
    }
}

/// What a backup's host knows of one guest's pages.
#[derive(Debug)]
pub struct Receiver {
    has: Option<CheckpointId>,
    blocks: Option<Blocks>,
    pages: Vec<Held>,
    rest: Vec<u8>,
    segments: u32,
    zero: Held,
    coming: Option<Coming>,
}

impl Default for Receiver {
    fn default() -> Self {
        let zero = Held { digest: PageDigest::of(&[0; PAGE]), source: Source::Fill(0) };
        Self { has: None, blocks: None, pages: Vec::new(), rest: Vec::new(), segments: 0, zero, coming: None }
    }
}

impl Receiver {
    /// The checkpoint whose pages it has.
    #[must_use]
    pub fn has(&self) -> Option<CheckpointId> {
        self.has
    }

    /// The guest's blocks; none before there is a checkpoint.
    #[must_use]
    pub fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_ref()
    }

    /// Where the bytes of each page are, in the pages' order.
    pub fn pages(&self) -> impl Iterator<Item = (PageKey, PageDigest, Source)> + '_ {
        let keys = self.blocks.iter().flat_map(Blocks::keys);
        keys.zip(&self.pages).map(|(key, held)| (key, held.digest, held.source))
    }

    /// The digest of a page, by its place among all.
    pub(super) fn digest(&self, index: usize) -> Option<PageDigest> {
        self.pages.get(index).map(|held| held.digest)
    }

    /// The rest of the state of the checkpoint that it has.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// How many pages are stored in each segment that was taken in, and count still.
    #[must_use]
    pub fn live(&self) -> Vec<u64> {
        let mut live = vec![0; self.segments as usize];
        for held in &self.pages {
            if let Source::Stored { segment, .. } = held.source
                && let Some(count) = live.get_mut(segment as usize)
            {
                *count += 1;
            }
        }
        live
    }

    /// What has come of a segment counts for nothing.
    pub fn give_up(&mut self) {
        self.coming = None;
    }

    /// Takes in one frame. The end gives what the segment has made.
    ///
    /// # Errors
    /// Why it makes no checkpoint. Everything is as it was before its head then.
    pub fn take(&mut self, frame: Frame) -> Result<Option<Received>, IngestError> {
        let coming = match (self.coming.take(), frame) {
            (None, Frame::Head(head)) => {
                self.accepts(&head)?;
                self.coming = Some(Coming::new(*head));
                return Ok(None);
            }
            (None, _) => return Err(IngestError::Order("something before the head")),
            (Some(mut coming), frame) => {
                coming.take(frame)?;
                coming
            }
        };
        if coming.is_whole() {
            return self.complete(coming).map(Some);
        }
        self.coming = Some(coming);
        Ok(None)
    }

    /// Whether a segment with this head adds to what this host has.
    ///
    /// # Errors
    /// What it adds to instead.
    pub fn accepts(&self, head: &Head) -> Result<(), IngestError> {
        let Some(base) = head.base else { return Ok(()) };
        if self.has != Some(base) {
            return Err(IngestError::OtherBase { base: Some(base), has: self.has });
        }
        if self.blocks.as_ref() != Some(&head.blocks) {
            return Err(IngestError::OtherBlocks);
        }
        Ok(())
    }

    /// Takes in a segment of which all has come.
    ///
    /// # Errors
    /// Why it makes no checkpoint. Everything is as it was then.
    pub fn complete(&mut self, coming: Coming) -> Result<Received, IngestError> {
        let Coming { head, changes, digests, rest, end } = coming;
        let Some((sent, state)) = end else {
            return Err(IngestError::Order("no end"));
        };
        self.accepts(&head)?;
        let segment = self.segments;
        // What is overwritten is kept until the digest is known to be right.
        let whole = head.base.is_none();
        let count = usize::try_from(head.blocks.pages()).unwrap_or(usize::MAX);
        let kept = whole.then(|| std::mem::replace(&mut self.pages, vec![self.zero; count]));
        let mut before = Vec::with_capacity(changes.len());
        for (index, digest, given) in changes {
            let source = match given {
                Given::Fill(byte) => Source::Fill(byte),
                Given::Stored(page) => Source::Stored { segment, page },
            };
            before.push((index, std::mem::replace(&mut self.pages[index], Held { digest, source })));
        }
        let made = head.blocks.root(self.pages.iter().map(|held| held.digest));
        if made != sent {
            match kept {
                Some(pages) => self.pages = pages,
                // The last first: a page that came twice is again what it was before the first.
                None => before.into_iter().rev().for_each(|(index, held)| self.pages[index] = held),
            }
            return Err(IngestError::OtherState { made, sent });
        }
        self.segments += 1;
        (self.has, self.blocks, self.rest) = (Some(head.id), Some(head.blocks.clone()), rest);
        let stored = u32::try_from(digests.len()).unwrap_or(u32::MAX);
        Ok(Received { head, root: made, state, segment, stored })
    }
}
