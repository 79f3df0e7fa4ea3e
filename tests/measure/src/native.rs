//! Owns the floor of a placement question: the rule of the policy `spread`, compiled for this machine.
//!
//! Promises: it is the very function that the component is built from, it reads the same columns, and it answers with
//! the same rows. Copying the columns into its own types is not part of what is measured: native code would have been
//! written for the columns that there are.

use policy_spread::place;
use understudy_policy::{Native, wire};
use understudy_policy_sdk::Label;
use understudy_policy_sdk::placement::{
    HostState, Hosts, NodeMember, Part, Purpose, Question, Request, Role, SiblingMember,
};

/// The rule `spread` over the columns of a question.
pub(crate) fn spread(request: &wire::Request, hosts: &wire::Hosts) -> Native {
    let (request, hosts) = (request_of(request.clone()), hosts_of(hosts.clone()));
    Box::new(move || {
        let picks = place(&Question::new(&request, &hosts, &[])).expect("it has no parameters to refuse");
        picks.iter().map(|pick| pick.host).collect()
    })
}

fn request_of(request: wire::Request) -> Request {
    let member = |m: wire::NodeMember| NodeMember { host: m.host, part: part(m.part) };
    let sibling =
        |s: wire::SiblingMember| SiblingMember { host: s.host, role: role(s.role), part: part(s.part) };
    Request {
        terminal: request.terminal,
        node: request.node,
        role: role(request.role),
        purpose: match request.purpose {
            wire::Purpose::Primary => Purpose::Primary,
            wire::Purpose::WarmBackup => Purpose::WarmBackup,
            wire::Purpose::HeldBackup => Purpose::HeldBackup,
            wire::Purpose::Migration => Purpose::Migration,
        },
        wanted: request.wanted,
        reasons: request.reasons,
        vcpus: request.vcpus,
        memory_mib: request.memory_mib,
        environment: request.environment,
        template: request.template,
        terminal_labels: request.terminal_labels,
        environment_labels: request.environment_labels,
        members: request.members.into_iter().map(member).collect(),
        siblings: request.siblings.into_iter().map(sibling).collect(),
    }
}

fn hosts_of(hosts: wire::Hosts) -> Hosts {
    let label = |label: wire::Label| Label { key: label.key, value: label.value };
    Hosts {
        state: hosts.state.into_iter().map(state).collect(),
        zone: hosts.zone,
        zones: hosts.zones,
        rack: hosts.rack,
        racks: hosts.racks,
        label_start: hosts.label_start,
        label_ids: hosts.label_ids,
        labels: hosts.labels.into_iter().map(label).collect(),
        total_vcpus: hosts.total_vcpus,
        free_vcpus: hosts.free_vcpus,
        total_memory_mib: hosts.total_memory_mib,
        free_memory_mib: hosts.free_memory_mib,
        load_permille: hosts.load_permille,
        idle_start: hosts.idle_start,
        idle_template: hosts.idle_template,
        idle_count: hosts.idle_count,
        templates: hosts.templates,
        display_primaries: hosts.display_primaries,
        display_backups: hosts.display_backups,
        execution_primaries: hosts.execution_primaries,
        execution_backups: hosts.execution_backups,
        migrations_in: hosts.migrations_in,
        migrations_out: hosts.migrations_out,
        restores: hosts.restores,
        checkpoint_in_kib_s: hosts.checkpoint_in_kib_s,
        checkpoint_out_kib_s: hosts.checkpoint_out_kib_s,
    }
}

fn state(state: wire::HostState) -> HostState {
    match state {
        wire::HostState::Ready => HostState::Ready,
        wire::HostState::Degraded => HostState::Degraded,
        wire::HostState::Draining => HostState::Draining,
        wire::HostState::Fenced => HostState::Fenced,
        wire::HostState::Unknown => HostState::Unknown,
    }
}

fn part(part: wire::Part) -> Part {
    match part {
        wire::Part::Primary => Part::Primary,
        wire::Part::Backup => Part::Backup,
    }
}

fn role(role: wire::Role) -> Role {
    match role {
        wire::Role::Display => Role::Display,
        wire::Role::Execution => Role::Execution,
    }
}
