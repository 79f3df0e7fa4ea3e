//! The items of a stream in their order: how long each is, and what it means.
//!
//! ```text
//! Head → Configuration → Section ─START→ BlockList → Record → Footer → Section
//!                          Section ─PART, END→ Record … → Footer → Section
//!                          Section ─FULL, EOF→ Devices, until the stream ends
//! ```
//!
//! Owns all that is known of the format but for the stream's end (`skeleton`), and gathers the skeleton. Promises: an
//! item is at most some 4400 bytes long, and its length is known from its own beginning. Must not hold bytes of pages.

use super::format::{self, FLAGS, NAME_MAX, PAGE_BITS, be16, be32, be64};
use super::{Block, BlockIndex, Limits, PAGE_BYTES, Place, StreamError};

/// What of an item the caller sees.
pub(super) enum Step {
    /// The machine type is known.
    Machine,
    /// All blocks are known.
    Blocks,
    /// A page: of one byte, or the last 4096 of the item's bytes.
    Page(Place, Option<u8>),
    /// No page follows.
    RamEnd,
}

/// An item is refused, or is something that the caller sees, or is not.
type Taken = Result<Option<Step>, StreamError>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Configuration,
    Section,
    BlockList,
    Record,
    Footer,
    Devices,
}

/// The section of RAM that is being read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Start,
    Part,
    End,
}

pub(super) struct Items {
    limits: Limits,
    state: State,
    within: Within,
    /// The configuration may go on with a subsection.
    configuring: bool,
    /// The number of RAM's section, once it started.
    ram: Option<u32>,
    ram_ended: bool,
    /// Bytes of RAM whose blocks are still to be listed.
    unlisted: u64,
    /// Of the last page: it persists across sections.
    current: Option<BlockIndex>,
    pub(super) machine: String,
    pub(super) blocks: Vec<Block>,
    pub(super) skeleton: Vec<u8>,
    /// Where in the skeleton pages go.
    pub(super) pages_at: usize,
}

