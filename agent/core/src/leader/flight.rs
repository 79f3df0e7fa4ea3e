//! Owns what is decided and not seen written yet: from the handing out of an assignment to its landing.
//!
//! Promises: what is in flight is not decided about again; what was refused counts no more, and whoever was decided by it
//! is looked at again. Must not do: decide.

use std::collections::BTreeMap;

use super::input::{Decisions, Outcome};
use super::machine::RETRY;
use super::{Assignment, Leader};
use crate::model::ids::{Epoch, HostId, NodeId};

/// What is decided of a node and not seen written yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    pub(super) leases: Vec<(HostId, u64)>,
    pub(super) reasons: Vec<String>,
    flight: Flight,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Flight {
    /// Not handed out yet.
    #[default]
    Deciding,
    /// Handed out; the outcome is not known.
    Out,
    /// Written at this revision, which has not been seen yet.
    Written(u64),
}

/// Backups that nodes are short of.
#[derive(Debug, Clone, Default)]
pub(super) struct Deficits {
    of: BTreeMap<NodeId, u32>,
    all: u32,
}

impl Deficits {
    pub(super) fn of(&self, node: &NodeId) -> u32 {
        self.of.get(node).copied().unwrap_or(0)
    }

    pub(super) fn all(&self) -> u32 {
        self.all
    }

    pub(super) fn set(&mut self, node: &NodeId, short: u32) {
        let old = if short == 0 { self.of.remove(node) } else { self.of.insert(node.clone(), short) };
        self.all = self.all.saturating_add(short).saturating_sub(old.unwrap_or(0));
    }
}

impl Leader {
    /// Whether something that was handed out has no known outcome.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.drafts.values().any(|draft| draft.flight == Flight::Out)
    }

    /// Whether something of a node is on its way to the store.
    pub(super) fn is_in_flight(&self, node: &NodeId) -> bool {
        self.drafts.get(node).is_some_and(|draft| draft.flight != Flight::Deciding)
    }

    /// Gives away what is decided and does not wait for an answer.
    pub(super) fn hand_out(&mut self) -> Decisions {
        let mut decisions = Decisions {
            expiries: std::mem::take(&mut self.batch.expiries),
            assignments: Vec::new(),
            questions: std::mem::take(&mut self.asked.new),
            copies: std::mem::take(&mut self.words.new),
            refusals: std::mem::take(&mut self.batch.refusals),
            judged: std::mem::take(&mut self.batch.judged),
        };
        let deciding = |(_, draft): &(&NodeId, &Draft)| draft.flight == Flight::Deciding;
        let open: Vec<NodeId> = self.drafts.iter().filter(deciding).map(|(node, _)| node.clone()).collect();
        for node in open.into_iter().filter(|node| !self.batch.suspended.contains(node)) {
            self.asked.done(&node);
            match self.assignment(&node) {
                Some(assignment) => {
                    if let Some(draft) = self.drafts.get_mut(&node) {
                        draft.flight = Flight::Out;
                    }
                    decisions.assignments.push(assignment);
                }
                None => drop(self.drafts.remove(&node)),
            }
        }
        // Whoever gets another primary comes first, then all in the order of their names.
        decisions
            .assignments
            .sort_by_cached_key(|one| one.record.incarnation == self.incarnation_before(&one.node));
        self.tell_deficits();
        decisions
    }

    fn incarnation_before(&self, node: &NodeId) -> Epoch {
        self.before.nodes.get(node).map(|known| known.value.incarnation).unwrap_or_default()
    }

    fn assignment(&self, node: &NodeId) -> Option<Assignment> {
        let (old, new, draft) =
            (self.before.nodes.get(node)?, self.view.nodes.get(node)?, self.drafts.get(node)?);
        (old.value != new.value).then(|| Assignment {
            node: node.clone(),
            revision: old.revision,
            record: new.value.clone(),
            leases: draft.leases.clone(),
            reasons: draft.reasons.clone(),
        })
    }

    pub(super) fn written(&mut self, node: &NodeId, outcome: Outcome) {
        let Some(draft) = self.drafts.get_mut(node) else { return };
        match outcome {
            Outcome::Applied(revision) => {
                draft.flight = Flight::Written(revision);
                self.land(node);
            }
            Outcome::Refused => {
                let decided = self.view.nodes.get(node).cloned();
                self.drop_draft(node);
                let stands = self.view.nodes.get(node).cloned();
                for other in self.concerned_by(node, decided.as_ref(), stands.as_ref()) {
                    self.look_at(&other);
                }
                if self.refresh() {
                    self.look_at_waiting();
                }
                self.todo.forget(node);
                self.todo.settle.insert(node.clone());
                self.retries.insert(node.clone(), self.now.boottime + RETRY);
            }
        }
    }

    /// Ends the flight of a write that the view shows. Whether none is in flight any more.
    pub(super) fn land(&mut self, node: &NodeId) -> bool {
        let Some(draft) = self.drafts.get(node) else { return true };
        let seen = self.before.nodes.get(node).map_or(0, |known| known.revision);
        match draft.flight {
            Flight::Deciding => {}
            Flight::Out => return false,
            Flight::Written(revision) if seen < revision => return false,
            Flight::Written(_) => {}
        }
        self.drop_draft(node);
        self.look_at(node);
        true
    }

    /// What was decided of a node counts no more: what the store holds does.
    pub(super) fn drop_draft(&mut self, node: &NodeId) {
        self.drafts.remove(node);
        match self.before.nodes.get(node).cloned() {
            Some(known) => self.put(node, known),
            None => self.take_out(node),
        }
    }
}
