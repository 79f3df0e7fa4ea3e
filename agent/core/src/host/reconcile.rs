//! Owns what becomes of the instances that a node names on this host.
//!
//! Promises: an instance that was ever ready is never made a second time under the same decision; what was left
//! half-way is taken up again. Must not do: touch instances that no node names.

use std::collections::BTreeMap;

use super::checkpoints::due;
use super::windows::{admit, send_windows};
use super::{HostAction, Local, Situation};
use crate::bounds::INTAKE;
use crate::death::Death;
use crate::model::ids::{Epoch, InstanceId, NodeId, Role};
use crate::model::records::{Member, Migration, NodeRecord, NodeSpec, Origin, Phase};
use crate::model::units::Boottime;

/// How a node names an instance of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Primary,
    Backup,
    Arriving,
}

/// An instance that a node names here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named<'a> {
    node: &'a NodeId,
    record: &'a NodeRecord,
    instance: InstanceId,
    /// None where it is only on its way here.
    member: Option<&'a Member>,
    part: Part,
}

impl Named<'_> {
    /// What is known of an older epoch is of an earlier life of the same instance.
    fn since(&self) -> Epoch {
        match (self.member, &self.record.migration) {
            (Some(member), _) => self.record.since(member),
            (None, Some(migration)) => migration.epoch,
            (None, None) => Epoch(0),
        }
    }

    /// Whether what is here was deployed, or guarded, for another node. The leader may have given an instance away before
    /// it heard that this host had begun to deploy it.
    fn is_anothers(&self, local: &Local) -> bool {
        let fact = &local.fact;
        match &fact.node {
            Some(node) => node != self.node,
            None => fact.phase == Phase::Idle && fact.epoch > self.record.epoch,
        }
    }
}

/// All instances that nodes name here, under the lease that is open.
pub(super) fn named_here<'a>(situation: &Situation<'a>) -> BTreeMap<InstanceId, Named<'a>> {
    let mut named = BTreeMap::new();
    for (node, record) in situation.here() {
        let arriving = record
            .migration
            .as_ref()
            .filter(|migration| &migration.to == situation.me && Some(migration.to_lease) == situation.lease);
        if let (Some(_), Some(instance)) =
            (arriving, record.primary.as_ref().and_then(|primary| primary.instance))
        {
            let part = Part::Arriving;
            named.insert(instance, Named { node, record, instance, member: None, part });
        }
        for (index, member) in record.members().enumerate() {
            let part = if index == 0 && record.primary.is_some() { Part::Primary } else { Part::Backup };
            if &member.host == situation.me
                && Some(member.lease) == situation.lease
                && let Some(instance) = member.instance
            {
                named.insert(instance, Named { node, record, instance, member: Some(member), part });
            }
        }
    }
    named
}

/// The actions for all of them.
pub(super) fn named(situation: &Situation<'_>, named: &BTreeMap<InstanceId, Named<'_>>) -> Vec<HostAction> {
    let mut actions = Vec::new();
    for (instance, named) in named {
        match situation.local.get(instance) {
            Some(local) => actions.extend(reconcile_instance(situation, named, local)),
            None => actions.extend(obtain(situation, named)),
        }
    }
    actions
}

