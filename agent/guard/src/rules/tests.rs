//! Each rule as a table.
use super::*;

const fn at(boottime_ns: u64, lease: u64) -> Deadline {
    Deadline { boottime_ns, lease }
}

#[test]
fn a_deadline_moves_forward_within_a_lease_and_leases_move_forward() {
    let far = 1_000 + AHEAD_MAX_NS;
    let table = [
        ("first", None, at(2_000, 5), Ok(())),
        ("renewed", Some(at(2_000, 5)), at(3_000, 5), Ok(())),
        ("repeated", Some(at(2_000, 5)), at(2_000, 5), Ok(())),
        ("backwards", Some(at(3_000, 5)), at(2_999, 5), Err(Refusal::Backwards)),
        ("older lease", Some(at(2_000, 5)), at(9_000, 4), Err(Refusal::OldLease)),
        ("new lease may be shorter", Some(at(9_000, 5)), at(2_000, 6), Ok(())),
        ("after the deadline", Some(at(900, 5)), at(2_000, 5), Err(Refusal::Expired)),
        ("at the deadline", Some(at(1_000, 5)), at(2_000, 5), Err(Refusal::Expired)),
        ("repeated after the deadline", Some(at(900, 5)), at(900, 5), Err(Refusal::Expired)),
        ("new lease after the deadline", Some(at(900, 5)), at(2_000, 6), Ok(())),
        ("already past", None, at(1_000, 5), Err(Refusal::PastDeadline)),
        ("new lease, already past", Some(at(500, 5)), at(900, 6), Err(Refusal::PastDeadline)),
        ("as far as allowed", None, at(far, 5), Ok(())),
        ("too far", None, at(far + 1, 5), Err(Refusal::TooFar)),
        ("overflowing", None, at(u64::MAX, 5), Err(Refusal::TooFar)),
    ];
    for (name, current, asked, expected) in table {
        assert_eq!(deadline(current, asked, 1_000), expected, "{name}");
    }
}

#[test]
fn a_deadline_is_reached_at_its_very_nanosecond() {
    assert!(!expired(None, u64::MAX));
    assert!(!expired(Some(at(1_000, 1)), 999));
    assert!(expired(Some(at(1_000, 1)), 1_000));
}

#[test]
fn only_the_lease_whose_deadline_stands_brings_a_primary_to_life() {
    let table = [
        ("nothing acknowledged yet", None, 5, Ok(())),
        ("its own", Some(at(2_000, 5)), 5, Ok(())),
        ("an older", Some(at(2_000, 5)), 4, Err(Refusal::OldLease)),
        ("a newer", Some(at(2_000, 5)), 6, Err(Refusal::NewLease)),
        ("its own, past", Some(at(1_000, 5)), 5, Err(Refusal::Expired)),
    ];
    for (name, current, lease, expected) in table {
        assert_eq!(asking(current, lease, 1_000), expected, "{name}");
    }
}

#[test]
fn a_registration_never_goes_back_an_epoch_and_never_doubles_a_process() {
    let process = Process { pid: 10, start_time: 77, inode: 5 };
    let reused = Process { pid: 10, start_time: 78, inode: 5 };
    let reused_at_once = Process { pid: 10, start_time: 77, inode: 6 };
    let held = Some(Held { epoch: 4, process });
    let table = [
        ("new", None, 1, process, Ok(Admission::Write)),
        ("repeated", held, 4, process, Ok(Admission::Repeated)),
        ("raised", held, 5, process, Ok(Admission::Write)),
        ("older", held, 3, process, Err(Refusal::OldEpoch)),
        ("older and another", held, 3, reused, Err(Refusal::OldEpoch)),
        ("another process", held, 5, reused, Err(Refusal::OtherProcess)),
        ("another within a tick", held, 4, reused_at_once, Err(Refusal::OtherProcess)),
    ];
    for (name, held, epoch, process, expected) in table {
        assert_eq!(registration(held, epoch, process), expected, "{name}");
    }
    assert_eq!(forgetting(None, 0), Ok(()));
    assert_eq!(forgetting(held, 4), Ok(()));
    assert_eq!(forgetting(held, 3), Err(Refusal::OldEpoch));
}
