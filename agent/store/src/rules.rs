//! Owns what every implementation must agree on: which requests are valid, and when a condition holds.
//!
//! The limits are etcd's defaults with room for the adapter's own part of a transaction, so that a record that
//! fits the file of one host also fits a cluster.

use std::collections::BTreeSet;

use crate::error::InvalidRequest;
use crate::types::{Condition, Revision, Txn, Write};

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// The biggest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// The biggest sum of a transaction's keys and values. etcd refuses requests of more than 1.5 MiB.
pub const TXN_BYTES_MAX: usize = VALUE_BYTES_MAX + 256 * 1024;
/// The most conditions, and the most writes, of one transaction. etcd's limit is 128 for each branch with what
/// is nested in it; the adapter needs some of these for itself.
pub const TXN_OPERATIONS_MAX: usize = 120;

/// Keys of the adapters' own, beside the callers'.
pub(crate) const RESERVED: char = '.';

pub(crate) fn check_key(key: &str) -> Result<(), InvalidRequest> {
    let bad = key.is_empty()
        || key.len() > KEY_BYTES_MAX
        || key.starts_with(RESERVED)
        || key.chars().any(char::is_control);
    if bad { Err(InvalidRequest::Key(key.to_owned())) } else { Ok(()) }
}

/// A prefix may be empty (all records); otherwise it is held to the rules of a key.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), InvalidRequest> {
    if prefix.is_empty() { Ok(()) } else { check_key(prefix) }
}

pub(crate) fn check_txn(txn: &Txn) -> Result<(), InvalidRequest> {
    let operations = txn.conditions.len().max(txn.writes.len());
    if operations > TXN_OPERATIONS_MAX {
        return Err(InvalidRequest::TxnOperations(operations));
    }
    let mut bytes = 0;
    for condition in &txn.conditions {
        check_key(condition.key())?;
        bytes += condition.key().len();
    }
    let mut written = BTreeSet::new();
    for write in &txn.writes {
        check_key(write.key())?;
        if !written.insert(write.key()) {
            return Err(InvalidRequest::WrittenTwice(write.key().to_owned()));
        }
        bytes += write.key().len();
        if let Write::Put(key, value) = write {
            if value.len() > VALUE_BYTES_MAX {
                return Err(InvalidRequest::Value { key: key.clone(), bytes: value.len() });
            }
            bytes += value.len();
        }
    }
    if bytes > TXN_BYTES_MAX { Err(InvalidRequest::TxnBytes(bytes)) } else { Ok(()) }
}

/// Whether a condition holds for a key whose record was last written at `modified` (`None`: no record).
pub(crate) fn holds(condition: &Condition, modified: Option<Revision>) -> bool {
    match condition {
        Condition::Absent(_) => modified.is_none(),
        Condition::Present(_) => modified.is_some(),
        Condition::Unchanged(_, revision) => modified == Some(*revision),
    }
}

/// A transaction in a few words, for errors and logs.
pub(crate) fn describe(txn: &Txn) -> String {
    match txn.writes.as_slice() {
        [] => format!("a check of {} conditions", txn.conditions.len()),
        [one] => format!("'{}'", one.key()),
        [first, rest @ ..] => format!("'{}' and {} more", first.key(), rest.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(bytes: usize) -> String {
        "k".repeat(bytes)
    }

    #[test]
    fn a_key_is_accepted_or_refused_by_its_form() {
        let table = [
            ("hosts/a", true),
            ("", false),
            (".commits/x", false),
            ("a\nb", false),
            ("ä/ß", true),
            (&long(KEY_BYTES_MAX), true),
            (&long(KEY_BYTES_MAX + 1), false),
        ];
        for (key, good) in table {
            assert_eq!(check_key(key).is_ok(), good, "key {key:?}");
        }
        assert!(check_prefix("").is_ok());
    }

    #[test]
    fn a_transaction_over_a_limit_is_refused_by_name() {
        let many = |n: usize| (0..n).fold(Txn::new(), |txn, i| txn.put(format!("k{i}"), vec![]));
        assert_eq!(check_txn(&many(TXN_OPERATIONS_MAX)), Ok(()));
        assert_eq!(
            check_txn(&many(TXN_OPERATIONS_MAX + 1)),
            Err(InvalidRequest::TxnOperations(TXN_OPERATIONS_MAX + 1))
        );
        assert_eq!(check_txn(&Txn::new().put("a", vec![0; VALUE_BYTES_MAX])), Ok(()));
        assert_eq!(
            check_txn(&Txn::new().put("a", vec![0; VALUE_BYTES_MAX + 1])),
            Err(InvalidRequest::Value { key: "a".into(), bytes: VALUE_BYTES_MAX + 1 })
        );
        let two = Txn::new().put("a", vec![0; VALUE_BYTES_MAX]).put("b", vec![0; VALUE_BYTES_MAX]);
        assert_eq!(check_txn(&two), Err(InvalidRequest::TxnBytes(2 * VALUE_BYTES_MAX + 2)));
        assert_eq!(
            check_txn(&Txn::new().put("a", vec![]).delete("a")),
            Err(InvalidRequest::WrittenTwice("a".into()))
        );
    }

    #[test]
    fn a_condition_holds_only_for_the_record_it_names() {
        let at = |n| Some(Revision(n));
        let key = || "k".to_owned();
        let table = [
            (Condition::Absent(key()), None, true),
            (Condition::Absent(key()), at(3), false),
            (Condition::Present(key()), None, false),
            (Condition::Present(key()), at(3), true),
            (Condition::Unchanged(key(), Revision(3)), at(3), true),
            (Condition::Unchanged(key(), Revision(3)), at(4), false),
            (Condition::Unchanged(key(), Revision(3)), None, false),
        ];
        for (condition, modified, expected) in table {
            assert_eq!(holds(&condition, modified), expected, "{condition:?} at {modified:?}");
        }
    }
}
