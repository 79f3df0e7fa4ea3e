//! Owns the look at the files that a configuration names.
//!
//! Promises: every fault names file, key and what to do. Must not do: ask libvirt or the store (`needs` does).

use std::path::Path;

use understudy_hypervisor::{Template, check_role_disk};
use understudy_policy::keys::Faults;

use super::{Config, StoreConfig};
use crate::exit::chain;
use crate::peers::identity;

/// The template, from which every instance is made: it is there, and would do.
#[must_use]
pub fn template_faults(config: &Config) -> Vec<String> {
    let mut faults = Faults::of(&config.file);
    let path = config.template.display();
    match std::fs::read_to_string(&config.template) {
        Ok(text) => {
            if let Err(error) = Template::parse(&text) {
                faults.add("libvirt.template", format_args!("{path}: {}", chain(&error)));
            }
        }
        Err(error) => faults.add("libvirt.template", format_args!("cannot read {path}: {error}")),
    }
    faults.list
}

/// Certificates and password: they are there. What is in them is the store's to judge.
#[must_use]
pub fn store_file_faults(config: &Config) -> Vec<String> {
    let mut faults = Faults::of(&config.file);
    if let StoreConfig::Etcd { authority, identity, user, .. } = &config.store {
        let mut readable = |key: &str, path: Option<&Path>| {
            let opened = path.map(|path| std::fs::File::open(path).map_err(|error| (path, error)));
            if let Some(Err((path, error))) = opened {
                faults.add(key, format_args!("cannot read {}: {error}", path.display()));
            }
        };
        readable("store.ca", authority.as_deref());
        readable("store.cert", identity.as_ref().map(|(certificate, _)| certificate.as_path()));
        readable("store.key", identity.as_ref().map(|(_, key)| key.as_path()));
        readable("store.password_file", user.as_ref().map(|(_, file)| file.as_path()));
    }
    faults.list
}

/// This host's certificate for its peers: they would accept it. An agent runs without: the peers' copies wait for it.
#[must_use]
pub fn peer_file_faults(config: &Config) -> Vec<String> {
    let mut faults = Faults::of(&config.file);
    if let Some(peers) = &config.peers
        && let Err(error) = identity::read(&config.host, &peers.files)
    {
        faults.add(error.key(), chain(&error));
    }
    faults.list
}

/// Role disks that no instance can be given. An agent runs without them: instances that have their role go on.
#[must_use]
pub fn role_disk_faults(config: &Config) -> Vec<String> {
    let mut faults = Faults::of(&config.file);
    for (name, path) in &config.environments {
        if let Err(error) = check_role_disk(path) {
            faults.add(&format!("environments.{name}"), chain(&error));
        }
    }
    faults.list
}
