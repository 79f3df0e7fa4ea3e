//! A deterministic double of several hosts' hypervisors, for simulations: same words, same rules, no clock, no
//! files, no threads.
//!
//! Owns a [`Site`] of hosts, the instances' states, the images and a clock that only moves when told to.
//! Promises: the conformance suite holds here as over qemu; the same calls in the same order give the same answers.
//! Must not do: fail by itself: every fault is put there by [`Site`]'s methods.

mod operations;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use understudy_core::ids::{Epoch, InstanceId};
use understudy_core::units::{Boottime, MiB, Vcpus};

use crate::error::CallError;
use crate::event::{EventKind, Hub, HypervisorEvent, Lifecycle, StopCause, WatchdogAction};
use crate::process::Pid;
use crate::refusal::{Refusal, RefusalKind};
use crate::types::{Capacity, GuestCommand, GuestOutput, InstanceFact, InstanceState, PauseCause};

/// What a guest keeps in its memory; it travels with saves and migrations.
pub type GuestMemory = BTreeMap<String, Vec<u8>>;

/// Answers commands in guests.
pub type Guest = dyn Fn(InstanceId, &mut GuestMemory, &GuestCommand) -> GuestOutput + Send + Sync;

/// A group of operations that a fault can hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `instances`, `life`, `capacity`, `stats`.
    Query,
    /// `create`.
    Create,
    /// `destroy`.
    Destroy,
    /// `attach_role_disk`.
    RoleDisk,
    /// `guest_ping`, `guest_exec`, `guest_set_time`.
    Guest,
    /// `save_memory`.
    Save,
    /// `restore`.
    Restore,
    /// `set_link`, `resume`, `suspend`, `set_note`, `abort_job`.
    Control,
    /// `migrate`.
    Migrate,
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// libvirt says no.
    Refused,
    /// No answer, and nothing was done.
    LostRequest,
    /// No answer, and it was done.
    LostAnswer,
}

/// Several hosts that can reach one another.
#[derive(Clone)]
pub struct Site(Arc<Mutex<World>>);

/// One host's hypervisor.
#[derive(Clone)]
pub struct FakeHypervisor {
    site: Site,
    uri: String,
}

struct World {
    hosts: BTreeMap<String, Host>,
    images: BTreeMap<PathBuf, Image>,
    clock: Boottime,
    next_pid: i32,
    guest: Arc<Guest>,
}

struct Host {
    capacity: Capacity,
    up: bool,
    libvirt_up: bool,
    instances: BTreeMap<InstanceId, Instance>,
    /// Unused permits; `None` when no hook is installed.
    permits: Option<BTreeMap<InstanceId, Epoch>>,
    role_disks: BTreeMap<PathBuf, Result<(), String>>,
    faults: VecDeque<(Operation, Fault)>,
    hub: Hub,
}

#[derive(Clone)]
struct Instance {
    fact: InstanceFact,
    ram_only: bool,
    agent_answers: bool,
    hangs: bool,
    memory: GuestMemory,
}

#[derive(Clone)]
struct Image {
    instance: Instance,
    whole: bool,
}

/// The default guest: `put KEY` keeps its input, `get KEY` prints it (exit 1 when there is none), `exit N` exits,
/// `hang` never ends. Anything else is not found, as a shell says it.
fn plain_guest(_: InstanceId, memory: &mut GuestMemory, command: &GuestCommand) -> GuestOutput {
    let done = |exit, stdout: &[u8]| GuestOutput { exit, stdout: stdout.to_vec(), stderr: Vec::new() };
    let words: Vec<&str> = command.argv.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["put", key] => {
            memory.insert((*key).to_owned(), command.stdin.clone());
            done(0, b"")
        }
        ["get", key] => memory.get(*key).map_or_else(|| done(1, b""), |value| done(0, value)),
        ["exit", code] => done(code.parse().unwrap_or(2), b""),
        _ => done(127, b""),
    }
}

