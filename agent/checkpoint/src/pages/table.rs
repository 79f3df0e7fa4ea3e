//! Owns which pages a guest has, and the digest of each.
//!
//! Promises: the digest of the whole depends on the blocks' names and sizes and on every page. Must not do: keep pages.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::stream::{Block, BlockIndex, PAGE_BYTES as PAGE, Place};

/// More RAM blocks than any machine type has; a stream that names more is none.
const BLOCKS_MAX: usize = 1024;
/// A block's name, as QEMU's stream can say it: its length is one byte.
const NAME_MAX: usize = 255;
/// 16 TiB: a page's place has 32 bits.
const BLOCK_BYTES_MAX: u64 = (PAGE as u64) << 32;

/// Where a page is: a [`Place`] in six bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageKey {
    /// Which of the blocks, in their order.
    pub block: u16,
    /// Which of its pages.
    pub page: u32,
}

impl PageKey {
    /// The page at a place; none where it lies beyond what a segment can name, or on no page's boundary.
    #[must_use]
    pub fn at(place: Place) -> Option<Self> {
        let page = place.offset.is_multiple_of(PAGE as u64).then_some(place.offset / PAGE as u64)?;
        Some(Self { block: u16::try_from(place.block.0).ok()?, page: u32::try_from(page).ok()? })
    }

    /// Its place.
    #[must_use]
    pub fn place(self) -> Place {
        Place { block: BlockIndex(self.block.into()), offset: u64::from(self.page) * PAGE as u64 }
    }
}

/// The first half of a page's BLAKE3 digest. 128 bits tell apart whatever is not made to collide: a guest that takes the
/// trouble (2^64 tries) damages its own checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageDigest(pub [u8; 16]);

impl PageDigest {
    /// The digest of a page's bytes.
    #[must_use]
    pub fn of(page: &[u8]) -> Self {
        Self(half(&blake3::hash(page)))
    }
}

pub(super) fn half(hash: &blake3::Hash) -> [u8; 16] {
    let mut first = [0; 16];
    first.copy_from_slice(&hash.as_bytes()[..16]);
    first
}

/// The blocks of a guest, in the stream's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Block>", into = "Vec<Block>")]
pub struct Blocks {
    blocks: Vec<Block>,
    /// The number of pages before each block, and of all at the end.
    starts: Vec<u64>,
}

/// Why a list of blocks is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlocksError {
    /// There are too many.
    #[error("{0} RAM blocks are more than {BLOCKS_MAX}")]
    TooMany(usize),
    /// A name is too long, or there is none.
    #[error("a RAM block's name has {0} bytes: 1 to {NAME_MAX} are right")]
    Name(usize),
    /// Two have one name.
    #[error("the RAM block '{0}' is named twice")]
    Twice(String),
    /// It is no whole number of pages, or too large.
    #[error("the RAM block '{name}' has {bytes} bytes: whole pages of {PAGE} are right, up to 16 TiB")]
    Size {
        /// Its name.
        name: String,
        /// Its size.
        bytes: u64,
    },
}

impl Blocks {
    /// The list, once it is known to be one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(blocks: Vec<Block>) -> Result<Self, BlocksError> {
        if blocks.len() > BLOCKS_MAX {
            return Err(BlocksError::TooMany(blocks.len()));
        }
        let mut starts = vec![0];
        let mut all = 0_u64;
        for (index, Block { name, bytes }) in blocks.iter().enumerate() {
            if name.is_empty() || name.len() > NAME_MAX {
                return Err(BlocksError::Name(name.len()));
            }
            if blocks[..index].iter().any(|other| other.name == *name) {
                return Err(BlocksError::Twice(name.clone()));
            }
            if !bytes.is_multiple_of(PAGE as u64) || *bytes > BLOCK_BYTES_MAX {
                return Err(BlocksError::Size { name: name.clone(), bytes: *bytes });
            }
            all += bytes / PAGE as u64;
            starts.push(all);
        }
        Ok(Self { blocks, starts })
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Block] {
        &self.blocks
    }

    /// The number of pages of all blocks.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Which of all pages it is; none where no block has it.
    #[must_use]
    pub fn index(&self, key: PageKey) -> Option<usize> {
        let block = usize::from(key.block);
        let (start, end) = (*self.starts.get(block)?, *self.starts.get(block + 1)?);
        let index = start + u64::from(key.page);
        (index < end).then(|| usize::try_from(index).ok()).flatten()
    }

    /// All pages, in their order.
    pub fn keys(&self) -> impl Iterator<Item = PageKey> + '_ {
        let pages = |block: &Block| u32::try_from(block.bytes / PAGE as u64 - 1).ok();
        let blocks = (0_u16..).zip(&self.blocks).filter(|(_, block)| block.bytes > 0);
        blocks.flat_map(move |(block, of)| {
            let last = pages(of);
            last.into_iter().flat_map(move |last| (0..=last).map(move |page| PageKey { block, page }))
        })
    }

    /// The digest of the whole: of every block's name and size, and of every page's digest in the pages' order.
    #[must_use]
    pub fn root(&self, pages: impl Iterator<Item = PageDigest>) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for Block { name, bytes } in &self.blocks {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(&bytes.to_le_bytes());
        }
        // Larger pieces let BLAKE3 hash several chunks at once.
        let mut piece = Vec::with_capacity(PIECE);
        for PageDigest(page) in pages {
            piece.extend_from_slice(&page);
            if piece.len() >= PIECE {
                hasher.update(&piece);
                piece.clear();
            }
        }
        hasher.update(&piece);
        Digest(*hasher.finalize().as_bytes())
    }
}

const PIECE: usize = 64 << 10;

impl TryFrom<Vec<Block>> for Blocks {
    type Error = BlocksError;

    fn try_from(blocks: Vec<Block>) -> Result<Self, BlocksError> {
        Self::new(blocks)
    }
}

impl From<Blocks> for Vec<Block> {
    fn from(blocks: Blocks) -> Self {
        blocks.blocks
    }
}
