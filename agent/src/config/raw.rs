//! Owns the form of the file: one struct per section, no unknown keys, defaults named once.
//!
//! Must not do: judge values.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use understudy_core::bounds::Profile;

use super::StoreKind;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) host: Host,
    #[serde(default)]
    pub(super) libvirt: Libvirt,
    pub(super) store: Store,
    #[serde(default)]
    pub(super) cluster: Cluster,
    #[serde(default)]
    pub(super) pool: Pool,
    pub(super) network: Network,
    #[serde(default)]
    pub(super) environments: BTreeMap<String, PathBuf>,
    #[serde(default)]
    pub(super) environment_labels: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) policies: Policies,
    #[serde(default)]
    pub(super) api: Api,
    #[serde(default)]
    pub(super) gateway: Gateway,
    #[serde(default)]
    pub(super) guard: Guard,
    #[serde(default)]
    pub(super) log: Log,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Host {
    pub(super) name: String,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default = "default_reserved")]
    pub(super) reserved_memory_mib: u64,
    #[serde(default = "default_vcpus")]
    pub(super) vcpus_per_processor: u32,
    #[serde(default = "default_state_dir")]
    pub(super) state_dir: PathBuf,
    #[serde(default = "default_runtime_dir")]
    pub(super) runtime_dir: PathBuf,
}

fn default_reserved() -> u64 {
    1024
}

fn default_vcpus() -> u32 {
    4
}

fn default_state_dir() -> PathBuf {
    "/var/lib/understudy".into()
}

fn default_runtime_dir() -> PathBuf {
    "/run/understudy".into()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Libvirt {
    pub(super) uri: String,
    pub(super) accelerator: String,
    pub(super) template: PathBuf,
    pub(super) migration_uri: Option<String>,
    pub(super) migration_tls: bool,
    pub(super) migration_data_uri: Option<String>,
}

impl Default for Libvirt {
    fn default() -> Self {
        Self {
            uri: "qemu:///system".to_owned(),
            accelerator: "auto".to_owned(),
            template: "/etc/understudy/template.xml".into(),
            migration_uri: None,
            migration_tls: true,
            migration_data_uri: None,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Store {
    pub(super) kind: StoreKind,
    #[serde(default)]
    pub(super) path: Option<PathBuf>,
    #[serde(default)]
    pub(super) endpoints: Vec<String>,
    #[serde(default = "default_root")]
    pub(super) root: String,
    #[serde(default)]
    pub(super) ca: Option<PathBuf>,
    #[serde(default)]
    pub(super) cert: Option<PathBuf>,
    #[serde(default)]
    pub(super) key: Option<PathBuf>,
    #[serde(default)]
    pub(super) user: Option<String>,
    #[serde(default)]
    pub(super) password_file: Option<PathBuf>,
}

fn default_root() -> String {
    "/understudy/".to_owned()
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Cluster {
    pub(super) profile: Profile,
    pub(super) checkpoint_interval_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Pool {
    pub(super) idle: u32,
    pub(super) memory_mib: u64,
    pub(super) vcpus: u32,
}

impl Default for Pool {
    fn default() -> Self {
        Self { idle: 1, memory_mib: 192, vcpus: 1 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Network {
    pub(super) addresses: String,
    #[serde(default = "default_prefix")]
    pub(super) prefix_length: u8,
}

fn default_prefix() -> u8 {
    24
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Policies {
    pub(super) dir: PathBuf,
    pub(super) deadline_ms: u64,
    pub(super) records_mib: u64,
}

impl Default for Policies {
    fn default() -> Self {
        Self { dir: "/etc/understudy/policies".into(), deadline_ms: 500, records_mib: 64 }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Api {
    pub(super) socket: Option<PathBuf>,
    pub(super) listen: Option<String>,
    pub(super) advertise: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Gateway {
    pub(super) listen: Option<String>,
    pub(super) advertise: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Guard {
    pub(super) socket: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) format: String,
    pub(super) filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: "auto".to_owned(), filter: "info".to_owned() }
    }
}
