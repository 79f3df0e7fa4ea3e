//! Owns the way from a record to a loaded set: what is missing is fetched from peers, then all of it is loaded; and the
//! proposal of a set that was loaded so.
//!
//! Promises: what a peer sends is taken by its digest and up to the size of a policy, or not at all. Must not do: retry.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use understudy_core::model::ids::HostId;
use understudy_core::sets::{PolicySetRecord, PolicySets, SetFault};
use understudy_core::transaction::Transaction;
use understudy_policy::{Digest, Library, Limits, PolicySet, SETTINGS_FILE, Settings};
use understudy_store::Committed;

use crate::exit::chain;
use crate::keys::Key;
use crate::peers::{Peer, Security, fetch_component};
use crate::runtime::Parts;

/// What came of a proposal.
pub(super) enum Proposal {
    /// It stands as the candidate.
    Written,
    /// The records changed meanwhile.
    Overtaken,
    /// The store did not answer.
    Unreachable(String),
    /// It cannot be used.
    Bad(SetFault),
}

/// Loads the set of a record.
///
/// # Errors
/// Why it is not ready here.
pub(super) async fn load(
    parts: &Parts,
    record: &PolicySetRecord,
    peers: &BTreeMap<HostId, String>,
) -> Result<PolicySet, SetFault> {
    let policies = &parts.policies;
    let Some(library) = policies.library().cloned() else {
        return Err(SetFault::Unusable(policies.unusable.clone().unwrap_or_default()));
    };
    let mut components = BTreeMap::new();
    for (name, digest) in &record.components {
        let digest: Digest = digest
            .parse()
            .map_err(|error| SetFault::Unusable(format!("{name}: '{digest}' is no digest: {error}")))?;
        if !library.has(&digest) {
            fetch(&library, policies.defaults(), (name, &digest), peers, &parts.security).await?;
        }
        components.insert(name.clone(), digest);
    }
    let (text, defaults) = (record.settings.clone(), *policies.defaults());
    let loaded = tokio::task::spawn_blocking(move || {
        let settings = settings(&text, &defaults)?;
        // What is suspended is in the record, and may be restored at any moment: all of the set is loaded.
        let (set, faults) = PolicySet::load(&library, &components, &settings, &BTreeSet::new());
        let faults: Vec<String> = faults.iter().map(|fault| chain(fault)).collect();
        if faults.is_empty() { Ok(set) } else { Err(faults.join("; ")) }
    });
    match loaded.await {
        Ok(Ok(set)) => Ok(set),
        Ok(Err(reason)) => Err(SetFault::Unusable(reason)),
        Err(error) => Err(SetFault::Unusable(format!("loading failed: {error}"))),
    }
}

/// The settings of a set, from the text in its record.
///
/// # Errors
/// With all that is wrong with it.
pub(super) fn settings(text: &str, defaults: &Limits) -> Result<Settings, String> {
    if text.is_empty() {
        return Ok(Settings::without_file(*defaults));
    }
    Settings::parse(Path::new(SETTINGS_FILE), text, defaults)
        .map_err(|fault| fault.to_string().replace('\n', "; "))
}

async fn fetch(
    library: &std::sync::Arc<Library>,
    limits: &Limits,
    (name, digest): (&str, &Digest),
    peers: &BTreeMap<HostId, String>,
    security: &Security,
) -> Result<(), SetFault> {
    let mut problem = "there is no other host".to_owned();
    for (host, address) in peers {
        let peer = Peer { host, address, security };
        match fetch_component(peer, digest, limits.file_size).await {
            Ok(bytes) => {
                let (task_library, limit) = (library.clone(), limits.file_size);
                let kept = tokio::task::spawn_blocking(move || task_library.add(&bytes, limit)).await;
                return match kept {
                    Ok(Ok(_)) => {
                        tracing::info!(policy = name, %digest, %host, "policy fetched");
                        Ok(())
                    }
                    Ok(Err(error)) => Err(SetFault::Unusable(format!("{name}: {}", chain(&error)))),
                    Err(error) => Err(SetFault::Unusable(format!("{name}: {error}"))),
                };
            }
            Err(error) => {
                tracing::debug!(policy = name, %digest, %host, error, "a peer does not give a policy");
                problem = format!("{host}: {error}");
            }
        }
    }
    Err(SetFault::Missing(format!("{name}: nobody gives {:.12}: {problem}", digest.as_str())))
}

/// Loads a set as every host will, and proposes it over the records that it was made from.
pub(super) async fn propose(
    parts: &Parts,
    sets: &PolicySets,
    record: &PolicySetRecord,
    peers: &BTreeMap<HostId, String>,
) -> Proposal {
    if let Err(fault) = load(parts, record, peers).await {
        return Proposal::Bad(fault);
    }
    let mut write = Transaction::new().put(Key::PolicyCandidate, record);
    for (key, revision) in [
        (Key::PolicyActive, sets.active.as_ref().map(|set| set.revision)),
        (Key::PolicyCandidate, sets.candidate.as_ref().map(|set| set.revision)),
        (Key::PolicyRefused, sets.refused.as_ref().map(|set| set.revision)),
    ] {
        write = write.when(key, revision);
    }
    match parts.store.commit(&write.into()).await {
        Ok(Committed::Applied { .. }) => Proposal::Written,
        Ok(Committed::Refused { .. }) => Proposal::Overtaken,
        Err(error) => Proposal::Unreachable(chain(&error)),
    }
}
