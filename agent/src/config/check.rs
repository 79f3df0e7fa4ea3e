//! Owns the rules that values and pairs of values must keep.
//!
//! Promises: every fault names file, key and what would be right.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_core::bounds::Bounds;
use understudy_core::host::PoolSettings;
use understudy_core::ids::HostId;
use understudy_core::units::{MiB, Vcpus};

use super::{AddressRange, Config, ConfigError, MEMORY_MIB, StoreConfig, StoreKind, VCPUS, raw};

/// Collects faults, so that all are reported at once.
pub(super) struct Faults<'a> {
    pub(super) file: &'a Path,
    pub(super) list: Vec<String>,
}

impl Faults<'_> {
    pub(super) fn add(&mut self, key: &str, problem: impl std::fmt::Display) {
        self.list.push(format!("{}: {key}: {problem}", self.file.display()));
    }

    fn parsed<T: std::str::FromStr>(&mut self, key: &str, text: &str, right: &str) -> Option<T> {
        let value = text.parse().ok();
        if value.is_none() {
            self.add(key, format_args!("'{text}' is not {right}"));
        }
        value
    }

    fn absolute(&mut self, key: &str, path: &Path) {
        if !path.is_absolute() {
            self.add(key, format_args!("'{}' must be an absolute path", path.display()));
        }
    }

    fn range<T: PartialOrd + std::fmt::Display>(&mut self, key: &str, value: T, low: T, high: T) {
        if value < low || value > high {
            self.add(key, format_args!("{value} is out of range: use {low} to {high}"));
        }
    }
}

pub(super) fn checked(file: &Path, raw: raw::Raw) -> Result<Config, ConfigError> {
    let mut faults = Faults { file, list: Vec::new() };
    let host = match raw.host.name.parse::<HostId>() {
        Ok(host) => Some(host),
        Err(error) => {
            faults.add("host.name", error);
            None
        }
    };
    faults.absolute("host.state_dir", &raw.host.state_dir);
    faults.absolute("host.runtime_dir", &raw.host.runtime_dir);
    faults.range("host.vcpus_per_processor", raw.host.vcpus_per_processor, 1, 64);
    let store = store(&mut faults, raw.store);
    let pool = pool(&mut faults, &raw.pool);
    let addresses = addresses(&mut faults, &raw.network);
    libvirt(&mut faults, &raw.libvirt, &raw.environments);
    for name in raw.environment_labels.keys().filter(|name| !raw.environments.contains_key(*name)) {
        let known = raw.environments.keys().cloned().collect::<Vec<_>>().join(", ");
        let text = format_args!("is of no environment: [environments] names {known}");
        faults.add(&format!("environment_labels.{name}"), text);
    }
    policies(&mut faults, &raw.policies);
    let bounds = bounds(&mut faults, &raw.cluster);
    let api_listen = listen(&mut faults, "api.listen", raw.api.listen.as_deref());
    let gateway_listen = listen(&mut faults, "gateway.listen", raw.gateway.listen.as_deref());
    if !["auto", "plain", "journald"].contains(&raw.log.format.as_str()) {
        faults.add("log.format", format_args!("'{}' is not one of auto, plain, journald", raw.log.format));
    }
    if matches!(store, Some(StoreConfig::Etcd { .. })) && api_listen.is_none() {
        faults.add("api.listen", "is needed with store.kind = \"etcd\": peers send checkpoints to it");
    }
    let runtime = raw.host.runtime_dir.clone();
    match (host, store, addresses) {
        (Some(host), Some(store), Some(addresses)) if faults.list.is_empty() => Ok(Config {
            file: file.to_owned(),
            labels: raw.host.labels,
            reserved_memory: MiB(raw.host.reserved_memory_mib),
            vcpus_per_processor: raw.host.vcpus_per_processor,
            state_dir: raw.host.state_dir,
            libvirt_uri: raw.libvirt.uri,
            migration_uri: raw.libvirt.migration_uri.unwrap_or_else(|| format!("qemu+tls://{host}/system")),
            migration_tls: raw.libvirt.migration_tls,
            migration_data_uri: raw.libvirt.migration_data_uri,
            accelerator: raw.libvirt.accelerator,
            template: raw.libvirt.template,
            environments: raw.environments,
            environment_labels: raw.environment_labels,
            store,
            profile: raw.cluster.profile,
            bounds,
            pool,
            addresses,
            policies_dir: raw.policies.dir,
            policy_deadline: Duration::from_millis(raw.policies.deadline_ms),
            policy_records: MiB(raw.policies.records_mib),
            api_socket: raw.api.socket.unwrap_or_else(|| runtime.join("api.sock")),
            api_advertise: advertised(raw.api.advertise, api_listen, &host),
            api_listen,
            gateway_advertise: raw
                .gateway
                .advertise
                .unwrap_or_else(|| format!("http://{}", advertised(None, gateway_listen, &host))),
            gateway_listen,
            guard_socket: raw.guard.socket.unwrap_or_else(|| runtime.join("guard.sock")),
            runtime_dir: runtime,
            log_journald: raw.log.format == "journald"
                || (raw.log.format == "auto" && std::env::var_os("JOURNAL_STREAM").is_some()),
            log_filter: raw.log.filter,
            host,
        }),
        _ => Err(ConfigError::Faults { faults: faults.list }),
    }
}

