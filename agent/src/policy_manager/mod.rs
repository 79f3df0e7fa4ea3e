//! Owns the sites' policies in the daemon: which sets are loaded, who is asked, what is recorded.
//!
//! ```text
//! folder ──▶ manager ──candidate──▶ store ──▶ manager of every host: fetch, load, report ──▶ leader: activate
//!                                                                          │
//! plan's questions ──▶ ask (a set, its breaker) ──▶ answers     recorder ◀─┘ shadows, records
//! ```
//!
//! Promises: loading, compiling and fetching never run on the runtime's task, nor does a shadow policy or the disk delay
//! an answer. Must not do: judge an answer, or decide which set is active (core does).

mod ask;
mod dedup;
pub mod explain;
mod load;
mod manager;
mod memory;
pub mod recorder;
pub mod records;
pub mod replay;
pub mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use understudy_core::model::ids::HostId;
use understudy_core::policy::Interface;
use understudy_core::sets::{OpenHosts, PolicySets};
use understudy_policy::{By, CircuitBreaker, Library, Limits, PolicySet};

pub(crate) use ask::{Exchange, Open};
pub(crate) use manager::start;

use crate::config::Config;
use crate::exit::chain;
use crate::metrics::Metrics;
use recorder::Recorder;

/// What the manager has to know of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether the store has been read.
    pub synced: bool,
    /// The records of the sets.
    pub sets: PolicySets,
    /// `host:port` of the other agents' APIs, of open hosts.
    pub peers: BTreeMap<HostId, String>,
    /// All open hosts, with their leases.
    pub open: OpenHosts,
}

/// What the manager reports to the runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ManagerStatus {
    /// What this host has of the sets.
    pub facts: understudy_core::sets::SetFacts,
    /// What an operator should know.
    pub condition: Option<String>,
}

/// How this host stands with its folder, for status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FolderStanding {
    /// What is wrong with which file, or with a set.
    pub faults: Vec<String>,
    /// Names of files that are not what decides in the cluster.
    pub differs: Vec<String>,
    /// Those of them that lie there and that nothing proposes, unless an operator wants it.
    pub unproposed: Vec<String>,
}

/// A set that is asked, and what of it is not. Whoever holds one can ask it to the end, whatever decides by then.
#[derive(Debug, Clone)]
pub struct Deciding {
    /// The generation that decides by the records; 0 where there is none.
    pub generation: u64,
    /// Whether `set` is that generation; not where it is not loaded on this host.
    pub ready: bool,
    /// The set.
    pub set: Arc<PolicySet>,
    /// Policies that are suspended, and why.
    pub suspended: BTreeMap<String, String>,
}

impl Deciding {
    /// Who decides; none where no policy answers `interface`.
    fn by(&self, interface: Interface) -> Option<By> {
        let info = self.set.deciding(interface)?;
        Some(By { name: info.name.clone(), digest: info.digest.clone() })
    }

    /// Whether there is a policy to be asked: one that is suspended is not.
    pub(crate) fn asks(&self, interface: Interface) -> bool {
        self.by(interface).is_some_and(|by| !self.suspended.contains_key(&by.name))
    }

    /// Whether whoever holds `other` would ask the same policies.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (self.generation, self.ready, &self.suspended) == (other.generation, other.ready, &other.suspended)
    }
}

impl Default for Deciding {
    fn default() -> Self {
        Self { generation: 0, ready: true, set: Arc::new(PolicySet::empty()), suspended: BTreeMap::new() }
    }
}

