//! Handwritten streams, and what must hold of any bytes at all, for the tests and the fuzzer.
#![allow(dead_code, reason = "each of those that share it uses a part")]

use std::collections::BTreeMap;

use understudy_checkpoint::stream::{
    Absent, Block, BlockIndex, Event, Limits, PAGE_BYTES, Page, Parser, Place, Skeleton, StreamError,
    StreamWriter, WriteError,
};

pub(crate) const MACHINE: &str = "pc-q35-10.0";
/// The number of RAM's section.
pub(crate) const RAM: u32 = 7;
/// RAM of 5 pages, a ROM of 2, a table of 1.
pub(crate) const BLOCKS: [(&str, u64); 3] =
    [("pc.ram", 5 * 4096), ("pc.rom", 2 * 4096), ("/rom@etc/acpi/rsdp", 4096)];
/// So small that a few bytes of input reach them.
pub(crate) const LIMITS: Limits = Limits { blocks: 16, ram_bytes: 1 << 20, skeleton_bytes: 16 << 10 };

pub(crate) fn head() -> Vec<u8> {
    [b"QEVM".to_vec(), vec![0, 0, 0, 3]].concat()
}

pub(crate) fn configuration() -> Vec<u8> {
    [vec![7], be(MACHINE.len() as u32), MACHINE.as_bytes().to_vec()].concat()
}

/// Of the configuration.
pub(crate) fn subsection(name: &str, content: &[u8]) -> Vec<u8> {
    [vec![5], named(name), be(1), content.to_vec()].concat()
}

/// The beginning of a START or FULL.
pub(crate) fn begin(kind: u8, section: u32, name: &str, version: u32) -> Vec<u8> {
    [vec![kind], be(section), named(name), be(0), be(version)].concat()
}

pub(crate) fn start(blocks: &[(&str, u64)]) -> Vec<u8> {
    let total: u64 = blocks.iter().map(|(_, bytes)| bytes).sum();
    let list = blocks.iter().flat_map(|(name, bytes)| [named(name), bytes.to_be_bytes().to_vec()].concat());
    [begin(1, RAM, "ram", 4), record(total, 0x04), list.collect(), end_of_section()].concat()
}

/// A PART or the END of RAM with these records.
pub(crate) fn section(kind: u8, records: &[Vec<u8>]) -> Vec<u8> {
    [vec![kind], be(RAM), records.concat(), end_of_section()].concat()
}

pub(crate) fn command(number: u16, content: &[u8]) -> Vec<u8> {
    let numbers = [number.to_be_bytes(), (content.len() as u16).to_be_bytes()].concat();
    [vec![8], numbers, content.to_vec()].concat()
}

pub(crate) fn record(address: u64, flags: u64) -> Vec<u8> {
    (address | flags).to_be_bytes().to_vec()
}

pub(crate) fn normal(block: Option<&str>, offset: u64, byte: u8) -> Vec<u8> {
    let mut page = vec![byte; PAGE_BYTES];
    page[..8].copy_from_slice(&offset.to_be_bytes());
    [place(block, offset, 0x08), page].concat()
}

pub(crate) fn fill(block: Option<&str>, offset: u64, byte: u8) -> Vec<u8> {
    [place(block, offset, 0x02), vec![byte]].concat()
}

fn place(block: Option<&str>, offset: u64, flag: u64) -> Vec<u8> {
    block.map_or_else(|| record(offset, flag | 0x20), |block| [record(offset, flag), named(block)].concat())
}

pub(crate) fn end_of_section() -> Vec<u8> {
    [record(0, 0x10), footer(RAM)].concat()
}

pub(crate) fn footer(section: u32) -> Vec<u8> {
    [vec![0x7e], be(section)].concat()
}

/// Device state with bytes that look like other things, and the end of a stream.
pub(crate) fn devices(description: &str) -> Vec<u8> {
    let timer = [begin(4, 0, "timer", 2), vec![0, 6, 0, 0, 0, 1, b'{'], footer(0)].concat();
    let serial =
        [begin(4, 9, "serial", 3), vec![2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0x10], footer(9)].concat();
    [timer, serial, vec![0, 6], be(description.len() as u32), description.as_bytes().to_vec()].concat()
}

