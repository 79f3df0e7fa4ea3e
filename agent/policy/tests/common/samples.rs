//! Questions, and the records of hosts and nodes that they come from.
//!
//! The tests of the agent include this file too.
#![allow(dead_code, reason = "each that includes it uses a part")]

use std::collections::BTreeMap;

use understudy_core::policy::{HostRow, HostState, MemberCounts, PlacementQuestion, Purpose, Traffic};
use understudy_core::records::{Capacity, HostFacts, NodeSpec, Screen};
use understudy_core::units::{MiB, Vcpus};

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

/// What a host without instances reports in its first session.
pub(crate) fn facts(memory: MiB) -> HostFacts {
    HostFacts {
        session: 1,
        capacity: Capacity { vcpus: Vcpus(16), memory },
        labels: BTreeMap::new(),
        api: String::new(),
        gateway: String::new(),
        migration_uri: String::new(),
        migration_data_uri: None,
        load_milli: 0,
        instances: BTreeMap::new(),
        complaints: Vec::new(),
        policies: Default::default(),
        version: String::new(),
    }
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