impl Items {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Head,
            within: Within::Start,
            configuring: false,
            ram: None,
            ram_ended: false,
            unlisted: 0,
            current: None,
            machine: String::new(),
            blocks: Vec::new(),
            skeleton: Vec::new(),
            pages_at: 0,
        }
    }

    /// All that follows is device state.
    pub(super) fn in_devices(&self) -> bool {
        self.state == State::Devices
    }

    /// What is read next, for an error.
    pub(super) fn reading(&self) -> &'static str {
        match (self.state, self.ram) {
            (State::Head, _) => "its first eight bytes",
            (State::Configuration, _) => "the configuration",
            (State::Section, None) => "what is before RAM",
            (State::Section | State::Record | State::Footer, _) => "RAM",
            (State::BlockList, _) => "the list of RAM blocks",
            (State::Devices, _) => "the device state",
        }
    }

    /// How many bytes the next item has, as far as its first bytes tell: never more than it has.
    pub(super) fn length(&self, bytes: &[u8]) -> usize {
        match self.state {
            State::Head => 8,
            State::Configuration => match (bytes.first(), be32(bytes, 1)) {
                (Some(&format::CONFIGURATION), None) => 5,
                (Some(&format::CONFIGURATION), Some(name)) if name as usize <= NAME_MAX => 5 + name as usize,
                (Some(&format::CONFIGURATION), Some(_)) => 5,
                (_, _) => 1,
            },
            State::Section => match bytes.first() {
                Some(&format::START) => named(bytes, 5, 8),
                Some(&format::PART | &format::END | &format::COMMAND) => 5,
                Some(&format::FULL) if self.ram.is_none() => named(bytes, 5, 0),
                Some(&format::SUBSECTION) if self.configuring => subsection_length(bytes),
                _ => 1,
            },
            State::BlockList => named(bytes, 0, 8),
            State::Record => record_length(bytes),
            State::Footer => 5,
            State::Devices => 1,
        }
    }

    /// Takes an item of the length that [`Items::length`] says; `at` is its offset in the stream.
    pub(super) fn take(&mut self, bytes: &[u8], at: u64) -> Taken {
        match self.state {
            State::Head => self.head(bytes, at),
            State::Configuration => self.configuration(bytes, at),
            State::Section => self.section(bytes, at),
            State::BlockList => self.block(bytes, at),
            State::Record => self.record(bytes, at),
            State::Footer => self.footer(bytes, at),
            State::Devices => self.keep(bytes, at).map(|()| None),
        }
    }

    /// Adds to the skeleton; `at` is the first byte's offset in the stream.
    pub(super) fn keep(&mut self, bytes: &[u8], at: u64) -> Result<(), StreamError> {
        let limit = self.limits.skeleton_bytes;
        let room = limit.saturating_sub(self.skeleton.len());
        if bytes.len() > room {
            // Of device state the first byte without room, so that it is the same however the stream is cut.
            let at = if self.in_devices() { at + room as u64 } else { at };
            return Err(StreamError::TooLarge { what: "bytes besides pages", limit: limit as u64, at });
        }
        self.skeleton.extend_from_slice(bytes);
        Ok(())
    }

    fn head(&mut self, bytes: &[u8], at: u64) -> Taken {
        match (be32(bytes, 0), be32(bytes, 4)) {
            (Some(format::MAGIC), Some(format::VERSION)) => {
                self.state = State::Configuration;
                self.keep(bytes, at).map(|()| None)
            }
            (Some(format::MAGIC), version) => {
                Err(StreamError::Version { found: version.unwrap_or(0), at: at + 4 })
            }
            (magic, _) => Err(StreamError::Magic { found: magic.unwrap_or(0), at }),
        }
    }

    fn configuration(&mut self, bytes: &[u8], at: u64) -> Taken {
        if bytes[0] != format::CONFIGURATION {
            return Err(StreamError::NoConfiguration { found: format::section(bytes[0]), at });
        }
        self.machine = name(&bytes[5..], "machine type", at)?;
        (self.state, self.configuring) = (State::Section, true);
        self.keep(bytes, at).map(|()| Some(Step::Machine))
    }

    fn section(&mut self, bytes: &[u8], at: u64) -> Taken {
        let kind = bytes[0];
        let ends_ram = self.ram.is_some() && matches!(kind, format::FULL | format::EOF);
        let result = match kind {
            format::START => self.start(bytes, at),
            format::PART | format::END if self.ram.is_some() && !self.ram_ended => self.go_on(bytes, at),
            format::FULL if self.ram.is_none() => {
                Err(StreamError::BeforeRam { name: name(&bytes[6..], "section", at)?, at })
            }
            format::SUBSECTION if self.configuring => {
                return subsection(bytes, at).and_then(|()| self.keep(bytes, at)).map(|()| None);
            }
            format::COMMAND => self.command(bytes, at),
            _ if ends_ram => {
                self.state = State::Devices;
                self.keep(bytes, at).map(|()| Some(Step::RamEnd))
            }
            _ => Err(StreamError::Section { number: kind, kind: format::section(kind), at }),
        };
        self.configuring = false;
        result
    }

    fn start(&mut self, bytes: &[u8], at: u64) -> Taken {
        let (label, version) = (&bytes[6..bytes.len() - 8], be32(bytes, bytes.len() - 4).unwrap_or(0));
        if label != format::RAM {
            return Err(StreamError::Iterable { name: name(label, "section", at)?, at });
        }
        if self.ram.is_some() {
            let number = format::START;
            return Err(StreamError::Section { number, kind: format::section(number), at });
        }
        if version != format::RAM_VERSION {
            return Err(StreamError::RamVersion { found: version, at });
        }
        self.ram = be32(bytes, 1);
        (self.state, self.within) = (State::Record, Within::Start);
        self.keep(bytes, at).map(|()| None)
    }

    /// A PART or the END of RAM.
    fn go_on(&mut self, bytes: &[u8], at: u64) -> Taken {
        let section = be32(bytes, 1);
        if section != self.ram {
            let section = section.unwrap_or(0);
            return Err(StreamError::Foreign { kind: format::section(bytes[0]), section, at });
        }
        self.state = State::Record;
        self.within = if bytes[0] == format::END { Within::End } else { Within::Part };
        self.keep_unless_part(bytes, at)
    }

    /// PARTs are not kept: the skeleton has one of its own, for all pages.
    fn keep_unless_part(&mut self, bytes: &[u8], at: u64) -> Taken {
        match self.within {
            Within::Part => Ok(None),
            Within::Start | Within::End => self.keep(bytes, at).map(|()| None),
        }
    }

    fn command(&mut self, bytes: &[u8], at: u64) -> Taken {
        let (number, length) = (be16(bytes, 1), be16(bytes, 3));
        let in_ram = self.ram.is_some() && !self.ram_ended;
        if number == format::SWITCHOVER_START && length == 0 && in_ram {
            return self.keep(bytes, at).map(|()| None);
        }
        Err(StreamError::Command { number, name: format::command(number), at })
    }

    fn block(&mut self, bytes: &[u8], at: u64) -> Taken {
        let (label, size) = bytes[1..].split_at(bytes.len() - 9);
        let (block, bytes_of_block) = (name(label, "RAM block", at)?, be64(size, 0).unwrap_or(0));
        if self.blocks.iter().any(|listed| listed.name == block) {
            return Err(StreamError::DuplicateBlock { block, at });
        }
        if bytes_of_block > self.unlisted || bytes_of_block & FLAGS != 0 {
            return Err(StreamError::BlockSize { block, bytes: bytes_of_block, at });
        }
        if self.blocks.len() == self.limits.blocks {
            return Err(StreamError::TooLarge { what: "RAM blocks", limit: self.limits.blocks as u64, at });
        }
        self.blocks.push(Block { name: block, bytes: bytes_of_block });
        self.unlisted -= bytes_of_block;
        self.keep(bytes, at)?;
        if self.unlisted > 0 {
            return Ok(None);
        }
        self.state = State::Record;
        Ok(Some(Step::Blocks))
    }

    fn record(&mut self, bytes: &[u8], at: u64) -> Taken {
        let word = be64(bytes, 0).unwrap_or(0);
        let (flags, address) = (word & FLAGS, word & !FLAGS);
        if let Some(flag) = format::refused_flag(flags) {
            return Err(StreamError::Flag { flag, at });
        }
        let starting = self.within == Within::Start;
        match flags & !format::CONTINUE {
            format::MEM_SIZE if starting && self.blocks.is_empty() && flags == format::MEM_SIZE => {
                self.mem_size(bytes, address, at)
            }
            format::EOS if starting && self.blocks.is_empty() => Err(StreamError::NoBlocks { at }),
            format::EOS if word == format::EOS => {
                self.state = State::Footer;
                self.keep_unless_part(bytes, at)
            }
            format::PAGE if !starting => Ok(Some(Step::Page(self.place(bytes, word, PAGE_BYTES, at)?, None))),
            format::ZERO if !starting => {
                Ok(Some(Step::Page(self.place(bytes, word, 1, at)?, bytes.last().copied())))
            }
            _ => Err(StreamError::Record { flags, at }),
        }
    }

    fn mem_size(&mut self, bytes: &[u8], total: u64, at: u64) -> Taken {
        if total == 0 {
            return Err(StreamError::NoBlocks { at });
        }
        if total > self.limits.ram_bytes {
            return Err(StreamError::TooLarge { what: "bytes of RAM", limit: self.limits.ram_bytes, at });
        }
        (self.unlisted, self.state) = (total, State::BlockList);
        self.keep(bytes, at).map(|()| None)
    }

    /// Where a page of so many bytes goes.
    fn place(&mut self, bytes: &[u8], word: u64, body: usize, at: u64) -> Result<Place, StreamError> {
        if word & format::CONTINUE == 0 {
            let label = &bytes[9..bytes.len() - body];
            let found = self.blocks.iter().position(|block| block.name.as_bytes() == label);
            let Some(found) = found else {
                return Err(StreamError::UnknownBlock { block: name(label, "RAM block", at)?, at });
            };
            self.current = Some(BlockIndex(found));
        }
        let block = self.current.ok_or(StreamError::NoCurrentBlock { at })?;
        let (offset, size) = (word & !FLAGS, self.blocks[block.0].bytes);
        if offset >= size {
            let name = self.blocks[block.0].name.clone();
            return Err(StreamError::OutsideBlock { block: name, offset, bytes: size, at });
        }
        Ok(Place { block, offset })
    }

    fn footer(&mut self, bytes: &[u8], at: u64) -> Taken {
        let Some(ram) = self.ram.filter(|ram| bytes[0] == format::FOOTER && be32(bytes, 1) == Some(*ram))
        else {
            return Err(StreamError::Footer { at });
        };
        self.keep_unless_part(bytes, at)?;
        match self.within {
            Within::Start => {
                self.keep(&[format::PART], at)?;
                self.keep(&ram.to_be_bytes(), at)?;
                self.pages_at = self.skeleton.len();
                self.keep(&format::EOS.to_be_bytes(), at)?;
                self.keep(bytes, at)?;
            }
            Within::Part => {}
            Within::End => self.ram_ended = true,
        }
        self.state = State::Section;
        Ok(None)
    }
}

