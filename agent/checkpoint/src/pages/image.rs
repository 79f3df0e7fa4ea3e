//! Owns how a save image of libvirt is read, and how one is made again out of segments.
//!
//! ```text
//! save image = libvirt's header | QEMU's stream
//! ```
//!
//! Promises: what is made again has every page that the guest had, and libvirt's header as it was. Must not do: open files,
//! or decide what a page means to the reader.
//!
//! Cost: one pass over the image; nothing of it is kept but the rest, some 100 KiB.

use std::io::{self, Read, Write};

use super::chain::{ChainError, PageSink, read_back};
use super::receiver::Receiver;
use super::rest::{Rest, RestError};
use super::table::PageKey;
use crate::pieces::Pieces;
use crate::save_image::{SaveImage, SaveImageError, SaveImageParser};
use crate::stream::{
    Absent, Event, Limits, PAGE_BYTES as PAGE, Page, Parser, Skeleton, StreamError, StreamWriter, WriteError,
};

/// Why bytes are no save image that can be read.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableImage {
    /// The image cannot be read.
    #[error("the image cannot be read")]
    Read(#[source] io::Error),
    /// It has no header of libvirt's.
    #[error(transparent)]
    Header(#[from] SaveImageError),
    /// It has no stream of QEMU's that is known.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// Reads a save image once, to its end: hands on each event of its stream, and gives what of it is not pages.
pub(super) fn read_image<E: From<UnreadableImage>>(
    image: &mut dyn Read,
    mut event: impl FnMut(Event<'_>) -> Result<(), E>,
) -> Result<(SaveImage, Skeleton), E> {
    let (mut pieces, mut head, mut header) = (Pieces::new(image), SaveImageParser::default(), None);
    let mut parser = Parser::new(Limits::default());
    while let Some(mut rest) = pieces.next().map_err(UnreadableImage::Read)? {
        if header.is_none() {
            header = head.next(&mut rest).map_err(UnreadableImage::Header)?;
        }
        while let Some(next) = parser.next(&mut rest).map_err(UnreadableImage::Stream)? {
            event(next)?;
        }
    }
    let header = header.ok_or_else(|| UnreadableImage::Header(head.truncated()))?;
    Ok((header, parser.finish().map_err(UnreadableImage::Stream)?))
}

/// Why no image can be made out of segments.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The rest of the state is none.
    #[error(transparent)]
    Rest(#[from] RestError),
    /// The image cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Its header cannot be encoded.
    #[error(transparent)]
    Header(#[from] SaveImageError),
    /// The pages cannot be had.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// Makes the save image of what a receiver has, out of the segments that it took in, by their numbers.
///
/// # Errors
/// When a segment is damaged, or the image cannot be written.
pub fn rebuild<R: Read>(
    receiver: &Receiver,
    segment: impl FnMut(u32) -> io::Result<R>,
    out: &mut dyn Write,
) -> Result<(), RebuildError> {
    let Rest { header, skeleton } = Rest::parse(receiver.rest())?;
    out.write_all(&header.encode()?).map_err(WriteError::Write)?;
    // Every page is given, the zero ones too.
    let mut sink = Sink { writer: StreamWriter::new(&skeleton, Absent::Refuse, out)?, failed: None };
    let read = read_back(receiver, segment, &mut sink);
    if let Some(error) = sink.failed {
        return Err(error.into());
    }
    read?;
    sink.writer.finish()?;
    Ok(())
}

/// The stream, and why it could not be written.
struct Sink<'a, W> {
    writer: StreamWriter<'a, W>,
    failed: Option<WriteError>,
}

impl<W: Write> PageSink for Sink<'_, W> {
    fn page(&mut self, key: PageKey, bytes: &[u8; PAGE]) -> io::Result<()> {
        let page = if *bytes == [0; PAGE] { Page::Fill(0) } else { Page::Bytes(bytes) };
        self.writer.page(key.place(), page).map_err(|error| {
            let shown = io::Error::other(error.to_string());
            self.failed = Some(error);
            shown
        })
    }
}
