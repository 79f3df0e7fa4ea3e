//! Owns the picture of the cluster that decisions are made from: what the store holds, and since when each host has been
//! silent.
//!
//! Promises: nothing but data; a copy shares whatever did not change since; what is asked about one host or one instance
//! looks at the nodes that concern it, and no others. Must not do: decide.
//!
//! Cost, with N records: a copy O(1), a look-up or change O(log N), a question about a host O(its instances and nodes).

mod display;
mod nodes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::death::Death;
use crate::model::ids::{Epoch, HostId, InstanceId, NodeId, TerminalId};
use crate::model::records::{
    HostFacts, HostIntent, InstanceFact, LeaseRecord, Member, NodeRecord, NodeSpec, Phase, Protection,
    TerminalRecord,
};
use crate::model::units::{Boottime, MiB, UnixMillis, Vcpus};

pub use display::{Display, Gateways};
pub use nodes::{Nodes, SharedNode};

/// A record together with the revision at which it was read: what a compare-and-swap compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The record.
    pub value: T,
    /// The store's revision of its last change.
    pub revision: u64,
}

/// What changed from one map to another: each key with its values before and after. What both share is passed over, so
/// that this takes about as long as what changed.
pub fn diff<'a, K: Ord, V: PartialEq>(
    old: &'a OrdMap<K, V>,
    new: &'a OrdMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    // A map that is shared as a whole is not even looked into.
    let changes = (!old.ptr_eq(new)).then(|| old.diff(new));
    changes.into_iter().flatten().map(|item| match item {
        DiffItem::Add(key, value) => (key, None, Some(value)),
        DiffItem::Update { old: (_, before), new: (key, after) } => (key, Some(before), Some(after)),
        DiffItem::Remove(key, value) => (key, Some(value), None),
    })
}

/// All hosts, each shared by all copies that hold it unchanged.
pub type Hosts = OrdMap<HostId, Arc<HostView>>;

/// One host as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostView {
    /// What its agent reported last; none when it never did.
    pub facts: Option<Arc<HostFacts>>,
    /// Its lease.
    pub lease: Versioned<LeaseRecord>,
    /// The revision of the lease's last renewal; 0 before the first that was seen.
    pub renewed: u64,
    /// Since when this agent has seen neither the lease nor its renewal change, on its own clock; none where it does not
    /// follow renewals, and so cannot know.
    pub silent_since: Option<Boottime>,
    /// What the operator wants.
    pub intent: HostIntent,
}

/// An answer of a policy, or why there is none. Without one the built-in rule decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// The policy's answer, not yet checked.
    Given(T),
    /// There is no policy of this kind, or it failed.
    Unavailable,
}

/// Everything that a plan is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Every host that ever opened a lease.
    pub hosts: Hosts,
    /// Every terminal.
    pub terminals: OrdMap<TerminalId, Arc<TerminalRecord>>,
    /// Every node.
    pub nodes: Nodes,
    /// Nodes that have a record which could not be read: nothing is planned for them, and each of them may have any
    /// instance that nobody else does.
    pub quarantined: BTreeSet<NodeId>,
    /// Hosts whose lease could not be read: one that is not in `hosts` is not for that unknown.
    pub unread_hosts: BTreeSet<HostId>,
}

/// What is known of the death of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Liveness {
    /// Nothing says that it is dead.
    Alive,
    /// Known dead by the standard of SAFE-2.
    Dead {
        /// How.
        cause: Death,
        /// When it was found.
        found: UnixMillis,
    },
}

/// Where an instance's liveness is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The host.
    pub host: &'a HostId,
    /// The host's lease that ran it.
    pub lease: u64,
    /// What is reported of an older epoch is of an earlier life.
    pub since: Epoch,
}

impl HostView {
    /// Whether the host may run anything: its lease is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.lease.value.expired.is_none()
    }

    /// How long the lease has been seen without a renewal; not at all where renewals are not followed.
    #[must_use]
    pub fn silent_for(&self, now: Boottime) -> Duration {
        self.silent_since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// The revision of the last sign of life: the lease's own, or its renewal's.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.lease.revision.max(self.renewed)
    }

    /// The facts, if they were reported in the lease that is open now.
    #[must_use]
    pub fn current_facts(&self) -> Option<&HostFacts> {
        self.facts.as_deref().filter(|facts| self.is_open() && facts.lease == self.lease.value.number)
    }

    /// Whether it has reported, and nothing that it needs for its part is away.
    #[must_use]
    pub fn is_able(&self) -> bool {
        self.current_facts().is_some_and(|facts| facts.unable.is_empty())
    }

    /// Whether new work may be put here.
    #[must_use]
    pub fn accepts_work(&self) -> bool {
        self.is_able() && !self.intent.drain
    }

    /// What the host reports of an instance in its open lease.
    #[must_use]
    pub fn instance(&self, instance: InstanceId) -> Option<&InstanceFact> {
        self.current_facts().and_then(|facts| facts.instances.get(&instance))
    }
}

