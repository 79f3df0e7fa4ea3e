//! Owns the form of the file: one struct per section, its keys, their ranges and defaults, each named once.
//!
//! Must not do: judge what a text says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use understudy_core::bounds::Profile;
use understudy_policy::keys::{Faults, Section, file};

use super::{MEMORY_MIB, StoreKind, VCPUS};

pub(super) struct Raw {
    pub(super) host: Host,
    pub(super) libvirt: Libvirt,
    pub(super) store: Store,
    pub(super) cluster: Cluster,
    pub(super) pool: Pool,
    pub(super) network: Network,
    pub(super) environments: BTreeMap<String, PathBuf>,
    pub(super) environment_labels: BTreeMap<String, BTreeMap<String, String>>,
    pub(super) policies: Policies,
    pub(super) api: Api,
    pub(super) peers: Option<Peers>,
    pub(super) gateway: Gateway,
    pub(super) guard: Guard,
    pub(super) log: Log,
}

type Keys<'s, 'a, 'f, 'p> = &'s mut Section<'a, 'f, 'p>;

impl Raw {
    /// What a text says; none when it is no TOML. Where a key is at fault its default stands, so that the others can be
    /// looked at too.
    pub(super) fn read(text: &str, faults: &mut Faults<'_>) -> Option<Self> {
        file(text, faults, |file| Self {
            host: file.section("host", Host::read),
            libvirt: file.section("libvirt", Libvirt::read),
            store: file.section("store", Store::read),
            cluster: file.section("cluster", Cluster::read),
            pool: file.section("pool", Pool::read),
            network: file.section("network", Network::read),
            environments: file
                .named_texts("environments")
                .into_iter()
                .map(|(name, path)| (name, path.into()))
                .collect(),
            environment_labels: file.named_tables("environment_labels"),
            policies: file.section("policies", Policies::read),
            api: file.section("api", Api::read),
            peers: file.section("peers", Peers::read),
            gateway: file.section("gateway", Gateway::read),
            guard: file.section("guard", |keys| Guard { socket: keys.path("socket") }),
            log: file.section("log", Log::read),
        })
    }
}

/// `None` where a key without a default is missing or at fault.
pub(super) struct Host {
    pub(super) name: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) reserved_memory_mib: u64,
    pub(super) ready_images_mib: Option<u64>,
    pub(super) vcpus_per_processor: u32,
    pub(super) state_dir: PathBuf,
    pub(super) runtime_dir: PathBuf,
}

impl Host {
    fn read(keys: Keys<'_, '_, '_, '_>) -> Self {
        Self {
            name: keys.needed("name", "this host's name, such as \"host1\"").text("name"),
            labels: keys.named_texts("labels"),
            reserved_memory_mib: keys.number("reserved_memory_mib", 0..=1 << 24).unwrap_or(1024),
            ready_images_mib: keys.number("ready_images_mib", 0..=1 << 24),
            vcpus_per_processor: keys.number("vcpus_per_processor", 1..=64).unwrap_or(4),
            state_dir: keys.path("state_dir").unwrap_or_else(|| "/var/lib/understudy".into()),
            runtime_dir: keys.path("runtime_dir").unwrap_or_else(|| "/run/understudy".into()),
        }
    }
}

pub(super) struct Libvirt {
    pub(super) uri: String,
    pub(super) accelerator: &'static str,
    pub(super) template: PathBuf,
    pub(super) migration_uri: Option<String>,
    pub(super) migration_tls: bool,
    pub(super) migration_data_uri: Option<String>,
}

impl Libvirt {
    fn read(keys: Keys<'_, '_, '_, '_>) -> Self {
        let accelerators = [("auto", "auto"), ("kvm", "kvm"), ("qemu", "qemu")];
        Self {
            uri: keys.text("uri").unwrap_or_else(|| "qemu:///system".to_owned()),
            accelerator: keys.word("accelerator", &accelerators).unwrap_or("auto"),
            template: keys.path("template").unwrap_or_else(|| "/etc/understudy/template.xml".into()),
            migration_uri: keys.text("migration_uri"),
            migration_tls: keys.flag("migration_tls").unwrap_or(true),
            migration_data_uri: keys.text("migration_data_uri"),
        }
    }
}

pub(super) struct Store {
    pub(super) kind: Option<StoreKind>,
    pub(super) path: Option<PathBuf>,
    pub(super) endpoints: Vec<String>,
    pub(super) root: Option<String>,
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) user: Option<String>,
    pub(super) password_file: Option<PathBuf>,
}

