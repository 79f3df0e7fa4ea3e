//! Owns the bookkeeping of what is under way: migrations that have arrived, failed or lost their source, and the
//! timeline of the last failover.
//!
//! Promises: a migration is closed only on the word of a host that knows (SAFE-7). Must not do: promote.

use super::{Leader, remember};
use crate::death::{Cooldown, CooldownCause};
use crate::model::ids::{Epoch, NodeId, Role};
use crate::model::records::{Member, Migration, NodeRecord, Origin, Phase};
use crate::model::units::UnixMillis;
use crate::model::view::{Liveness, Place, SharedNode};

/// Brings the record to what has happened.
pub(super) fn settle(leader: &mut Leader, node: &NodeId, known: &SharedNode) {
    if known.value.migration.is_some() {
        migration(leader, node, &known.value);
        timeline(leader, node, &leader.shared(node).value);
    } else {
        timeline(leader, node, &known.value);
    }
}

fn migration(leader: &mut Leader, node: &NodeId, record: &NodeRecord) {
    let (Some(migration), Some(primary)) = (&record.migration, &record.primary) else { return };
    // A later lease of that host proves nothing of what came in the one that was chosen.
    let there = leader
        .view
        .hosts
        .get(&migration.to)
        .filter(|host| host.lease.value.number == migration.to_lease)
        .and_then(|host| host.instance(primary.instance?));
    let arrived = there.is_some_and(|fact| fact.phase == Phase::Ready && fact.epoch >= migration.epoch);
    if arrived {
        arrive(leader, node, primary, migration);
        return;
    }
    let to = Place { host: &migration.to, lease: migration.to_lease, since: migration.epoch };
    let to_death = leader.view.liveness_at(to, primary.instance);
    match (leader.view.liveness(record, primary), to_death) {
        // It had left before it died: its end is the destination's.
        (Liveness::Dead { cause, .. }, Liveness::Dead { .. }) if cause.is_move() => {
            arrive(leader, node, primary, migration);
        }
        (Liveness::Dead { .. }, Liveness::Dead { .. }) => {
            leader.condition_on_lease(node, &migration.to);
            leader.change(node, "both ends of the migration are dead", |record| record.migration = None);
        }
        (Liveness::Dead { cause, .. }, Liveness::Alive) => {
            if !cause.is_move() {
                let reason = format!("source {} of the migration is dead ({cause})", migration.from);
                abandon(leader, node, migration, reason, None);
            }
        }
        // Nothing of it can run there any more, so that the source alone is authoritative again.
        (Liveness::Alive, Liveness::Dead { cause, .. }) => {
            leader.condition_on_lease(node, &migration.to);
            let cause = CooldownCause::Died { death: cause, epoch: migration.epoch, from: None };
            let cooldown = Cooldown { host: migration.to.clone(), cause, at: leader.now.wall };
            let to = &migration.to;
            leader.change(
                node,
                format!("nothing of it is on {to}: it stays on {}", migration.from),
                |record| {
                    if !migration.abandoned {
                        remember(record, cooldown);
                    }
                    record.migration = None;
                },
            );
        }
        (Liveness::Alive, Liveness::Alive) => {
            let failed = leader.view.fact(primary).and_then(|fact| fact.migration_failed.clone());
            if let Some((_, reason)) = failed.filter(|(epoch, _)| *epoch >= migration.epoch) {
                let cause = CooldownCause::MigrationFailed { epoch: migration.epoch, reason: reason.clone() };
                let cooldown = Cooldown { host: migration.to.clone(), cause, at: leader.now.wall };
                let reason = format!("migration to {} failed: {reason}", migration.to);
                abandon(leader, node, migration, reason, Some(cooldown));
            }
        }
    }
}

/// The destination may have all of it, and let it run once it hears that the source is dead. So the migration stands
/// until the destination says that it has given up, or is itself known dead.
fn abandon(
    leader: &mut Leader,
    node: &NodeId,
    migration: &Migration,
    reason: String,
    cooldown: Option<Cooldown>,
) {
    if migration.abandoned {
        return;
    }
    leader.change(node, reason, |record| {
        if let Some(migration) = &mut record.migration {
            migration.abandoned = true;
        }
        if let Some(cooldown) = cooldown {
            remember(record, cooldown);
        }
    });
}

fn arrive(leader: &mut Leader, node: &NodeId, primary: &Member, migration: &Migration) {
    let member = Member {
        host: migration.to.clone(),
        lease: migration.to_lease,
        instance: primary.instance,
        origin: Origin::Migrated,
        place: 0,
    };
    leader.change(node, format!("primary has moved from {} to {}", migration.from, migration.to), |record| {
        record.primary = Some(member);
        record.migration = None;
    });
}

fn timeline(leader: &mut Leader, node: &NodeId, record: &NodeRecord) {
    let (Some(incident), Some(primary)) = (&record.incident, &record.primary) else { return };
    if incident.epoch != record.incarnation || incident.windows.is_some() {
        return;
    }
    let fact = leader
        .view
        .fact(primary)
        .filter(|fact| fact.phase == Phase::Ready && fact.epoch >= record.incarnation);
    let Some(fact) = fact else { return };
    if incident.ready.is_none() {
        // A promoted backup was ready long before it was needed.
        let at = if fact.since < incident.decided { leader.now.wall } else { fact.since };
        leader.change(node, "successor is ready", |record| {
            if let Some(incident) = &mut record.incident {
                incident.ready = Some(at);
            }
            record.state_wait = None;
        });
    }
    if let Some(at) = windows_back(leader, node, record) {
        leader.change(node, "windows are handed over", |record| {
            if let Some(incident) = &mut record.incident {
                incident.windows = Some(at);
            }
        });
    }
}

/// When the last window that this node's failover concerns was accepted; none while one is missing.
fn windows_back(leader: &Leader, node: &NodeId, record: &NodeRecord) -> Option<UnixMillis> {
    let display = match node.role() {
        Role::Display => record,
        Role::Execution => &leader.view.nodes.get(&NodeId::display(node.terminal()))?.value,
    };
    let screen = display.primary.as_ref()?.instance?;
    let handed_over = |sender: &NodeRecord| -> Option<UnixMillis> {
        let sent = leader.view.fact(sender.primary.as_ref()?)?.windows?;
        let current = sent.display == screen
            && sent.display_incarnation == display.incarnation
            && sent.incarnation == sender.incarnation;
        current.then_some(sent.at)
    };
    match node.role() {
        Role::Execution => handed_over(record),
        Role::Display => leader
            .view
            .nodes
            .of_terminal(node.terminal())
            .filter(|(other, record)| other.role() == Role::Execution && record.value.incarnation > Epoch(0))
            .map(|(_, sender)| handed_over(&sender.value))
            .try_fold(record.incident.as_ref()?.decided, |latest, at| Some(latest.max(at?))),
    }
}
