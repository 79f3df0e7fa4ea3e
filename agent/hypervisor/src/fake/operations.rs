//! Owns the operations of the double.
//!
//! Promises: each refuses what libvirt refuses, with the same error. Must not do: anything that libvirt would not.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use understudy_core::model::ids::InstanceId;
use understudy_core::model::units::{Boottime, MiB};

use super::guest::{Guest, Memory};
use super::host::{Host, Image, Instance};
use super::{FakeHypervisor, Fault, Operation, World, image_file};
use crate::api::Hypervisor;
use crate::error::{
    CallError, CapacityError, ControlError, CreateError, DestroyError, GuestError, ListError, MigrateError,
    RestoreError, RoleDiskError, SaveError,
};
use crate::event::{HypervisorEvent, Lifecycle, StartCause, StopCause};
use crate::refusal::{Refusal, RefusalKind};
use crate::snapshot::{ProbeError, Snapshot, SnapshotError, Tier};
use crate::types::{
    Capacity, GuestCommand, GuestOutput, InstanceFact, InstanceSpec, InstanceState, InstanceStats, Liveness,
    MigrationOutcome, MigrationTarget, Note, PauseCause, RestoreSpec, SavedMemory,
};

/// What a simulated guest's memory counts for in an image, per MiB of its size: a third is in use.
pub(super) const IMAGE_BYTES_PER_MIB: u64 = (1 << 20) / 3;

impl<G: Memory> FakeHypervisor<G> {
    /// Does an operation under the faults that were put there: without an answer from libvirt, after a refusal, or
    /// with the answer lost.
    pub(super) fn attempt<T>(
        &self,
        operation: Operation,
        call: &'static str,
        work: impl FnOnce(&mut World<G>, &str) -> T,
    ) -> Result<T, CallError> {
        let mut world = self.site.world();
        let host = world.here(&self.uri);
        if !host.answers() {
            return Err(CallError::Down { uri: self.uri.clone(), last: None });
        }
        match host.fault(operation) {
            Some(Fault::Refused) => Err(refused(call, RefusalKind::Other, "refused by the simulation")),
            Some(Fault::LostRequest) => Err(late(call)),
            Some(Fault::LostAnswer) => {
                work(&mut world, &self.uri);
                Err(late(call))
            }
            None => Ok(work(&mut world, &self.uri)),
        }
    }

    /// Does an operation on one instance of this host.
    pub(super) fn on_instance<T>(
        &self,
        operation: Operation,
        call: &'static str,
        id: InstanceId,
        work: impl FnOnce(&mut Instance<G>) -> T,
    ) -> Result<Option<T>, CallError> {
        self.attempt(operation, call, |world, uri| world.here(uri).instances.get_mut(&id).map(work))
    }

    fn control(
        &self,
        id: InstanceId,
        call: &'static str,
        work: impl FnOnce(&mut Instance<G>) -> Result<Option<Lifecycle>, CallError>,
    ) -> Result<(), ControlError> {
        let done = self.attempt(Operation::Control, call, |world, uri| {
            let clock = world.clock;
            let host = world.here(uri);
            let change = host.instances.get_mut(&id).map(work);
            if let Some(Ok(Some(change))) = change {
                host.tell_change(clock, id, change);
            }
            change
        });
        match done {
            Ok(Some(Ok(_))) => Ok(()),
            Ok(None) => Err(ControlError::NoInstance(id)),
            Ok(Some(Err(source))) | Err(source) => Err(ControlError::Change { id, source }),
        }
    }

    fn guest<T>(
        &self,
        id: InstanceId,
        call: &'static str,
        work: impl FnOnce(&Guest<G>, &mut Instance<G>) -> T,
    ) -> Result<T, GuestError> {
        let answer = self.attempt(Operation::Guest, call, |world, uri| {
            let guest = Arc::clone(&world.guest);
            let instance = world.here(uri).instances.get_mut(&id)?;
            let answers = instance.runs() && instance.agent_answers;
            Some(answers.then(|| work(&*guest, instance)))
        });
        match answer {
            Ok(Some(Some(answer))) => Ok(answer),
            Ok(Some(None)) => Err(GuestError::Silent {
                id,
                source: refused(call, RefusalKind::AgentSilent, "the agent is silent"),
            }),
            Ok(None) => Err(GuestError::NoInstance(id)),
            Err(source @ CallError::TimedOut { .. }) => Err(GuestError::Silent { id, source }),
            Err(source) => Err(GuestError::Ask { id, source }),
        }
    }
}