impl View {
    /// Whether the instance of a member, on the member's own host, is known dead.
    #[must_use]
    pub fn liveness(&self, node: &NodeRecord, member: &Member) -> Liveness {
        let since = node.since(member);
        self.liveness_at(Place { host: &member.host, lease: member.lease, since }, member.instance)
    }

    /// Whether `instance` is known dead at `place`. A host that is not in the view proves nothing.
    #[must_use]
    pub fn liveness_at(&self, place: Place<'_>, instance: Option<InstanceId>) -> Liveness {
        let Some(host) = self.hosts.get(place.host) else { return Liveness::Alive };
        let (record, lease) = (&host.lease.value, place.lease);
        if record.number == lease
            && let Some(end) = &record.expired
        {
            return Liveness::Dead { cause: Death::HostLost { reason: end.reason.clone() }, found: end.at };
        }
        if record.number > lease {
            let found = record.expired.as_ref().map_or_else(UnixMillis::default, |end| end.at);
            return Liveness::Dead { cause: Death::HostReturned, found };
        }
        let fact =
            instance.and_then(|instance| host.instance(instance)).filter(|fact| fact.epoch >= place.since);
        match fact.map(|fact| &fact.phase) {
            Some(Phase::Dead { death, at }) => Liveness::Dead { cause: death.clone(), found: *at },
            Some(Phase::Booting | Phase::Idle | Phase::Deploying | Phase::Restoring | Phase::Ready)
            | None => Liveness::Alive,
        }
    }

    /// How the state of a node is protected, by the last word of its primary's host on this life of it.
    #[must_use]
    pub fn protection(&self, node: &NodeId, record: &NodeRecord) -> Option<&Protection> {
        let facts = self.hosts.get(&record.primary.as_ref()?.host)?.facts.as_ref()?;
        facts.protection.get(node).filter(|known| known.incarnation == record.incarnation)
    }

    /// What its host reports of a member's instance.
    #[must_use]
    pub fn fact(&self, member: &Member) -> Option<&InstanceFact> {
        self.hosts.get(&member.host)?.instance(member.instance?)
    }

    /// Whether a member's role reported ready, in this life and for this node, and nothing says that it is dead.
    #[must_use]
    pub fn is_ready(&self, node: &NodeRecord, member: &Member) -> bool {
        // An idle instance may have been given to another node before, and its host not have heard that it was taken back.
        let owner = member.instance.and_then(|instance| self.nodes.naming(instance).first());
        let ready = self.fact(member).is_some_and(|fact| {
            fact.phase == Phase::Ready && fact.epoch >= node.since(member) && fact.node.as_ref() == owner
        });
        ready && self.liveness(node, member) == Liveness::Alive
    }

    /// Memory of `host` that is neither taken by a living instance, idle ones included, nor promised to a member.
    #[must_use]
    pub fn free_memory(&self, host: &HostId) -> MiB {
        let spare: MiB = self.spare(host, None).map(|fact| fact.memory).sum();
        self.room(host).saturating_sub(spare)
    }

    /// Memory of `host` for members: its idle instances give way to them.
    #[must_use]
    pub fn room(&self, host: &HostId) -> MiB {
        let Some(facts) = self.current_facts(host) else { return MiB(0) };
        facts.capacity.memory.saturating_sub(self.taken_memory(host, None))
    }

    /// Memory of `host` that living instances take, except those that stand by for anybody, and that is promised to
    /// members that do not run yet; `instead` takes the place of one node's record. What that record gives up on this
    /// host is not counted: it ends before its own node's next member needs the room.
    #[must_use]
    pub fn taken_memory(&self, host: &HostId, instead: Option<(&NodeId, &NodeRecord)>) -> MiB {
        MiB(self.taken(host, instead, |fact| fact.memory.0, |spec| spec.memory.0))
    }

