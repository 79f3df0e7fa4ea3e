//! Owns the way of a segment's pages into the slots of a ready image, in one pass over the segment.
//!
//! A segment stores a page once and may name it again in any later frame. No copy is kept for that: the image has it, in
//! the slot of the page that was named last, until that page comes again with other bytes; only then is it kept.
//!
//! Promises: each page is what the segment said of it last. Must not do: look whether that is right.

use std::collections::HashMap;
use std::fs::File;

use super::super::receiver::IngestError;
use super::super::segment::{Given, Pages};
use super::super::table::PageKey;
use super::ReadyError;
use super::slots::Slots;
use crate::stream::PAGE_BYTES as PAGE;

/// An update that is under way.
pub(super) struct Update<'a> {
    file: &'a File,
    slots: &'a mut Slots,
    /// How many pages the frames until now stored.
    stored: usize,
    /// Which page has the bytes of a stored one, by its number.
    holder: HashMap<u32, usize>,
    /// The same the other way round.
    holds: HashMap<usize, u32>,
    /// Stored pages whose last holder has other bytes.
    kept: HashMap<u32, Box<[u8; PAGE]>>,
}

impl<'a> Update<'a> {
    pub(super) fn new(file: &'a File, slots: &'a mut Slots) -> Self {
        let (holder, holds, kept) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { file, slots, stored: 0, holder, holds, kept }
    }

    /// Takes the pages of one frame.
    pub(super) fn pages(&mut self, pages: &Pages) -> Result<(), ReadyError> {
        let (new, _) = pages.bytes.as_chunks::<PAGE>();
        for (key, given) in &pages.entries {
            match *given {
                Given::Fill(byte) => self.put(*key, None, &[byte; PAGE])?,
                Given::Stored(number) => {
                    match (number as usize).checked_sub(self.stored).map(|at| new.get(at)) {
                        Some(Some(bytes)) => self.put(*key, Some(number), bytes)?,
                        Some(None) => return Err(IngestError::NotStored(number).into()),
                        None => {
                            let bytes = self.earlier(number)?;
                            self.put(*key, Some(number), &bytes)?;
                        }
                    }
                }
            }
        }
        self.stored += new.len();
        Ok(())
    }

    /// A page that an earlier frame stored.
    fn earlier(&self, number: u32) -> Result<Box<[u8; PAGE]>, ReadyError> {
        match (self.holder.get(&number), self.kept.get(&number)) {
            (Some(index), _) => self.slots.read(self.file, *index).map_err(ReadyError::File),
            (None, Some(kept)) => Ok(kept.clone()),
            (None, None) => Err(IngestError::NotStored(number).into()),
        }
    }

    /// Makes a page these bytes, which are those of a stored one or not.
    fn put(&mut self, key: PageKey, number: Option<u32>, bytes: &[u8; PAGE]) -> Result<(), ReadyError> {
        let index = self.slots.blocks().index(key).ok_or(IngestError::Page(key))?;
        if let Some(held) = self.holds.remove(&index)
            && self.holder.get(&held) == Some(&index)
        {
            let kept = self.slots.read(self.file, index).map_err(ReadyError::File)?;
            self.kept.insert(held, kept);
            self.holder.remove(&held);
        }
        self.slots.put(self.file, key, bytes).map_err(ReadyError::File)?;
        if let Some(number) = number {
            self.holder.insert(number, index);
            self.holds.insert(index, number);
        }
        Ok(())
    }
}
