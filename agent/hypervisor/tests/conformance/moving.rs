//! What the double does as its site's time passes: guests that boot, and migrations that go on by themselves.

use std::time::Duration;

use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_core::model::units::{MiB, Vcpus};
use understudy_hypervisor::fake::{Course, FakeHypervisor, Left, Site};
use understudy_hypervisor::{
    ControlError, GuestCommand, GuestError, Hypervisor, InstanceState, MigrationOutcome, MigrationTarget,
    PauseCause, RestoreSpec, SaveError,
};

use crate::host::id;
use crate::simulated::{SOON, spec, target};
use crate::suite::{Pair, moves, state};

const COURSE: Course = Course { opens: SOON, takes: Duration::from_secs(3), loses_end: None };
const LONG: Duration = Duration::from_secs(60);
const KEEPALIVE: Duration = Duration::from_secs(7);

struct Two {
    site: Site,
    here: FakeHypervisor,
    there: FakeHypervisor,
}

impl Two {
    /// An instance runs here that is permitted there.
    fn new() -> Self {
        let site = Site::default();
        let host = |uri: &str| site.host(uri, Vcpus(4), MiB(4096));
        let (here, there) = (host("fake://1"), host("fake://2"));
        there.require_permits();
        here.create(&spec(1)).unwrap();
        Self { site, here, there }
    }

    /// The same with a migration under way, its number.
    fn moving(course: Course) -> (Self, u64) {
        let two = Self::new();
        two.there.permit(id(1), Epoch(1));
        let number = two.here.begin_migration(id(1), &target("fake://2"), LONG, course).unwrap();
        two.site.advance(course.opens);
        assert_eq!(two.there_is(), Some(InstanceState::Paused(PauseCause::Migration)), "a part of it");
        (two, number)
    }

    fn here_is(&self) -> Option<InstanceState> {
        state(&self.here, id(1))
    }

    fn there_is(&self) -> Option<InstanceState> {
        state(&self.there, id(1))
    }

    /// What came of it once so much time has passed.
    fn after(&self, time: Duration, number: u64) -> Option<MigrationOutcome> {
        self.site.advance(time);
        self.here.migration(number)
    }
}

impl Pair for Two {
    fn here(&self) -> &dyn Hypervisor {
        &self.here
    }
    fn there(&self) -> &dyn Hypervisor {
        &self.there
    }
    fn target(&self) -> MigrationTarget {
        target("fake://2")
    }
    fn permit_there(&self, id: InstanceId, epoch: Epoch) {
        self.there.permit(id, epoch);
    }
}

fn run(hypervisor: &dyn Hypervisor, argv: &str) -> String {
    let argv = argv.split(' ').map(str::to_owned).collect();
    let command = GuestCommand { argv, stdin: b"kept".to_vec(), deadline: SOON };
    String::from_utf8(hypervisor.guest_exec(id(1), &command).unwrap().stdout).unwrap()
}

fn stayed(outcome: Option<MigrationOutcome>, reason: &str) {
    assert!(
        matches!(&outcome, Some(MigrationOutcome::StayedHere { why }) if why.contains(reason)),
        "{outcome:?}"
    );
}

fn is_unknown(outcome: Option<MigrationOutcome>, here: bool) {
    assert!(
        matches!(&outcome, Some(MigrationOutcome::Unknown { still_here, .. }) if *still_here == here),
        "{outcome:?}"
    );
}

#[test]
fn in_the_double_an_instance_moves_as_over_qemu() {
    let two = Two::new();
    run(&two.here, "put mark");
    moves(&two, id(1));
    assert_eq!(run(&two.there, "get mark"), "kept");
}

#[test]
fn a_guest_boots_for_a_while_and_is_silent_until_then() {
    let (site, boots) = (Site::default(), 2 * SOON);
    let host = site.host("fake://1", Vcpus(4), MiB(4096));
    host.set_boot_time(boots);
    assert!(!host.create(&spec(1)).unwrap().agent_connected);
    host.set_frozen(true);
    site.advance(boots);
    host.set_frozen(false);
    let silent = host.guest_ping(id(1), SOON);
    assert!(matches!(silent, Err(GuestError::Silent { .. })), "it stood still: {silent:?}");
    site.advance(SOON);
    host.guest_ping(id(1), SOON).unwrap();
}

