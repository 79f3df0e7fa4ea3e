//! The agent's side of the guard's socket: blocking calls with a time-out, each returning after the guard's answer.
//!
//! Promises: `Ok` means that the guard has acknowledged and its table holds it. After an error the outcome of that
//! call is unknown unless it is [`ClientError::Refused`]; every request may be repeated. Must not be called from an
//! async task: it blocks for up to its time-out.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::CAPACITY;
use crate::wire::{Deadline, ENTRY_LEN, REPLY_LEN, Refusal, Registration, Request, Status, decode_reply};

/// Why a call did not end with an acknowledgement.
#[derive(Debug)]
pub enum ClientError {
    /// The guard cannot be reached.
    Connect(PathBuf, io::Error),
    /// The request could not be sent.
    Send(io::Error),
    /// The reply could not be read.
    Receive(io::Error),
    /// No answer in time. A later call on this client passes over the late answer.
    TimedOut(Duration),
    /// The guard closed the connection: connect again, and compare its table with what should be in it.
    Closed,
    /// The answer is not of this protocol version.
    NotUnderstood,
    /// The guard refused; nothing was changed.
    Refused(Refusal),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(path, _) => {
                write!(f, "cannot reach the guard at {}: is understudy-guard running?", path.display())
            }
            Self::Send(_) => f.write_str("cannot send to the guard"),
            Self::Receive(_) => f.write_str("cannot receive from the guard"),
            Self::TimedOut(limit) => write!(f, "the guard did not answer within {limit:?}"),
            Self::Closed => f.write_str("the guard closed the connection"),
            Self::NotUnderstood => f.write_str("the guard's answer is of another protocol version"),
            Self::Refused(refusal) => write!(f, "the guard refused: {refusal}"),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(_, source) | Self::Send(source) | Self::Receive(source) => Some(source),
            Self::TimedOut(_) | Self::Closed | Self::NotUnderstood | Self::Refused(_) => None,
        }
    }
}

/// A connection to the guard.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    timeout: Duration,
    /// Tags start at 1: an answer with tag 0 is about the connection.
    tag: u32,
    buffer: Box<[u8]>,
}

impl Client {
    /// Connects and waits for the guard's first answer, so that a refused connection is known here. `timeout` holds
    /// for this and for each later call.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let failed = |errno: Errno| match errno {
            Errno::EAGAIN => ClientError::TimedOut(timeout),
            errno => ClientError::Connect(path.to_owned(), errno.into()),
        };
        let socket =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
        // A full backlog makes connect(2) wait, for as long as the send time-out says.
        let limit = TimeVal::new(
            timeout.as_secs().try_into().unwrap_or(i64::MAX),
            timeout.subsec_micros().max(u32::from(timeout.is_zero())).into(),
        );
        setsockopt(&socket, sockopt::SendTimeout, &limit).map_err(failed)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path).map_err(failed)?).map_err(failed)?;
        let buffer = vec![0; REPLY_LEN + CAPACITY * ENTRY_LEN].into_boxed_slice();
        let mut client = Self { socket, timeout, tag: 0, buffer };
        client.hello()?;
        Ok(client)
    }

    /// The guard's state without its entries. A changed `started_ns` means another guard.
    pub fn hello(&mut self) -> Result<Status, ClientError> {
        self.call(&Request::Hello, None)
    }

    /// Registers a primary. To be acknowledged before the primary may run.
    ///
    /// Repeating it changes nothing; a newer epoch of the same process replaces the older.
    pub fn register(&mut self, registration: &Registration<'_>) -> Result<(), ClientError> {
        let Registration { uuid, epoch, lease, pid, pidfd, class } = *registration;
        self.call(&Request::Register { uuid, epoch, lease, pid, class }, Some(pidfd.as_raw_fd())).map(drop)
    }

    /// Takes an instance out of the table: it is no primary any more. `epoch` is the one in which that was decided; one
    /// older than the registered is refused. An instance that is not there is acknowledged.
    pub fn forget(&mut self, uuid: [u8; 16], epoch: u64) -> Result<(), ClientError> {
        self.call(&Request::Forget { uuid, epoch }, None).map(drop)
    }

    /// Moves the deadline. To be acknowledged before the lease is renewed again.
    pub fn set_deadline(&mut self, deadline: Deadline) -> Result<(), ClientError> {
        self.call(&Request::Deadline(deadline), None).map(drop)
    }

    /// The guard's state with its entries.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.call(&Request::Status, None)
    }

    fn call(&mut self, request: &Request, fd: Option<RawFd>) -> Result<Status, ClientError> {
        let until = Instant::now() + self.timeout;
        self.tag = self.tag.wrapping_add(1).max(1);
        self.send(&request.encode(self.tag), fd, until)?;
        loop {
            let len = self.receive(until)?;
            let (head, status) = decode_reply(&self.buffer[..len]).ok_or(ClientError::NotUnderstood)?;
            // Anything else answers a call that had timed out.
            if head.tag == self.tag || head.tag == 0 {
                head.outcome.map_err(ClientError::Refused)?;
                let answered = head.operation == request.operation();
                return if answered { Ok(status) } else { Err(ClientError::NotUnderstood) };
            }
        }
    }

    fn send(&self, bytes: &[u8], fd: Option<RawFd>, until: Instant) -> Result<(), ClientError> {
        let fds: Vec<RawFd> = fd.into_iter().collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let controls = if fds.is_empty() { &[][..] } else { &rights[..] };
        loop {
            self.wait(PollFlags::POLLOUT, until)?;
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<UnixAddr>(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], controls, flags, None)
            {
                // A guard that refuses the connection says why before it closes: read that first.
                Ok(_) | Err(Errno::EPIPE) => return Ok(()),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(ClientError::Send(errno.into())),
            }
        }
    }

    fn receive(&mut self, until: Instant) -> Result<usize, ClientError> {
        loop {
            self.wait(PollFlags::POLLIN, until)?;
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(len) => return Ok(len),
                // A reset comes once and before what the guard still said.
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNRESET) => {}
                Err(errno) => return Err(ClientError::Receive(errno.into())),
            }
        }
    }

    fn wait(&self, wanted: PollFlags, until: Instant) -> Result<(), ClientError> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up: a wait of 0 ms with time left would spin.
            let millis = u32::try_from(left.as_micros().div_ceil(1_000)).unwrap_or(u32::MAX);
            let mut ready = [PollFd::new(self.socket.as_fd(), wanted)];
            match poll(&mut ready, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
                Ok(0) if left.is_zero() => return Err(ClientError::TimedOut(self.timeout)),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(ClientError::Receive(errno.into())),
            }
        }
    }
}
