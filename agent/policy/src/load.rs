//! Owns the way from a file to a policy that has answered its trial questions.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use understudy_core::policy::{
    BackupCountAnswer, BackupCountQuestion, Interface, Pick, PlacementAnswer, PlacementQuestion,
};
use understudy_core::units::MiB;
use wasmtime::component::{Component, InstancePre};

use crate::bindings::exports::understudy::policy::{backup_count, placement};
use crate::bindings::understudy::policy::types::Parameter;
use crate::columns;
use crate::config::PolicyConfig;
use crate::engine::{Guest, Sandbox};
use crate::fault::{FileFault, LoadFault, PolicyFault};
use crate::host::PolicyInfo;
use crate::inspect::inspect;
use crate::log::PolicyLog;
use crate::text::one_line;
use crate::trial;

/// Longest name of a policy: it goes into logs, metrics and the configuration.
const NAME_BYTES_MAX: usize = 63;
/// Longest reason for a pick.
const REASON_BYTES_MAX: usize = 256;

/// A component, ready to be asked.
pub(crate) struct Policy {
    pub(crate) info: PolicyInfo,
    log: Arc<PolicyLog>,
    pre: InstancePre<Guest>,
    placement: Option<placement::GuestIndices>,
    backup_count: Option<backup_count::GuestIndices>,
    parameters: Vec<Parameter>,
}

/// Every `*.wasm` of the folder, by name.
pub(crate) fn folder(sandbox: &Sandbox, dir: &Path, config: &PolicyConfig) -> (Vec<Policy>, Vec<LoadFault>) {
    let (mut policies, mut faults) = (Vec::new(), Vec::new());
    let (dir, files) = match list(dir) {
        Ok(listed) => listed,
        Err(source) => return (policies, vec![LoadFault::Folder { dir: dir.to_owned(), source }]),
    };
    for file in files {
        match Policy::load(sandbox, &dir, &file, config) {
            Ok(policy) => policies.push(policy),
            Err(source) => faults.push(LoadFault::File { file, source }),
        }
    }
    (policies, faults)
}

fn list(dir: &Path) -> std::io::Result<(PathBuf, Vec<PathBuf>)> {
    let dir = dir.canonicalize()?;
    let mut files = Vec::new();
    for entry in dir.read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "wasm") {
            files.push(path);
        }
    }
    files.sort();
    Ok((dir, files))
}

/// The content of a regular file inside `dir`, which is canonical.
fn read(dir: &Path, file: &Path, limit: MiB) -> Result<Vec<u8>, FileFault> {
    let real = file.canonicalize().map_err(FileFault::Read)?;
    if !real.starts_with(dir) {
        return Err(FileFault::Outside(real));
    }
    // Before it is opened: opening a pipe waits for a writer.
    if !real.metadata().map_err(FileFault::Read)?.is_file() {
        return Err(FileFault::Kind);
    }
    let mut bytes = Vec::new();
    // One byte more than allowed tells, also of a file that grows meanwhile.
    File::open(&real)
        .and_then(|f| f.take(limit.bytes().saturating_add(1)).read_to_end(&mut bytes))
        .map_err(FileFault::Read)?;
    if bytes.len() as u64 > limit.bytes() { Err(FileFault::Size { limit }) } else { Ok(bytes) }
}

fn name(file: &Path) -> Result<&str, FileFault> {
    let is_good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    file.file_stem()
        .and_then(|stem| stem.to_str())
        .filter(|name| !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(is_good))
        .ok_or(FileFault::Name)
}

impl Policy {
    fn load(sandbox: &Sandbox, dir: &Path, file: &Path, config: &PolicyConfig) -> Result<Self, FileFault> {
        let name = name(file)?;
        let bytes = read(dir, file, config.file_size)?;
        let exports = inspect(&bytes)?;
        let component = Component::from_binary(&sandbox.engine, &bytes)
            .map_err(|e| FileFault::Compile { message: format!("{e:#}") })?;
        let link = |e: wasmtime::Error| FileFault::Link { message: format!("{e:#}") };
        let pre = sandbox.linker.instantiate_pre(&component).map_err(link)?;
        let has = |interface| exports.contains(&interface);
        let placement = has(Interface::Placement)
            .then(|| placement::GuestIndices::new(&pre))
            .transpose()
            .map_err(link)?;
        let backup_count = has(Interface::BackupCount)
            .then(|| backup_count::GuestIndices::new(&pre))
            .transpose()
            .map_err(link)?;
        let parameters = config.parameters.get(name).into_iter().flatten();
        let policy = Self {
            log: Arc::new(PolicyLog::new(name.into())),
            info: PolicyInfo {
                name: name.to_owned(),
                file: file.to_owned(),
                digest: blake3::hash(&bytes).to_hex().to_string(),
                bytes: bytes.len() as u64,
                exports,
                decides: BTreeSet::new(),
            },
            pre,
            placement,
            backup_count,
            parameters: parameters
                .map(|(key, value)| Parameter { key: key.clone(), value: value.clone() })
                .collect(),
        };
        policy.try_out(sandbox)?;
        Ok(policy)
    }

    fn try_out(&self, sandbox: &Sandbox) -> Result<(), FileFault> {
        for &interface in &self.info.exports {
            match interface {
                Interface::Placement => self.place(sandbox, &trial::placement()).map(drop),
                Interface::BackupCount => self.count(sandbox, &trial::backup_count()).map(drop),
            }
            .map_err(|source| FileFault::Trial { interface, source })?;
        }
        Ok(())
    }

    pub(crate) fn place(
        &self,
        sandbox: &Sandbox,
        q: &PlacementQuestion,
    ) -> Result<PlacementAnswer, PolicyFault> {
        let unavailable = PolicyFault::Unavailable { interface: Interface::Placement };
        let indices = self.placement.as_ref().ok_or(unavailable)?;
        let (request, hosts) = columns::placement(q);
        let picks = sandbox.ask(&self.info.name, &self.log, &self.pre, |store, instance| {
            let guest = indices.load(&mut *store, instance)?;
            guest.call_place(&mut *store, &request, &hosts, &self.parameters)
        })?;
        let wanted = usize::try_from(q.wanted).unwrap_or(usize::MAX);
        let picks = picks
            .into_iter()
            .take(wanted)
            .map(|p| Pick { index: p.host, reason: reason(p.reason) })
            .collect();
        Ok(PlacementAnswer { picks })
    }

    pub(crate) fn count(
        &self,
        sandbox: &Sandbox,
        q: &BackupCountQuestion,
    ) -> Result<BackupCountAnswer, PolicyFault> {
        let unavailable = PolicyFault::Unavailable { interface: Interface::BackupCount };
        let indices = self.backup_count.as_ref().ok_or(unavailable)?;
        let (request, cluster) = columns::backup_count(q);
        let counts = sandbox.ask(&self.info.name, &self.log, &self.pre, |store, instance| {
            let guest = indices.load(&mut *store, instance)?;
            guest.call_count(&mut *store, &request, cluster, &self.parameters)
        })?;
        Ok(BackupCountAnswer {
            primaries: counts.primaries,
            backups: counts.backups,
            reason: reason(counts.reason),
        })
    }
}

fn reason(text: Option<String>) -> Option<String> {
    text.map(|text| one_line(&text, REASON_BYTES_MAX))
}
