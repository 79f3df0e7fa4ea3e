//! Owns which nodes a change can concern.
//!
//! Promises: whatever the decision about a node is made from, its change has the node looked at again; a renewal
//! concerns no node. Must not do: decide about one.
//!
//! | what changes | who is looked at |
//! |---|---|
//! | a renewal | nobody |
//! | whether a host is open, has reported, is draining, can do its part | nodes on it, nodes that wait |
//! | whether a host's lease can be read | nodes that wait |
//! | one instance | the nodes that it belongs to; where its phase or windows changed, their terminals |
//! | a host takes no copies of a node's checkpoints, or does again, or has the first one, or comes to be behind | that node |
//! | a host says which of a node's checkpoints it has, or is silent for too long | that node |
//! | a host has more room than before | nodes that wait |
//! | a node | its terminal; where a migration from a host begins or ends, the nodes on that host |
//! | how many hosts there are, where a policy counts backups | all |

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Leader;
use super::sums::{Side, pairs};
use crate::model::ids::{HostId, InstanceId, NodeId};
use crate::model::records::{HostFacts, InstanceFact, Protection};
use crate::model::view::{HostView, SharedNode, View, diff};

/// Whether a host may run anything, and whether it can do its part: a restore may use one that is draining.
fn standing(seen: &HostView) -> (u64, bool, bool, bool, bool) {
    let lease = &seen.lease.value;
    let (open, able) = (lease.expired.is_none(), seen.is_able());
    (lease.number, open, seen.current_facts().is_some(), seen.intent.drain, able)
}

impl Leader {
    /// Takes what the store holds now.
    pub(super) fn see(&mut self, new: View) {
        let old = std::mem::replace(&mut self.before, new.clone());
        self.view.hosts.clone_from(&new.hosts);
        for (host, before, after) in diff(&old.hosts, &new.hosts) {
            self.host_changed(host, before.map(Arc::as_ref), after);
        }
        for (node, before, after) in old.nodes.diff(&new.nodes) {
            self.node_changed(node, before, after);
        }
        if old.quarantined != new.quarantined {
            self.quarantine_changed(&old.quarantined, &new.quarantined);
        }
        self.view.quarantined.clone_from(&new.quarantined);
        if old.unread_hosts != new.unread_hosts {
            self.look_at_waiting();
        }
        self.view.unread_hosts.clone_from(&new.unread_hosts);
        if self.refresh() {
            self.look_at_waiting();
        }
        // With one host alone the built-in rule wants no backups.
        let alone = |view: &View| view.hosts.len() <= 1;
        if alone(&old) != alone(&new) {
            self.look_at_all();
        }
    }

    fn forget_lease(&mut self, old: &HostView, host: &HostId) {
        if let Some(since) = old.silent_since {
            self.leases.remove(&(since, host.clone()));
        }
    }

    fn host_changed(&mut self, host: &HostId, before: Option<&HostView>, after: Option<&Arc<HostView>>) {
        if let Some(old) = before {
            self.forget_lease(old, host);
        }
        match after {
            Some(new) => {
                if let Some(since) = new.silent_since.filter(|_| new.is_open()) {
                    self.leases.insert((since, host.clone()));
                }
                let stale = |(heard, _): &(u64, _)| *heard != new.heard();
                if self.expiring.get(host).is_some_and(stale) {
                    self.expiring.remove(host);
                    self.rooms.close(host, false);
                }
            }
            None => {
                self.expiring.remove(host);
                self.rooms.close(host, false);
            }
        }
        let (seen, after) = (after, after.map(Arc::as_ref));
        let facts = |seen: Option<&HostView>| seen.and_then(|seen| seen.facts.clone());
        let (old_facts, new_facts) = (facts(before), facts(after));
        let same_facts = match (&old_facts, &new_facts) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let stands = before.map(standing) == after.map(standing);
        if stands && same_facts {
            return;
        }
        self.rooms.see(host, seen);
        if after.is_some_and(|seen| seen.intent.drain) {
            self.draining.insert(host.clone());
        } else {
            self.draining.remove(host);
        }
        if !stands {
            let here: BTreeSet<NodeId> = self.nodes_on(host).collect();
            for node in here {
                self.look_at_changed(&node);
            }
            self.look_at_waiting();
        }
        if !same_facts {
            self.instances_changed(old_facts.as_deref(), new_facts.as_deref());
            self.copies_changed(host, old_facts.as_deref(), new_facts.as_deref());
        }
    }

    fn copies_changed(&mut self, host: &HostId, old: Option<&HostFacts>, new: Option<&HostFacts>) {
        let reported = |facts: &HostFacts| {
            let nodes = facts.copy_faults.keys().chain(facts.protection.keys());
            nodes.cloned().collect::<BTreeSet<NodeId>>()
        };
        let nodes: BTreeSet<NodeId> = [old, new].into_iter().flatten().flat_map(reported).collect();
        for node in nodes {
            let faults = |facts: Option<&HostFacts>| facts?.copy_faults.get(&node).cloned();
            let [was, is] = [old, new].map(|facts| facts.and_then(|facts| facts.protection.get(&node)));
            if was != is {
                self.protection_changed(host, &node, (was, is));
            } else if faults(old) == faults(new) {
                continue;
            }
            self.look_at_changed(&node);
        }
    }

