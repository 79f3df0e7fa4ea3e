//! Owns leading: the bid, the rounds of planning and asking, and the writing of what was planned.
//!
//! Promises: every write rests on the leadership, on the record's revision and on the ended sessions that it was
//! decided from; what would break an invariant is not written. Must not do: decide what to write.

use std::sync::Arc;

use understudy_core::invariants;
use understudy_core::plan::{Assignment, CheckpointChange, Plan, Report, SessionEnding, plan};
use understudy_core::units::{Boottime, Now};
use understudy_core::view::View;
use understudy_store::election::{Bid, ElectionError, Leadership, lead, resign};
use understudy_store::{Committed, Condition, Revision, Txn};

use super::event::Event;
use super::{Driver, Parts, Snapshot, now};
use crate::exit::chain;
use crate::keys::{self, Key, LEADER};
use crate::policies::{Answers, Round};

/// More rounds of questions than this mean that answers lead to ever new questions: a defect.
const ROUNDS_MAX: u32 = 1_000;

/// What came of one round of planning and writing.
#[derive(Debug, Default)]
pub struct Planned {
    /// What could not be done; none where policies were not asked yet.
    pub report: Option<Report>,
    /// The newest revision that was written.
    pub revision: Option<Revision>,
    /// The leadership does not stand any more.
    pub deposed: bool,
}

impl Driver {
    pub(super) fn lead(&mut self, view: &View, now: Now) {
        if !self.session.is_open(now.boottime) || !self.may_lead(view) {
            return;
        }
        let mine = self.leading.as_ref().filter(|mine| self.cluster.leader.as_ref() == Some(*mine)).cloned();
        if self.leading.is_some() && mine.is_none() && !self.bidding {
            // The mirror may be behind one's own bid; it is another's record that ends a leadership.
            let newer = self.cluster.leader.as_ref().is_some_and(|seen| {
                self.leading.as_ref().is_some_and(|own| seen.revision() > own.revision())
            });
            if newer {
                tracing::warn!("another agent leads");
                self.leading = None;
            }
        }
        if let Some(mine) = mine.as_ref().filter(|_| self.sets_are_seen()) {
            self.settle_sets(view, mine, now);
        }
        match &self.leading {
            Some(mine) if self.plan_is_due(now.boottime) => self.plan(view, mine.clone(), now),
            Some(_) => {}
            None => self.bid(view, now.boottime),
        }
    }

    /// Bids when nobody leads, when the leader's session is over or silent, or when the leader was this agent's
    /// own earlier life.
    fn bid(&mut self, view: &View, now: Boottime) {
        let vacant = match self.cluster.leader.as_ref().and_then(|leader| leader.host().cloned()) {
            None => true,
            Some(host) if host == self.parts.config.host => true,
            Some(host) => view.hosts.get(&host).is_none_or(|seen| {
                !seen.is_open() || seen.silent_for(now) >= self.parts.config.bounds.session_end_after()
            }),
        };
        if !vacant || self.bidding {
            return;
        }
        self.bidding = true;
        let (parts, sender, previous) =
            (self.parts.clone(), self.sender.clone(), self.cluster.leader.clone());
        tokio::spawn(async move {
            let bid = lead(parts.store.as_ref(), LEADER, &parts.config.host, previous.as_ref()).await;
            let _ = sender.send(Event::Bid(bid));
        });
    }

