//! Owns the simulated store: records with revisions, transactions, and the history that watches follow.
//!
//! Promises: a transaction is applied wholly or not at all, at one revision. Must not do: lose anything; requests,
//! answers and watches get lost and late on the way to and from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use understudy_core::ids::{Epoch, HostId, NodeId};
use understudy_core::observe::Observer;
use understudy_core::records::{
    CheckpointRecord, HostFacts, HostIntent, LeaderRecord, NodeRecord, SessionRecord,
};
use understudy_core::sets::{PolicySetRecord, PolicySets, RefusedSet};
use understudy_core::units::Boottime;
use understudy_core::view::{Checkpoints, HostView, Nodes, Versioned, View};

/// What a record lies under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Leader,
    Session(HostId),
    Facts(HostId),
    Intent(HostId),
    Node(NodeId),
    Checkpoint(NodeId),
    Failover(NodeId),
    ActiveSet,
    CandidateSet,
    RefusedSet,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Leader(LeaderRecord),
    Session(SessionRecord),
    Facts(Box<HostFacts>),
    Intent(HostIntent),
    Node(Box<NodeRecord>),
    Checkpoint(CheckpointRecord),
    /// The epoch that is to end.
    Failover(Epoch),
    Set(Box<PolicySetRecord>),
    Refused(RefusedSet),
}

/// Writes, if every key in `when` is still at its revision; 0 stands for absent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Txn {
    pub(crate) when: Vec<(Key, u64)>,
    pub(crate) writes: Vec<(Key, Option<Value>)>,
}

/// What one transaction changed.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) at: u64,
    pub(crate) writes: Vec<(Key, Option<Value>)>,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) records: BTreeMap<Key, Versioned<Value>>,
    pub(crate) revision: u64,
    pub(crate) history: Vec<Change>,
}

impl Store {
    pub(crate) fn revision_of(&self, key: &Key) -> u64 {
        self.records.get(key).map_or(0, |known| known.revision)
    }

    /// The revision at which it was applied, or the key that had changed.
    pub(crate) fn commit(&mut self, txn: Txn, at: u64) -> Result<u64, Key> {
        if let Some((key, _)) = txn.when.iter().find(|(key, revision)| self.revision_of(key) != *revision) {
            return Err(key.clone());
        }
        self.revision += 1;
        for (key, value) in &txn.writes {
            match value {
                Some(value) => {
                    let known = Versioned { value: value.clone(), revision: self.revision };
                    self.records.insert(key.clone(), known);
                }
                None => {
                    self.records.remove(key);
                }
            }
        }
        self.history.push(Change { revision: self.revision, at, writes: txn.writes });
        Ok(self.revision)
    }

    /// The generation of the set that was active at a revision; 0 before the first.
    pub(crate) fn active_set_at(&self, revision: u64) -> u64 {
        let until = self.history.iter().take_while(|change| change.revision <= revision);
        let writes = until.flat_map(|change| &change.writes);
        let sets = writes.filter_map(|(key, value)| match (key, value) {
            (Key::ActiveSet, Some(Value::Set(set))) => Some(set.generation),
            _ => None,
        });
        sets.last().unwrap_or(0)
    }

    /// The whole of it, as a listing gives it.
    pub(crate) fn list(&self) -> Mirror {
        self.list_for(BTreeSet::new())
    }

    /// The same for an agent that cannot read the records of the nodes in `foreign`.
    pub(crate) fn list_for(&self, foreign: BTreeSet<NodeId>) -> Mirror {
        let (revision, next) = (self.revision, self.history.len());
        let mut mirror = Mirror { revision, next, foreign, ..Mirror::default() };
        for (key, known) in &self.records {
            mirror.put(key, Some(&known.value), known.revision);
        }
        mirror
    }
}

#[derive(Debug, Clone, Default)]
struct HostRecords {
    facts: Option<(Arc<HostFacts>, u64)>,
    session: Option<Versioned<SessionRecord>>,
    intent: HostIntent,
}

