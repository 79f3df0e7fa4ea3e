//! Owns what the agent needs of others before it can work, libvirt and the store, and the words in which an operator is
//! told what of it is missing.
//!
//! Promises: every such word names the configuration's file and key, what was tried, and what to do. Must not do: wait; its
//! callers do.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use understudy_core::host::LIBVIRTD_AWAY;
use understudy_hypervisor::{CapacityError, Hypervisor, Libvirt, LibvirtConfig};
use understudy_store::{
    Credentials, Embedded, EmbeddedLimits, Etcd, EtcdConfig, IdentityFiles, Store, StoreError, TlsFiles,
};

use crate::config::{Config, StoreConfig};
use crate::exit::{Exit, Failure, chain};

/// A key that nobody writes: reading it tells whether the store answers.
const ANY_KEY: &str = "none";
const ETCD_ADVICE: &str = "see that etcd runs there, most of its members at least";

fn said(config: &Config, key: &str, error: &dyn Error) -> String {
    format!("{}: {key}: {}", config.file.display(), chain(error))
}

/// What to tell about a libvirt that cannot be used.
#[must_use]
pub fn libvirt_fault(config: &Config, error: &dyn Error) -> String {
    said(config, "libvirt.uri", error)
}

/// What to tell while libvirt has not answered yet.
#[must_use]
pub fn libvirt_silent(config: &Config, error: &dyn Error) -> String {
    format!("{LIBVIRTD_AWAY}: {}", libvirt_fault(config, error))
}

/// What to tell about a store that does not do what it was asked.
#[must_use]
pub fn store_fault(config: &Config, error: &StoreError) -> String {
    let silent = matches!(error, StoreError::Unavailable { .. } | StoreError::Ambiguous { .. });
    match &config.store {
        StoreConfig::Embedded { .. } => said(config, "store.path", error),
        StoreConfig::Etcd { .. } if silent => {
            let text = said(config, "store.endpoints", error);
            format!("{text}: {ETCD_ADVICE}")
        }
        // Which of its files or words is at fault, the error says itself.
        StoreConfig::Etcd { .. } => said(config, "store", error),
    }
}

/// What to tell while the store does not answer and nobody knows why.
#[must_use]
pub fn store_silent(config: &Config) -> String {
    let (key, advice) = match &config.store {
        StoreConfig::Etcd { .. } => ("store.endpoints", ETCD_ADVICE),
        StoreConfig::Embedded { .. } => ("store.path", "see the agent's log"),
    };
    format!("{}: {key}: the store does not answer: {advice}", config.file.display())
}

/// What to tell where instances are emulated though nobody asked for it.
#[must_use]
pub fn emulation(config: &Config, reason: &str) -> String {
    format!(
        "{}: libvirt.accelerator: instances are emulated, many times slower, because KVM does not work on this host: \
         {reason}: repair that and restart the agent, or write \"qemu\" where emulation is intended",
        config.file.display()
    )
}

/// Takes libvirt into use. One that does not run yet is no failure: it is connected to when it does.
///
/// # Errors
/// When it can never be used by this configuration.
pub fn hypervisor(config: &Config) -> Result<Arc<dyn Hypervisor>, Failure> {
    let accelerator = config
        .accelerator
        .parse()
        .map_err(|error| Failure::new(Exit::Config, said(config, "libvirt.accelerator", &error)))?;
    let settings = LibvirtConfig { uri: config.libvirt_uri.clone(), accelerator, ..LibvirtConfig::local() };
    let libvirt = Libvirt::start(settings)
        .map_err(|error| Failure::new(Exit::Config, libvirt_fault(config, &error)))?;
    Ok(Arc::new(libvirt))
}

/// Takes the store into use. An etcd that does not answer is no failure: its first call says so.
///
/// # Errors
/// When it can never be used by this configuration, or an embedded one cannot be opened.
pub async fn store(config: &Config) -> Result<Arc<dyn Store>, Failure> {
    match wanted(config)? {
        Wanted::Embedded(path) => embedded(config, path).await,
        Wanted::Etcd(settings) => Ok(Arc::new(etcd(config, *settings).await?)),
    }
}

