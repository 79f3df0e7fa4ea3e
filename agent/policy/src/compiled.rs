//! Owns the one place where native code is taken from a file instead of being compiled here, and what compiling leaves
//! behind.
//!
//! Promises: only a regular file of this process's own user, that nobody else may read or write and that has one name,
//! is taken; the caller vouches for the folder. Must not do: decide where the file lies, or what it was made from.
#![expect(
    unsafe_code,
    reason = "the engine cannot check native code, and std cannot trim memory: see the safety comments"
)]

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Rights of others, and to execute: none of them.
const FOREIGN_RIGHTS: u32 = 0o177;

/// A component that [`Component::serialize`] wrote to `file`; none where there is no file.
///
/// An error is why the file is not taken; it can be removed and made again.
pub(crate) fn read(engine: &Engine, file: &Path) -> Result<Option<Component>, String> {
    let opened = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(file);
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    check(&opened)?;
    // By its handle: what is mapped is what was checked, whatever the name leads to by then.
    let handle = format!("/proc/self/fd/{}", opened.as_raw_fd());
    // SAFETY: the engine trusts the file to hold what `serialize` of the same version and settings wrote; it checks
    // the version, the settings and the machine itself. This user alone can write the file (checked above), within a
    // folder that is private to it (checked by `Library`), and the only code that writes there is `Library`, which
    // writes under another name, syncs, and renames: a file of this name is whole, and is never written again while
    // it is mapped.
    let component = unsafe { Component::deserialize_file(engine, handle) };
    component.map(Some).map_err(|error| format!("{error:#}"))
}

/// Give back what the compiler used: of a Python policy 260 MiB, which the allocator would keep for a next time that
/// may never come.
pub(crate) fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called at any time from any thread, and touches only memory that nobody holds.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

fn check(file: &File) -> Result<(), String> {
    let meta = file.metadata().map_err(|error| error.to_string())?;
    let user = nix::unistd::geteuid().as_raw();
    if !meta.is_file() {
        Err("is no regular file".to_owned())
    } else if meta.uid() != user {
        Err(format!("belongs to user {}, not to {user}", meta.uid()))
    } else if meta.mode() & FOREIGN_RIGHTS != 0 {
        Err(format!("has mode {:o}, not 600", meta.mode() & 0o7777))
    } else if meta.nlink() != 1 {
        Err("has several names".to_owned())
    } else {
        Ok(())
    }
}
