//! Owns the words of snapshots that a guest hardly notices: what comes of one, by what means a host saves memory, and why
//! that is not done.
//!
//! Promises: every reason says what was asked, what the answer was, and what to do about it. Must not do: ask anything.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use understudy_core::model::ids::InstanceId;

use crate::error::{CallError, ListError};
use crate::types::SavedMemory;
use crate::xml::XmlError;

/// A guest's state as of one moment, in memory of this process.
#[derive(Debug)]
pub struct Snapshot {
    /// A save image of libvirt's, as [`crate::Hypervisor::save_memory`] writes it, to be read from its beginning. It is
    /// memory, and goes with the last handle on it.
    pub image: File,
    /// What it took. The pause is qemu's own figure, in whole milliseconds.
    pub saved: SavedMemory,
}

/// By what means the memory of this host's instances is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tier {
    /// [`crate::Hypervisor::snapshot_memory`]: the guest stands still for some milliseconds.
    Background,
    /// [`crate::Hypervisor::save_memory`] alone: the guest stands still for the whole save.
    Saved {
        /// Why, and what to do about it.
        reason: String,
    },
}

/// Why qemu's monitor did not do as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MonitorError {
    /// libvirt could not be asked, or did not pass it on.
    #[error("cannot ask qemu to '{command}'")]
    Ask {
        /// What was to be asked.
        command: &'static str,
        /// Why it was not.
        #[source]
        source: CallError,
    },
    /// qemu said no.
    #[error("qemu refuses '{command}': {message}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// qemu's words.
        message: String,
    },
    /// The answer is none.
    #[error("qemu gives no usable answer to '{command}': {what}")]
    Answer {
        /// What was asked.
        command: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The capability is not as it was just set.
    #[error(
        "qemu took 'background-snapshot {asked}' and says that it is {found}: report this to the makers of that qemu"
    )]
    NotTaken {
        /// What was asked.
        asked: &'static str,
        /// What is so.
        found: &'static str,
    },
    /// An earlier snapshot cannot be brought to an end.
    #[error(
        "an earlier snapshot has the state '{state}' and does not end: destroy the instance, or live with saves of others"
    )]
    NoEnd {
        /// qemu's word.
        state: String,
    },
}

/// Why there is no snapshot of an instance. Unless it says so, the instance runs on.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is no such instance.
    #[error("no instance {0} on this host")]
    NoInstance(InstanceId),
    /// Its state is more than its memory.
    #[error("instance {id} has the writable disk {}: only instances whose disks are read-only can be saved", disk.display())]
    WritableDisk {
        /// Which instance.
        id: InstanceId,
        /// Which disk.
        disk: PathBuf,
    },
    /// Others write into its memory than those whom qemu can hold back.
    #[error("instance {id} has {what}: a snapshot of it would not be of one moment, it is saved instead")]
    SharedMemory {
        /// Which instance.
        id: InstanceId,
        /// What of its description.
        what: String,
    },
    /// It does not run, so that a snapshot would not be of a moment of its life.
    #[error("instance {0} does not run")]
    NotRunning(InstanceId),
    /// Another save, snapshot or migration of it goes on.
    #[error("instance {id} is being saved or moved, for {after:?} already")]
    Busy {
        /// Which instance.
        id: InstanceId,
        /// How long it was waited for.
        after: Duration,
    },
    /// It could not be looked at.
    #[error("cannot look at instance {id}")]
    Look {
        /// Which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: CallError,
    },
    /// Its description could not be read or made.
    #[error("cannot describe the snapshot")]
    Describe(#[source] XmlError),
    /// The memory for it is not there. Nothing was asked of the instance.
    #[error(
        "cannot reserve {bytes} bytes of memory for a snapshot: give this host more memory, or fewer instances"
    )]
    Memory {
        /// How much.
        bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What an earlier snapshot left could not be set right. Nothing else was asked of the instance.
    #[error("what an earlier snapshot of instance {id} left cannot be set right")]
    Reset {
        /// Of which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: MonitorError,
    },
    /// qemu does not take it.
    #[error("no snapshot of instance {id} could be begun")]
    Begin {
        /// Of which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: MonitorError,
    },
    /// What becomes of it cannot be learned, so that it was broken off.
    #[error("the snapshot of instance {id} cannot be followed")]
    Lost {
        /// Of which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: MonitorError,
    },
    /// It broke off.
    #[error("the snapshot of instance {id} has ended as '{state}': {message}")]
    Broken {
        /// Of which instance.
        id: InstanceId,
        /// qemu's word for it.
        state: String,
        /// qemu's reason.
        message: String,
    },
    /// It took too long, and was broken off.
    #[error("the snapshot of instance {id} has not ended within {after:?}")]
    TimedOut {
        /// Of which instance.
        id: InstanceId,
        /// How long it was waited for.
        after: Duration,
    },
    /// It is there, and is not used: qemu cannot be brought back to where it was, so that a save of another kind would not do
    /// what it says.
    #[error("the snapshot of instance {id} has ended, and what it needed cannot be switched off")]
    Leave {
        /// Of which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: MonitorError,
    },
    /// It is there, and cannot be read.
    #[error("cannot read the snapshot back from memory")]
    Image(#[source] io::Error),
    /// The instance does not run any more, and cannot be made to.
    #[error(
        "instance {id} stands still as '{state}' after a snapshot: resume it by 'virsh resume', or destroy it"
    )]
    StandsStill {
        /// Which instance.
        id: InstanceId,
        /// qemu's word.
        state: String,
    },
}

impl SnapshotError {
    /// Whether a save may do what the snapshot did not: the instance itself, its host or its qemu does not suit. Not where time,
    /// memory or libvirtd was short, or the instance stands still: a save that holds it up needs all of these too.
    #[must_use]
    pub fn is_for_a_save(&self) -> bool {
        match self {
            Self::WritableDisk { .. }
            | Self::SharedMemory { .. }
            | Self::Describe(_)
            | Self::Broken { .. } => true,
            Self::Begin { source, .. } => match source {
                MonitorError::Refused { .. }
                | MonitorError::NotTaken { .. }
                | MonitorError::Answer { .. } => true,
                MonitorError::Ask { .. } | MonitorError::NoEnd { .. } => false,
            },
            Self::NoInstance(_)
            | Self::NotRunning(_)
            | Self::Busy { .. }
            | Self::Look { .. }
            | Self::Memory { .. }
            | Self::Reset { .. }
            | Self::Lost { .. }
            | Self::TimedOut { .. }
            | Self::Leave { .. }
            | Self::Image(_)
            | Self::StandsStill { .. } => false,
        }
    }
}

/// Why it is not known by what means memory can be saved here. It may be known later.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The instances are not known.
    #[error("cannot look for what earlier snapshots left")]
    List(#[source] ListError),
    /// libvirt could not be asked.
    #[error("cannot try a snapshot")]
    Ask(#[source] CallError),
    /// The host was too busy, or had no memory for it.
    #[error("the trial of a snapshot came to no end: {0}")]
    Later(String),
    /// What an earlier trial left is still there.
    #[error("cannot remove the guest of an earlier trial")]
    Remove(#[source] Box<crate::error::DestroyError>),
    /// The trial's guest has nothing to boot from.
    #[error("cannot write {}, from which the guest of the trial boots", path.display())]
    Disk {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
