//! Owns a restore image that is kept ready: a file that is a save image of libvirt between any two checkpoints, and of
//! which a checkpoint rewrites only what it changes.
//!
//! ```text
//! header, padded │ stream up to the pages │ zero pages │ slot … slot │ rest of the stream │ end of the file
//!  in place        fixed                    fixed        in place, more appended   behind the last slot
//! ```
//!
//! * A page that is not zero has a slot: its record, whose last 4096 bytes are overwritten when it changes. A page that
//!   becomes zero keeps its slot.
//! * The places that are zero when the image is built come before the slots, 9 bytes each, for which QEMU allocates no
//!   memory. One of them that gets other bytes gets a slot behind the last one. Of two records for a place the later one
//!   counts, in QEMU as in our [`Parser`](crate::stream::Parser), so that the early one stays. If all zero pages were behind
//!   the slots, one new slot would rewrite 2.3 MB per GiB of zero pages. If every place had an early record, slots could
//!   move, but QEMU would look at every page twice.
//! * The header keeps its length, since everything is behind it: a longer XML takes space from the padding.
//!
//! Promises: after an update the image is the new checkpoint, whole; while one is under way, and after one that failed, the
//! file begins as an image that libvirt has not finished, which libvirt refuses to restore. Must not do: make the file
//! durable (it is built again out of segments), decide when it is built, or look whether pages are the right ones:
//! [`compare`](super::compare::compare) does, before a guest runs from it.
//!
//! Cost: an update is O(what changed), one write for each changed page, and the header and the device state. In memory 8
//! bytes for each page, some 100 bytes for each that an update stores, and pages that come twice in one update until it
//! ends. On disk every page that was not zero at some time since the image was built, so build it anew now and then. Measured
//! for 1 GiB of which 70 % is not zero, with two busy cores, into the page cache: an update of 5 % takes 65 to 77 ms, a
//! build out of one segment 0.8 to 1.0 s, a rebuild out of four 1.1 to 1.4 s.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use understudy_core::model::records::CheckpointId;

use super::chain::{ChainError, Frames, PageSink, read_back};
use super::receiver::{IngestError, REST_MAX, Receiver};
use super::rest::{Rest, RestError};
use super::segment::{Frame, Head, SegmentError};
use super::table::{PageDigest, PageKey};
use crate::digest::Digest;
use crate::save_image::{MAGIC, PARTIAL, SaveImage, SaveImageError};
use crate::stream::PAGE_BYTES as PAGE;

mod slots;
mod update;

use slots::Slots;
use update::Update;

