//! The view over the columns, as sentences.

use std::cmp::Reverse;

use super::{Answer, Host, HostState, Kin, Part, Purpose, Question};
use crate::testing::{self, Placement};

/// What a row says, whatever it is.
fn of_row<T>(asked: &Placement, row: u32, read: impl FnOnce(Host<'_>) -> T) -> T {
    read(Question::new(&asked.request, &asked.hosts, &asked.parameters).host(row).unwrap())
}

#[test]
fn a_row_reads_its_own_numbers() {
    let asked = testing::placement(3)
        .state(1, HostState::Degraded)
        .free_vcpus(1, 4)
        .free_memory_mib(1, 32_768)
        .load_permille(1, 700)
        .display_primaries(1, 1)
        .execution_backups(1, 2)
        .migrations_in(1, 3)
        .restores(1, 1)
        .checkpoint_out_kib_s(1, 9);
    of_row(&asked, 1, |host| {
        assert_eq!((host.row(), host.state(), host.is_degraded()), (1, HostState::Degraded, true));
        assert_eq!((host.total_vcpus(), host.free_vcpus()), (16, 4));
        assert_eq!((host.total_memory_mib(), host.free_memory_mib()), (65_536, 32_768));
        assert_eq!((host.load_permille(), host.taken_permille()), (700, 750));
        assert_eq!((host.members(), host.moves()), (3, 4));
        assert_eq!((host.checkpoint_in_kib_s(), host.checkpoint_out_kib_s()), (0, 9));
    });
    of_row(&asked, 2, |host| assert_eq!((host.members(), host.taken_permille()), (0, 0)));
    let question = Question::new(&asked.request, &asked.hosts, &asked.parameters);
    assert_eq!(question.hosts().map(|h| h.row()).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(question.host(3).is_none());
}

#[test]
fn of_nothing_all_is_taken() {
    let asked = testing::placement(1).total_memory_mib(0, 0).free_memory_mib(0, 7);
    assert_eq!(of_row(&asked, 0, |host| host.taken_permille()), 1000);
}

#[test]
fn labels_zones_and_racks_are_those_of_the_row() {
    let asked = testing::placement(3)
        .label(0, "disk", "ssd")
        .label(2, "disk", "hdd")
        .label(2, "team", "red")
        .label(1, "team", "red")
        .terminal_label("team", "red")
        .environment_label("disk", "ssd")
        .zone(2, "east")
        .rack(1, "r7");
    let question = Question::new(&asked.request, &asked.hosts, &asked.parameters);
    let values: Vec<_> = question.hosts().map(|h| (h.label("disk"), h.label("team"))).collect();
    assert_eq!(values, [(Some("ssd"), None), (None, Some("red")), (Some("hdd"), Some("red"))]);
    let team = question.terminal_label("team").unwrap();
    assert_eq!(question.hosts().map(|h| h.has(team)).collect::<Vec<_>>(), [false, true, true]);
    assert_eq!(question.environment_label("disk").map(|l| l.value), Some("ssd"));
    assert_eq!((question.terminal_label("disk"), question.environment_label("team")), (None, None));
    let places: Vec<_> = question.hosts().map(|h| (h.zone(), h.rack())).collect();
    assert_eq!(places, [("", ""), ("", "r7"), ("east", "")]);
    assert_eq!(of_row(&asked, 0, |h| h.zone_id()), of_row(&asked, 1, |h| h.zone_id()));
}

#[test]
fn only_an_idle_instance_that_would_do_makes_up_for_room() {
    let asked = testing::placement(3).full(0).full(1).idle(0, "standard", 2).idle(1, "other", 1);
    let suiting = |purpose| {
        let asked = asked.clone().purpose(purpose);
        let question = Question::new(&asked.request, &asked.hosts, &asked.parameters);
        question.hosts().map(|h| (h.suits(), h.is_cold())).collect::<Vec<_>>()
    };
    for purpose in [Purpose::Primary, Purpose::WarmBackup] {
        assert_eq!(suiting(purpose), [(true, false), (false, true), (true, true)], "{purpose:?}");
    }
    for purpose in [Purpose::HeldBackup, Purpose::Migration] {
        assert_eq!(suiting(purpose), [(false, false), (false, false), (true, false)], "{purpose:?}");
    }
    let question = Question::new(&asked.request, &asked.hosts, &asked.parameters);
    let other = question.template("other").unwrap();
    assert_eq!(question.hosts().map(|h| h.idle(other)).collect::<Vec<_>>(), [0, 1, 0]);
    assert_eq!(question.template("none"), None);
}

#[test]
fn a_host_that_takes_no_work_does_not_suit() {
    for (state, suits) in [
        (HostState::Ready, true),
        (HostState::Degraded, true),
        (HostState::Draining, false),
        (HostState::Fenced, false),
        (HostState::Unknown, false),
    ] {
        assert_eq!(of_row(&testing::placement(1).state(0, state), 0, |h| h.suits()), suits, "{state:?}");
    }
}

#[test]
fn members_are_known_by_row_and_the_primary_weighs_most() {
    let asked = testing::placement(4)
        .member(0, Part::Primary)
        .member(0, Part::Backup)
        .member(1, Part::Backup)
        .member(99, Part::Backup)
        .sibling(1)
        .sibling(1)
        .sibling(99);
    let question = Question::new(&asked.request, &asked.hosts, &asked.parameters);
    let kin: Vec<_> = question.hosts().map(|h| h.kin()).collect();
    assert_eq!(kin, [Kin::Primary, Kin::Backup, Kin::None, Kin::None]);
    assert_eq!(question.hosts().map(|h| h.siblings()).collect::<Vec<_>>(), [0, 2, 0, 0]);
    let staying = |asked: &Placement| {
        let question = Question::new(&asked.request, &asked.hosts, &asked.parameters);
        question.staying_members().map(|(h, _)| h.row()).collect::<Vec<_>>()
    };
    assert_eq!(staying(&asked), [0, 0, 1]);
    assert_eq!(staying(&asked.purpose(Purpose::Migration)), [0, 1]);
}

/// Most free memory first, with a reason.
fn emptiest(question: &Question<'_>) -> Answer {
    let least = question.parameters(|p| p.number("least-mib", 0, 0..=u32::MAX))?;
    Ok(question.best_because(
        |host| (host.free_memory_mib() >= least.into()).then(|| Reverse(host.free_memory_mib())),
        |host, Reverse(free)| format!("row {} has {free} MiB", host.row()),
    ))
}

#[test]
fn the_best_come_first_equals_in_order_of_rows_and_only_as_many_as_are_wanted() {
    let asked = testing::placement(5).free_memory_mib(0, 10).free_memory_mib(3, 70_000);
    assert_eq!(asked.rows(emptiest), Ok(vec![3, 1, 2, 4, 0]));
    assert_eq!(asked.clone().wanted(2).rows(emptiest), Ok(vec![3, 1]));
    assert_eq!(asked.clone().wanted(0).rows(emptiest), Ok(Vec::new()));
    assert_eq!(asked.parameter("least-mib", "70000").rows(emptiest), Ok(vec![3]));
}

#[test]
fn reasons_are_made_only_where_they_are_read() {
    let asked = testing::placement(2).free_memory_mib(0, 10).wanted(1);
    assert_eq!(asked.picks(emptiest).unwrap()[0].reason, None);
    assert_eq!(asked.reasons(emptiest), Ok(vec!["row 1 has 65536 MiB".to_owned()]));
}

#[test]
fn parameters_that_are_not_read_are_refused() {
    let asked = testing::placement(1).parameter("most-mib", "1");
    assert_eq!(asked.rows(emptiest), Err("parameter 'most-mib' is unknown: use least-mib".to_owned()));
}
