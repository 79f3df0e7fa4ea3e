//! Owns the question whether new nodes fit, with all their backups.
//!
//! Promises: what is admitted finds places for every primary and every wanted backup by the very decisions that will
//! make them; room that is decided to be others' counts as taken; a refusal says what is missing, host by host. Must not
//! do: reserve anything; between admission and decision the cluster may change, and then the report says what is lacking.
//!
//! Cost: a copy of the leader, which shares its records, and the decisions about the new nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::sums::Side;
use super::{Leader, Question, Reply};
use crate::model::ids::NodeId;
use crate::model::records::NodeRecord;
use crate::model::units::Now;
use crate::model::view::{SharedNode, Versioned};
use crate::policy::Judged;

/// Whether new nodes fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// They do; with what became of the answers.
    Admitted(Judged),
    /// Policies have to be asked first: go on with the replies.
    Asks(Vec<Question>),
    /// They do not.
    Refused {
        /// What is missing, for people: a line per primary and per set of backups.
        missing: Vec<String>,
        /// What became of the answers.
        judged: Judged,
    },
}

/// A leader that tries new nodes, and of which nothing is written.
#[derive(Debug, Clone)]
pub struct Trial {
    leader: Leader,
    new: Vec<NodeId>,
}

impl Trial {
    /// Adds `new` to what `leader` knows.
    #[must_use]
    pub fn new(leader: &Leader, new: &BTreeMap<NodeId, NodeRecord>, now: Now) -> Self {
        let mut leader = leader.clone();
        leader.now = now;
        // What is asked for real is answered for real.
        leader.asked.clear();
        for (node, record) in new {
            let known = SharedNode::from(Versioned { value: record.clone(), revision: 0 });
            let old = leader.before.nodes.get(node).cloned();
            leader.before.nodes.insert(node.clone(), Arc::clone(&known));
            let old = old.as_ref().map(|known| &known.value);
            leader.rooms.record(Side::Stored, &leader.before, node, (old, Some(&known.value)));
            leader.put(node, known);
            leader.look_at(node);
        }
        Self { leader, new: new.keys().cloned().collect() }
    }

    /// Goes on with replies: none at first.
    pub fn step(&mut self, replies: Vec<Reply>, now: Now) -> Admission {
        for reply in replies {
            self.leader.take(super::Input::Reply(reply), now);
        }
        self.leader.decide();
        let questions = std::mem::take(&mut self.leader.asked.new);
        if !questions.is_empty() {
            return Admission::Asks(questions);
        }
        let missing: Vec<String> = self.new.iter().filter_map(|node| self.missing(node)).collect();
        let judged = std::mem::take(&mut self.leader.batch.judged);
        if missing.is_empty() { Admission::Admitted(judged) } else { Admission::Refused { missing, judged } }
    }

    /// What `node` would lack; none when it would be whole.
    fn missing(&self, node: &NodeId) -> Option<String> {
        let (report, record) = (self.leader.report(), self.leader.record(node));
        let why = || {
            report.notes.get(node).map_or_else(|| "no place was found".to_owned(), |notes| notes.join("; "))
        };
        if record.primary.is_none() {
            return Some(format!("{node}: {}", why()));
        }
        let wanted = report.wanted.get(node).copied().unwrap_or(0);
        let has = u32::try_from(record.backups.len()).unwrap_or(u32::MAX);
        (has < wanted).then(|| format!("{node}: {has} of {wanted} backups find a place: {}", why()))
    }
}