/// What an agent has heard of the store: all of it up to one revision.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mirror {
    pub(crate) revision: u64,
    /// The place in the history from which on nothing was heard.
    pub(crate) next: usize,
    pub(crate) leader: Option<Versioned<LeaderRecord>>,
    pub(crate) sets: PolicySets,
    hosts: BTreeMap<HostId, HostRecords>,
    pub(crate) nodes: Nodes,
    pub(crate) checkpoints: Checkpoints,
    /// The nodes for which operators want a failover, with the epoch that is to end.
    pub(crate) failovers: BTreeMap<NodeId, Epoch>,
    /// Nodes whose records it cannot read, and those of them that have one.
    foreign: BTreeSet<NodeId>,
    pub(crate) unread: BTreeSet<NodeId>,
}

impl Mirror {
    pub(crate) fn apply(&mut self, change: &Change) {
        for (key, value) in &change.writes {
            self.put(key, value.as_ref(), change.revision);
        }
        self.revision = change.revision;
        self.next += 1;
    }

    fn put(&mut self, key: &Key, value: Option<&Value>, revision: u64) {
        match (key, value) {
            (Key::Node(node), Some(_)) if self.foreign.contains(node) => {
                self.unread.insert(node.clone());
            }
            (Key::Node(node), None) if self.foreign.contains(node) => {
                self.unread.remove(node);
            }
            (Key::Failover(node), Some(Value::Failover(epoch))) => {
                self.failovers.insert(node.clone(), *epoch);
            }
            (Key::Leader, Some(Value::Leader(leader))) => {
                self.leader = Some(Versioned { value: leader.clone(), revision });
            }
            (Key::Session(host), Some(Value::Session(session))) => {
                let session = Versioned { value: session.clone(), revision };
                self.hosts.entry(host.clone()).or_default().session = Some(session);
            }
            (Key::Facts(host), Some(Value::Facts(facts))) => {
                self.hosts.entry(host.clone()).or_default().facts =
                    Some((Arc::new(facts.as_ref().clone()), revision));
            }
            (Key::Intent(host), Some(Value::Intent(intent))) => {
                self.hosts.entry(host.clone()).or_default().intent = *intent;
            }
            (Key::Node(node), Some(Value::Node(record))) => {
                self.nodes.insert(node.clone(), Versioned { value: record.as_ref().clone(), revision });
            }
            (Key::Checkpoint(node), Some(Value::Checkpoint(record))) => {
                let record = Versioned { value: record.clone(), revision };
                self.checkpoints.insert(node.clone(), record.into());
            }
            (Key::Node(node), None) => {
                self.nodes.remove(node);
            }
            (Key::Checkpoint(node), None) => {
                self.checkpoints.remove(node);
            }
            (Key::ActiveSet | Key::CandidateSet | Key::RefusedSet, value) => {
                crate::agent::sets::put(&mut self.sets, key, value, revision);
            }
            (Key::Leader, _) => self.leader = None,
            (Key::Session(_) | Key::Facts(_) | Key::Intent(_), _)
            | (Key::Failover(_), _)
            | (Key::Node(_) | Key::Checkpoint(_), Some(_)) => {}
        }
    }

    pub(crate) fn facts(&self, host: &HostId) -> Option<&HostFacts> {
        self.hosts.get(host)?.facts.as_ref().map(|(facts, _)| facts.as_ref())
    }

    pub(crate) fn facts_revision(&self, host: &HostId) -> u64 {
        self.hosts.get(host).and_then(|records| records.facts.as_ref()).map_or(0, |(_, revision)| *revision)
    }
    pub(crate) fn observe(&self, observer: &mut Observer, now: Boottime) {
        for (host, records) in &self.hosts {
            if let Some(session) = &records.session {
                observer.saw(host, session.revision, now);
            }
        }
    }

    pub(crate) fn view(&self, observer: &Observer, now: Boottime) -> View {
        let hosts = self.hosts.iter().filter_map(|(host, records)| {
            let seen = HostView {
                facts: records.facts.as_ref().map(|(facts, _)| Arc::clone(facts)),
                session: records.session.clone()?,
                silent_since: observer.silent_since(host, now),
                intent: records.intent,
            };
            Some((host.clone(), Arc::new(seen)))
        });
        View {
            hosts: hosts.collect(),
            nodes: self.nodes.clone(),
            checkpoints: self.checkpoints.clone(),
            withheld: self.unread.clone(),
            ..View::default()
        }
    }
}