    /// Processors of `host` that are neither taken by a living instance, idle ones included, nor promised to a member.
    #[must_use]
    pub fn free_vcpus(&self, host: &HostId) -> Vcpus {
        let Some(facts) = self.current_facts(host) else { return Vcpus(0) };
        let spare: u32 = self.spare(host, None).map(|fact| fact.vcpus.0).sum();
        let taken = self.taken(host, None, |fact| fact.vcpus.0.into(), |spec| spec.vcpus.0.into());
        let taken = u32::try_from(taken).unwrap_or(u32::MAX).saturating_add(spare);
        Vcpus(facts.capacity.vcpus.0.saturating_sub(taken))
    }

    /// What a host reports in its open lease.
    #[must_use]
    pub fn current_facts(&self, host: &HostId) -> Option<&HostFacts> {
        self.hosts.get(host).and_then(|seen| seen.current_facts())
    }

    /// The nodes that concern a host, with `instead` in the place of one node's record.
    fn records<'a>(
        &'a self,
        host: &'a HostId,
        instead: Option<(&'a NodeId, &'a NodeRecord)>,
    ) -> impl Iterator<Item = &'a NodeRecord> + use<'a> {
        let others =
            self.nodes.on_host(host).filter(move |(node, _)| instead.is_none_or(|(other, _)| other != *node));
        let own = instead.map(|(_, record)| record).filter(|record| record.touches(host));
        others.map(|(_, known)| &known.value).chain(own)
    }

    fn living(&self, host: &HostId) -> impl Iterator<Item = (InstanceId, &InstanceFact)> {
        let facts = self.current_facts(host);
        let all = facts.into_iter().flat_map(|facts| &facts.instances);
        all.filter(|(_, fact)| !fact.phase.is_dead()).map(|(&instance, fact)| (instance, fact))
    }

    /// Instances that stand by, or come to, for whoever needs one.
    fn spare<'a>(
        &'a self,
        host: &HostId,
        instead: Option<(&'a NodeId, &'a NodeRecord)>,
    ) -> impl Iterator<Item = &'a InstanceFact> {
        self.living(host)
            .filter(move |(instance, fact)| self.is_spare(*instance, fact, instead))
            .map(|(_, fact)| fact)
    }

    fn is_spare(
        &self,
        instance: InstanceId,
        fact: &InstanceFact,
        instead: Option<(&NodeId, &NodeRecord)>,
    ) -> bool {
        let idle = matches!(fact.phase, Phase::Idle | Phase::Booting);
        let nobodys = fact.node.is_none() && fact.epoch == Epoch(0);
        idle && nobodys && !self.is_named(instance, instead)
    }

    fn taken(
        &self,
        host: &HostId,
        instead: Option<(&NodeId, &NodeRecord)>,
        has: impl Fn(&InstanceFact) -> u64,
        needs: impl Fn(&NodeSpec) -> u64,
    ) -> u64 {
        let gives_up = |instance: InstanceId, fact: &InstanceFact| {
            instead.is_some_and(|(node, record)| {
                fact.node.as_ref() == Some(node) && record.instance_on(host) != Some(instance)
            })
        };
        let running: u64 = self
            .living(host)
            .filter(|(instance, fact)| !self.is_spare(*instance, fact, instead) && !gives_up(*instance, fact))
            .map(|(_, fact)| has(fact))
            .sum();
        let promised: u64 = self
            .records(host, instead)
            .map(|record| {
                let instance = record.instance_on(host);
                let fact = self.living(host).find(|(other, _)| instance == Some(*other));
                needs(&record.spec).saturating_sub(fact.map_or(0, |(_, fact)| has(fact)))
            })
            .sum();
        running.saturating_add(promised)
    }

    /// The idle instances of a host that no node has claimed, or that was guarded for one, yet.
    pub fn idle<'a>(&'a self, host: &HostId) -> impl Iterator<Item = (InstanceId, &'a InstanceFact)> {
        self.current_facts(host)
            .into_iter()
            .flat_map(|facts| &facts.instances)
            .filter(|(_, fact)| fact.phase == Phase::Idle && fact.node.is_none() && fact.epoch == Epoch(0))
            .map(|(&instance, fact)| (instance, fact))
            .filter(|(instance, _)| !self.is_claimed(*instance))
    }

    /// Whether a node names this instance (SAFE-6).
    #[must_use]
    pub fn is_claimed(&self, instance: InstanceId) -> bool {
        !self.nodes.naming(instance).is_empty()
    }

    /// The same, with `instead` in the place of one node's record.
    fn is_named(&self, instance: InstanceId, instead: Option<(&NodeId, &NodeRecord)>) -> bool {
        let naming = self.nodes.naming(instance);
        let Some((node, record)) = instead else { return !naming.is_empty() };
        naming.iter().any(|other| other != node)
            || record.members().any(|member| member.instance == Some(instance))
    }
}
