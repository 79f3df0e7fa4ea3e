//! Owns the emptying of a draining host: its primaries leave by live migration, one at a time.
//!
//! Promises: a migration keeps the member primary and raises the epoch; {node, from, to, epoch} is written before
//! anything moves (SAFE-7); where only a backup's host is left, that backup gives way first. Must not do: move
//! backups (they are replaced) or idle instances (their host ends them).

use super::Draft;
use super::place::{Choice, rank};
use crate::ids::{HostId, NodeId};
use crate::policy::Purpose;
use crate::records::{Member, Migration};

/// Starts the live migration of the node's primary if its host is draining.
pub(super) fn evacuate(draft: &mut Draft<'_>, node: &NodeId) {
    let record = draft.record(node).clone();
    let Some(primary) = &record.primary else { return };
    let draining =
        draft.view.hosts.get(&primary.host).is_some_and(|host| host.intent.drain && host.is_open());
    if !draining || record.migration.is_some() {
        return;
    }
    if !draft.view.is_ready(&record, primary) {
        draft.note(node, format!("waits on draining {} until it is ready to move", primary.host));
        return;
    }
    // One migration at a time: they share one link, and the last to finish would be no sooner.
    if draft.is_being_left(&primary.host) {
        draft.note(node, format!("waits on draining {} for the migration before it", primary.host));
        return;
    }
    match target(draft, node, primary) {
        Target::Host(to) => start(draft, node, primary, to),
        Target::Asked => {}
        Target::Nowhere(why) => {
            let text = format!("cannot leave draining {}: {why}", primary.host);
            draft.note(node, text);
        }
    }
}

enum Target {
    Host(HostId),
    Asked,
    Nowhere(String),
}

fn target(draft: &mut Draft<'_>, node: &NodeId, primary: &Member) -> Target {
    let why = match rank(draft, node, Purpose::Migration) {
        Choice::Asked => return Target::Asked,
        Choice::Ranked(hosts) => match hosts.into_iter().next() {
            Some(host) => {
                draft.chosen(node, &host);
                return Target::Host(host);
            }
            None => "no host was ranked".to_owned(),
        },
        Choice::Nowhere(why) => why,
    };
    let record = draft.record(node).clone();
    // No host without a member of this node: one of its backups gives way, and is made good elsewhere or later.
    let spare = record.backups.iter().rev().map(|backup| backup.host.clone());
    let open = spare.filter(|host| *host != primary.host).find(|host| {
        let open = draft.view.hosts.get(host).is_some_and(|seen| seen.accepts_work());
        open && !draft.recently_failed(&record, host)
    });
    let Some(host) = open else {
        return Target::Nowhere(why);
    };
    draft.change(node, format!("backup on {host} gives way to the primary"), |record| {
        record.backups.retain(|backup| backup.host != host);
    });
    Target::Host(host)
}

fn start(draft: &mut Draft<'_>, node: &NodeId, primary: &Member, to: HostId) {
    let Some(to_session) = draft.view.hosts.get(&to).map(|seen| seen.session.value.number) else { return };
    let started = draft.now.wall;
    let from = primary.host.clone();
    draft.change(node, format!("live migration from draining {from} to {to}"), |record| {
        record.epoch = record.epoch.next();
        record.migration =
            Some(Migration { from, to, to_session, epoch: record.epoch, abandoned: false, started });
    });
}
