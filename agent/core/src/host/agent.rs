//! Owns the machine that decides what a host does: it takes inputs, keeps what is known of the host's instances, and gives
//! effects. The daemon and the simulation run this very value, and differ only in who carries effects out.
//!
//! ```text
//! hypervisor ─▶ guests ──┐                        ┌─▶ Start(job) ─▶ … ─▶ Finished ─▶ instances
//! records ───────────────┼─▶ Tick ─▶ reconcile ─▶ starts
//! jobs' outcomes ────────┘                        └─▶ destroys, until they are gone
//! ```
//!
//! Promises: the same inputs give the same effects; one job per instance and lane; a job of a lease that is over changes
//! nothing. Must not do: read a clock, block, or ask anybody.

mod checkpoints;
mod destroys;
mod due;
mod guests;
mod instances;
mod migrations;
mod refusals;
mod starts;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use uuid::Uuid;

pub use self::guests::LIBVIRTD_AWAY;

use self::destroys::Destroy;
use self::refusals::Ability;
use super::checkpoints::Checkpoints;
use super::input::{Condition, Effect, Input, Job, Outcome, Records};
use super::migration::{Arrival, Departure};
use super::{HostAction, Lane, Loaded, Local, PoolSettings, Situation, orphaned, reconcile};
use crate::bounds::{Bounds, RETRY};
use crate::death::Death;
use crate::model::ids::{Epoch, HostId, InstanceId, NodeId};
use crate::model::records::{HostFacts, InstanceFact, Service};
use crate::model::units::{Boottime, MiB, Now};

/// What a host's agent is set to.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// This host.
    pub me: HostId,
    /// Memory for instances; none before libvirt has said so.
    pub memory: MiB,
    /// The pool that is kept.
    pub pool: PoolSettings,
    /// Addresses that this host gives to guests.
    pub addresses: RangeInclusive<Ipv4Addr>,
    /// The cluster's time bounds.
    pub bounds: Bounds,
    /// What the names of idle instances are drawn from: no two agents, and no two runs of one, have the same.
    pub names: Uuid,
}

/// What is under way on one lane of one instance, with how often it failed in a row before.
#[derive(Debug, Clone, Copy)]
enum Busy {
    Running { tries: u32 },
    Waiting { until: Boottime, tries: u32 },
}

/// How far it is known what runs here under the lease.
#[derive(Debug, Clone, Copy)]
enum Standing {
    /// There is no lease.
    None,
    /// The lease goes on from an earlier agent, and what runs under it is not known yet.
    Resumed {
        /// What the recovery fails over, since when: nothing is begun meanwhile, whatever answers.
        fails: Option<(Service, Boottime)>,
    },
    /// What was here was found.
    Recovered,
}

impl Standing {
    fn is_resumed(self) -> bool {
        matches!(self, Self::Resumed { .. })
    }

    fn has_lease(self) -> bool {
        !matches!(self, Self::None)
    }

    fn is_recovered(self) -> bool {
        matches!(self, Self::Recovered)
    }
}

/// A restore that is tried again.
#[derive(Debug, Clone)]
struct Retry {
    node: NodeId,
    reason: String,
    /// How often the image was refused without a word on whether it is damaged.
    refusals: u32,
    /// Since when it fails.
    since: Boottime,
}