    /// What a host says of the protection of a node counts where the node's primary is on it.
    fn protection_changed(
        &mut self,
        host: &HostId,
        node: &NodeId,
        (was, is): (Option<&Protection>, Option<&Protection>),
    ) {
        let Some(known) = self.view.nodes.get(node) else { return };
        let record = &known.value;
        if record.primary.as_ref().is_some_and(|primary| &primary.host == host) {
            let counts = |known: &&Protection| known.incarnation == record.incarnation;
            self.rooms.protection((node, record), (was.filter(counts), is.filter(counts)));
        }
    }

    /// The nodes that concern a host, as the store has it and as it is decided.
    pub(super) fn nodes_on(&self, host: &HostId) -> impl Iterator<Item = NodeId> {
        let (before, after) = (self.before.nodes.on_host(host), self.view.nodes.on_host(host));
        before.chain(after).map(|(node, _)| node.clone())
    }

    fn instances_changed(&mut self, old: Option<&HostFacts>, new: Option<&HostFacts>) {
        let mut concerned = BTreeSet::new();
        let mut terminals = BTreeSet::new();
        let mut concerns =
            |leader: &Self, id: InstanceId, before: Option<&InstanceFact>, after: Option<&InstanceFact>| {
                let named = leader.before.nodes.naming(id).iter().chain(leader.view.nodes.naming(id));
                let deployed = [before, after].into_iter().flatten().filter_map(|fact| fact.node.as_ref());
                let shown = |fact: Option<&InstanceFact>| fact.map(|fact| (fact.phase.clone(), fact.windows));
                let all: BTreeSet<NodeId> = named.chain(deployed).cloned().collect();
                if shown(before) != shown(after) {
                    terminals.extend(all.iter().map(|node| node.terminal().clone()));
                }
                concerned.extend(all);
            };
        for (instance, was, is) in pairs(old, new).filter(|(_, was, is)| was != is) {
            concerns(self, instance, was, is);
        }
        for terminal in &terminals {
            concerned.extend(self.before.nodes.of_terminal(terminal).map(|(node, _)| node.clone()));
        }
        for node in concerned {
            self.look_at_changed(&node);
        }
    }

    fn node_changed(&mut self, node: &NodeId, before: Option<&SharedNode>, after: Option<&SharedNode>) {
        let [was, is] = [before, after].map(|known| known.map(|known| &known.value));
        self.rooms.record(Side::Stored, &self.before, node, (was, is));
        match after {
            None => {
                self.drafts.remove(node);
                self.take_out(node);
                self.forget(node);
            }
            // What is in flight stays as it was decided until its outcome is known.
            Some(_) if !self.land(node) => {}
            Some(known) => self.put(node, Arc::clone(known)),
        }
        for node in self.concerned_by(node, before, after) {
            self.look_at_changed(&node);
        }
    }

    /// Whoever was, or will be, decided by what a node's record says: one that the store holds, or one that was decided
    /// and came to nothing.
    pub(super) fn concerned_by(
        &mut self,
        node: &NodeId,
        before: Option<&SharedNode>,
        after: Option<&SharedNode>,
    ) -> BTreeSet<NodeId> {
        let terminal = self.before.nodes.of_terminal(node.terminal());
        let mut all: BTreeSet<NodeId> = terminal.map(|(node, _)| node.clone()).collect();
        let from = |known: Option<&SharedNode>| {
            known.and_then(|known| known.value.migration.as_ref().map(|migration| migration.from.clone()))
        };
        let (old, new) = (from(before), from(after));
        if old != new {
            for host in [old, new].into_iter().flatten() {
                all.extend(self.nodes_on(&host));
            }
        }
        all
    }

    fn quarantine_changed(&mut self, old: &BTreeSet<NodeId>, new: &BTreeSet<NodeId>) {
        for node in old.symmetric_difference(new) {
            self.look_at_changed(node);
            if new.contains(node) {
                self.report.forget(node);
                self.note(node, "nothing is planned for it while a record of it cannot be read");
            } else {
                self.report.forget(node);
            }
        }
        // Idle instances are given to nobody while such a record may name them.
        if old.is_empty() != new.is_empty() {
            self.rooms.touch_all();
            self.look_at_waiting();
        }
    }

    /// Something that a node is decided from has changed.
    fn look_at_changed(&mut self, node: &NodeId) {
        if self.before.nodes.contains_key(node) {
            self.may_retry(node);
            self.look_at(node);
        }
    }

    /// Something has changed that nodes wait for.
    pub(super) fn look_at_waiting(&mut self) {
        for node in self.waiting.clone() {
            self.look_at(&node);
        }
    }
}
