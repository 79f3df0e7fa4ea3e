//! Owns the choice of a host: which may take a member, the question to the policy, the check of its answer, and the
//! built-in rule.
//!
//! Promises: whatever a policy answers, the host chosen is open, not draining, has room, and carries no other
//! member of the node (SAFE-5). Must not do: change the node.
//!
//! Cost, with N hosts: one walk over N rows; with a policy the same once more for its answer.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::question::{PICKS, whole};
use super::rooms::Room;
use super::{Leader, ask};
use crate::model::ids::{HostId, NodeId};
use crate::model::records::Service;
use crate::model::view::Answer;
use crate::policy::{
    BuiltIn, HostRow, Interface, MemberCounts, PlacementAnswer, PlacementQuestion, PlacementVerdict, Purpose,
    RefusedPick, Unusable,
};

/// The outcome of looking for a host.
pub(super) enum Choice {
    /// The host to try.
    On(HostId),
    /// The policy has to be asked first.
    Asked,
    /// There is none, and why the hosts were left out.
    Nowhere(String),
}

/// The hosts that may take a member, by their places in the order of all hosts' names.
pub(super) struct Eligible {
    is: Vec<bool>,
    any: bool,
}

impl Eligible {
    fn at(&self, place: usize) -> bool {
        self.is.get(place).copied().unwrap_or(false)
    }
}

/// Chooses the host on which a member of `node` is put. Who takes it says so with [`Leader::chosen`].
pub(super) fn choose(leader: &mut Leader, node: &NodeId, purpose: Purpose) -> Choice {
    leader.refresh();
    let eligible = eligible(leader, node);
    if !eligible.any {
        return Choice::Nowhere(describe(leader, node));
    }
    let Some((question, first, verdict)) = decided(leader, node, purpose, &eligible) else {
        leader.batch.suspended.insert(node.clone());
        return Choice::Asked;
    };
    if let Some(why) = verdict.built_in.filter(|&why| why != BuiltIn::NoAnswer) {
        leader.batch.refusals.push((Interface::Placement, refusal(&question, &verdict, why)));
    }
    leader.batch.judged.placements.push((question, verdict));
    first.map_or_else(|| Choice::Nowhere("no host was ranked".to_owned()), Choice::On)
}

/// The question whose answer counts, the host that it comes to, and what was made of the answer; none while the policy
/// has to be asked first.
///
/// The best few are asked for first. Where they may have been cut off before the one that the plan would take, all are
/// asked for: a policy whose best few are the first of its whole order decides as if it had been asked for all at once.
fn decided(
    leader: &mut Leader,
    node: &NodeId,
    purpose: Purpose,
    eligible: &Eligible,
) -> Option<(PlacementQuestion, Option<HostId>, PlacementVerdict)> {
    let whole = whole(leader, node, purpose);
    let few = PlacementQuestion { wanted: whole.wanted.min(PICKS), ..whole.clone() };
    let (few, answer) = ask::placement(leader, few)?;
    let cut = is_cut(&few, &answer);
    let (ranked, verdict) = judged(leader, node, &few, &answer, eligible);
    if !cut || (verdict.built_in.is_none() && holds_the_taken(&few, &ranked, &verdict)) {
        return Some((few, ranked.into_iter().next(), verdict));
    }
    let (whole, answer) = ask::placement(leader, whole)?;
    let (ranked, verdict) = judged(leader, node, &whole, &answer, eligible);
    Some((whole, ranked.into_iter().next(), verdict))
}

