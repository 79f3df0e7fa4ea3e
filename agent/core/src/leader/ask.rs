//! Owns what policies are asked, and what they said: one question about placement at a time, so that each sees what was
//! decided before it; questions about backup counts side by side.
//!
//! Promises: an answer decides for the node that it was asked about and for no other; an answer that comes after its
//! node has changed is void. Must not do: judge answers (`place` and `backups` do).

use std::collections::BTreeMap;

use super::Leader;
use crate::model::ids::NodeId;
use crate::model::view::Answer;
use crate::policy::{BackupCountAnswer, BackupCountQuestion, ClusterRow, PlacementAnswer, PlacementQuestion};

/// What the leader wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Where a member goes.
    Placement(PlacementQuestion),
    /// How many backups a node should have.
    BackupCount(BackupCountQuestion),
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To where a member goes.
    Placement(PlacementQuestion, Answer<PlacementAnswer>),
    /// To how many backups a node should have.
    BackupCount(BackupCountQuestion, Answer<BackupCountAnswer>),
}

impl Reply {
    /// What there is to say where nobody has answered.
    #[must_use]
    pub fn unavailable(question: Question) -> Self {
        match question {
            Question::Placement(question) => Self::Placement(question, Answer::Unavailable),
            Question::BackupCount(question) => Self::BackupCount(question, Answer::Unavailable),
        }
    }
}

/// Who is asked. Where nobody is, the built-in rule decides at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policies {
    /// There is a policy for placement.
    pub placement: bool,
    /// There is a policy for backup counts.
    pub backup_count: bool,
    /// Another one means that others answer than before, so that what was answered counts no more.
    pub version: u64,
}

/// The last answer about a node.
#[derive(Debug, Clone)]
struct Counted {
    question: BackupCountQuestion,
    answer: Answer<BackupCountAnswer>,
    /// It has not decided anything yet.
    is_new: bool,
}

/// What was asked and said.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    pub(super) policies: Policies,
    /// The question about placement that is not answered yet.
    placement: Option<PlacementQuestion>,
    /// Questions about backup counts that are not answered yet.
    counts: BTreeMap<NodeId, BackupCountQuestion>,
    /// Answers about a node whose decision is not complete.
    placed: BTreeMap<NodeId, Vec<(PlacementQuestion, Answer<PlacementAnswer>)>>,
    /// The last answer about each node.
    counted: BTreeMap<NodeId, Counted>,
    /// Questions to be handed out.
    pub(super) new: Vec<Question>,
}

impl Asked {
    /// Nothing that was asked counts any more.
    pub(super) fn clear(&mut self) {
        *self = Self { policies: self.policies, ..Self::default() };
    }

    /// The node is decided about, as far as it is handed out: what is still asked about where it goes is void, and so is
    /// what was said.
    pub(super) fn done(&mut self, node: &NodeId) {
        self.placed.remove(node);
        if self.placement.as_ref().is_some_and(|question| &question.node == node) {
            self.placement = None;
        }
    }

    /// The node is gone.
    pub(super) fn forget(&mut self, node: &NodeId) {
        self.done(node);
        self.counted.remove(node);
        self.counts.remove(node);
    }

    /// Takes a reply. The node that it is about; none where nobody waits for it.
    pub(super) fn reply(&mut self, reply: Reply) -> Option<NodeId> {
        match reply {
            Reply::Placement(question, answer) => {
                if self.placement.as_ref() != Some(&question) {
                    return None;
                }
                self.placement = None;
                let node = question.node.clone();
                self.placed.entry(node.clone()).or_default().push((question, answer));
                Some(node)
            }
            Reply::BackupCount(question, answer) => {
                if self.counts.get(&question.node) != Some(&question) {
                    return None;
                }
                let node = question.node.clone();
                self.counts.remove(&node);
                self.counted.insert(node.clone(), Counted { question, answer, is_new: true });
                Some(node)
            }
        }
    }
}

/// The answer to a question about placement, with the question as it was asked; none while it has to be asked first,
/// or while another one is.
pub(super) fn placement(
    leader: &mut Leader,
    question: PlacementQuestion,
) -> Option<(PlacementQuestion, Answer<PlacementAnswer>)> {
    let asked = &mut leader.asked;
    if !asked.policies.placement {
        return Some((question, Answer::Unavailable));
    }
    // The rows may have changed since it was asked: what counts of them is looked at when the answer is judged.
    let same = |other: &PlacementQuestion| {
        (&other.purpose, other.wanted, other.memory, other.vcpus, &other.members)
            == (&question.purpose, question.wanted, question.memory, question.vcpus, &question.members)
    };
    let answers = asked.placed.get(&question.node);
    if let Some(known) = answers.and_then(|all| all.iter().find(|(other, _)| same(other))) {
        return Some(known.clone());
    }
    if asked.placement.is_none() {
        asked.placement = Some(question.clone());
        asked.new.push(Question::Placement(question));
    }
    None
}

/// The answer to a question about a backup count; none while it has to be asked first.
pub(super) fn backup_count(
    leader: &mut Leader,
    question: &BackupCountQuestion,
) -> Option<Answer<BackupCountAnswer>> {
    let asked = &mut leader.asked;
    if !asked.policies.backup_count {
        return Some(Answer::Unavailable);
    }
    // Deficits and failures may have moved while it was asked; its answer decides all the same, once.
    let but_for_them = |question: &BackupCountQuestion| {
        let cluster = ClusterRow { deficit: 0, failures_last_day: 0, ..question.cluster };
        BackupCountQuestion { deficit: 0, cluster, ..question.clone() }
    };
    let moved = |known: &Counted| known.is_new && but_for_them(&known.question) == but_for_them(question);
    let known = asked.counted.get_mut(&question.node);
    if let Some(known) = known.filter(|known| known.question == *question || moved(known)) {
        known.is_new = false;
        return Some(known.answer.clone());
    }
    if !asked.counts.contains_key(&question.node) {
        asked.counts.insert(question.node.clone(), question.clone());
        asked.new.push(Question::BackupCount(question.clone()));
    }
    None
}