/// A host's agent.
#[derive(Debug)]
pub struct HostAgent {
    settings: HostSettings,
    now: Now,
    /// When it acted last on all that it knows.
    ticked: Boottime,
    /// What it did then may have made way for more.
    unsettled: bool,
    effects: Vec<Effect>,
    records: Records,
    lease: u64,
    standing: Standing,
    local: BTreeMap<InstanceId, Local>,
    lanes: BTreeMap<(InstanceId, Lane), Busy>,
    /// Instances that jobs bring to life, with the lease of each: they may not be there yet.
    starting: BTreeSet<(InstanceId, u64)>,
    /// Jobs that act on instances themselves, by their names, and are not over, with the lease of each: no life of an
    /// instance begins beside one that has outlasted its lease. An instance may be there twice: it is destroyed beside what
    /// else is under way with it.
    acting: Vec<(InstanceId, u64)>,
    /// Instances that come here by live migration.
    arrivals: BTreeMap<InstanceId, Arrival>,
    /// Instances that leave by live migration.
    departures: BTreeMap<InstanceId, Departure>,
    /// Instances whose process was seen to end while a job had the word on that.
    exited: BTreeSet<InstanceId>,
    destroys: BTreeMap<InstanceId, Destroy>,
    restores: BTreeMap<InstanceId, Retry>,
    loaded: BTreeMap<InstanceId, Loaded>,
    disks: BTreeMap<InstanceId, String>,
    filling: bool,
    fill_after: Boottime,
    named: u64,
    images: BTreeSet<NodeId>,
    checkpoints: Checkpoints,
    listing: bool,
    list_at: Boottime,
    /// Instances that may be gone, with when they are looked for again; none while somebody looks.
    looks: BTreeMap<InstanceId, Option<Boottime>>,
    conditions: BTreeMap<Condition, String>,
    ability: Ability,
}

impl HostAgent {
    /// An agent that knows nothing yet.
    #[must_use]
    pub fn new(settings: HostSettings) -> Self {
        Self {
            settings,
            now: Now::default(),
            ticked: Boottime::default(),
            unsettled: false,
            effects: Vec::new(),
            records: Records::default(),
            lease: 0,
            standing: Standing::None,
            local: BTreeMap::new(),
            lanes: BTreeMap::new(),
            starting: BTreeSet::new(),
            acting: Vec::new(),
            arrivals: BTreeMap::new(),
            departures: BTreeMap::new(),
            exited: BTreeSet::new(),
            destroys: BTreeMap::new(),
            restores: BTreeMap::new(),
            loaded: BTreeMap::new(),
            disks: BTreeMap::new(),
            filling: false,
            fill_after: Boottime::default(),
            named: 0,
            images: BTreeSet::new(),
            checkpoints: Checkpoints::default(),
            listing: false,
            list_at: Boottime::default(),
            looks: BTreeMap::new(),
            conditions: BTreeMap::new(),
            ability: Ability::default(),
        }
    }

    /// Takes one input and says what is to be done.
    pub fn handle(&mut self, input: Input, now: Now) -> Vec<Effect> {
        self.now = now;
        match input {
            Input::Records(records) => self.take_records(*records),
            Input::Recovered { lease, found } => self.recovered(lease, found),
            Input::Resumed { lease } => {
                (self.lease, self.standing) = (lease, Standing::Resumed { fails: None });
                self.ability.owes_report = true;
                self.inherit_protection();
            }
            Input::Reported { lease } if lease == self.lease => self.ability.owes_report = false,
            Input::Reported { .. } => {}
            Input::Unrecovered { service } => self.unrecovered(service),
            Input::LeaseLost => self.lease_lost(),
            Input::Hypervisor(event) => self.domain_event(event),
            Input::Listed(shown) => self.listed(shown),
            Input::Looked { instance, there } => self.looked(instance, there),
            Input::Images(nodes) => self.images = nodes,
            Input::Service { service, answers } => self.service(service, answers),
            Input::Memory(memory) => self.settings.memory = memory,
            Input::Finished { job, outcome } => self.finish(*job, outcome),
            Input::Stepped { job, answer } => self.stepped(&job, answer),
            Input::Copy { node, id, event } => self.copy_event(&node, id, event),
            Input::Tick { open } if self.standing.is_recovered() => self.reconcile(open),
            Input::Tick { open } => self.await_recovery(open),
        }
        std::mem::take(&mut self.effects)
    }

    /// What is known of this host's instances.
    #[must_use]
    pub fn local(&self) -> &BTreeMap<InstanceId, Local> {
        &self.local
    }