/// The policies of this host.
pub struct Policies {
    /// None where components cannot be kept or run on this host.
    library: Option<Arc<Library>>,
    /// Why not.
    unusable: Option<String>,
    dir: PathBuf,
    folder: PathBuf,
    defaults: Limits,
    /// Sets that are loaded and ready, by generation.
    ready: RwLock<BTreeMap<u64, Arc<PolicySet>>>,
    breaker: Mutex<CircuitBreaker>,
    /// Policies that failed too often here, by name: digest and reason. The runtime writes them into the record.
    failed: Mutex<BTreeMap<String, (String, String)>>,
    /// How often operators restored which policy, as this host knows it.
    restored: Mutex<BTreeMap<String, u64>>,
    standing: Mutex<FolderStanding>,
    /// An operator wants this host's folder proposed as it is.
    proposal_wanted: AtomicBool,
    recorder: Recorder,
    metrics: Arc<Metrics>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Policies {
    /// Opens the library. Where it cannot be used, no policy is: the agent runs, and says so.
    #[must_use]
    pub fn open(config: &Config, metrics: &Arc<Metrics>) -> Self {
        let dir = config.state_dir.join("policies");
        let (library, unusable) = match Library::open(&dir) {
            Ok(library) => (Some(Arc::new(library)), None),
            Err(error) => {
                tracing::error!(error = %chain(&error), "policies cannot be used on this host");
                (None, Some(chain(&error)))
            }
        };
        Self {
            library,
            unusable,
            recorder: Recorder::start(&dir, config.policy_records, metrics),
            dir,
            folder: config.policies_dir.clone(),
            defaults: Limits { deadline: config.policy_deadline, ..Limits::default() },
            ready: RwLock::default(),
            breaker: Mutex::default(),
            failed: Mutex::default(),
            restored: Mutex::default(),
            standing: Mutex::default(),
            proposal_wanted: AtomicBool::new(false),
            metrics: metrics.clone(),
        }
    }

    /// The set that decides by the records. Without one that is loaded here, a set without policies: whoever may lead
    /// then is to let the built-in rules decide. Only for records of this moment: sets of older ones are let go.
    #[must_use]
    pub fn deciding(&self, sets: &PolicySets) -> Deciding {
        let Some(active) = sets.active.as_ref().map(|set| &set.value) else { return Deciding::default() };
        let loaded =
            self.ready.read().unwrap_or_else(PoisonError::into_inner).get(&active.generation).cloned();
        Deciding {
            generation: active.generation,
            ready: loaded.is_some(),
            set: loaded.unwrap_or_else(|| Arc::new(PolicySet::empty())),
            suspended: active.suspended.clone(),
        }
    }

    /// Where components are kept; none where they cannot be.
    #[must_use]
    pub fn library(&self) -> Option<&Arc<Library>> {
        self.library.as_ref()
    }

    /// What a policy may use unless it has its own.
    #[must_use]
    pub fn defaults(&self) -> &Limits {
        &self.defaults
    }

    /// How this host stands with its folder.
    #[must_use]
    pub fn standing(&self) -> FolderStanding {
        lock(&self.standing).clone()
    }

    /// Has this host's folder proposed as it is, whatever was known of it. At the manager's next look.
    pub(crate) fn want_proposal(&self) {
        self.proposal_wanted.store(true, Ordering::Relaxed);
    }

    /// Policies that failed too often here: name, digest, reason.
    #[must_use]
    pub fn failed(&self) -> Vec<(String, String, String)> {
        let failed = lock(&self.failed);
        failed.iter().map(|(name, (digest, why))| (name.clone(), digest.clone(), why.clone())).collect()
    }

    /// Takes over what operators restored, on whichever host they said so: what this one saw of it before is forgotten.
    /// To be called with records before anything follows from them.
    pub(crate) fn apply_restores(&self, sets: &PolicySets) {
        let Some(active) = sets.active.as_ref().map(|set| &set.value) else { return };
        let mut known = lock(&self.restored);
        if *known == active.restored {
            return;
        }
        for name in
            active.restored.iter().filter(|(name, count)| known.get(*name) != Some(count)).map(|(n, _)| n)
        {
            tracing::info!(
                policy = name,
                "an operator restored a policy: its earlier failures do not count any more"
            );
            lock(&self.breaker).restore(name);
            lock(&self.failed).remove(name);
        }
        known.clone_from(&active.restored);
    }

    /// Takes over what the manager loaded: what is in no record any more is let go, and what was seen of its policies.
    fn keep(&self, ready: BTreeMap<u64, Arc<PolicySet>>) {
        let known: BTreeSet<understudy_policy::By> = ready
            .values()
            .flat_map(|set| set.policies())
            .map(|info| understudy_policy::By { name: info.name.clone(), digest: info.digest.clone() })
            .collect();
        lock(&self.breaker).keep(&known);
        lock(&self.failed).retain(|name, (digest, _)| {
            known.iter().any(|by| by.name == *name && by.digest.as_str() == digest)
        });
        *self.ready.write().unwrap_or_else(PoisonError::into_inner) = ready;
    }
}