/// Why there is no ready image. The file is to be removed; it can be built anew.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    /// There is nothing to build it of.
    #[error("there is no checkpoint to build an image of")]
    Nothing,
    /// The file cannot be written.
    #[error("the file of the image cannot be written")]
    File(#[source] io::Error),
    /// A segment is whole by itself.
    #[error("the checkpoint adds to none: build the image anew")]
    Whole,
    /// A segment adds to another checkpoint.
    #[error("the checkpoint adds to {base}, the image has {has}: build it anew")]
    OtherBase {
        /// What it adds to.
        base: CheckpointId,
        /// What the image has.
        has: CheckpointId,
    },
    /// The guest's machine or its RAM blocks are others.
    #[error("the guest has another machine or other RAM blocks than the image: build it anew")]
    OtherMachine,
    /// The XML has more bytes than the image has room for.
    #[error("the domain's XML has grown beyond its padding in the image: build it anew")]
    HeaderGrew,
    /// The rest of the state is none.
    #[error(transparent)]
    Rest(#[from] RestError),
    /// The header cannot be encoded.
    #[error(transparent)]
    Header(#[from] SaveImageError),
    /// A segment is damaged, or gives no pages.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

impl From<IngestError> for ReadyError {
    fn from(error: IngestError) -> Self {
        Self::Chain(error.into())
    }
}

/// A save image of a guest's last checkpoint. The file is the caller's to remove.
#[derive(Debug)]
pub struct ReadyImage {
    file: File,
    slots: Slots,
    id: CheckpointId,
    /// The length of libvirt's header in the file.
    header_bytes: usize,
    /// The stream up to the pages.
    first_half: Vec<u8>,
    bytes: u64,
}

impl ReadyImage {
    /// Builds the image of what a receiver has, out of the segments that it took in, by their numbers. A file at this path
    /// is replaced, not overwritten: a guest that is being restored from it reads the old one to its end.
    ///
    /// # Errors
    /// When a segment is damaged, or the file cannot be written.
    pub fn build<R: Read>(
        path: &Path,
        receiver: &Receiver,
        segment: impl FnMut(u32) -> io::Result<R>,
    ) -> Result<Self, ReadyError> {
        let (Some(id), Some(blocks)) = (receiver.has(), receiver.blocks()) else {
            return Err(ReadyError::Nothing);
        };
        let Rest { header, skeleton } = Rest::parse(receiver.rest())?;
        if skeleton.blocks() != blocks.all() {
            return Err(IngestError::OtherBlocks.into());
        }
        let padding = header.padding.max(SaveImage::PADDING);
        let header = SaveImage { padding, ..header }.encode()?;
        let (first_half, second_half) = skeleton.halves();
        let file = create(path).map_err(ReadyError::File)?;
        let pages_at = (header.len() + first_half.len()) as u64;
        let slots = Slots::new(blocks.clone(), pages_at);
        let (header_bytes, first_half) = (header.len(), first_half.to_vec());
        let mut image = Self { file, slots, id, header_bytes, first_half, bytes: 0 };
        image.fill(receiver, segment)?;
        image.complete(&header, second_half).map_err(ReadyError::File)?;
        Ok(image)
    }

    /// The checkpoint that it is.
    #[must_use]
    pub fn id(&self) -> CheckpointId {
        self.id
    }

    /// The length of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes it the checkpoint of a segment that adds to the one that it is, and that a receiver has taken in. There is no
    /// image after an error, and its file is none that libvirt restores, or is still that of the checkpoint before.
    ///
    /// # Errors
    /// When the segment does not add to it or is damaged, when too much of the guest is new, or the file cannot be written.
    pub fn apply(mut self, segment: &mut dyn Read) -> Result<Self, ReadyError> {
        let mut frames = Frames::of(segment);
        let Some(Frame::Head(head)) = frames.next()? else {
            return Err(IngestError::Order("something before the head").into());
        };
        self.begin(&head)?;
        let mut update = Update::new(&self.file, &mut self.slots);
        let mut rest = Vec::new();
        let state = loop {
            match frames.next()? {
                Some(Frame::Pages(pages)) => update.pages(&pages)?,
                Some(Frame::State(bytes)) if rest.len() + bytes.len() > REST_MAX => {
                    return Err(IngestError::Rest.into());
                }
                Some(Frame::State(bytes)) => rest.extend_from_slice(&bytes),
                Some(Frame::End { state, .. }) => break state,
                Some(Frame::Head(_)) => return Err(IngestError::Order("a second head").into()),
                None => return Err(ChainError::Segment(SegmentError::Short { at: 0 }).into()),
            }
        };
        if frames.next()?.is_some() {
            return Err(IngestError::Order("something behind the end").into());
        }
        if Digest::of(&rest) != state {
            return Err(IngestError::OtherRest.into());
        }
        self.end(&rest)?;
        self.id = head.id;
        Ok(self)
    }

    /// From here on the file is no image.
    fn begin(&mut self, head: &Head) -> Result<(), ReadyError> {
        match head.base {
            None => return Err(ReadyError::Whole),
            Some(base) if base != self.id => return Err(ReadyError::OtherBase { base, has: self.id }),
            Some(_) => {}
        }
        if head.blocks != *self.slots.blocks() {
            return Err(ReadyError::OtherMachine);
        }
        self.file.write_all_at(PARTIAL, 0).map_err(ReadyError::File)
    }

    /// Takes over the rest of the state. From here on the file is an image again.
    fn end(&mut self, rest: &[u8]) -> Result<(), ReadyError> {
        let Rest { header, skeleton } = Rest::parse(rest)?;
        let (first_half, second_half) = skeleton.halves();
        if first_half != self.first_half {
            return Err(ReadyError::OtherMachine);
        }
        let bare = SaveImage { padding: 0, ..header };
        let padding = self.header_bytes.checked_sub(bare.encode()?.len()).ok_or(ReadyError::HeaderGrew)?;
        let header = SaveImage { padding, ..bare }.encode()?;
        self.complete(&header, second_half).map_err(ReadyError::File)
    }

    /// Writes the pages of an image that has none.
    fn fill<R: Read>(
        &mut self,
        receiver: &Receiver,
        segment: impl FnMut(u32) -> io::Result<R>,
    ) -> Result<(), ReadyError> {
        let zero = PageDigest::of(&[0; PAGE]);
        let zeros = receiver.pages().filter(|(_, digest, _)| *digest == zero);
        for (key, ..) in zeros {
            self.slots.zero(&self.file, key).map_err(ReadyError::File)?;
        }
        let mut sink = Sink { file: &self.file, slots: &mut self.slots, failed: None };
        let read = read_back(receiver, segment, &mut sink);
        match sink.failed {
            Some(error) => Err(ReadyError::File(error)),
            None => Ok(read?),
        }
    }

    /// Writes what is not pages, the mark of a whole image last.
    fn complete(&mut self, header: &[u8], second_half: &[u8]) -> io::Result<()> {
        self.slots.flush(&self.file)?;
        self.file.write_all_at(second_half, self.slots.end())?;
        self.bytes = self.slots.end() + second_half.len() as u64;
        self.file.set_len(self.bytes)?;
        self.file.write_all_at(&self.first_half, self.header_bytes as u64)?;
        let (magic, behind) = header.split_at(MAGIC.len());
        self.file.write_all_at(behind, MAGIC.len() as u64)?;
        self.file.write_all_at(magic, 0)
    }
}

/// A new file that only its owner reads: it is a guest's memory.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// The image, and why it could not be written.
struct Sink<'a> {
    file: &'a File,
    slots: &'a mut Slots,
    failed: Option<io::Error>,
}

impl PageSink for Sink<'_> {
    fn page(&mut self, key: PageKey, bytes: &[u8; PAGE]) -> io::Result<()> {
        self.slots.put(self.file, key, bytes).map(drop).map_err(|error| {
            let shown = io::Error::other(error.to_string());
            self.failed = Some(error);
            shown
        })
    }
}