#[test]
fn a_migration_goes_on_by_itself_and_what_has_come_in_part_does_not_run() {
    let (two, number) = Two::moving(COURSE);
    assert_eq!(two.after(COURSE.takes / 2, number), None);
    assert_eq!(two.here_is(), Some(InstanceState::Running));
    assert!(matches!(two.there.resume(id(1)), Err(ControlError::Change { .. })));
    let saved = two.here.save_memory(id(1), "/images/busy".as_ref(), SOON);
    assert!(matches!(saved, Err(SaveError::Save { .. })), "{saved:?}");
    is_unknown(Some(two.here.migrate(id(1), &target("fake://2"), LONG).unwrap()), true);
    let moved = two.after(COURSE.takes / 2, number);
    assert!(matches!(moved, Some(MigrationOutcome::Moved { .. })), "{moved:?}");
    assert_eq!(two.here_is(), None);
    assert_eq!(two.there_is(), Some(InstanceState::Paused(PauseCause::Asked)));
    two.there.resume(id(1)).unwrap();
}

#[test]
fn who_does_not_hear_of_the_end_says_that_it_has_stayed() {
    for (left, here) in [
        (Left::Running, InstanceState::Running),
        (Left::Paused, InstanceState::Paused(PauseCause::Migration)),
    ] {
        let (two, number) = Two::moving(Course { loses_end: Some(left), ..COURSE });
        stayed(two.after(COURSE.takes, number), "never ran");
        assert_eq!(two.here_is(), Some(here));
        assert_eq!(two.there_is(), Some(InstanceState::Paused(PauseCause::Asked)));
        two.here.resume(id(1)).unwrap();
    }
}

#[test]
fn a_broken_connection_ends_it_and_a_side_that_stands_still_holds_it_up() {
    let (two, number) = Two::moving(COURSE);
    for frozen in [&two.here, &two.there] {
        frozen.set_frozen(true);
        assert_eq!(two.after(LONG / 4, number), None);
        frozen.set_frozen(false);
    }
    two.site.set_reach("fake://1", "fake://2", false);
    assert_eq!(two.after(KEEPALIVE / 2, number), None, "less than a keepalive is none");
    stayed(two.after(KEEPALIVE, number), "does not answer");
    assert_eq!((two.here_is(), two.there_is()), (Some(InstanceState::Running), None));
}

#[test]
fn a_side_that_ends_it_ends_the_migration() {
    let (two, number) = Two::moving(COURSE);
    two.there.destroy(id(1)).unwrap();
    stayed(two.after(SOON, number), "gave it up");
    let (two, number) = Two::moving(COURSE);
    two.here.abort_job(id(1)).unwrap();
    stayed(two.here.migration(number), "cancelled");
    assert_eq!(two.there_is(), None);
    let (two, number) = Two::moving(Course { takes: 2 * LONG, ..COURSE });
    stayed(two.after(LONG, number), "takes too long");
    let (two, number) = Two::moving(COURSE);
    two.here.kill(id(1));
    is_unknown(two.after(SOON, number), false);
    assert_eq!(two.there_is(), None);
    let (two, number) = Two::moving(COURSE);
    two.there.power_off();
    stayed(two.after(SOON, number), "does not answer");
}

#[test]
fn images_outlive_the_power_and_permits_do_not() {
    let two = Two::new();
    two.here.save_memory(id(1), "/images/one".as_ref(), SOON).unwrap();
    two.there.permit(id(1), Epoch(1));
    for host in [&two.here, &two.there] {
        host.power_off();
        host.power_on();
    }
    let spec = RestoreSpec {
        image: "/images/one".into(),
        id: id(1),
        template: spec(1).template,
        role_disk: None,
        note: Default::default(),
    };
    assert!(two.there.restore(&spec).is_err(), "it is not permitted any more");
    assert_eq!(two.here.restore(&spec).unwrap().id, id(1));
}
