//! Components that were built for a released version of the interface and never again, asked by the host of today.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::samples::{count_question, six_hosts};
use common::{Site, settings};
use understudy_core::policy::Interface;
use understudy_policy::{Digest, PolicySet};

const PLACEMENT: &[u8] = include_bytes!("frozen/placement-0.1.0.wasm");
const BACKUP_COUNT: &[u8] = include_bytes!("frozen/backup-count-0.1.0.wasm");

/// A set of both. Rebuilt ones would show nothing of what old components survive.
fn frozen() -> PolicySet {
    let site = Site::new();
    site.add("placement", PLACEMENT);
    site.add("backup-count", BACKUP_COUNT);
    let (set, faults) = site.load(&settings(Duration::from_secs(10)));
    assert!(faults.is_empty(), "{faults:?}");
    set
}

#[test]
fn they_are_those_that_were_built_then() {
    let digests = [PLACEMENT, BACKUP_COUNT].map(|bytes| Digest::of(bytes).to_string());
    let known = [
        "aca83b22ce47de31d10642d36f879a5faccc388ea1b959923f348147ca645118",
        "91409ba37f5cb1d730b2d3d1496a2078c1b613bcba54b95e40e73d0a615801e7",
    ];
    assert_eq!(digests, known, "see frozen/README.md");
}

#[test]
fn a_placement_policy_of_0_1_0_loads_and_answers() {
    let set = frozen();
    assert_eq!(set.deciding(Interface::Placement).unwrap().name, "placement");
    let asked = six_hosts();
    let picks = set.ask_placement(&asked).outcome.unwrap().picks;
    let rows: Vec<u32> = picks.iter().map(|pick| pick.index).collect();
    assert_eq!(rows, [5, 2, 1, 0], "{picks:?}");
    let reason = "no idle instance, has the node's primary, strain 0, 65536 MiB free";
    assert_eq!(picks[3].reason.as_deref(), Some(reason));
}

#[test]
fn a_backup_count_policy_of_0_1_0_loads_answers_and_refuses() {
    let set = frozen();
    assert_eq!(set.deciding(Interface::BackupCount).unwrap().name, "backup-count");
    let mut asked = count_question();
    let mut count = |label: &str| {
        asked.terminal_labels = BTreeMap::from([("backups".to_owned(), label.to_owned())]);
        set.ask_backup_count(&asked).outcome.map(|answer| (answer.primaries, answer.backups))
    };
    assert_eq!((count("2"), count("9")), (Ok((1, 2)), Ok((1, 4))));
    let refused = count("many").unwrap_err().to_string();
    assert_eq!(
        refused,
        "policy backup-count says: label backups='many' of alice/display is no number from 0 on"
    );
}
