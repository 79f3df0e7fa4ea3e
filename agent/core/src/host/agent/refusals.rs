//! Owns the refusals: members that this host was given, has not begun, and cannot begin for want of its guard or libvirtd.
//!
//! Promises: only what was never let run for its node is refused; a refusal is a death in the node's epoch and is for good
//! (design, rule 8): nothing begins that instance in that epoch any more. What is here of it is destroyed first, which
//! needs no libvirtd, and is dead once it is gone (SAFE-2). A wait of [`REFUSE`] lets a service that restarts come back
//! first. An agent that starts while libvirtd is away, and so cannot look at what runs, gives back what came after its
//! first reading of the store and is to be made here. A report that an earlier agent had on its way to the store may land
//! late, and the leader act on the deaths in it: under a lease that goes on nothing is begun before a report of this agent's
//! own stands in the store, over which no earlier one can come any more, and what landed until then holds. One of another
//! version that lands so late that only this agent's own report is over it is not seen. Must not do: refuse what a live
//! migration brings, or what may have begun before this agent started.
//!
//! Cost: nothing while all services answer; else one walk over this host's own nodes a tick.

use std::collections::{BTreeMap, BTreeSet};

use super::{Busy, HostAction, HostAgent, Lane, Local, Standing};
use crate::bounds::REFUSE;
use crate::death::Death;
use crate::model::ids::{Epoch, InstanceId, NodeId};
use crate::model::records::{Member, NodeRecord, Origin, Phase, Service};
use crate::model::units::Boottime;

/// What of this host does not answer, since when; and which members were begun, in which epoch of their nodes.
#[derive(Debug, Default)]
pub(super) struct Ability {
    unable: BTreeMap<Service, Boottime>,
    /// What the store named here at its first reading, in whatever epoch: an earlier agent may have begun it. None before
    /// that, and while something cannot be read.
    inherited: Option<BTreeSet<InstanceId>>,
    started: BTreeSet<(InstanceId, Epoch)>,
    /// What an earlier agent reports of the lease may still come.
    pub(super) owes_report: bool,
}

impl HostAgent {
    /// What of this host cannot do its part at present.
    #[must_use]
    pub fn unable(&self) -> BTreeSet<Service> {
        self.lacks().map(|(service, _)| service).collect()
    }

    fn lacks(&self) -> impl Iterator<Item = (Service, Boottime)> {
        let fails = match self.standing {
            Standing::Resumed { fails } => fails,
            Standing::None | Standing::Recovered => None,
        };
        self.ability.unable.iter().map(|(&service, &since)| (service, since)).chain(fails)
    }

    pub(super) fn unrecovered(&mut self, service: Service) {
        if let Standing::Resumed { fails } = &mut self.standing {
            let since = fails.map_or(self.now.boottime, |(_, since)| since);
            *fails = Some((service, since));
        }
    }

    pub(super) fn service(&mut self, service: Service, answers: bool) {
        if answers {
            self.ability.unable.remove(&service);
        } else {
            self.ability.unable.entry(service).or_insert(self.now.boottime);
        }
    }

    /// From here on it may act for its node.
    pub(super) fn begins(&mut self, instance: InstanceId, epoch: Epoch) {
        self.ability.started.insert((instance, epoch));
    }

    /// The earlier agent is gone, and whatever it began was named before.
    pub(super) fn take_over(&mut self) {
        if self.ability.inherited.is_some() || self.records.unreadable {
            return;
        }
        let named = self.members_here().filter_map(|(_, _, member)| member.instance).collect();
        self.ability.inherited = Some(named);
    }

    /// Whether it has to report, changed or not, before it begins anything.
    #[must_use]
    pub fn owes_report(&self) -> bool {
        self.ability.owes_report
    }

    /// Whether it is too early for what is asked: it would begin something that an earlier agent may have refused.
    pub(super) fn is_too_early(&self, action: &HostAction) -> bool {
        self.ability.owes_report
            && match action {
                HostAction::Create { .. } | HostAction::Deploy { .. } | HostAction::Restore { .. } => true,
                // One that serves in this epoch and that the guard has lost is registered without delay.
                HostAction::Guard { instance, epoch, .. } => {
                    self.local.get(instance).is_none_or(|local| local.fact.epoch < *epoch)
                }
                HostAction::Resume { .. }
                | HostAction::Accept { .. }
                | HostAction::CreateIdle(_)
                | HostAction::Admit { .. }
                | HostAction::SendWindows(_)
                | HostAction::Checkpoint { .. }
                | HostAction::MigrateOut { .. }
                | HostAction::Destroy { .. }
                | HostAction::Forget { .. }
                | HostAction::Missing { .. }
                | HostAction::DropImages { .. } => false,
            }
    }

    /// What an earlier agent has reported, and that is seen only now: what it called dead is dead, for the leader may have
    /// acted on that, and what it called ready was ready and is looked for.
    pub(super) fn hear_predecessor(&mut self) {
        let reported = self.predecessor().map(|facts| facts.instances.clone()).unwrap_or_default();
        for (instance, fact) in reported {
            let known = self.local.get(&instance).map(|local| (local.fact.epoch, local.fact.phase.is_dead()));
            let stands =
                known.is_some_and(|(epoch, dead)| epoch > fact.epoch || (dead && epoch == fact.epoch));
            match &fact.phase {
                Phase::Dead { death: death @ Death::Refused { .. }, .. }
                    if !stands && self.has_a_process(instance) =>
                {
                    self.destroy_as(instance, death.clone());
                }
                Phase::Dead { .. } if known.is_none() => drop(self.local.insert(instance, Local::of(fact))),
                Phase::Dead { death: Death::Refused { .. }, .. } if !stands => {
                    self.local.insert(instance, Local::of(fact));
                }
                Phase::Ready if known.is_none() => {
                    self.local.insert(instance, Local::of(fact));
                    self.look_for(instance);
                }
                Phase::Dead { .. }
                | Phase::Ready
                | Phase::Booting
                | Phase::Idle
                | Phase::Deploying
                | Phase::Restoring => {}
            }
        }
    }

