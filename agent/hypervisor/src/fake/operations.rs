//! Owns the operations of the double.
//!
//! Promises: each refuses what libvirt refuses, with the same error. Must not do: anything that libvirt would not.

use std::io;
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use understudy_core::ids::InstanceId;
use understudy_core::units::{Boottime, MiB};

use super::{FakeHypervisor, Fault, Host, Image, Instance, Operation, World, late, new_pid, paused, refused};
use crate::api::Hypervisor;
use crate::error::{
    CallError, CapacityError, ControlError, CreateError, DestroyError, GuestError, ListError, MigrateError,
    RestoreError, RoleDiskError, SaveError,
};
use crate::event::{EventKind, HypervisorEvent, Lifecycle, StartCause, StopCause};
use crate::refusal::RefusalKind;
use crate::types::{
    Capacity, GuestCommand, GuestOutput, InstanceFact, InstanceSpec, InstanceState, InstanceStats, LifeSign,
    MacAddress, MigrationOutcome, MigrationTarget, Note, PauseCause, RestoreSpec, SavedMemory,
};

/// What a simulated guest's memory counts for in an image, per MiB of its size: a third is in use.
const IMAGE_BYTES_PER_MIB: u64 = (1 << 20) / 3;

/// How much of an image there is as a file: more than a connection takes in before anybody reads.
const FILE_BYTES: u64 = 8 << 20;