impl Default for Site {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(World {
            hosts: BTreeMap::new(),
            images: BTreeMap::new(),
            clock: Boottime(0),
            next_pid: 1000,
            guest: Arc::new(plain_guest),
        })))
    }
}

impl Site {
    /// Adds a host; its hypervisor.
    #[must_use]
    pub fn host(&self, uri: &str, vcpus: Vcpus, memory: MiB) -> FakeHypervisor {
        let host = Host {
            capacity: Capacity { vcpus, memory_total: memory, memory_free: memory },
            up: true,
            libvirt_up: true,
            instances: BTreeMap::new(),
            permits: None,
            role_disks: BTreeMap::new(),
            faults: VecDeque::new(),
            hub: Hub::default(),
        };
        self.world().hosts.insert(uri.to_owned(), host);
        FakeHypervisor { site: self.clone(), uri: uri.to_owned() }
    }

    /// Lets guests answer otherwise.
    pub fn set_guest(&self, guest: Arc<Guest>) {
        self.world().guest = guest;
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let mut world = self.world();
        world.clock = world.clock + by;
    }

    /// Copies an image, as a checkpoint's transfer does. False when there is none.
    #[must_use]
    pub fn copy_image(&self, from: &Path, to: &Path) -> bool {
        let mut world = self.world();
        let image = world.images.get(from).cloned();
        image.is_some_and(|image| {
            world.images.insert(to.to_owned(), image);
            true
        })
    }

