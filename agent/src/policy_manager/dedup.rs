//! Owns what is new to the records: whether a question was asked and decided otherwise than the last time.
//!
//! Promises: of a question only a digest is kept, and of no more nodes than a bound; one that is forgotten is recorded
//! once more. Must not do: write.

use std::collections::BTreeMap;

use understudy_core::model::ids::NodeId;
use understudy_core::policy::{Interface, Purpose};
use understudy_policy::Digest;

use super::recorder::Item;

/// Questions that are told apart: several for each node of a large cluster, in some MiB.
const SUBJECTS_MAX: usize = 16_384;

/// What a question is told from the last one by.
type Subject = (Interface, NodeId, Option<Purpose>, bool);

struct Last {
    digest: Digest,
    /// Counts the questions, so that those of nodes that are gone are known.
    seen: u64,
}

/// What was asked and decided last.
pub(super) struct Dedup {
    last: BTreeMap<Subject, Last>,
    asked: u64,
    limit: usize,
}

impl Dedup {
    pub(super) fn new() -> Self {
        Self { last: BTreeMap::new(), asked: 0, limit: SUBJECTS_MAX }
    }

    /// Whether it differs from the last one of its kind. How long it took makes no difference.
    pub(super) fn is_new(&mut self, generation: u64, term: Option<u64>, item: &Item) -> bool {
        let (subject, text) = match item {
            Item::Placement { question, said, made } => (
                (Interface::Placement, question.node.clone(), Some(question.purpose), term.is_some()),
                serde_json::to_vec(&(generation, question, &said.policy, &said.answer, &said.fault, made)),
            ),
            Item::BackupCount { question, said, made } => (
                (Interface::BackupCount, question.node.clone(), None, term.is_some()),
                serde_json::to_vec(&(generation, question, &said.policy, &said.answer, &said.fault, made)),
            ),
        };
        // What cannot be put into words is written, which says why not.
        let Ok(text) = text else { return true };
        self.asked += 1;
        let now = Last { digest: Digest::of(&text), seen: self.asked };
        let digest = now.digest.clone();
        let is_new = self.last.insert(subject, now).is_none_or(|before| before.digest != digest);
        if self.last.len() > self.limit {
            self.forget_the_older_half();
        }
        is_new
    }

    fn forget_the_older_half(&mut self) {
        let mut seen: Vec<u64> = self.last.values().map(|last| last.seen).collect();
        let middle = seen.len() / 2;
        let (_, oldest_kept, _) = seen.select_nth_unstable(middle);
        let oldest_kept = *oldest_kept;
        self.last.retain(|_, last| last.seen >= oldest_kept);
    }
}

#[cfg(test)]
mod tests {
    use understudy_core::policy::{BackupCountQuestion, ClusterRow, CountVerdict};

    use super::*;
    use crate::policy_manager::records::Said;

    fn item(node: &str, backups: u32, took_us: u64) -> Item {
        let question = BackupCountQuestion {
            node: format!("{node}/display").parse().unwrap(),
            protected: false,
            terminal_labels: Default::default(),
            environment_labels: Default::default(),
            backups: 0,
            deficit: 0,
            cluster: ClusterRow::default(),
        };
        let said = Said { policy: None, took_us, answer: None, fault: None };
        Item::BackupCount { question, said, made: Some(CountVerdict { backups, built_in: None }) }
    }

    #[test]
    fn what_was_asked_and_decided_before_is_not_recorded_again() {
        let mut dedup = Dedup::new();
        assert!(dedup.is_new(1, Some(1), &item("alice", 1, 5)));
        assert!(!dedup.is_new(1, Some(2), &item("alice", 1, 9)), "neither time nor term make it another");
        assert!(dedup.is_new(1, Some(2), &item("alice", 2, 9)), "another verdict");
        assert!(dedup.is_new(2, Some(2), &item("alice", 2, 9)), "another set");
        assert!(dedup.is_new(2, None, &item("alice", 2, 9)), "an admission");
        assert!(dedup.is_new(2, Some(2), &item("bob", 2, 9)), "another node");
        assert!(!dedup.is_new(2, Some(2), &item("alice", 2, 9)));
    }

    #[test]
    fn nodes_that_are_gone_are_forgotten_and_those_asked_for_are_not() {
        let mut dedup = Dedup { limit: 100, ..Dedup::new() };
        for number in 0..10_000 {
            assert!(dedup.is_new(1, Some(1), &item(&format!("gone{number}"), 1, 0)));
            assert_eq!(dedup.is_new(1, Some(1), &item("alice", 1, 0)), number == 0);
            assert!(dedup.last.len() <= 100);
        }
        assert!(dedup.is_new(1, Some(1), &item("gone0", 1, 0)), "it is recorded once more");
    }
}
