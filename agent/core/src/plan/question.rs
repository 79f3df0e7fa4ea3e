//! Owns the placement question: what a policy is told of the node, its members and every host.
//!
//! Promises: the same view gives the same question, hosts in the order of their names. Must not do: leave hosts out; a
//! policy may want to know of those that take no work.

use std::collections::BTreeMap;

use super::Draft;
use crate::ids::{HostId, NodeId, Role};
use crate::policy::{
    HostRow, HostState, MemberCounts, NodeMember, Part, PlacementQuestion, Purpose, SiblingMember, Traffic,
};
use crate::records::{NodeRecord, Phase};
use crate::view::View;

/// The one template that pools are filled from.
const TEMPLATE: &str = "default";

/// Picks that are asked for at first. Of thousands of hosts a plan takes one, which is among the first of a policy that
/// knows what the plan looks at, and to rank them all costs such a policy about as much again.
pub(super) const PICKS: u32 = 16;

/// The question for the best [`PICKS`] hosts.
pub(super) fn question(draft: &Draft<'_>, node: &NodeId, purpose: Purpose) -> PlacementQuestion {
    let whole = whole(draft, node, purpose);
    PlacementQuestion { wanted: whole.wanted.min(PICKS), ..whole }
}

/// The question for all hosts that would do.
pub(super) fn whole(draft: &Draft<'_>, node: &NodeId, purpose: Purpose) -> PlacementQuestion {
    let view = &draft.view;
    let record = &view.nodes[node].value;
    let siblings = view
        .nodes
        .iter()
        .filter(|(other, _)| *other != node && other.terminal() == node.terminal())
        .flat_map(|(other, sibling)| {
            members(&sibling.value).map(|(host, part)| SiblingMember { host, role: other.role(), part })
        })
        .collect();
    PlacementQuestion {
        node: node.clone(),
        purpose,
        wanted: u32::try_from(view.hosts.len()).unwrap_or(u32::MAX),
        reasons: false,
        vcpus: record.spec.vcpus,
        memory: record.spec.memory,
        environment: record.spec.environment.clone(),
        template: matches!(purpose, Purpose::Primary | Purpose::WarmBackup).then(|| TEMPLATE.to_owned()),
        terminal_labels: record.spec.labels.clone(),
        environment_labels: record.spec.environment_labels.clone(),
        members: members(record).map(|(host, part)| NodeMember { host, part }).collect(),
        siblings,
        hosts: view.hosts.keys().map(|host| row(draft, host, node)).collect(),
    }
}

fn members(record: &NodeRecord) -> impl Iterator<Item = (HostId, Part)> + '_ {
    let primary = record.primary.iter().map(|member| (member.host.clone(), Part::Primary));
    primary.chain(record.backups.iter().map(|member| (member.host.clone(), Part::Backup)))
}

fn row(draft: &Draft<'_>, host: &HostId, node: &NodeId) -> HostRow {
    let view = &draft.view;
    let seen = &view.hosts[host];
    let facts = seen.current_facts();
    let state = match facts {
        None if seen.is_open() => HostState::Unknown,
        None => HostState::Fenced,
        Some(_) if seen.intent.drain => HostState::Draining,
        Some(facts) if !facts.complaints.is_empty() => HostState::Degraded,
        Some(_) => HostState::Ready,
    };
    let mut labels = facts.map(|facts| facts.labels.clone()).unwrap_or_default();
    let capacity = facts.map(|facts| facts.capacity).unwrap_or_default();
    let idle = u32::try_from(draft.idle(node, host).count()).unwrap_or(u32::MAX);
    HostRow {
        host: host.clone(),
        state,
        zone: labels.remove("zone").unwrap_or_default(),
        rack: labels.remove("rack").unwrap_or_default(),
        labels,
        total_vcpus: capacity.vcpus,
        free_vcpus: view.free_vcpus(host),
        total_memory: capacity.memory,
        free_memory: view.free_memory(host),
        load_permille: facts.map_or(0, |facts| facts.load_milli / capacity.vcpus.0.max(1)),
        idle: if idle == 0 { BTreeMap::new() } else { BTreeMap::from([(TEMPLATE.to_owned(), idle)]) },
        members: member_counts(view, host),
        traffic: traffic(draft, host),
    }
}

fn member_counts(view: &View, host: &HostId) -> MemberCounts {
    let mut counts = MemberCounts::default();
    for (node, record) in &view.nodes {
        for (at, part) in members(&record.value) {
            if &at == host {
                match (node.role(), part) {
                    (Role::Display, Part::Primary) => counts.display_primaries += 1,
                    (Role::Display, Part::Backup) => counts.display_backups += 1,
                    (Role::Execution, Part::Primary) => counts.execution_primaries += 1,
                    (Role::Execution, Part::Backup) => counts.execution_backups += 1,
                }
            }
        }
    }
    counts
}

fn traffic(draft: &Draft<'_>, host: &HostId) -> Traffic {
    let view = &draft.view;
    let interval_ms = draft.bounds.checkpoint_interval.as_millis().max(1);
    let mut traffic = Traffic::default();
    for migration in view.nodes.values().filter_map(|node| node.value.migration.as_ref()) {
        traffic.migrations_in += u32::from(&migration.to == host);
        traffic.migrations_out += u32::from(&migration.from == host);
    }
    let facts = view.hosts.get(host).and_then(|seen| seen.current_facts());
    let restoring = |facts: &crate::records::HostFacts| {
        facts.instances.values().filter(|fact| fact.phase == Phase::Restoring).count()
    };
    traffic.restores = u32::try_from(facts.map_or(0, restoring)).unwrap_or(u32::MAX);
    for (node, checkpoint) in &view.checkpoints {
        // Without a history of copies the newest one over one interval is the best figure at hand.
        let rate = u128::from(checkpoint.value.bytes / 1024) * 1_000 / interval_ms;
        let rate = u32::try_from(rate).unwrap_or(u32::MAX);
        if checkpoint.value.hosts.contains(host) {
            traffic.checkpoint_in_kib_s = traffic.checkpoint_in_kib_s.saturating_add(rate);
        }
        let primary = view.nodes.get(node).and_then(|node| node.value.primary.as_ref());
        if primary.is_some_and(|primary| &primary.host == host) {
            traffic.checkpoint_out_kib_s = traffic.checkpoint_out_kib_s.saturating_add(rate);
        }
    }
    traffic
}
