//! Owns what a hypervisor tells of its own accord, and the hub that hands it to everyone who listens.
//!
//! Promises: an event is a hint that something changed, never the only word on it; each listener gets every
//! event from its subscription on, in order. Must not do: judge. In particular `Stopped` is no verdict on how
//! an instance ended: a qemu killed by SIGTERM looks like an orderly shutdown.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use understudy_core::model::ids::InstanceId;
use understudy_core::model::units::Boottime;

use crate::process::Pid;
use crate::types::PauseCause;

/// Something happened, at a time on this host's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HypervisorEvent {
    /// When this process learned of it.
    pub at: Boottime,
    /// What happened.
    pub kind: EventKind,
}

/// What happened. Instances that are not managed are reported too; whoever listens knows which ones are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// libvirt reported a change of state.
    Lifecycle {
        /// Of which instance.
        id: InstanceId,
        /// Which change.
        change: Lifecycle,
    },
    /// The guest's agent opened or closed its channel.
    Agent {
        /// Of which instance.
        id: InstanceId,
        /// Whether it is open.
        connected: bool,
    },
    /// The guest did not feed its watchdog.
    Watchdog {
        /// Of which instance.
        id: InstanceId,
        /// What qemu did about it.
        action: WatchdogAction,
    },
    /// The guest's kernel panicked.
    Panicked {
        /// Of which instance.
        id: InstanceId,
    },
    /// A disk of the instance did not do as asked.
    IoError {
        /// Of which instance.
        id: InstanceId,
        /// libvirt's name of the device.
        device: String,
        /// Whether the instance was paused for it.
        paused: bool,
    },
    /// The process that ran an instance is gone, all its threads included. Seen by this process itself, so it
    /// comes within milliseconds also while libvirtd is down.
    Died {
        /// Of which instance.
        id: InstanceId,
        /// The process.
        pid: Pid,
    },
    /// Instances are emulated, because KVM does not work on this host and the choice was left open. It is told again to
    /// all whenever another begins to listen.
    Emulates {
        /// Why KVM does not work.
        reason: String,
    },
    /// libvirt does not answer. Says nothing about the instances.
    ConnectionLost,
    /// libvirt answers (again); events in between were missed.
    ConnectionRegained,
}

/// A change of state that libvirt reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    /// It came to be on this host.
    Started(StartCause),
    /// It stands still.
    Suspended(PauseCause),
    /// It runs (again).
    Resumed,
    /// The guest shut itself down, or somebody ended qemu with a polite signal.
    ShutDown,
    /// libvirt has it no more, or as off.
    Stopped(StopCause),
    /// It was defined, undefined or put to sleep: nothing that this product does.
    Other,
}

/// How an instance came to be on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartCause {
    /// It was booted.
    Booted,
    /// It came in by migration.
    Migrated,
    /// It was restored from an image.
    Restored,
    /// Another cause.
    Other,
}

/// How libvirt explains that it has an instance no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// The guest shut down, or qemu got a polite signal.
    ShutDown,
    /// libvirt was told to destroy it.
    Destroyed,
    /// The guest crashed.
    Crashed,
    /// It left by migration.
    Migrated,
    /// It was saved.
    Saved,
    /// qemu ended unasked.
    Failed,
    /// Another cause.
    Other,
}

/// What qemu did when a watchdog fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchdogAction {
    /// Nothing: the agent decides. The only action that a template may ask for.
    None,
    /// The instance was paused.
    Paused,
    /// The guest was reset, shut down or powered off; its state is lost.
    Ended,
}

/// Hands events to everyone who listens.
#[derive(Debug, Default)]
pub(crate) struct Hub(Mutex<Vec<Sender<HypervisorEvent>>>);

impl Hub {
    pub(crate) fn subscribe(&self) -> Receiver<HypervisorEvent> {
        let (sender, receiver) = channel();
        self.listeners().push(sender);
        receiver
    }

    pub(crate) fn send(&self, event: &HypervisorEvent) {
        self.listeners().retain(|listener| listener.send(event.clone()).is_ok());
    }

    pub(crate) fn tell(&self, kind: EventKind) {
        self.send(&HypervisorEvent { at: crate::process::boottime(), kind });
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<Sender<HypervisorEvent>>> {
        // A list of senders is whole after every step, so a poisoned lock holds nothing broken.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
