//! Owns the records of all nodes, and which of them concern a host or name an instance.
//!
//! Promises: the two indices follow every change of a record; a copy shares whatever the original did not change
//! since. Must not do: judge what a record says.
//!
//! Cost, with N nodes: a look-up and a change take O(log N) and the copying of one tree path; a copy of the whole takes
//! O(1); what concerns one host takes O(nodes on that host).

use std::ops::Index;
use std::sync::Arc;

use imbl::OrdMap;

use super::Versioned;
use crate::model::ids::{HostId, InstanceId, NodeId, TerminalId};
use crate::model::records::NodeRecord;

/// One node's record, shared by all copies of the view that hold it unchanged.
pub type SharedNode = Arc<Versioned<NodeRecord>>;

/// The records of all nodes.
#[derive(Debug, Clone, Default)]
pub struct Nodes {
    records: OrdMap<NodeId, SharedNode>,
    /// Nodes with a member on a host, or on their way to it, with their records: a walk over a host looks nothing up.
    on_host: OrdMap<HostId, OrdMap<NodeId, SharedNode>>,
    /// Nodes that name an instance as a member, in their order. More than one is a broken SAFE-6.
    naming: OrdMap<InstanceId, Arc<[NodeId]>>,
}

impl PartialEq for Nodes {
    fn eq(&self, other: &Self) -> bool {
        self.records == other.records
    }
}

impl Eq for Nodes {}

impl Nodes {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The record of a node.
    #[must_use]
    pub fn get(&self, node: &NodeId) -> Option<&SharedNode> {
        self.records.get(node)
    }

    /// The record of a node, with the node as it is kept here.
    #[must_use]
    pub fn get_key_value(&self, node: &NodeId) -> Option<(&NodeId, &SharedNode)> {
        self.records.get_key_value(node)
    }

    /// Whether there is a record of a node.
    #[must_use]
    pub fn contains_key(&self, node: &NodeId) -> bool {
        self.records.contains_key(node)
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&NodeId, &SharedNode)> + Clone {
        self.records.iter()
    }

    /// All nodes, in the order of their names.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &NodeId> {
        self.records.keys()
    }

    /// All records, in the order of their nodes' names.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &SharedNode> {
        self.records.values()
    }

    /// Puts a record in, in place of the one that was there.
    pub fn insert(&mut self, node: NodeId, record: impl Into<SharedNode>) {
        let record = record.into();
        if let Some(old) = self.records.get(&node).cloned() {
            if names_the_same(&old.value, &record.value) {
                self.put_on_hosts(&node, &record);
                self.records.insert(node, record);
                return;
            }
            self.unlist(&node, &old.value);
        }
        self.list(&node, &record);
        self.records.insert(node, record);
    }

    /// Takes a record out.
    pub fn remove(&mut self, node: &NodeId) -> Option<SharedNode> {
        let old = self.records.remove(node)?;
        self.unlist(node, &old.value);
        Some(old)
    }

    /// Changes a record in place. Whether there was one.
    pub fn update(&mut self, node: &NodeId, edit: impl FnOnce(&mut Versioned<NodeRecord>)) -> bool {
        let Some(known) = self.records.get(node) else { return false };
        let mut changed = Arc::clone(known);
        edit(Arc::make_mut(&mut changed));
        self.insert(node.clone(), changed);
        true
    }

    /// The nodes that have a member on a host, or on its way there, in the order of their names.
    pub fn on_host<'a>(
        &'a self,
        host: &HostId,
    ) -> impl Iterator<Item = (&'a NodeId, &'a SharedNode)> + use<'a> {
        self.on_host.get(host).into_iter().flat_map(|nodes| nodes.iter())
    }

    /// The nodes that name an instance as a member, in the order of their names.
    #[must_use]
    pub fn naming(&self, instance: InstanceId) -> &[NodeId] {
        self.naming.get(&instance).map_or(&[], |nodes| nodes)
    }

    /// The nodes of a terminal, the display node first.
    pub fn of_terminal<'a>(
        &'a self,
        terminal: &'a TerminalId,
    ) -> impl Iterator<Item = (&'a NodeId, &'a SharedNode)> {
        let first = NodeId::display(terminal);
        self.records.range(first..).take_while(move |(node, _)| node.terminal() == terminal)
    }

    /// What changed from `self` to `other`: each node with its records before and after. What both share is passed over.
    pub fn diff<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (&'a NodeId, Option<&'a SharedNode>, Option<&'a SharedNode>)> {
        super::diff(&self.records, &other.records)
    }

    fn put_on_hosts(&mut self, node: &NodeId, record: &SharedNode) {
        for host in hosts(&record.value) {
            match self.on_host.get_mut(host) {
                Some(nodes) => drop(nodes.insert(node.clone(), Arc::clone(record))),
                None => {
                    let nodes = OrdMap::unit(node.clone(), Arc::clone(record));
                    self.on_host.insert(host.clone(), nodes);
                }
            }
        }
    }

    fn list(&mut self, node: &NodeId, record: &SharedNode) {
        self.put_on_hosts(node, record);
        let record = &record.value;
        for instance in record.members().filter_map(|member| member.instance) {
            let known = self.naming(instance);
            if let Err(at) = known.binary_search(node) {
                let mut nodes = known.to_vec();
                nodes.insert(at, node.clone());
                self.naming.insert(instance, nodes.into());
            }
        }
    }

    fn unlist(&mut self, node: &NodeId, record: &NodeRecord) {
        for host in hosts(record) {
            let is_empty = self.on_host.get_mut(host).is_some_and(|nodes| {
                nodes.remove(node);
                nodes.is_empty()
            });
            if is_empty {
                self.on_host.remove(host);
            }
        }
        for instance in record.members().filter_map(|member| member.instance) {
            let left: Vec<NodeId> =
                self.naming(instance).iter().filter(|other| *other != node).cloned().collect();
            if left.is_empty() {
                self.naming.remove(&instance);
            } else {
                self.naming.insert(instance, left.into());
            }
        }
    }
}

