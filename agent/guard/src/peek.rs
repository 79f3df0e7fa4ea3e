//! A look at the guard's table without the guard: what an agent that starts must know although nobody answers it.
//!
//! Promises: changes nothing, waits for nobody; a deadline or an entry that was half written reads as not there. Must
//! not be taken for an acknowledgement of anything.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::daemon::read_boot_id;
use crate::process::{self, Reopened};
use crate::table::{Found, Table, Words};
use crate::wire::Deadline;

/// What a guard of this boot has acknowledged.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The last deadline.
    pub deadline: Option<Deadline>,
    /// The registered processes that live, by the UUIDs of their instances.
    pub members: Vec<([u8; 16], OwnedFd)>,
}

/// The words of a file that was read.
struct Copied(Vec<u64>);

impl Words for Copied {
    fn load(&self, at: usize) -> u64 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn store(&self, _: usize, _: u64) {}
}

/// Reads the table. One that is not there, or of an earlier boot, holds nothing.
///
/// # Errors
/// When it cannot be read or understood: what was acknowledged is not known then.
pub fn inherited(table: &Path) -> io::Result<Inherited> {
    let bytes = match std::fs::read(table) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Inherited::default()),
        Err(error) => return Err(error),
    };
    let words = bytes.chunks_exact(8).map(|word| {
        let word = word.try_into().expect("chunks of eight");
        u64::from_le_bytes(word)
    });
    let table = Table::over(Copied(words.collect()), crate::CAPACITY);
    match table.find(read_boot_id()?) {
        Ok(Found::Fresh) => Ok(Inherited::default()),
        Ok(Found::Predecessor) => {
            let alive = |slot| {
                let record = table.read(slot).ok()??;
                match process::reopen(record.process) {
                    Reopened::Alive(pidfd) => Some((record.uuid, pidfd)),
                    Reopened::Gone | Reopened::Failed(_) => None,
                }
            };
            let members = (0..crate::CAPACITY).filter_map(alive).collect();
            Ok(Inherited { deadline: table.deadline(), members })
        }
        Ok(Found::Damaged) | Err(_) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the guard's table does not verify"))
        }
    }
}
