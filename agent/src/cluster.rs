//! Owns this agent's mirror of the store.
//!
//! Promises: the mirror is what the store held at one revision; a record that cannot be read is left as it was last read, if
//! it was, and complained about, and never taken for a deleted one: its node is withheld from plans, and no host ends or
//! deletes for want of a name what it may name. Must not do: decide.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use understudy_core::ids::{Epoch, HostId, NodeId, TerminalId};
use understudy_core::observe::Observer;
use understudy_core::records::{
    CheckpointRecord, HostFacts, HostIntent, NodeRecord, SessionRecord, TerminalRecord,
};
use understudy_core::sets::PolicySets;
use understudy_core::units::Boottime;
use understudy_core::view::{HostView, Versioned, View};
use understudy_store::election::Leadership;
use understudy_store::{Batch, Change, Entry, Listing, Revision};

use crate::exit::chain;
use crate::keys::{Key, Unreadable, decode};

/// What one host's records say.
#[derive(Debug, Clone, Default)]
struct HostRecords {
    facts: Option<HostFacts>,
    session: Option<Versioned<SessionRecord>>,
    intent: HostIntent,
}

/// The mirror.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// The revision that it mirrors.
    pub revision: Revision,
    /// Who leads.
    pub leader: Option<Leadership>,
    /// The sets of policies.
    pub policies: PolicySets,
    hosts: BTreeMap<HostId, HostRecords>,
    terminals: BTreeMap<TerminalId, TerminalRecord>,
    nodes: BTreeMap<NodeId, Versioned<NodeRecord>>,
    checkpoints: BTreeMap<NodeId, Versioned<CheckpointRecord>>,
    /// Records that are there and cannot be read, and why: nothing of theirs may be taken for an orphan.
    unreadable: BTreeMap<String, String>,
    failovers: BTreeMap<NodeId, FailoverRequest>,
}

/// An operator's wish that a node's primary be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverRequest {
    /// The epoch that is to end. Once it has, the request means nothing.
    pub epoch: Epoch,
}

impl Cluster {
    /// Takes the whole of the store.
    pub fn replace(&mut self, listing: &Listing) -> Vec<Unreadable> {
        *self = Self { revision: listing.revision, ..Self::default() };
        listing.entries.iter().filter_map(|entry| self.put(entry).err()).collect()
    }

    /// Takes the changes of one revision.
    pub fn apply(&mut self, batch: &Batch) -> Vec<Unreadable> {
        self.revision = batch.revision;
        let mut faults = Vec::new();
        for change in &batch.changes {
            match change {
                Change::Put(entry) => faults.extend(self.put(entry).err()),
                Change::Deleted { key, .. } => self.delete(key),
            }
        }
        faults
    }

    /// What cannot be read, for people: each with what follows, and what to do.
    #[must_use]
    pub fn unreadable(&self) -> Vec<String> {
        let told = |(key, fault): (&String, &String)| {
            let follows = match Hidden::by(key) {
                Hidden::Node(node) => format!(
                    "until then nothing is planned for {node}, no idle instance is given out, and this host ends and \
                     deletes nothing for want of a name"
                ),
                Hidden::Host => "until then this host ends and deletes nothing for want of a name".to_owned(),
                Hidden::Nothing => "until then it counts as it was last read".to_owned(),
            };
            format!(
                "{fault}: update this agent to the version of the one that wrote it, or repair the record in the store; \
                 {follows}"
            )
        };
        self.unreadable.iter().map(told).collect()
    }

    /// Whether a record that cannot be read may name an instance or an image, or tell who may speak for one. Nothing is
    /// destroyed for want of a name then.
    #[must_use]
    pub fn hides_names(&self) -> bool {
        self.unreadable.keys().any(|key| Hidden::by(key) != Hidden::Nothing)
    }

    /// Whether a node's own record cannot be read.
    #[must_use]
    pub fn hides_nodes(&self) -> bool {
        self.unreadable.keys().any(|key| matches!(Key::parse(key), Some(Key::Node(_))))
    }

