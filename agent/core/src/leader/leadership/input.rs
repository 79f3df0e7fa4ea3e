//! Owns what the leadership takes, and what it gives back. Plain data.

use crate::invariants::Broken;
use crate::keys::LEADER;
use crate::leader::{AskCopies, Assignment, ExpireLease, Policies, Question, Reply};
use crate::model::ids::{HostId, NodeId, Term};
use crate::model::records::{Kept, LeaderRecord};
use crate::model::view::{SharedNode, Versioned};
use crate::policy::{Interface, Judged};
use crate::sets::{PolicySetRecord, RefusedSet, SetFacts};
use crate::store_cache::StoreCache;
use crate::transaction::Transaction;

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// The agent looks: after every batch of events, and at least every 250 ms. Everything is decided here.
    Seen(Seen<'a>),
    /// The bid ended.
    BidEnded(BidOutcome),
    /// A write ended.
    Written(WriteId, WriteOutcome),
    /// A question was answered, or was not.
    Reply(Asking, Reply),
    /// A host answered a question about a node's checkpoints that was asked in this term.
    Copies(Term, AskCopies, Kept),
    /// The resignation was written, or was not.
    Resigned,
    /// The agent stops.
    Stop,
}

/// What the agent sees at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// What the store holds, as far as it has been read.
    pub cache: &'a StoreCache,
    /// Whether this host's lease is open.
    pub lease_open: bool,
    /// Who would be asked.
    pub policies: Policies,
    /// What this host has of the sets of policies.
    pub sets: &'a SetFacts,
    /// Policies that failed too often on this host.
    pub failed: &'a [FailedPolicy],
}

/// A policy that failed too often on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedPolicy {
    /// Its name.
    pub name: String,
    /// The BLAKE3 of its component in hex.
    pub digest: String,
    /// How it failed.
    pub reason: String,
}

/// How a bid ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BidOutcome {
    /// This is the leadership of a new term.
    Won(Versioned<LeaderRecord>),
    /// Another agent was faster.
    Lost,
    /// The store did not answer. It may be applied: the store cache will show it, and the next bid replaces it.
    Failed,
}

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It is in the store, at this revision.
    Applied(u64),
    /// It is not: something that it is conditional on had changed.
    Refused {
        /// Whether that was the leadership.
        deposed: bool,
    },
    /// It may be applied yet.
    Unknown,
}

impl WriteOutcome {
    /// What a write came to whose conditions on these keys did not hold.
    #[must_use]
    pub fn refused(failed: &[String]) -> Self {
        Self::Refused { deposed: failed.iter().any(|key| key == LEADER) }
    }
}

/// What is to be done, side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Bid for the term after this leadership; none: for the first, where there is no record.
    Bid(Option<Versioned<LeaderRecord>>),
    /// Give up this leadership, so that the next leader need not wait for the end of the host's lease.
    Resign(Versioned<LeaderRecord>),
    /// Ask, and say who was asked together with the reply.
    Ask(Asking, Question),
    /// Ask a host, in this term, which checkpoints it has of these nodes: all of them go to the same. An answer may be late;
    /// a host that does not answer is not heard of.
    AskCopies(Term, Vec<AskCopies>),
    /// Write this.
    Write(Box<WriteRequest>),
    /// What became in this term of every answer that was used.
    Judged(Term, Judged),
    /// Log and count this.
    Notice(Notice),
}

/// A transaction to be written, and what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteRequest {
    /// What its outcome comes back with.
    pub id: WriteId,
    /// What to write.
    pub transaction: Transaction,
    /// What it does, for logs and counters.
    pub what: What,
}

/// In which term a question is asked, and of which of the sites' policies: an answer of others is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asking {
    /// The term.
    pub term: Term,
    /// The version of `Policies` that is asked.
    pub version: u64,
}

/// Names a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteId {
    /// The term that it is conditional on; none where any host may write it.
    pub term: Option<Term>,
    /// What is written.
    pub subject: Subject,
}

/// What a write is about. At most one about a node, and one about the sets, is under way in one term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The record of a node.
    Node(NodeId),
    /// The lease of a host.
    Lease(HostId),
    /// The sets of policies.
    Sets,
}

/// What a write does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "the request that it is part of is boxed")]
pub enum What {
    /// It assigns a node.
    Assign {
        /// The assignment.
        assignment: Assignment,
        /// The record that it was decided from.
        before: Option<SharedNode>,
    },
    /// It expires a silent lease.
    Expire(ExpireLease),
    /// The candidate becomes the active set.
    Activate(PolicySetRecord),
    /// The candidate is refused.
    Refuse(RefusedSet),
    /// The active set goes on without a policy that failed.
    Suspend(PolicySetRecord),
}

/// What people and counters should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// This agent leads.
    Leads(Term),
    /// The store shows another leadership than this agent's.
    AnotherLeads(Term),
    /// A write was refused because another agent leads.
    Deposed(Term),
    /// The outcome of a write is not known: a new term is next.
    OutcomeUnknown(Term),
    /// The policies that decide are not ready on this host: it gives up the leadership.
    NotReady(Term),
    /// An assignment would break invariants and is not written. That is a defect.
    Broken(NodeId, Vec<Broken>),
    /// A policy's answer was refused, and the built-in rule decided.
    AnswerRefused(Interface, String),
}
