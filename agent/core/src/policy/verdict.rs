//! Owns what core made of an answer: what it used, what it refused, and why a built-in rule decided instead.
//!
//! Promises: plain data that says all of it, for logs, metrics, decision records and `explain`. Must not do: judge
//! (the plan does).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{BackupCountQuestion, PlacementQuestion};
use crate::model::ids::HostId;

/// Why a pick is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unusable {
    /// It lies outside the question's list of hosts.
    NoHost,
    /// The host may not take the member: lost, silent, draining, full, or with a member of the node already.
    NotEligible,
    /// The host was picked before.
    Repeated,
}

impl Unusable {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::NoHost, Self::NotEligible, Self::Repeated];

    /// The word used in metrics and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoHost => "no-host",
            Self::NotEligible => "not-eligible",
            Self::Repeated => "repeated",
        }
    }
}

/// A pick that core did not use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusedPick {
    /// Its place in the question's list of hosts, as the policy said it.
    pub index: u32,
    /// The host there; none outside the list.
    pub host: Option<HostId>,
    /// Why, in one word.
    pub why: Unusable,
    /// Why, for people.
    pub detail: String,
}

impl fmt::Display for RefusedPick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.why) {
            (None, _) => write!(f, "pick {} is no host", self.index),
            (Some(host), Unusable::Repeated) => write!(f, "{host} was picked twice"),
            (Some(host), _) if self.detail.is_empty() => write!(f, "{host} may not take it"),
            (Some(host), _) => write!(f, "{host} may not take it: it {}", self.detail),
        }
    }
}

/// Why a built-in rule decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuiltIn {
    /// There was no answer: no policy, or it failed.
    NoAnswer,
    /// The policy picked nothing: it may, where no host would do by its own measure.
    NothingPicked,
    /// None of the picks was of use.
    NothingUsable,
    /// The numbers cannot be had.
    OutOfBounds,
}

impl BuiltIn {
    /// The word used in metrics and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoAnswer => "no-answer",
            Self::NothingPicked => "nothing-picked",
            Self::NothingUsable => "nothing-usable",
            Self::OutOfBounds => "out-of-bounds",
        }
    }

    /// Whether an answer was there and was refused as a whole: held against the policy. To pick nothing is an answer
    /// that it may give.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        match self {
            Self::NoAnswer | Self::NothingPicked => false,
            Self::NothingUsable | Self::OutOfBounds => true,
        }
    }
}

/// What became of the question where a member goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementVerdict {
    /// Hosts that could take the member, by their places in the question's list.
    pub eligible: Vec<u32>,
    /// The first of them that is tried: by the answer, or by the built-in rule; for a primary the first with an idle
    /// instance, where one of them has one.
    pub first: Option<HostId>,
    /// The host that the member was put on. None where the member was not placed after all.
    pub chosen: Option<HostId>,
    /// Picks that were not used.
    pub refused: Vec<RefusedPick>,
    /// Why the built-in rule decided; none where the policy did.
    pub built_in: Option<BuiltIn>,
}

/// What became of the question how many members a node should have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountVerdict {
    /// Backups that the node is to have.
    pub backups: u32,
    /// Why the built-in rule decided; none where the policy did.
    pub built_in: Option<BuiltIn>,
}

/// Every answered question that a plan used, with what became of it, in the order of their use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// Where members go.
    pub placements: Vec<(PlacementQuestion, PlacementVerdict)>,
    /// How many members nodes should have.
    pub backup_counts: Vec<(BackupCountQuestion, CountVerdict)>,
}
