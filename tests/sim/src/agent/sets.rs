//! Owns the model of the daemon's part in the sets of policies: loading takes time and may fail, and what was refused is
//! proposed again. Holds core's `Leadership` to what the sets promise.

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_core::keys::{Key, encode};
use understudy_core::model::ids::HostId;
use understudy_core::model::units::Boottime;
use understudy_core::model::view::View;
use understudy_core::sets::{OpenHosts, PolicySetRecord, PolicySets, Refusal, SetFacts, SetFault};
use understudy_store::Txn;

use super::Agent;
use crate::Weakness;
use crate::cached_store::unchanged;
use crate::machine::Change;
use crate::world::World;

/// What an agent has of the sets, and which of them it is loading until when.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    pub(crate) facts: SetFacts,
    loading: BTreeMap<u64, u64>,
    /// The last refusal of what changed in its folder. An agent that starts anew has none, and proposes at once.
    refusal: Option<Refusal>,
}

/// How long after it is due a refused change is looked for in vain before that is a fault: some looks of an agent.
const OVERDUE: Duration = Duration::from_secs(5);

fn generation(set: &Option<understudy_core::model::view::Versioned<PolicySetRecord>>) -> u64 {
    set.as_ref().map_or(0, |set| set.value.generation)
}

fn open(view: &View) -> OpenHosts {
    let open = view.hosts.iter().filter(|(_, seen)| seen.is_open());
    open.map(|(host, seen)| (host.clone(), seen.lease.value.number)).collect()
}

impl Agent {
    /// Loads what stands in the records.
    pub(super) fn step_sets(&mut self, world: &mut World) {
        let Some(known) = self.cache.as_ref().map(|cache| cache.policies.clone()) else { return };
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
            if number != active && world.changing_sets && world.sets_rng.chance(100) {
                facts.faults.insert(number, SetFault::Unusable("does not compile".to_owned()));
            } else {
                facts.ready.insert(number);
            }
        }
    }

    /// What became of the change in its folder, and whether it is to be proposed again.
    pub(super) fn step_change(&mut self, world: &mut World, me: &HostId, view: &View, clock: Boottime) {
        let Some(sets) = self.cache.as_ref().map(|cache| cache.policies.clone()) else { return };
        let active = generation(&sets.active);
        match world.machine(me).change {
            Change::Proposed(number) if active >= number => {
                world.machine_mut(me).change = Change::Known;
                self.sets.refusal = None;
            }
            Change::Proposed(number) if sets.candidate.is_none() => {
                let refused = sets.refused.as_ref().map(|set| &set.value);
                let Some(refused) = refused.filter(|set| set.generation >= number) else { return };
                world.machine_mut(me).change = Change::Refused;
                self.sets.refusal =
                    Some(Refusal::by_hosts(self.sets.refusal.as_ref(), refused, active, clock));
            }
            Change::Refused if world.weakness != Some(Weakness::GivesUpSets) => {
                let due = self.sets.refusal.as_ref().map(|refusal| refusal.due(active, &open(view)));
                if due.is_none_or(|due| due <= clock) && world.machine(me).linked(world.now) {
                    world.note(format!("{me} proposes again what was refused"));
                    world.propose(me, &sets);
                }
            }
            Change::Known | Change::Proposed(_) | Change::Refused => {}
        }
    }

    /// Its folder changed: what was refused before is another change.
    fn forget_refusal(&mut self) {
        self.sets.refusal = None;
    }

    /// When what was refused was to be proposed again.
    fn due(&self) -> Option<Boottime> {
        let cache = self.cache.as_ref()?;
        let open = open(cache.view());
        Some(self.sets.refusal.as_ref()?.due(generation(&cache.policies.active), &open))
    }

    /// The generation of the set that decides, as far as it knows.
    pub(super) fn active_set(&self) -> u64 {
        self.cache.as_ref().map_or(0, |cache| generation(&cache.policies.active))
    }

    /// Something is decided: does the set that decides stand ready?
    pub(super) fn asks_its_set(&self, world: &mut World, me: &HostId) {
        let (Some(cache), active) = (&self.cache, self.active_set()) else { return };
        let hosts = &cache.view().hosts;
        let has = |facts: &SetFacts| facts.ready.contains(&active);
        let elsewhere = hosts
            .iter()
            .filter(|(host, _)| *host != me)
            .any(|(_, seen)| seen.current_facts().is_some_and(|facts| has(&facts.policies)));
        if active != 0 && !has(&self.sets.facts) && (elsewhere || self.sets.facts.faults.is_empty()) {
            world.fail(format!("SETS: {me} plans without set {active}"));
        }
    }
}

