//! The double, and libvirt's own simulation as far as that goes.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_core::model::units::{MiB, Vcpus};
use understudy_hypervisor::fake::{FakeHypervisor, Fault, Operation, Site, Snapshots};
use understudy_hypervisor::{
    Accelerator, AcceleratorSetting, CallError, CapacityError, CreateError, Deadlines, DestroyError,
    EventKind, GuestError, Hypervisor, InstanceSpec, InstanceState, Libvirt, LibvirtConfig, Lifecycle,
    ListError, Liveness, MigrationOutcome, MigrationTarget, Note, PauseCause, RefusalKind, SnapshotError,
    StartError, StopCause, Template, Tier,
};

use crate::host::id;
use crate::suite::{Bed, conforms, state};

const TEMPLATE: &str = "<domain><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
<cpu mode='custom'><model>qemu64</model></cpu>
<devices><interface type='bridge'><source bridge='vmbr0'/></interface>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>";

pub(crate) fn spec(number: u8) -> InstanceSpec {
    InstanceSpec {
        id: id(number),
        name: format!("u{number}"),
        template: Arc::new(Template::parse(TEMPLATE).unwrap()),
        memory: MiB(192),
        vcpus: Vcpus(1),
        mac: None,
        note: Note { epoch: Epoch(1), address: None },
    }
}

struct FakeBed {
    site: Site,
    hypervisor: FakeHypervisor,
    set_up: Cell<bool>,
    /// For the files that images are.
    folder: tempfile::TempDir,
}