impl FakeHypervisor {
    /// Does an operation under the faults that were put there: without an answer from libvirt, after a refusal, or
    /// with the answer lost.
    fn attempt<T>(
        &self,
        operation: Operation,
        call: &'static str,
        work: impl FnOnce(&mut World, &str) -> T,
    ) -> Result<T, CallError> {
        let mut world = self.site.world();
        let host = world.hosts.get_mut(&self.uri).expect("a FakeHypervisor is made together with its host");
        if !host.reachable() {
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
    fn on_instance<T>(
        &self,
        operation: Operation,
        call: &'static str,
        id: InstanceId,
        work: impl FnOnce(&mut Instance) -> T,
    ) -> Result<Option<T>, CallError> {
        self.attempt(operation, call, |world, uri| here(world, uri).instances.get_mut(&id).map(work))
    }

    fn control(
        &self,
        id: InstanceId,
        call: &'static str,
        work: impl FnOnce(&mut Instance) -> Option<Lifecycle>,
    ) -> Result<(), ControlError> {
        let done = self.attempt(Operation::Control, call, |world, uri| {
            let clock = world.clock;
            let host = here(world, uri);
            let change = host.instances.get_mut(&id).map(work);
            if let Some(Some(change)) = change {
                host.tell_change(clock, id, change);
            }
            change.is_some()
        });
        match done {
            Ok(true) => Ok(()),
            Ok(false) => Err(ControlError::NoInstance(id)),
            Err(source) => Err(ControlError::Change { id, source }),
        }
    }

    fn guest<T>(
        &self,
        id: InstanceId,
        call: &'static str,
        work: impl FnOnce(&mut World, &mut Instance) -> T,
    ) -> Result<T, GuestError> {
        let answer = self.attempt(Operation::Guest, call, |world, uri| {
            let mut instance = here(world, uri).instances.get(&id)?.clone();
            let answers = instance.fact.state == InstanceState::Running && instance.agent_answers;
            let answer = answers.then(|| work(world, &mut instance));
            here(world, uri).instances.insert(id, instance);
            Some(answer)
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

fn here<'a>(world: &'a mut World, uri: &str) -> &'a mut Host {
    world.hosts.get_mut(uri).expect("a FakeHypervisor is made together with its host")
}

/// A new process for an instance, on a host that permits it.
fn begin(
    world: &mut World,
    uri: &str,
    mut instance: Instance,
    cause: StartCause,
) -> Result<InstanceFact, ()> {
    let clock = world.clock;
    let pid = new_pid(&mut world.next_pid);
    let host = here(world, uri);
    let (id, own) = (instance.fact.id, instance.fact.note.epoch);
    if !host.permits_start(id, own) {
        return Err(());
    }
    instance.fact.pid = pid;
    host.tell_change(clock, id, Lifecycle::Started(cause));
    if let InstanceState::Paused(cause) = instance.fact.state {
        host.tell_change(clock, id, Lifecycle::Suspended(cause));
    }
    if instance.fact.state == InstanceState::Running {
        host.tell(clock, EventKind::Agent { id, connected: true });
    }
    let fact = instance.fact.clone();
    host.instances.insert(id, instance);
    Ok(fact)
}

fn no_permit(call: &'static str) -> CallError {
    refused(call, RefusalKind::NotPermitted, "there is no permit")
}

fn booted(spec: &InstanceSpec) -> Instance {
    let fact = InstanceFact {
        id: spec.id,
        name: spec.name.clone(),
        state: InstanceState::Running,
        pid: None,
        note: spec.note,
        memory: spec.memory,
        vcpus: spec.vcpus,
        mac: Some(spec.mac.unwrap_or_else(|| MacAddress::derived(spec.id))),
        link_up: true,
        agent_connected: true,
        role_disk: None,
    };
    Instance {
        fact,
        ram_only: spec.template.ram_only(),
        agent_answers: true,
        hangs: false,
        memory: super::GuestMemory::new(),
    }
}

fn suspend_and_resume(host: &Host, clock: Boottime, id: InstanceId) {
    host.tell_change(clock, id, Lifecycle::Suspended(PauseCause::Asked));
    host.tell_change(clock, id, Lifecycle::Resumed);
}

/// Moves an instance between two hosts of one world.
fn carry(world: &mut World, from: &str, to: &str, id: InstanceId) -> MigrationOutcome {
    let clock = world.clock;
    if !world.hosts.get(to).is_some_and(Host::reachable) {
        return MigrationOutcome::Unknown { why: format!("{to} does not answer"), still_here: true };
    }
    let Some(instance) = here(world, from).instances.get(&id).cloned() else {
        return MigrationOutcome::Unknown { why: "it ended in between".to_owned(), still_here: false };
    };
    if here(world, to).instances.contains_key(&id) {
        return MigrationOutcome::Unknown { why: "both sides have it".to_owned(), still_here: true };
    }
    let mut arriving = instance.clone();
    paused(&mut arriving, PauseCause::Migration);
    if begin(world, to, arriving, StartCause::Migrated).is_err() {
        return MigrationOutcome::StayedHere { why: "the destination has no permit".to_owned() };
    }
    let source = here(world, from);
    source.instances.remove(&id);
    source.tell_death(clock, &instance, StopCause::Migrated);
    MigrationOutcome::Moved { took: Duration::ZERO }
}

impl Hypervisor for FakeHypervisor {
    fn instances(&self) -> Result<Vec<InstanceFact>, ListError> {
        let list = |world: &mut World, uri: &str| {
            here(world, uri).instances.values().map(|i| i.fact.clone()).collect()
        };
        self.attempt(Operation::Query, "list", list).map_err(ListError::List)
    }

    fn life(&self, id: InstanceId) -> Result<LifeSign, ListError> {
        let state = self.on_instance(Operation::Query, "look up", id, |instance| instance.fact.state);
        Ok(state.map_err(ListError::List)?.map_or(LifeSign::Gone, LifeSign::Known))
    }

    fn capacity(&self) -> Result<Capacity, CapacityError> {
        let room = |world: &mut World, uri: &str| {
            let host = here(world, uri);
            let used: MiB = host.instances.values().map(|instance| instance.fact.memory).sum();
            Capacity { memory_free: host.capacity.memory_total.saturating_sub(used), ..host.capacity }
        };
        self.attempt(Operation::Query, "capacity", room).map_err(CapacityError::Read)
    }

    fn create(&self, spec: &InstanceSpec) -> Result<InstanceFact, CreateError> {
        let id = spec.id;
        let made = self.attempt(Operation::Create, "create", |world, uri| {
            let host = here(world, uri);
            if let Some(instance) = host.instances.get(&id) {
                return Ok(instance.fact.clone());
            }
            if host.instances.values().any(|instance| instance.fact.name == spec.name) {
                return Err(CreateError::Taken { name: spec.name.clone() });
            }
            begin(world, uri, booted(spec), StartCause::Booted)
                .map_err(|()| CreateError::NotPermitted { id, source: no_permit("create") })
        });
        made.map_err(|source| CreateError::Create { id, source })?
    }

    fn destroy(&self, id: InstanceId) -> Result<(), DestroyError> {
        let asked = self.attempt(Operation::Destroy, "destroy", |_, _| ());
        self.with(|host, clock| {
            let found =
                host.instances.get(&id).and_then(|instance| Some((instance.fact.pid?, instance.hangs)));
            match (asked, found) {
                (Ok(()), None) => Ok(()),
                (Err(source), None) => Err(DestroyError::Destroy { id, source }),
                (Ok(()) | Err(_), Some((pid, true))) => Err(DestroyError::StillThere { id, pid }),
                // Without libvirt its process is killed.
                (Ok(()) | Err(_), Some((_, false))) => {
                    if let Some(instance) = host.instances.remove(&id) {
                        host.tell_death(clock, &instance, StopCause::Destroyed);
                    }
                    Ok(())
                }
            }
        })
    }

    fn attach_role_disk(&self, id: InstanceId, path: &Path) -> Result<(), RoleDiskError> {
        let attach = |world: &mut World, uri: &str| {
            let host = here(world, uri);
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
        self.guest(id, "guest-exec", |world, instance| {
            let guest = std::sync::Arc::clone(&world.guest);
            guest(id, &mut instance.memory, command)
        })
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
        let save = |world: &mut World, uri: &str| {
            let clock = world.clock;
            let host = here(world, uri);
            let instance = host.instances.get(&id).ok_or(SaveError::NoInstance(id))?.clone();
            if instance.fact.state != InstanceState::Running {
                return Err(SaveError::NotRunning(id));
            }
            if !instance.ram_only {
                return Err(SaveError::WritableDisk { id, disk: std::path::PathBuf::new() });
            }
            suspend_and_resume(host, clock, id);
            let bytes = instance.fact.memory.0 * IMAGE_BYTES_PER_MIB;
            // For those who send the file on; most tests name folders that nobody made.
            let file = usize::try_from(bytes.min(FILE_BYTES)).unwrap_or_default();
            let _ = std::fs::write(path, vec![7; file]);
            world.images.insert(path.to_owned(), Image { instance, whole: true });
            Ok(SavedMemory { bytes, took: Duration::ZERO, pause: Duration::ZERO })
        };
        let done = self.attempt(Operation::Save, "save memory", save);
        done.map_err(|source| SaveError::Save { id, source })?
    }

    fn restore(&self, spec: &RestoreSpec) -> Result<InstanceFact, RestoreError> {
        let id = spec.id;
        let path = || spec.image.clone();
        let restore = |world: &mut World, uri: &str| {
            let Some(image) = world.images.get(&spec.image).cloned() else {
                let source = io::Error::from(io::ErrorKind::NotFound);
                return Err(RestoreError::Image { path: path(), source });
            };
            if here(world, uri).instances.contains_key(&id) {
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
            paused(&mut instance, PauseCause::Migration);
            instance.fact.link_up = false;
            instance.fact.note = spec.note;
            if let (Some(disk), Some(here)) = (&mut instance.fact.role_disk, &spec.role_disk) {
                here.clone_into(disk);
            }
            begin(world, uri, instance, StartCause::Restored)
                .map_err(|()| RestoreError::NotPermitted { id, source: no_permit("restore") })
        };
        let done = self.attempt(Operation::Restore, "restore", restore);
        done.map_err(|source| RestoreError::Restore { id, source })?
    }

    fn set_link(&self, id: InstanceId, up: bool) -> Result<(), ControlError> {
        self.control(id, "set link", |instance| {
            instance.fact.link_up = up;
            None
        })
    }

    fn resume(&self, id: InstanceId) -> Result<(), ControlError> {
        self.control(id, "resume", |instance| {
            let was = std::mem::replace(&mut instance.fact.state, InstanceState::Running);
            (was != InstanceState::Running).then_some(Lifecycle::Resumed)
        })
    }

    fn suspend(&self, id: InstanceId) -> Result<(), ControlError> {
        self.control(id, "suspend", |instance| match instance.fact.state {
            InstanceState::Paused(_) => None,
            _ => {
                paused(instance, PauseCause::Asked);
                Some(Lifecycle::Suspended(PauseCause::Asked))
            }
        })
    }

    fn set_note(&self, id: InstanceId, note: &Note) -> Result<(), ControlError> {
        self.control(id, "set note", |instance| {
            instance.fact.note = *note;
            None
        })
    }

    fn migrate(
        &self,
        id: InstanceId,
        target: &MigrationTarget,
        _deadline: Duration,
    ) -> Result<MigrationOutcome, MigrateError> {
        if self.on_instance(Operation::Query, "look up", id, |_| ()).is_ok_and(|found| found.is_none()) {
            return Err(MigrateError::NoInstance(id));
        }
        match self.attempt(Operation::Migrate, "migrate", |world, uri| carry(world, uri, &target.uri, id)) {
            Ok(outcome) => Ok(outcome),
            Err(source @ CallError::Down { .. }) => Err(MigrateError::Begin { id, source }),
            Err(source @ CallError::TimedOut { .. }) => {
                let still_here = self.with(|host, _| host.instances.contains_key(&id));
                Ok(MigrationOutcome::Unknown { why: source.to_string(), still_here })
            }
            Err(source) => Ok(MigrationOutcome::StayedHere { why: source.to_string() }),
        }
    }

    fn abort_job(&self, id: InstanceId) -> Result<(), ControlError> {
        self.control(id, "abort job", |_| None)
    }

    fn stats(&self) -> Result<Vec<InstanceStats>, ListError> {
        let stats = |instance: &Instance| InstanceStats {
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
        let count = |world: &mut World, uri: &str| here(world, uri).instances.values().map(stats).collect();
        self.attempt(Operation::Query, "stats", count).map_err(ListError::List)
    }

    fn subscribe(&self) -> Receiver<HypervisorEvent> {
        self.with(|host, _| host.hub.subscribe())
    }
}
