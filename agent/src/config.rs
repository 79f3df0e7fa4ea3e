//! Owns the configuration: the file's raw form, and the checked form that everything else takes.
//!
//! Promises: all faults of a file are reported at once, each with the file and the key; a `Config` that exists is
//! valid. Must not do: open anything but the configuration file itself (`look` does).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_core::bounds::{Bounds, Profile};
use understudy_core::host::PoolSettings;
use understudy_core::model::ids::HostId;
use understudy_core::model::records::Labels;
use understudy_core::model::units::MiB;

mod check;
mod look;
mod raw;
#[cfg(test)]
mod tests;

pub use look::{peer_file_faults, role_disk_faults, store_file_faults, template_faults};

/// Memory of an instance in MiB: the smallest guest boots in the least, and more than the most is a slip of the pen.
pub(crate) const MEMORY_MIB: RangeInclusive<u64> = 96..=1 << 20;
/// Processors of an instance.
pub(crate) const VCPUS: RangeInclusive<u32> = 1..=256;

/// The configuration could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no TOML, or has keys or values that cannot be.
    #[error("{}", faults.join("\n"))]
    Faults {
        /// One line for each, with file and key.
        faults: Vec<String>,
    },
}

/// Where the cluster's records are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// etcd, for more than one host.
    Etcd {
        /// `https://host:2379`, one for each member.
        endpoints: Vec<String>,
        /// Prefix of all keys.
        root: String,
        /// Certificate authority of the members.
        authority: Option<PathBuf>,
        /// This agent's certificate and key.
        identity: Option<(PathBuf, PathBuf)>,
        /// Name and password, where etcd asks for them.
        user: Option<(String, PathBuf)>,
    },
    /// A file of this host, for one host.
    Embedded {
        /// The file.
        path: PathBuf,
    },
}

/// How agents reach each other: over TLS, each with a certificate that names its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeersConfig {
    /// Where this agent listens for them.
    pub listen: SocketAddr,
    /// How they reach it: `host:port`.
    pub advertise: String,
    /// What certificates are verified by.
    pub files: PeerFiles,
}

/// What peers are known by: files in PEM form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFiles {
    /// The authority that signs the certificates of all hosts.
    pub authority: PathBuf,
    /// This host's certificate, with its chain if it has one.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The addresses that this host gives to guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// The first.
    pub first: Ipv4Addr,
    /// The last.
    pub last: Ipv4Addr,
    /// Length of the network prefix.
    pub prefix: u8,
}

/// What the agent runs by. Every field is explained in `config/agent.toml`.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "config/agent.toml documents every key, and a test compares the two")]
pub struct Config {
    pub file: PathBuf,
    pub host: HostId,
    pub labels: Labels,
    pub reserved_memory: MiB,
    pub ready_images: MiB,
    pub vcpus_per_processor: u32,
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
    pub libvirt_uri: String,
    pub migration_uri: String,
    pub migration_tls: bool,
    pub migration_data_uri: Option<String>,
    pub accelerator: String,
    pub template: PathBuf,
    pub environments: BTreeMap<String, PathBuf>,
    pub environment_labels: BTreeMap<String, Labels>,
    pub store: StoreConfig,
    pub profile: Profile,
    pub bounds: Bounds,
    pub pool: PoolSettings,
    pub addresses: AddressRange,
    pub policies_dir: PathBuf,
    pub policy_deadline: Duration,
    pub policy_records: MiB,
    pub api_socket: PathBuf,
    pub api_listen: Option<SocketAddr>,
    /// Nothing on one host, and where all agents are on one machine and talk over loopback.
    pub peers: Option<PeersConfig>,
    pub gateway_listen: Option<SocketAddr>,
    pub gateway_advertise: String,
    pub guard_socket: PathBuf,
    pub log_journald: bool,
    pub log_filter: String,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`ConfigError`]; all faults at once.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a file; `path` is only named in errors.
    ///
    /// # Errors
    /// See [`ConfigError`]; all faults at once.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        check::checked(path, text)
    }
}

impl Config {
    /// Where peers reach this agent: `host:port`; empty where they do not.
    #[must_use]
    pub fn peer_address(&self) -> String {
        let plain = || self.plain_peers().map(|address| address.to_string());
        self.peers.as_ref().map(|peers| peers.advertise.clone()).or_else(plain).unwrap_or_default()
    }

    /// Where peers of this machine are served without certificates.
    #[must_use]
    pub fn plain_peers(&self) -> Option<SocketAddr> {
        self.api_listen.filter(|address| self.peers.is_none() && is_loopback(*address))
    }

    /// Where the guard of [`Self::guard_socket`] keeps its table: beside the socket.
    #[must_use]
    pub fn guard_table(&self) -> PathBuf {
        self.guard_socket.with_extension("table")
    }
}

/// Whether what goes there stays on this machine.
pub(crate) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// One address after the other, first to last.
impl AddressRange {
    /// All addresses of the range.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        (u32::from(self.first)..=u32::from(self.last)).map(Ipv4Addr::from)
    }
}

#[derive(Debug, Clone, Copy)]
enum StoreKind {
    Etcd,
    Embedded,
}
