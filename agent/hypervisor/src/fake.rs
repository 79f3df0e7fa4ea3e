//! A deterministic double of several hosts' hypervisors, for simulations: same words, same rules, no threads and no clock but
//! its own.
//!
//! Owns a [`Site`] of hosts with what runs on them, the images, the ways between the hosts, and a clock that only moves when
//! told to; while it moves guests boot and run, and migrations go on. What guests keep in their memory is a type of the
//! user's ([`Memory`]).
//! Promises: the conformance suite holds here as over qemu; the same calls in the same order give the same answers; nothing
//! is copied for time to pass. Must not do: fail by itself: every fault is put there by the methods of [`Site`] and
//! [`FakeHypervisor`]; touch files, unless the user wants images to be there as such.

mod faults;
mod guest;
mod host;
mod image_file;
mod migration;
mod operations;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use understudy_core::model::units::{Boottime, MiB, Vcpus};

pub use self::guest::{Guest, GuestMemory, Memory};
pub use self::host::Instance;
pub use self::migration::{Course, Left};
pub use self::snapshot::Snapshots;

use self::guest::plain_guest;
use self::host::{Host, Image};
use self::migration::Migration;
use crate::process::Pid;
use crate::types::Capacity;

/// A group of operations that a fault can hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `instances`, `liveness`, `capacity`, `stats`, `probe_snapshots`.
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
    /// `snapshot_memory`.
    Snapshot,
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
pub struct Site<G = GuestMemory>(Arc<Mutex<World<G>>>);

/// One host's hypervisor.
pub struct FakeHypervisor<G = GuestMemory> {
    site: Site<G>,
    uri: String,
}

struct World<G> {
    hosts: BTreeMap<String, Host<G>>,
    images: BTreeMap<PathBuf, Image<G>>,
    /// Pairs of hosts that cannot reach each other, in order.
    cuts: BTreeSet<(String, String)>,
    migrations: VecDeque<Migration>,
    next_migration: u64,
    next_snapshot: u64,
    clock: Boottime,
    next_pid: i32,
    /// Images are written as files too.
    files: bool,
    guest: Arc<Guest<G>>,
}

impl Default for Site {
    fn default() -> Self {
        Self::new(Arc::new(plain_guest))
    }
}

impl<G: Memory> Site<G> {
    /// A site without hosts, whose guests answer commands so.
    #[must_use]
    pub fn new(guest: Arc<Guest<G>>) -> Self {
        Self(Arc::new(Mutex::new(World {
            hosts: BTreeMap::new(),
            images: BTreeMap::new(),
            cuts: BTreeSet::new(),
            migrations: VecDeque::new(),
            next_migration: 0,
            next_snapshot: 0,
            clock: Boottime(0),
            next_pid: 1000,
            files: false,
            guest,
        })))
    }

    /// Adds a host; its hypervisor.
    #[must_use]
    pub fn host(&self, uri: &str, vcpus: Vcpus, memory: MiB) -> FakeHypervisor<G> {
        let host = Host::new(Capacity { vcpus, memory_total: memory, memory_free: memory });
        self.world().hosts.insert(uri.to_owned(), host);
        FakeHypervisor { site: self.clone(), uri: uri.to_owned() }
    }

    /// Lets guests answer otherwise.
    pub fn set_guest(&self, guest: Arc<Guest<G>>) {
        self.world().guest = guest;
    }

    /// Lets time pass: guests boot and run, then migrations go on, where nothing stands still.
    pub fn advance(&self, by: Duration) {
        let mut world = self.world();
        world.clock = world.clock + by;
        let clock = world.clock;
        for host in world.hosts.values_mut().filter(|host| host.runs()) {
            host.run(clock, by);
        }
        world.run_migrations();
    }

    /// Whether two hosts reach each other.
    pub fn set_reach(&self, one: &str, other: &str, reach: bool) {
        let mut world = self.world();
        let pair = pair(one, other);
        if reach {
            world.cuts.remove(&pair);
        } else if one != other {
            world.cuts.insert(pair);
        }
    }

    /// From here on images are written as files too, for those who send them on: an image is then what such a file is of.
    pub fn write_files(&self) {
        self.world().files = true;
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

    /// Deletes an image. None is fine.
    pub fn remove_image(&self, path: &Path) {
        self.world().images.remove(path);
    }

    /// Deletes all images below a folder.
    pub fn remove_images(&self, folder: &Path) {
        self.world().images.retain(|path, _| !path.starts_with(folder));
    }

    fn world(&self) -> MutexGuard<'_, World<G>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<G: Memory> FakeHypervisor<G> {
    /// Where this host is reached.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }
}

impl<G: Memory> World<G> {
    fn here(&mut self, uri: &str) -> &mut Host<G> {
        self.hosts.get_mut(uri).expect("a FakeHypervisor is made together with its host")
    }

    fn reach(&self, one: &str, other: &str) -> bool {
        self.cuts.is_empty() || !self.cuts.contains(&pair(one, other))
    }

    fn new_pid(&mut self) -> Pid {
        self.next_pid += 1;
        Pid(self.next_pid)
    }
}

fn pair(one: &str, other: &str) -> (String, String) {
    if one < other { (one.to_owned(), other.to_owned()) } else { (other.to_owned(), one.to_owned()) }
}

impl<G> Clone for Site<G> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<G> Clone for FakeHypervisor<G> {
    fn clone(&self) -> Self {
        Self { site: self.site.clone(), uri: self.uri.clone() }
    }
}

impl<G> fmt::Debug for Site<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").finish_non_exhaustive()
    }
}

impl<G> fmt::Debug for FakeHypervisor<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeHypervisor").field("uri", &self.uri).finish_non_exhaustive()
    }
}
