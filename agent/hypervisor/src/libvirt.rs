//! Owns [`Libvirt`]: the trait over a real libvirtd.
//!
//! Promises: each operation is one or a few calls with a deadline each; a refusal is translated into the
//! operation's own error. Must not do: remember anything of an instance between two operations, but for the first
//! ones' part in the trial of the accelerator, and for who is at work on which instance; libvirt is asked.

mod change;
mod guest;
mod lifecycle;
mod migration;
mod monitor;
mod probe;
mod snapshot;
mod state;
mod stats;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use understudy_core::model::ids::InstanceId;
use virt::connect::Connect;
use virt::domain::Domain as VirtDomain;
use virt::error::Error;

use crate::accelerator::{Accelerator, AcceleratorSetting, Trial};
use crate::api::Hypervisor;
use crate::error::{
    CallError, CapacityError, ControlError, CreateError, DestroyError, GuestError, ListError, MigrateError,
    RestoreError, RoleDiskError, SaveError, StartError,
};
use crate::event::{EventKind, Hub, HypervisorEvent, Lifecycle};
use crate::jobs::Jobs;
use crate::link::Link;
use crate::pidwatch::PidWatch;
use crate::process::NOTES;
use crate::snapshot::{ProbeError, Snapshot, SnapshotError, Tier};
use crate::types::{
    Capacity, GuestCommand, GuestOutput, InstanceFact, InstanceSpec, InstanceStats, Liveness,
    MigrationOutcome, MigrationTarget, Note, RestoreSpec, SavedMemory,
};

/// How long each sort of call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Calls that only read.
    pub query: Duration,
    /// Calls that change a running instance.
    pub change: Duration,
    /// Calls that start or end a qemu process.
    pub start: Duration,
}

impl Default for Deadlines {
    /// libvirt itself waits up to 30 s for another job on the same instance, and 15 s for a qemu to end.
    fn default() -> Self {
        Self {
            query: Duration::from_secs(5),
            change: Duration::from_secs(35),
            start: Duration::from_secs(60),
        }
    }
}

/// How libvirt is reached and used.
#[derive(Debug, Clone)]
pub struct LibvirtConfig {
    /// libvirt's address.
    pub uri: String,
    /// What runs the guests' processors.
    pub accelerator: AcceleratorSetting,
    /// How long calls may take.
    pub deadlines: Deadlines,
    /// Where libvirt notes the process ids of its qemu processes; `None` when the libvirtd is on another host or
    /// has no processes, and then none are looked for.
    pub pid_folder: Option<PathBuf>,
}

impl LibvirtConfig {
    /// This host's own libvirtd.
    #[must_use]
    pub fn local() -> Self {
        Self {
            uri: "qemu:///system".to_owned(),
            accelerator: AcceleratorSetting::Auto,
            deadlines: Deadlines::default(),
            pid_folder: Some(PathBuf::from(NOTES)),
        }
    }
}

/// A hypervisor over libvirt.
pub struct Libvirt {
    link: Link,
    hub: Arc<Hub>,
    watch: Option<Arc<PidWatch>>,
    trial: Arc<Trial>,
    jobs: Jobs,
    deadlines: Deadlines,
    pid_folder: Option<PathBuf>,
}

impl Libvirt {
    /// Takes libvirt into use. A libvirtd that does not run yet is fine: it is connected to when it does.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: LibvirtConfig) -> Result<Self, StartError> {
        let hub = Arc::new(Hub::default());
        let trial = Arc::new(config.accelerator.begin(Arc::clone(&hub)));
        let watch = match &config.pid_folder {
            None => None,
            Some(_) => {
                let (hub, trial) = (Arc::clone(&hub), Arc::clone(&trial));
                let on_death = move |id, pid| {
                    trial.died(id);
                    hub.tell(EventKind::Died { id, pid });
                };
                Some(Arc::new(PidWatch::start(on_death).map_err(StartError::Watch)?))
            }
        };
        let sink = {
            let (hub, watch) = (Arc::clone(&hub), watch.clone());
            move |kind: EventKind| {
                if let (Some(watch), EventKind::Lifecycle { change: Lifecycle::Started(_), .. }) =
                    (&watch, &kind)
                {
                    watch.look();
                }
                hub.tell(kind);
            }
        };
        let link = Link::start(&config.uri, Arc::clone(&hub), Arc::new(sink))?;
        let LibvirtConfig { deadlines, pid_folder, .. } = config;
        Ok(Self { link, hub, watch, trial, jobs: Jobs::default(), deadlines, pid_folder })
    }

    /// What this host's next instance uses.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.trial.accelerator()
    }

    fn on_domain<T: Send + 'static>(
        &self,
        id: InstanceId,
        call: &'static str,
        deadline: Duration,
        work: impl FnOnce(&VirtDomain) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, CallError> {
        self.link.call(call, deadline, move |connect| work(&find(connect, id)?))
    }
}

