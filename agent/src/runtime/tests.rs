//! Tables of the runtime's bookkeeping, over the hypervisor's double. Each test puts the runtime where it wants it and takes
//! its events one by one.

mod arriving;
mod checkpoints;
mod destroys;
mod facts;
mod guests;
mod migrating_out;
mod recovery;
mod resting;
mod restoring;
mod unreadable;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use understudy_checkpoint::{ImageStore, ReadyImages};
use understudy_core::host::lease::LeaseStatus;
use understudy_core::host::{Input, Local};
use understudy_core::model::ids::{BootId, Epoch, HostId, InstanceId, NodeId};
use understudy_core::model::records::{
    Capacity, InstanceFact, LeaseRecord, Member, NodeRecord, NodeSpec, Origin, Phase, Screen,
};
use understudy_core::model::units::{MiB, Vcpus};
use understudy_hypervisor::fake::{FakeHypervisor, Site};
use understudy_hypervisor::permit::Permits;
use understudy_hypervisor::{Hypervisor, InstanceSpec, Note, Template};
use understudy_store::{Entry, Listing, MemoryStore, Revision};
use uuid::Uuid;

use super::{Event, Parts, Runtime, Snapshot, now};
use crate::config::Config;
use crate::gateway;
use crate::keys::{Key, encode};
use crate::metrics::Metrics;
use crate::policy_manager::Policies;

/// What nothing here should ever take, on however busy a machine.
const LIMIT: Duration = Duration::from_secs(60);
const MEMORY: MiB = MiB(512);
const CONFIG: &str = r#"
[host]
name = "host1"
state_dir = "HOME/state"
runtime_dir = "HOME/run"
[store]
kind = "embedded"
[pool]
idle = POOL
[network]
addresses = "10.0.0.2-10.0.0.9"
[environments]
desktop = "/nowhere/role.erofs"
[policies]
dir = "HOME/policies"
"#;

fn me() -> HostId {
    "host1".parse().unwrap()
}

fn node() -> NodeId {
    "alice/display".parse().unwrap()
}

fn instance(number: u128) -> InstanceId {
    InstanceId::from_uuid(Uuid::from_u128(number << 64 | 7))
}

/// The runtime of `host1` in its first lease, which is open.
struct Rig {
    runtime: Runtime,
    hypervisor: FakeHypervisor,
    entries: Vec<Entry>,
    known: BTreeMap<InstanceId, Local>,
    template: Arc<Template>,
    _home: tempfile::TempDir,
}

impl Rig {
    /// With a pool of none, so that no idle instance is made unless a test asks for it.
    fn new() -> Self {
        Self::with_pool(0)
    }

    fn with_pool(idle: u32) -> Self {
        Self::with(idle, |_| {})
    }

    fn with(idle: u32, change: impl FnOnce(&mut Config)) -> Self {
        let home = tempfile::tempdir().unwrap();
        let text = CONFIG.replace("HOME", &home.path().display().to_string());
        let text = text.replace("POOL", &idle.to_string());
        let mut config = Config::parse(Path::new("agent.toml"), &text).unwrap();
        change(&mut config);
        let shipped = include_str!("../../../config/guest/template.xml");
        let template = Arc::new(Template::parse(shipped).unwrap());
        let site = Site::default();
        site.write_files();
        let hypervisor = site.host("fake://host1", Vcpus(16), MiB(16_384));
        let metrics = Arc::new(Metrics::new().unwrap());
        let images = ImageStore::open(&home.path().join("checkpoints")).unwrap();
        let parts = Arc::new(Parts {
            boot: BootId("boot".to_owned()),
            machine: Default::default(),
            store: Arc::new(MemoryStore::default()),
            hypervisor: Arc::new(hypervisor.clone()),
            template: template.clone(),
            permits: Permits::open(&home.path().join("permits")).unwrap(),
            policies: Arc::new(Policies::open(&config, &metrics)),
            ready_images: Arc::new(
                ReadyImages::open(images.clone(), &home.path().join("ready"), MiB(512).bytes()).unwrap(),
            ),
            images: Arc::new(images),
            keeping: Default::default(),
            checkpoint_tier: Default::default(),
            trackers: Default::default(),
            security: Default::default(),
            members: Default::default(),
            tasks: Default::default(),
            scratch: home.path().to_owned(),
            metrics,
            config,
        });
        let capacity = Some(Capacity { vcpus: Vcpus(16), memory: MiB(16_384) });
        let (publisher, _directory) = gateway::directory();
        let snapshots = watch::Sender::new(Arc::new(Snapshot::default()));
        let mut runtime =
            Runtime::new(parts, capacity, tokio::sync::mpsc::unbounded_channel(), publisher, snapshots);
        runtime.lease = LeaseStatus { number: 1, until: Some(now().boottime + LIMIT) };
        (runtime.lease_number, runtime.has_recovered) = (1, true);
        let (entries, known) = (Vec::new(), BTreeMap::new());
        let mut rig = Self { runtime, hypervisor, entries, known, template, _home: home };
        let lease = LeaseRecord::open(BootId("boot".to_owned()), Default::default(), 1);
        rig.write(&Key::Lease(me()), encode(&lease));
        rig.recover();
        rig
    }

