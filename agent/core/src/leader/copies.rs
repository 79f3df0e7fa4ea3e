//! Owns what hosts are asked, and said, of the checkpoints of nodes whose primary is dead: the manifest at the host is the
//! truth, and no record of the store repeats it.
//!
//! ```text
//! asked ──▶ said ─────────────▶ asked again after ASK_AGAIN, while the node waits for its state; the last word counts meanwhile
//!   └─────▶ silent after ASK ─▶ the same; a word that comes late counts from then on
//! ```
//!
//! Promises: a word counts for the epoch and the instance of the node and the lease of the host that it was asked of; a host that
//! does not answer holds its node up for [`ASK`], once; all hosts of a node, and all nodes, are asked side by side. Must not do:
//! choose a copy.
//!
//! Cost: one question to each host that may have a checkpoint of any node whose primary is dead, about all of these at once:
//! their backups and those that were; none at rest. 300 bytes for each node that is asked about, and 200 for each checkpoint
//! that is kept.

use std::collections::BTreeMap;

use super::Leader;
use crate::bounds::{ASK, ASK_AGAIN};
use crate::model::ids::{Epoch, HostId, InstanceId, NodeId};
use crate::model::records::{Kept, NodeRecord};
use crate::model::units::Boottime;

/// A host is to be asked which checkpoints of a node it has. From its answer on it takes no more of this instance in epochs up
/// to this one, for as long as [`crate::bounds::CLOSED`]: what it has said stays true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskCopies {
    /// Of which node.
    pub node: NodeId,
    /// The node's epoch, of which the primary is known dead.
    pub epoch: Epoch,
    /// Whose state it is.
    pub instance: InstanceId,
    /// Whom.
    pub host: HostId,
    /// The number of its lease: it goes back with the answer.
    pub lease: u64,
    /// `host:port` of its agent.
    pub api: String,
}

/// What a host was asked and said last of one node's checkpoints.
#[derive(Debug, Clone)]
struct Word {
    epoch: Epoch,
    instance: InstanceId,
    lease: u64,
    asked: Boottime,
    /// The last question has no answer yet.
    waits: bool,
    /// It was decided once from what it said, or from its silence.
    counts: bool,
    said: Option<Kept>,
}

/// What hosts said, by node.
#[derive(Debug, Clone, Default)]
pub(super) struct Words {
    of: BTreeMap<NodeId, BTreeMap<HostId, Word>>,
    /// When a node is looked at again for it.
    due: BTreeMap<NodeId, Boottime>,
    /// To be handed out.
    pub(super) new: Vec<AskCopies>,
}

impl Words {
    /// Takes an answer. Whether it says something else than was known.
    pub(super) fn take(&mut self, ask: &AskCopies, said: Kept) -> bool {
        let word = self.of.get_mut(&ask.node).and_then(|words| words.get_mut(&ask.host));
        let asked = (ask.epoch, ask.instance, ask.lease);
        let word = word.filter(|word| (word.epoch, word.instance, word.lease) == asked);
        let Some(word) = word else { return false };
        let is_new = !word.counts || word.said.as_ref() != Some(&said);
        (word.waits, word.said) = (false, Some(said));
        is_new
    }

    /// Nobody waits for the answer of a host any more.
    pub(super) fn give_up(&mut self, (node, host): (&NodeId, &HostId)) {
        if let Some(word) = self.of.get_mut(node).and_then(|words| words.get_mut(host)) {
            (word.waits, word.counts) = (false, true);
        }
    }

    /// The nodes to be looked at by now.
    pub(super) fn take_due(&mut self, now: Boottime) -> impl Iterator<Item = NodeId> {
        self.due.extract_if(.., move |_, at| *at <= now).map(|(node, _)| node)
    }

    /// The first of those times.
    pub(super) fn next_due(&self) -> Option<Boottime> {
        self.due.values().min().copied()
    }

    /// The node has a primary, or is no more.
    pub(super) fn forget(&mut self, node: &NodeId) {
        self.of.remove(node);
        self.due.remove(node);
    }

    /// What every host that was asked says by now; none for those that do not answer.
    #[cfg(test)]
    pub(super) fn hear_all(&mut self, says: impl Fn(&NodeId, &HostId) -> Option<Kept>) {
        for (node, words) in &mut self.of {
            for (host, word) in words {
                (word.said, word.waits, word.counts) = (says(node, host), false, true);
            }
        }
    }

    /// What a host said of a node in this epoch, under this lease.
    pub(super) fn said(&self, node: &NodeId, host: &HostId, (epoch, lease): (Epoch, u64)) -> Option<&Kept> {
        let word = self.of.get(node)?.get(host)?;
        word.said.as_ref().filter(|_| word.epoch == epoch && word.lease == lease)
    }
}

/// Where a host stands that may have checkpoints of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holder {
    /// It has these.
    Has(Kept),
    /// It is there, and does not answer.
    Silent,
    /// It has not reported since it came back.
    NotReported,
    /// Its lease is over.
    Lost,
    /// Whether it is there cannot be told.
    Unread,
}

/// All hosts that may have checkpoints of a node, each with where it stands; none while a word is awaited that was never
/// heard. A host that nobody knows is not among them.
pub(super) fn consult(
    leader: &mut Leader,
    node: &NodeId,
    record: &NodeRecord,
) -> Option<BTreeMap<HostId, Holder>> {
    let Some(instance) = record.state_of() else { return Some(BTreeMap::new()) };
    let (now, mut is_complete) = (leader.now.boottime, true);
    let mut holders = BTreeMap::new();
    let Leader { view, words, .. } = leader;
    let Words { of, due, new } = words;
    let said = of.entry(node.clone()).or_default();
    said.retain(|_, word| (word.epoch, word.instance) == (record.epoch, instance));
    for host in record.keeping() {
        let holder = match view.hosts.get(host) {
            _ if view.unread_hosts.contains(host) => Holder::Unread,
            None => continue,
            Some(seen) if !seen.is_open() => Holder::Lost,
            Some(seen) => match seen.current_facts() {
                None => Holder::NotReported,
                Some(facts) => {
                    let lease = facts.lease;
                    let ask = || AskCopies {
                        node: node.clone(),
                        epoch: record.epoch,
                        instance,
                        host: host.clone(),
                        lease,
                        api: facts.api.clone(),
                    };
                    let fresh = Word {
                        epoch: record.epoch,
                        instance,
                        lease,
                        asked: now,
                        waits: true,
                        counts: false,
                        said: None,
                    };
                    if said.get(host).is_none_or(|word| word.lease != lease) {
                        new.push(ask());
                        said.insert(host.clone(), fresh);
                    }
                    let Some(word) = said.get_mut(host) else { continue };
                    if word.waits && now.since(word.asked) >= ASK {
                        (word.waits, word.said) = (false, None);
                    }
                    if !word.waits && now.since(word.asked) >= ASK_AGAIN {
                        (word.asked, word.waits) = (now, true);
                        new.push(ask());
                    }
                    is_complete &= word.counts || !word.waits;
                    word.said.clone().map_or(Holder::Silent, Holder::Has)
                }
            },
        };
        holders.insert(host.clone(), holder);
    }
    said.retain(|host, _| holders.contains_key(host));
    let next = said.values().map(|word| word.asked + if word.waits { ASK } else { ASK_AGAIN });
    match next.min() {
        Some(at) => drop(due.insert(node.clone(), at)),
        None => drop(due.remove(node)),
    }
    if !is_complete {
        return None;
    }
    said.values_mut().for_each(|word| word.counts = true);
    Some(holders)
}