fn find(connect: &Connect, id: InstanceId) -> Result<VirtDomain, Error> {
    VirtDomain::lookup_by_uuid(connect, id.uuid())
}

impl Hypervisor for Libvirt {
    fn instances(&self) -> Result<Vec<InstanceFact>, ListError> {
        self.list()
    }

    fn liveness(&self, id: InstanceId) -> Result<Liveness, ListError> {
        self.probe_liveness(id)
    }

    fn capacity(&self) -> Result<Capacity, CapacityError> {
        self.room()
    }

    fn create(&self, spec: &InstanceSpec) -> Result<InstanceFact, CreateError> {
        self.boot(spec)
    }

    fn destroy(&self, id: InstanceId) -> Result<(), DestroyError> {
        self.end(id)
    }

    fn attach_role_disk(&self, id: InstanceId, path: &std::path::Path) -> Result<(), RoleDiskError> {
        self.plug_role_disk(id, path)
    }

    fn guest_ping(&self, id: InstanceId, deadline: Duration) -> Result<(), GuestError> {
        self.ping(id, deadline)
    }

    fn guest_exec(&self, id: InstanceId, command: &GuestCommand) -> Result<GuestOutput, GuestError> {
        self.exec(id, command)
    }

    fn guest_set_time(&self, id: InstanceId) -> Result<(), GuestError> {
        self.set_time(id)
    }

    fn save_memory(
        &self,
        id: InstanceId,
        path: &std::path::Path,
        deadline: Duration,
    ) -> Result<SavedMemory, SaveError> {
        self.save(id, path, deadline)
    }

    fn snapshot_memory(&self, id: InstanceId, deadline: Duration) -> Result<Snapshot, SnapshotError> {
        self.take_snapshot(id, deadline)
    }

    fn probe_snapshots(&self, folder: &std::path::Path) -> Result<Tier, ProbeError> {
        self.try_snapshots(folder)
    }

    fn restore(&self, spec: &RestoreSpec) -> Result<InstanceFact, RestoreError> {
        self.bring_back(spec)
    }

    fn set_link(&self, id: InstanceId, up: bool) -> Result<(), ControlError> {
        self.plug_link(id, up)
    }

    fn resume(&self, id: InstanceId) -> Result<(), ControlError> {
        self.run(id)
    }

    fn suspend(&self, id: InstanceId) -> Result<(), ControlError> {
        self.halt(id)
    }

    fn set_note(&self, id: InstanceId, note: &Note) -> Result<(), ControlError> {
        self.write_note(id, note)
    }

    fn migrate(
        &self,
        id: InstanceId,
        target: &MigrationTarget,
        deadline: Duration,
    ) -> Result<MigrationOutcome, MigrateError> {
        self.move_away(id, target, deadline)
    }

    fn abort_job(&self, id: InstanceId) -> Result<(), ControlError> {
        self.cancel(id)
    }

    fn stats(&self) -> Result<Vec<InstanceStats>, ListError> {
        self.count()
    }

    fn subscribe(&self) -> Receiver<HypervisorEvent> {
        let events = self.hub.subscribe();
        if let Some(reason) = self.trial.fell_back() {
            self.hub.tell(EventKind::Emulates { reason });
        }
        events
    }
}
