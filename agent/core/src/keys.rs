//! Owns the layout of the store: which record lies under which key, and the form in which it is written.
//!
//! Promises: a key and its record's type go together; a value that cannot be read names its key. Must not do:
//! talk to the store.

use serde::de::DeserializeOwned;

use crate::ids::{HostId, NodeId, TerminalId};

/// Everything of this product, in its first layout.
pub const ALL: &str = "v1/";
/// The leadership.
pub const LEADER: &str = "v1/leader";

/// A key, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// [`LEADER`].
    Leader,
    /// What a host reports.
    Facts(HostId),
    /// A host's session.
    Session(HostId),
    /// What the operator wants of a host.
    Intent(HostId),
    /// A terminal.
    Terminal(TerminalId),
    /// A node.
    Node(NodeId),
    /// The newest complete checkpoint of a node.
    Checkpoint(NodeId),
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
        let (kind, name) = key.strip_prefix(ALL)?.split_once('/')?;
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
            "checkpoints" => name.parse().ok().map(Self::Checkpoint),
            "hosts" => {
                let (host, record) = name.split_once('/')?;
                let host = host.parse().ok()?;
                match record {
                    "facts" => Some(Self::Facts(host)),
                    "session" => Some(Self::Session(host)),
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
            Self::Facts(host) => write!(f, "{ALL}hosts/{host}/facts"),
            Self::Session(host) => write!(f, "{ALL}hosts/{host}/session"),
            Self::Intent(host) => write!(f, "{ALL}hosts/{host}/intent"),
            Self::Terminal(terminal) => write!(f, "{ALL}terminals/{terminal}"),
            Self::Node(node) => write!(f, "{ALL}nodes/{node}"),
            Self::Checkpoint(node) => write!(f, "{ALL}checkpoints/{node}"),
            Self::Failover(node) => write!(f, "{ALL}failovers/{node}"),
            Self::PolicyActive => write!(f, "{ALL}policies/active"),
            Self::PolicyCandidate => write!(f, "{ALL}policies/candidate"),
            Self::PolicyRefused => write!(f, "{ALL}policies/refused"),
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
            Key::Session(host.clone()),
            Key::Intent(host),
            Key::Terminal("alice".parse().unwrap()),
            Key::Node(node.clone()),
            Key::Checkpoint(node.clone()),
            Key::Failover(node),
            Key::PolicyActive,
            Key::PolicyCandidate,
            Key::PolicyRefused,
        ] {
            assert_eq!(Key::parse(&key.to_string()), Some(key));
        }
        for unknown in [
            "",
            "v1/",
            "v1/hosts/host1",
            "v1/hosts/host1/else",
            "v1/nodes/alice",
            "v1/policies/x",
            "v2/leader",
        ] {
            assert_eq!(Key::parse(unknown), None, "{unknown}");
        }
    }
}