pub(crate) const DESCRIPTION: &str =
    r#"{"configuration": {"fields": []}, "page_size": 4096, "devices": [{"name": "timer"}]}"#;

/// As a paused machine sends it: each page once, several PARTs, a command, an END without pages.
pub(crate) fn paused() -> Vec<u8> {
    let [ram, rom, table] = BLOCKS.map(|(name, _)| name);
    let first = [normal(Some(ram), 0, 1), fill(None, 4096, 0), normal(None, 8192, 3)];
    let second = [normal(None, 3 * 4096, 4), fill(None, 4 * 4096, 0), fill(Some(rom), 0, 0)];
    let third = [normal(None, 4096, 7), normal(Some(table), 0, 8)];
    let ram = [start(&BLOCKS), section(2, &first), section(2, &second), section(2, &third)].concat();
    [head(), configuration(), ram, command(11, &[]), section(3, &[]), devices(DESCRIPTION)].concat()
}

/// As a running machine sends it: pages again, out of order, the last ones in the END. Configured with all that may be.
pub(crate) fn live() -> Vec<u8> {
    let [ram, rom, table] = BLOCKS.map(|(name, _)| name);
    let first = [normal(Some(ram), 4096, 1), normal(Some(ram), 0, 2), fill(Some(table), 0, 0)];
    let last = [normal(Some(ram), 4096, 9), normal(Some(rom), 0, 8), fill(None, 4096, 0x5a)];
    let uuid = subsection("configuration/uuid", &[0xa5; 16]);
    let capabilities = subsection("configuration/capabilities", &be(0));
    let bits = subsection("configuration/target-page-bits", &be(12));
    let configured = [configuration(), bits, capabilities, uuid].concat();
    let ram = [start(&BLOCKS), section(2, &first), section(2, &[]), section(3, &last)].concat();
    [head(), configured, ram, devices(DESCRIPTION)].concat()
}

/// As a background snapshot is sent: no END. All pages in one PART.
pub(crate) fn background() -> Vec<u8> {
    let [ram, rom, table] = BLOCKS.map(|(name, _)| name);
    let mut pages = vec![normal(Some(ram), 0, 1)];
    pages.extend((1..5).map(|page| fill(None, page * 4096, 0)));
    pages.extend([fill(Some(rom), 0, 0), normal(None, 4096, 1), fill(Some(table), 0, 0)]);
    [head(), configuration(), start(&BLOCKS), section(2, &pages), devices(DESCRIPTION)].concat()
}

pub(crate) fn seeds() -> [Vec<u8>; 3] {
    [paused(), live(), background()]
}

fn named(name: &str) -> Vec<u8> {
    [vec![name.len() as u8], name.as_bytes().to_vec()].concat()
}

pub(crate) fn be(number: u32) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// A page that outlives the parser.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Owned {
    Fill(u8),
    Bytes(Box<[u8; PAGE_BYTES]>),
}

impl Owned {
    pub(crate) fn of(page: Page<'_>) -> Self {
        match page {
            Page::Fill(byte) => Self::Fill(byte),
            Page::Bytes(bytes) => Self::Bytes(Box::new(*bytes)),
        }
    }

    pub(crate) fn lend(&self) -> Page<'_> {
        match self {
            Self::Fill(byte) => Page::Fill(*byte),
            Self::Bytes(bytes) => Page::Bytes(bytes),
        }
    }
}

impl std::fmt::Debug for Owned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fill(byte) => write!(f, "Fill({byte})"),
            Self::Bytes(bytes) => write!(f, "Bytes(… {})", bytes[PAGE_BYTES - 1]),
        }
    }
}

/// All that a parser gave until it was done or refused.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Parsed {
    pub(crate) machine: String,
    pub(crate) blocks: Vec<Block>,
    pub(crate) pages: Vec<(Place, Owned)>,
    pub(crate) ram_ended: bool,
}

impl Parsed {
    fn add(&mut self, event: Event<'_>) {
        match event {
            Event::Machine(machine) => self.machine = machine.to_owned(),
            Event::Blocks(blocks) => self.blocks = blocks.to_vec(),
            Event::Page(place, page) => self.pages.push((place, Owned::of(page))),
            Event::RamEnd => self.ram_ended = true,
        }
    }