    /// A refusal from before the recovery is for good: should there be something of it after all, it does not stay.
    pub(super) fn keep_refused(&mut self, before: BTreeMap<InstanceId, Local>) {
        for (instance, local) in before {
            if let Phase::Dead { death: death @ Death::Refused { .. }, .. } = &local.fact.phase {
                self.destroy_as(instance, death.clone());
                self.local.insert(instance, local);
            }
        }
    }

    /// An earlier agent may have begun whatever lives here and has a name.
    pub(super) fn recover_started(&mut self) {
        let named = self.members_here();
        let named = named.filter_map(|(_, record, member)| Some((member.instance?, record.epoch)));
        self.ability.started = named.filter(|(instance, _)| self.lives(*instance)).collect();
    }

    /// When what cannot be begun is given back, for each service that does not answer.
    pub(super) fn refusals_due(&self) -> impl Iterator<Item = Boottime> {
        self.lacks().map(|(_, since)| since + REFUSE)
    }

    /// Gives back what cannot be begun.
    pub(super) fn refuse(&mut self) {
        let now = self.now.boottime;
        let Some((service, _)) = self.lacks().find(|(_, since)| now.since(*since) >= REFUSE) else { return };
        let refused: Vec<(NodeId, InstanceId, Epoch)> = self
            .members_here()
            .filter_map(|(node, record, member)| {
                Some((node.clone(), self.waiting(node, record, member)?, record.epoch))
            })
            .collect();
        for (node, instance, epoch) in refused {
            let death = Death::Refused { service };
            if self.has_a_process(instance) {
                self.destroy_as(instance, death);
            } else {
                self.dead_in_epoch(instance, Some(node), epoch, death);
            }
        }
    }

    /// What nodes name on this host.
    fn members_here(&self) -> impl Iterator<Item = (&NodeId, &NodeRecord, &Member)> {
        let me = &self.settings.me;
        self.records.view.nodes.on_host(me).flat_map(move |(node, known)| {
            let here = known.value.members().filter(move |member| &member.host == me);
            here.map(move |member| (node, &known.value, member))
        })
    }

    /// Between two tries of a restore there is none.
    fn has_a_process(&self, instance: InstanceId) -> bool {
        let phase = self.local.get(&instance).map(|local| &local.fact.phase);
        match phase {
            Some(Phase::Restoring) => self.loaded.contains_key(&instance),
            Some(Phase::Booting | Phase::Idle | Phase::Deploying | Phase::Ready) => true,
            Some(Phase::Dead { .. }) | None => false,
        }
    }

    /// Whether an earlier agent may have begun it, as far as can be told before anybody has looked. Where that agent's
    /// report or a name cannot be read, it may.
    fn may_have_begun(&self, instance: InstanceId) -> bool {
        let (Some(inherited), Some(facts)) = (&self.ability.inherited, self.predecessor()) else {
            return true;
        };
        let reported = facts.instances.get(&instance).is_some_and(|fact| !fact.phase.is_dead());
        self.records.unreadable
            || reported
            || inherited.contains(&instance)
            || self.local.contains_key(&instance)
    }

    /// The instance of a member that waits to be begun, and of which nothing was begun.
    fn waiting(&self, node: &NodeId, record: &NodeRecord, member: &Member) -> Option<InstanceId> {
        let instance = member.instance.filter(|_| member.lease == self.lease)?;
        let running = matches!(self.lanes.get(&(instance, Lane::Domain)), Some(Busy::Running { .. }));
        let occupied = running
            || record.migration.is_some()
            || self.destroys.contains_key(&instance)
            || self.starting.iter().any(|(made, _)| *made == instance)
            || self.ability.started.contains(&(instance, record.epoch))
            || (!self.standing.is_recovered() && self.may_have_begun(instance));
        let local = self.local.get(&instance);
        let waits = match member.origin {
            Origin::Created => local.is_none_or(|local| is_fresh(node, local)),
            Origin::Idle => local.is_some_and(|local| is_fresh(node, local)),
            Origin::Restored(_) => local.is_none_or(|local| match local.fact.phase {
                Phase::Restoring => true,
                Phase::Dead { .. } => local.fact.epoch < record.incarnation,
                Phase::Booting | Phase::Idle | Phase::Deploying | Phase::Ready => false,
            }),
            // Ready, and not acknowledged by the guard as the primary that it is to be.
            Origin::Promoted => local.is_some_and(|local| {
                local.fact.phase == Phase::Ready && local.fact.epoch < record.incarnation
            }),
            Origin::Migrated | Origin::Reserved => false,
        };
        (waits && !occupied).then_some(instance)
    }
}

/// It has no role yet, and none but this node's is on its way to it.
fn is_fresh(node: &NodeId, local: &Local) -> bool {
    matches!(local.fact.phase, Phase::Booting | Phase::Idle)
        && local.fact.node.as_ref().is_none_or(|of| of == node)
}
