//! Owns a guest's memory as pages: which ones there are, what each of them holds by its digest, and the segments in which
//! changed ones travel and are kept.
//!
//! A page is keyed by its RAM block and its place in it, as QEMU's migration stream keys it. What was measured (QEMU 7.2
//! and 10.0, 512 MB, 20 MB/s written): a second's changes are 18 MB by page and 5 MB compressed, where content-defined
//! chunks of the whole stream needed 16 to 80 MB.
//!
//! ```text
//! the sender's host                         a backup's host
//! image ─▶ Tracker ── what changed since ─▶ segment ─▶ Receiver ── digest of all ─▶ complete ─▶ ReadyImage ─▶ restore
//!           digests of every page           bytes       digests of every page
//! ```
//!
//! Promises: no bytes become a page that do not match the digest of what was sent; two ends that take the same segments
//! have the same digest of the whole, and one that lacks something is told apart by it; no guest need run from an image
//! that was not compared with those digests. Must not do: read or write files, but for the one of a [`ReadyImage`].
//!
//! Cost, with P pages of 4 KiB and C changed ones: a tracker and a receiver keep 20 and 24 bytes for each of P; taking in a
//! segment is O(C) of hashing and compression, and O(P) of 16 bytes each for the digest of the whole (1 GiB: 4 MiB).

mod capture;
mod chain;
mod compare;
mod image;
mod ready;
mod receiver;
mod rest;
mod segment;
mod table;
#[cfg(test)]
mod tests;
mod tracker;

pub use capture::{CaptureError, Captured, Wanted, capture};
pub use chain::{ChainError, PageSink, merge, read_back, replay};
pub use compare::{CompareError, compare};
pub use image::{RebuildError, UnreadableImage, rebuild};
pub use ready::{ReadyError, ReadyImage};
pub(crate) use receiver::REST_MAX;
pub use receiver::{Coming, IngestError, Received, Receiver, Source};
pub use rest::{RestError, header_of};
pub use segment::{Frame, Head, RUN, SegmentError, SegmentReader, SegmentWriter};
pub use table::{Blocks, BlocksError, PageDigest, PageKey};
pub use tracker::{Changes, Tracker};