fn advertised(given: Option<String>, listen: Option<SocketAddr>, host: &HostId) -> String {
    given.unwrap_or_else(|| match listen {
        Some(address) if address.ip().is_unspecified() => format!("{host}:{}", address.port()),
        Some(address) => address.to_string(),
        None => String::new(),
    })
}

fn listen(faults: &mut Faults<'_>, key: &str, text: Option<&str>) -> Option<SocketAddr> {
    text.and_then(|text| faults.parsed(key, text, "an address and port such as 0.0.0.0:7443"))
}

fn store(faults: &mut Faults<'_>, raw: raw::Store) -> Option<StoreConfig> {
    match raw.kind {
        StoreKind::Embedded => {
            for (key, set) in [("store.endpoints", !raw.endpoints.is_empty()), ("store.ca", raw.ca.is_some())]
            {
                if set {
                    faults.add(key, "belongs to store.kind = \"etcd\", not to \"embedded\"");
                }
            }
            let path = raw.path.unwrap_or_else(|| "/var/lib/understudy/store.redb".into());
            faults.absolute("store.path", &path);
            Some(StoreConfig::Embedded { path })
        }
        StoreKind::Etcd => {
            if raw.endpoints.is_empty() {
                faults.add("store.endpoints", "is empty: name every member, such as \"https://host1:2379\"");
            }
            let (scheme, why) = match raw.ca {
                Some(_) => ("https://", "with store.ca"),
                None => ("http://", "without store.ca"),
            };
            for endpoint in &raw.endpoints {
                if endpoint.strip_prefix(scheme).is_none_or(str::is_empty) {
                    faults
                        .add("store.endpoints", format_args!("'{endpoint}' must start with {scheme} {why}"));
                }
            }
            if !(raw.root.starts_with('/') && raw.root.ends_with('/')) || raw.root.contains("//") {
                faults.add("store.root", format_args!("'{}' must begin and end with one '/'", raw.root));
            }
            if raw.path.is_some() {
                faults.add("store.path", "belongs to store.kind = \"embedded\", not to \"etcd\"");
            }
            let identity = match (raw.cert, raw.key) {
                (Some(cert), Some(key)) => Some((cert, key)),
                (None, None) => None,
                _ => {
                    faults.add("store.cert", "and store.key go together: give both or neither");
                    None
                }
            };
            let user = match (raw.user, raw.password_file) {
                (Some(user), Some(file)) => Some((user, file)),
                (None, None) => None,
                _ => {
                    faults.add("store.user", "and store.password_file go together: give both or neither");
                    None
                }
            };
            Some(StoreConfig::Etcd {
                endpoints: raw.endpoints,
                root: raw.root,
                authority: raw.ca,
                identity,
                user,
            })
        }
    }
}

