//! Reads a source to its end in large pieces: what digests, segments and images share.
//!
//! Promises: an interrupted read is repeated; the buffer is allocated once. Costs 1 MiB. Must not interpret the bytes.

use std::io::{self, Read};

/// Bytes that are read or written at a time: enough for BLAKE3 to hash many chunks at once, and for several frames of a
/// segment.
pub(crate) const AT_ONCE: usize = 1 << 20;

/// The bytes of a source, piece by piece.
pub(crate) struct Pieces<'a> {
    source: &'a mut dyn Read,
    buffer: Vec<u8>,
}

impl<'a> Pieces<'a> {
    pub(crate) fn new(source: &'a mut dyn Read) -> Self {
        Self { source, buffer: vec![0; AT_ONCE] }
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// Of the source.
    pub(crate) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            match self.source.read(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(count) => return Ok(self.buffer.get(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