impl Sets {
    /// What it says that it has: with the protection switched off, whatever decides.
    pub(super) fn shown(&self, sets: &PolicySets, weakness: Option<Weakness>) -> SetFacts {
        let mut facts = self.facts.clone();
        if weakness == Some(Weakness::LeadsWithoutSet) {
            facts.ready.insert(generation(&sets.active));
        }
        facts
    }
}

impl World {
    /// What a set decided is written: it must have been the one that was active then, whoever led before.
    pub(super) fn written_by_its_set(&mut self, me: &HostId, revision: u64, decided_by: u64) {
        let active = self.truth.active_set_at(revision);
        if active != decided_by {
            self.fail(format!(
                "SETS: {me} wrote at {revision} what set {decided_by} decided, and {active} decides"
            ));
        }
    }

    /// Somebody changes a file: a set is proposed.
    pub(crate) fn propose_set(&mut self) {
        let hosts = self.hosts();
        let Some(host) = self.sets_rng.pick(&hosts).cloned() else { return };
        if let Some(agent) = &mut self.machine_mut(&host).agent {
            agent.forget_refusal();
        }
        let sets = self.truth.store().policies.clone();
        self.propose(&host, &sets);
    }

    /// The folder of a host is proposed as a set, if `sets` are those that stand.
    fn propose(&mut self, host: &HostId, sets: &PolicySets) {
        let record = PolicySetRecord {
            generation: sets.newest() + 1,
            components: BTreeMap::new(),
            settings: String::new(),
            suspended: BTreeMap::new(),
            restored: BTreeMap::new(),
            by: host.clone(),
        };
        let number = record.generation;
        let candidate = Key::PolicyCandidate;
        let txn = Txn::new()
            .when(unchanged(&Key::PolicyActive, sets.active.as_ref().map_or(0, |set| set.revision)))
            .when(unchanged(&candidate, sets.candidate.as_ref().map_or(0, |set| set.revision)))
            .when(unchanged(&Key::PolicyRefused, sets.refused.as_ref().map_or(0, |set| set.revision)))
            .put(candidate.to_string(), encode(&record));
        if self.commit(&txn) {
            self.note(format!("set {number} is proposed"));
            self.machine_mut(host).change = Change::Proposed(number);
        }
    }

    /// What a healed host still waits for with its change; nothing while its time has not come.
    pub(crate) fn lacking_change(&self, host: &HostId) -> Option<String> {
        let machine = self.machine(host);
        let clock = machine.boottime(self.now);
        match machine.change {
            Change::Known => None,
            Change::Proposed(number) => {
                self.candidate_set().is_none().then(|| format!("{host}'s set {number} is in no record"))
            }
            Change::Refused => {
                let due = machine.agent.as_ref().and_then(|agent| agent.due());
                due.is_none_or(|due| due + OVERDUE < clock)
                    .then(|| format!("{host}'s change was refused and is not proposed again"))
            }
        }
    }

    /// The candidate that stands.
    pub(crate) fn candidate_set(&self) -> Option<u64> {
        self.truth.store().policies.candidate.as_ref().map(|set| set.value.generation)
    }
}
