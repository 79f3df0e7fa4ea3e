//! Owns the bookkeeping of what is under way: migrations that have arrived, failed or lost their source, and the
//! timeline of the last failover.
//!
//! Promises: a migration is closed only on the word of a host that knows (SAFE-7). Must not do: promote.

use super::Draft;
use crate::ids::{Epoch, NodeId, Role};
use crate::records::{Member, Migration, NodeRecord, Origin, Phase, Setback};
use crate::units::UnixMillis;
use crate::view::{Life, Place};

/// Brings the record to what has happened.
pub(super) fn settle(draft: &mut Draft<'_>, node: &NodeId) {
    migration(draft, node);
    timeline(draft, node);
}

fn migration(draft: &mut Draft<'_>, node: &NodeId) {
    let record = draft.record(node).clone();
    let (Some(migration), Some(primary)) = (&record.migration, &record.primary) else { return };
    let there = draft.view.hosts.get(&migration.to).and_then(|host| host.instance(primary.instance?));
    let arrived = there.is_some_and(|fact| fact.phase == Phase::Ready && fact.epoch >= migration.epoch);
    if arrived {
        arrive(draft, node, primary, migration);
        return;
    }
    let from_dead = matches!(draft.view.life(&record, primary), Life::Dead { .. });
    let to = Place { host: &migration.to, session: migration.to_session, since: migration.epoch };
    let to_dead = matches!(draft.view.life_at(to, primary.instance), Life::Dead { .. });
    let failed = draft.view.fact(primary).and_then(|fact| fact.migration_failed.clone());
    match (from_dead, to_dead) {
        (true, true) => {
            draft.rest_on_session(node, &migration.to);
            draft.change(node, "both ends of the migration are dead", |record| record.migration = None);
        }
        (true, false) if !migration.abandoned => {
            draft.change(node, format!("{} died in the middle of the migration", migration.from), |record| {
                if let Some(migration) = &mut record.migration {
                    migration.abandoned = true;
                }
            });
        }
        (true, false) => {}
        (false, _) => {
            if let Some((_, reason)) = failed.filter(|(epoch, _)| *epoch >= migration.epoch) {
                fail(draft, node, migration, reason);
            }
        }
    }
}

fn arrive(draft: &mut Draft<'_>, node: &NodeId, primary: &Member, migration: &Migration) {
    let member = Member {
        host: migration.to.clone(),
        session: migration.to_session,
        instance: primary.instance,
        origin: Origin::Migrated,
    };
    draft.change(node, format!("primary has moved from {} to {}", migration.from, migration.to), |record| {
        record.primary = Some(member);
        record.migration = None;
    });
}

fn fail(draft: &mut Draft<'_>, node: &NodeId, migration: &Migration, reason: String) {
    let at = draft.now.wall;
    let host = migration.to.clone();
    draft.change(node, format!("migration to {host} failed: {reason}"), |record| {
        record.migration = None;
        record.setbacks.push(Setback { host, reason, at });
        let surplus = record.setbacks.len().saturating_sub(8);
        record.setbacks.drain(..surplus);
    });
}

fn timeline(draft: &mut Draft<'_>, node: &NodeId) {
    let record = draft.record(node).clone();
    let (Some(incident), Some(primary)) = (&record.incident, &record.primary) else { return };
    if incident.epoch != record.begun || incident.windows.is_some() {
        return;
    }
    let fact =
        draft.view.fact(primary).filter(|fact| fact.phase == Phase::Ready && fact.epoch >= record.begun);
    let Some(fact) = fact else { return };
    if incident.ready.is_none() {
        // A promoted backup was ready long before it was needed.
        let at = if fact.since < incident.decided { draft.now.wall } else { fact.since };
        draft.change(node, "successor is ready", |record| {
            if let Some(incident) = &mut record.incident {
                incident.ready = Some(at);
            }
        });
    }
    if let Some(at) = windows_back(draft, node, &record) {
        draft.change(node, "windows are handed over", |record| {
            if let Some(incident) = &mut record.incident {
                incident.windows = Some(at);
            }
        });
    }
}

/// When the last window that this node's failover concerns was accepted; none while one is missing.
fn windows_back(draft: &Draft<'_>, node: &NodeId, record: &NodeRecord) -> Option<UnixMillis> {
    let display = match node.role() {
        Role::Display => record,
        Role::Execution => &draft.view.nodes.get(&NodeId::display(node.terminal()))?.value,
    };
    let screen = display.primary.as_ref()?.instance?;
    let handed_over = |sender: &NodeRecord| -> Option<UnixMillis> {
        let sent = draft.view.fact(sender.primary.as_ref()?)?.windows?;
        let current =
            sent.display == screen && sent.display_begun == display.begun && sent.begun == sender.begun;
        current.then_some(sent.at)
    };
    match node.role() {
        Role::Execution => handed_over(record),
        Role::Display => draft
            .view
            .nodes
            .iter()
            .filter(|(other, record)| {
                other.terminal() == node.terminal()
                    && other.role() == Role::Execution
                    && record.value.begun > Epoch(0)
            })
            .map(|(_, sender)| handed_over(&sender.value))
            .try_fold(record.incident.as_ref()?.decided, |latest, at| Some(latest.max(at?))),
    }
}
