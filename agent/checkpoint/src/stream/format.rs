//! The numbers of the format, as `migration/savevm.c`, `migration/savevm.h` and `migration/ram.c` of QEMU have them, and
//! the names that errors give to those that are refused. Must not decide what is refused.

/// The size of a page of an x86 guest in bytes, the only one known here.
pub const PAGE_BYTES: usize = 4096;
pub(super) const PAGE_BITS: u32 = PAGE_BYTES.trailing_zeros();

/// `QEVM`.
pub(super) const MAGIC: u32 = u32::from_be_bytes(*b"QEVM");
pub(super) const VERSION: u32 = 3;
/// Of the section `ram`.
pub(super) const RAM_VERSION: u32 = 4;
pub(super) const RAM: &[u8] = b"ram";
/// A length of names that QEMU writes into one byte; it also bounds the machine's name, whose length has four.
pub(super) const NAME_MAX: usize = 255;

pub(super) const EOF: u8 = 0;
pub(super) const START: u8 = 1;
pub(super) const PART: u8 = 2;
pub(super) const END: u8 = 3;
pub(super) const FULL: u8 = 4;
pub(super) const SUBSECTION: u8 = 5;
pub(super) const DESCRIPTION: u8 = 6;
pub(super) const CONFIGURATION: u8 = 7;
pub(super) const COMMAND: u8 = 8;
pub(super) const FOOTER: u8 = 0x7e;

/// The only command that needs no answer and changes nothing of the format.
pub(super) const SWITCHOVER_START: u16 = 11;

pub(super) const ZERO: u64 = 0x02;
pub(super) const MEM_SIZE: u64 = 0x04;
pub(super) const PAGE: u64 = 0x08;
pub(super) const EOS: u64 = 0x10;
pub(super) const CONTINUE: u64 = 0x20;
/// The low bits of a record's address are flags.
pub(super) const FLAGS: u64 = PAGE_BYTES as u64 - 1;

/// Flags of records that are refused wherever they are.
const REFUSED: [(u64, &str); 5] =
    [(0x01, "full"), (0x40, "xbzrle"), (0x80, "hook (rdma)"), (0x100, "compress"), (0x200, "multifd-flush")];

/// The name of the first flag that is refused.
pub(super) fn refused_flag(flags: u64) -> Option<&'static str> {
    let named = REFUSED.iter().find(|(flag, _)| flags & flag != 0).map(|(_, name)| *name);
    let known = ZERO | MEM_SIZE | PAGE | EOS | CONTINUE;
    named.or((flags & !known != 0).then_some("of a bit that no release has"))
}

pub(super) fn section(kind: u8) -> &'static str {
    match kind {
        EOF => "EOF",
        START => "SECTION_START",
        PART => "SECTION_PART",
        END => "SECTION_END",
        FULL => "SECTION_FULL",
        SUBSECTION => "SUBSECTION",
        DESCRIPTION => "VMDESCRIPTION",
        CONFIGURATION => "CONFIGURATION",
        COMMAND => "COMMAND",
        FOOTER => "SECTION_FOOTER",
        _ => "no known type",
    }
}

pub(super) fn command(number: u16) -> &'static str {
    match number {
        1 => "open-return-path",
        2 => "ping",
        3 => "postcopy-advise",
        4 => "postcopy-listen",
        5 => "postcopy-run",
        6 => "postcopy-ram-discard",
        7 => "postcopy-resume",
        8 => "packaged",
        9 => "enable-colo",
        10 => "postcopy-recv-bitmap",
        SWITCHOVER_START => "switchover-start",
        _ => "unknown",
    }
}

/// A number of two bytes at an offset that is there.
pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// A number of four bytes at an offset, if it is there.
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_be_bytes(*four))
}

/// A number of eight bytes at an offset, if it is there.
pub(super) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|eight| u64::from_be_bytes(*eight))
}