/// A new process for an instance, on a host that permits it.
fn begin<G: Memory>(
    world: &mut World<G>,
    uri: &str,
    instance: Instance<G>,
    cause: StartCause,
) -> Option<InstanceFact> {
    let (clock, pid) = (world.clock, world.new_pid());
    world.here(uri).begin(clock, instance, (pid, cause))
}

fn refused(call: &'static str, kind: RefusalKind, message: &str) -> CallError {
    CallError::Refused { call, refusal: Refusal { kind, message: message.to_owned() } }
}

fn no_permit(call: &'static str) -> CallError {
    refused(call, RefusalKind::NotPermitted, "there is no permit")
}

fn late(call: &'static str) -> CallError {
    CallError::TimedOut { call, after: Duration::from_secs(30) }
}

pub(super) fn suspend_and_resume<G: Memory>(host: &Host<G>, clock: Boottime, id: InstanceId) {
    host.tell_change(clock, id, Lifecycle::Suspended(PauseCause::Asked));
    host.tell_change(clock, id, Lifecycle::Resumed);
}

impl<G: Memory> Hypervisor for FakeHypervisor<G> {
    fn instances(&self) -> Result<Vec<InstanceFact>, ListError> {
        let list = |world: &mut World<G>, uri: &str| {
            world.here(uri).instances.values().map(|i| i.fact.clone()).collect()
        };
        self.attempt(Operation::Query, "list", list).map_err(ListError::List)
    }

    fn liveness(&self, id: InstanceId) -> Result<Liveness, ListError> {
        let state = self.on_instance(Operation::Query, "look up", id, |instance| instance.fact.state);
        Ok(state.map_err(ListError::List)?.map_or(Liveness::Gone, Liveness::Known))
    }

    fn capacity(&self) -> Result<Capacity, CapacityError> {
        let room = |world: &mut World<G>, uri: &str| {
            let host = world.here(uri);
            let used: MiB = host.instances.values().map(|instance| instance.fact.memory).sum();
            Capacity { memory_free: host.capacity.memory_total.saturating_sub(used), ..host.capacity }
        };
        self.attempt(Operation::Query, "capacity", room).map_err(CapacityError::Read)
    }

    fn create(&self, spec: &InstanceSpec) -> Result<InstanceFact, CreateError> {
        let id = spec.id;
        let made = self.attempt(Operation::Create, "create", |world, uri| {
            let host = world.here(uri);
            if let Some(instance) = host.instances.get(&id) {
                return Ok(instance.fact.clone());
            }
            if host.instances.values().any(|instance| instance.fact.name == spec.name) {
                return Err(CreateError::Taken { name: spec.name.clone() });
            }
            let boots_for = host.boots_for;
            let boots_until = (!boots_for.is_zero()).then(|| world.clock + boots_for);
            begin(world, uri, Instance::booted(spec, boots_until), StartCause::Booted)
                .ok_or_else(|| CreateError::NotPermitted { id, source: no_permit("create") })
        });
        made.map_err(|source| CreateError::Create { id, source })?
    }

    fn destroy(&self, id: InstanceId) -> Result<(), DestroyError> {
        let asked = self.attempt(Operation::Destroy, "destroy", |_, _| ());
        self.with(|host, clock| {
            let resists = host.resists;
            let found = host.instances.get(&id);
            let found = found.and_then(|instance| Some((instance.fact.pid?, instance.hangs || resists)));
            match (asked, found) {
                (Ok(()), None) => Ok(()),
                (Err(source), None) => Err(DestroyError::Destroy { id, source }),
                (Ok(()) | Err(_), Some((pid, true))) => Err(DestroyError::StillThere { id, pid }),
                // Without libvirt its process is killed.
                (Ok(()) | Err(_), Some((_, false))) => {
                    host.end(clock, id, StopCause::Destroyed);
                    Ok(())
                }
            }
        })
    }