/// What to do about a named instance that is not here.
fn obtain(situation: &Situation<'_>, named: &Named<'_>) -> Option<HostAction> {
    let Named { node, record, instance, member, part } = *named;
    let missing = || HostAction::Missing { node: node.clone(), instance, epoch: record.epoch };
    match (part, &record.migration) {
        (Part::Arriving, Some(migration)) => {
            // With no permit nothing comes any more: saying so is the second of the two deaths (SAFE-7).
            Some(if migration.abandoned { missing() } else { accept(named, migration) })
        }
        // It has left, and its new host is authoritative as long as it can speak.
        (Part::Primary, Some(migration)) if &migration.from == situation.me => {
            // A host whose record cannot be read may speak, and is not heard.
            (!situation.unreadable && !may_speak(situation, instance, migration)).then(missing)
        }
        // Only what was ready once is ever moved: to make it again would lose its state and tell nobody.
        (Part::Primary, _) if record.epoch > record.incarnation => Some(missing()),
        (Part::Primary | Part::Backup | Part::Arriving, _) => match member?.origin {
            Origin::Created if yields(situation, named) => None,
            Origin::Created => {
                let NodeSpec { memory, vcpus, .. } = record.spec;
                let (node, epoch) = (node.clone(), record.epoch);
                Some(HostAction::Create { node, instance, epoch, memory, vcpus })
            }
            Origin::Restored(_) => restore(named),
            Origin::Idle | Origin::Promoted | Origin::Migrated => Some(missing()),
            Origin::Reserved => None,
        },
    }
}

/// Whether it is a backup whose making waits until the person at the terminal has the windows back.
fn yields(situation: &Situation<'_>, named: &Named<'_>) -> bool {
    named.part == Part::Backup && situation.is_waiting_for_windows(named.node.terminal())
}

fn may_speak(situation: &Situation<'_>, instance: InstanceId, migration: &Migration) -> bool {
    situation.hosts.get(&migration.to).is_some_and(|to| {
        let died =
            to.instance(instance).is_some_and(|fact| fact.phase.is_dead() && fact.epoch >= migration.epoch);
        to.is_open() && to.lease.value.number == migration.to_lease && !died
    })
}

fn accept(named: &Named<'_>, migration: &Migration) -> HostAction {
    let Named { node, record, instance, .. } = *named;
    let from = migration.from.clone();
    HostAction::Accept { node: node.clone(), instance, epoch: record.epoch, from }
}

fn restore(named: &Named<'_>) -> Option<HostAction> {
    let Named { node, record, instance, member, .. } = *named;
    let Origin::Restored(checkpoint) = member?.origin else { return None };
    let (node, environment) = (node.clone(), record.spec.environment.clone());
    Some(HostAction::Restore { node, instance, epoch: record.epoch, checkpoint, environment })
}

/// What was restored runs once its terminal's display lets nothing of an older epoch in any more, or has not said so in
/// time. Where the process of the one before was seen to end there is nothing that could come in: nobody waits then.
fn resume(situation: &Situation<'_>, named: &Named<'_>, since: Boottime) -> Option<HostAction> {
    let Named { node, record, instance, .. } = *named;
    let display = situation.nodes.get(&NodeId::display(node.terminal()));
    let primary = display.and_then(|display| display.value.primary.as_ref());
    let fact = primary.and_then(|primary| {
        let screen = primary.instance?;
        let here = situation.local.get(&screen).filter(|_| &primary.host == situation.me);
        here.map(|local| &local.fact).or_else(|| situation.hosts.get(&primary.host)?.instance(screen))
    });
    let let_in =
        fact.is_none_or(|fact| fact.admitted.get(node).is_some_and(|let_in| *let_in >= record.epoch));
    let waited = situation.now.boottime.since(since) >= INTAKE;
    let incident = record.incident.as_ref().filter(|incident| incident.epoch == record.epoch);
    let ended = incident.is_some_and(|incident| {
        incident.cause.is_seen() && incident.last.as_ref().is_none_or(Death::is_seen)
    });
    (let_in || waited || ended).then(|| HostAction::Resume {
        node: node.clone(),
        instance,
        epoch: record.epoch,
    })
}

