//! Owns the layout of the store: which record lies under which key, and the form in which it is written.
//!
//! Promises: a key and its record's type go together; a value that cannot be read names its key. Must not do:
//! talk to the store.
//!
//! ```text
//! v2/renewals/HOST               the last renewal of a host's lease   once a second (`lease_renew`)
//! v2/cluster/leader              who leads                            at a change of leader
//! v2/cluster/hosts/HOST/lease    a host's lease: opened, expired      at a start, and at a loss
//! v2/cluster/hosts/HOST/facts    what a host reports                  when an instance or a condition changes
//! v2/cluster/hosts/HOST/intent   what the operator wants of it        by hand
//! v2/cluster/terminals/NAME      a terminal                           by hand
//! v2/cluster/nodes/NODE          a node: who acts for it              at an assignment
//! v2/cluster/failovers/NODE      an operator's wish                   by hand
//! v2/cluster/policies/WHICH      the sets of policies                 at a change of them
//! ```
//!
//! Cost, with N hosts: they write N renewals a second, of some 40 bytes each.
//! Those who may lead next follow all of `v2/` ([`crate::leader::line`]: the leader, and two hosts as long as it renews),
//! so 3 N renewals a second are delivered in all. Every other agent follows [`CLUSTER`], where nothing is written at rest,
//! however many nodes are protected: each change there is delivered N times.

use serde::de::DeserializeOwned;

use crate::model::ids::{HostId, NodeId, TerminalId};

/// Everything of this product, in its second layout.
pub const ALL: &str = "v2/";
/// Everything but the renewals.
pub const CLUSTER: &str = "v2/cluster/";
/// The renewals of leases.
const RENEWALS: &str = "v2/renewals/";
/// The leadership.
pub const LEADER: &str = "v2/cluster/leader";

/// A key, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// [`LEADER`].
    Leader,
    /// What a host reports.
    Facts(HostId),
    /// A host's lease.
    Lease(HostId),
    /// The last renewal of a host's lease.
    Renewal(HostId),
    /// What the operator wants of a host.
    Intent(HostId),
    /// A terminal.
    Terminal(TerminalId),
    /// A node.
    Node(NodeId),
    /// An operator's wish for a failover of a node.
    Failover(NodeId),
    /// The set of policies that decides.
    PolicyActive,
    /// The set that is to take its place.
    PolicyCandidate,
    /// The last set that was refused.
    PolicyRefused,
}

impl Key {
    /// Takes a key apart; nothing for keys that this version does not know.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        if key == LEADER {
            return Some(Self::Leader);
        }
        if let Some(host) = key.strip_prefix(RENEWALS) {
            return host.parse().ok().map(Self::Renewal);
        }
        let (kind, name) = key.strip_prefix(CLUSTER)?.split_once('/')?;
        match kind {
            "terminals" => name.parse().ok().map(Self::Terminal),
            "nodes" => name.parse().ok().map(Self::Node),
            "policies" => match name {
                "active" => Some(Self::PolicyActive),
                "candidate" => Some(Self::PolicyCandidate),
                "refused" => Some(Self::PolicyRefused),
                _ => None,
            },
            "failovers" => name.parse().ok().map(Self::Failover),
            "hosts" => {
                let (host, record) = name.split_once('/')?;
                let host = host.parse().ok()?;
                match record {
                    "facts" => Some(Self::Facts(host)),
                    "lease" => Some(Self::Lease(host)),
                    "intent" => Some(Self::Intent(host)),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// The key as text.
impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Leader => f.write_str(LEADER),
            Self::Facts(host) => write!(f, "{CLUSTER}hosts/{host}/facts"),
            Self::Lease(host) => write!(f, "{CLUSTER}hosts/{host}/lease"),
            Self::Renewal(host) => write!(f, "{RENEWALS}{host}"),
            Self::Intent(host) => write!(f, "{CLUSTER}hosts/{host}/intent"),
            Self::Terminal(terminal) => write!(f, "{CLUSTER}terminals/{terminal}"),
            Self::Node(node) => write!(f, "{CLUSTER}nodes/{node}"),
            Self::Failover(node) => write!(f, "{CLUSTER}failovers/{node}"),
            Self::PolicyActive => write!(f, "{CLUSTER}policies/active"),
            Self::PolicyCandidate => write!(f, "{CLUSTER}policies/candidate"),
            Self::PolicyRefused => write!(f, "{CLUSTER}policies/refused"),
        }
    }
}

/// A record that is not of the form that its key says.
#[derive(Debug, thiserror::Error)]
#[error("the record '{key}' cannot be read: it was written by another version, or by hand")]
pub struct Unreadable {
    /// The key.
    pub key: String,
    /// What is wrong with it.
    #[source]
    pub source: serde_json::Error,
}

/// Reads a record.
///
/// # Errors
/// When it is not of the expected form.
pub fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, Unreadable> {
    serde_json::from_slice(value).map_err(|source| Unreadable { key: key.to_owned(), source })
}

/// Writes a record.
#[must_use]
pub fn encode<T: serde::Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have string keys and no fallible fields")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_reads_back_as_it_was_written() {
        let host: HostId = "host1".parse().unwrap();
        let node: NodeId = "alice/exec-2".parse().unwrap();
        for key in [
            Key::Leader,
            Key::Facts(host.clone()),
            Key::Lease(host.clone()),
            Key::Renewal(host.clone()),
            Key::Intent(host),
            Key::Terminal("alice".parse().unwrap()),
            Key::Node(node.clone()),
            Key::Failover(node),
            Key::PolicyActive,
            Key::PolicyCandidate,
            Key::PolicyRefused,
        ] {
            assert_eq!(Key::parse(&key.to_string()), Some(key));
        }
        for unknown in [
            "",
            "v2/",
            "v2/cluster/",
            "v2/cluster/hosts/host1",
            "v2/cluster/hosts/host1/else",
            "v2/cluster/nodes/alice",
            "v2/cluster/policies/x",
            "v2/cluster/checkpoints/alice/exec-1",
            "v2/renewals/",
            "v2/leader",
            "v1/leader",
        ] {
            assert_eq!(Key::parse(unknown), None, "{unknown}");
        }
    }
}
