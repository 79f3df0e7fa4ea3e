//! Owns the questions that every policy must answer before it is used: small, but with something in every column.

use std::collections::BTreeMap;

use understudy_core::model::ids::{HostId, NodeId, Role};
use understudy_core::model::units::{MiB, Vcpus};
use understudy_core::policy::{
    BackupCountQuestion, ClusterRow, HostRow, HostState, MemberCounts, NodeMember, Part, PlacementQuestion,
    Purpose, SiblingMember, Traffic,
};

const TEMPLATE: &str = "standard";

fn node() -> NodeId {
    "trial/exec-1".parse().expect("the name of a node")
}

fn host(name: &str) -> HostId {
    name.parse().expect("the name of a host")
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn row(name: &str, zone: &str, state: HostState, free_memory: MiB) -> HostRow {
    HostRow {
        host: host(name),
        state,
        zone: zone.to_owned(),
        rack: String::new(),
        labels: labels(&[("disk", "fast")]),
        total_vcpus: Vcpus(16),
        free_vcpus: Vcpus(8),
        total_memory: MiB(65_536),
        free_memory,
        load_permille: 250,
        idle: BTreeMap::from([(TEMPLATE.to_owned(), 1)]),
        members: MemberCounts { display_primaries: 1, execution_backups: 1, ..MemberCounts::default() },
        traffic: Traffic { migrations_in: 1, checkpoint_in_kib_s: 900, ..Traffic::default() },
    }
}

/// A warm backup, on a cluster of three hosts of which two take work.
pub(crate) fn placement() -> PlacementQuestion {
    PlacementQuestion {
        node: node(),
        purpose: Purpose::WarmBackup,
        wanted: 3,
        reasons: true,
        vcpus: Vcpus(2),
        memory: MiB(2048),
        environment: "desktop".to_owned(),
        template: Some(TEMPLATE.to_owned()),
        terminal_labels: labels(&[("floor", "2")]),
        environment_labels: labels(&[("disk", "fast")]),
        members: vec![NodeMember { host: host("a"), part: Part::Primary }],
        siblings: vec![SiblingMember { host: host("b"), role: Role::Display, part: Part::Primary }],
        hosts: [
            row("a", "east", HostState::Ready, MiB(32_768)),
            row("b", "east", HostState::Ready, MiB(16_384)),
            row("c", "", HostState::Draining, MiB(65_536)),
        ]
        .into(),
    }
}

/// A node without labels.
pub(crate) fn backup_count() -> BackupCountQuestion {
    BackupCountQuestion {
        node: node(),
        protected: true,
        terminal_labels: labels(&[("floor", "2")]),
        environment_labels: labels(&[("disk", "fast")]),
        backups: 0,
        deficit: 1,
        cluster: ClusterRow { hosts: 3, hosts_ready: 2, failures_last_day: 1, deficit: 1 },
    }
}