/// What to do about a named instance that is here.
fn reconcile_instance(situation: &Situation<'_>, named: &Named<'_>, local: &Local) -> Vec<HostAction> {
    let Named { node, record, instance, part, .. } = *named;
    let epoch = record.epoch;
    let guard = |epoch| HostAction::Guard { node: node.clone(), instance, epoch };
    // While it leaves, the epoch that it was let run in stays its own.
    let begun = if is_migrating_out(situation, record) { local.fact.epoch } else { epoch };
    match &local.fact.phase {
        // It may be named again under the same id, to be restored or received: what is known of it is out of date.
        Phase::Dead { .. } if local.fact.epoch < named.since() => vec![HostAction::Forget { instance }],
        Phase::Dead { .. } => Vec::new(),
        Phase::Idle | Phase::Booting | Phase::Deploying | Phase::Restoring | Phase::Ready
            if named.is_anothers(local) =>
        {
            let death = Death::Destroyed { reason: "it was deployed for another node".to_owned() };
            let ended = (!situation.unreadable).then_some(HostAction::Destroy { instance, death });
            ended.into_iter().collect()
        }
        Phase::Booting => Vec::new(),
        Phase::Restoring | Phase::Ready if gave_up(named, local) => {
            let reason = "the migration that brought it was given up".to_owned();
            vec![HostAction::Destroy { instance, death: Death::Destroyed { reason } }]
        }
        Phase::Restoring => match (&record.migration, part) {
            (Some(migration), Part::Arriving) => vec![accept(named, migration)],
            (_, Part::Primary | Part::Backup | Part::Arriving) => match situation.loaded.get(&instance) {
                Some(loaded) => resume(situation, named, loaded.since).into_iter().collect(),
                None => restore(named).into_iter().collect(),
            },
        },
        Phase::Idle if yields(situation, named) => Vec::new(),
        Phase::Idle | Phase::Deploying if local.unguarded || local.fact.epoch < epoch => vec![guard(epoch)],
        Phase::Idle | Phase::Deploying => {
            let spec = Box::new(record.spec.clone());
            vec![HostAction::Deploy { node: node.clone(), instance, epoch, spec }]
        }
        Phase::Ready if part == Part::Arriving => match &record.migration {
            Some(migration) if local.fact.epoch < migration.epoch => vec![accept(named, migration)],
            Some(_) | None => Vec::new(),
        },
        Phase::Ready if local.unguarded || local.fact.epoch < begun => vec![guard(begun)],
        Phase::Ready => {
            let mut actions: Vec<HostAction> = leave(situation, named, local).into_iter().collect();
            match (node.role(), part) {
                (Role::Display, _) => actions.extend(admit(situation, node, instance, local)),
                (Role::Execution, Part::Primary) => {
                    actions.extend(send_windows(situation, node, record, instance, local));
                    actions.extend(due(situation, node, record, (instance, local)));
                }
                (Role::Execution, Part::Backup | Part::Arriving) => {}
            }
            actions
        }
    }
}

/// Whether it came, or is coming, by a migration that was abandoned before it was let run.
fn gave_up(named: &Named<'_>, local: &Local) -> bool {
    named.part == Part::Arriving
        && named
            .record
            .migration
            .as_ref()
            .is_some_and(|migration| migration.abandoned && local.fact.epoch < migration.epoch)
}

fn is_migrating_out(situation: &Situation<'_>, record: &NodeRecord) -> bool {
    record.migration.as_ref().is_some_and(|migration| &migration.from == situation.me)
}

fn leave(situation: &Situation<'_>, named: &Named<'_>, local: &Local) -> Option<HostAction> {
    let Named { node, record, instance, part, .. } = *named;
    let migration = record.migration.as_ref().filter(|migration| &migration.from == situation.me)?;
    if !migration.stands(Some(&local.fact)) || part != Part::Primary {
        return None;
    }
    let to = situation.hosts.get(&migration.to)?;
    let facts = to.current_facts().filter(|facts| facts.lease == migration.to_lease)?;
    Some(HostAction::MigrateOut {
        node: node.clone(),
        instance,
        epoch: migration.epoch,
        to: migration.to.clone(),
        uri: facts.migration_uri.clone(),
        data_uri: facts.migration_data_uri.clone(),
    })
}
