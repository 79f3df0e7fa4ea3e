//! Owns a set of policies that decides together: which of them decides what, and the questions themselves.
//!
//! Promises: a set never changes once it is loaded, so that whoever holds one can ask it to the end while another takes
//! its place; who decides follows from the settings and the components alone, never from an order of loading.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use understudy_core::policy::{
    BackupCountAnswer, BackupCountQuestion, Interface, PlacementAnswer, PlacementQuestion,
};

use crate::engine::Sandbox;
use crate::fault::{FileFault, LoadFault, PolicyFault};
use crate::library::Library;
use crate::limits::Limits;
use crate::load::Policy;
use crate::names::Digest;
use crate::settings::{Mode, Settings};

/// A policy of a set, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyInfo {
    /// The file's name without `.wasm`.
    pub name: String,
    /// Its component.
    pub digest: Digest,
    /// Size of the component.
    pub bytes: u64,
    /// What it can answer; nothing is known of one that is off.
    pub exports: BTreeSet<Interface>,
    /// What it decides.
    pub decides: BTreeSet<Interface>,
    /// What it is asked beside the one that decides.
    pub shadows: BTreeSet<Interface>,
    /// What is done with its answers.
    pub mode: Mode,
    /// It failed too often: it decides nothing until it is restored.
    pub suspended: bool,
    /// What it may use.
    pub limits: Limits,
    /// What it is told with every question.
    pub parameters: BTreeMap<String, String>,
    /// How long compiling took; none where it was done before.
    pub compiled: Option<Duration>,
}

/// Who was asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct By {
    /// The policy's name.
    pub name: String,
    /// Its component.
    pub digest: Digest,
}

/// What came of asking one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked<A> {
    /// Who was asked; none where no policy decides this.
    pub by: Option<By>,
    /// The answer is the policy's own, unchecked. Without one, the caller's built-in rule decides.
    pub outcome: Result<A, PolicyFault>,
    /// How long it took, an instance of its own included.
    pub took: Duration,
}

struct Member {
    info: PolicyInfo,
    /// None of a policy that is off.
    policy: Option<Policy>,
}

/// Policies that are loaded and ready. Questions take a shared reference and block up to the policy's deadline.
#[derive(Default)]
pub struct PolicySet {
    /// None of a set without policies.
    sandbox: Option<Arc<Sandbox>>,
    /// By name.
    members: Vec<Member>,
}

impl PolicySet {
    /// A set without policies: every question is answered by the caller's built-in rule.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Load a set: components by name, from the library. What cannot be used is reported and left out, the rest goes
    /// on; a set with any fault is one that should not be made to decide.
    ///
    /// Policies in `suspended` are loaded and decide nothing; what they would decide is left to the built-in rule.
    ///
    /// Compiles what was not compiled before, which takes 0.1 s for a Rust policy and most of a minute for a Python
    /// one. Puts the trial questions with the parameters: a policy refuses those that it cannot use.
    #[must_use]
    pub fn load(
        library: &Library,
        components: &BTreeMap<String, Digest>,
        settings: &Settings,
        suspended: &BTreeSet<String>,
    ) -> (Self, Vec<LoadFault>) {
        let (mut members, mut faults) = (Vec::new(), Vec::new());
        for (name, digest) in components {
            match Member::load(library, name, digest, settings, suspended.contains(name)) {
                Ok(member) => members.push(member),
                Err(source) => {
                    faults.push(LoadFault::Policy { policy: name.clone(), digest: digest.clone(), source });
                }
            }
        }
        let strays = settings.policies.keys().filter(|name| !components.contains_key(*name));
        faults.extend(strays.map(|policy| LoadFault::Stray { policy: policy.clone() }));
        let mut set = Self { sandbox: Some(Arc::clone(&library.sandbox)), members };
        for interface in Interface::ALL {
            match set.choose(interface, components, settings) {
                Ok(chosen) => set.assign(interface, chosen),
                Err(fault) => faults.extend(fault),
            }
        }
        (set, faults)
    }

