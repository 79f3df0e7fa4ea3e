//! Owns the memory that a snapshot is written into, and libvirt's header in front of it.
//!
//! ```text
//! LibvirtQemudSave | 2 | bytes of the text | was running: 1 | raw: 0 | cookie's offset | 14 × 0 | XML NUL cookie NUL 0…
//!  16 bytes          u32, little-endian, each                          └──────────── bytes of the text ────────────┘
//! ```
//!
//! That is the form of libvirt 9 to 11, `src/qemu/qemu_saveimage.c`; qemu's stream follows.
//!
//! The memory is a file that is nowhere but in memory (memfd), and qemu writes into it as into a pipe, at the place that this
//! process has left off at: a passed file shares its offset. So nobody has to read: a pipe's reader that hangs, or is killed
//! halfway, holds the guest up or breaks the snapshot off; here the kernel takes what comes, whatever becomes of this
//! process, and an agent that was stopped finds the snapshot whole when it wakes up. A pipe that nobody reads may even stop
//! qemu's main loop, and its monitor with it: as soon as a device writes into a page that is held. AppArmor, by which Debian's
//! libvirt confines qemu, judges files that have a path; by the kernel's source neither a pipe nor this is one.
//!
//! Promises: the memory is there before qemu is asked anything, so that nothing can lack in the middle; it goes with its last
//! holder. Must not do: talk to qemu.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use procfs::{Current, Meminfo};
use understudy_core::model::units::MiB;

use crate::domain::Domain;
use crate::xml::{Element, Node, XmlError};

const MAGIC: &[u8; 16] = b"LibvirtQemudSave";
const VERSION: u32 = 2;
const HEAD_BYTES: usize = 92;
/// As much as libvirt leaves behind the text, so that `virsh save-image-edit` has room.
const PADDING: usize = 64 << 10;
/// A page of 4096 bytes has a head of 8, and each block's first one its name: less than 1 in 256.
const HEADS: u64 = 256;
/// Firmware, a plain graphics card and the state of the devices. More is not taken: the snapshot breaks off.
const DEVICES: u64 = 24 << 20;
/// What stays free for everything else on the host.
const SPARE: u64 = 256 << 20;

/// Memory that was reserved.
#[derive(Debug)]
pub(crate) struct Reserved {
    file: File,
}

impl Reserved {
    /// How much a guest of this size takes at the most, in bytes, behind a header.
    pub(crate) fn bytes_for(memory: MiB) -> u64 {
        let memory = memory.bytes();
        memory + memory / HEADS + DEVICES
    }

    /// Reserves memory, and writes the header into it.
    pub(crate) fn new(header: &[u8], bytes: u64) -> io::Result<Self> {
        // The kernel would give more than there is, and end some process when it is used.
        let available = Meminfo::current().ok().and_then(|memory| memory.mem_available);
        if available.is_some_and(|available| available < bytes + SPARE) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let mut file = File::from(memfd_create(
            c"understudy-snapshot",
            MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
        )?);
        let length = i64::try_from(header.len() as u64 + bytes).map_err(io::Error::other)?;
        while let Err(error) = fallocate(&file, FallocateFlags::empty(), 0, length) {
            if error != Errno::EINTR {
                return Err(error.into());
            }
        }
        // qemu must not take from the host what nobody has looked for.
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW))?;
        file.write_all(header)?;
        Ok(Self { file })
    }

    /// What qemu writes into.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Takes no more: whoever writes on gets an error, as from a pipe whose reader is gone. The memory is free again, whoever
    /// holds the file.
    pub(crate) fn close(&self) -> io::Result<()> {
        fcntl(&self.file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE))?;
        self.file.set_len(0)
    }

    /// What was written, to be read from its beginning, and its length in bytes. The rest of the memory is free again.
    pub(crate) fn into_written(mut self) -> io::Result<(File, u64)> {
        let bytes = self.file.stream_position()?;
        self.file.set_len(bytes)?;
        self.file.rewind()?;
        Ok((self.file, bytes))
    }
}

/// The header for a domain: its description as it travels, and as it is at present, from which comes what libvirt keeps beside
/// it for a processor that the description does not name exactly.
pub(crate) fn header(migratable: &str, live: &Domain) -> Result<Vec<u8>, XmlError> {
    let mut cookie = Element::new("cookie");
    cookie.children.extend(live.0.child("cpu").cloned().map(Node::Element));
    let cookie = cookie.write()?;
    let cookie_at = migratable.len() + 1;
    let bytes = cookie_at + cookie.len() + 1 + PADDING;
    let number = |number: usize| u32::try_from(number).map_err(|_| XmlError::Lacks("length"));
    let mut header = MAGIC.to_vec();
    for number in [VERSION, number(bytes)?, 1, 0, number(cookie_at)?] {
        header.extend(number.to_le_bytes());
    }
    header.resize(HEAD_BYTES, 0);
    for text in [migratable, &cookie] {
        header.extend(text.as_bytes());
        header.push(0);
    }
    header.resize(HEAD_BYTES + bytes, 0);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_another_holder_writes_follows_the_header_and_the_rest_is_given_back() {
        let reserved = Reserved::new(b"head", 1 << 20).unwrap();
        assert_eq!(reserved.file.metadata().unwrap().len(), 4 + (1 << 20));
        let mut other = File::from(reserved.as_fd().try_clone_to_owned().unwrap());
        other.write_all(b"stream").unwrap();
        let (mut image, bytes) = reserved.into_written().unwrap();
        let mut text = String::new();
        image.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), bytes), ("headstream", 10));
        assert_eq!(image.metadata().unwrap().len(), 10);
    }

    #[test]
    fn what_is_closed_takes_nothing_more_from_anybody() {
        let reserved = Reserved::new(b"head", 4096).unwrap();
        let mut other = File::from(reserved.as_fd().try_clone_to_owned().unwrap());
        other.write_all(b"a").unwrap();
        reserved.close().unwrap();
        assert_eq!(other.write_all(b"b").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(other.metadata().unwrap().len(), 0, "nothing is held for it");
    }

    #[test]
    fn more_than_was_reserved_is_not_taken_from_the_host() {
        let reserved = Reserved::new(b"", 4096).unwrap();
        let mut other = File::from(reserved.as_fd().try_clone_to_owned().unwrap());
        other.write_all(&[7; 4096]).unwrap();
        assert_eq!(other.write_all(b"b").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn more_than_the_host_has_is_not_reserved() {
        let refused = Reserved::new(b"head", 1 << 50).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory);
    }

    #[test]
    fn the_header_is_the_one_that_libvirt_writes() {
        let live = Domain::parse("<domain><cpu mode='custom'><model>qemu64</model></cpu></domain>").unwrap();
        let header = header("<domain/>", &live).unwrap();
        let cookie = "<cookie><cpu mode=\"custom\"><model>qemu64</model></cpu></cookie>";
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!(&header[..16], MAGIC);
        let bytes = 10 + cookie.len() + 1 + PADDING;
        assert_eq!([16, 20, 24, 28, 32].map(number), [2, bytes, 1, 0, 10]);
        assert_eq!(header.len(), HEAD_BYTES + bytes);
        assert!(header[36..HEAD_BYTES].iter().all(|byte| *byte == 0));
        let text = std::str::from_utf8(&header[HEAD_BYTES..]).unwrap();
        assert_eq!(text.trim_end_matches('\0').split('\0').collect::<Vec<_>>(), ["<domain/>", cookie]);
    }
}
