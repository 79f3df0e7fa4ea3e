//! Owns the explanation of a placement: the question for a node's next member, and what would become of its answer.
//!
//! Promises: the same question, the same eligible hosts and the same check as the plan's. Must not do: change anything.

use std::collections::BTreeSet;

use super::Draft;
use super::backups;
use super::place::{Excluded, eligible, judge};
use super::question::whole;
use crate::bounds::Bounds;
use crate::ids::{HostId, NodeId};
use crate::policy::{
    BackupCountAnswer, BackupCountQuestion, CountVerdict, PlacementAnswer, PlacementQuestion,
    PlacementVerdict, Purpose,
};
use crate::units::Now;
use crate::view::{Answer, Life, View};

/// Where the next member of a node could go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What the policy would be asked, with reasons.
    pub question: PlacementQuestion,
    /// Hosts that may take the member.
    pub eligible: BTreeSet<HostId>,
    /// Why each other host may not.
    pub excluded: Excluded,
}

/// Where the next member of `node` could go: its primary if it has none that lives, else another backup. None where
/// there is no such node.
#[must_use]
pub fn explain(view: &View, node: &NodeId, bounds: &Bounds, now: Now) -> Option<Explanation> {
    let record = &view.nodes.get(node)?.value;
    let lives = record.primary.as_ref().is_some_and(|primary| view.life(record, primary) == Life::Alive);
    let purpose = match (lives, record.holds_places(node.role())) {
        (false, _) => Purpose::Primary,
        (true, true) => Purpose::HeldBackup,
        (true, false) => Purpose::WarmBackup,
    };
    let mut draft = Draft::new(view, bounds, now);
    if !lives {
        // As the plan does: the dead primary's host may take the new one, and has its room.
        draft.change_quietly(node, |record| record.primary = None);
    }
    let (eligible, excluded) = eligible(&draft, node);
    let question = PlacementQuestion { reasons: true, ..whole(&draft, node, purpose) };
    Some(Explanation { question, eligible, excluded })
}

impl Explanation {
    /// The hosts in the order in which they would be tried, and what would become of the answer. Without one the built-in rule
    /// decides.
    #[must_use]
    pub fn judge(&self, answer: Option<&PlacementAnswer>) -> (Vec<HostId>, PlacementVerdict) {
        let answer = answer.map_or(Answer::Unavailable, |answer| Answer::Given(answer.clone()));
        let (ranked, mut verdict) = judge(&self.question, &answer, &self.eligible, &self.excluded);
        verdict.chosen.clone_from(&verdict.first);
        (ranked, verdict)
    }
}

/// What would have become of another answer to an old question, where the same hosts were eligible.
#[must_use]
pub fn replace(
    question: &PlacementQuestion,
    eligible: &[u32],
    answer: Option<&PlacementAnswer>,
) -> PlacementVerdict {
    let host = |&place: &u32| question.hosts.get(usize::try_from(place).ok()?).map(|row| row.host.clone());
    let eligible = eligible.iter().filter_map(host).collect();
    let answer = answer.map_or(Answer::Unavailable, |answer| Answer::Given(answer.clone()));
    judge(question, &answer, &eligible, &Excluded::new()).1
}

/// What would have become of another answer to an old question.
#[must_use]
pub fn recount(question: &BackupCountQuestion, answer: Option<&BackupCountAnswer>) -> CountVerdict {
    backups::judge(question, &answer.map_or(Answer::Unavailable, |answer| Answer::Given(answer.clone())))
}
