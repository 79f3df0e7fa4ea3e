//! The calls that neither std nor `nix` wrap safely: the only unsafe code of the guard.
//!
//! Promises: every function here is safe to call with any argument; a file descriptor that comes in becomes owned
//! before anything else is done.
#![expect(unsafe_code, reason = "system calls without a safe wrapper; each block says why it is sound")]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    listen, recvmsg, socket,
};
use nix::time::{ClockId, clock_gettime};

pub(crate) fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux has CLOCK_BOOTTIME");
    let seconds = u64::try_from(now.tv_sec()).expect("the boot was in the past");
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).expect("nanoseconds of a second are positive")
}

pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| Errno::ESRCH)?;
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = RawFd::try_from(fd).expect("a descriptor is an int");
    // SAFETY: the kernel has just made this descriptor for us; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// SIGKILL for the process behind a pidfd. Does not allocate.
pub(crate) fn pidfd_kill(pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is what the call defines as "like kill(2)"; the other arguments are integers.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, no_info, 0) };
    Errno::result(result).map(drop)
}

/// The round-robin real-time class at this priority, for the calling thread.
pub(crate) fn set_realtime(priority: i32) -> Result<(), Errno> {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: `param` outlives the call, which only reads it; pid 0 is the caller.
    Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const param) }).map(drop)
}

/// Closes every descriptor from `first` on. To be called before anything was opened.
pub(crate) fn close_from(first: u32) -> Result<(), Errno> {
    // SAFETY: called first in `main`, when no object of this process owns a descriptor beyond stderr.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Asks a watchdog device for a time-out; it answers with the one it took.
pub(crate) fn watchdog_set_timeout(device: &File, seconds: i32) -> Result<i32, Errno> {
    /// `_IOWR('W', 6, int)`.
    const WDIOC_SETTIMEOUT: libc::c_ulong = 0xc004_5706;
    let mut seconds: libc::c_int = seconds;
    // SAFETY: the request reads and writes one int, which `seconds` is; a file that is no watchdog answers ENOTTY.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), WDIOC_SETTIMEOUT, &raw mut seconds) })?;
    Ok(seconds)
}

/// A listening `SOCK_SEQPACKET` socket that only its owner may connect to.
pub(crate) fn listen_seqpacket(path: &Path, backlog: i32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    listen(&listener, Backlog::new(backlog)?)?;
    Ok(listener)
}

pub(crate) fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: accept4 has just made this descriptor for us; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One message and the descriptor that came with it. Length 0: the peer has closed.
pub(crate) struct Received {
    pub(crate) len: usize,
    pub(crate) fd: Option<OwnedFd>,
    /// The message or its descriptors did not fit: it is none of ours.
    pub(crate) truncated: bool,
}

pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, Errno> {
    let mut space = cmsg_space!([RawFd; 1]);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let message =
        recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            for fd in raw {
                // SAFETY: the kernel has just installed this descriptor for us; nothing else owns it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    let truncated = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) || fds.len() > 1;
    Ok(Received { len: message.bytes, fd: fds.pop(), truncated })
}

/// A shared mapping of a whole file as words. Plain stores to it outlive the process; they are atomic so that the
/// compiler keeps their order.
pub(crate) struct Mapping {
    address: NonNull<AtomicU64>,
    words: usize,
}

impl Mapping {
    /// Maps the first `words` words of a file, which must be allocated that far.
    pub(crate) fn new(file: &File, words: usize) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(words * size_of::<AtomicU64>()).ok_or(Errno::EINVAL)?;
        if file.metadata()?.len() < bytes.get() as u64 {
            return Err(Errno::EINVAL.into());
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let address = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { address: address.cast(), words })
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is `words` long, page-aligned, zero or written as u64 (every bit pattern is valid) and
        // lives as long as `self`; whoever else maps the file is excluded by its lock, and atomics allow even that.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `new` mapped, and no borrow of it can outlive `self`.
        let unmapped = unsafe { munmap(self.address.cast(), self.words * size_of::<AtomicU64>()) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be removed");
    }
}
