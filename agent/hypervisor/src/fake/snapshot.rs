//! Owns the snapshots of the double, and what a host's qemu is like in that.
//!
//! Promises: a snapshot is of the moment at which it was asked for; a qemu that does not survive one that breaks off is found
//! out by the trial, and only by that. Must not do: touch files; the image that comes of it is memory.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use understudy_core::model::ids::InstanceId;

use super::guest::Memory;
use super::host::Image;
use super::operations::{IMAGE_BYTES_PER_MIB, suspend_and_resume};
use super::{FakeHypervisor, Operation, World, image_file};
use crate::error::CallError;
use crate::snapshot::{MonitorError, ProbeError, Snapshot, SnapshotError, Tier};
use crate::types::{InstanceState, SavedMemory};

/// What a host's qemu does about snapshots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Snapshots {
    /// It takes them, and a guest goes on after one that broke off.
    #[default]
    Work,
    /// It refuses the capability.
    Refused,
    /// It takes them, and a guest never runs again after one that broke off.
    StopBroken,
}

impl<G: Memory> FakeHypervisor<G> {
    /// This host's qemu is so from here on.
    pub fn set_snapshots(&self, snapshots: Snapshots) {
        self.with(|host, _| host.snapshots = snapshots);
    }

    /// The next snapshot of an instance breaks off in the middle.
    pub fn break_snapshot(&self, id: InstanceId) {
        self.with(|host, _| host.breaking.insert(id));
    }

    pub(super) fn snapshot(&self, id: InstanceId, deadline: Duration) -> Result<Snapshot, SnapshotError> {
        let done = self.attempt(Operation::Snapshot, "migrate", |world, uri| take(world, uri, id));
        done.map_err(|source| match source {
            CallError::TimedOut { .. } => SnapshotError::TimedOut { id, after: deadline },
            CallError::Refused { refusal, .. } => not_begun(id, &refusal.message),
            source => SnapshotError::Look { id, source },
        })?
    }

    pub(super) fn probe(&self) -> Result<Tier, ProbeError> {
        let tried = self.attempt(Operation::Query, "create", |world, uri| match world.here(uri).snapshots {
            Snapshots::Work => Tier::Background,
            Snapshots::Refused => {
                Tier::Saved { reason: "the simulation's qemu refuses snapshots".to_owned() }
            }
            Snapshots::StopBroken => {
                let reason = "the simulation's guest does not go on after a snapshot that broke off";
                Tier::Saved { reason: reason.to_owned() }
            }
        });
        tried.map_err(ProbeError::Ask)
    }
}

fn take<G: Memory>(world: &mut World<G>, uri: &str, id: InstanceId) -> Result<Snapshot, SnapshotError> {
    let (clock, moves) = (world.clock, world.moves(uri, id));
    let host = world.here(uri);
    let snapshots = host.snapshots;
    let instance = host.instances.get_mut(&id).ok_or(SnapshotError::NoInstance(id))?;
    if moves {
        return Err(SnapshotError::Busy { id, after: Duration::ZERO });
    }
    if instance.fact.state != InstanceState::Running {
        return Err(SnapshotError::NotRunning(id));
    }
    if !instance.ram_only {
        return Err(SnapshotError::WritableDisk { id, disk: PathBuf::new() });
    }
    if snapshots == Snapshots::Refused {
        return Err(not_begun(id, "Background-snapshot is not supported by the simulation"));
    }
    if host.breaking.remove(&id) {
        instance.stuck = snapshots == Snapshots::StopBroken;
        let (state, message) = ("failed".to_owned(), "broken by the simulation".to_owned());
        return Err(SnapshotError::Broken { id, state, message });
    }
    let instance = instance.clone();
    suspend_and_resume(host, clock, id);
    let bytes = instance.fact.memory.0 * IMAGE_BYTES_PER_MIB;
    world.next_snapshot += 1;
    // No file of the host's is called so.
    let path = PathBuf::from(format!("snapshot {}", world.next_snapshot));
    let image =
        in_memory(&image_file::bytes(&path)).map_err(|source| SnapshotError::Memory { bytes, source })?;
    world.images.insert(path, Image { instance, whole: true });
    Ok(Snapshot { image, saved: SavedMemory { bytes, took: Duration::ZERO, pause: Duration::ZERO } })
}

fn not_begun(id: InstanceId, message: &str) -> SnapshotError {
    let (command, message) = ("migrate-set-capabilities", message.to_owned());
    SnapshotError::Begin { id, source: MonitorError::Refused { command, message } }
}

fn in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"understudy-double", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}
