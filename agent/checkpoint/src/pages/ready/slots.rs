//! Owns where in a ready image the bytes of each page are.
//!
//! Promises: what is put is what is read, whether or not it is written already; new slots are written in large pieces.
//! Must not do: know of updates, or write what is not pages.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use super::super::table::{Blocks, PageKey};
use crate::pieces::AT_ONCE;
use crate::stream::{PAGE_BYTES as PAGE, Page, Records};

/// The slots of a ready image.
#[derive(Debug)]
pub(super) struct Slots {
    blocks: Blocks,
    /// Where in the file each page's bytes begin; none for a page that was zero ever since the image was built.
    at: Vec<Option<NonZeroU64>>,
    records: Records,
    /// Where in the file the last slot ends.
    end: u64,
    /// The last bytes before the end, which are still to be written.
    unwritten: Vec<u8>,
}

impl Slots {
    /// None yet; the first one begins there.
    pub(super) fn new(blocks: Blocks, begin: u64) -> Self {
        let count = usize::try_from(blocks.pages()).unwrap_or(usize::MAX);
        let (at, unwritten) = (vec![None; count], Vec::new());
        Self { blocks, at, records: Records::default(), end: begin, unwritten }
    }

    pub(super) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Where in the file the last slot ends, once all are written.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Says of a page that it is zero.
    pub(super) fn zero(&mut self, file: &File, key: PageKey) -> io::Result<()> {
        self.append(file, key, Page::Fill(0))
    }

    /// Makes a page these bytes; its place among all.
    pub(super) fn put(&mut self, file: &File, key: PageKey, bytes: &[u8; PAGE]) -> io::Result<usize> {
        let index = self.blocks.index(key).ok_or(io::ErrorKind::InvalidInput)?;
        match self.at[index] {
            None if *bytes == [0; PAGE] => {}
            None => {
                self.append(file, key, Page::Bytes(bytes))?;
                self.at[index] = NonZeroU64::new(self.end - PAGE as u64);
            }
            Some(at) => match self.in_unwritten(at) {
                Some(from) => self.unwritten[from..from + PAGE].copy_from_slice(bytes),
                None => file.write_all_at(bytes, at.get())?,
            },
        }
        Ok(index)
    }

    /// The bytes of a page, by its place among all.
    pub(super) fn read(&self, file: &File, index: usize) -> io::Result<Box<[u8; PAGE]>> {
        let mut bytes = Box::new([0; PAGE]);
        if let Some(at) = self.at[index] {
            match self.in_unwritten(at) {
                Some(from) => bytes.copy_from_slice(&self.unwritten[from..from + PAGE]),
                None => file.read_exact_at(&mut bytes[..], at.get())?,
            }
        }
        Ok(bytes)
    }

    /// Writes what is still to be written.
    pub(super) fn flush(&mut self, file: &File) -> io::Result<()> {
        file.write_all_at(&self.unwritten, self.written())?;
        self.unwritten.clear();
        Ok(())
    }

    fn append(&mut self, file: &File, key: PageKey, page: Page<'_>) -> io::Result<()> {
        if self.unwritten.len() >= AT_ONCE {
            self.flush(file)?;
        }
        let before = self.unwritten.len();
        let block = self.blocks.all().get(usize::from(key.block)).ok_or(io::ErrorKind::InvalidInput)?;
        self.records.put(key.place(), block, page, &mut self.unwritten);
        self.end += (self.unwritten.len() - before) as u64;
        Ok(())
    }

    /// Where in the file what is unwritten begins.
    fn written(&self) -> u64 {
        self.end - self.unwritten.len() as u64
    }

    /// Where in what is unwritten a slot's bytes begin; none where they are written.
    fn in_unwritten(&self, at: NonZeroU64) -> Option<usize> {
        usize::try_from(at.get().checked_sub(self.written())?).ok()
    }
}