fn pool(faults: &mut Faults<'_>, raw: &raw::Pool) -> PoolSettings {
    faults.range("pool.idle", raw.idle, 0, 64);
    faults.range("pool.memory_mib", raw.memory_mib, *MEMORY_MIB.start(), *MEMORY_MIB.end());
    faults.range("pool.vcpus", raw.vcpus, *VCPUS.start(), *VCPUS.end());
    PoolSettings { idle: raw.idle, memory: MiB(raw.memory_mib), vcpus: Vcpus(raw.vcpus) }
}

fn addresses(faults: &mut Faults<'_>, raw: &raw::Network) -> Option<AddressRange> {
    faults.range("network.prefix_length", raw.prefix_length, 8, 30);
    let right = "a range of IPv4 addresses such as 10.77.1.16-10.77.1.31";
    let Some((first, last)) = raw.addresses.split_once('-') else {
        faults.add("network.addresses", format_args!("'{}' is not {right}", raw.addresses));
        return None;
    };
    let first: Ipv4Addr = faults.parsed("network.addresses", first.trim(), right)?;
    let last: Ipv4Addr = faults.parsed("network.addresses", last.trim(), right)?;
    if first > last {
        faults.add("network.addresses", format_args!("{first} comes after {last}"));
        return None;
    }
    Some(AddressRange { first, last, prefix: raw.prefix_length })
}

fn libvirt(faults: &mut Faults<'_>, raw: &raw::Libvirt, environments: &BTreeMap<String, PathBuf>) {
    faults.absolute("libvirt.template", &raw.template);
    if !["auto", "kvm", "qemu"].contains(&raw.accelerator.as_str()) {
        faults
            .add("libvirt.accelerator", format_args!("'{}' is not one of auto, kvm, qemu", raw.accelerator));
    }
    if !is_local_libvirt(&raw.uri) {
        let right = "use qemu:///system, or qemu+unix:///system?socket=PATH where its socket is elsewhere";
        faults.add("libvirt.uri", format_args!("'{}' is not this host's QEMU: {right}", raw.uri));
    }
    for (name, path) in environments {
        faults.absolute(&format!("environments.{name}"), path);
    }
    if environments.is_empty() {
        faults.add("environments", "is empty: name at least one role disk, such as desktop = \"/var/lib/understudy/roles/role.erofs\"");
    }
}

/// Whether this is the system's QEMU on this host, or `test`, libvirt's own driver for trials. Anything else is wrong for
/// good, and libvirt would not say so before libvirtd runs: a driver that it does not know is the daemon's to refuse.
fn is_local_libvirt(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once("://") else { return false };
    let path = rest.split_once('?').map_or(rest, |(path, _)| path);
    match scheme {
        "qemu" | "qemu+unix" => path == "/system",
        "test" => path.starts_with('/'),
        _ => false,
    }
}

fn policies(faults: &mut Faults<'_>, raw: &raw::Policies) {
    faults.absolute("policies.dir", &raw.dir);
    faults.range("policies.deadline_ms", raw.deadline_ms, 5, 10_000);
    faults.range("policies.records_mib", raw.records_mib, 0, 1 << 16);
}

fn bounds(faults: &mut Faults<'_>, raw: &raw::Cluster) -> Bounds {
    let mut bounds = raw.profile.bounds();
    if let Some(interval) = raw.checkpoint_interval_ms {
        faults.range("cluster.checkpoint_interval_ms", interval, 1_000, 600_000);
        bounds.checkpoint_interval = Duration::from_millis(interval);
    }
    for fault in bounds.faults() {
        faults.add("cluster", fault);
    }
    bounds
}