    /// Every policy, by name.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyInfo> {
        self.members.iter().map(|member| &member.info)
    }

    /// The policy that decides `interface`.
    #[must_use]
    pub fn deciding(&self, interface: Interface) -> Option<&PolicyInfo> {
        self.policies().find(|info| info.decides.contains(&interface))
    }

    /// Where does this member go?
    #[must_use]
    pub fn ask_placement(&self, question: &PlacementQuestion) -> Asked<PlacementAnswer> {
        self.ask(Interface::Placement, |policy, sandbox| policy.place(sandbox, question).0)
    }

    /// How many members should this node have?
    #[must_use]
    pub fn ask_backup_count(&self, question: &BackupCountQuestion) -> Asked<BackupCountAnswer> {
        self.ask(Interface::BackupCount, |policy, sandbox| policy.count(sandbox, question).0)
    }

    /// What those would have answered that decide nothing. Blocks for each of them up to its deadline: ask when nothing
    /// waits for it.
    #[must_use]
    pub fn shadow_placement(&self, question: &PlacementQuestion) -> Vec<Asked<PlacementAnswer>> {
        self.shadow(Interface::Placement, |policy, sandbox| policy.place(sandbox, question).0)
    }

    /// What those would have answered that decide nothing. Blocks for each of them up to its deadline: ask when nothing
    /// waits for it.
    #[must_use]
    pub fn shadow_backup_count(&self, question: &BackupCountQuestion) -> Vec<Asked<BackupCountAnswer>> {
        self.shadow(Interface::BackupCount, |policy, sandbox| policy.count(sandbox, question).0)
    }

    fn ask<A>(
        &self,
        interface: Interface,
        put: impl Fn(&Policy, &Sandbox) -> Result<A, PolicyFault>,
    ) -> Asked<A> {
        let member = self.members.iter().find(|member| member.info.decides.contains(&interface));
        member.and_then(|member| self.put(member, &put)).unwrap_or_else(|| Asked {
            by: None,
            outcome: Err(PolicyFault::Unavailable { interface }),
            took: Duration::ZERO,
        })
    }

    fn shadow<A>(
        &self,
        interface: Interface,
        put: impl Fn(&Policy, &Sandbox) -> Result<A, PolicyFault>,
    ) -> Vec<Asked<A>> {
        let shadows = self.members.iter().filter(|member| member.info.shadows.contains(&interface));
        shadows.filter_map(|member| self.put(member, &put)).collect()
    }

    fn put<A>(
        &self,
        member: &Member,
        put: &impl Fn(&Policy, &Sandbox) -> Result<A, PolicyFault>,
    ) -> Option<Asked<A>> {
        let (policy, sandbox) = (member.policy.as_ref()?, self.sandbox.as_ref()?);
        let by = By { name: member.info.name.clone(), digest: member.info.digest.clone() };
        let start = Instant::now();
        let outcome = put(policy, sandbox);
        Some(Asked { by: Some(by), outcome, took: start.elapsed() })
    }

    /// The name of the policy that is to decide `interface`; none where no policy is. An error without a fault is one
    /// that has been reported already.
    fn choose(
        &self,
        interface: Interface,
        components: &BTreeMap<String, Digest>,
        settings: &Settings,
    ) -> Result<Option<String>, Option<LoadFault>> {
        let able = || self.policies().filter(|info| info.exports.contains(&interface));
        let deciders: Vec<&str> =
            able().filter(|info| info.mode == Mode::Decide).map(|info| info.name.as_str()).collect();
        if let Some(policy) = settings.choice.get(&interface).cloned() {
            let mode = settings.of(&policy).mode;
            let is_loaded = self.policies().any(|info| info.name == policy);
            return if !components.contains_key(&policy) {
                Err(Some(LoadFault::Chosen { interface, policy }))
            } else if !is_loaded {
                Err(None)
            } else if mode != Mode::Decide {
                Err(Some(LoadFault::ChosenMode { interface, policy, mode }))
            } else if deciders.contains(&policy.as_str()) {
                Ok(Some(policy))
            } else {
                Err(Some(LoadFault::Chosen { interface, policy }))
            };
        }
        match deciders[..] {
            [] => Ok(None),
            [one] => Ok(Some(one.to_owned())),
            [..] => Err(Some(LoadFault::Ambiguous {
                interface,
                policies: deciders.into_iter().map(str::to_owned).collect(),
            })),
        }
    }

    fn assign(&mut self, interface: Interface, chosen: Option<String>) {
        for Member { info, .. } in &mut self.members {
            if info.suspended || !info.exports.contains(&interface) {
                continue;
            }
            match info.mode {
                Mode::Decide if chosen.as_ref() == Some(&info.name) => info.decides.insert(interface),
                Mode::Shadow => info.shadows.insert(interface),
                Mode::Decide | Mode::Off => false,
            };
        }
    }
}

impl Member {
    fn load(
        library: &Library,
        name: &str,
        digest: &Digest,
        settings: &Settings,
        suspended: bool,
    ) -> Result<Self, FileFault> {
        let own = settings.of(name);
        let mut info = PolicyInfo {
            name: name.to_owned(),
            digest: digest.clone(),
            bytes: 0,
            exports: BTreeSet::new(),
            decides: BTreeSet::new(),
            shadows: BTreeSet::new(),
            mode: own.mode,
            suspended,
            limits: own.limits,
            parameters: own.parameters.clone(),
            compiled: None,
        };
        if own.mode == Mode::Off {
            info.bytes = std::fs::metadata(library.path(digest)).map_or(0, |meta| meta.len());
            return Ok(Self { info, policy: None });
        }
        let prepared = library.prepare(digest, own.limits.file_size)?;
        let policy = Policy::link(&library.sandbox, name, &prepared.component, &own)?;
        policy.try_out(&library.sandbox)?;
        info.bytes = prepared.bytes;
        info.compiled = prepared.compiled;
        info.exports.clone_from(policy.answers());
        Ok(Self { info, policy: Some(policy) })
    }
}

impl std::fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.policies()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::PolicySet;

    #[test]
    fn questions_may_be_asked_from_several_threads() {
        fn shareable<T: Send + Sync>() {}
        shareable::<PolicySet>();
    }
}