    fn attach_role_disk(&self, id: InstanceId, path: &Path) -> Result<(), RoleDiskError> {
        let attach = |world: &mut World<G>, uri: &str| {
            let host = world.here(uri);
            match host.role_disks.get(path) {
                None => {
                    let source = io::Error::from(io::ErrorKind::NotFound);
                    return Err(RoleDiskError::Missing { path: path.to_owned(), source });
                }
                Some(Err(why)) => {
                    return Err(RoleDiskError::Damaged { path: path.to_owned(), why: why.clone() });
                }
                Some(Ok(())) => {}
            }
            let instance = host.instances.get_mut(&id).ok_or(RoleDiskError::NoInstance(id))?;
            match &instance.fact.role_disk {
                Some(attached) if attached != path => {
                    Err(RoleDiskError::Other { id, attached: attached.clone() })
                }
                _ => {
                    instance.fact.role_disk = Some(path.to_owned());
                    Ok(())
                }
            }
        };
        let done = self.attempt(Operation::RoleDisk, "attach disk", attach);
        done.map_err(|source| RoleDiskError::Attach { id, source })?
    }

    fn guest_ping(&self, id: InstanceId, _deadline: Duration) -> Result<(), GuestError> {
        self.guest(id, "guest-ping", |_, _| ())
    }

    fn guest_exec(&self, id: InstanceId, command: &GuestCommand) -> Result<GuestOutput, GuestError> {
        let program = command.argv.first().cloned().unwrap_or_default();
        if program == "hang" {
            self.guest(id, "guest-exec", |_, _| ())?;
            return Err(GuestError::TimedOut { id, program, after: command.deadline });
        }
        self.guest(id, "guest-exec", |guest, instance| guest(id, &mut instance.memory, command))
    }

    fn guest_set_time(&self, id: InstanceId) -> Result<(), GuestError> {
        self.guest(id, "guest-set-time", |_, _| ())
    }

    fn save_memory(
        &self,
        id: InstanceId,
        path: &Path,
        _deadline: Duration,
    ) -> Result<SavedMemory, SaveError> {
        let save = |world: &mut World<G>, uri: &str| {
            let (clock, moves, files) = (world.clock, world.moves(uri, id), world.files);
            let host = world.here(uri);
            let instance = host.instances.get(&id).ok_or(SaveError::NoInstance(id))?.clone();
            if moves {
                let source = refused("save memory", RefusalKind::Busy, "it is being migrated");
                return Err(SaveError::Save { id, source });
            }
            if instance.fact.state != InstanceState::Running {
                return Err(SaveError::NotRunning(id));
            }
            if !instance.ram_only {
                return Err(SaveError::WritableDisk { id, disk: std::path::PathBuf::new() });
            }
            suspend_and_resume(host, clock, id);
            let bytes = instance.fact.memory.0 * IMAGE_BYTES_PER_MIB;
            if files {
                let written = image_file::write(path);
                written.map_err(|source| SaveError::Image { path: path.to_owned(), source })?;
            }
            world.images.insert(path.to_owned(), Image { instance, whole: true });
            Ok(SavedMemory { bytes, took: Duration::ZERO, pause: Duration::ZERO })
        };
        let done = self.attempt(Operation::Save, "save memory", save);
        done.map_err(|source| SaveError::Save { id, source })?
    }

    fn snapshot_memory(&self, id: InstanceId, deadline: Duration) -> Result<Snapshot, SnapshotError> {
        self.snapshot(id, deadline)
    }

    fn probe_snapshots(&self, _folder: &Path) -> Result<Tier, ProbeError> {
        self.probe()
    }

