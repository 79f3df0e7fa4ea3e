//! Owns the errors: one enum per operation, variants named for what was attempted.
//!
//! Promises: an operation whose outcome could not be learned says so ([`CallError::TimedOut`]) and is never
//! reported as failed. Must not do: repeat a source's words.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use understudy_core::model::ids::InstanceId;

use crate::process::Pid;
use crate::refusal::{Refusal, RefusalKind};
use crate::snapshot::MonitorError;
use crate::xml::XmlError;

/// Why libvirt did not do as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// There is no connection.
    #[error(
        "no connection to libvirt at {uri}: check that libvirtd runs and that the agent may use its socket"
    )]
    Down {
        /// Where it was looked for.
        uri: String,
        /// The last attempt's end, when there was one.
        #[source]
        last: Option<Refusal>,
    },
    /// No answer in time. The call may still take effect.
    #[error("no answer from libvirt to '{call}' within {after:?}; it may still take effect")]
    TimedOut {
        /// What was asked.
        call: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// So many calls hang that no further one is begun.
    #[error("{hanging} calls to libvirt hang: restart libvirtd, which leaves instances untouched")]
    Saturated {
        /// How many.
        hanging: usize,
    },
    /// libvirt said no.
    #[error("libvirt refused '{call}'")]
    Refused {
        /// What was asked.
        call: &'static str,
        /// Its answer.
        #[source]
        refusal: Refusal,
    },
}

impl CallError {
    /// The kind of refusal, when it was one.
    #[must_use]
    pub fn refused(&self) -> Option<RefusalKind> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal.kind),
            Self::Down { .. } | Self::TimedOut { .. } | Self::Saturated { .. } => None,
        }
    }
}

