//! Owns the form of what of a checkpoint is not pages, as segments carry it and receivers keep it.
//!
//! ```text
//! length of the header, u32 little-endian | libvirt's header | QEMU's stream without its pages
//! ```
//!
//! Promises: what was written reads back as the same header and the same skeleton, or is refused. Must not do: read what
//! the header or the devices say. Cost: a copy of it, some 200 KiB, and more with graphics cards.

use super::receiver::Receiver;
use crate::save_image::{SaveImage, SaveImageParser};
use crate::stream::{Limits, Skeleton, StreamError};

/// Why the rest of a state is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestError {
    /// It is not what an image was taken apart into.
    #[error("the rest of the state has no header of libvirt's")]
    Header,
    /// The skeleton is none.
    #[error(transparent)]
    Skeleton(#[from] StreamError),
}

/// What of a checkpoint is not pages.
#[derive(Debug)]
pub(super) struct Rest {
    pub header: SaveImage,
    pub skeleton: Skeleton,
}

impl Rest {
    pub(super) fn parse(rest: &[u8]) -> Result<Self, RestError> {
        let (header, skeleton) = split(rest)?;
        let header = parse_header(header)?;
        Ok(Self { header, skeleton: Skeleton::from_bytes(skeleton, Limits::default())? })
    }
}

/// What [`Rest::parse`] reads.
pub(super) fn encode(header: &[u8], skeleton: &Skeleton) -> Vec<u8> {
    let length = u32::try_from(header.len()).expect("a header has 16 MiB at the most").to_le_bytes();
    [&length[..], header, skeleton.bytes()].concat()
}

/// The header that an image begins with, for a caller that needs its XML.
///
/// # Errors
/// When the rest of the state has none.
pub fn header_of(receiver: &Receiver) -> Result<SaveImage, RestError> {
    parse_header(split(receiver.rest())?.0)
}

/// The bytes of the header and those of the skeleton.
fn split(rest: &[u8]) -> Result<(&[u8], &[u8]), RestError> {
    let (length, rest) = rest.split_first_chunk().ok_or(RestError::Header)?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(RestError::Header)
}

fn parse_header(mut bytes: &[u8]) -> Result<SaveImage, RestError> {
    let header = SaveImageParser::default().next(&mut bytes).ok().flatten();
    header.filter(|_| bytes.is_empty()).ok_or(RestError::Header)
}
