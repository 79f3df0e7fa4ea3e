//! The protocol of the guard's socket: its types and their bytes.
//!
//! `SOCK_SEQPACKET`, one request and one reply at a time, little-endian, fixed sizes, no text.
//!
//! Request, 64 bytes; fields that an operation does not use are zero:
//!
//! | at | size | field | used by |
//! |---|---|---|---|
//! | 0 | 4 | `USG1` (the protocol's version is the last digit) | all |
//! | 4 | 1 | operation: 1 hello, 2 register, 3 forget, 4 deadline, 5 status | all |
//! | 5 | 1 | class: 0 RAM only, 1 writable shared disk | register |
//! | 6 | 2 | zero | |
//! | 8 | 4 | tag, returned in the reply | all |
//! | 12 | 4 | pid, as the guard sees it | register |
//! | 16 | 16 | uuid of the instance | register, forget |
//! | 32 | 8 | epoch (register, forget) or lease (deadline) | |
//! | 40 | 8 | deadline, ns of `CLOCK_BOOTTIME` (deadline), or the lease that asks (register) | |
//! | 48 | 16 | zero | |
//!
//! `register` carries exactly one descriptor by `SCM_RIGHTS`: the pidfd of that pid.
//!
//! Reply, 96 bytes: `USG1`, operation, code (0 done, else a [`Refusal`]), armed (0 or 1), zero, tag `u32`, entries
//! `u32`, capacity `u32`, pid of the guard `u32`, then as `u64`: now, lease, deadline, kills since the table was
//! begun, and of the last firing its deadline, when the signals were sent and when the last process was gone, then
//! when this guard started, then zero. The reply to `status` is followed by 48 bytes per entry: uuid, epoch `u64`,
//! start time `u64`, pid `u32`, class, dying (0 or 1), zero.

use std::fmt;
use std::os::fd::BorrowedFd;

pub(crate) const REQUEST_LEN: usize = 64;
pub(crate) const REPLY_LEN: usize = 96;
pub(crate) const ENTRY_LEN: usize = 48;
const MAGIC: [u8; 4] = *b"USG1";

/// What an instance may have written outside its own memory. This form kills both classes; the byte is kept so that
/// a later form can stop a [`Class::RamOnly`] one instead without a new table or protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// All its writable state is in RAM.
    RamOnly,
    /// It holds a writable disk that another host can open.
    SharedDisk,
}

impl Class {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::RamOnly => 0,
            Self::SharedDisk => 1,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::RamOnly),
            1 => Some(Self::SharedDisk),
            _ => None,
        }
    }
}

/// A primary to be ended at the deadline.
#[derive(Clone, Copy, Debug)]
pub struct Registration<'fd> {
    /// The instance.
    pub uuid: [u8; 16],
    /// The epoch of its node in which it became primary.
    pub epoch: u64,
    /// The host's lease under which that was decided: one that is over may start nothing any more.
    pub lease: u64,
    /// Its qemu process, in the PID namespace of the guard.
    pub pid: u32,
    /// A pidfd of that process.
    pub pidfd: BorrowedFd<'fd>,
    /// Kept for the stop-or-kill choice.
    pub class: Class,
}

/// How long this host may run its primaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub boottime_ns: u64,
    /// The host's lease; within one lease a deadline only moves forward, and not at all once it has passed.
    pub lease: u64,
}

/// Why the guard did not do as asked. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// Not a request of this protocol version; the guard closes the connection.
    BadRequest = 1,
    /// The peer is not root; the guard closes the connection.
    NotRoot = 2,
    /// Too many connections are open; the guard closes this one.
    Busy = 3,
    /// The epoch is older than the registered one.
    OldEpoch = 4,
    /// The lease is older than the last one acknowledged.
    OldLease = 5,
    /// The deadline lies before the one acknowledged in this lease.
    Backwards = 6,
    /// The deadline has passed already.
    PastDeadline = 7,
    /// The deadline is further ahead than any lease lasts: a wrong unit or clock.
    TooFar = 8,
    /// The host's deadline has passed: nothing may run before a new one is acknowledged.
    Expired = 9,
    /// The table has no free place.
    Full = 10,
    /// The descriptor is missing or is no pidfd of that pid.
    WrongPidfd = 11,
    /// The process is dead.
    Dead = 12,
    /// Another live process is registered for this instance.
    OtherProcess = 13,
    /// The guard could not watch the process.
    Failed = 14,
    /// The lease has no acknowledged deadline yet.
    NewLease = 15,
    /// Primaries of the lease before are being killed: ask again once they are gone.
    Closing = 16,
}