    /// Cuts an image off.
    pub fn damage_image(&self, path: &Path) {
        if let Some(image) = self.world().images.get_mut(path) {
            image.whole = false;
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeHypervisor {
    /// Where this host is reached.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The next operation of this group fails so. Faults of one group are used up in order.
    pub fn inject(&self, operation: Operation, fault: Fault) {
        self.with(|host, _| host.faults.push_back((operation, fault)));
    }

    /// Puts a role disk onto the host: a whole one, or one that is damaged as said.
    pub fn put_role_disk(&self, path: &Path, state: Result<(), String>) {
        self.with(|host, _| host.role_disks.insert(path.to_owned(), state));
    }

    /// Installs the permit hook: from here on nothing comes to life without a permit.
    pub fn require_permits(&self) {
        self.with(|host, _| {
            host.permits.get_or_insert_default();
        });
    }

    /// Lets an instance come to life once, in an epoch.
    pub fn permit(&self, id: InstanceId, epoch: Epoch) {
        self.with(|host, _| host.permits.get_or_insert_default().insert(id, epoch));
    }

    /// Kills the process that runs an instance.
    pub fn kill(&self, id: InstanceId) {
        self.with(|host, clock| {
            if let Some(instance) = host.instances.remove(&id) {
                host.tell_death(clock, &instance, StopCause::Failed);
            }
        });
    }

    /// The guest's kernel panics; the process stays for a look.
    pub fn panic_guest(&self, id: InstanceId) {
        self.with(|host, clock| {
            if let Some(instance) = host.instances.get_mut(&id) {
                instance.fact.state = InstanceState::Crashed;
                instance.agent_answers = false;
                if host.libvirt_up {
                    host.tell(clock, EventKind::Panicked { id });
                }
            }
        });
    }

    /// A disk of the guest does not do as asked; `stops`: the guest stands still for it.
    pub fn fail_disk(&self, id: InstanceId, device: &str, stops: bool) {
        self.with(|host, clock| {
            if let Some(instance) = host.instances.get_mut(&id) {
                if stops {
                    paused(instance, PauseCause::IoError);
                }
                if host.libvirt_up {
                    host.tell(clock, EventKind::IoError { id, device: device.to_owned(), paused: stops });
                }
            }
        });
    }

    /// The guest hangs and does not feed its watchdog.
    pub fn hang_guest(&self, id: InstanceId) {
        self.with(|host, clock| {
            if let Some(instance) = host.instances.get_mut(&id) {
                instance.agent_answers = false;
                if host.libvirt_up {
                    host.tell(clock, EventKind::Watchdog { id, action: WatchdogAction::None });
                }
            }
        });
    }

    /// The guest's agent answers no more, or again.
    pub fn set_agent_answers(&self, id: InstanceId, answers: bool) {
        self.with(|host, _| {
            if let Some(instance) = host.instances.get_mut(&id) {
                instance.agent_answers = answers;
            }
        });
    }

    /// The process that runs an instance hangs in the kernel and outlives every signal, or not any more.
    pub fn set_unkillable(&self, id: InstanceId, hangs: bool) {
        self.with(|host, _| {
            if let Some(instance) = host.instances.get_mut(&id) {
                instance.hangs = hangs;
            }
        });
    }

    /// libvirtd is stopped or started. Instances run on; their deaths are told meanwhile.
    pub fn set_libvirt_up(&self, up: bool) {
        self.with(|host, clock| {
            if host.libvirt_up != up {
                host.libvirt_up = up;
                host.tell(clock, if up { EventKind::ConnectionRegained } else { EventKind::ConnectionLost });
            }
        });
    }

    /// KVM turns out not to work here, for this reason.
    pub fn fall_back(&self, reason: &str) {
        self.with(|host, clock| host.tell(clock, EventKind::Emulates { reason: reason.to_owned() }));
    }

    /// The host loses its power, and everything that ran on it; nobody is told.
    pub fn power_off(&self) {
        self.with(|host, _| {
            host.up = false;
            host.instances.clear();
            host.permits = host.permits.as_ref().map(|_| BTreeMap::new());
        });
    }

    /// The host is powered on again, empty.
    pub fn power_on(&self) {
        self.with(|host, _| {
            host.up = true;
            host.libvirt_up = true;
        });
    }

    /// The instances that a process of this host runs, seen from outside.
    #[must_use]
    pub fn running(&self) -> BTreeSet<InstanceId> {
        self.with(|host, _| host.instances.keys().copied().collect())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Host, Boottime) -> T) -> T {
        let mut world = self.site.world();
        let clock = world.clock;
        work(world.hosts.get_mut(&self.uri).expect("a FakeHypervisor is made together with its host"), clock)
    }
}

impl Host {
    fn reachable(&self) -> bool {
        self.up && self.libvirt_up
    }

    fn tell(&self, at: Boottime, kind: EventKind) {
        self.hub.send(&HypervisorEvent { at, kind });
    }

    fn tell_change(&self, at: Boottime, id: InstanceId, change: Lifecycle) {
        if self.libvirt_up {
            self.tell(at, EventKind::Lifecycle { id, change });
        }
    }

    fn tell_death(&self, at: Boottime, instance: &Instance, cause: StopCause) {
        let id = instance.fact.id;
        if let Some(pid) = instance.fact.pid {
            self.tell(at, EventKind::Died { id, pid });
        }
        self.tell_change(at, id, Lifecycle::Stopped(cause));
    }

    /// Uses up a permit for an instance that carries `own` as its epoch.
    fn permits_start(&mut self, id: InstanceId, own: Epoch) -> bool {
        match &mut self.permits {
            None => true,
            Some(permits) => {
                let fresh = permits.get(&id).is_some_and(|&epoch| epoch >= own);
                if fresh {
                    permits.remove(&id);
                }
                fresh
            }
        }
    }

    fn fault(&mut self, operation: Operation) -> Option<Fault> {
        let at = self.faults.iter().position(|&(hit, _)| hit == operation)?;
        self.faults.remove(at).map(|(_, fault)| fault)
    }
}

fn refused(call: &'static str, kind: RefusalKind, message: &str) -> CallError {
    CallError::Refused { call, refusal: Refusal { kind, message: message.to_owned() } }
}

fn late(call: &'static str) -> CallError {
    CallError::TimedOut { call, after: Duration::from_secs(30) }
}

fn paused(instance: &mut Instance, cause: PauseCause) {
    instance.fact.state = InstanceState::Paused(cause);
}

fn new_pid(next: &mut i32) -> Option<Pid> {
    *next += 1;
    Some(Pid(*next))
}