    /// What this host reports of its instances: what an earlier agent reported, as long as nobody could look.
    #[must_use]
    pub fn instances(&self) -> BTreeMap<InstanceId, InstanceFact> {
        let mut instances = match self.predecessor() {
            Some(facts) if self.standing.is_resumed() => facts.instances.clone(),
            Some(_) | None => BTreeMap::new(),
        };
        instances.extend(self.local.iter().map(|(&id, local)| (id, local.fact.clone())));
        instances
    }

    /// What was reported under the lease that is open.
    fn predecessor(&self) -> Option<&HostFacts> {
        let facts = self.records.view.hosts.get(&self.settings.me)?.facts.as_deref()?;
        (facts.lease == self.lease).then_some(facts)
    }

    /// Where a live migration takes an instance of this host, as far as it is known to stand.
    #[must_use]
    pub fn leaves_for(&self, instance: InstanceId) -> Option<HostId> {
        let (me, nodes) = (&self.settings.me, &self.records.view.nodes);
        let migration = nodes.naming(instance).iter().find_map(|node| {
            let record = &nodes.get(node)?.value;
            let of_it = record.primary.as_ref().is_some_and(|primary| primary.instance == Some(instance));
            record.migration.as_ref().filter(|migration| of_it && &migration.from == me)
        })?;
        let stands = migration.stands(self.local.get(&instance).map(|local| &local.fact));
        stands.then(|| migration.to.clone())
    }

    /// What goes on was found; whatever was under way belonged to the lease before.
    fn recovered(&mut self, lease: u64, found: BTreeMap<InstanceId, Local>) {
        let before = std::mem::replace(&mut self.local, found);
        let goes_on = self.standing.is_resumed() && self.lease == lease;
        (self.lease, self.standing) = (lease, Standing::Recovered);
        self.forget_work();
        if goes_on {
            self.keep_refused(before);
        }
        self.ability.owes_report &= goes_on;
        self.recover_started();
        self.exited.clear();
        if goes_on {
            self.hear_predecessor();
        }
        self.show_destroys();
        self.show_restores();
        self.review_arrivals();
        self.list();
        // A death between the looking and the lease was of an instance that was not known yet.
        let living: Vec<InstanceId> =
            self.local.keys().copied().filter(|&instance| self.lives(instance)).collect();
        for instance in living {
            self.look_for(instance);
        }
    }

    /// What runs here is not known: nothing is begun or ended meanwhile, but what comes, and what came in vain.
    fn await_recovery(&mut self, open: bool) {
        (self.ticked, self.unsettled) = (self.now.boottime, false);
        self.review_arrivals();
        if open && self.standing.is_resumed() {
            self.refuse();
        }
    }

    fn take_records(&mut self, records: Records) {
        self.records = records;
        self.inherit_protection();
        self.take_over();
        if self.standing.is_recovered() && self.owes_report() {
            self.hear_predecessor();
        }
        self.review_checkpoints();
        self.review_arrivals();
        if !self.restores.is_empty() {
            self.show_restores();
        }
        // Whoever is a backup may get an image at any time.
        let here = self.records.view.nodes.on_host(&self.settings.me);
        let kept = here.filter(|(node, known)| known.value.holds_places(node.role()));
        let new = kept.map(|(node, _)| node).filter(|node| !self.images.contains(*node));
        let new: Vec<NodeId> = new.cloned().collect();
        self.images.extend(new);
    }

    fn lease_lost(&mut self) {
        self.standing = Standing::None;
        self.local.retain(|_, local| local.fact.node.is_none());
        self.forget_work();
        self.review_arrivals();
    }

    fn forget_work(&mut self) {
        self.lanes.clear();
        self.departures.clear();
        self.destroys.clear();
        self.restores.clear();
        self.loaded.clear();
        self.looks.clear();
        self.filling = false;
        let stopped = self.checkpoints.stop();
        self.effects.extend(stopped);
    }