/// Judges an answer by who is eligible at this moment, which may be later than when it was asked.
fn judged(
    leader: &Leader,
    node: &NodeId,
    question: &PlacementQuestion,
    answer: &Answer<PlacementAnswer>,
    eligible: &Eligible,
) -> (Vec<HostId>, PlacementVerdict) {
    let rooms = leader.rooms.all();
    let place = |at: usize, host: &HostId| {
        let same = rooms.get(at).is_some_and(|room| &room.host == host);
        if same { Some(at) } else { leader.rooms.place(host) }
    };
    let may = |at: usize, row: &HostRow| place(at, &row.host).is_some_and(|place| eligible.at(place));
    judge(question, answer, may, |host| exclusion(leader, node, host).unwrap_or_default(), Order::First)
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
fn holds_the_taken(question: &PlacementQuestion, ranked: &[HostId], verdict: &PlacementVerdict) -> bool {
    let is_preferred = |row: &HostRow| prefers(question.purpose, row);
    let row = |place: &u32| question.hosts.get(usize::try_from(*place).ok()?);
    let first = ranked.first().and_then(|host| question.hosts.iter().find(|row| &row.host == host));
    first.is_some_and(is_preferred) || !verdict.eligible.iter().filter_map(row).any(is_preferred)
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

impl Leader {
    /// Says that the host was taken that was chosen last.
    pub(super) fn chosen(&mut self, node: &NodeId, host: &HostId) {
        let last = self.batch.judged.placements.last_mut();
        if let Some((_, verdict)) = last.filter(|(question, _)| question.node == *node) {
            verdict.chosen = Some(host.clone());
        }
    }
}

/// Hosts that are named one by one where none will do; beyond that they are counted by reason.
const NAMED_MAX: usize = 8;

fn describe(leader: &Leader, node: &NodeId) -> String {
    let hosts = leader.rooms.all();
    if hosts.is_empty() {
        return "no host is known".to_owned();
    }
    let why = |host: &HostId| exclusion(leader, node, host).unwrap_or_else(|| "would do".to_owned());
    if hosts.len() <= NAMED_MAX {
        let all: Vec<String> =
            hosts.iter().map(|room| format!("{} {}", room.host, why(&room.host))).collect();
        return all.join(", ");
    }
    let mut counted = std::collections::BTreeMap::<String, u32>::new();
    for room in hosts {
        let kind = Bar::of(leader, node, &room.host).map_or("would do", Bar::kind);
        *counted.entry(kind.to_owned()).or_default() += 1;
    }
    let all: Vec<String> = counted.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    format!("of {} hosts {}", hosts.len(), all.join(", "))
}

/// Which hosts may take a member.
pub(super) fn eligible(leader: &Leader, node: &NodeId) -> Eligible {
    let record = leader.record(node);
    let spec = &record.spec;
    let would = |room: &Room| room.accepts && room.vcpus >= spec.vcpus && room.memory >= spec.memory;
    let mut is: Vec<bool> = leader.rooms.all().iter().map(would).collect();
    // What is free of a host for the node itself is worked out for the few hosts that it concerns.
    for host in leader.concerned(node) {
        if let Some(at) = leader.rooms.place(&host) {
            is[at] = Bar::of(leader, node, &host).is_none();
        }
    }
    let any = is.contains(&true);
    Eligible { is, any }
}

/// Why a host may not take a member.
enum Bar {
    Lost,
    Silent,
    Unable(Service),
    Draining,
    Member,
    Vcpus(String),
    Memory(String),
    Failed,
}

impl Bar {
    fn of(leader: &Leader, node: &NodeId, host: &HostId) -> Option<Self> {
        let (record, seen) = (leader.record(node), leader.view.hosts.get(host)?);
        if !seen.is_open() || leader.rooms.is_closed(host) {
            return Some(Self::Lost);
        }
        let Some(facts) = seen.current_facts() else { return Some(Self::Silent) };
        if let Some(service) = facts.unable.first() {
            return Some(Self::Unable(*service));
        }
        if seen.intent.drain {
            return Some(Self::Draining);
        }
        if record.touches(host) {
            return Some(Self::Member);
        }
        let (has, needed) = (facts.capacity.vcpus, record.spec.vcpus);
        if has < needed {
            // Processors are shared out, so that taken ones do not count: all of them together are too few.
            return Some(Self::Vcpus(format!("has {has} of {needed} needed")));
        }
        let free = leader.room(node, host);
        if free < record.spec.memory {
            return Some(Self::Memory(format!("has {free} free of {} needed", record.spec.memory)));
        }
        leader.recently_failed(record, host).then_some(Self::Failed)
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Lost => "are lost",
            Self::Silent => "have not reported yet",
            Self::Unable(_) => "cannot do their part",
            Self::Draining => "are draining",
            Self::Member => "have a member of this node",
            Self::Vcpus(_) => "have too few processors",
            Self::Memory(_) => "have too little memory free",
            Self::Failed => "failed with it a moment ago",
        }
    }
}

/// Why a host may not take a member of a node, for people.
pub(super) fn exclusion(leader: &Leader, node: &NodeId, host: &HostId) -> Option<String> {
    Some(match Bar::of(leader, node, host)? {
        Bar::Lost => "is lost".to_owned(),
        Bar::Silent => "has not reported yet".to_owned(),
        Bar::Unable(service) => format!("its {service} does not answer"),
        Bar::Draining => "is draining".to_owned(),
        Bar::Member => "has a member of this node".to_owned(),
        Bar::Vcpus(text) | Bar::Memory(text) => text,
        Bar::Failed => "failed with it a moment ago".to_owned(),
    })
}

/// How much of an order is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The host that is tried first is enough where the built-in rule decides.
    First,
    /// All of it, for people.
    Whole,
}