impl Refusal {
    const ALL: [Self; 16] = [
        Self::BadRequest,
        Self::NotRoot,
        Self::Busy,
        Self::OldEpoch,
        Self::OldLease,
        Self::Backwards,
        Self::PastDeadline,
        Self::TooFar,
        Self::Expired,
        Self::Full,
        Self::WrongPidfd,
        Self::Dead,
        Self::OtherProcess,
        Self::Failed,
        Self::NewLease,
        Self::Closing,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| *refusal as u8 == byte)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadRequest => {
                "not a request of this protocol version: agent and guard are of different releases"
            }
            Self::NotRoot => "only root may talk to the guard",
            Self::Busy => "too many connections to the guard",
            Self::OldEpoch => "the epoch is older than the registered one",
            Self::OldLease => "the lease is older than the last one acknowledged",
            Self::Backwards => "the deadline lies before the one acknowledged in this lease",
            Self::PastDeadline => "the deadline has passed already",
            Self::TooFar => "the deadline is further ahead than any lease lasts",
            Self::Expired => "the host's deadline has passed: open a lease first",
            Self::Full => "the guard's table is full",
            Self::WrongPidfd => "the descriptor is missing or is no pidfd of that pid",
            Self::Dead => "the process is dead",
            Self::OtherProcess => "another live process is registered for this instance",
            Self::Failed => "the guard could not watch the process: see its log",
            Self::NewLease => "the lease has no acknowledged deadline yet",
            Self::Closing => "primaries of the lease before are being killed and not gone yet",
        })
    }
}

/// One registered primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The instance.
    pub uuid: [u8; 16],
    /// The epoch in which it was registered.
    pub epoch: u64,
    /// Its process.
    pub pid: u32,
    /// When that process started, in clock ticks since the boot: with the pid it names the process for good.
    pub start_time: u64,
    /// What it may have written.
    pub class: Class,
    /// It was sent SIGKILL and is not gone yet.
    pub dying: bool,
}

/// The last time a deadline was enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fired {
    /// The deadline.
    pub deadline_ns: u64,
    /// When the last of the signals was sent.
    pub sent_ns: u64,
    /// When the last of the processes was gone; `None` while one is dying.
    pub gone_ns: Option<u64>,
}

/// The guard and its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The guard's process.
    pub guard_pid: u32,
    /// When it started, ns of `CLOCK_BOOTTIME`.
    pub started_ns: u64,
    /// When it answered.
    pub now_ns: u64,
    /// The deadline acknowledged last, passed or not.
    pub deadline: Option<Deadline>,
    /// How many primaries are registered.
    pub registered: u32,
    /// How many can be.
    pub capacity: u32,
    /// Processes killed since the table was begun.
    pub kills: u64,
    /// The last firing that found something to kill.
    pub fired: Option<Fired>,
    /// The primaries; empty in the answer to anything but `status`.
    pub entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Hello,
    Register { uuid: [u8; 16], epoch: u64, lease: u64, pid: u32, class: Class },
    Forget { uuid: [u8; 16], epoch: u64 },
    Deadline(Deadline),
    Status,
}

impl Request {
    pub(crate) fn operation(&self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Register { .. } => 2,
            Self::Forget { .. } => 3,
            Self::Deadline(_) => 4,
            Self::Status => 5,
        }
    }

    pub(crate) fn encode(&self, tag: u32) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = self.operation();
        bytes[8..12].copy_from_slice(&tag.to_le_bytes());
        match self {
            Self::Hello | Self::Status => {}
            Self::Register { uuid, epoch, lease, pid, class } => {
                bytes[5] = class.to_byte();
                bytes[12..16].copy_from_slice(&pid.to_le_bytes());
                bytes[16..32].copy_from_slice(uuid);
                bytes[32..40].copy_from_slice(&epoch.to_le_bytes());
                bytes[40..48].copy_from_slice(&lease.to_le_bytes());
            }
            Self::Forget { uuid, epoch } => {
                bytes[16..32].copy_from_slice(uuid);
                bytes[32..40].copy_from_slice(&epoch.to_le_bytes());
            }
            Self::Deadline(deadline) => {
                bytes[32..40].copy_from_slice(&deadline.lease.to_le_bytes());
                bytes[40..48].copy_from_slice(&deadline.boottime_ns.to_le_bytes());
            }
        }
        bytes
    }

    /// The request and its tag. A field that the operation does not use must be zero, so that a later version can
    /// give it a meaning which this one refuses instead of overlooks: the decoded request must encode to the same
    /// bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, u32)> {
        if bytes.len() != REQUEST_LEN || bytes[0..4] != MAGIC {
            return None;
        }
        let tag = u32_at(bytes, 8);
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[16..32]);
        let epoch = u64_at(bytes, 32);
        let request = match bytes[4] {
            1 => Self::Hello,
            2 => Self::Register {
                uuid,
                epoch,
                lease: u64_at(bytes, 40),
                pid: u32_at(bytes, 12),
                class: Class::from_byte(bytes[5])?,
            },
            3 => Self::Forget { uuid, epoch },
            4 => Self::Deadline(Deadline { boottime_ns: u64_at(bytes, 40), lease: epoch }),
            5 => Self::Status,
            _ => return None,
        };
        (request.encode(tag) == bytes).then_some((request, tag))
    }
}

