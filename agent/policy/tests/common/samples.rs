//! Questions, and the records of hosts and nodes that they come from.
//!
//! The tests of the agent include this file too.
#![allow(dead_code, reason = "each that includes it uses a part")]

use std::collections::BTreeMap;

use understudy_core::model::ids::{Epoch, NodeId};
use understudy_core::model::records::{Capacity, HostFacts, InstanceFact, NodeSpec, Phase, Screen};
use understudy_core::model::units::{MiB, UnixMillis, Vcpus};
use understudy_core::policy::{
    BackupCountQuestion, ClusterRow, HostRow, HostState, MemberCounts, NodeMember, Part, PlacementQuestion,
    Purpose, Traffic,
};

pub(crate) fn row(name: &str) -> HostRow {
    HostRow {
        host: name.parse().unwrap(),
        state: HostState::Ready,
        zone: String::new(),
        rack: String::new(),
        labels: BTreeMap::new(),
        total_vcpus: Vcpus(16),
        free_vcpus: Vcpus(16),
        total_memory: MiB(65_536),
        free_memory: MiB(65_536),
        load_permille: 0,
        idle: BTreeMap::new(),
        members: MemberCounts::default(),
        traffic: Traffic::default(),
    }
}

/// A first primary, on a cluster of three equal hosts.
pub(crate) fn question(terminal: &str) -> PlacementQuestion {
    PlacementQuestion {
        node: format!("{terminal}/exec-1").parse().unwrap(),
        purpose: Purpose::Primary,
        wanted: 10,
        reasons: true,
        vcpus: Vcpus(2),
        memory: MiB(2048),
        environment: "desktop".to_owned(),
        template: None,
        terminal_labels: BTreeMap::new(),
        environment_labels: BTreeMap::new(),
        members: Vec::new(),
        siblings: Vec::new(),
        hosts: ["a", "b", "c"].map(row).into(),
    }
}

/// A warm backup on a cluster of six hosts that differ: one has the primary, one is busy, one is calm, one drains, one is
/// full, and the last has an idle instance and is the busiest.
pub(crate) fn six_hosts() -> PlacementQuestion {
    let mut asked = question("alice");
    asked.purpose = Purpose::WarmBackup;
    asked.hosts = ["primary", "busy", "calm", "draining", "full", "idle"].map(row).into();
    asked.members = vec![NodeMember { host: "primary".parse().unwrap(), part: Part::Primary }];
    asked.template = Some("standard".to_owned());
    asked.hosts[1].load_permille = 900;
    asked.hosts[3].state = HostState::Draining;
    asked.hosts[4].free_memory = MiB(100);
    asked.hosts[5].load_permille = 950;
    asked.hosts[5].idle.insert("standard".to_owned(), 1);
    asked
}

/// How many backups an unprotected display is to have, on a cluster of five hosts.
pub(crate) fn count_question() -> BackupCountQuestion {
    BackupCountQuestion {
        node: "alice/display".parse().unwrap(),
        protected: false,
        terminal_labels: BTreeMap::new(),
        environment_labels: BTreeMap::new(),
        backups: 0,
        deficit: 0,
        cluster: ClusterRow { hosts: 5, hosts_ready: 5, failures_last_day: 0, deficit: 0 },
    }
}

/// An instance of a node, or of nobody.
pub(crate) fn fact(phase: Phase, node: Option<&NodeId>, epoch: Epoch) -> InstanceFact {
    InstanceFact {
        phase,
        node: node.cloned(),
        epoch,
        address: None,
        memory: MiB(512),
        vcpus: Vcpus(1),
        since: UnixMillis(0),
        windows: None,
        admitted: BTreeMap::new(),
        migration_failed: None,
    }
}

/// What a host without instances reports in its first lease.
pub(crate) fn facts(memory: MiB) -> HostFacts {
    HostFacts { lease: 1, capacity: Capacity { vcpus: Vcpus(16), memory }, ..HostFacts::default() }
}

/// An unprotected node.
pub(crate) fn spec() -> NodeSpec {
    NodeSpec {
        memory: MiB(512),
        vcpus: Vcpus(1),
        protected: false,
        environment: "desktop".to_owned(),
        applications: Vec::new(),
        labels: BTreeMap::new(),
        environment_labels: BTreeMap::new(),
        screen: Screen { width: 1280, height: 720 },
    }
}
