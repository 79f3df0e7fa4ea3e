//! Owns the choice of who decides, and the questions themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use understudy_core::policy::{
    BackupCountAnswer, BackupCountQuestion, Interface, PlacementAnswer, PlacementQuestion,
};

use crate::config::PolicyConfig;
use crate::engine::Sandbox;
use crate::fault::{LoadFault, PolicyFault};
use crate::load::{self, Policy};

/// A loaded policy, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyInfo {
    /// The file's name without `.wasm`.
    pub name: String,
    /// The file.
    pub file: PathBuf,
    /// BLAKE3 of the file, in hex.
    pub digest: String,
    /// Size of the file.
    pub bytes: u64,
    /// What it can answer.
    pub exports: BTreeSet<Interface>,
    /// What it is asked.
    pub decides: BTreeSet<Interface>,
}

/// The policies of this host.
pub struct PolicyHost {
    /// None when no engine could be had; there are no policies then.
    sandbox: Option<Sandbox>,
    policies: Vec<Policy>,
    /// Places in `policies`.
    deciding: BTreeMap<Interface, usize>,
}

impl PolicyHost {
    /// A host without policies: every question is answered by the caller's built-in rule.
    #[must_use]
    pub fn empty() -> Self {
        Self { sandbox: None, policies: Vec::new(), deciding: BTreeMap::new() }
    }

    /// Load every `*.wasm` of a folder. What cannot be used is reported and left out; the others go on.
    ///
    /// Compiles, which takes 0.1 s for a Rust policy and most of a minute for a Python one.
    #[must_use]
    pub fn load(dir: &Path, config: &PolicyConfig) -> (Self, Vec<LoadFault>) {
        let sandbox = match Sandbox::new(config) {
            Ok(sandbox) => sandbox,
            Err(fault) => return (Self::empty(), vec![fault]),
        };
        let (mut policies, mut faults) = load::folder(&sandbox, dir, config);
        let mut deciding = BTreeMap::new();
        for interface in Interface::ALL {
            match choose(interface, &policies, config) {
                Ok(Some(place)) => {
                    policies[place].info.decides.insert(interface);
                    deciding.insert(interface, place);
                }
                Ok(None) => {}
                Err(fault) => faults.push(fault),
            }
        }
        let stray = strays(config, &policies, &faults);
        faults.extend(stray);
        (Self { sandbox: Some(sandbox), policies, deciding }, faults)
    }

    /// Every loaded policy, by name.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyInfo> {
        self.policies.iter().map(|p| &p.info)
    }

    /// The policy that answers `interface`.
    #[must_use]
    pub fn deciding(&self, interface: Interface) -> Option<&PolicyInfo> {
        self.deciding.get(&interface).map(|&place| &self.policies[place].info)
    }

    /// Where does this member go? The answer is the policy's own, unchecked. Blocks up to the deadline.
    ///
    /// # Errors
    /// When there is no answer; the caller's built-in rule decides then.
    pub fn ask_placement(&self, question: &PlacementQuestion) -> Result<PlacementAnswer, PolicyFault> {
        let (sandbox, policy) = self.who(Interface::Placement)?;
        policy.place(sandbox, question)
    }

    /// How many members should this node have? The answer is the policy's own, unchecked. Blocks up to the
    /// deadline.
    ///
    /// # Errors
    /// When there is no answer; the caller's built-in rule decides then.
    pub fn ask_backup_count(&self, question: &BackupCountQuestion) -> Result<BackupCountAnswer, PolicyFault> {
        let (sandbox, policy) = self.who(Interface::BackupCount)?;
        policy.count(sandbox, question)
    }

    fn who(&self, interface: Interface) -> Result<(&Sandbox, &Policy), PolicyFault> {
        match (&self.sandbox, self.deciding.get(&interface)) {
            (Some(sandbox), Some(&place)) => Ok((sandbox, &self.policies[place])),
            (Some(_) | None, _) => Err(PolicyFault::Unavailable { interface }),
        }
    }
}

impl std::fmt::Debug for PolicyHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.policies()).finish()
    }
}

/// The place of the policy that answers `interface`; none where no policy does.
fn choose(
    interface: Interface,
    policies: &[Policy],
    config: &PolicyConfig,
) -> Result<Option<usize>, LoadFault> {
    let able = || policies.iter().enumerate().filter(|(_, p)| p.info.exports.contains(&interface));
    if let Some(name) = config.choice.get(&interface) {
        let chosen = able().find(|(_, p)| p.info.name == *name).map(|(place, _)| place);
        return chosen.map(Some).ok_or_else(|| LoadFault::Chosen { interface, policy: name.clone() });
    }
    let mut places = able().map(|(place, _)| place);
    match (places.next(), places.next()) {
        (first, None) => Ok(first),
        (Some(_) | None, Some(_)) => Err(LoadFault::Ambiguous {
            interface,
            policies: able().map(|(_, p)| p.info.name.clone()).collect(),
        }),
    }
}

/// Parameters without a file. A file that is there but broken has been reported already.
fn strays(config: &PolicyConfig, policies: &[Policy], faults: &[LoadFault]) -> Vec<LoadFault> {
    let broken =
        |name: &str| faults.iter().filter_map(LoadFault::file).any(|f| f.file_stem() == Some(name.as_ref()));
    config
        .parameters
        .keys()
        .filter(|name| !broken(name) && !policies.iter().any(|p| p.info.name == **name))
        .map(|policy| LoadFault::Parameters { policy: policy.clone() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::PolicyHost;

    #[test]
    fn questions_may_be_asked_from_several_threads() {
        fn shareable<T: Send + Sync>() {}
        shareable::<PolicyHost>();
    }
}
