//! Bytes in, events out.
//!
//! Owns what of an item has arrived while the rest has not, and the count of bytes. Promises: a page that is whole in the
//! caller's bytes is lent from there; after an error it only repeats the error. Must not know what an item means (`items`).

use super::items::{Items, Step};
use super::{Block, Limits, PAGE_BYTES, Page, Place, Skeleton, StreamError};

/// What a stream tells, in this order: machine, blocks, pages, the end of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The machine type, from the configuration section: `pc-q35-10.0`.
    Machine(&'a str),
    /// All RAM blocks, in QEMU's order.
    Blocks(&'a [Block]),
    /// A page. A later one at the same place replaces it; a place without any keeps what the machine has there.
    Page(Place, Page<'a>),
    /// No page follows: the rest is device state.
    RamEnd,
}

/// Takes a migration stream in pieces of any size.
///
/// ```
/// # use understudy_checkpoint::stream::{Limits, Parser, StreamError};
/// # fn read(pieces: &[&[u8]]) -> Result<(), StreamError> {
/// let mut parser = Parser::new(Limits::default());
/// for piece in pieces {
///     let mut rest = *piece;
///     while let Some(event) = parser.next(&mut rest)? {
///         println!("{event:?}");
///     }
/// }
/// let skeleton = parser.finish()?;
/// # Ok(())
/// # }
/// # assert!(read(&[b"QEVM"]).is_err());
/// ```
pub struct Parser {
    items: Items,
    /// The beginning of an item whose end has not arrived; whole only between two calls.
    partial: Vec<u8>,
    /// The item in `partial` was given out.
    lent: bool,
    /// Bytes of the stream before the item that is read next.
    at: u64,
    failed: Option<StreamError>,
}

impl Parser {
    /// A parser at the beginning of a stream.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { items: Items::new(limits), partial: Vec::new(), lent: false, at: 0, failed: None }
    }

    /// Takes bytes from the front of `input` up to the next event; `None` when all are taken. The event is valid until
    /// the next call.
    ///
    /// # Errors
    ///
    /// What is not known or not allowed, by name and offset; from then on always the same.
    pub fn next<'a, 'b: 'a>(&'a mut self, input: &mut &'b [u8]) -> Result<Option<Event<'a>>, StreamError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let (step, item) = match self.advance(input) {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.failed = Some(error.clone());
                return Err(error);
            }
        };
        Ok(Some(match step {
            Step::Machine => Event::Machine(&self.items.machine),
            Step::Blocks => Event::Blocks(&self.items.blocks),
            Step::Page(place, Some(fill)) => Event::Page(place, Page::Fill(fill)),
            Step::Page(place, None) => {
                let item = item.unwrap_or(&self.partial);
                let page = item.last_chunk::<PAGE_BYTES>().expect("a page's item ends with its bytes");
                Event::Page(place, Page::Bytes(page))
            }
            Step::RamEnd => Event::RamEnd,
        }))
    }

    /// The next item that the caller sees; its bytes, unless they are in `partial`.
    #[expect(clippy::type_complexity, reason = "named nowhere else")]
    fn advance<'b>(&mut self, input: &mut &'b [u8]) -> Result<Option<(Step, Option<&'b [u8]>)>, StreamError> {
        if std::mem::take(&mut self.lent) {
            self.partial.clear();
        }
        loop {
            if self.items.in_devices() {
                self.items.keep(input, self.at)?;
                self.at += input.len() as u64;
                *input = &[];
                return Ok(None);
            }
            let Some(item) = self.whole(input) else { return Ok(None) };
            let bytes = item.unwrap_or(&self.partial);
            let step = self.items.take(bytes, self.at)?;
            self.at += bytes.len() as u64;
            if let Some(step) = step {
                self.lent = item.is_none();
                return Ok(Some((step, item)));
            }
            self.partial.clear();
        }
    }

    /// The next item if it is whole: in the input (`Some(Some(…))`), or, put together, in `partial` (`Some(None)`).
    fn whole<'b>(&mut self, input: &mut &'b [u8]) -> Option<Option<&'b [u8]>> {
        if self.partial.is_empty() {
            let length = settled(input, |bytes| self.items.length(bytes));
            if let Some((item, rest)) = input.split_at_checked(length) {
                *input = rest;
                return Some(Some(item));
            }
        }
        loop {
            let missing = self.items.length(&self.partial).saturating_sub(self.partial.len());
            if missing == 0 {
                return Some(None);
            }
            if input.is_empty() {
                return None;
            }
            let (piece, rest) = input.split_at(missing.min(input.len()));
            self.partial.extend_from_slice(piece);
            *input = rest;
        }
    }

    /// What of the stream is not pages, once all bytes were taken.
    ///
    /// # Errors
    ///
    /// The error that [`Parser::next`] gave; that the stream was cut off; that its description of the VM names another
    /// size of pages.
    pub fn finish(self) -> Result<Skeleton, StreamError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if !self.items.in_devices() {
            return Err(StreamError::Truncated { what: self.items.reading(), at: self.at });
        }
        Skeleton::new(self.items, self.at)
    }
}

impl std::fmt::Debug for Parser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parser").field("at", &self.at).field("failed", &self.failed).finish_non_exhaustive()
    }
}

/// The length of the first item of `bytes`, or more than there is of it.
fn settled(bytes: &[u8], length: impl Fn(&[u8]) -> usize) -> usize {
    let mut known = 0;
    loop {
        let next = length(&bytes[..known.min(bytes.len())]);
        if next <= known || next > bytes.len() {
            return next;
        }
        known = next;
    }
}
