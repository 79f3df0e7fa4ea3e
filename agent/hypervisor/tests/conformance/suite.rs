//! The suite: what holds for every hypervisor.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_core::model::units::MiB;
use understudy_hypervisor::{
    ControlError, CreateError, EventKind, GuestCommand, GuestError, Hypervisor, InstanceSpec, InstanceState,
    Lifecycle, Liveness, MigrateError, MigrationOutcome, MigrationTarget, Note, PauseCause, RestoreError,
    RestoreSpec, RoleDiskError, SaveError, SnapshotError, StopCause, Tier,
};

use crate::host::{LONG, chain, fact, until};

/// What the suite needs to know of the hypervisor under test.
pub(crate) trait Bed {
    fn hypervisor(&self) -> &dyn Hypervisor;
    fn spec(&self, number: u8) -> InstanceSpec;
    /// Lets an instance come to life once.
    fn permit(&self, id: InstanceId, epoch: Epoch);
    /// The command that keeps its input in the guest's memory, and the one that prints it.
    fn put(&self) -> Vec<String>;
    fn get(&self) -> Vec<String>;
    /// The command that exits with 7, and the one that does not end.
    fn exit_7(&self) -> Vec<String>;
    fn hang(&self) -> Vec<String>;
    fn image(&self, name: &str) -> PathBuf;
    fn role_disk(&self) -> PathBuf;
    fn damaged_role_disk(&self) -> PathBuf;
    fn damage_image(&self, path: &Path);
    /// Makes a file of what a snapshot is.
    fn keep(&self, image: File) -> PathBuf;
    /// Time goes by itself, or does it here.
    fn time_passes(&self) {}
}

/// Two hosts, and what the suite needs to know of them.
pub(crate) trait Pair {
    fn here(&self) -> &dyn Hypervisor;
    fn there(&self) -> &dyn Hypervisor;
    fn target(&self) -> MigrationTarget;
    /// Lets an instance come to life there once.
    fn permit_there(&self, id: InstanceId, epoch: Epoch);
}

const SHORT: Duration = Duration::from_secs(30);

fn run(bed: &dyn Bed, id: InstanceId, argv: Vec<String>, stdin: &str) -> (i32, String) {
    let command = GuestCommand { argv, stdin: stdin.as_bytes().to_vec(), deadline: SHORT };
    let output =
        bed.hypervisor().guest_exec(id, &command).unwrap_or_else(|error| panic!("{}", chain(&error)));
    (output.exit, String::from_utf8(output.stdout).expect("text"))
}

pub(crate) fn state(hypervisor: &dyn Hypervisor, id: InstanceId) -> Option<InstanceState> {
    fact(hypervisor, id).map(|fact| fact.state)
}

/// The whole suite, in the order of an instance's life.
pub(crate) fn conforms(bed: &dyn Bed) {
    nothing_is_there_at_first(bed);
    an_instance_is_created_once(bed);
    the_guest_does_as_it_is_told(bed);
    the_role_disk_is_given_once(bed);
    links_pauses_and_notes_are_as_asked(bed);
    a_snapshot_is_of_its_moment(bed);
    memory_survives_its_instance(bed);
    an_instance_ends_and_stays_ended(bed);
}

fn nothing_is_there_at_first(bed: &dyn Bed) {
    let (hv, id) = (bed.hypervisor(), bed.spec(1).id);
    assert_eq!(hv.instances().unwrap(), Vec::new());
    assert_eq!(hv.liveness(id).unwrap(), Liveness::Gone);
    let capacity = hv.capacity().unwrap();
    assert!(capacity.memory_total >= capacity.memory_free && capacity.memory_free > MiB(0), "{capacity:?}");
    assert!(capacity.vcpus.0 > 0);
    hv.destroy(id).unwrap();
    assert!(matches!(hv.guest_ping(id, SHORT), Err(GuestError::NoInstance(_))));
    assert!(matches!(hv.resume(id), Err(ControlError::NoInstance(_))));
    assert!(matches!(hv.suspend(id), Err(ControlError::NoInstance(_))));
    assert!(matches!(hv.set_link(id, true), Err(ControlError::NoInstance(_))));
    assert!(matches!(hv.set_note(id, &Note::default()), Err(ControlError::NoInstance(_))));
    assert!(matches!(hv.attach_role_disk(id, &bed.role_disk()), Err(RoleDiskError::NoInstance(_))));
    assert!(matches!(hv.save_memory(id, &bed.image("none"), SHORT), Err(SaveError::NoInstance(_))));
    assert!(matches!(hv.snapshot_memory(id, SHORT), Err(SnapshotError::NoInstance(_))));
    let target = MigrationTarget {
        uri: "qemu+tls://nowhere/system".to_owned(),
        tls: false,
        tls_name: None,
        data_uri: None,
        bandwidth: None,
    };
    assert!(matches!(hv.migrate(id, &target, SHORT), Err(MigrateError::NoInstance(_))));
}

