//! Owns the trait that the runtime and the simulator call.
//!
//! Promises: every operation blocks no longer than its deadline, may be repeated, and is safe to call from
//! several threads; operations on one instance are best done one after the other, because libvirt does so.
//! Must not do: anything asynchronous; the runtime calls it on threads of its own.

use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use understudy_core::model::ids::InstanceId;

use crate::error::{
    CapacityError, ControlError, CreateError, DestroyError, GuestError, ListError, MigrateError,
    RestoreError, RoleDiskError, SaveError,
};
use crate::event::HypervisorEvent;
use crate::snapshot::{ProbeError, Snapshot, SnapshotError, Tier};
use crate::types::{
    Capacity, GuestCommand, GuestOutput, InstanceFact, InstanceSpec, InstanceStats, Liveness,
    MigrationOutcome, MigrationTarget, Note, RestoreSpec, SavedMemory,
};

/// One host's hypervisor.
pub trait Hypervisor: Send + Sync {
    /// The managed instances on this host.
    ///
    /// # Errors
    /// When libvirt does not answer. An instance that is not in the list is *not* dead for that: [`Self::liveness`].
    fn instances(&self) -> Result<Vec<InstanceFact>, ListError>;

    /// What is known of one instance's liveness.
    ///
    /// # Errors
    /// When libvirt does not answer or the host's processes cannot be read: then nothing is known.
    fn liveness(&self, id: InstanceId) -> Result<Liveness, ListError>;

    /// The host's room.
    ///
    /// # Errors
    /// When libvirt does not answer.
    fn capacity(&self) -> Result<Capacity, CapacityError>;

    /// Boots an instance. One that is there already is returned as it is.
    ///
    /// # Errors
    /// See [`CreateError`].
    fn create(&self, spec: &InstanceSpec) -> Result<InstanceFact, CreateError>;

    /// Ends an instance; returns when no process carries its UUID any more. One that is not there is fine, if libvirt
    /// says so. While libvirt does not answer, the process that runs the instance is killed; without one, nothing is
    /// known.
    ///
    /// # Errors
    /// See [`DestroyError`]. The instance may run on then: it is not dead for having been told to end.
    fn destroy(&self, id: InstanceId) -> Result<(), DestroyError>;

    /// Gives an instance the disk that holds its environment, read-only. One that has it already is fine.
    ///
    /// # Errors
    /// See [`RoleDiskError`].
    fn attach_role_disk(&self, id: InstanceId, path: &Path) -> Result<(), RoleDiskError>;

    /// Asks the guest's agent for a sign of life.
    ///
    /// # Errors
    /// See [`GuestError`].
    fn guest_ping(&self, id: InstanceId, deadline: Duration) -> Result<(), GuestError>;

    /// Runs a command in the guest and waits for its end. An exit code other than 0 is no error here.
    ///
    /// # Errors
    /// See [`GuestError`].
    fn guest_exec(&self, id: InstanceId, command: &GuestCommand) -> Result<GuestOutput, GuestError>;

    /// Sets the guest's clock to this host's.
    ///
    /// # Errors
    /// See [`GuestError`].
    fn guest_set_time(&self, id: InstanceId) -> Result<(), GuestError>;

    /// Writes the memory and devices of a running instance to a new file; the guest stands still meanwhile and
    /// goes on afterwards, also when the save fails. The file is not yet durable.
    ///
    /// # Errors
    /// See [`SaveError`].
    fn save_memory(&self, id: InstanceId, path: &Path, deadline: Duration) -> Result<SavedMemory, SaveError>;

    /// Takes the memory and devices of a running instance as of one moment, into memory of this process. The guest stands
    /// still for some milliseconds and runs on while its memory is written, whoever hangs or dies meanwhile; it goes on also
    /// when the snapshot fails. Only where [`Self::probe_snapshots`] says so.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    fn snapshot_memory(&self, id: InstanceId, deadline: Duration) -> Result<Snapshot, SnapshotError>;

    /// Finds out by what means the memory of this host's instances is saved, and sets right what the snapshots of an earlier
    /// agent may have left. To be asked once, before the first snapshot; takes seconds. A small file is left in `folder`,
    /// which qemu must be able to search.
    ///
    /// # Errors
    /// When it could not be tried; see [`ProbeError`].
    fn probe_snapshots(&self, folder: &Path) -> Result<Tier, ProbeError>;

    /// Brings an instance back from an image: paused, with its links down.
    ///
    /// # Errors
    /// See [`RestoreError`].
    fn restore(&self, spec: &RestoreSpec) -> Result<InstanceFact, RestoreError>;

    /// Takes the links of an instance's network cards up or down. Cards that come up are announced, so that the
    /// network finds them here.
    ///
    /// # Errors
    /// See [`ControlError`].
    fn set_link(&self, id: InstanceId, up: bool) -> Result<(), ControlError>;

    /// Lets an instance run.
    ///
    /// # Errors
    /// See [`ControlError`].
    fn resume(&self, id: InstanceId) -> Result<(), ControlError>;

    /// Makes an instance stand still.
    ///
    /// # Errors
    /// See [`ControlError`].
    fn suspend(&self, id: InstanceId) -> Result<(), ControlError>;

    /// Writes the epoch and address onto an instance; it travels with a migration and a save.
    ///
    /// # Errors
    /// See [`ControlError`].
    fn set_note(&self, id: InstanceId, note: &Note) -> Result<(), ControlError>;

    /// Moves a running instance to another host, where it arrives paused. After a time-out the move is
    /// cancelled and both sides are looked at.
    ///
    /// # Errors
    /// Only when nothing was begun: see [`MigrateError`].
    fn migrate(
        &self,
        id: InstanceId,
        target: &MigrationTarget,
        deadline: Duration,
    ) -> Result<MigrationOutcome, MigrateError>;

    /// Cancels the save or migration of an instance. None under way is fine.
    ///
    /// # Errors
    /// See [`ControlError`].
    fn abort_job(&self, id: InstanceId) -> Result<(), ControlError>;

    /// Counters of all domains on this host, without waiting for any that is busy.
    ///
    /// # Errors
    /// When libvirt does not answer.
    fn stats(&self) -> Result<Vec<InstanceStats>, ListError>;

    /// Listens to everything that happens from here on.
    fn subscribe(&self) -> Receiver<HypervisorEvent>;
}
