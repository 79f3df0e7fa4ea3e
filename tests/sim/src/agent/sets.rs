//! Owns the model of the daemon's part in the sets of policies: loading takes time and may fail, who may not lead gives
//! the leadership up, and the leader writes what becomes of a candidate.

use std::collections::BTreeMap;

use understudy_core::ids::HostId;
use understudy_core::sets::{PolicySetRecord, PolicySets, SetFacts, SetFault, Verdict};
use understudy_core::units::Now;
use understudy_core::view::View;

use super::{Agent, Tag};
use crate::Weakness;
use crate::store::{Key, Txn, Value};
use crate::world::{Body, World};

/// What an agent has of the sets, and which of them it is loading until when.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    pub(crate) facts: SetFacts,
    loading: BTreeMap<u64, u64>,
    /// The generation that the plan under way asked.
    planned: u64,
}

fn generation(set: &Option<understudy_core::view::Versioned<PolicySetRecord>>) -> u64 {
    set.as_ref().map_or(0, |set| set.value.generation)
}

impl Agent {
    /// Loads what stands in the records.
    pub(super) fn tend_sets(&mut self, world: &mut World) {
        let Some(known) = self.mirror.as_ref().map(|mirror| mirror.sets.clone()) else { return };
        let (active, candidate) = (generation(&known.active), generation(&known.candidate));
        let stands = |number: &u64| *number != 0 && (*number == active || *number == candidate);
        self.sets.facts.ready.retain(|number| stands(number));
        self.sets.facts.faults.retain(|number, _| stands(number));
        self.sets.loading.retain(|number, _| stands(number));
        for number in [active, candidate].into_iter().filter(stands) {
            let facts = &mut self.sets.facts;
            if facts.ready.contains(&number) || facts.faults.contains_key(&number) {
                continue;
            }
            let Some(&due) = self.sets.loading.get(&number) else {
                let due = world.now + world.sets_rng.between(50, 3_000);
                self.sets.loading.insert(number, due);
                continue;
            };
            if world.now < due {
                continue;
            }
            self.dirty = true;
            self.sets.loading.remove(&number);
            if number != active && world.sets_rng.chance(100) {
                facts.faults.insert(number, SetFault::Unusable("does not compile".to_owned()));
            } else {
                facts.ready.insert(number);
            }
        }
    }

    /// Whether it may lead. If not, it gives up what it has, or had in an earlier life.
    pub(super) fn may_lead(&mut self, world: &mut World, me: &HostId, view: &View) -> bool {
        let Some(mirror) = &self.mirror else { return false };
        let may = mirror.sets.may_lead(&self.sets.facts, &view.hosts);
        if may || world.weakness == Some(Weakness::LeadsWithoutSet) {
            return true;
        }
        let own = mirror.leader.as_ref().filter(|leader| leader.value.host == *me);
        if let Some(revision) = own.map(|leader| leader.revision).filter(|_| !self.bidding) {
            world.note(format!("{me} gives up the leadership: its policies are not ready"));
            self.bidding = true;
            let txn = Txn { when: vec![(Key::Leader, revision)], writes: vec![(Key::Leader, None)] };
            self.send(world, me, Tag::Resign, Body::Commit(txn));
        }
        self.leading = None;
        false
    }

