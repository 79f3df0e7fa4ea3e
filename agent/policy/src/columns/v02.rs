//! Owns the questions in the words of the trial version 0.2, made of those of 0.1.

use crate::bindings::v01;
use crate::bindings::v02::exports::understudy::policy::{backup_count, placement};
use crate::bindings::v02::understudy::policy::types;
use crate::engine::Refusal;

use v01::exports::understudy::policy::{backup_count as old_count, placement as old};
use v01::understudy::policy::types as old_types;

/// Copies what both versions have alike: few will ask the trial version about thousands of hosts.
pub(crate) fn placement(columns: &super::Placement) -> (placement::Request, placement::Hosts) {
    let (request, hosts) = columns.clone();
    let idle = idle(&request, &hosts);
    let hosts = placement::Hosts {
        state: hosts.state.into_iter().map(host_state).collect(),
        zone: hosts.zone,
        zones: hosts.zones,
        rack: hosts.rack,
        racks: hosts.racks,
        label_start: hosts.label_start,
        label_ids: hosts.label_ids,
        labels: labels(hosts.labels),
        total_vcpus: hosts.total_vcpus,
        free_vcpus: hosts.free_vcpus,
        total_memory_mib: hosts.total_memory_mib,
        free_memory_mib: hosts.free_memory_mib,
        load_permille: hosts.load_permille,
        idle,
        display_primaries: hosts.display_primaries,
        display_backups: hosts.display_backups,
        execution_primaries: hosts.execution_primaries,
        execution_backups: hosts.execution_backups,
        migrations_in: hosts.migrations_in,
        migrations_out: hosts.migrations_out,
        restores: hosts.restores,
        checkpoint_in_kib_s: hosts.checkpoint_in_kib_s,
        checkpoint_out_kib_s: hosts.checkpoint_out_kib_s,
    };
    let member = |m: old::NodeMember| placement::NodeMember { host: m.host, part: part(m.part) };
    let sibling = |s: old::SiblingMember| placement::SiblingMember {
        host: s.host,
        role: role(s.role),
        part: part(s.part),
    };
    let request = placement::Request {
        terminal: request.terminal,
        node: request.node,
        role: role(request.role),
        purpose: purpose(request.purpose),
        wanted: request.wanted,
        reasons: request.reasons,
        vcpus: request.vcpus,
        memory_mib: request.memory_mib,
        environment: request.environment,
        terminal_labels: request.terminal_labels,
        environment_labels: request.environment_labels,
        members: request.members.into_iter().map(member).collect(),
        siblings: request.siblings.into_iter().map(sibling).collect(),
    };
    (request, hosts)
}

/// Idle instances of each row that would do for the request.
fn idle(request: &old::Request, hosts: &old::Hosts) -> Vec<u32> {
    let starts_an_instance = match request.purpose {
        old::Purpose::Primary | old::Purpose::WarmBackup => true,
        old::Purpose::HeldBackup | old::Purpose::Migration => false,
    };
    let Some(wanted) = request.template.filter(|_| starts_an_instance) else {
        return vec![0; hosts.state.len()];
    };
    let count = |row: &[u32]| {
        let entries = row[0] as usize..row[1] as usize;
        entries.filter(|&at| hosts.idle_template[at] == wanted).map(|at| hosts.idle_count[at]).sum()
    };
    hosts.idle_start.windows(2).map(count).collect()
}

pub(crate) fn backup_count(
    (request, cluster): super::BackupCount,
) -> (backup_count::Request, backup_count::Cluster) {
    let old_count::Cluster { hosts, hosts_ready, failures_last_day, deficit } = cluster;
    let request = backup_count::Request {
        terminal: request.terminal,
        node: request.node,
        role: role(request.role),
        protected: request.protected,
        terminal_labels: labels(request.terminal_labels),
        environment_labels: labels(request.environment_labels),
        backups: request.backups,
        deficit: request.deficit,
    };
    (request, backup_count::Cluster { hosts, hosts_ready, failures_last_day, deficit })
}

pub(crate) fn refusal(refusal: types::Refusal) -> Refusal {
    match refusal {
        types::Refusal::Parameters(text) => Refusal::Parameters(text),
        types::Refusal::Question(text) => Refusal::Question(text),
    }
}

fn labels(labels: Vec<old_types::Label>) -> Vec<types::Label> {
    labels.into_iter().map(|label| types::Label { key: label.key, value: label.value }).collect()
}

fn role(role: old_types::Role) -> types::Role {
    match role {
        old_types::Role::Display => types::Role::Display,
        old_types::Role::Execution => types::Role::Execution,
    }
}

fn part(part: old_types::Part) -> types::Part {
    match part {
        old_types::Part::Primary => types::Part::Primary,
        old_types::Part::Backup => types::Part::Backup,
    }
}

fn purpose(purpose: old::Purpose) -> placement::Purpose {
    match purpose {
        old::Purpose::Primary => placement::Purpose::Primary,
        old::Purpose::WarmBackup => placement::Purpose::WarmBackup,
        old::Purpose::HeldBackup => placement::Purpose::HeldBackup,
        old::Purpose::Migration => placement::Purpose::Migration,
    }
}

fn host_state(state: old::HostState) -> placement::HostState {
    match state {
        old::HostState::Ready => placement::HostState::Ready,
        old::HostState::Degraded => placement::HostState::Degraded,
        old::HostState::Draining => placement::HostState::Draining,
        old::HostState::Fenced => placement::HostState::Fenced,
        old::HostState::Unknown => placement::HostState::Unknown,
    }
}
