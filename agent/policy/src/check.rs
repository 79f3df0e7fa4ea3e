//! Owns the look at one component for its author: all that loading would find, and what it would take.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use understudy_core::model::units::MiB;
use understudy_core::policy::Interface;
use wasmtime::component::Component;

use crate::engine::Sandbox;
use crate::fault::{EngineFault, FileFault, PolicyFault};
use crate::inspect::{self, Faces};
use crate::limits::Limits;
use crate::load::Policy;
use crate::names::{Digest, is_name};
use crate::settings::Settings;

/// What is to be known of a component before it is put into the folder.
#[derive(Debug, Clone)]
pub struct CheckReport {
    /// The file.
    pub file: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// Of the whole file; none where it could not be read.
    pub digest: Option<Digest>,
    /// Names of what it imports, as far as it could be read.
    pub imports: Vec<String>,
    /// Names of what it exports, as far as it could be read.
    pub exports: Vec<String>,
    /// What it can be asked.
    pub answers: BTreeSet<Interface>,
    /// How long compiling took; none where it came not so far.
    pub compiled: Option<Duration>,
    /// What came of the trial questions.
    pub trials: Vec<TrialReport>,
    /// What it may use.
    pub limits: Limits,
    /// Why it would not be used; none where it would.
    pub fault: Option<FileFault>,
}

/// What came of one trial question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialReport {
    /// What was asked.
    pub interface: Interface,
    /// Whether there was an answer.
    pub outcome: Result<(), PolicyFault>,
    /// How long it took.
    pub took: Duration,
    /// Memory that it took, in bytes.
    pub memory: u64,
}

/// Look at the component in `file` as loading would, with the settings of the policy that it would be. Blocks while it
/// compiles, and for the trial questions.
///
/// # Errors
/// When there is no engine on this machine; what is wrong with the component is in the report.
pub fn check(file: &Path, settings: &Settings) -> Result<CheckReport, EngineFault> {
    let name = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let own = settings.of(name);
    let sandbox = Sandbox::clocked()?;
    let mut report = CheckReport {
        file: file.to_owned(),
        bytes: 0,
        digest: None,
        imports: Vec::new(),
        exports: Vec::new(),
        answers: BTreeSet::new(),
        compiled: None,
        trials: Vec::new(),
        limits: own.limits,
        fault: None,
    };
    let mut look = || {
        let component = read(file, own.limits.file_size, &mut report)?;
        if !is_name(name) || file.extension().is_none_or(|end| end != "wasm") {
            return Err(FileFault::Name);
        }
        let mut faces = Faces::default();
        let looked = inspect::look(&component, &mut faces);
        let answers = faces.answers.clone();
        (report.imports, report.exports, report.answers) =
            (faces.imports.clone(), faces.exports.clone(), answers);
        looked.and_then(|()| faces.checked())?;
        let start = Instant::now();
        let compiled = Component::from_binary(&sandbox.engine, &component)
            .map_err(|e| FileFault::Compile { message: format!("{e:#}") })?;
        report.compiled = Some(start.elapsed());
        let policy = Policy::link(&sandbox, name, &compiled, &own)?;
        for trial in policy.trials(&sandbox) {
            report.trials.push(TrialReport {
                interface: trial.interface,
                outcome: trial.outcome.clone(),
                took: trial.took,
                memory: trial.usage.memory as u64,
            });
            trial.passed()?;
        }
        Ok(())
    };
    report.fault = look().err();
    Ok(report)
}

fn read(file: &Path, limit: MiB, report: &mut CheckReport) -> Result<Vec<u8>, FileFault> {
    let failed = |error| FileFault::Read(Arc::new(error));
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(FileFault::Kind);
    }
    report.bytes = meta.len();
    if meta.len() > limit.bytes() {
        return Err(FileFault::Size { limit });
    }
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|file| file.take(limit.bytes().saturating_add(1)).read_to_end(&mut bytes))
        .map_err(failed)?;
    report.digest = Some(Digest::of(&bytes));
    Ok(bytes)
}