/// The store as the lease reaches it: an etcd by connections of their own, made on the thread that asks, so that no other
/// request is in their way. An embedded one is one file: the same.
pub async fn lease_store(config: Config, shared: Arc<dyn Store>) -> Arc<dyn Store> {
    let settings = match wanted(&config) {
        Ok(Wanted::Etcd(settings)) => settings,
        Ok(Wanted::Embedded(_)) | Err(_) => return shared,
    };
    let settings = EtcdConfig { client: format!("{}.lease", config.host), ..*settings };
    match etcd(&config, settings).await {
        Ok(store) => Arc::new(store),
        // It was opened by the same words a moment ago.
        Err(failure) => {
            tracing::error!(error = %failure.message, "the lease shares the connections of everything else");
            shared
        }
    }
}

async fn embedded(config: &Config, path: &Path) -> Result<Arc<dyn Store>, Failure> {
    let failed = |text| Failure::new(Exit::Failed, text);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| failed(said(config, "store.path", &error)))?;
    }
    let store = Embedded::open(path, EmbeddedLimits::default()).await;
    Ok(Arc::new(store.map_err(|error| failed(store_fault(config, &error)))?))
}

async fn etcd(config: &Config, settings: EtcdConfig) -> Result<Etcd, Failure> {
    let opened = Etcd::open(settings).await;
    opened.map_err(|error| Failure::new(Exit::Config, store_fault(config, &error)))
}

/// The store as its own crate wants it described.
enum Wanted<'c> {
    Embedded(&'c Path),
    Etcd(Box<EtcdConfig>),
}

fn wanted(config: &Config) -> Result<Wanted<'_>, Failure> {
    let (endpoints, root, authority, identity, user) = match &config.store {
        StoreConfig::Embedded { path } => return Ok(Wanted::Embedded(path)),
        StoreConfig::Etcd { endpoints, root, authority, identity, user } => {
            (endpoints, root, authority, identity, user)
        }
    };
    let mut settings = EtcdConfig::new(endpoints.clone(), root.clone(), config.host.as_str());
    settings.tls = authority.as_ref().map(|authority| TlsFiles {
        authority: authority.clone(),
        identity: identity
            .as_ref()
            .map(|(certificate, key)| IdentityFiles { certificate: certificate.clone(), key: key.clone() }),
    });
    if let Some((name, file)) = user {
        let password = std::fs::read_to_string(file)
            .map_err(|error| Failure::new(Exit::Config, said(config, "store.password_file", &error)))?;
        settings.user = Some(Credentials { name: name.clone(), password: password.trim().to_owned() });
    }
    settings.timeouts.request = config.bounds.store_request;
    Ok(Wanted::Etcd(Box::new(settings)))
}

/// Asks libvirt once whether it answers, as an agent of this configuration would. Nothing when it does.
pub async fn ask_libvirt(config: &Config) -> Option<String> {
    let mine = config.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let hypervisor = hypervisor(&mine).map_err(|failure| failure.message)?;
        hypervisor.capacity().map(|_| ()).map_err(|CapacityError::Read(error)| libvirt_fault(&mine, &error))
    });
    asked.await.unwrap_or_else(|error| Err(libvirt_fault(config, &error))).err()
}

/// Asks etcd once whether it answers, as an agent of this configuration would. Nothing when it does, or when there is
/// none: an embedded store is not opened, it belongs to the agent that may run.
pub async fn ask_store(config: &Config) -> Option<String> {
    let settings = match wanted(config) {
        Ok(Wanted::Embedded(_)) => return None,
        Ok(Wanted::Etcd(settings)) => settings,
        Err(failure) => return Some(failure.message),
    };
    match etcd(config, *settings).await {
        Ok(store) => store.get(ANY_KEY).await.err().map(|error| store_fault(config, &error)),
        Err(failure) => Some(failure.message),
    }
}
