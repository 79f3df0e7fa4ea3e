//! Owns the choice of a host: the question to the policy, the check of its answer, and the built-in rule.
//!
//! Promises: whatever a policy answers, the host chosen is open, not draining, has room, and carries no other
//! member of the node (SAFE-5). Must not do: change the node.

use std::collections::{BTreeMap, BTreeSet};

use super::Draft;
use crate::ids::{HostId, NodeId, Role};
use crate::policy::{
    HostRow, HostState, Interface, MemberCounts, NodeMember, Part, PlacementAnswer, PlacementQuestion,
    Purpose, SiblingMember, Traffic,
};
use crate::records::{Labels, NodeRecord, Phase};
use crate::view::{Answer, HostView, View};

/// The one template that pools are filled from.
const TEMPLATE: &str = "default";

/// The outcome of looking for a host.
pub(super) enum Choice {
    /// The hosts that will do, best first.
    Ranked(Vec<HostId>),
    /// The policy has to be asked first.
    Asked,
    /// There is none, and why each host was left out.
    Nowhere(String),
}

/// Ranks the hosts on which a member of `node` may be put.
pub(super) fn rank(draft: &mut Draft<'_>, node: &NodeId, purpose: Purpose) -> Choice {
    let (eligible, excluded) = eligible(draft, node);
    if eligible.is_empty() {
        return Choice::Nowhere(describe(&excluded));
    }
    let question = question(&draft.view, node, purpose);
    match draft.view.placements.get(&question) {
        None => {
            draft.plan.placements.push(question);
            Choice::Asked
        }
        Some(Answer::Unavailable) => Choice::Ranked(built_in(&question, &eligible)),
        Some(Answer::Given(answer)) => match check(&question, answer, &eligible) {
            Ok(ranked) => Choice::Ranked(ranked),
            Err(reason) => {
                draft.report.refusals.push((Interface::Placement, reason));
                Choice::Ranked(built_in(&question, &eligible))
            }
        },
    }
}

fn describe(excluded: &BTreeMap<HostId, String>) -> String {
    if excluded.is_empty() {
        return "no host is known".to_owned();
    }
    excluded.iter().map(|(host, why)| format!("{host} {why}")).collect::<Vec<_>>().join(", ")
}

/// Hosts that may take a member, and why the others may not.
fn eligible(draft: &Draft<'_>, node: &NodeId) -> (BTreeSet<HostId>, BTreeMap<HostId, String>) {
    let record = draft.record(node);
    let mut eligible = BTreeSet::new();
    let mut excluded = BTreeMap::new();
    for (host, seen) in &draft.view.hosts {
        match exclusion(draft, node, host, seen) {
            Some(why) => {
                excluded.insert(host.clone(), why);
            }
            None if draft.recently_failed(record, host) => {
                excluded.insert(host.clone(), "failed with it a moment ago".to_owned());
            }
            None => {
                eligible.insert(host.clone());
            }
        }
    }
    (eligible, excluded)
}

fn exclusion(draft: &Draft<'_>, node: &NodeId, host: &HostId, seen: &HostView) -> Option<String> {
    let record = draft.record(node);
    if !seen.is_open() {
        return Some("is lost".to_owned());
    }
    if seen.current_facts().is_none() {
        return Some("has not reported yet".to_owned());
    }
    if seen.intent.drain {
        return Some("is draining".to_owned());
    }
    if record.touches(host) {
        return Some("has a member of this node".to_owned());
    }
    let free = draft.room(node, host);
    if free < record.spec.memory {
        return Some(format!("has {free} free of {} needed", record.spec.memory));
    }
    None
}

/// Takes an answer apart: only eligible hosts, each once. An answer with nothing usable is refused whole.
fn check(
    question: &PlacementQuestion,
    answer: &PlacementAnswer,
    eligible: &BTreeSet<HostId>,
) -> Result<Vec<HostId>, String> {
    let mut ranked: Vec<HostId> = Vec::new();
    let mut refused = Vec::new();
    for pick in &answer.picks {
        let row = usize::try_from(pick.index).ok().and_then(|index| question.hosts.get(index));
        match row {
            None => refused.push(format!("pick {} is no host", pick.index)),
            Some(row) if !eligible.contains(&row.host) => {
                refused.push(format!("{} may not take it", row.host));
            }
            Some(row) if ranked.contains(&row.host) => refused.push(format!("{} was picked twice", row.host)),
            Some(row) => ranked.push(row.host.clone()),
        }
    }
    if ranked.is_empty() {
        let why = if refused.is_empty() { "it picked nothing".to_owned() } else { refused.join(", ") };
        return Err(format!("placement of {}: {why}", question.node));
    }
    Ok(ranked)
}

/// Without a policy: few members of this terminal first, then few members, then much free memory, then the name.
fn built_in(question: &PlacementQuestion, eligible: &BTreeSet<HostId>) -> Vec<HostId> {
    let mut rows: Vec<&HostRow> = question.hosts.iter().filter(|row| eligible.contains(&row.host)).collect();
    let siblings = |host: &HostId| question.siblings.iter().filter(|sibling| &sibling.host == host).count();
    rows.sort_by_key(|row| {
        let MemberCounts { display_primaries, display_backups, execution_primaries, execution_backups } =
            row.members;
        let members = display_primaries + display_backups + execution_primaries + execution_backups;
        (siblings(&row.host), members, std::cmp::Reverse(row.free_memory), &row.host)
    });
    rows.into_iter().map(|row| row.host.clone()).collect()
}

fn question(view: &View, node: &NodeId, purpose: Purpose) -> PlacementQuestion {
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
        environment_labels: Labels::new(),
        members: members(record).map(|(host, part)| NodeMember { host, part }).collect(),
        siblings,
        hosts: view.hosts.keys().map(|host| row(view, host)).collect(),
    }
}

fn members(record: &NodeRecord) -> impl Iterator<Item = (HostId, Part)> + '_ {
    let primary = record.primary.iter().map(|member| (member.host.clone(), Part::Primary));
    primary.chain(record.backups.iter().map(|member| (member.host.clone(), Part::Backup)))
}

fn row(view: &View, host: &HostId) -> HostRow {
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
    let idle = u32::try_from(view.idle(host).count()).unwrap_or(u32::MAX);
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
        traffic: traffic(view, host),
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

fn traffic(view: &View, host: &HostId) -> Traffic {
    let mut traffic = Traffic::default();
    for migration in view.nodes.values().filter_map(|node| node.value.migration.as_ref()) {
        traffic.migrations_in += u32::from(&migration.to == host);
        traffic.migrations_out += u32::from(&migration.from == host);
    }
    let facts = view.hosts.get(host).and_then(HostView::current_facts);
    let restoring = |facts: &crate::records::HostFacts| {
        facts.instances.values().filter(|fact| fact.phase == Phase::Restoring).count()
    };
    traffic.restores = u32::try_from(facts.map_or(0, restoring)).unwrap_or(u32::MAX);
    for (node, checkpoint) in &view.checkpoints {
        // Without a history of copies the newest one over one interval is the best figure at hand.
        let rate = u32::try_from(checkpoint.value.bytes / 1024 / 5).unwrap_or(u32::MAX);
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
