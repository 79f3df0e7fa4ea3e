//! The order of hosts, as sentences.

use understudy_policy_sdk::placement::{HostState, Part, Purpose};
use understudy_policy_sdk::testing::{self, Placement};

use crate::place;

/// Two zones with two racks of one host each, and one host more in the first rack: west/r1, west/r1, west/r2, east/r1,
/// east/r2.
fn asked() -> Placement {
    let places = [("west", "r1"), ("west", "r1"), ("west", "r2"), ("east", "r1"), ("east", "r2")];
    let asked = testing::placement(places.len()).purpose(Purpose::WarmBackup);
    (0..).zip(places).fold(asked, |asked, (row, (zone, rack))| asked.zone(row, zone).rack(row, rack))
}

#[test]
fn a_backup_goes_to_another_zone_than_the_primary() {
    assert_eq!(asked().member(0, Part::Primary).rows(place), Ok(vec![3, 4, 2, 1, 0]));
    assert_eq!(asked().member(3, Part::Primary).rows(place), Ok(vec![0, 1, 2, 4, 3]));
    // A busy host elsewhere is better than an empty one here.
    let busy = asked().member(0, Part::Primary).free_memory_mib(3, 4096).free_memory_mib(4, 2048);
    assert_eq!(busy.rows(place), Ok(vec![3, 4, 2, 1, 0]));
}

#[test]
fn a_second_backup_shares_a_zone_with_the_first_rather_than_with_the_primary() {
    let asked = asked().member(0, Part::Primary).member(3, Part::Backup);
    assert_eq!(asked.rows(place), Ok(vec![4, 3, 2, 1, 0]));
}

#[test]
fn where_no_other_zone_has_room_another_rack_will_do_and_then_another_host() {
    let no_east = asked().member(0, Part::Primary).full(3).draining(4);
    assert_eq!(no_east.rows(place), Ok(vec![2, 1, 0]));
    assert_eq!(no_east.full(2).rows(place), Ok(vec![1, 0]));
}

#[test]
fn a_host_of_no_zone_is_not_taken_to_be_elsewhere() {
    // The last host has a primary's zone, perhaps.
    let unknown = asked().zone(4, "").member(0, Part::Primary);
    assert_eq!(unknown.rows(place), Ok(vec![3, 2, 4, 1, 0]));
    // In a cluster without zones and racks this is `spread` without load.
    let plain = testing::placement(3).purpose(Purpose::WarmBackup).member(1, Part::Primary);
    assert_eq!(plain.free_memory_mib(0, 8192).rows(place), Ok(vec![2, 0, 1]));
}

#[test]
fn a_primary_that_moves_is_tied_to_its_backups_alone() {
    let moving = asked().purpose(Purpose::Migration).member(0, Part::Primary).member(3, Part::Backup);
    // Its own host has it, and so comes last of its zone.
    assert_eq!(moving.rows(place), Ok(vec![1, 2, 0, 4, 3]));
}

#[test]
fn within_a_zone_the_better_host_comes_first() {
    let first = asked().purpose(Purpose::Primary);
    assert_eq!(first.clone().idle(3, "standard", 1).rows(place), Ok(vec![3, 0, 1, 2, 4]));
    assert_eq!(first.clone().state(0, HostState::Degraded).rows(place), Ok(vec![1, 2, 3, 4, 0]));
    assert_eq!(first.clone().sibling(0).sibling(1).rows(place), Ok(vec![2, 3, 4, 0, 1]));
    assert_eq!(first.free_memory_mib(0, 8192).rows(place), Ok(vec![1, 2, 3, 4, 0]));
}

#[test]
fn reasons_name_zone_and_rack() {
    let asked = asked().purpose(Purpose::HeldBackup).member(0, Part::Primary).state(3, HostState::Degraded);
    assert_eq!(
        asked.rack(2, "").wanted(4).reasons(place).unwrap(),
        [
            "zone 'east' has no member of the node, 0 thousandths taken",
            "zone 'east' has no member of the node, degraded, 0 thousandths taken",
            "zone 'west' has the primary of the node, rack 'r1' has the primary, 0 thousandths taken",
            "zone 'west' has the primary of the node, rack unknown has the primary, 0 thousandths taken",
        ]
    );
}

#[test]
fn it_has_no_parameters() {
    let asked = asked().parameter("fallback", "none");
    assert_eq!(asked.rows(place), Err("parameter 'fallback' is unknown: this policy has none".to_owned()));
}