    /// Nodes of which a record cannot be read: nothing may be planned for them.
    fn withheld(&self) -> BTreeSet<NodeId> {
        let node = |key: &String| match Hidden::by(key) {
            Hidden::Node(node) => Some(node),
            Hidden::Host | Hidden::Nothing => None,
        };
        self.unreadable.keys().filter_map(node).collect()
    }

    /// The session of a host.
    #[must_use]
    pub fn session(&self, host: &HostId) -> Option<&Versioned<SessionRecord>> {
        self.hosts.get(host)?.session.as_ref()
    }

    /// What a host reported.
    #[must_use]
    pub fn facts(&self, host: &HostId) -> Option<&HostFacts> {
        self.hosts.get(host)?.facts.as_ref()
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values().map(|node| &node.value)
    }

    /// The newest complete checkpoint of each node.
    pub fn checkpoints(&self) -> impl Iterator<Item = (&NodeId, &CheckpointRecord)> {
        self.checkpoints.iter().map(|(node, known)| (node, &known.value))
    }

    /// The nodes for which an operator asked for a failover, with the epoch that is to end.
    pub fn failovers(&self) -> impl Iterator<Item = (&NodeRecord, Epoch)> {
        self.failovers
            .iter()
            .filter_map(|(node, request)| Some((&self.nodes.get(node)?.value, request.epoch)))
    }

    /// All sessions, for measuring their silence.
    pub fn sessions(&self) -> impl Iterator<Item = (&HostId, u64)> {
        self.hosts.iter().filter_map(|(host, records)| Some((host, records.session.as_ref()?.revision)))
    }

    /// The view that decisions are made from.
    #[must_use]
    pub fn view(&self, observer: &Observer, now: Boottime) -> View {
        let hosts = self
            .hosts
            .iter()
            .filter_map(|(host, records)| {
                let view = HostView {
                    facts: records.facts.clone(),
                    session: records.session.clone()?,
                    silent_for: observer.silent_for(host, now),
                    intent: records.intent,
                };
                Some((host.clone(), view))
            })
            .collect();
        View {
            hosts,
            terminals: self.terminals.clone(),
            nodes: self.nodes.clone(),
            checkpoints: self.checkpoints.clone(),
            withheld: self.withheld(),
            ..View::default()
        }
    }

    fn put(&mut self, entry: &Entry) -> Result<(), Unreadable> {
        let result = self.put_readable(entry);
        match &result {
            Ok(()) => self.unreadable.remove(&entry.key),
            Err(fault) => self.unreadable.insert(entry.key.clone(), chain(fault)),
        };
        result
    }

    fn put_readable(&mut self, entry: &Entry) -> Result<(), Unreadable> {
        let Some(key) = Key::parse(&entry.key) else { return Ok(()) };
        match key {
            Key::Leader => self.leader = Leadership::of(entry).ok(),
            Key::Facts(host) => self.hosts.entry(host).or_default().facts = Some(read(entry)?),
            Key::Session(host) => self.hosts.entry(host).or_default().session = Some(versioned(entry)?),
            Key::Intent(host) => self.hosts.entry(host).or_default().intent = read(entry)?,
            Key::Terminal(terminal) => {
                self.terminals.insert(terminal, read(entry)?);
            }
            Key::Node(node) => {
                self.nodes.insert(node, versioned(entry)?);
            }
            Key::Checkpoint(node) => {
                self.checkpoints.insert(node, versioned(entry)?);
            }
            Key::Failover(node) => {
                self.failovers.insert(node, read(entry)?);
            }
            Key::PolicyActive => self.policies.active = Some(versioned(entry)?),
            Key::PolicyCandidate => self.policies.candidate = Some(versioned(entry)?),
            Key::PolicyRefused => self.policies.refused = Some(versioned(entry)?),
        }
        Ok(())
    }

