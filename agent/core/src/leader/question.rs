//! Owns the placement question: what a policy is told of the node, its members and every host.
//!
//! Promises: the same view gives the same question, hosts in the order of their names. Must not do: leave hosts out; a
//! policy may want to know of those that take no work.
//!
//! Cost: O(the terminal's members); the rows of hosts are shared with the questions before.

use super::Leader;
use super::rooms::TEMPLATE;
use crate::model::ids::{HostId, NodeId};
use crate::model::records::NodeRecord;
use crate::policy::{NodeMember, Part, PlacementQuestion, Purpose, SiblingMember};

/// Picks that are asked for at first. Of thousands of hosts a plan takes one, which is among the first of a policy that
/// knows what the plan looks at, and to rank them all costs such a policy about as much again.
pub(super) const PICKS: u32 = 16;

/// The question for all hosts that would do.
pub(super) fn whole(leader: &mut Leader, node: &NodeId, purpose: Purpose) -> PlacementQuestion {
    let size = leader.size_of(node);
    let mut hosts = leader.rooms.rows(size);
    // Of a host that the node itself is about to leave it may have more than others.
    for host in leader.concerned(node).iter().filter(|host| !leader.record(node).touches(host)) {
        let Some((at, room)) = leader.rooms.place(host).zip(leader.rooms.get(host)) else { continue };
        let memory = leader.room(node, host);
        if memory != room.memory {
            hosts.replace(at, room.row_for(size, memory));
        }
    }
    let view = &leader.view;
    let spec = &view.nodes[node].value.spec;
    PlacementQuestion {
        node: node.clone(),
        purpose,
        wanted: u32::try_from(hosts.len()).unwrap_or(u32::MAX),
        reasons: false,
        vcpus: spec.vcpus,
        memory: spec.memory,
        environment: spec.environment.clone(),
        template: matches!(purpose, Purpose::Primary | Purpose::WarmBackup).then(|| TEMPLATE.to_owned()),
        terminal_labels: spec.labels.clone(),
        environment_labels: spec.environment_labels.clone(),
        members: node_members(&view.nodes[node].value),
        siblings: siblings(leader, node).collect(),
        hosts,
    }
}

/// Where the members of a node are.
pub(super) fn node_members(record: &NodeRecord) -> Vec<NodeMember> {
    members(record).map(|(host, part)| NodeMember { host, part }).collect()
}

/// Where the members of the terminal's other nodes are.
pub(super) fn siblings<'a>(leader: &'a Leader, node: &'a NodeId) -> impl Iterator<Item = SiblingMember> + 'a {
    let others = leader.view.nodes.of_terminal(node.terminal()).filter(move |(other, _)| *other != node);
    others.flat_map(|(other, sibling)| {
        members(&sibling.value).map(|(host, part)| SiblingMember { host, role: other.role(), part })
    })
}

fn members(record: &NodeRecord) -> impl Iterator<Item = (HostId, Part)> + '_ {
    let primary = record.primary.iter().map(|member| (member.host.clone(), Part::Primary));
    primary.chain(record.backups.iter().map(|member| (member.host.clone(), Part::Backup)))
}
