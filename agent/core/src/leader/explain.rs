//! Owns the explanation of a placement: the question for a node's next member, and what would become of its answer.
//!
//! Promises: the same question, the same eligible hosts and the same check as the plan's. Must not do: change anything.

use std::collections::{BTreeMap, BTreeSet};

use super::place::{Order, exclusion, judge};
use super::question::whole;
use super::{Input, Leader, backups};
use crate::bounds::Bounds;
use crate::model::ids::{HostId, NodeId};
use crate::model::units::Now;
use crate::model::view::{Answer, Liveness, View};
use crate::policy::{
    BackupCountAnswer, BackupCountQuestion, CountVerdict, HostRow, PlacementAnswer, PlacementQuestion,
    PlacementVerdict, Purpose,
};

/// Where the next member of a node could go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What the policy would be asked, with reasons.
    pub question: PlacementQuestion,
    /// Hosts that may take the member.
    pub eligible: BTreeSet<HostId>,
    /// Why each other host may not.
    pub excluded: BTreeMap<HostId, String>,
}

/// Where the next member of `node` could go: its primary if it has none that lives, else another backup. None where
/// there is no such node.
#[must_use]
pub fn explain(view: &View, node: &NodeId, bounds: &Bounds, now: Now) -> Option<Explanation> {
    let record = &view.nodes.get(node)?.value;
    let lives =
        record.primary.as_ref().is_some_and(|primary| view.liveness(record, primary) == Liveness::Alive);
    let purpose = match (lives, record.holds_places(node.role())) {
        (false, _) => Purpose::Primary,
        (true, true) => Purpose::HeldBackup,
        (true, false) => Purpose::WarmBackup,
    };
    let mut leader = Leader::new(*bounds);
    leader.take(Input::View(view.clone()), now);
    if !lives {
        // As the plan does: the dead primary's host may take the new one, and has its room.
        leader.change_quietly(node, |record| record.primary = None);
        leader.refresh();
    }
    let why = |host: &HostId| (host.clone(), exclusion(&leader, node, host));
    let all: Vec<(HostId, Option<String>)> = view.hosts.keys().map(why).collect();
    let question = PlacementQuestion { reasons: true, ..whole(&mut leader, node, purpose) };
    let (mut eligible, mut excluded) = (BTreeSet::new(), BTreeMap::new());
    for (host, why) in all {
        match why {
            Some(why) => drop(excluded.insert(host, why)),
            None => drop(eligible.insert(host)),
        }
    }
    Some(Explanation { question, eligible, excluded })
}

impl Explanation {
    /// The hosts in the order in which they would be tried, and what would become of the answer. Without one the built-in rule
    /// decides.
    #[must_use]
    pub fn judge(&self, answer: Option<&PlacementAnswer>) -> (Vec<HostId>, PlacementVerdict) {
        let answer = answer.map_or(Answer::Unavailable, |answer| Answer::Given(answer.clone()));
        let may = |_: usize, row: &HostRow| self.eligible.contains(&row.host);
        let why = |host: &HostId| self.excluded.get(host).cloned().unwrap_or_default();
        let (ranked, mut verdict) = judge(&self.question, &answer, may, why, Order::Whole);
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
    let eligible: BTreeSet<u32> = eligible.iter().copied().collect();
    let may = |at: usize, _: &HostRow| u32::try_from(at).is_ok_and(|at| eligible.contains(&at));
    let answer = answer.map_or(Answer::Unavailable, |answer| Answer::Given(answer.clone()));
    judge(question, &answer, may, |_| String::new(), Order::First).1
}

/// What would have become of another answer to an old question.
#[must_use]
pub fn recount(question: &BackupCountQuestion, answer: Option<&BackupCountAnswer>) -> CountVerdict {
    backups::judge(question, &answer.map_or(Answer::Unavailable, |answer| Answer::Given(answer.clone())))
}