    pub(super) fn bid_ended(&mut self, bid: Result<Bid, ElectionError>) {
        self.bidding = false;
        match bid {
            Ok(Bid::Won(leadership)) => {
                tracing::info!(term = %leadership.term(), "this agent leads");
                self.content("leader");
                self.leading = Some(leadership);
            }
            Ok(Bid::Lost(_)) => {}
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the bid for leadership failed");
                self.complain("leader", chain(&error));
            }
        }
    }

    /// A plan follows from the store and from time: without a change of the first, the second is looked at now and
    /// then. What was written must have come back first.
    fn plan_is_due(&self, now: Boottime) -> bool {
        let (revision, at) = self.last_plan;
        let changed = self.cluster.revision != revision || now.since(at) >= super::TICK;
        !self.planning && changed && self.cluster.revision >= self.planned_at
    }

    fn plan(&mut self, view: &View, mine: Leadership, now: Now) {
        self.planning = true;
        self.last_plan = (self.cluster.revision, now.boottime);
        let (parts, sender, mut view) = (self.parts.clone(), self.sender.clone(), view.clone());
        view.deficits = self.report.deficits();
        let asking = Round::new(parts.policies.deciding(&self.cluster.policies), Some(mine.term().0));
        tokio::spawn(async move {
            let planned = round(&parts, view, asking, &mine, now).await;
            let _ = sender.send(Event::Planned(Box::new(planned)));
        });
    }

    pub(super) fn plan_ended(&mut self, planned: Planned) {
        self.planning = false;
        if planned.deposed {
            tracing::warn!("a write was refused because another agent leads");
            self.leading = None;
        }
        if let Some(revision) = planned.revision {
            self.planned_at = revision;
        }
        let Some(report) = planned.report else { return };
        for (interface, reason) in &report.refusals {
            if !self.report.refusals.contains(&(*interface, reason.clone())) {
                tracing::warn!(%interface, %reason, "a policy's answer was refused, the built-in rule decided");
            }
        }
        self.report = report;
    }

    /// Gives up the leadership in order, so that the next leader need not wait for its end.
    pub(super) async fn resign(&mut self) {
        if let Some(mine) = self.leading.take()
            && let Err(error) = resign(self.parts.store.as_ref(), &mine).await
        {
            tracing::warn!(error = %chain(&error), "cannot resign the leadership");
        }
    }
}

/// One round.
pub(super) async fn round(
    parts: &Arc<Parts>,
    mut view: View,
    asking: Round,
    mine: &Leadership,
    at: Now,
) -> Planned {
    let mut planned = Planned::default();
    // A policy that takes its time holds up the one node that it is asked about, and the end of no silent session.
    let first = plan(&view, &parts.config.bounds, at);
    if let Some(unasked) = first.0.before_answers() {
        carry_out(parts, &view, &unasked, mine, &mut planned).await;
        if planned.revision.is_some() {
            return planned;
        }
    }
    match answered(parts, &mut view, first, asking, at).await {
        Ok((plan, report)) => {
            planned.report = Some(report);
            carry_out(parts, &view, &plan, mine, &mut planned).await;
        }
        Err(reason) => tracing::error!(%reason, "no plan could be made"),
    }
    planned
}

/// Writes what is planned. What one write changes is seen before the next plan is made.
async fn carry_out(parts: &Parts, view: &View, plan: &Plan, mine: &Leadership, planned: &mut Planned) {
    for ending in &plan.endings {
        tracing::warn!(host = %ending.host, reason = ?ending.record.ended, "ending a silent session");
        write(parts, mine, &ending_txn(mine, ending), planned).await;
    }
    for assignment in &plan.assignments {
        let broken = invariants::broken_by(view, assignment);
        if !broken.is_empty() {
            for broken in &broken {
                tracing::error!(node = %assignment.node, invariant = %broken.id, detail = %broken.detail, "an assignment would break an invariant and is not written: report this");
                parts.metrics.invariant_broken(&broken.id.to_string());
            }
            continue;
        }
        let node = &assignment.node;
        let epoch = assignment.record.epoch;
        if write(parts, mine, &assignment_txn(mine, assignment), planned).await {
            tracing::info!(%node, %epoch, reason = assignment.reasons.join("; "), "assignment written");
            parts.metrics.assigned(node, &assignment.record, view.nodes.get(node).map(|old| &old.value));
        }
    }
}

/// Asks what the plan wants to know, and plans again, until it wants to know nothing.
async fn answered(
    parts: &Arc<Parts>,
    view: &mut View,
    mut planned: (Plan, Report),
    mut asking: Round,
    at: Now,
) -> Result<(Plan, Report), String> {
    for _ in 0..ROUNDS_MAX {
        if !planned.0.has_questions() {
            asking.conclude(&parts.policies, std::mem::take(&mut planned.1.judged));
            return Ok(planned);
        }
        let (placements, counts);
        (asking, (placements, counts)) = ask(parts, asking, planned.0).await?;
        view.placements.extend(placements);
        view.backup_counts.extend(counts);
        planned = plan(view, &parts.config.bounds, at);
    }
    Err(format!("the plan still has questions after {ROUNDS_MAX} rounds"))
}

