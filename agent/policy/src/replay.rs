//! Owns asking a component old questions, counted in instructions instead of time.
//!
//! Promises: the same component, parameters and question give the same outcome on every machine, however busy. Must
//! not do: touch the library or the engine that decides.

use std::collections::BTreeMap;

use understudy_core::policy::{BackupCountAnswer, BackupCountQuestion, PlacementAnswer, PlacementQuestion};
use wasmtime::component::Component;

use crate::engine::Sandbox;
use crate::fault::{EngineFault, FileFault, PolicyFault};
use crate::inspect::inspect;
use crate::limits::Limits;
use crate::load::Policy;
use crate::names::Digest;
use crate::settings::{Mode, PolicySettings};

/// Instructions for one question: some seconds, far more than any deadline lets a policy have.
pub const FUEL: u64 = 4_000_000_000;

/// Why a component cannot answer old questions.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReplayFault {
    /// No engine.
    #[error(transparent)]
    Engine(#[from] EngineFault),
    /// It is no policy.
    #[error("the component is not used")]
    Component(#[source] FileFault),
}

/// A component that answers old questions.
pub struct Replayer {
    sandbox: Sandbox,
    compiled: Component,
    name: String,
    policy: Policy,
    digest: Digest,
}

impl Replayer {
    /// Take a component; `fuel` is what one question may take, see [`FUEL`].
    ///
    /// The parameters are put to the trial questions, as when a set is loaded. Compiles: 0.1 s for a Rust policy, most
    /// of a minute for a Python one.
    ///
    /// # Errors
    /// When it is no policy, or refuses the parameters.
    pub fn new(
        name: &str,
        component: &[u8],
        parameters: &BTreeMap<String, String>,
        limits: Limits,
        fuel: u64,
    ) -> Result<Self, ReplayFault> {
        let sandbox = Sandbox::fueled(fuel)?;
        let load = || {
            inspect(component)?;
            let compiled = Component::from_binary(&sandbox.engine, component)
                .map_err(|e| FileFault::Compile { message: format!("{e:#}") })?;
            let policy = tried(&sandbox, name, &compiled, parameters, limits)?;
            Ok((compiled, policy))
        };
        let (compiled, policy) = load().map_err(ReplayFault::Component)?;
        Ok(Self { sandbox, compiled, name: name.to_owned(), policy, digest: Digest::of(component) })
    }

    /// Give it other parameters and limits from here on. Nothing is compiled again.
    ///
    /// # Errors
    /// When it refuses them; those of before stay.
    pub fn configure(
        &mut self,
        parameters: &BTreeMap<String, String>,
        limits: Limits,
    ) -> Result<(), ReplayFault> {
        self.policy = tried(&self.sandbox, &self.name, &self.compiled, parameters, limits)
            .map_err(ReplayFault::Component)?;
        Ok(())
    }

    /// The name that it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The component's digest.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Where would this member have gone?
    ///
    /// # Errors
    /// When there is no answer.
    pub fn ask_placement(&self, question: &PlacementQuestion) -> Result<PlacementAnswer, PolicyFault> {
        self.policy.place(&self.sandbox, question).0
    }

    /// How many members would this node have had?
    ///
    /// # Errors
    /// When there is no answer.
    pub fn ask_backup_count(&self, question: &BackupCountQuestion) -> Result<BackupCountAnswer, PolicyFault> {
        self.policy.count(&self.sandbox, question).0
    }
}

fn tried(
    sandbox: &Sandbox,
    name: &str,
    compiled: &Component,
    parameters: &BTreeMap<String, String>,
    limits: Limits,
) -> Result<Policy, FileFault> {
    let settings = PolicySettings { mode: Mode::Decide, limits, parameters: parameters.clone() };
    let policy = Policy::link(sandbox, name, compiled, &settings)?;
    policy.try_out(sandbox)?;
    Ok(policy)
}

impl std::fmt::Debug for Replayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replayer").field("digest", &self.digest).finish_non_exhaustive()
    }
}
