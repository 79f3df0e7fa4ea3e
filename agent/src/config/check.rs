//! Owns the rules that values and pairs of values must keep.
//!
//! Promises: every fault names file, key and what would be right.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_core::bounds::Bounds;
use understudy_core::host::PoolSettings;
use understudy_core::model::ids::HostId;
use understudy_core::model::units::{MiB, Vcpus};
use understudy_policy::keys::Faults;

use super::{
    AddressRange, Config, ConfigError, PeerFiles, PeersConfig, StoreConfig, StoreKind, is_loopback, raw,
};
use crate::peers::identity;

/// What `network.addresses` is to be.
pub(super) const ADDRESSES: &str = "a range of IPv4 addresses such as 10.77.1.16-10.77.1.31";

/// What only the agent's file needs.
trait Judge {
    fn parsed<T: std::str::FromStr>(&mut self, key: &str, text: &str, right: &str) -> Option<T>;
    fn absolute(&mut self, key: &str, path: &Path);
}

impl Judge for Faults<'_> {
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
}

/// Reads and checks a text: everything that is wrong with it at once.
pub(super) fn checked(file: &Path, text: &str) -> Result<Config, ConfigError> {
    let mut faults = Faults::of(file);
    let Some(raw) = raw::Raw::read(text, &mut faults) else {
        return Err(ConfigError::Faults { faults: faults.list });
    };
    let host = raw.host.name.as_ref().and_then(|name| match name.parse::<HostId>() {
        Ok(host) => Some(host),
        Err(error) => {
            faults.add("host.name", error);
            None
        }
    });
    faults.absolute("host.state_dir", &raw.host.state_dir);
    faults.absolute("host.runtime_dir", &raw.host.runtime_dir);
    let store = store(&mut faults, raw.store);
    let pool =
        PoolSettings { idle: raw.pool.idle, memory: MiB(raw.pool.memory_mib), vcpus: Vcpus(raw.pool.vcpus) };
    let addresses = addresses(&mut faults, &raw.network);
    libvirt(&mut faults, &raw.libvirt, &raw.environments);
    for name in raw.environment_labels.keys().filter(|name| !raw.environments.contains_key(*name)) {
        let known = raw.environments.keys().cloned().collect::<Vec<_>>().join(", ");
        let text = format_args!("is of no environment: [environments] names {known}");
        faults.add(&format!("environment_labels.{name}"), text);
    }
    let (reserved, ready) = (raw.host.reserved_memory_mib, raw.host.ready_images_mib);
    if ready.is_some_and(|ready| ready > reserved) {
        let text =
            format_args!("is more than host.reserved_memory_mib, of which it is a part: use 0 to {reserved}");
        faults.add("host.ready_images_mib", text);
    }
    faults.absolute("policies.dir", &raw.policies.dir);
    let bounds = bounds(&mut faults, &raw.cluster);
    let api_listen = listen(&mut faults, "api.listen", raw.api.listen.as_deref());
    let gateway_listen = listen(&mut faults, "gateway.listen", raw.gateway.listen.as_deref());
    if matches!(store, Some(StoreConfig::Etcd { .. })) && raw.peers.is_none() && !faults.has("peers") {
        without_certificates(&mut faults, api_listen);
    }
    let peers = raw.peers.and_then(|raw| peers(&mut faults, raw, host.as_ref()));
    let runtime = raw.host.runtime_dir.clone();
    match (host, store, addresses) {
        (Some(host), Some(store), Some(addresses)) if faults.list.is_empty() => Ok(Config {
            file: file.to_owned(),
            labels: raw.host.labels,
            reserved_memory: MiB(reserved),
            ready_images: MiB(ready.unwrap_or(reserved / 2)),
            vcpus_per_processor: raw.host.vcpus_per_processor,
            state_dir: raw.host.state_dir,
            libvirt_uri: raw.libvirt.uri,
            migration_uri: raw.libvirt.migration_uri.unwrap_or_else(|| format!("qemu+tls://{host}/system")),
            migration_tls: raw.libvirt.migration_tls,
            migration_data_uri: raw.libvirt.migration_data_uri,
            accelerator: raw.libvirt.accelerator.to_owned(),
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
            api_listen,
            peers,
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

/// All of the section: a listener without one of its files would be a plain one.
fn peers(faults: &mut Faults<'_>, raw: raw::Peers, host: Option<&HostId>) -> Option<PeersConfig> {
    let mut needed = |key: &str, missing: bool, right: &str| {
        if missing && !faults.has(key) {
            faults.add(key, format_args!("is missing: give {right}"));
        }
    };
    needed("peers.listen", raw.listen.is_none(), "the address for other hosts' agents, such as 0.0.0.0:7482");
    needed(
        "peers.ca",
        raw.ca.is_none(),
        "the file of the authority that signs the certificates of all hosts",
    );
    needed("peers.cert", raw.cert.is_none(), "the file of this host's certificate");
    needed("peers.key", raw.key.is_none(), "the file of that certificate's key");
    for (key, path) in [("peers.ca", &raw.ca), ("peers.cert", &raw.cert), ("peers.key", &raw.key)] {
        if let Some(path) = path {
            faults.absolute(key, path);
        }
    }
    let listen = listen(faults, "peers.listen", raw.listen.as_deref());
    let host = host?;
    if identity::name_of(host).is_none() {
        faults
            .add("host.name", format_args!("'{host}' is a number, which no certificate names: add a letter"));
    }
    Some(PeersConfig {
        listen: listen?,
        advertise: advertised(raw.advertise, listen, host),
        files: PeerFiles { authority: raw.ca?, certificate: raw.cert?, key: raw.key? },
    })
}

/// More than one host, and nothing is encrypted between them: only where it does not leave the machine.
fn without_certificates(faults: &mut Faults<'_>, api_listen: Option<SocketAddr>) {
    const RIGHT: &str = "give peers.listen, peers.ca, peers.cert and peers.key; or, where all agents are on this \
        machine, api.listen on 127.0.0.1";
    match api_listen {
        None if !faults.has("api.listen") => faults.add(
            "peers.listen",
            format_args!("is missing: with store.kind = \"etcd\" agents send each other checkpoints: {RIGHT}"),
        ),
        Some(address) if !is_loopback(address) => faults.add(
            "peers.listen",
            format_args!(
                "is missing: agents send each other checkpoints, which are the memory of guests, and api.listen, \
                 {address}, neither encrypts them nor knows who sends: {RIGHT}"
            ),
        ),
        None | Some(_) => {}
    }
}

fn store(faults: &mut Faults<'_>, raw: raw::Store) -> Option<StoreConfig> {
    match raw.kind? {
        StoreKind::Embedded => {
            for (key, set) in [
                ("store.endpoints", !raw.endpoints.is_empty()),
                ("store.root", raw.root.is_some()),
                ("store.ca", raw.ca.is_some()),
                ("store.cert", raw.cert.is_some()),
                ("store.key", raw.key.is_some()),
                ("store.user", raw.user.is_some()),
                ("store.password_file", raw.password_file.is_some()),
            ] {
                if set {
                    faults.add(key, "belongs to store.kind = \"etcd\", not to \"embedded\"");
                }
            }
            let path = raw.path.unwrap_or_else(|| "/var/lib/understudy/store.redb".into());
            faults.absolute("store.path", &path);
            Some(StoreConfig::Embedded { path })
        }
        StoreKind::Etcd => {
            endpoints(faults, &raw);
            let root = raw.root.unwrap_or_else(|| "/understudy/".to_owned());
            if !(root.starts_with('/') && root.ends_with('/')) || root.contains("//") {
                faults.add("store.root", format_args!("'{root}' must begin and end with one '/'"));
            }
            if raw.path.is_some() {
                faults.add("store.path", "belongs to store.kind = \"embedded\", not to \"etcd\"");
            }
            let identity = together(faults, ("store.cert", raw.cert), ("store.key", raw.key));
            let user = together(faults, ("store.user", raw.user), ("store.password_file", raw.password_file));
            Some(StoreConfig::Etcd { endpoints: raw.endpoints, root, authority: raw.ca, identity, user })
        }
    }
}

fn endpoints(faults: &mut Faults<'_>, raw: &raw::Store) {
    if raw.endpoints.is_empty() && !faults.has("store.endpoints") {
        faults.add("store.endpoints", "is empty: name every member, such as \"https://host1:2379\"");
    }
    if faults.has("store.ca") {
        return;
    }
    let (scheme, why) = match raw.ca {
        Some(_) => ("https://", "with store.ca"),
        None => ("http://", "without store.ca"),
    };
    for endpoint in &raw.endpoints {
        if endpoint.strip_prefix(scheme).is_none_or(str::is_empty) {
            faults.add("store.endpoints", format_args!("'{endpoint}' must start with {scheme} {why}"));
        }
    }
}

/// Two keys of which each needs the other.
fn together<A, B>(
    faults: &mut Faults<'_>,
    (one, a): (&str, Option<A>),
    (other, b): (&str, Option<B>),
) -> Option<(A, B)> {
    match (a, b) {
        (Some(a), Some(b)) => Some((a, b)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            if !faults.has(one) && !faults.has(other) {
                faults.add(one, format_args!("and {other} go together: give both or neither"));
            }
            None
        }
    }
}

fn addresses(faults: &mut Faults<'_>, raw: &raw::Network) -> Option<AddressRange> {
    let given = raw.addresses.as_ref()?;
    let Some((first, last)) = given.split_once('-') else {
        faults.add("network.addresses", format_args!("'{given}' is not {ADDRESSES}"));
        return None;
    };
    let first: Ipv4Addr = faults.parsed("network.addresses", first.trim(), ADDRESSES)?;
    let last: Ipv4Addr = faults.parsed("network.addresses", last.trim(), ADDRESSES)?;
    if first > last {
        faults.add("network.addresses", format_args!("{first} comes after {last}"));
        return None;
    }
    Some(AddressRange { first, last, prefix: raw.prefix_length })
}

fn libvirt(faults: &mut Faults<'_>, raw: &raw::Libvirt, environments: &BTreeMap<String, PathBuf>) {
    faults.absolute("libvirt.template", &raw.template);
    if !is_local_libvirt(&raw.uri) {
        let right = "use qemu:///system, or qemu+unix:///system?socket=PATH where its socket is elsewhere";
        faults.add("libvirt.uri", format_args!("'{}' is not this host's QEMU: {right}", raw.uri));
    }
    let nowhere = |uri: &String| uri.strip_prefix("tcp://").is_none_or(str::is_empty);
    if let Some(uri) = raw.migration_data_uri.as_ref().filter(|uri| nowhere(uri)) {
        faults.add(
            "libvirt.migration_data_uri",
            format_args!("'{uri}' is not an address such as tcp://192.0.2.1"),
        );
    }
    for (name, path) in environments {
        faults.absolute(&format!("environments.{name}"), path);
    }
    if environments.is_empty() && !faults.has("environments") {
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

fn bounds(faults: &mut Faults<'_>, raw: &raw::Cluster) -> Bounds {
    let mut bounds = raw.profile.bounds();
    if let Some(interval) = raw.checkpoint_interval_ms {
        bounds.checkpoint_interval = Duration::from_millis(interval);
    }
    for fault in bounds.faults() {
        faults.add("cluster", fault);
    }
    bounds
}
