//! The shipped rules that are not the default: what each is for, seen through the host.

use understudy_core::model::units::MiB;
use understudy_core::policy::{HostState, NodeMember, Part, PlacementQuestion, Purpose};

use crate::common::{question, row};
use crate::one::One;
use crate::shipped;

/// A warm backup of a node whose primary is on the first host.
fn backup(hosts: &[&str]) -> PlacementQuestion {
    let mut asked = question("alice");
    asked.purpose = Purpose::WarmBackup;
    asked.hosts = hosts.iter().map(|name| row(name)).collect();
    asked.members = vec![NodeMember { host: hosts[0].parse().unwrap(), part: Part::Primary }];
    asked
}

#[test]
#[ignore = "needs the wasm target"]
fn pack_fills_hosts_in_use_down_to_their_reserve() {
    let pack = shipped("pack");
    let mut asked = backup(&["primary", "empty", "fullest", "full", "draining", "tight"]);
    for (row, free) in [(2, 16_384), (3, 32_768), (4, 32_768), (5, 8192)] {
        asked.hosts[row].free_memory = MiB(free);
        asked.hosts[row].members.execution_primaries = 1;
    }
    asked.hosts[4].state = HostState::Draining;
    let rows = |parameters| One::load("pack", &pack, parameters).unwrap().rows(&asked);
    assert_eq!(rows(&[]), Ok(vec![2, 3, 1, 5, 0]));
    assert_eq!(rows(&[("reserve-percent", "0")]), Ok(vec![5, 2, 3, 1, 0]));
    let fault = One::load("pack", &pack, &[("reserve-percent", "95")]).err().unwrap();
    assert!(fault.contains("reserve-percent='95' is no number from 0 to 90"), "{fault}");
}

#[test]
#[ignore = "needs the wasm target"]
fn zones_keeps_a_backup_out_of_the_primarys_zone_and_falls_back_to_its_racks() {
    let zones = shipped("zones");
    let mut asked = backup(&["primary", "same-rack", "other-rack", "other-zone", "nowhere"]);
    let places = [("west", "r1"), ("west", "r1"), ("west", "r2"), ("east", "r1"), ("", "")];
    for (host, (zone, rack)) in asked.hosts.iter_mut().zip(places) {
        (host.zone, host.rack) = (zone.to_owned(), rack.to_owned());
    }
    let zones = One::load("zones", &zones, &[]).unwrap();
    assert_eq!(zones.rows(&asked), Ok(vec![3, 2, 1, 4, 0]));
    asked.hosts[3].free_memory = MiB(0);
    let picks = zones.place(&asked).unwrap();
    assert_eq!(picks.iter().map(|p| p.index).collect::<Vec<_>>(), [2, 1, 4, 0]);
    assert_eq!(
        picks[0].reason.as_deref(),
        Some(
            "zone 'west' has the primary of the node, rack 'r2' has no member, no idle instance, 0 thousandths taken"
        )
    );
}

#[test]
#[ignore = "needs the wasm target"]
fn affinity_prefers_the_hosts_that_have_the_terminals_label() {
    let affinity = shipped("affinity");
    let mut asked = question("alice");
    let label = |value: &str| ("team".to_owned(), value.to_owned());
    asked.terminal_labels = [label("red")].into();
    asked.hosts[1].labels = [label("blue")].into();
    asked.hosts[2].labels = [label("red")].into();
    let rows = |parameters| One::load("affinity", &affinity, parameters).unwrap().rows(&asked);
    assert_eq!(rows(&[]), Ok(vec![2, 0, 1]));
    assert_eq!(rows(&[("label", "floor")]), Ok(vec![0, 1, 2]));
}