impl FakeBed {
    fn new() -> Self {
        let site = Site::default();
        let hypervisor = site.host("fake://one", Vcpus(4), MiB(4096));
        hypervisor.require_permits();
        hypervisor.set_boot_time(3 * SOON);
        site.write_files();
        Self { site, hypervisor, set_up: Cell::new(false), folder: tempfile::tempdir().unwrap() }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

impl Bed for FakeBed {
    fn hypervisor(&self) -> &dyn Hypervisor {
        &self.hypervisor
    }
    fn spec(&self, number: u8) -> InstanceSpec {
        spec(number)
    }
    fn permit(&self, id: InstanceId, epoch: Epoch) {
        self.hypervisor.permit(id, epoch);
    }
    fn put(&self) -> Vec<String> {
        words("put mark")
    }
    fn get(&self) -> Vec<String> {
        words("get mark")
    }
    fn exit_7(&self) -> Vec<String> {
        words("exit 7")
    }
    fn hang(&self) -> Vec<String> {
        words("hang")
    }
    fn image(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
    fn role_disk(&self) -> PathBuf {
        let path = PathBuf::from("/roles/whole");
        if !self.set_up.replace(true) {
            self.hypervisor.put_role_disk(&path, Ok(()));
        }
        path
    }
    fn damaged_role_disk(&self) -> PathBuf {
        let path = PathBuf::from("/roles/damaged");
        self.hypervisor.put_role_disk(&path, Err("cut off".to_owned()));
        path
    }
    fn keep(&self, mut image: std::fs::File) -> PathBuf {
        let path = self.folder.path().join("snapshot");
        std::io::copy(&mut image, &mut std::fs::File::create(&path).unwrap()).unwrap();
        path
    }
    fn damage_image(&self, path: &Path) {
        self.site.damage_image(path);
    }
    fn time_passes(&self) {
        self.site.advance(SOON);
    }
}

#[test]
fn the_double_conforms() {
    conforms(&FakeBed::new());
}

pub(crate) fn target(uri: &str) -> MigrationTarget {
    MigrationTarget { uri: uri.to_owned(), tls: true, tls_name: None, data_uri: None, bandwidth: None }
}

pub(crate) const SOON: Duration = Duration::from_secs(1);

#[test]
fn in_the_double_a_lost_answer_is_not_a_failure_and_a_stopped_libvirtd_not_a_death() {
    let site = Site::default();
    let host = site.host("fake://1", Vcpus(4), MiB(4096));
    host.inject(Operation::Create, Fault::LostAnswer);
    let lost = host.create(&spec(1));
    assert!(matches!(lost, Err(CreateError::Create { source: CallError::TimedOut { .. }, .. })));
    assert_eq!(state(&host, id(1)), Some(InstanceState::Running));
    host.inject(Operation::Create, Fault::LostRequest);
    assert!(host.create(&spec(2)).is_err());
    assert_eq!(state(&host, id(2)), None);
    let events = host.subscribe();
    host.set_libvirt_up(false);
    assert!(matches!(host.instances(), Err(ListError::List(CallError::Down { .. }))));
    host.kill(id(1));
    let kinds: Vec<EventKind> = events.try_iter().map(|event| event.kind).collect();
    assert!(matches!(kinds.as_slice(), [EventKind::ConnectionLost, EventKind::Died { .. }]), "{kinds:?}");
    host.set_libvirt_up(true);
    assert_eq!(host.liveness(id(1)).unwrap(), Liveness::Gone);
}

#[test]
fn in_the_double_an_instance_is_destroyed_without_libvirt_by_its_process_and_else_nothing_is_known() {
    let site = Site::default();
    let host = site.host("fake://1", Vcpus(4), MiB(4096));
    host.create(&spec(1)).unwrap();
    host.create(&spec(2)).unwrap();
    host.set_libvirt_up(false);
    host.destroy(id(1)).unwrap();
    assert!(!host.running().contains(&id(1)));
    assert!(matches!(host.destroy(id(1)), Err(DestroyError::Destroy { source: CallError::Down { .. }, .. })));
    host.set_unkillable(id(2), true);
    host.set_libvirt_up(true);
    assert!(matches!(host.destroy(id(2)), Err(DestroyError::StillThere { .. })));
    assert!(host.running().contains(&id(2)));
    host.set_unkillable(id(2), false);
    host.destroy(id(2)).unwrap();
    host.destroy(id(1)).unwrap();
}

#[test]
fn in_the_double_a_snapshot_fails_as_a_qemu_that_refuses_it_or_does_not_survive_a_broken_one() {
    let site = Site::default();
    let host = site.host("fake://1", Vcpus(4), MiB(4096));
    host.create(&spec(1)).unwrap();
    let runs = || host.look(id(1), |instance| instance.runs()).unwrap();
    let tier = || host.probe_snapshots(Path::new("/")).unwrap();
    assert_eq!(tier(), Tier::Background);
    host.inject(Operation::Snapshot, Fault::Refused);
    assert!(matches!(host.snapshot_memory(id(1), SOON), Err(SnapshotError::Begin { .. })));
    host.inject(Operation::Snapshot, Fault::LostRequest);
    assert!(matches!(host.snapshot_memory(id(1), SOON), Err(SnapshotError::TimedOut { .. })));
    host.break_snapshot(id(1));
    assert!(matches!(host.snapshot_memory(id(1), SOON), Err(SnapshotError::Broken { .. })));
    assert!(runs(), "it goes on");
    host.snapshot_memory(id(1), SOON).unwrap();
    host.set_snapshots(Snapshots::Refused);
    assert!(matches!(tier(), Tier::Saved { reason } if reason.contains("refuses")));
    assert!(matches!(host.snapshot_memory(id(1), SOON), Err(SnapshotError::Begin { .. })));
    host.set_snapshots(Snapshots::StopBroken);
    assert!(matches!(tier(), Tier::Saved { reason } if reason.contains("does not go on")));
    host.snapshot_memory(id(1), SOON).unwrap();
    assert!(runs());
    host.break_snapshot(id(1));
    host.snapshot_memory(id(1), SOON).unwrap_err();
    assert_eq!(
        (runs(), state(&host, id(1))),
        (false, Some(InstanceState::Running)),
        "libvirt says that it runs"
    );
    host.set_libvirt_up(false);
    assert!(host.probe_snapshots(Path::new("/")).is_err());
}

fn simulation() -> Libvirt {
    Libvirt::start(LibvirtConfig {
        uri: "test:///default".to_owned(),
        accelerator: AcceleratorSetting::Fixed(Accelerator::Tcg),
        deadlines: Deadlines::default(),
        pid_folder: None,
    })
    .unwrap()
}

#[test]
fn libvirts_simulation_does_what_it_can_and_says_what_it_cannot() {
    let hv = simulation();
    assert_eq!(hv.instances().unwrap(), Vec::new(), "its own domain is not managed");
    let capacity = hv.capacity().unwrap();
    assert_eq!(capacity.memory_total, MiB(3072));
    let made = hv.create(&spec(1)).unwrap();
    assert_eq!((made.id, made.note, made.pid), (id(1), spec(1).note, None));
    assert_eq!(hv.create(&spec(1)).unwrap(), made);
    assert_eq!(hv.liveness(id(1)).unwrap(), Liveness::Known(InstanceState::Running));
    let note = Note { epoch: Epoch(2), address: Some("10.77.1.7".parse().unwrap()) };
    hv.set_note(id(1), &note).unwrap();
    assert_eq!(hv.instances().unwrap().first().map(|fact| fact.note), Some(note));
    let stats = hv.stats().unwrap();
    assert!(
        stats.iter().any(|stats| stats.name == "test" && stats.state == InstanceState::Running),
        "{stats:?}"
    );
    let events = hv.subscribe();
    hv.suspend(id(1)).unwrap();
    hv.resume(id(1)).unwrap();
    hv.destroy(id(1)).unwrap();
    for want in [
        Lifecycle::Suspended(PauseCause::Asked),
        Lifecycle::Resumed,
        Lifecycle::Stopped(StopCause::Destroyed),
    ] {
        let event = events.recv_timeout(Duration::from_secs(20)).expect("the change is told");
        assert_eq!(event.kind, EventKind::Lifecycle { id: id(1), change: want });
    }
    assert_eq!(hv.liveness(id(1)).unwrap(), Liveness::Gone);

    hv.create(&spec(2)).unwrap();
    let ping = hv.guest_ping(id(2), SOON);
    let Err(GuestError::Ask { source, .. }) = ping else { panic!("{ping:?}") };
    assert_eq!(source.refused(), Some(RefusalKind::Unsupported));
    // It refuses the move; and what it calls the other side is itself, which has the instance.
    let moved = hv.migrate(id(2), &target("test:///default"), SOON).unwrap();
    assert!(matches!(moved, MigrationOutcome::Unknown { still_here: true, .. }), "{moved:?}");
    hv.destroy(id(2)).unwrap();
}

/// S15: what fell back before anybody listened is told to whoever does, however many times; what was fixed is not.
#[test]
fn emulation_that_nobody_asked_for_is_told_to_whoever_begins_to_listen() {
    let auto =
        LibvirtConfig { uri: "test:///default".to_owned(), pid_folder: None, ..LibvirtConfig::local() };
    let fixed = [Accelerator::Tcg, Accelerator::Kvm].map(AcceleratorSetting::Fixed);
    for accelerator in [AcceleratorSetting::Auto].into_iter().chain(fixed) {
        let hv = Libvirt::start(LibvirtConfig { accelerator, ..auto.clone() }).unwrap();
        let fell_back = accelerator == AcceleratorSetting::Auto && hv.accelerator() == Accelerator::Tcg;
        for _ in 0..2 {
            let events: Vec<_> = hv.subscribe().try_iter().map(|event| event.kind).collect();
            let reported =
                |kind: &EventKind| matches!(kind, EventKind::Emulates { reason } if !reason.is_empty());
            assert_eq!(events.iter().any(reported), fell_back, "{accelerator:?}: {events:?}");
        }
    }
}

#[test]
fn a_wrong_address_is_named_at_once_and_a_missing_libvirtd_is_waited_for() {
    for uri in ["test:///nowhere/at/all.xml", "not an address"] {
        let started =
            Libvirt::start(LibvirtConfig { uri: uri.to_owned(), pid_folder: None, ..LibvirtConfig::local() });
        let Err(StartError::Uri { uri: named, .. }) = started else { panic!("{uri} was taken") };
        assert_eq!(named, uri);
    }
    let absent = LibvirtConfig {
        uri: "qemu+unix:///system?socket=/nowhere/libvirt-sock".to_owned(),
        pid_folder: None,
        ..LibvirtConfig::local()
    };
    let hv = Libvirt::start(absent).unwrap_or_else(|error| panic!("{error}"));
    let error = hv.capacity().unwrap_err();
    assert!(matches!(error, CapacityError::Read(CallError::Down { .. })), "{error:?}");
}