    /// What was found when the lease was opened. Looks are not taken.
    fn recover(&mut self) {
        let recovered = Input::Recovered { lease: 1, found: self.known.clone() };
        let _looks = self.runtime.agent.handle(recovered, now());
        let _none = self.runtime.agent.handle(Input::Listed(None), now());
    }

    /// Waits until a job is over, and takes its outcome.
    async fn one_job(&mut self) {
        loop {
            let heard = tokio::time::timeout(LIMIT, self.runtime.receiver.recv()).await;
            let event = heard.unwrap_or_else(|_| panic!("no job ended")).unwrap();
            let ended = matches!(event, Event::Job { .. });
            self.runtime.take(event);
            if ended {
                return;
            }
        }
    }

    /// Waits until so many steps of a live migration were taken, and takes how they went.
    async fn steps(&mut self, mut count: u32) {
        while count > 0 {
            let heard = tokio::time::timeout(LIMIT, self.runtime.receiver.recv()).await;
            let event = heard.unwrap_or_else(|_| panic!("no step was taken")).unwrap();
            count -= u32::from(matches!(event, Event::Step { .. }));
            self.runtime.take(event);
        }
    }

    /// A record as the store gives it back, with everything that stands already.
    fn write(&mut self, key: &Key, value: Vec<u8>) {
        let revision = Revision(u64::try_from(self.entries.len()).unwrap() + 1);
        self.entries.retain(|entry| entry.key != key.to_string());
        self.entries.push(Entry { key: key.to_string(), value, modified: revision });
        self.runtime.take(Event::Listed {
            listing: Listing { revision, entries: self.entries.clone() },
            renewals: true,
        });
    }

    /// alice's display, with this instance as its primary on this host.
    fn name(&mut self, primary: InstanceId) {
        let record = record(Some(primary));
        self.write(&Key::Node(node()), encode(&record));
    }

    /// An instance that runs here, and what the runtime knows of it.
    fn runs(&mut self, id: InstanceId, phase: Phase, node: Option<NodeId>) {
        self.runs_unknown(id);
        self.knows(id, phase, node);
    }

    /// An instance that runs here, and that the runtime has not heard of.
    fn runs_unknown(&mut self, id: InstanceId) {
        let spec = InstanceSpec {
            id,
            name: id.to_string(),
            template: self.template.clone(),
            memory: MEMORY,
            vcpus: Vcpus(1),
            mac: None,
            note: Note::default(),
        };
        self.hypervisor.create(&spec).unwrap();
    }

    /// What the runtime knows of an instance.
    fn knows(&mut self, id: InstanceId, phase: Phase, node: Option<NodeId>) {
        let epoch = Epoch(u64::from(node.is_some()));
        let fact = InstanceFact {
            phase,
            node,
            epoch,
            address: Some([10, 0, 0, 2].into()),
            memory: MEMORY,
            vcpus: Vcpus(1),
            since: now().wall,
            windows: None,
            admitted: BTreeMap::new(),
            migration_failed: None,
        };
        self.known.insert(id, Local::of(fact));
        self.recover();
    }

    fn work(&mut self) {
        self.runtime.work(now());
    }

    /// Takes what has happened on the hypervisor, and what jobs say, until it is so.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Runtime) -> bool) {
        self.until_by(|runtime| runtime.work(now()), what, is_so).await;
    }

    /// The same, as the loop does it.
    async fn until_advanced(&mut self, what: &str, is_so: impl Fn(&Runtime) -> bool) {
        self.until_by(Runtime::advance, what, is_so).await;
    }

    async fn until_by(&mut self, turn: impl Fn(&mut Runtime), what: &str, is_so: impl Fn(&Runtime) -> bool) {
        let started = std::time::Instant::now();
        while !is_so(&self.runtime) {
            assert!(started.elapsed() < LIMIT, "in vain: {what}: {:#?}", self.runtime.agent.local());
            turn(&mut self.runtime);
            let heard = tokio::time::timeout(Duration::from_millis(50), self.runtime.receiver.recv()).await;
            if let Ok(Some(event)) = heard {
                self.runtime.take(event);
            }
        }
    }

    fn phase(&self, id: InstanceId) -> Option<Phase> {
        self.runtime.agent.local().get(&id).map(|local| local.fact.phase.clone())
    }

    fn conditions(&self) -> String {
        self.runtime.conditions.values().cloned().collect::<Vec<_>>().join("\n")
    }
}

fn record(primary: Option<InstanceId>) -> NodeRecord {
    let spec = NodeSpec {
        memory: MEMORY,
        vcpus: Vcpus(1),
        protected: false,
        environment: "desktop".to_owned(),
        applications: Vec::new(),
        labels: Default::default(),
        environment_labels: Default::default(),
        screen: Screen { width: 1280, height: 720 },
    };
    let member = |id| Member { host: me(), lease: 1, instance: Some(id), origin: Origin::Idle, place: 0 };
    NodeRecord {
        epoch: Epoch(1),
        incarnation: Epoch(1),
        primary: primary.map(member),
        ..NodeRecord::new(spec, "token".to_owned())
    }
}

fn died(runtime: &Runtime, id: InstanceId, part: &str) -> bool {
    let phase = runtime.agent.local().get(&id).map(|local| &local.fact.phase);
    matches!(phase, Some(Phase::Dead { death, .. }) if death.to_string().contains(part))
}

fn running(hypervisor: &FakeHypervisor) -> BTreeSet<InstanceId> {
    hypervisor.running()
}
