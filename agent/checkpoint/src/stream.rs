//! QEMU's migration stream, taken apart into pages and the rest, and put together again.
//!
//! ```text
//! QEVM 3 | configuration | START ram: blocks | PART ram: pages … | [command] [END ram: pages] | FULL device … | EOF | description
//!                                             └─ PARTs of any number ─┘
//! ```
//!
//! Owns the format as QEMU 7.2 and 10.x write it to a pipe or a file (`migration/savevm.c`, `migration/ram.c`): ordinary
//! migrations of x86 guests, and background snapshots, which have no END. [`Parser`] takes bytes in pieces of any size and
//! gives [`Event`]s; what is left when the pages are taken out is a [`Skeleton`], itself a stream, from which and the
//! pages [`StreamWriter`] makes one that QEMU loads.
//!
//! Promises:
//! * what it does not know is refused by its name and its offset in the stream, never skipped: sections of devices have
//!   no length, so that a guess would take a device's state for pages;
//! * how the stream was cut into pieces changes nothing;
//! * a stream that ends too early is an error, wherever it ends;
//! * memory is the list of blocks, one page and the skeleton, all within [`Limits`]; nothing is allocated because a
//!   number in the stream says so. A page that arrives in one piece is lent, not copied.
//!
//! It must not do input or output, know what a page means, or look whether a page is zero: the caller may.

mod error;
mod format;
mod items;
mod parser;
mod record;
mod skeleton;
mod writer;

use serde::{Deserialize, Serialize};

pub use error::StreamError;
pub use format::PAGE_BYTES;
pub use parser::{Event, Parser};
pub(crate) use record::Records;
pub use skeleton::Skeleton;
pub use writer::{Absent, StreamWriter, WriteError};

/// A block of guest memory: RAM, or a ROM or table that the machine holds in RAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// As QEMU calls it: `pc.ram`, `/rom@etc/acpi/tables`.
    pub name: String,
    /// Its size in bytes, a multiple of [`PAGE_BYTES`].
    pub bytes: u64,
}

/// A block's place in the list of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub usize);

/// Where a page is. Places are ordered as QEMU sends them: by block, then by offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The block.
    pub block: BlockIndex,
    /// Bytes from the block's beginning, a multiple of [`PAGE_BYTES`].
    pub offset: u64,
}

/// What is in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page<'a> {
    /// One byte all over. QEMU sends only zero this way.
    Fill(u8),
    /// Any bytes.
    Bytes(&'a [u8; PAGE_BYTES]),
}

/// What a stream may ask of the memory of whoever parses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many blocks. QEMU makes some tens.
    pub blocks: usize,
    /// Bytes of all blocks together. Nothing is allocated for them here; the caller may.
    pub ram_bytes: u64,
    /// Bytes of the skeleton, nearly all of it device state: some 100 KiB, and more with graphics cards.
    pub skeleton_bytes: usize,
}

impl Default for Limits {
    /// 1024 blocks, 1 TiB of RAM, 256 MiB of skeleton.
    fn default() -> Self {
        Self { blocks: 1024, ram_bytes: 1 << 40, skeleton_bytes: 256 << 20 }
    }
}
