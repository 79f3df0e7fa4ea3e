//! The order of hosts, as sentences.

use understudy_policy_sdk::placement::{Part, Purpose};
use understudy_policy_sdk::testing::{self, Placement};

use crate::place;

/// A terminal of the red team; rows 1 and 3 are its team's, row 2 is another's.
fn asked() -> Placement {
    let asked = testing::placement(4).terminal_label("team", "red");
    asked.label(1, "team", "red").label(2, "team", "blue").label(3, "disk", "ssd").label(3, "team", "red")
}

#[test]
fn hosts_of_the_terminals_team_come_first_and_the_emptiest_among_them() {
    assert_eq!(asked().rows(place), Ok(vec![1, 3, 0, 2]));
    assert_eq!(asked().free_memory_mib(1, 4096).free_memory_mib(0, 4096).rows(place), Ok(vec![3, 1, 2, 0]));
}

#[test]
fn a_terminal_without_the_label_goes_where_there_is_most_room() {
    let asked = asked().parameter("label", "floor").free_memory_mib(0, 4096);
    assert_eq!(asked.rows(place), Ok(vec![1, 2, 3, 0]));
}

#[test]
fn members_of_one_node_stay_apart_even_so() {
    let backup = asked().purpose(Purpose::HeldBackup).member(1, Part::Primary);
    assert_eq!(backup.rows(place), Ok(vec![3, 0, 2, 1]));
}

#[test]
fn a_host_that_would_not_do_is_never_picked() {
    assert_eq!(asked().draining(1).full(3).rows(place), Ok(vec![0, 2]));
    assert_eq!(asked().full(1).idle(1, "standard", 1).rows(place), Ok(vec![3, 1, 0, 2]));
}

#[test]
fn reasons_name_the_label_and_unknown_parameters_are_refused() {
    assert_eq!(
        asked().wanted(3).reasons(place).unwrap(),
        ["of the terminal's team, 65536 MiB free"; 2]
            .into_iter()
            .chain(["not of the terminal's team, 65536 MiB free"])
            .collect::<Vec<_>>()
    );
    let bad = asked().parameter("lable", "team").rows(place);
    assert_eq!(bad, Err("parameter 'lable' is unknown: use label".to_owned()));
}

#[test]
fn the_first_page_shows_what_the_page_of_policies_compiles() {
    let (first, policies) = (include_str!("../../../README.md"), include_str!("../../README.md"));
    let code = policies.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert!(first.contains(code), "README.md lacks\n{code}");
}
