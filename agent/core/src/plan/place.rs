//! Owns the choice of a host: the question to the policy, the check of its answer, and the built-in rule.
//!
//! Promises: whatever a policy answers, the host chosen is open, not draining, has room, and carries no other
//! member of the node (SAFE-5). Must not do: change the node.

use std::collections::{BTreeMap, BTreeSet};

use super::Draft;
use super::question::{question, whole};
use crate::ids::{HostId, NodeId};
use crate::policy::{
    BuiltIn, HostRow, Interface, MemberCounts, PlacementAnswer, PlacementQuestion, PlacementVerdict, Purpose,
    RefusedPick, Unusable,
};
use crate::view::{Answer, HostView};

/// The outcome of looking for a host.
pub(super) enum Choice {
    /// The hosts that will do, in the order in which they are tried; one at least.
    Ranked(Vec<HostId>),
    /// The policy has to be asked first.
    Asked,
    /// There is none, and why each host was left out.
    Nowhere(String),
}

/// Why each host that may not take a member may not.
pub(super) type Excluded = BTreeMap<HostId, String>;

/// Ranks the hosts on which a member of `node` may be put. Who takes one of them says so with [`Draft::chosen`].
pub(super) fn rank(draft: &mut Draft<'_>, node: &NodeId, purpose: Purpose) -> Choice {
    let (eligible, excluded) = eligible(draft, node);
    if eligible.is_empty() {
        return Choice::Nowhere(describe(&excluded));
    }
    let Some((question, ranked, verdict)) = decided(draft, node, purpose, &eligible, &excluded) else {
        return Choice::Asked;
    };
    if let Some(why) = verdict.built_in.filter(|&why| why != BuiltIn::NoAnswer) {
        draft.report.refusals.push((Interface::Placement, refusal(&question, &verdict, why)));
    }
    draft.report.judged.placements.push((question, verdict));
    Choice::Ranked(ranked)
}

/// The question whose answer counts, and what that comes to; none while the policy has to be asked first.
///
/// The best few are asked for first. Where they may have been cut off before the one that the plan would take, all are
/// asked for: a policy whose best few are the first of its whole order decides as if it had been asked for all at once.
fn decided(
    draft: &mut Draft<'_>,
    node: &NodeId,
    purpose: Purpose,
    eligible: &BTreeSet<HostId>,
    excluded: &Excluded,
) -> Option<(PlacementQuestion, Vec<HostId>, PlacementVerdict)> {
    let few = question(draft, node, purpose);
    let answer = asked(draft, &few)?;
    let ((ranked, verdict), cut) = (judge(&few, answer, eligible, excluded), is_cut(&few, answer));
    if !cut || (verdict.built_in.is_none() && holds_the_taken(&few, &ranked, eligible)) {
        return Some((few, ranked, verdict));
    }
    let whole = whole(draft, node, purpose);
    let (ranked, verdict) = judge(&whole, asked(draft, &whole)?, eligible, excluded);
    Some((whole, ranked, verdict))
}

/// The answer, if it is known; else the plan asks for it.
fn asked<'a>(draft: &'a mut Draft<'_>, question: &PlacementQuestion) -> Option<&'a Answer<PlacementAnswer>> {
    if !draft.view.placements.contains_key(question) {
        draft.plan.placements.push(question.clone());
    }
    draft.view.placements.get(question)
}

/// Whether there may be more picks than were asked for.
fn is_cut(question: &PlacementQuestion, answer: &Answer<PlacementAnswer>) -> bool {
    let wanted = usize::try_from(question.wanted).unwrap_or(usize::MAX);
    match answer {
        Answer::Unavailable => false,
        Answer::Given(answer) => wanted < question.hosts.len() && answer.picks.len() >= wanted,
    }
}

/// Whether the host that is taken of a whole order is the first of `ranked`, which is the beginning of that order.
fn holds_the_taken(question: &PlacementQuestion, ranked: &[HostId], eligible: &BTreeSet<HostId>) -> bool {
    let with_idle = preferred(question);
    let is_preferred = |host: &HostId| with_idle.contains(host);
    ranked.first().is_some_and(is_preferred) || !eligible.iter().any(is_preferred)
}

/// Why an answer was refused as a whole, for people.
fn refusal(question: &PlacementQuestion, verdict: &PlacementVerdict, why: BuiltIn) -> String {
    let picks: Vec<String> = verdict.refused.iter().map(ToString::to_string).collect();
    let why = match why {
        BuiltIn::NothingPicked => "it picked nothing".to_owned(),
        BuiltIn::NoAnswer | BuiltIn::NothingUsable | BuiltIn::OutOfBounds => picks.join(", "),
    };
    format!("placement of {}: {why}", question.node)
}

impl Draft<'_> {
    /// Says which host was taken of those that were ranked last.
    pub(super) fn chosen(&mut self, node: &NodeId, host: &HostId) {
        let last = self.report.judged.placements.last_mut();
        if let Some((_, verdict)) = last.filter(|(question, _)| question.node == *node) {
            verdict.chosen = Some(host.clone());
        }
    }
}

fn describe(excluded: &BTreeMap<HostId, String>) -> String {
    if excluded.is_empty() {
        return "no host is known".to_owned();
    }
    excluded.iter().map(|(host, why)| format!("{host} {why}")).collect::<Vec<_>>().join(", ")
}