/// The operation, the tag and the outcome of a reply's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyHead {
    pub(crate) operation: u8,
    pub(crate) tag: u32,
    pub(crate) outcome: Result<(), Refusal>,
}

/// Writes a reply's head; `status.entries` is written by [`encode_entry`].
pub(crate) fn encode_reply(head: ReplyHead, status: &Status, bytes: &mut [u8]) {
    let words = [
        status.now_ns,
        status.deadline.map_or(0, |deadline| deadline.lease),
        status.deadline.map_or(0, |deadline| deadline.boottime_ns),
        status.kills,
        status.fired.map_or(0, |fired| fired.deadline_ns),
        status.fired.map_or(0, |fired| fired.sent_ns),
        status.fired.and_then(|fired| fired.gone_ns).unwrap_or(0),
        status.started_ns,
        0,
    ];
    bytes[..REPLY_LEN].fill(0);
    bytes[0..4].copy_from_slice(&MAGIC);
    bytes[4] = head.operation;
    bytes[5] = head.outcome.map_or_else(|refusal| refusal as u8, |()| 0);
    bytes[6] = u8::from(status.deadline.is_some());
    bytes[8..12].copy_from_slice(&head.tag.to_le_bytes());
    bytes[12..16].copy_from_slice(&status.registered.to_le_bytes());
    bytes[16..20].copy_from_slice(&status.capacity.to_le_bytes());
    bytes[20..24].copy_from_slice(&status.guard_pid.to_le_bytes());
    for (at, word) in words.into_iter().enumerate() {
        bytes[24 + at * 8..32 + at * 8].copy_from_slice(&word.to_le_bytes());
    }
}

pub(crate) fn encode_entry(entry: &Entry, bytes: &mut [u8]) {
    bytes[..ENTRY_LEN].fill(0);
    bytes[0..16].copy_from_slice(&entry.uuid);
    bytes[16..24].copy_from_slice(&entry.epoch.to_le_bytes());
    bytes[24..32].copy_from_slice(&entry.start_time.to_le_bytes());
    bytes[32..36].copy_from_slice(&entry.pid.to_le_bytes());
    bytes[36] = entry.class.to_byte();
    bytes[37] = u8::from(entry.dying);
}

/// A whole reply, entries included. `None`: not of this protocol version.
pub(crate) fn decode_reply(bytes: &[u8]) -> Option<(ReplyHead, Status)> {
    if bytes.len() < REPLY_LEN || bytes[0..4] != MAGIC {
        return None;
    }
    let (head_bytes, rest) = bytes.split_at(REPLY_LEN);
    let outcome = match head_bytes[5] {
        0 => Ok(()),
        code => Err(Refusal::from_byte(code)?),
    };
    let head = ReplyHead { operation: head_bytes[4], tag: u32_at(head_bytes, 8), outcome };
    let word = |index: usize| u64_at(head_bytes, 24 + index * 8);
    let fired =
        Fired { deadline_ns: word(4), sent_ns: word(5), gone_ns: Some(word(6)).filter(|gone| *gone != 0) };
    let entries: Option<Vec<Entry>> = rest.chunks(ENTRY_LEN).map(decode_entry).collect();
    let status = Status {
        guard_pid: u32_at(head_bytes, 20),
        started_ns: word(7),
        now_ns: word(0),
        deadline: (head_bytes[6] == 1).then_some(Deadline { lease: word(1), boottime_ns: word(2) }),
        registered: u32_at(head_bytes, 12),
        capacity: u32_at(head_bytes, 16),
        kills: word(3),
        fired: (fired.sent_ns != 0).then_some(fired),
        entries: entries?,
    };
    Some((head, status))
}

fn decode_entry(bytes: &[u8]) -> Option<Entry> {
    if bytes.len() != ENTRY_LEN {
        return None;
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&bytes[0..16]);
    Some(Entry {
        uuid,
        epoch: u64_at(bytes, 16),
        start_time: u64_at(bytes, 24),
        pid: u32_at(bytes, 32),
        class: Class::from_byte(bytes[36])?,
        dying: bytes[37] == 1,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
#[path = "wire/tests.rs"]
mod tests;
