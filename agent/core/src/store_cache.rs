//! Owns the store cache: what an agent, or the simulator's judge, has heard of the store, as the view that decisions are made
//! from.
//!
//! Promises: it is what the store held at one revision; a record that cannot be read is left as it was last read, if
//! it was, and reported, and never taken for a deleted one: its node is quarantined, so that nothing is planned for it, and no host destroys or
//! deletes for want of a name what it may name. Must not do: decide, talk to the store.
//!
//! Cost, with N records: a change O(log N) and the reading of its records, the view of all of it O(1). A renewal is not read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::errors::chain;
use crate::keys::{Key, Unreadable, decode};
use crate::model::ids::{Epoch, HostId, NodeId};
use crate::model::records::{FailoverRequest, HostFacts, HostIntent, LeaderRecord, LeaseRecord, NodeRecord};
use crate::model::units::Boottime;
use crate::model::view::{HostView, Versioned, View};
use crate::observe::Observer;
use crate::sets::PolicySets;

/// A record as the store holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<'a> {
    /// What it lies under.
    pub key: &'a str,
    /// Its bytes.
    pub value: &'a [u8],
    /// The revision of its last write.
    pub revision: u64,
}

/// One change that the store made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// A record was written.
    Put(Stored<'a>),
    /// The record under this key was removed.
    Deleted(&'a str),
}

/// What one host's records say.
#[derive(Debug, Clone, Default)]
struct HostRecords {
    facts: Option<Arc<HostFacts>>,
    /// When the facts were written, whether they can be read or not.
    facts_at: Option<u64>,
    lease: Option<Versioned<LeaseRecord>>,
    /// When the lease was renewed last; 0 as long as that was not seen.
    renewed: u64,
    intent: HostIntent,
}

/// The cache.
#[derive(Debug, Clone, Default)]
pub struct StoreCache {
    /// The revision that it shows.
    pub revision: u64,
    /// Who leads.
    pub leader: Option<Versioned<LeaderRecord>>,
    /// The sets of policies.
    pub policies: PolicySets,
    hosts: BTreeMap<HostId, HostRecords>,
    observer: Observer,
    view: View,
    /// Records that are there and cannot be read, and why: nothing of theirs may be taken for an orphan.
    unreadable: BTreeMap<String, String>,
    failovers: BTreeMap<NodeId, FailoverRequest>,
    /// Counts what changed beside renewals.
    changes: u64,
    /// Whether renewals are followed.
    follows: bool,
}

impl StoreCache {
    /// Takes the whole of the store, with the renewals where those are followed from here on. What happened before `now` was
    /// not seen.
    pub fn replace<'a>(
        &mut self,
        (revision, follows): (u64, bool),
        records: impl IntoIterator<Item = Stored<'a>>,
        now: Boottime,
    ) -> Vec<Unreadable> {
        let mut observer = std::mem::take(&mut self.observer);
        observer.was_blind(now);
        let changes = self.changes + 1;
        *self = Self { revision, observer, changes, follows, ..Self::default() };
        let faults = records.into_iter().filter_map(|record| self.put(record, now).err()).collect();
        self.show_unread();
        faults
    }

    /// Takes the changes of one revision, seen at `now`.
    pub fn apply<'a>(
        &mut self,
        revision: u64,
        changes: impl IntoIterator<Item = Change<'a>>,
        now: Boottime,
    ) -> Vec<Unreadable> {
        self.revision = revision;
        let mut faults = Vec::new();
        for change in changes {
            match change {
                Change::Put(record) => faults.extend(self.put(record, now).err()),
                Change::Deleted(key) => self.delete(key, now),
            }
        }
        self.show_unread();
        faults
    }

    /// A number that is another one whenever more than renewals has changed: what follows from records alone need not be
    /// worked out anew before. With N hosts N renewals a second come to each.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether renewals are followed: without them nobody's silence is known.
    #[must_use]
    pub fn follows_renewals(&self) -> bool {
        self.follows
    }

    /// What cannot be read, for people: each with what follows, and what to do.
    #[must_use]
    pub fn unreadable(&self) -> Vec<String> {
        let reported = |(key, fault): (&String, &String)| {
            let follows = match Hidden::by(key) {
                Hidden::Node(node) => format!(
                    "until then nothing is planned for {node}, no idle instance is given out, and this host destroys and \
                     deletes nothing for want of a name"
                ),
                Hidden::Host => {
                    "until then this host destroys and deletes nothing for want of a name".to_owned()
                }
                Hidden::Nothing => "until then it counts as it was last read".to_owned(),
            };
            format!(
                "{fault}: update this agent to the version of the one that wrote it, or repair the record in the store; \
                 {follows}"
            )
        };
        self.unreadable.iter().map(reported).collect()
    }

    /// Whether a record that cannot be read may name an instance or an image, or tell who may speak for one. Nothing is
    /// destroyed for want of a name then.
    #[must_use]
    pub fn has_quarantined_names(&self) -> bool {
        self.unreadable.keys().any(|key| Hidden::by(key) != Hidden::Nothing)
    }

    /// Whether what a host reported cannot be read.
    #[must_use]
    pub fn has_quarantined_facts(&self, host: &HostId) -> bool {
        self.unreadable.contains_key(&Key::Facts(host.clone()).to_string())
    }

    /// Whether a node's own record cannot be read.
    #[must_use]
    pub fn has_quarantined_nodes(&self) -> bool {
        self.unreadable.keys().any(|key| matches!(Key::parse(key), Some(Key::Node(_))))
    }

    fn show_unread(&mut self) {
        self.view.quarantined = self.quarantined();
        self.view.unread_hosts = self.unread_hosts();
    }

    /// Hosts whose lease cannot be read.
    fn unread_hosts(&self) -> BTreeSet<HostId> {
        let host = |key: &String| match Key::parse(key) {
            Some(Key::Lease(host)) => Some(host),
            _ => None,
        };
        self.unreadable.keys().filter_map(host).collect()
    }

    /// Nodes of which a record cannot be read: nothing may be planned for them.
    fn quarantined(&self) -> BTreeSet<NodeId> {
        let node = |key: &String| match Hidden::by(key) {
            Hidden::Node(node) => Some(node),
            Hidden::Host | Hidden::Nothing => None,
        };
        self.unreadable.keys().filter_map(node).collect()
    }

    /// The lease of a host.
    #[must_use]
    pub fn lease(&self, host: &HostId) -> Option<&Versioned<LeaseRecord>> {
        self.hosts.get(host)?.lease.as_ref()
    }

    /// What the operator wants of a host.
    #[must_use]
    pub fn intent(&self, host: &HostId) -> HostIntent {
        self.hosts.get(host).map(|records| records.intent).unwrap_or_default()
    }

    /// What a host reported.
    #[must_use]
    pub fn facts(&self, host: &HostId) -> Option<&HostFacts> {
        self.hosts.get(host)?.facts.as_deref()
    }

    /// The revision at which a host's report was written, whether it can be read or not.
    #[must_use]
    pub fn facts_at(&self, host: &HostId) -> Option<u64> {
        self.hosts.get(host)?.facts_at
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.view.nodes.values().map(|node| &node.value)
    }

    /// The nodes for which an operator asked for a failover, with the epoch that is to end.
    pub fn failovers(&self) -> impl Iterator<Item = (NodeId, Epoch)> {
        self.failovers.iter().map(|(node, request)| (node.clone(), request.epoch))
    }

    /// The view that decisions are made from.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Brings the view of a host to what its records say. One that never opened a lease is not in it.
    fn show_host(&mut self, host: HostId, now: Boottime) {
        let records = self.hosts.entry(host.clone()).or_default();
        let Some(lease) = records.lease.clone() else {
            self.view.hosts.remove(&host);
            return;
        };
        let (facts, renewed, intent) = (records.facts.clone(), records.renewed, records.intent);
        let mut shown = HostView { facts, lease, renewed, silent_since: None, intent };
        if self.follows {
            self.observer.saw(&host, shown.heard(), now);
            shown.silent_since = Some(self.observer.silent_since(&host, now));
        }
        self.view.hosts.insert(host, shown.into());
    }

    fn put(&mut self, entry: Stored<'_>, now: Boottime) -> Result<(), Unreadable> {
        let result = self.put_readable(entry, now);
        match &result {
            Ok(()) => self.unreadable.remove(entry.key),
            Err(fault) => {
                self.changes += 1;
                self.unreadable.insert(entry.key.to_owned(), chain(fault))
            }
        };
        result
    }

    fn put_readable(&mut self, entry: Stored<'_>, now: Boottime) -> Result<(), Unreadable> {
        let Some(key) = Key::parse(entry.key) else { return Ok(()) };
        let mut renews = false;
        match key {
            Key::Leader => self.leader = versioned(entry).ok(),
            Key::Facts(host) => {
                self.hosts.entry(host.clone()).or_default().facts_at = Some(entry.revision);
                let facts = Arc::new(read(entry)?);
                self.change_host(host, now, |records| records.facts = Some(facts));
            }
            Key::Lease(host) => {
                let lease = versioned(entry)?;
                self.change_host(host, now, |records| records.lease = Some(lease));
            }
            // That it was written is all that it says.
            Key::Renewal(host) => {
                renews = true;
                self.change_host(host, now, |records| records.renewed = entry.revision);
            }
            Key::Intent(host) => {
                let intent = read(entry)?;
                self.change_host(host, now, |records| records.intent = intent);
            }
            Key::Terminal(terminal) => {
                self.view.terminals.insert(terminal, Arc::new(read(entry)?));
            }
            Key::Node(node) => self.view.nodes.insert(node, versioned::<NodeRecord>(entry)?),
            Key::Failover(node) => {
                self.failovers.insert(node, read(entry)?);
            }
            Key::PolicyActive => self.policies.active = Some(versioned(entry)?),
            Key::PolicyCandidate => self.policies.candidate = Some(versioned(entry)?),
            Key::PolicyRefused => self.policies.refused = Some(versioned(entry)?),
        }
        self.changes += u64::from(!renews);
        Ok(())
    }

    fn delete(&mut self, key: &str, now: Boottime) {
        self.changes += 1;
        self.unreadable.remove(key);
        match Key::parse(key) {
            Some(Key::Leader) => self.leader = None,
            Some(Key::Facts(host)) => self.change_host(host, now, |records| {
                (records.facts, records.facts_at) = (None, None);
            }),
            Some(Key::Lease(host)) => self.change_host(host, now, |records| records.lease = None),
            Some(Key::Renewal(host)) => self.change_host(host, now, |records| records.renewed = 0),
            Some(Key::Intent(host)) => {
                self.change_host(host, now, |records| records.intent = HostIntent::default());
            }
            Some(Key::Terminal(terminal)) => {
                self.view.terminals.remove(&terminal);
            }
            Some(Key::Node(node)) => {
                self.view.nodes.remove(&node);
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

    fn change_host(&mut self, host: HostId, now: Boottime, change: impl FnOnce(&mut HostRecords)) {
        change(self.hosts.entry(host.clone()).or_default());
        self.show_host(host, now);
    }
}

fn read<T: DeserializeOwned>(entry: Stored<'_>) -> Result<T, Unreadable> {
    decode(entry.key, entry.value)
}

fn versioned<T: DeserializeOwned>(entry: Stored<'_>) -> Result<Versioned<T>, Unreadable> {
    Ok(Versioned { value: read(entry)?, revision: entry.revision })
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
            Some(Key::Node(node)) => Self::Node(node),
            Some(Key::Facts(_) | Key::Lease(_)) => Self::Host,
            Some(
                Key::Leader
                | Key::Renewal(_)
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
    use std::time::Duration;

    use super::*;

    const NODE: &str = "v2/cluster/nodes/alice/display";
    const NOW: Boottime = Boottime(7);

    fn unreadable(key: &str) -> Stored<'_> {
        Stored { key, value: b"{\"newer\": 1}", revision: 1 }
    }

    #[test]
    fn what_cannot_be_read_is_quarantined_until_it_is_read_or_deleted_and_is_reported_by_its_key() {
        for (key, hides, quarantined) in [
            (NODE, true, &["alice/display"][..]),
            ("v2/cluster/hosts/host2/lease", true, &[]),
            ("v2/cluster/hosts/host2/facts", true, &[]),
            ("v2/cluster/policies/active", false, &[]),
            ("v2/cluster/terminals/alice", false, &[]),
        ] {
            let mut cache = StoreCache::default();
            assert_eq!(cache.replace((1, true), [unreadable(key)], NOW).len(), 1);
            for _ in 0..2 {
                assert_eq!(cache.has_quarantined_names(), hides, "{key}");
                let nodes: Vec<String> = cache.quarantined().iter().map(ToString::to_string).collect();
                assert_eq!(nodes, quarantined, "{key}");
                let reported = cache.unreadable().join("");
                for part in [key, "update this agent", "repair the record"] {
                    assert!(reported.contains(part), "{part} is not in: {reported}");
                }
                // The store was listed again: it is there still.
                cache.replace((2, true), [unreadable(key)], NOW);
            }
            cache.apply(3, [Change::Deleted(key)], NOW);
            assert!(!cache.has_quarantined_names() && cache.unreadable().is_empty(), "{key}");
        }
    }

    #[test]
    fn a_renewal_is_no_change_and_everything_else_is() {
        let lease = |number: u64| format!(r#"{{"boot":"b","machine":"m","number":{number},"expired":null}}"#);
        let put = |cache: &mut StoreCache, key: &str, value: &str| {
            let (before, revision) = (cache.changes(), cache.revision + 1);
            cache.apply(revision, [Change::Put(Stored { key, value: value.as_bytes(), revision })], NOW);
            cache.changes() != before
        };
        let mut cache = StoreCache::default();
        let (key, renewal) = ("v2/cluster/hosts/host2/lease", "v2/renewals/host2");
        for (key, value, changed) in [
            (key, lease(1), true),
            (renewal, r#"{"number":1,"at":7}"#.to_owned(), false),
            (renewal, "of another version".to_owned(), false),
            (key, lease(2), true),
            (key, "broken".to_owned(), true),
        ] {
            assert_eq!(put(&mut cache, key, &value), changed, "{value}");
        }
        assert!(put(&mut cache, "v2/cluster/hosts/host2/intent", r#"{"drain":true}"#));
        let before = cache.changes();
        cache.apply(cache.revision + 1, [Change::Deleted(key)], NOW);
        assert_ne!(cache.changes(), before);
    }

    /// Who does not see renewals must not take a host for silent, nor for one that just now came to be.
    #[test]
    fn silence_is_known_where_renewals_are_followed_and_counts_from_the_last_one() {
        let host: HostId = "host2".parse().unwrap();
        let lease = r#"{"boot":"b","machine":"m","number":1,"expired":null}"#;
        let records = |revision: u64| {
            let stored = move |key, value: &'static str| Stored { key, value: value.as_bytes(), revision };
            [stored("v2/cluster/hosts/host2/lease", lease), stored("v2/renewals/host2", "{}")]
        };
        let silence = |cache: &StoreCache| cache.view().hosts[&host].silent_since;
        let mut cache = StoreCache::default();
        cache.replace((3, false), [records(3)[0]], NOW);
        assert!(!cache.follows_renewals() && silence(&cache).is_none());
        assert_eq!(cache.view().hosts[&host].silent_for(NOW + Duration::from_secs(60)), Duration::ZERO);
        // From here on it follows: what was before was not seen.
        let later = |seconds| NOW + Duration::from_secs(seconds);
        cache.replace((3, true), records(3), later(60));
        assert_eq!(silence(&cache), Some(later(60)));
        cache.apply(4, [Change::Put(records(4)[1])], later(62));
        assert_eq!((silence(&cache), cache.view().hosts[&host].heard()), (Some(later(62)), 4));
        cache.apply(5, [], later(65));
        assert_eq!(silence(&cache), Some(later(62)));
    }
}
