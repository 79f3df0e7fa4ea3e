//! The order of hosts, as sentences.

use understudy_policy_sdk::placement::{HostState, Part, Purpose};
use understudy_policy_sdk::testing::{self, Placement};

use crate::place;

/// Four hosts with 16 GiB, 32 GiB, 48 GiB and all of 64 GiB free; the first three are in use.
fn asked() -> Placement {
    let used = |asked: Placement, row, free| asked.free_memory_mib(row, free).execution_primaries(row, 1);
    used(used(used(testing::placement(4), 0, 16_384), 1, 32_768), 2, 49_152)
}

#[test]
fn the_fullest_host_in_use_comes_first_and_an_unused_one_last() {
    assert_eq!(asked().rows(place), Ok(vec![0, 1, 2, 3]));
    // Full of idle instances is not in use: nobody's node would keep the host on.
    assert_eq!(asked().free_memory_mib(3, 8192).rows(place), Ok(vec![0, 1, 2, 3]));
    assert_eq!(asked().free_vcpus(2, 3).rows(place), Ok(vec![0, 1, 3, 2]), "processors count as well");
}

#[test]
fn a_host_that_takes_no_work_or_has_no_room_is_never_picked() {
    assert_eq!(asked().draining(0).full(1).rows(place), Ok(vec![2, 3]));
    assert_eq!(asked().state(0, HostState::Degraded).rows(place), Ok(vec![1, 2, 3, 0]));
}

#[test]
fn the_reserve_is_kept_while_another_host_is_left() {
    // 8 GiB are an eighth, of which the instance takes a quarter: 93 thousandths would be left.
    let tight = asked().free_memory_mib(0, 8192);
    assert_eq!(tight.rows(place), Ok(vec![1, 2, 3, 0]));
    assert_eq!(tight.clone().parameter("reserve-percent", "9").rows(place), Ok(vec![0, 1, 2, 3]));
    // An idle instance takes nothing more.
    assert_eq!(tight.clone().idle(0, "standard", 1).rows(place), Ok(vec![0, 1, 2, 3]));
    assert_eq!(tight.parameter("reserve-percent", "80").rows(place), Ok(vec![3, 0, 1, 2]));
}

#[test]
fn members_of_one_node_stay_apart_even_so() {
    let backup = asked().purpose(Purpose::WarmBackup).member(0, Part::Primary).member(1, Part::Backup);
    assert_eq!(backup.rows(place), Ok(vec![2, 3, 1, 0]));
}

#[test]
fn an_idle_instance_is_used_before_one_is_created_but_not_to_open_a_host() {
    assert_eq!(asked().idle(2, "standard", 1).idle(3, "standard", 1).rows(place), Ok(vec![2, 0, 1, 3]));
}

#[test]
fn reasons_say_what_was_compared() {
    let asked = asked().member(1, Part::Primary).state(2, HostState::Degraded).purpose(Purpose::HeldBackup);
    assert_eq!(
        asked.reasons(place).unwrap(),
        [
            "in use, 750 thousandths taken",
            "not in use yet, 0 thousandths taken",
            "in use, degraded, 250 thousandths taken",
            "in use, has a member of the node, 500 thousandths taken",
        ]
    );
}

#[test]
fn bad_parameters_are_refused() {
    for (key, value, text) in [
        ("reserve-percent", "91", "parameter reserve-percent='91' is no number from 0 to 90"),
        ("reserve", "1", "parameter 'reserve' is unknown: use reserve-percent"),
    ] {
        assert_eq!(asked().parameter(key, value).rows(place), Err(text.to_owned()));
    }
}