impl Store {
    fn read(keys: Keys<'_, '_, '_, '_>) -> Self {
        let kinds = [("etcd", StoreKind::Etcd), ("embedded", StoreKind::Embedded)];
        Self {
            kind: keys.needed("kind", "\"etcd\" or, for one host, \"embedded\"").word("kind", &kinds),
            path: keys.path("path"),
            endpoints: keys.texts("endpoints").unwrap_or_default(),
            root: keys.text("root"),
            ca: keys.path("ca"),
            cert: keys.path("cert"),
            key: keys.path("key"),
            user: keys.text("user"),
            password_file: keys.path("password_file"),
        }
    }
}

pub(super) struct Cluster {
    pub(super) profile: Profile,
    pub(super) checkpoint_interval_ms: Option<u64>,
}

impl Cluster {
    fn read(keys: Keys<'_, '_, '_, '_>) -> Self {
        let profiles = [("safe", Profile::Safe), ("fast", Profile::Fast)];
        Self {
            profile: keys.word("profile", &profiles).unwrap_or_default(),
            checkpoint_interval_ms: keys.number("checkpoint_interval_ms", 1_000..=600_000),
        }
    }
}

pub(super) struct Pool {
    pub(super) idle: u32,
    pub(super) memory_mib: u64,
    pub(super) vcpus: u32,
}

impl Pool {
    fn read(keys: Keys<'_, '_, '_, '_>) -> Self {
        Self {
            idle: keys.number("idle", 0..=64).unwrap_or(1),
            memory_mib: keys.number("memory_mib", MEMORY_MIB).unwrap_or(192),
            vcpus: keys.number("vcpus", VCPUS).unwrap_or(1),
        }
    }
}

/// `None` where a key without a default is missing or at fault.
pub(super) struct Network {
    pub(super) addresses: Option<String>,
    pub(super) prefix_length: u8,
}

impl Network {
    fn read(keys: Keys<'_, '_, '_, '_>) -> Self {
        Self {
            addresses: keys.needed("addresses", super::check::ADDRESSES).text("addresses"),
            prefix_length: keys.number("prefix_length", 8..=30).unwrap_or(24),
        }
    }
}

pub(super) struct Policies {
    pub(super) dir: PathBuf,
    pub(super) deadline_ms: u64,
    pub(super) records_mib: u64,
}

impl Policies {
    fn read(keys: Keys<'_, '_, '_, '_>) -> Self {
        Self {
            dir: keys.path("dir").unwrap_or_else(|| "/etc/understudy/policies".into()),
            deadline_ms: keys.number("deadline_ms", 5..=10_000).unwrap_or(500),
            records_mib: keys.number("records_mib", 0..=1 << 16).unwrap_or(64),
        }
    }
}

pub(super) struct Api {
    pub(super) socket: Option<PathBuf>,
    pub(super) listen: Option<String>,
}

impl Api {
    fn read(keys: Keys<'_, '_, '_, '_>) -> Self {
        Self { socket: keys.path("socket"), listen: keys.text("listen") }
    }
}

pub(super) struct Peers {
    pub(super) listen: Option<String>,
    pub(super) advertise: Option<String>,
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

impl Peers {
    fn read(keys: Keys<'_, '_, '_, '_>) -> Option<Self> {
        let read = Self {
            listen: keys.text("listen"),
            advertise: keys.text("advertise"),
            ca: keys.path("ca"),
            cert: keys.path("cert"),
            key: keys.path("key"),
        };
        keys.is_there().then_some(read)
    }
}

pub(super) struct Gateway {
    pub(super) listen: Option<String>,
    pub(super) advertise: Option<String>,
}

impl Gateway {
    fn read(keys: Keys<'_, '_, '_, '_>) -> Self {
        Self { listen: keys.text("listen"), advertise: keys.text("advertise") }
    }
}

pub(super) struct Guard {
    pub(super) socket: Option<PathBuf>,
}

pub(super) struct Log {
    pub(super) format: &'static str,
    pub(super) filter: String,
}

impl Log {
    fn read(keys: Keys<'_, '_, '_, '_>) -> Self {
        let formats = [("auto", "auto"), ("plain", "plain"), ("journald", "journald")];
        Self {
            format: keys.word("format", &formats).unwrap_or("auto"),
            filter: keys.text("filter").unwrap_or_else(|| "info".to_owned()),
        }
    }
}
