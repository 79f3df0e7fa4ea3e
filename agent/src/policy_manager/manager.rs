//! Owns the task that keeps this host's policies as the records say: it looks at the folder, proposes what changed
//! there, fetches and loads the sets of the records, and reports what it has.
//!
//! Promises: what takes long (reading, fetching, compiling) runs beside the task, so that a slow candidate holds up
//! nothing; a change is proposed only after it was loaded here, trial questions included; what was refused is proposed
//! again when core says so; what is wrong is told. Must not do: activate or refuse a set (the leader does).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::task::JoinSet;
use understudy_core::sets::{FolderState, PolicySetRecord, Refusal, SetFacts, SetFault};
use understudy_policy::{Digest, Folder, FolderWatch, LoadFault, PolicySet};

use super::load::{Proposal, load, propose};
use super::memory::{Memory, state};
use super::{FolderStanding, ManagerStatus, Seen, lock};
use crate::exit::chain;
use crate::runtime::{Event, Parts, now};

/// Between two looks at the folder: two of them and the loading of a small policy are well within 2 s.
const LOOK: Duration = Duration::from_millis(300);
/// Before something that failed is tried again, the first time and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// How far the loading of one generation is.
enum Load {
    Running,
    Ready(Arc<PolicySet>),
    Failed { fault: SetFault, again: Instant },
}

/// What a job of the task came to.
enum Done {
    Looked(Box<FolderWatch>, Option<Folder>),
    Loaded(u64, Result<PolicySet, SetFault>),
    Proposed(FolderState, Box<PolicySetRecord>, Proposal),
}

/// A change that could not be proposed.
struct Tried {
    folder: FolderState,
    components: BTreeMap<String, String>,
    settings: String,
    fault: SetFault,
    refusal: Refusal,
}

/// A change that was proposed and refused.
struct Refused {
    folder: FolderState,
    reason: String,
    refusal: Refusal,
}

struct Manager {
    parts: Arc<Parts>,
    seen: watch::Receiver<Arc<Seen>>,
    events: UnboundedSender<Event>,
    jobs: JoinSet<Done>,
    watch: Option<Box<FolderWatch>>,
    folder: Option<Folder>,
    memory: Memory,
    refused: Option<Refused>,
    loads: BTreeMap<u64, Load>,
    tries: BTreeMap<u64, u32>,
    proposing: bool,
    tried: Option<Tried>,
    suspended: BTreeSet<String>,
    active: u64,
    reported: Option<ManagerStatus>,
    pruned: Option<BTreeSet<Digest>>,
}

/// Starts the task. It ends when the runtime does.
pub(crate) fn start(parts: Arc<Parts>, seen: watch::Receiver<Arc<Seen>>, events: UnboundedSender<Event>) {
    let policies = &parts.policies;
    let manager = Manager {
        watch: Some(Box::new(FolderWatch::new(&policies.folder, policies.defaults.file_size))),
        memory: Memory::open(&policies.dir),
        parts,
        seen,
        events,
        jobs: JoinSet::new(),
        folder: None,
        refused: None,
        loads: BTreeMap::new(),
        tries: BTreeMap::new(),
        proposing: false,
        tried: None,
        suspended: BTreeSet::new(),
        active: 0,
        reported: None,
        pruned: None,
    };
    let tasks = manager.parts.tasks.clone();
    tasks.spawn("policies", manager.run());
}

impl Tried {
    /// Whether it was this change, made to the same set.
    fn is_of(&self, folder: &FolderState, components: &BTreeMap<String, String>, settings: &str) -> bool {
        self.folder == *folder && self.components == *components && self.settings == settings
    }
}

/// The generation that decides; 0 where there is none.
fn active(seen: &Seen) -> u64 {
    seen.sets.active.as_ref().map_or(0, |set| set.value.generation)
}

