//! Owns what the leader is told, and what it gives back. Plain data.

use super::ask::{Policies, Question, Reply};
use super::copies::AskCopies;
use super::{Assignment, ExpireLease};
use crate::model::ids::{HostId, NodeId};
use crate::model::records::Kept;
use crate::model::view::View;
use crate::policy::{Interface, Judged};

/// What the leader is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// What the store holds, as far as it has been read. The leader finds out itself what changed.
    View(View),
    /// What came of a question.
    Reply(Reply),
    /// A host says which checkpoints of a node it has, as it was asked.
    Copies(AskCopies, Kept),
    /// Who is asked from now on.
    Policies(Policies),
    /// What came of an assignment. One whose outcome is not known ends the leadership: a new one begins with a new term.
    Written(NodeId, Outcome),
    /// What came of the expiry of a host's lease.
    Expired(HostId, Outcome),
    /// Nothing but time.
    Tick,
}

/// What came of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the store, at this revision.
    Applied(u64),
    /// It is not: something that it is conditional on had changed.
    Refused,
}

/// What the leader wants done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decisions {
    /// Leases to expire.
    pub expiries: Vec<ExpireLease>,
    /// Nodes to write, in this order as far as they are not written side by side: none is conditional on another.
    pub assignments: Vec<Assignment>,
    /// What to ask policies.
    pub questions: Vec<Question>,
    /// What to ask hosts. Who does not answer is asked again, while it matters.
    pub copies: Vec<AskCopies>,
    /// Answers of policies that core refused or did without, with the reason.
    pub refusals: Vec<(Interface, String)>,
    /// What became of every answer that was used.
    pub judged: Judged,
}

impl Decisions {
    /// Whether there is nothing to do, nothing to ask and nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let asks = !self.questions.is_empty() || !self.copies.is_empty();
        self.expiries.is_empty() && self.assignments.is_empty() && !asks
    }
}
