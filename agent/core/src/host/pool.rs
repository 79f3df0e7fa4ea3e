//! Owns what no node names: orphans, the pool of idle instances, images of other hosts' nodes.
//!
//! Promises: an orphan does not stay; an idle instance gives way when its memory is promised to a member. Must not
//! do: touch anything that a node names.

use super::{HostAction, Local, Situation};
use crate::death::Death;
use crate::model::ids::{Epoch, InstanceId, NodeId};
use crate::model::records::Phase;
use crate::model::units::MiB;

/// What to do about the instances that no node names.
pub(super) fn unnamed(situation: &Situation<'_>, is_named: impl Fn(InstanceId) -> bool) -> Vec<HostAction> {
    let mut excess = excess(situation);
    let mut actions = Vec::new();
    for (&instance, local) in situation.local.iter().filter(|(instance, _)| !is_named(**instance)) {
        if is_spare(local) && excess > MiB(0) && !situation.draining {
            excess = excess.saturating_sub(local.fact.memory);
            actions.push(destroy(instance, "its memory is promised to a member"));
        } else {
            actions.extend(dismiss(situation, instance, local));
        }
    }
    actions
}

fn destroy(instance: InstanceId, reason: &str) -> HostAction {
    HostAction::Destroy { instance, death: Death::Destroyed { reason: reason.to_owned() } }
}

/// Booted or booting for nobody yet. One that was guarded for a node counts as that node's.
fn is_spare(local: &Local) -> bool {
    matches!(local.fact.phase, Phase::Idle | Phase::Booting)
        && local.fact.node.is_none()
        && local.fact.epoch == Epoch(0)
}

fn dismiss(situation: &Situation<'_>, instance: InstanceId, local: &Local) -> Option<HostAction> {
    if local.fact.phase.is_dead() {
        Some(HostAction::Forget { instance })
    } else if !is_spare(local) {
        Some(destroy(instance, "no node names it as a member"))
    } else if situation.draining && !situation.has_primaries() {
        Some(destroy(instance, "the host is being drained"))
    } else {
        None
    }
}

/// Memory that instances and promises take beyond what the host has: leader and pool may give out the same room at
/// the same time.
fn excess(situation: &Situation<'_>) -> MiB {
    let Some(facts) = situation.hosts.get(situation.me).and_then(|seen| seen.current_facts()) else {
        return MiB(0);
    };
    let living = |local: &&Local| !local.fact.phase.is_dead();
    let here: MiB = situation.local.values().filter(living).map(|local| local.fact.memory).sum();
    let promised: MiB = situation
        .here()
        .map(|(_, record)| {
            let instance = record.instance_on(situation.me);
            let local = instance.and_then(|instance| situation.local.get(&instance)).filter(living);
            record.spec.memory.saturating_sub(local.map_or(MiB(0), |local| local.fact.memory))
        })
        .sum();
    (here + promised).saturating_sub(facts.capacity.memory)
}

/// One more idle instance, where the pool is short and there is room, nobody who has a node here waits for windows, and no
/// live migration comes or leaves.
pub(super) fn fill(situation: &Situation<'_>) -> Option<HostAction> {
    let idle = situation.local.values().filter(|local| is_spare(local)).count();
    let short = idle < usize::try_from(situation.pool.idle).unwrap_or(usize::MAX);
    let room = situation.free >= situation.pool.memory;
    let waiting = || {
        let mut terminals = situation.here().map(|(node, _)| node.terminal());
        situation.is_moving() || terminals.any(|terminal| situation.is_waiting_for_windows(terminal))
    };
    (short && room && !situation.draining && !situation.filling && !waiting())
        .then_some(HostAction::CreateIdle(situation.pool))
}

/// Images of nodes that have no place here any more, and whose state others have by now.
pub(super) fn drop_images(situation: &Situation<'_>) -> Vec<HostAction> {
    let wanted = |node: &NodeId| {
        let record = situation.nodes.get(node).map(|known| &known.value);
        record.is_some_and(|record| record.touches(situation.me) || record.keepers.contains(situation.me))
    };
    situation
        .images
        .iter()
        .filter(|node| !wanted(node))
        .map(|node| HostAction::DropImages { node: node.clone() })
        .collect()
}