fn an_instance_is_created_once(bed: &dyn Bed) {
    let (hv, spec) = (bed.hypervisor(), bed.spec(1));
    let refused = hv.create(&spec);
    assert!(matches!(refused, Err(CreateError::NotPermitted { .. })), "{refused:?}");
    assert_eq!(hv.instances().unwrap(), Vec::new());
    bed.permit(spec.id, spec.note.epoch);
    let made = hv.create(&spec).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!((made.id, made.name.as_str(), made.note), (spec.id, spec.name.as_str(), spec.note));
    assert_eq!((made.memory, made.vcpus, made.state), (spec.memory, spec.vcpus, InstanceState::Running));
    assert!(made.pid.is_some() && made.mac.is_some() && made.link_up && made.role_disk.is_none(), "{made:?}");
    // Once more needs no permit, because nothing comes to life.
    let again = hv.create(&spec).unwrap();
    assert_eq!((again.id, again.pid, again.mac), (made.id, made.pid, made.mac));
    assert_eq!(hv.liveness(spec.id).unwrap(), Liveness::Known(InstanceState::Running));
    let namesake = InstanceSpec { id: bed.spec(2).id, ..spec.clone() };
    bed.permit(namesake.id, namesake.note.epoch);
    let refused = hv.create(&namesake);
    assert!(matches!(refused, Err(CreateError::Taken { .. })), "{refused:?}");
    let stats = hv.stats().unwrap();
    assert!(
        stats.iter().any(|stats| stats.id == spec.id && stats.state == InstanceState::Running),
        "{stats:?}"
    );
}

fn the_guest_does_as_it_is_told(bed: &dyn Bed) {
    let (hv, id) = (bed.hypervisor(), bed.spec(1).id);
    until("the guest's agent answers", || {
        bed.time_passes();
        hv.guest_ping(id, Duration::from_secs(3)).is_ok()
    });
    until("its channel is seen as open", || fact(hv, id).is_some_and(|fact| fact.agent_connected));
    assert_eq!(run(bed, id, bed.put(), "first\n<&\"'\u{e9}").0, 0);
    assert_eq!(run(bed, id, bed.get(), "").1, "first\n<&\"'\u{e9}");
    assert_eq!(run(bed, id, bed.exit_7(), "").0, 7);
    let forever = GuestCommand { argv: bed.hang(), stdin: Vec::new(), deadline: Duration::from_secs(1) };
    let late = hv.guest_exec(id, &forever);
    assert!(matches!(late, Err(GuestError::TimedOut { .. } | GuestError::Silent { .. })), "{late:?}");
    hv.guest_set_time(id).unwrap_or_else(|error| panic!("{}", chain(&error)));
}

fn the_role_disk_is_given_once(bed: &dyn Bed) {
    let (hv, id, disk) = (bed.hypervisor(), bed.spec(1).id, bed.role_disk());
    let missing = hv.attach_role_disk(id, Path::new("/nowhere/role.erofs"));
    assert!(matches!(missing, Err(RoleDiskError::Missing { .. })), "{missing:?}");
    let damaged = hv.attach_role_disk(id, &bed.damaged_role_disk());
    assert!(matches!(damaged, Err(RoleDiskError::Damaged { .. })), "{damaged:?}");
    hv.attach_role_disk(id, &disk).unwrap_or_else(|error| panic!("{}", chain(&error)));
    hv.attach_role_disk(id, &disk).unwrap();
    assert_eq!(fact(hv, id).unwrap().role_disk, Some(disk));
}