impl Manager {
    async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => self.look(),
                changed = self.seen.changed() => if changed.is_err() { return },
                Some(done) = self.jobs.join_next() => match done {
                    Ok(done) => self.done(done),
                    Err(error) => self.parts.tasks.joined::<()>("policies", Err(error)),
                },
            }
            let seen = self.seen.borrow_and_update().clone();
            if seen.synced {
                self.step(&seen);
            }
        }
    }

    fn look(&mut self) {
        let Some(library) = self.parts.policies.library().cloned() else { return };
        if let Some(mut watch) = self.watch.take() {
            self.jobs.spawn_blocking(move || {
                let folder = watch.look(&library);
                Done::Looked(watch, folder)
            });
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Looked(watch, folder) => {
                self.watch = Some(watch);
                if let Some(folder) = folder {
                    for fault in &folder.faults {
                        if !self.is_no_folder(fault) {
                            tracing::warn!(fault = %chain(fault), "a file in the policies folder is not used, what decided before goes on");
                        }
                    }
                    self.folder = Some(folder);
                }
            }
            Done::Loaded(generation, Ok(set)) => {
                for policy in set.policies() {
                    tracing::info!(generation, name = policy.name, digest = %policy.digest, mode = %policy.mode, decides = ?policy.decides, compiled = ?policy.compiled, "policy loaded");
                }
                self.loads.insert(generation, Load::Ready(Arc::new(set)));
                self.let_in();
            }
            Done::Loaded(generation, Err(fault)) => {
                tracing::warn!(
                    generation,
                    reason = fault.reason(),
                    "a set of policies is not ready on this host"
                );
                let tries = *self.tries.entry(generation).and_modify(|tries| *tries += 1).or_insert(0);
                let wait = RETRY.0.saturating_mul(1 << tries.min(4)).min(RETRY.1);
                self.loads.insert(generation, Load::Failed { fault, again: Instant::now() + wait });
            }
            Done::Proposed(folder, record, proposal) => self.proposed(folder, *record, proposal),
        }
    }

    fn proposed(&mut self, folder: FolderState, record: PolicySetRecord, proposal: Proposal) {
        self.proposing = false;
        match proposal {
            Proposal::Written => {
                let refused = self.refused.as_ref().map_or(0, |refused| refused.refusal.times());
                tracing::info!(generation = record.generation, policies = ?record.components.keys(), refused, "a set with what changed in this host's policies folder is proposed to the cluster");
                self.tried = None;
                self.memory.was_proposed(folder, record.generation);
            }
            Proposal::Overtaken => {}
            Proposal::Unreachable(error) => {
                tracing::warn!(error, "a set of policies could not be proposed, trying again");
            }
            Proposal::Bad(fault) => {
                let PolicySetRecord { components, settings, .. } = record;
                let before = self.tried.take().filter(|tried| tried.is_of(&folder, &components, &settings));
                if before.as_ref().is_none_or(|tried| tried.fault != fault) {
                    tracing::warn!(
                        reason = fault.reason(),
                        "what changed in the policies folder cannot be used, what decided before goes on"
                    );
                }
                let passes = matches!(fault, SetFault::Missing(_));
                let before = before.map(|tried| tried.refusal);
                let refusal = Refusal::here(before.as_ref(), passes, self.active, now().boottime);
                self.tried = Some(Tried { folder, components, settings, fault, refusal });
            }
        }
    }

    /// A folder that is not there is one without policies, unless there were some.
    fn is_no_folder(&self, fault: &LoadFault) -> bool {
        let knows = self.memory.folder().is_some_and(|folder| *folder != FolderState::default());
        match fault {
            LoadFault::Folder { source, .. } => source.kind() == std::io::ErrorKind::NotFound && !knows,
            _ => false,
        }
    }

    /// Lets the rounds of planning have what is loaded.
    fn let_in(&self) {
        let ready = self.loads.iter().filter_map(|(generation, load)| match load {
            Load::Ready(set) => Some((*generation, set.clone())),
            Load::Running | Load::Failed { .. } => None,
        });
        self.parts.policies.keep(ready.collect());
    }

    fn step(&mut self, seen: &Seen) {
        if let Some(folder) = self.memory.settle(&seen.sets) {
            self.was_refused(seen, folder);
        }
        self.load_what_stands(seen);
        self.propose(seen);
        self.note_changes(seen);
        self.notify(seen);
        self.prune(seen);
    }

    fn was_refused(&mut self, seen: &Seen, folder: FolderState) {
        let Some(refused) = seen.sets.refused.as_ref().map(|set| &set.value) else { return };
        let before = self.refused.take().filter(|before| before.folder == folder);
        let before = before.as_ref().map(|before| &before.refusal);
        let refusal = Refusal::by_hosts(before, refused, active(seen), now().boottime);
        let reason = refused.reason.clone();
        tracing::warn!(%reason, times = refusal.times(), "the set that this host proposed was refused, what decided before goes on");
        self.refused = Some(Refused { folder, reason, refusal });
    }

    fn load_what_stands(&mut self, seen: &Seen) {
        let records: Vec<&PolicySetRecord> = [&seen.sets.active, &seen.sets.candidate]
            .into_iter()
            .filter_map(|set| set.as_ref().map(|set| &set.value))
            .collect();
        let before = self.loads.len();
        self.loads.retain(|generation, _| records.iter().any(|record| record.generation == *generation));
        self.tries.retain(|generation, _| records.iter().any(|record| record.generation == *generation));
        if self.loads.len() != before {
            self.let_in();
        }
        for record in records {
            let due = match self.loads.get(&record.generation) {
                None => true,
                Some(Load::Failed { again, .. }) => Instant::now() >= *again,
                Some(Load::Running | Load::Ready(_)) => false,
            };
            if due {
                let generation = record.generation;
                // What failed before stays reported as failed until it is known to be well.
                if !matches!(self.loads.get(&generation), Some(Load::Failed { .. })) {
                    self.loads.insert(generation, Load::Running);
                } else if let Some(Load::Failed { again, .. }) = self.loads.get_mut(&generation) {
                    *again = Instant::now() + Duration::from_secs(3_600);
                }
                let (parts, record, peers) = (self.parts.clone(), record.clone(), seen.peers.clone());
                self.jobs.spawn(async move { Done::Loaded(generation, load(&parts, &record, &peers).await) });
            }
        }
    }

    /// The folder as it is known to be: listed, or not there at all. The first file in it is a change.
    fn known_folder(&self) -> Option<&Folder> {
        self.folder
            .as_ref()
            .filter(|folder| folder.listed || folder.faults.iter().any(|fault| self.is_no_folder(fault)))
    }

    fn propose(&mut self, seen: &Seen) {
        if self.proposing {
            return;
        }
        let Some(folder) = self.known_folder() else { return };
        if folder.listed && self.parts.policies.proposal_wanted.swap(false, Ordering::Relaxed) {
            tracing::info!("an operator wants this host's policies folder proposed as it is");
            self.memory.is_known(FolderState::default());
            (self.tried, self.refused) = (None, None);
        }
        let Some(folder) = self.known_folder() else { return };
        let state = state(folder, self.memory.folder());
        let decides = active(seen);
        match &self.refused {
            Some(refused) if refused.folder != state => self.refused = None,
            // It stands as a candidate once more.
            Some(_) if self.memory.is_pending() => {}
            Some(refused) if now().boottime < refused.refusal.due(decides, &seen.open) => return,
            Some(_) | None => {}
        }
        let me = self.parts.config.host.clone();
        let before = match (self.memory.folder(), seen.sets.base()) {
            (Some(before), _) => before.clone(),
            (None, None) => FolderState::default(),
            (None, Some(set)) => {
                tracing::info!(
                    generation = set.generation,
                    "a host that looks at its policies folder for the first time takes the cluster's set"
                );
                self.memory.is_known(state);
                return;
            }
        };
        let Some(record) = seen.sets.changed_by(&me, &before, &state) else {
            self.tried = None;
            if self.memory.folder() != Some(&state) {
                self.memory.is_known(state);
            }
            if !self.memory.is_pending() {
                self.refused = None;
            }
            return;
        };
        let again = self.tried.as_ref().is_none_or(|tried| {
            !tried.is_of(&state, &record.components, &record.settings)
                || now().boottime >= tried.refusal.due(decides, &seen.open)
        });
        if again {
            self.proposing = true;
            let (parts, sets, peers) = (self.parts.clone(), seen.sets.clone(), seen.peers.clone());
            self.jobs.spawn(async move {
                let proposal = propose(&parts, &sets, &record, &peers).await;
                Done::Proposed(state, Box::new(record), proposal)
            });
        }
    }

    /// Logs who decides from here on.
    fn note_changes(&mut self, seen: &Seen) {
        let suspended: BTreeSet<String> =
            seen.sets.active.iter().flat_map(|set| set.value.suspended.keys().cloned()).collect();
        for name in self.suspended.difference(&suspended) {
            tracing::info!(policy = name, "a policy is not suspended any more");
        }
        self.suspended = suspended;
        let active = active(seen);
        if active != self.active {
            tracing::info!(from = self.active, to = active, "another set of policies decides");
            self.active = active;
        }
    }

    fn facts(&self) -> SetFacts {
        let mut facts = SetFacts::default();
        for (&generation, load) in &self.loads {
            match load {
                Load::Running => {}
                Load::Ready(_) => {
                    facts.ready.insert(generation);
                }
                Load::Failed { fault, .. } => {
                    facts.faults.insert(generation, fault.clone());
                }
            }
        }
        facts
    }

    fn faults(&self) -> Vec<String> {
        let of_folder = self.folder.iter().flat_map(|folder| &folder.faults);
        let mut faults: Vec<String> =
            of_folder.filter(|fault| !self.is_no_folder(fault)).map(|fault| chain(fault)).collect();
        faults.extend(self.parts.policies.unusable.clone());
        faults.extend(self.tried.iter().map(|tried| tried.fault.reason().to_owned()));
        faults.extend(self.refused.iter().filter(|_| !self.memory.is_pending()).map(|refused| {
            format!(
                "the set with this folder's change was refused: {}; it is proposed again when that may be over, another change at once",
                refused.reason
            )
        }));
        for (generation, load) in &self.loads {
            if let Load::Failed { fault, .. } = load {
                faults.push(format!("set {generation} is not ready here: {}", fault.reason()));
            }
        }
        faults
    }

    fn notify(&mut self, seen: &Seen) {
        let faults = self.faults();
        let facts = self.facts();
        let metrics = &self.parts.metrics.policies;
        let generation = |set: Option<u64>| set.unwrap_or(0);
        let candidate = generation(seen.sets.candidate.as_ref().map(|set| set.value.generation));
        metrics.faults(faults.len());
        let ready = self.active == 0 || facts.ready.contains(&self.active);
        metrics.standing(self.active, candidate, ready);
        let policies = seen.sets.active.iter().flat_map(|set| set.value.components.keys());
        metrics.suspended(&policies.map(|name| (name.as_str(), self.suspended.contains(name))).collect());
        let condition = (!faults.is_empty()).then(|| format!("policies: {}", faults.join("; ")));
        let (differs, unproposed) = self.differs(seen);
        *lock(&self.parts.policies.standing) = FolderStanding { faults, differs, unproposed };
        let reported = ManagerStatus { facts, condition };
        if self.reported.as_ref() != Some(&reported) {
            self.reported = Some(reported.clone());
            let _ = self.events.send(Event::Policies(Box::new(reported)));
        }
    }

    /// Files that are not what decides, or is to; and those of them that lie in the folder and are not under way.
    fn differs(&self, seen: &Seen) -> (Vec<String>, Vec<String>) {
        let Some((folder, set)) = self.folder.as_ref().filter(|folder| folder.listed).zip(seen.sets.base())
        else {
            return Default::default();
        };
        let state = state(folder, self.memory.folder());
        let names: BTreeSet<&String> = state.components.keys().chain(set.components.keys()).collect();
        let mut differs: Vec<(String, bool)> = names
            .into_iter()
            .filter(|name| state.components.get(*name) != set.components.get(*name))
            .map(|name| (format!("{name}.wasm"), state.components.contains_key(name)))
            .collect();
        let has_settings = state.settings.is_some();
        if state.settings.clone().unwrap_or_default() != set.settings {
            differs.push((understudy_policy::SETTINGS_FILE.to_owned(), has_settings));
        }
        let is_known = !self.proposing && self.memory.folder() == Some(&state);
        let here = differs.iter().filter(|(_, here)| *here && is_known);
        let unproposed = here.map(|(file, _)| file.clone()).collect();
        (differs.into_iter().map(|(file, _)| file).collect(), unproposed)
    }

    /// Components that are in no record and not in the folder are let go, once nothing is under way that may need them.
    fn prune(&mut self, seen: &Seen) {
        let busy = self.proposing || self.loads.values().any(|load| matches!(load, Load::Running));
        let (Some(library), Some(folder)) = (self.parts.policies.library(), &self.folder) else { return };
        if busy || self.memory.folder().is_none() {
            return;
        }
        let records = [&seen.sets.active, &seen.sets.candidate].into_iter().flatten();
        let mut keep: BTreeSet<Digest> = records
            .flat_map(|set| set.value.components.values())
            .filter_map(|digest| digest.parse().ok())
            .collect();
        keep.extend(folder.components.values().cloned());
        if self.pruned.as_ref() == Some(&keep) {
            return;
        }
        self.pruned = Some(keep.clone());
        let library = library.clone();
        self.parts.tasks.block("removal of old policies", move || {
            if let Err(error) = library.prune(&keep) {
                tracing::warn!(error = %chain(&error), "old policies could not be removed");
            }
        });
    }
}