/// The hosts that a record concerns. One may come twice.
fn hosts(record: &NodeRecord) -> impl Iterator<Item = &HostId> {
    let coming = record.migration.iter().map(|migration| &migration.to);
    record.members().map(|member| &member.host).chain(coming)
}

fn names_the_same(one: &NodeRecord, other: &NodeRecord) -> bool {
    let instances =
        |record: &'_ NodeRecord| record.members().filter_map(|member| member.instance).collect::<Vec<_>>();
    hosts(one).eq(hosts(other)) && instances(one) == instances(other)
}

impl Index<&NodeId> for Nodes {
    type Output = SharedNode;

    fn index(&self, node: &NodeId) -> &SharedNode {
        &self.records[node]
    }
}

impl<'a> IntoIterator for &'a Nodes {
    type Item = (&'a NodeId, &'a SharedNode);
    type IntoIter = imbl::ordmap::Iter<'a, NodeId, SharedNode, imbl::shared_ptr::DefaultSharedPtr>;

    fn into_iter(self) -> Self::IntoIter {
        self.records.iter()
    }
}

impl Extend<(NodeId, Versioned<NodeRecord>)> for Nodes {
    fn extend<T: IntoIterator<Item = (NodeId, Versioned<NodeRecord>)>>(&mut self, records: T) {
        for (node, record) in records {
            self.insert(node, record);
        }
    }
}

impl FromIterator<(NodeId, Versioned<NodeRecord>)> for Nodes {
    fn from_iter<T: IntoIterator<Item = (NodeId, Versioned<NodeRecord>)>>(records: T) -> Self {
        let mut nodes = Self::default();
        nodes.extend(records);
        nodes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixture::{host, node, spec};
    use crate::model::ids::{Epoch, Role};
    use crate::model::records::{Member, Migration, Origin};
    use crate::model::units::UnixMillis;

    /// A primary, backups and perhaps a migration, on hosts and with instances that few numbers name.
    fn record(members: &[(u8, Option<u8>)], to: Option<u8>) -> Versioned<NodeRecord> {
        let mut record = NodeRecord::new(spec(Role::Execution), String::new());
        let name = |number: &u8| host(&format!("host{number}"));
        let instance = |number: u8| InstanceId::from_uuid(uuid::Uuid::from_u128(number.into()));
        let mut members = members.iter().map(|(at, of)| Member {
            host: name(at),
            lease: 1,
            instance: of.map(instance),
            origin: Origin::Created,
            place: 0,
        });
        record.primary = members.next();
        record.backups = members.collect();
        record.migration = to.map(|to| Migration {
            from: host("host0"),
            to: name(&to),
            to_lease: 1,
            epoch: Epoch(1),
            abandoned: false,
            started: UnixMillis(0),
        });
        Versioned { value: record, revision: 1 }
    }

    fn change() -> impl Strategy<Value = (u8, Option<Versioned<NodeRecord>>)> {
        let members = prop::collection::vec((0..4_u8, prop::option::of(0..5_u8)), 0..4);
        let put = (members, prop::option::of(0..4_u8)).prop_map(|(members, to)| record(&members, to));
        (0..6_u8, prop::option::weighted(0.8, put))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_indices_say_what_a_walk_over_all_records_says(changes in prop::collection::vec(change(), 0..40)) {
            let mut nodes = Nodes::default();
            for (number, record) in changes {
                let id = node(&format!("t{}/exec-{}", number / 2, number % 2 + 1));
                match record {
                    Some(record) => nodes.insert(id, record),
                    None => drop(nodes.remove(&id)),
                }
            }
            for number in 0..4 {
                let at = host(&format!("host{number}"));
                let walked: Vec<&NodeId> =
                    nodes.iter().filter(|(_, known)| known.value.touches(&at)).map(|(node, _)| node).collect();
                prop_assert_eq!(nodes.on_host(&at).map(|(node, _)| node).collect::<Vec<_>>(), walked);
                for (node, known) in nodes.on_host(&at) {
                    prop_assert_eq!(known, &nodes[node]);
                }
            }
            for number in 0..5_u8 {
                let instance = InstanceId::from_uuid(uuid::Uuid::from_u128(number.into()));
                let names = |record: &NodeRecord| record.members().any(|member| member.instance == Some(instance));
                let walked: Vec<NodeId> =
                    nodes.iter().filter(|(_, known)| names(&known.value)).map(|(node, _)| node.clone()).collect();
                prop_assert_eq!(nodes.naming(instance), &walked[..]);
            }
            for number in 0..3 {
                let terminal = format!("t{number}").parse().unwrap();
                let walked = nodes.iter().filter(|(node, _)| node.terminal() == &terminal).count();
                prop_assert_eq!(nodes.of_terminal(&terminal).count(), walked);
            }
        }
    }
}
