//! Owns how the binary ends: the documented exit codes.

use std::process::ExitCode;

pub use understudy_core::errors::chain;

/// Exit codes of `understudy`. Scripts may rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done as asked.
    Done = 0,
    /// It could not be done; the message says what to do next.
    Failed = 1,
    /// The command line is wrong (clap's own code).
    Usage = 2,
    /// The configuration is wrong.
    Config = 3,
    /// The agent does not answer on its socket.
    NoAgent = 4,
    /// The agent refused: what was asked for cannot be.
    Refused = 5,
    /// What was asked about does not exist.
    NotFound = 6,
    /// Another machine holds this host's name.
    NameTaken = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that carries the code to end with.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// What to print.
    pub message: String,
}

impl Failure {
    /// A failure with a message.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}
