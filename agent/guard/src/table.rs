//! The guard's memory: a mapped file that outlives it, so that a successor enforces what was acknowledged.
//!
//! Owns the layout, one guard's exclusive use of the file, and the order of stores. Promises: killed between any two
//! stores, the guard leaves a table in which every acknowledged entry and deadline reads back whole, and a half
//! written one reads as not there. Must not judge deadlines or touch processes.
//!
//! All is little-endian words of 64 bits (the table never leaves the machine):
//!
//! ```text
//! header   0 magic+version | 1,2 boot id | 3 capacity | 4 checksum of 0..=3
//! counters 6 kills | 10 fired deadline | 11 signals sent | 12 all gone      (for status only; each word by itself)
//! deadline 16.. and 24..: two slots, the newer valid one counts: sequence | lease | deadline | checksum
//! entries  64 + 8 i: state | pid + class << 32 | start time | uuid | uuid | epoch | inode | checksum of 1..=6
//! ```
//! Magic and state are written last and taken away first; a deadline goes into the slot that does not count. The file
//! is not synced: it lives on tmpfs and means nothing after a boot.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Release};

use nix::fcntl::posix_fallocate;

use crate::rules::Process;
use crate::sys::Mapping;
use crate::wire::{Class, Deadline, Fired};

/// `UGTABLE` and the layout's version in the lowest byte.
const MAGIC: u64 = u64::from_be_bytes(*b"UGTABLE\x01");
const LIVE: u64 = u64::from_be_bytes(*b"livelive");
const KILLS: usize = 6;
const FIRED: usize = 10;
const DEADLINES: [usize; 2] = [16, 24];
const ENTRIES: usize = 64;
const ENTRY_WORDS: usize = 8;

/// A registered primary as the table holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) uuid: [u8; 16],
    pub(crate) epoch: u64,
    pub(crate) process: Process,
    pub(crate) class: Class,
}

/// Why there is no table.
#[derive(Debug)]
pub enum TableError {
    /// The file cannot be opened, allocated or mapped.
    Open(PathBuf, io::Error),
    /// Another guard holds the table.
    Held(PathBuf),
    /// A guard of another release wrote it, in a layout that this one does not know.
    Version(PathBuf, u8),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(path, _) => write!(f, "cannot open the table {}", path.display()),
            Self::Held(path) => write!(f, "another guard holds the table {}: stop it first", path.display()),
            Self::Version(path, version) => write!(
                f,
                "the table {} has layout {version}, which this guard does not know: stop this host's primaries, \
                 then remove the file",
                path.display()
            ),
        }
    }
}

impl std::error::Error for TableError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Open(_, source) => Some(source),
            Self::Held(_) | Self::Version(..) => None,
        }
    }
}

/// What the file held when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing, or a table of an earlier boot, whose processes are all gone.
    Fresh,
    /// The table of this guard's predecessor.
    Predecessor,
    /// A table of this layout whose header or deadline does not verify: what it promised cannot be told.
    Damaged,
}

/// The words a table is made of. Stores become visible in the order in which they are made.
pub(crate) trait Words {
    fn load(&self, at: usize) -> u64;
    fn store(&self, at: usize, value: u64);
}

/// The words of a mapped and locked file.
pub(crate) struct Mapped {
    mapping: Mapping,
    /// Holds the lock for as long as the table is in use.
    _file: File,
}

impl Words for Mapped {
    fn load(&self, at: usize) -> u64 {
        self.mapping.words()[at].load(Acquire)
    }

    fn store(&self, at: usize, value: u64) {
        self.mapping.words()[at].store(value, Release);
    }
}

pub(crate) struct Table<W = Mapped> {
    words: W,
    capacity: usize,
}

impl Table {
    /// Opens or begins the table and takes it for this process. A damaged one is not begun anew here: the caller
    /// first enforces what still verifies, then calls [`Table::begin`].
    pub(crate) fn open(path: &Path, boot_id: [u64; 2], capacity: usize) -> Result<(Self, Found), TableError> {
        let failed = |source| TableError::Open(path.to_owned(), source);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TableError::Held(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let words = words(capacity);
        let bytes = i64::try_from(words * size_of::<u64>()).expect("the table is small");
        // Allocated, not only sized: a store into a hole of a full tmpfs would be a SIGBUS at the worst moment.
        posix_fallocate(&file, 0, bytes).map_err(|errno| failed(errno.into()))?;
        let mapping = Mapping::new(&file, words).map_err(failed)?;
        let table = Self { words: Mapped { mapping, _file: file }, capacity };
        let found = table.find(boot_id).map_err(|version| TableError::Version(path.to_owned(), version))?;
        if found == Found::Fresh {
            table.begin(boot_id);
        }
        Ok((table, found))
    }
}

impl<W: Words> Table<W> {
    /// A table over words that somebody else has got.
    pub(crate) fn over(words: W, capacity: usize) -> Self {
        Self { words, capacity }
    }

    /// What the words hold. `Err`: the version of a layout that is not this one.
    pub(crate) fn find(&self, boot_id: [u64; 2]) -> Result<Found, u8> {
        let magic = self.load(0);
        if magic == 0 {
            return Ok(Found::Fresh);
        }
        if magic >> 8 != MAGIC >> 8 {
            return Ok(Found::Damaged);
        }
        if magic != MAGIC {
            return Err((magic & 0xff) as u8);
        }
        let header: [u64; 4] = std::array::from_fn(|at| self.load(at));
        if checksum(&header) != self.load(4) || header[3] != self.capacity as u64 {
            return Ok(Found::Damaged);
        }
        if header[1..3] != boot_id {
            return Ok(Found::Fresh);
        }
        // A slot without a checksum was never finished, so that nobody holds its acknowledgement.
        let never_armed = DEADLINES.iter().all(|at| self.load(at + 3) == 0);
        Ok(if never_armed || self.newest_slot().is_some() { Found::Predecessor } else { Found::Damaged })
    }