    /// As leader: what becomes of the candidate. Whether something was written.
    pub(super) fn settle_sets(
        &mut self,
        world: &mut World,
        me: &HostId,
        (view, leadership): (&View, u64),
        now: Now,
    ) -> bool {
        let Some(sets) = self.mirror.as_ref().map(|mirror| mirror.sets.clone()) else { return false };
        let (write, told) = match sets.judge(&view.hosts, now.wall) {
            Some(Verdict::Activate(record)) => {
                let told = format!("set {} decides from here on", record.generation);
                ((Key::ActiveSet, Some(Value::Set(Box::new(record)))), told)
            }
            Some(Verdict::Refuse(refused)) => {
                let told = format!("set {} is refused: {}", refused.generation, refused.reason);
                ((Key::RefusedSet, Some(Value::Refused(refused))), told)
            }
            Some(Verdict::Waits(_)) | None => return false,
        };
        world.note(told);
        let revision = |set: &Option<understudy_core::view::Versioned<PolicySetRecord>>| {
            set.as_ref().map_or(0, |set| set.revision)
        };
        let txn = Txn {
            when: vec![
                (Key::Leader, leadership),
                (Key::ActiveSet, revision(&sets.active)),
                (Key::CandidateSet, revision(&sets.candidate)),
            ],
            writes: vec![write, (Key::CandidateSet, None)],
        };
        self.writing += 1;
        self.send(world, me, Tag::Settled, Body::Commit(txn));
        true
    }

    /// A plan is about to be made: by whom is it decided?
    pub(super) fn asks_its_set(&mut self, world: &mut World, me: &HostId, view: &View) {
        let Some(sets) = self.mirror.as_ref().map(|mirror| &mirror.sets) else { return };
        self.sets.planned = generation(&sets.active);
        let others = |host: &&HostId| **host != *me;
        let has = |facts: &SetFacts| facts.ready.contains(&self.sets.planned);
        let elsewhere = view
            .hosts
            .keys()
            .filter(others)
            .any(|host| view.hosts[host].current_facts().is_some_and(|facts| has(&facts.policies)));
        if self.sets.planned != 0
            && !has(&self.sets.facts)
            && (elsewhere || self.sets.facts.faults.is_empty())
        {
            world.fail(format!("SETS: {me} plans without set {}", self.sets.planned));
        }
    }

    /// What was planned is written: it must have been decided by the set that was active then, whoever led before.
    pub(super) fn written_by_its_set(&self, world: &mut World, me: &HostId, revision: u64) {
        let active = world.store.active_set_at(revision);
        if active != self.sets.planned {
            let planned = self.sets.planned;
            world.fail(format!(
                "SETS: {me} wrote at {revision} what set {planned} decided, and {active} decides"
            ));
        }
    }
}

impl World {
    /// Somebody changes a file: a set is proposed.
    pub(crate) fn propose_set(&mut self) {
        let hosts = self.hosts();
        let Some(host) = self.sets_rng.pick(&hosts).cloned() else { return };
        let sets: PolicySets = self.store.list().sets;
        let record = PolicySetRecord {
            generation: sets.newest() + 1,
            components: BTreeMap::new(),
            settings: String::new(),
            set_aside: BTreeMap::new(),
            by: host,
        };
        self.note(format!("set {} is proposed", record.generation));
        let when = vec![(Key::CandidateSet, self.store.revision_of(&Key::CandidateSet))];
        let written =
            self.commit(Txn { when, writes: vec![(Key::CandidateSet, Some(Value::Set(Box::new(record))))] });
        debug_assert!(written.is_ok(), "whoever proposes reads before it writes");
    }

    /// The candidate that stands.
    pub(crate) fn candidate_set(&self) -> Option<u64> {
        self.store.list().sets.candidate.map(|set| set.value.generation)
    }
}

/// For the store's mirror.
pub(crate) fn put(sets: &mut PolicySets, key: &Key, value: Option<&Value>, revision: u64) {
    use understudy_core::view::Versioned;
    let set = |value: Option<&Value>| match value {
        Some(Value::Set(set)) => Some(Versioned { value: set.as_ref().clone(), revision }),
        _ => None,
    };
    let refused = |value: Option<&Value>| match value {
        Some(Value::Refused(refused)) => Some(Versioned { value: refused.clone(), revision }),
        _ => None,
    };
    match key {
        Key::ActiveSet => sets.active = set(value),
        Key::CandidateSet => sets.candidate = set(value),
        Key::RefusedSet => sets.refused = refused(value),
        _ => {}
    }
}
