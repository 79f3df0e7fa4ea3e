//! Owns the transactions of a leadership: what each write is conditional on.
//!
//! Promises: every write that a leader decides is conditional on its leadership, and on the revision of all that it was
//! decided from. Must not do: decide what is written.

use crate::keys::Key;
use crate::leader::{Assignment, ExpireLease};
use crate::model::records::LeaderRecord;
use crate::model::view::Versioned;
use crate::sets::{PolicySetRecord, PolicySets, RefusedSet};
use crate::transaction::Transaction;

/// Holds as long as this leadership stands.
fn led_by(held: &Versioned<LeaderRecord>) -> Transaction {
    Transaction::new().when(Key::Leader, Some(held.revision))
}

/// A node's new record.
pub(super) fn assignment_txn(held: &Versioned<LeaderRecord>, assignment: &Assignment) -> Transaction {
    let node = Key::Node(assignment.node.clone());
    let mut txn = led_by(held).when(node.clone(), Some(assignment.revision)).put(node, &assignment.record);
    for (host, revision) in &assignment.leases {
        txn = txn.when(Key::Lease(host.clone()), Some(*revision));
    }
    txn
}

/// The end of a silent lease. It excludes a renewal, which is conditional on the lease.
pub(super) fn expiry_txn(held: &Versioned<LeaderRecord>, expiry: &ExpireLease) -> Transaction {
    let key = Key::Lease(expiry.host.clone());
    let renewed = (expiry.renewed > 0).then_some(expiry.renewed);
    led_by(held)
        .when(key.clone(), Some(expiry.revision))
        .when(Key::Renewal(expiry.host.clone()), renewed)
        .put(key, &expiry.record)
}

/// The candidate takes the active set's place.
pub(super) fn activation_txn(
    held: &Versioned<LeaderRecord>,
    sets: &PolicySets,
    record: &PolicySetRecord,
) -> Transaction {
    settling(held, sets).put(Key::PolicyActive, record)
}

/// The candidate is refused.
pub(super) fn refusal_txn(
    held: &Versioned<LeaderRecord>,
    sets: &PolicySets,
    refused: &RefusedSet,
) -> Transaction {
    settling(held, sets).put(Key::PolicyRefused, refused)
}

/// The candidate goes, whatever becomes of it: it is judged by the set that is active.
fn settling(held: &Versioned<LeaderRecord>, sets: &PolicySets) -> Transaction {
    led_by(held)
        .when(Key::PolicyActive, sets.active.as_ref().map(|set| set.revision))
        .when(Key::PolicyCandidate, sets.candidate.as_ref().map(|set| set.revision))
        .delete(Key::PolicyCandidate)
}

/// The active set without a policy that failed. Any host writes it, whoever leads: an admission asks on any host.
pub(super) fn suspension_txn(sets: &PolicySets, record: &PolicySetRecord) -> Transaction {
    Transaction::new()
        .when(Key::PolicyActive, sets.active.as_ref().map(|set| set.revision))
        .put(Key::PolicyActive, record)
}
