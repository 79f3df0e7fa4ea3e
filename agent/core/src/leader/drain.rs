//! Owns the emptying of a draining host: its primaries leave by live migration, one at a time.
//!
//! Promises: a migration keeps the member primary and raises the epoch; {node, from, to, epoch} is written before
//! anything moves (SAFE-7); where only a backup's host is left, that backup gives way first. Must not do: move
//! backups (they are replaced) or idle instances (their host ends them).

use super::Leader;
use super::place::{Choice, choose};
use crate::model::ids::{HostId, NodeId};
use crate::model::records::{Member, Migration};
use crate::model::view::SharedNode;
use crate::policy::Purpose;

/// Starts the live migration of the node's primary if its host is draining.
pub(super) fn evacuate(leader: &mut Leader, node: &NodeId, known: &SharedNode) {
    let record = &known.value;
    let Some(primary) = &record.primary else { return };
    let is_open = |host: &HostId| leader.view.hosts.get(host).is_some_and(|seen| seen.is_open());
    if !leader.is_draining(&primary.host) || record.migration.is_some() || !is_open(&primary.host) {
        return;
    }
    if !leader.view.is_ready(record, primary) {
        leader.note(node, format!("waits on draining {} until it is ready to move", primary.host));
        return;
    }
    // One migration at a time: they share one link, and the last to finish would be no sooner.
    if leader.is_being_left(&primary.host) {
        leader.note(node, format!("waits on draining {} for the migration before it", primary.host));
        return;
    }
    match target(leader, node, primary) {
        Target::Host(to) => start(leader, node, primary, to),
        Target::Asked => {}
        Target::Nowhere(why) => {
            let text = format!("cannot leave draining {}: {why}", primary.host);
            leader.note(node, text);
        }
    }
}

enum Target {
    Host(HostId),
    Asked,
    Nowhere(String),
}

fn target(leader: &mut Leader, node: &NodeId, primary: &Member) -> Target {
    let why = match choose(leader, node, Purpose::Migration) {
        Choice::Asked => return Target::Asked,
        Choice::On(host) => {
            leader.chosen(node, &host);
            return Target::Host(host);
        }
        Choice::Nowhere(why) => why,
    };
    let known = leader.shared(node);
    let record = &known.value;
    // No host without a member of this node: one of its backups gives way, and is made good elsewhere or later.
    let spare = record.backups.iter().rev().map(|backup| backup.host.clone());
    let open = spare.filter(|host| *host != primary.host).find(|host| {
        let open = leader.view.hosts.get(host).is_some_and(|seen| seen.accepts_work());
        open && !leader.recently_failed(record, host)
    });
    let Some(host) = open else {
        return Target::Nowhere(why);
    };
    leader.change(node, format!("backup on {host} gives way to the primary"), |record| {
        record.backups.retain(|backup| backup.host != host);
    });
    Target::Host(host)
}

fn start(leader: &mut Leader, node: &NodeId, primary: &Member, to: HostId) {
    let Some(to_lease) = leader.view.hosts.get(&to).map(|seen| seen.lease.value.number) else { return };
    let started = leader.now.wall;
    let from = primary.host.clone();
    leader.change(node, format!("live migration from draining {from} to {to}"), |record| {
        record.epoch = record.epoch.next();
        record.migration =
            Some(Migration { from, to, to_lease, epoch: record.epoch, abandoned: false, started });
    });
}