    /// The last page of each place.
    pub(crate) fn last(&self) -> BTreeMap<Place, Owned> {
        self.pages.iter().cloned().collect()
    }
}

/// Parses bytes in pieces of these sizes, over and over.
pub(crate) fn parse(
    bytes: &[u8],
    pieces: &[usize],
    limits: Limits,
) -> (Parsed, Result<Skeleton, StreamError>) {
    let mut parser = Parser::new(limits);
    let mut parsed = Parsed::default();
    let (mut left, mut sizes) = (bytes, pieces.iter().cycle());
    while !left.is_empty() {
        let size = sizes.next().copied().unwrap_or(usize::MAX).clamp(1, left.len());
        let (mut piece, rest) = left.split_at(size);
        left = rest;
        loop {
            match parser.next(&mut piece) {
                Ok(Some(event)) => parsed.add(event),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(parser.next(&mut piece), Err(error.clone()));
                    assert_eq!(parser.finish(), Err(error.clone()));
                    return (parsed, Err(error));
                }
            }
        }
    }
    (parsed, parser.finish())
}

pub(crate) fn write(
    skeleton: &Skeleton,
    absent: Absent,
    pages: &BTreeMap<Place, Owned>,
) -> Result<Vec<u8>, WriteError> {
    let mut writer = StreamWriter::new(skeleton, absent, Vec::new())?;
    for (place, page) in pages {
        writer.page(*place, page.lend())?;
    }
    writer.finish()
}

/// What must hold of any bytes. Why it does not.
pub(crate) fn examine(bytes: &[u8]) -> Result<(), String> {
    let (parsed, outcome) = parse(bytes, &[bytes.len()], LIMITS);
    for pieces in [&[1, 7, 1, 1, 300, 4097][..], &[13, 4096, 1, 9]] {
        if parse(bytes, pieces, LIMITS) != (parsed.clone(), outcome.clone()) {
            return Err(format!("pieces of {pieces:?} make another stream of it"));
        }
    }
    let Ok(skeleton) = outcome else { return Ok(()) };
    if !parsed.ram_ended {
        return Err("a whole stream whose RAM does not end".to_owned());
    }
    let again = Skeleton::from_bytes(skeleton.bytes(), Limits { skeleton_bytes: usize::MAX, ..LIMITS });
    if again.as_ref() != Ok(&skeleton) {
        return Err(format!("a skeleton reads back as {again:?}"));
    }
    let pages = parsed.last();
    let written = write(&skeleton, Absent::LeaveOut, &pages).map_err(|error| error.to_string())?;
    let (read, outcome) = parse(&written, &[], Limits { skeleton_bytes: usize::MAX, ..LIMITS });
    let same = outcome.as_ref() == Ok(&skeleton) && read.blocks == parsed.blocks;
    if !same || flat(&read.last()) != flat(&pages) || read.pages.len() != pages.len() {
        return Err(format!("what is written reads back as {outcome:?}"));
    }
    let full = write(&skeleton, Absent::Zero, &pages).map_err(|error| error.to_string())?;
    let (read, outcome) = parse(&full, &[], Limits { skeleton_bytes: usize::MAX, ..LIMITS });
    if read.pages.len() as u64 != skeleton.places() || outcome != Ok(skeleton) {
        return Err("not every place has a page, though absent ones are zero".to_owned());
    }
    Ok(())
}

/// Pages by their bytes: one of a byte other than zero is written as any other.
fn flat(pages: &BTreeMap<Place, Owned>) -> BTreeMap<Place, [u8; PAGE_BYTES]> {
    let bytes = |page: &Owned| match page {
        Owned::Fill(byte) => [*byte; PAGE_BYTES],
        Owned::Bytes(bytes) => **bytes,
    };
    pages.iter().map(|(place, page)| (*place, bytes(page))).collect()
}

pub(crate) fn at(block: usize, page: u64) -> Place {
    Place { block: BlockIndex(block), offset: page * PAGE_BYTES as u64 }
}