/// The length of an item whose name begins with its length at an offset and is followed by `tail` bytes.
fn named(bytes: &[u8], at: usize, tail: usize) -> usize {
    bytes.get(at).map_or(at + 1, |name| at + 1 + usize::from(*name) + tail)
}

fn record_length(bytes: &[u8]) -> usize {
    let Some(word) = be64(bytes, 0) else { return 8 };
    let body = match word & FLAGS & !format::CONTINUE {
        format::PAGE => PAGE_BYTES,
        format::ZERO => 1,
        _ => return 8,
    };
    if word & format::CONTINUE == 0 { named(bytes, 8, body) } else { 8 + body }
}

const CAPABILITIES: &[u8] = b"configuration/capabilities";
const TARGET_PAGE_BITS: &[u8] = b"configuration/target-page-bits";
const UUID: &[u8] = b"configuration/uuid";

/// The name of a subsection and the offset of its content, behind a version of four bytes.
fn subsection_name(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let name = bytes.get(2..2 + usize::from(*bytes.get(1)?))?;
    Some((name, 2 + name.len() + 4))
}

/// Of a list of capabilities, the first: none is supported.
fn subsection_length(bytes: &[u8]) -> usize {
    match subsection_name(bytes) {
        None => named(bytes, 1, 4),
        Some((CAPABILITIES, at)) => match be32(bytes, at) {
            None | Some(0) => at + 4,
            Some(_) => named(bytes, at + 4, 0),
        },
        Some((TARGET_PAGE_BITS, at)) => at + 4,
        Some((UUID, at)) => at + 16,
        Some((_, at)) => at,
    }
}

fn subsection(bytes: &[u8], at: u64) -> Result<(), StreamError> {
    match subsection_name(bytes) {
        Some((CAPABILITIES, content)) => match be32(bytes, content) {
            Some(0) => Ok(()),
            _ => Err(StreamError::Capability { name: name(&bytes[content + 5..], "capability", at)?, at }),
        },
        Some((TARGET_PAGE_BITS, content)) => match be32(bytes, content) {
            Some(PAGE_BITS) => Ok(()),
            bits => {
                let bytes = bits.and_then(|bits| 1u64.checked_shl(bits)).unwrap_or(0);
                Err(StreamError::PageSize { bytes, at })
            }
        },
        Some((UUID, _)) => Ok(()),
        Some((other, _)) => Err(StreamError::Subsection { name: name(other, "subsection", at)?, at }),
        None => Err(StreamError::Name { what: "subsection", at }),
    }
}

fn name(bytes: &[u8], what: &'static str, at: u64) -> Result<String, StreamError> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty());
    text.map(str::to_owned).ok_or(StreamError::Name { what, at })
}