    /// Empties the table.
    pub(crate) fn begin(&self, boot_id: [u64; 2]) {
        self.store(0, 0);
        for at in 1..words(self.capacity) {
            self.store(at, 0);
        }
        let header = [MAGIC, boot_id[0], boot_id[1], self.capacity as u64];
        for (at, value) in header.iter().enumerate().skip(1) {
            self.store(at, *value);
        }
        self.store(4, checksum(&header));
        self.store(0, MAGIC);
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        let (at, _) = self.newest_slot()?;
        Some(Deadline { lease: self.load(at + 1), boottime_ns: self.load(at + 2) })
    }

    /// Writes a deadline over the slot that does not count. Until its checksum is there the older one, which is the
    /// stricter, still counts.
    pub(crate) fn set_deadline(&self, deadline: Deadline) {
        let newest = self.newest_slot();
        let at = DEADLINES[usize::from(newest.is_some_and(|(at, _)| at == DEADLINES[0]))];
        let words = [newest.map_or(1, |(_, sequence)| sequence + 1), deadline.lease, deadline.boottime_ns];
        self.store(at + 3, 0);
        for (offset, value) in words.iter().enumerate() {
            self.store(at + offset, *value);
        }
        self.store(at + 3, checksum(&words));
    }

    /// The slot that counts and its sequence.
    fn newest_slot(&self) -> Option<(usize, u64)> {
        let valid = DEADLINES.into_iter().filter_map(|at| {
            let words: [u64; 3] = std::array::from_fn(|offset| self.load(at + offset));
            let whole = words[0] != 0 && self.load(at + 3) == checksum(&words);
            whole.then_some((at, words[0]))
        });
        valid.max_by_key(|(_, sequence)| *sequence)
    }

    /// The entry in a slot; `Err` when a live one does not verify.
    pub(crate) fn read(&self, slot: usize) -> Result<Option<Record>, ()> {
        let at = ENTRIES + slot * ENTRY_WORDS;
        if self.load(at) != LIVE {
            return Ok(None);
        }
        let words: [u64; 6] = std::array::from_fn(|offset| self.load(at + 1 + offset));
        if self.load(at + 7) != checksum(&words) {
            return Err(());
        }
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&words[2].to_le_bytes());
        uuid[8..].copy_from_slice(&words[3].to_le_bytes());
        let class = u8::try_from(words[0] >> 32).ok().and_then(Class::from_byte).ok_or(())?;
        let process = Process { pid: (words[0] & 0xffff_ffff) as u32, start_time: words[1], inode: words[5] };
        Ok(Some(Record { uuid, epoch: words[4], process, class }))
    }

    /// Writes an entry into a free slot.
    pub(crate) fn write(&self, slot: usize, record: &Record) {
        let at = ENTRIES + slot * ENTRY_WORDS;
        let (low, high) = record.uuid.split_at(8);
        let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("half a uuid is 8 bytes"));
        let words = [
            u64::from(record.process.pid) | u64::from(record.class.to_byte()) << 32,
            record.process.start_time,
            half(low),
            half(high),
            record.epoch,
            record.process.inode,
        ];
        self.store(at, 0);
        for (offset, value) in words.iter().enumerate() {
            self.store(at + 1 + offset, *value);
        }
        self.store(at + 7, checksum(&words));
        self.store(at, LIVE);
    }

    pub(crate) fn clear(&self, slot: usize) {
        self.store(ENTRIES + slot * ENTRY_WORDS, 0);
    }

    pub(crate) fn kills(&self) -> u64 {
        self.load(KILLS)
    }

    pub(crate) fn fired(&self) -> Option<Fired> {
        let [deadline_ns, sent_ns, gone] = std::array::from_fn(|at| self.load(FIRED + at));
        (sent_ns != 0).then_some(Fired {
            deadline_ns,
            sent_ns,
            gone_ns: Some(gone).filter(|gone| *gone != 0),
        })
    }

    pub(crate) fn note_fired(&self, kills: u64, fired: Fired) {
        self.store(KILLS, self.kills() + kills);
        self.store(FIRED, fired.deadline_ns);
        self.store(FIRED + 1, fired.sent_ns);
        self.store(FIRED + 2, fired.gone_ns.unwrap_or(0));
    }

    fn load(&self, at: usize) -> u64 {
        self.words.load(at)
    }

    fn store(&self, at: usize, value: u64) {
        self.words.store(at, value);
    }
}

/// How many words a table of this capacity has.
fn words(capacity: usize) -> usize {
    ENTRIES + capacity * ENTRY_WORDS
}

/// FNV-1a over the words' bytes, with a final mix. It tells a whole write from a half one; it is no defence against
/// a writer who means harm, who would have to be root.
fn checksum(words: &[u64]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in words.iter().flat_map(|word| word.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    // Never 0, so that a slot of zeros does not verify.
    (hash ^ hash >> 32) | 1 << 63
}

#[cfg(test)]
#[path = "table/tests.rs"]
mod tests;