    fn delete(&mut self, key: &str) {
        self.unreadable.remove(key);
        match Key::parse(key) {
            Some(Key::Leader) => self.leader = None,
            Some(Key::Facts(host)) => self.hosts.entry(host).or_default().facts = None,
            Some(Key::Session(host)) => self.hosts.entry(host).or_default().session = None,
            Some(Key::Intent(host)) => self.hosts.entry(host).or_default().intent = HostIntent::default(),
            Some(Key::Terminal(terminal)) => {
                self.terminals.remove(&terminal);
            }
            Some(Key::Node(node)) => {
                self.nodes.remove(&node);
            }
            Some(Key::Checkpoint(node)) => {
                self.checkpoints.remove(&node);
            }
            Some(Key::Failover(node)) => {
                self.failovers.remove(&node);
            }
            Some(Key::PolicyActive) => self.policies.active = None,
            Some(Key::PolicyCandidate) => self.policies.candidate = None,
            Some(Key::PolicyRefused) => self.policies.refused = None,
            None => {}
        }
    }
}

fn read<T: DeserializeOwned>(entry: &Entry) -> Result<T, Unreadable> {
    decode(&entry.key, &entry.value)
}

fn versioned<T: DeserializeOwned>(entry: &Entry) -> Result<Versioned<T>, Unreadable> {
    Ok(Versioned { value: read(entry)?, revision: entry.modified.0 })
}

/// What a record that cannot be read may name.
#[derive(PartialEq, Eq)]
enum Hidden {
    /// Instances and images of this node.
    Node(NodeId),
    /// Who is on a host, or may speak for it.
    Host,
    Nothing,
}

impl Hidden {
    fn by(key: &str) -> Self {
        match Key::parse(key) {
            Some(Key::Node(node) | Key::Checkpoint(node)) => Self::Node(node),
            Some(Key::Facts(_) | Key::Session(_)) => Self::Host,
            Some(
                Key::Leader
                | Key::Intent(_)
                | Key::Terminal(_)
                | Key::Failover(_)
                | Key::PolicyActive
                | Key::PolicyCandidate
                | Key::PolicyRefused,
            )
            | None => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "v1/nodes/alice/display";

    fn listing(revision: u64, records: &[(&str, &str)]) -> Listing {
        let entry = |&(key, value): &(&str, &str)| Entry {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            modified: Revision(revision),
        };
        Listing { revision: Revision(revision), entries: records.iter().map(entry).collect() }
    }

    #[test]
    fn what_cannot_be_read_hides_names_until_it_is_read_or_deleted_and_is_told_by_its_key() {
        for (key, hides, withheld) in [
            (NODE, true, &["alice/display"][..]),
            ("v1/checkpoints/alice/exec-1", true, &["alice/exec-1"]),
            ("v1/hosts/host2/session", true, &[]),
            ("v1/hosts/host2/facts", true, &[]),
            ("v1/policies/active", false, &[]),
            ("v1/terminals/alice", false, &[]),
        ] {
            let mut cluster = Cluster::default();
            assert_eq!(cluster.replace(&listing(1, &[(key, "{\"newer\": 1}")])).len(), 1);
            for _ in 0..2 {
                assert_eq!(cluster.hides_names(), hides, "{key}");
                let nodes: Vec<String> = cluster.withheld().iter().map(ToString::to_string).collect();
                assert_eq!(nodes, withheld, "{key}");
                let told = cluster.unreadable().join("");
                for part in [key, "update this agent", "repair the record"] {
                    assert!(told.contains(part), "{part} is not in: {told}");
                }
                // The store was listed again: it is there still.
                cluster.replace(&listing(2, &[(key, "{\"newer\": 1}")]));
            }
            let revision = Revision(3);
            let deleted = Change::Deleted { key: key.to_owned(), revision };
            cluster.apply(&Batch { revision, changes: vec![deleted] });
            assert!(!cluster.hides_names() && cluster.unreadable().is_empty(), "{key}");
        }
    }
}