/// Hosts that may take a member, and why the others may not.
pub(super) fn eligible(draft: &Draft<'_>, node: &NodeId) -> (BTreeSet<HostId>, Excluded) {
    let record = draft.record(node);
    let mut eligible = BTreeSet::new();
    let mut excluded = BTreeMap::new();
    for (host, seen) in &draft.view.hosts {
        match exclusion(draft, node, host, seen) {
            Some(why) => {
                excluded.insert(host.clone(), why);
            }
            None if draft.recently_failed(record, host) => {
                excluded.insert(host.clone(), "failed with it a moment ago".to_owned());
            }
            None => {
                eligible.insert(host.clone());
            }
        }
    }
    (eligible, excluded)
}

fn exclusion(draft: &Draft<'_>, node: &NodeId, host: &HostId, seen: &HostView) -> Option<String> {
    let record = draft.record(node);
    if !seen.is_open() {
        return Some("is lost".to_owned());
    }
    let Some(facts) = seen.current_facts() else { return Some("has not reported yet".to_owned()) };
    if seen.intent.drain {
        return Some("is draining".to_owned());
    }
    if record.touches(host) {
        return Some("has a member of this node".to_owned());
    }
    let (has, needed) = (facts.capacity.vcpus, record.spec.vcpus);
    if has < needed {
        // Processors are shared out, so that taken ones do not count: all of them together are too few.
        return Some(format!("has {has} of {needed} needed"));
    }
    let free = draft.room(node, host);
    if free < record.spec.memory {
        return Some(format!("has {free} free of {} needed", record.spec.memory));
    }
    None
}

/// What an answer comes to: only eligible hosts, each once, in the order in which they are tried. The built-in rule
/// decides where nothing of it is of use.
pub(super) fn judge(
    question: &PlacementQuestion,
    answer: &Answer<PlacementAnswer>,
    eligible: &BTreeSet<HostId>,
    excluded: &Excluded,
) -> (Vec<HostId>, PlacementVerdict) {
    let (ranked, refused, built_in) = match answer {
        Answer::Unavailable => (Vec::new(), Vec::new(), Some(BuiltIn::NoAnswer)),
        Answer::Given(answer) => {
            let (ranked, refused) = check(question, answer, eligible, excluded);
            let built_in = match (ranked.is_empty(), refused.is_empty()) {
                (false, _) => None,
                (true, true) => Some(BuiltIn::NothingPicked),
                (true, false) => Some(BuiltIn::NothingUsable),
            };
            (ranked, refused, built_in)
        }
    };
    let mut ranked = if built_in.is_some() { self::built_in(question, eligible) } else { ranked };
    let with_idle = preferred(question);
    ranked.sort_by_key(|host| !with_idle.contains(host));
    let places = question.hosts.iter().zip(0..).filter(|(row, _)| eligible.contains(&row.host));
    let eligible = places.map(|(_, place)| place).collect();
    let first = ranked.first().cloned();
    (ranked, PlacementVerdict { eligible, first, chosen: None, refused, built_in })
}

/// The hosts that are tried before the others, whatever their rank: where a terminal waits for its primary, the ladder
/// puts an idle instance before a new one. Nobody waits for a backup, which goes where the policy wants it.
fn preferred(question: &PlacementQuestion) -> BTreeSet<&HostId> {
    let with_idle = question.hosts.iter().filter(|row| row.idle.values().any(|&count| count > 0));
    match question.purpose {
        Purpose::Primary => with_idle.map(|row| &row.host).collect(),
        Purpose::WarmBackup | Purpose::HeldBackup | Purpose::Migration => BTreeSet::new(),
    }
}

/// Takes an answer apart.
fn check(
    question: &PlacementQuestion,
    answer: &PlacementAnswer,
    eligible: &BTreeSet<HostId>,
    excluded: &Excluded,
) -> (Vec<HostId>, Vec<RefusedPick>) {
    let mut ranked: Vec<HostId> = Vec::new();
    let mut taken = BTreeSet::new();
    let mut refused = Vec::new();
    for pick in &answer.picks {
        let row = usize::try_from(pick.index).ok().and_then(|index| question.hosts.get(index));
        let host = row.map(|row| row.host.clone());
        let (why, detail) = match &host {
            None => (Unusable::NoHost, format!("is not one of {} hosts", question.hosts.len())),
            Some(host) if !eligible.contains(host) => {
                (Unusable::NotEligible, excluded.get(host).cloned().unwrap_or_default())
            }
            Some(host) if taken.contains(host) => (Unusable::Repeated, "was picked before".to_owned()),
            Some(host) => {
                taken.insert(host.clone());
                ranked.push(host.clone());
                continue;
            }
        };
        refused.push(RefusedPick { index: pick.index, host, why, detail });
    }
    (ranked, refused)
}

/// Without a policy: few members of this terminal first, then few members, then much free memory, then the name.
fn built_in(question: &PlacementQuestion, eligible: &BTreeSet<HostId>) -> Vec<HostId> {
    let mut rows: Vec<&HostRow> = question.hosts.iter().filter(|row| eligible.contains(&row.host)).collect();
    let siblings = |host: &HostId| question.siblings.iter().filter(|sibling| &sibling.host == host).count();
    rows.sort_by_key(|row| {
        let MemberCounts { display_primaries, display_backups, execution_primaries, execution_backups } =
            row.members;
        let members = display_primaries + display_backups + execution_primaries + execution_backups;
        (siblings(&row.host), members, std::cmp::Reverse(row.free_memory), &row.host)
    });
    rows.into_iter().map(|row| row.host.clone()).collect()
}