/// What an answer comes to: only hosts that may take the member, each once, in the order in which they are tried. The
/// built-in rule decides where nothing of it is of use.
pub(super) fn judge(
    question: &PlacementQuestion,
    answer: &Answer<PlacementAnswer>,
    may: impl Fn(usize, &HostRow) -> bool,
    why_not: impl Fn(&HostId) -> String,
    order: Order,
) -> (Vec<HostId>, PlacementVerdict) {
    let (picked, refused, built_in) = match answer {
        Answer::Unavailable => (Vec::new(), Vec::new(), Some(BuiltIn::NoAnswer)),
        Answer::Given(answer) => {
            let (picked, refused) = check(question, answer, &may, why_not);
            let built_in = match (picked.is_empty(), refused.is_empty()) {
                (false, _) => None,
                (true, true) => Some(BuiltIn::NothingPicked),
                (true, false) => Some(BuiltIn::NothingUsable),
            };
            (picked, refused, built_in)
        }
    };
    let rows = question.hosts.iter().enumerate().filter(|(at, row)| may(*at, row));
    let mut eligible: Vec<u32> = Vec::with_capacity(question.hosts.len());
    eligible.extend(rows.filter_map(|(at, _)| u32::try_from(at).ok()));
    let row = |at: &usize| &question.hosts[*at];
    let mut ranked: Vec<usize> = match (built_in, order) {
        (None, _) => picked,
        (Some(_), order) => self::built_in(question, &eligible, order),
    };
    ranked.sort_by_key(|at| !prefers(question.purpose, row(at)));
    let ranked: Vec<HostId> = ranked.iter().map(|at| row(at).host.clone()).collect();
    let first = ranked.first().cloned();
    (ranked, PlacementVerdict { eligible, first, chosen: None, refused, built_in })
}

/// Whether a host is tried before those that are not, whatever its rank: where a terminal waits for its primary, the
/// order of failover puts an idle instance before a new one. Nobody waits for a backup, which goes where the policy
/// wants it.
fn prefers(purpose: Purpose, row: &HostRow) -> bool {
    match purpose {
        Purpose::Primary => row.idle.values().any(|&count| count > 0),
        Purpose::WarmBackup | Purpose::HeldBackup | Purpose::Migration => false,
    }
}

fn check(
    question: &PlacementQuestion,
    answer: &PlacementAnswer,
    may: impl Fn(usize, &HostRow) -> bool,
    why_not: impl Fn(&HostId) -> String,
) -> (Vec<usize>, Vec<RefusedPick>) {
    let mut ranked = Vec::new();
    let mut taken = BTreeSet::new();
    let mut refused = Vec::new();
    for pick in &answer.picks {
        let at = usize::try_from(pick.index).unwrap_or(usize::MAX);
        let (host, why, detail) = match question.hosts.get(at) {
            None => (None, Unusable::NoHost, format!("is not one of {} hosts", question.hosts.len())),
            Some(row) if !may(at, row) => (Some(row), Unusable::NotEligible, why_not(&row.host)),
            Some(row) if taken.contains(&at) => {
                (Some(row), Unusable::Repeated, "was picked before".to_owned())
            }
            Some(_) => {
                taken.insert(at);
                ranked.push(at);
                continue;
            }
        };
        refused.push(RefusedPick { index: pick.index, host: host.map(|row| row.host.clone()), why, detail });
    }
    (ranked, refused)
}

/// Without a policy: few members of this terminal first, then few members, then much free memory, then the name.
fn built_in(question: &PlacementQuestion, eligible: &[u32], order: Order) -> Vec<usize> {
    let siblings: Vec<usize> =
        question.siblings.iter().filter_map(|sibling| question.hosts.place_of(&sibling.host)).collect();
    let siblings = |at: usize| siblings.iter().filter(|place| **place == at).count();
    let rank = |at: usize, row: &HostRow| {
        let MemberCounts { display_primaries, display_backups, execution_primaries, execution_backups } =
            row.members;
        let members = display_primaries + display_backups + execution_primaries + execution_backups;
        (siblings(at), members, Reverse(row.free_memory))
    };
    let places = eligible.iter().filter_map(|at| usize::try_from(*at).ok());
    match order {
        Order::First => {
            // Names are looked at only where nothing else tells two hosts apart.
            let mut best: Option<(usize, _, &HostId)> = None;
            for at in places {
                let row = &question.hosts[at];
                let this = (!prefers(question.purpose, row), rank(at, row));
                let is_better = match &best {
                    None => true,
                    Some((_, best, host)) => this < *best || (this == *best && row.host < **host),
                };
                if is_better {
                    best = Some((at, this, &row.host));
                }
            }
            best.into_iter().map(|(at, ..)| at).collect()
        }
        Order::Whole => {
            let key = |at: usize| (rank(at, &question.hosts[at]), &question.hosts[at].host);
            let mut places: Vec<usize> = places.collect();
            places.sort_by(|one, other| key(*one).cmp(&key(*other)));
            places
        }
    }
}
