//! Owns the names of things: hosts, terminals, nodes, instances, boots.
//!
//! Promises: a value of one of these types is well-formed, because it can only be made by parsing; two kinds
//! of name never mix; a clone shares its text. Must not do: look anything up.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest name of a host or terminal, in bytes: a DNS label (RFC 1035), because these names end up in
/// host names, URLs and file names.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text does not have the form of a DNS label.
    #[error(
        "'{text}' is not a valid {kind}: use 1 to {NAME_BYTES_MAX} of a-z, 0-9 and '-', starting and ending with a letter or digit"
    )]
    Label {
        /// What the text was to name.
        kind: &'static str,
        /// The text as given.
        text: String,
    },
    /// The text is not `<terminal>/display` or `<terminal>/exec-<k>`.
    #[error("'{0}' is not a node: use <terminal>/display or <terminal>/exec-<number>")]
    Node(String),
    /// The text is not a UUID.
    #[error("'{0}' is not an instance: use its UUID")]
    Instance(String),
}

fn label(kind: &'static str, text: &str) -> Result<Arc<str>, NameError> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().copied().is_some_and(inner) && bytes.last().copied().is_some_and(inner);
    if ends && bytes.len() <= NAME_BYTES_MAX && bytes.iter().all(|&b| inner(b) || b == b'-') {
        Ok(text.into())
    } else {
        Err(NameError::Label { kind, text: text.to_owned() })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        // Most comparisons that come out equal are of clones, which share their text.
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
            }
        }

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.0.hash(state);
            }
        }

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                label($kind, text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(
    /// A physical machine with libvirt and one agent.
    HostId,
    "host name"
);
name!(
    /// A user's thin client.
    TerminalId,
    "terminal name"
);

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Composes all windows of a terminal into the one screen that the terminal sees.
    Display,
    /// Runs the user's applications.
    Execution,
}

impl Role {
    /// The word used in logs, metrics and guest commands.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Display => "display",
            Self::Execution => "execution",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A display or execution node of a terminal: `alice/display`, `alice/exec-1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId {
    terminal: TerminalId,
    /// `None` is the display node; execution nodes count from 1.
    execution: Option<u32>,
}

impl NodeId {
    /// The display node of a terminal.
    #[must_use]
    pub fn display(terminal: &TerminalId) -> Self {
        Self { terminal: terminal.clone(), execution: None }
    }

    /// The execution node `number` (from 1) of a terminal.
    #[must_use]
    pub fn execution(terminal: &TerminalId, number: u32) -> Self {
        Self { terminal: terminal.clone(), execution: Some(number) }
    }

    /// The terminal that owns this node.
    #[must_use]
    pub fn terminal(&self) -> &TerminalId {
        &self.terminal
    }

    /// What this node is for.
    #[must_use]
    pub fn role(&self) -> Role {
        if self.execution.is_some() { Role::Execution } else { Role::Display }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.execution {
            None => write!(f, "{}/display", self.terminal),
            Some(number) => write!(f, "{}/exec-{number}", self.terminal),
        }
    }
}

impl FromStr for NodeId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Node(text.to_owned());
        let (terminal, node) = text.split_once('/').ok_or_else(wrong)?;
        let terminal: TerminalId = terminal.parse()?;
        if node == "display" {
            return Ok(Self::display(&terminal));
        }
        let number = node.strip_prefix("exec-").and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
        if number == 0 { Err(wrong()) } else { Ok(Self::execution(&terminal, number)) }
    }
}

impl TryFrom<String> for NodeId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<NodeId> for String {
    fn from(node: NodeId) -> String {
        node.to_string()
    }
}

/// One VM on a host: its libvirt domain UUID, which it keeps through migration and restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(Uuid);

impl InstanceId {
    /// An instance with a UUID made elsewhere.
    #[must_use]
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The domain's UUID.
    #[must_use]
    pub fn uuid(self) -> Uuid {
        self.0
    }

    /// The instance that the plan creates for `node` as the `place`-th member decided in `epoch`. The same
    /// decision gives the same UUID, so that repeating it creates nothing twice.
    #[must_use]
    pub fn derived(node: &NodeId, epoch: Epoch, host: &HostId, serial: u64) -> Self {
        let name = format!("{node} {epoch} {host} {serial}");
        Self(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for InstanceId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Uuid::parse_str(text).map(Self).map_err(|_| NameError::Instance(text.to_owned()))
    }
}

/// Counter of a node, raised at each change of its primary; every action carries it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the changes of leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One boot of a host's kernel: `/proc/sys/kernel/random/boot_id`. Another boot means that every process of
/// the earlier one is gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

/// One installation on one machine: another one with the same host's name is another host. Empty where it is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineId(pub String);

impl MachineId {
    /// Whether both are known, and are not the same.
    #[must_use]
    pub fn differs_from(&self, other: &Self) -> bool {
        !self.0.is_empty() && !other.0.is_empty() && self != other
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_label() {
        for good in ["a", "host1", "call-centre-7", &"x".repeat(63)] {
            assert!(good.parse::<HostId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "ü", &"x".repeat(64)] {
            assert!(bad.parse::<HostId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_fills_a_column() {
        let host: HostId = "host1".parse().unwrap();
        assert_eq!(format!("{host:8}|{host:>8}|"), "host1   |   host1|");
    }

    #[test]
    fn a_node_reads_back_as_it_was_written() {
        for text in ["alice/display", "alice/exec-1", "b-2/exec-17"] {
            let node: NodeId = text.parse().unwrap();
            assert_eq!(node.to_string(), text);
        }
        for bad in
            ["alice", "alice/", "alice/exec-", "alice/exec-0", "alice/exec-x", "/display", "Alice/display"]
        {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_same_decision_names_the_same_instance() {
        let node: NodeId = "alice/exec-1".parse().unwrap();
        let host: HostId = "host1".parse().unwrap();
        assert_eq!(
            InstanceId::derived(&node, Epoch(3), &host, 0),
            InstanceId::derived(&node, Epoch(3), &host, 0)
        );
        assert_ne!(
            InstanceId::derived(&node, Epoch(3), &host, 0),
            InstanceId::derived(&node, Epoch(4), &host, 0)
        );
    }
}