fn links_pauses_and_notes_are_as_asked(bed: &dyn Bed) {
    let (hv, id) = (bed.hypervisor(), bed.spec(1).id);
    for up in [false, false, true, true] {
        hv.set_link(id, up).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(fact(hv, id).unwrap().link_up, up);
    }
    let events = hv.subscribe();
    for _ in 0..2 {
        hv.suspend(id).unwrap();
        assert_eq!(state(hv, id), Some(InstanceState::Paused(PauseCause::Asked)));
    }
    let not_running = hv.save_memory(id, &bed.image("paused"), SHORT);
    assert!(matches!(not_running, Err(SaveError::NotRunning(_))), "{not_running:?}");
    let not_running = hv.snapshot_memory(id, SHORT);
    assert!(matches!(not_running, Err(SnapshotError::NotRunning(_))), "{not_running:?}");
    for _ in 0..2 {
        hv.resume(id).unwrap();
        assert_eq!(state(hv, id), Some(InstanceState::Running));
    }
    for want in [Lifecycle::Suspended(PauseCause::Asked), Lifecycle::Resumed] {
        loop {
            let event = events.recv_timeout(SHORT).expect("the change is told");
            if event.kind == (EventKind::Lifecycle { id, change: want }) {
                break;
            }
        }
    }
    let note = Note { epoch: Epoch(4), address: Some("10.77.1.200".parse().unwrap()) };
    hv.set_note(id, &note).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(fact(hv, id).unwrap().note, note);
    hv.abort_job(id).unwrap_or_else(|error| panic!("{}", chain(&error)));
}

fn a_snapshot_is_of_its_moment(bed: &dyn Bed) {
    let (hv, id, note) = (bed.hypervisor(), bed.spec(1).id, Note { epoch: Epoch(4), address: None });
    let folder = bed.image("any");
    let tier = hv.probe_snapshots(folder.parent().unwrap()).unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(tier, Tier::Background);
    for mark in ["first\n<&\"'\u{e9}", "first\n<&\"'\u{e9}"] {
        let snapshot = hv.snapshot_memory(id, LONG).unwrap_or_else(|e| panic!("{}", chain(&e)));
        eprintln!("figure: {:?}", snapshot.saved);
        let saved = snapshot.saved;
        assert!(saved.bytes > 1 << 20 && saved.pause <= saved.took, "{saved:?}");
        assert_eq!(state(hv, id), Some(InstanceState::Running), "it goes on");
        assert_eq!(run(bed, id, bed.put(), "later").0, 0);
        let image = bed.keep(snapshot.image);
        hv.destroy(id).unwrap_or_else(|error| panic!("{}", chain(&error)));
        bed.permit(id, note.epoch);
        let (template, role_disk) = (bed.spec(1).template, Some(bed.role_disk()));
        let back = hv.restore(&RestoreSpec { image, id, template, role_disk, note });
        let back = back.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!((back.note, back.link_up), (note, false));
        hv.set_link(id, true).unwrap();
        hv.resume(id).unwrap();
        until("the guest's agent answers", || {
            bed.time_passes();
            hv.guest_ping(id, Duration::from_secs(3)).is_ok()
        });
        assert_eq!(run(bed, id, bed.get(), "").1, mark, "its memory is that of the snapshot");
    }
}

fn memory_survives_its_instance(bed: &dyn Bed) {
    let (hv, id, image) = (bed.hypervisor(), bed.spec(1).id, bed.image("one"));
    let saved =
        hv.save_memory(id, &image, Duration::from_secs(120)).unwrap_or_else(|e| panic!("{}", chain(&e)));
    eprintln!("figure: {saved:?}");
    assert!(saved.bytes > 1 << 20 && saved.pause <= saved.took, "{saved:?}");
    assert_eq!(state(hv, id), Some(InstanceState::Running), "it goes on after the save");
    assert_eq!(run(bed, id, bed.put(), "later").0, 0);
    let mut spec = RestoreSpec {
        image: image.clone(),
        id,
        template: bed.spec(1).template,
        role_disk: Some(bed.role_disk()),
        note: Note { epoch: Epoch(5), address: Some("10.77.1.200".parse().unwrap()) },
    };
    assert!(matches!(hv.restore(&spec), Err(RestoreError::AlreadyHere(_))));
    hv.destroy(id).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let refused = hv.restore(&spec);
    assert!(matches!(refused, Err(RestoreError::NotPermitted { .. })), "{refused:?}");
    bed.permit(id, Epoch(3));
    let refused = hv.restore(&spec);
    assert!(matches!(refused, Err(RestoreError::NotPermitted { .. })), "older than its note: {refused:?}");
    bed.permit(id, Epoch(5));
    spec.id = bed.spec(3).id;
    assert!(matches!(hv.restore(&spec), Err(RestoreError::OtherInstance { .. })));
    spec.id = id;
    spec.image = bed.image("nowhere");
    assert!(matches!(hv.restore(&spec), Err(RestoreError::Image { .. })));
    spec.image = image.clone();
    let begun = Instant::now();
    let back = hv.restore(&spec).unwrap_or_else(|error| panic!("{}", chain(&error)));
    eprintln!("figure: restored in {:?}", begun.elapsed());
    assert_eq!((back.id, back.note, back.link_up), (id, spec.note, false));
    assert_eq!(back.state, InstanceState::Paused(PauseCause::Migration));
    assert_eq!(back.role_disk, spec.role_disk);
    hv.set_link(id, true).unwrap_or_else(|error| panic!("{}", chain(&error)));
    hv.resume(id).unwrap();
    until("the guest's agent answers", || {
        bed.time_passes();
        hv.guest_ping(id, Duration::from_secs(3)).is_ok()
    });
    hv.guest_set_time(id).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(run(bed, id, bed.get(), "").1, "first\n<&\"'\u{e9}", "its memory is that of the save");
    assert!(fact(hv, id).unwrap().link_up);
    hv.destroy(id).unwrap();
    bed.permit(id, Epoch(6));
    bed.damage_image(&image);
    let damaged = hv.restore(&spec);
    assert!(
        matches!(damaged, Err(RestoreError::Damaged { .. } | RestoreError::Restore { .. })),
        "{damaged:?}"
    );
    assert_eq!(hv.liveness(id).unwrap(), Liveness::Gone);
}