    /// Acts on all that is known.
    fn reconcile(&mut self, open: bool) {
        (self.ticked, self.unsettled) = (self.now.boottime, false);
        self.review_checkpoints();
        self.review_arrivals();
        if open {
            self.refuse();
        }
        let outlasting = self.acting.iter().filter(|(_, lease)| *lease != self.lease);
        let busy: BTreeSet<(InstanceId, Lane)> = self
            .lanes
            .iter()
            .filter(|(_, busy)| match busy {
                Busy::Running { .. } => true,
                Busy::Waiting { until, .. } => *until > self.now.boottime,
            })
            .map(|(&lane, _)| lane)
            .chain(self.destroys.keys().chain(self.arrivals.keys()).map(|&instance| (instance, Lane::Domain)))
            .chain(outlasting.map(|&(instance, _)| (instance, Lane::Domain)))
            .collect();
        let resting = self.checkpoints.resting(self.now.boottime);
        let (view, me) = (&self.records.view, &self.settings.me);
        let situation = Situation {
            me,
            lease: open.then_some(self.lease),
            draining: view.hosts.get(me).is_some_and(|host| host.intent.drain),
            nodes: &view.nodes,
            hosts: &view.hosts,
            unreadable: self.records.unreadable,
            local: &self.local,
            busy: &busy,
            images: &self.images,
            last_checkpoint: &self.checkpoints.last_checkpoint,
            resting: &resting,
            bases: &self.checkpoints.bases,
            loaded: &self.loaded,
            checkpoint_interval: self.settings.bounds.checkpoint_interval,
            pool: self.settings.pool,
            filling: self.filling || self.fill_after > self.now.boottime,
            free: self.free_memory(),
            now: self.now,
            windows_first: self.settings.bounds.windows_first,
        };
        let (actions, orphaned) = (reconcile(&situation), orphaned(&situation));
        for action in actions {
            self.start(action);
        }
        for instance in orphaned {
            if matches!(self.lanes.get(&(instance, Lane::Domain)), Some(Busy::Running { .. })) {
                self.destroy(instance, "no node names it as a member any more");
            }
        }
        self.force_failovers();
        self.retry_destroys();
        self.look_again();
        if open && !self.listing && self.list_at <= self.now.boottime {
            self.list();
        }
    }

    /// What the host has less what its members, reserved places and idle instances take.
    fn free_memory(&self) -> MiB {
        let touching = self.records.view.nodes.on_host(&self.settings.me);
        let promised: MiB = touching.map(|(_, known)| known.value.spec.memory).sum();
        let idle = |local: &&Local| local.fact.node.is_none() && !local.fact.phase.is_dead();
        let idle: MiB = self.local.values().filter(idle).map(|local| local.fact.memory).sum();
        self.settings.memory.saturating_sub(promised + idle)
    }

    /// An operator's failover is a death that this host brings about itself.
    fn force_failovers(&mut self) {
        let Records { view, failovers, .. } = &self.records;
        let asked: Vec<InstanceId> = failovers
            .iter()
            .filter_map(|(node, epoch)| Some((&view.nodes.get(node)?.value, epoch)))
            .filter(|(record, epoch)| record.epoch == **epoch && record.migration.is_none())
            .filter_map(|(record, _)| record.primary.as_ref())
            .filter(|primary| primary.host == self.settings.me)
            .filter_map(|primary| primary.instance)
            .filter(|&instance| self.lives(instance))
            .collect();
        for instance in asked {
            self.destroy(instance, "an operator asked for a failover");
        }
    }

    fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn raise(&mut self, condition: Condition, text: String) {
        if self.conditions.get(&condition) != Some(&text) {
            self.conditions.insert(condition, text.clone());
            self.effect(Effect::Raise(condition, text));
        }
    }

    fn clear(&mut self, condition: Condition) {
        if self.conditions.remove(&condition).is_some() {
            self.effect(Effect::Clear(condition));
        }
    }

    fn lives(&self, instance: InstanceId) -> bool {
        self.local.get(&instance).is_some_and(|local| !local.fact.phase.is_dead())
    }
}