/// Why the hypervisor could not be taken into use.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is not one that libvirt can open, now or later.
    #[error("'{uri}' is not a libvirt address that works here: use qemu:///system")]
    Uri {
        /// The address.
        uri: String,
        /// libvirt's answer.
        #[source]
        refusal: Refusal,
    },
    /// libvirt's event loop could not be set up.
    #[error("cannot set up libvirt's event loop")]
    EventLoop(#[source] Refusal),
    /// The watch on qemu processes could not be set up.
    #[error("cannot set up the watch on qemu processes")]
    Watch(#[source] io::Error),
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Why the instances are not known.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// libvirt could not be asked.
    #[error("cannot list instances")]
    List(#[source] CallError),
    /// A description could not be read.
    #[error("cannot read the description of domain {name}")]
    Describe {
        /// Of which domain.
        name: String,
        /// What is wrong with it.
        #[source]
        source: XmlError,
    },
    /// The host's processes could not be read.
    #[error("cannot read the host's processes")]
    Processes(#[source] io::Error),
}

/// Why the host's room is not known.
#[derive(Debug, thiserror::Error)]
pub enum CapacityError {
    /// libvirt could not be asked.
    #[error("cannot read the host's capacity")]
    Read(#[source] CallError),
}

/// Why an instance was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Its UUID or name belongs to a domain that is not managed.
    #[error(
        "domain {name} on this host has the UUID or name of a new instance but is not managed: rename or remove it"
    )]
    Taken {
        /// That domain, or the instance's own name.
        name: String,
    },
    /// The permit hook refused.
    #[error("this host has no fresh permit for instance {id}")]
    NotPermitted {
        /// Which instance.
        id: InstanceId,
        /// The hook's words.
        #[source]
        source: CallError,
    },
    /// The description could not be made.
    #[error("cannot describe instance {id}")]
    Describe {
        /// Which instance.
        id: InstanceId,
        /// What went wrong.
        #[source]
        source: XmlError,
    },
    /// libvirt did not create it.
    #[error("cannot create instance {id}")]
    Create {
        /// Which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: CallError,
    },
    /// It was created, and is not to be seen.
    #[error("cannot look at the new instance {id}")]
    Look {
        /// Which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: Box<ListError>,
    },
}

/// Why an instance is not known to be gone.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// libvirt did not destroy it, and no process of it was found that could be ended without libvirt.
    #[error("cannot destroy instance {id}")]
    Destroy {
        /// Which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: CallError,
    },
    /// A process still carries its UUID.
    #[error(
        "process {pid} still carries the UUID of instance {id} after SIGKILL: look for a hung disk or network mount"
    )]
    StillThere {
        /// Which instance.
        id: InstanceId,
        /// The process.
        pid: Pid,
    },
    /// The host's processes could not be read or signalled.
    #[error("cannot make sure that no process runs instance {id}")]
    Processes {
        /// Which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why an instance has not got its role disk.
#[derive(Debug, thiserror::Error)]
pub enum RoleDiskError {
    /// The file cannot be read.
    #[error("cannot read role disk {}: build it with config/guest/build or copy it from another host", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no whole erofs image.
    #[error("role disk {} is damaged ({why}): copy it anew", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// There is no such instance.
    #[error("no instance {0} on this host")]
    NoInstance(InstanceId),
    /// It has another role disk already.
    #[error("instance {id} has role disk {} already: an instance takes one environment in its life", attached.display())]
    Other {
        /// Which instance.
        id: InstanceId,
        /// What it has.
        attached: PathBuf,
    },
    /// Its description could not be read or made.
    #[error("cannot describe the disk")]
    Describe(#[source] XmlError),
    /// libvirt did not attach it.
    #[error("cannot attach the role disk to instance {id}")]
    Attach {
        /// Which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: CallError,
    },
}

/// Why a guest did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// There is no such instance.
    #[error("no instance {0} on this host")]
    NoInstance(InstanceId),
    /// The guest's agent is not there or does not answer.
    #[error("the guest agent of instance {id} does not answer")]
    Silent {
        /// Which instance.
        id: InstanceId,
        /// libvirt's words.
        #[source]
        source: CallError,
    },
    /// The command did not end in time. It may still run.
    #[error("'{program}' in instance {id} did not end within {after:?}; it may still run")]
    TimedOut {
        /// Which instance.
        id: InstanceId,
        /// Which program.
        program: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The guest's agent answered with something that is not an answer.
    #[error("the guest agent of instance {id} gave no usable answer to {command}: {what}")]
    Answer {
        /// Which instance.
        id: InstanceId,
        /// To what.
        command: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The guest's clock is still wrong.
    #[error("the clock of instance {id} is {off:?} off after it was set")]
    Clock {
        /// Which instance.
        id: InstanceId,
        /// By how much.
        off: Duration,
    },
    /// libvirt could not be asked, or the guest's agent refused.
    #[error("cannot ask the guest agent of instance {id}")]
    Ask {
        /// Which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: CallError,
    },
}

/// Why an instance's memory was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
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
    /// It does not run, so that a save would not be of a moment of its life.
    #[error("instance {0} does not run")]
    NotRunning(InstanceId),
    /// Its description could not be read or made.
    #[error("cannot describe the save")]
    Describe(#[source] XmlError),
    /// Another save, snapshot or migration of it goes on.
    #[error("instance {id} is being saved or moved, for {after:?} already")]
    Busy {
        /// Which instance.
        id: InstanceId,
        /// How long it was waited for.
        after: Duration,
    },
    /// What an earlier snapshot left could not be set right; with it, this would not do what it says.
    #[error("what an earlier snapshot of instance {id} left cannot be set right")]
    Reset {
        /// Of which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: MonitorError,
    },
    /// The save failed or did not end in time; it was cancelled. The instance goes on.
    #[error("cannot save instance {id}")]
    Save {
        /// Which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: CallError,
    },
    /// The image is not to be found.
    #[error("cannot read the saved image {}", path.display())]
    Image {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why an instance was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The image cannot be read.
    #[error("cannot read image {}", path.display())]
    Image {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// libvirt cannot read the image.
    #[error("{} is no whole image", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// libvirt's words.
        #[source]
        source: CallError,
    },
    /// The image is of another instance.
    #[error("image {} is of instance {found}, not of {wanted}", path.display())]
    OtherInstance {
        /// Where.
        path: PathBuf,
        /// The one asked for.
        wanted: InstanceId,
        /// The one found.
        found: InstanceId,
    },
    /// The instance is on this host already.
    #[error("instance {0} is on this host already: destroy it first")]
    AlreadyHere(InstanceId),
    /// The permit hook refused.
    #[error("this host has no fresh permit for instance {id}")]
    NotPermitted {
        /// Which instance.
        id: InstanceId,
        /// The hook's words.
        #[source]
        source: CallError,
    },
    /// The description in the image could not be fitted to this host.
    #[error("cannot fit the image's description to this host")]
    Describe(#[source] XmlError),
    /// libvirt did not restore it.
    #[error("cannot restore instance {id}")]
    Restore {
        /// Which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: CallError,
    },
    /// It was restored, and is not to be seen.
    #[error("cannot look at the restored instance {id}")]
    Look {
        /// Which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: Box<ListError>,
    },
}

/// Why an instance was not suspended, resumed, linked, noted upon, or its job cancelled.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such instance.
    #[error("no instance {0} on this host")]
    NoInstance(InstanceId),
    /// Its description could not be read or made.
    #[error("cannot describe the change")]
    Describe(#[source] XmlError),
    /// libvirt did not do it.
    #[error("cannot change instance {id}")]
    Change {
        /// Which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: CallError,
    },
}

/// Why a migration was not even begun.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// There is no such instance.
    #[error("no instance {0} on this host")]
    NoInstance(InstanceId),
    /// Another save, snapshot or migration of it goes on.
    #[error("instance {id} is being saved or moved, for {after:?} already")]
    Busy {
        /// Which instance.
        id: InstanceId,
        /// How long it was waited for.
        after: Duration,
    },
    /// What an earlier snapshot left could not be set right; with it, this would not do what it says.
    #[error("what an earlier snapshot of instance {id} left cannot be set right")]
    Reset {
        /// Of which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: MonitorError,
    },
    /// libvirt could not be asked.
    #[error("cannot begin to migrate instance {id}")]
    Begin {
        /// Which instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: CallError,
    },
}