/// Puts a plan's questions where blocking is allowed.
async fn ask(parts: &Arc<Parts>, mut asking: Round, plan: Plan) -> Result<(Round, Answers), String> {
    let parts = parts.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let answers = asking.ask(&parts.policies, plan);
        (asking, answers)
    });
    asked.await.map_err(|error| format!("asking the policies failed: {error}"))
}

fn ending_txn(mine: &Leadership, ending: &SessionEnding) -> Txn {
    let key = Key::Session(ending.host.clone()).to_string();
    Txn::new()
        .when(mine.condition())
        .when(Condition::Unchanged(key.clone(), Revision(ending.revision)))
        .put(key, keys::encode(&ending.record))
}

fn assignment_txn(mine: &Leadership, assignment: &Assignment) -> Txn {
    let node = Key::Node(assignment.node.clone()).to_string();
    let checkpoint = Key::Checkpoint(assignment.node.clone()).to_string();
    let mut txn = Txn::new()
        .when(mine.condition())
        .when(Condition::Unchanged(node.clone(), Revision(assignment.revision)))
        .put(node, keys::encode(&assignment.record));
    for (host, revision) in &assignment.sessions {
        let key = Key::Session(host.clone()).to_string();
        txn = txn.when(Condition::Unchanged(key, Revision(*revision)));
    }
    match &assignment.checkpoint {
        CheckpointChange::Keep => txn,
        CheckpointChange::Replace(revision, record) => txn
            .when(Condition::Unchanged(checkpoint.clone(), Revision(*revision)))
            .put(checkpoint, keys::encode(record)),
        CheckpointChange::Delete(revision) => {
            txn.when(Condition::Unchanged(checkpoint.clone(), Revision(*revision))).delete(checkpoint)
        }
    }
}

/// Writes one transaction. What was refused is planned again from what stands then.
async fn write(parts: &Parts, mine: &Leadership, txn: &Txn, planned: &mut Planned) -> bool {
    match parts.store.commit(txn).await {
        Ok(Committed::Applied { revision }) => {
            planned.revision = planned.revision.max(Some(revision));
            true
        }
        Ok(Committed::Refused { revision, failed }) => {
            planned.deposed |= failed.iter().any(|key| key == mine.condition().key());
            planned.revision = planned.revision.max(Some(revision));
            tracing::debug!(?failed, "a write was overtaken");
            false
        }
        Err(error) => {
            tracing::warn!(error = %chain(&error), "a planned write failed");
            false
        }
    }
}

/// For admission: plans for a view with more nodes, asking the policies as the leader would.
pub async fn admission(
    parts: &Arc<Parts>,
    snapshot: &Snapshot,
    new: &std::collections::BTreeMap<understudy_core::ids::NodeId, understudy_core::records::NodeRecord>,
) -> Result<(), Vec<String>> {
    use understudy_core::admission::{Admission, admit};
    let mut view = snapshot.view.clone();
    let mut asking = Round::new(snapshot.deciding.clone(), None);
    for _ in 0..ROUNDS_MAX {
        let plan = match admit(&view, new, &parts.config.bounds, now()) {
            Admission::Admitted(judged) => {
                asking.conclude(&parts.policies, judged);
                return Ok(());
            }
            Admission::Refused { missing, judged } => {
                asking.conclude(&parts.policies, judged);
                return Err(missing);
            }
            Admission::Asks(plan) => plan,
        };
        let (placements, counts);
        (asking, (placements, counts)) = ask(parts, asking, plan).await.map_err(|error| vec![error])?;
        view.placements.extend(placements);
        view.backup_counts.extend(counts);
    }
    Err(vec!["the policies' answers lead to ever new questions".to_owned()])
}