fn an_instance_ends_and_stays_ended(bed: &dyn Bed) {
    let (hv, mut spec) = (bed.hypervisor(), bed.spec(1));
    spec.note.epoch = Epoch(7);
    bed.permit(spec.id, Epoch(7));
    let pid = hv.create(&spec).unwrap_or_else(|error| panic!("{}", chain(&error))).pid.expect("a process");
    let events = hv.subscribe();
    hv.destroy(spec.id).unwrap();
    assert_eq!(hv.liveness(spec.id).unwrap(), Liveness::Gone);
    assert_eq!(state(hv, spec.id), None);
    let (mut died, mut stopped) = (false, false);
    while !(died && stopped) {
        match events.recv_timeout(SHORT).expect("its end is told twice: by its process and by libvirt").kind {
            EventKind::Died { id, pid: of } if id == spec.id => {
                assert_eq!(of, pid);
                died = true;
            }
            EventKind::Lifecycle { id, change: Lifecycle::Stopped(cause) } if id == spec.id => {
                assert_eq!(cause, StopCause::Destroyed);
                stopped = true;
            }
            _ => {}
        }
    }
    hv.destroy(spec.id).unwrap();
}

/// An instance that runs here moves: only where and in which epoch it is permitted, as a whole, and paused.
pub(crate) fn moves(pair: &dyn Pair, id: InstanceId) {
    let (here, there, target) = (pair.here(), pair.there(), pair.target());
    let before = fact(here, id).expect("it runs here");
    let note = Note { epoch: Epoch(3), ..before.note };
    here.set_note(id, &note).unwrap();
    let refused = here.migrate(id, &target, LONG).unwrap();
    let MigrationOutcome::StayedHere { why } = &refused else { panic!("{refused:?}") };
    assert!(why.contains("there is no permit"), "{why}");
    assert_eq!((state(here, id), state(there, id)), (Some(InstanceState::Running), None));
    pair.permit_there(id, Epoch(2));
    let refused = here.migrate(id, &target, LONG).unwrap();
    assert!(matches!(refused, MigrationOutcome::StayedHere { .. }), "older than its note: {refused:?}");

    pair.permit_there(id, Epoch(3));
    let events = here.subscribe();
    let moved = here.migrate(id, &target, LONG).unwrap();
    eprintln!("figure: {moved:?}");
    assert!(matches!(moved, MigrationOutcome::Moved { .. }), "{moved:?}");
    assert_eq!(here.liveness(id).unwrap(), Liveness::Gone);
    let reported: Vec<EventKind> = events.try_iter().map(|event| event.kind).collect();
    let left = EventKind::Lifecycle { id, change: Lifecycle::Stopped(StopCause::Migrated) };
    assert!(reported.contains(&left), "{reported:?}");
    let arrived = fact(there, id).expect("it is there");
    assert_eq!((arrived.note, &arrived.role_disk), (note, &before.role_disk));
    assert!(
        matches!(arrived.state, InstanceState::Paused(PauseCause::Asked | PauseCause::Migration)),
        "{arrived:?}"
    );
    there.resume(id).unwrap();
    until("its agent answers there", || there.guest_ping(id, Duration::from_secs(3)).is_ok());
}