    fn restore(&self, spec: &RestoreSpec) -> Result<InstanceFact, RestoreError> {
        let id = spec.id;
        let path = || spec.image.clone();
        let restore = |world: &mut World<G>, uri: &str| {
            let known_as = if world.files { image_file::known_as(&spec.image) } else { Ok(path()) };
            let known_as = known_as.map_err(|source| RestoreError::Image { path: path(), source })?;
            let Some(image) = world.images.get(&known_as).cloned() else {
                let source = io::Error::from(io::ErrorKind::NotFound);
                return Err(RestoreError::Image { path: path(), source });
            };
            if world.here(uri).instances.contains_key(&id) {
                return Err(RestoreError::AlreadyHere(id));
            }
            if !image.whole {
                let source = refused("read image", RefusalKind::Other, "the image is cut off");
                return Err(RestoreError::Damaged { path: path(), source });
            }
            let mut instance = image.instance;
            let found = instance.fact.id;
            if found != id {
                return Err(RestoreError::OtherInstance { path: path(), wanted: id, found });
            }
            instance.pause(PauseCause::Migration);
            instance.fact.link_up = false;
            instance.fact.note = spec.note;
            if let (Some(disk), Some(here)) = (&mut instance.fact.role_disk, &spec.role_disk) {
                here.clone_into(disk);
            }
            begin(world, uri, instance, StartCause::Restored)
                .ok_or_else(|| RestoreError::NotPermitted { id, source: no_permit("restore") })
        };
        let done = self.attempt(Operation::Restore, "restore", restore);
        done.map_err(|source| RestoreError::Restore { id, source })?
    }

    fn set_link(&self, id: InstanceId, up: bool) -> Result<(), ControlError> {
        self.control(id, "set link", |instance| {
            instance.fact.link_up = up;
            Ok(None)
        })
    }

    fn resume(&self, id: InstanceId) -> Result<(), ControlError> {
        self.control(id, "resume", |instance| {
            if instance.arrives {
                return Err(refused("resume", RefusalKind::WrongState, "only a part of it has come"));
            }
            let was = std::mem::replace(&mut instance.fact.state, InstanceState::Running);
            Ok((was != InstanceState::Running).then_some(Lifecycle::Resumed))
        })
    }

    fn suspend(&self, id: InstanceId) -> Result<(), ControlError> {
        self.control(id, "suspend", |instance| match instance.fact.state {
            InstanceState::Paused(_) => Ok(None),
            _ => {
                instance.pause(PauseCause::Asked);
                Ok(Some(Lifecycle::Suspended(PauseCause::Asked)))
            }
        })
    }

    fn set_note(&self, id: InstanceId, note: &Note) -> Result<(), ControlError> {
        self.control(id, "set note", |instance| {
            instance.fact.note = *note;
            Ok(None)
        })
    }

    fn migrate(
        &self,
        id: InstanceId,
        target: &MigrationTarget,
        deadline: Duration,
    ) -> Result<MigrationOutcome, MigrateError> {
        self.migrate_at_once(id, &target.uri, deadline)
    }

    fn abort_job(&self, id: InstanceId) -> Result<(), ControlError> {
        self.control(id, "abort job", |_| Ok(None))?;
        self.site.world().cancel_migration(&self.uri, id);
        Ok(())
    }

    fn stats(&self) -> Result<Vec<InstanceStats>, ListError> {
        let stats = |instance: &Instance<G>| InstanceStats {
            id: instance.fact.id,
            name: instance.fact.name.clone(),
            state: instance.fact.state,
            cpu_time: None,
            memory_current_kib: Some(instance.fact.memory.0 << 10),
            memory_maximum_kib: Some(instance.fact.memory.0 << 10),
            memory_rss_kib: None,
            vcpus: Some(instance.fact.vcpus),
            interfaces: Vec::new(),
            blocks: Vec::new(),
        };
        let count = |world: &mut World<G>, uri: &str| world.here(uri).instances.values().map(stats).collect();
        self.attempt(Operation::Query, "stats", count).map_err(ListError::List)
    }

    fn subscribe(&self) -> Receiver<HypervisorEvent> {
        self.with(|host, _| host.hub.subscribe())
    }
}
