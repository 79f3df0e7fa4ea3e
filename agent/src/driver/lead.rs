//! Owns leading: the bid, the leader's machine, and the writing and asking of what it decides.
//!
//! Promises: every write rests on the leadership, on the record's revision and on the ended sessions that it was decided
//! from; what would break an invariant is not written; after a write of which the outcome is not known this agent leads
//! in a new term or not at all, so that the write cannot come after the next decision. Must not do: decide what to write.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Semaphore;
use understudy_core::ids::{HostId, NodeId};
use understudy_core::invariants;
use understudy_core::leader::{
    Admission, Assignment, CheckpointChange, Decisions, Input, Leader, Outcome, Policies as Asked, Question,
    Reply, Report, SessionEnding, Trial,
};
use understudy_core::policy::Interface;
use understudy_core::records::NodeRecord;
use understudy_core::units::Now;
use understudy_core::view::View;
use understudy_store::election::{Bid, ElectionError, Leadership, Term, lead, resign};
use understudy_store::{Committed, Condition, Revision, Txn};

use super::event::Event;
use super::{Driver, Parts, now};
use crate::exit::chain;
use crate::keys::{self, Key, LEADER};
use crate::policies::{Deciding, Exchange, Open};

/// Writes that are under way at one time. Each is a round trip to the store and a sync of its log there.
const WRITES_MAX: usize = 32;
/// Steps of questions that an admission may take: more mean that answers lead to ever new questions, which is a defect.
const STEPS_MAX: u32 = 1_000;

/// The leader's machine under one leadership.
pub(super) struct Leading {
    mine: Leadership,
    machine: Leader,
    /// The revision of the store that it has seen.
    seen: Revision,
    deciding: Deciding,
    version: u64,
    open: Open,
    writes: Arc<Semaphore>,
}

/// What came of something that the leader wanted done, under the term in which it was.
#[derive(Debug)]
pub struct Done {
    term: Term,
    what: What,
}

/// See [`Done`].
#[derive(Debug)]
enum What {
    Assigned {
        node: NodeId,
        written: Written,
    },
    Ended {
        host: HostId,
        written: Written,
    },
    Answered(Box<(Reply, Exchange)>),
    /// Whoever asked ended early.
    Unanswered(Box<Question>),
}

/// What came of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Applied(Revision),
    /// Something that it is conditional on had changed; whether that was the leadership.
    Refused {
        deposed: bool,
    },
    /// It may be applied yet.
    Unknown,
}

impl Leading {
    fn new(mine: Leadership, parts: &Parts) -> Self {
        Self {
            mine,
            machine: Leader::new(parts.config.bounds),
            seen: Revision(0),
            deciding: Deciding::default(),
            version: 0,
            open: Open::default(),
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
        }
    }

    /// What cannot be done, and what is lacking.
    pub(super) fn report(&self) -> &Report {
        self.machine.report()
    }

    /// Whether something that was decided is on its way to the store.
    pub(super) fn is_writing(&self) -> bool {
        self.machine.is_writing()
    }

    /// The machine as it is, to try something with.
    pub(super) fn machine(&self) -> &Leader {
        &self.machine
    }
}

impl Driver {
    pub(super) fn lead(&mut self, view: &View, now: Now) {
        // Who does not see renewals knows of nobody's silence.
        if !self.lease.is_open(now.boottime) || !self.cluster.follows_renewals() || !self.may_lead(view) {
            return;
        }
        let seen = self.seen_leadership();
        let mine = self.leadership.clone().filter(|mine| seen.as_ref() == Some(mine));
        if self.leadership.is_some() && mine.is_none() && !self.bidding {
            // The mirror may be behind one's own bid; it is another's record that ends a leadership.
            let newer = seen.is_some_and(|seen| {
                self.leadership.as_ref().is_some_and(|own| seen.revision() > own.revision())
            });
            if newer {
                tracing::warn!("another agent leads");
                self.stop_leading();
            }
        }
        if let Some(mine) = &mine
            && (!self.sets_are_seen() || self.settle_sets(view, mine, now))
        {
            return;
        }
        match (&self.leadership, mine) {
            (Some(_), Some(mine)) => self.decide(view, mine, now),
            (Some(_), None) => {}
            (None, _) => self.bid(view, now),
        }
    }

    /// The leadership that the store cache shows.
    pub(super) fn seen_leadership(&self) -> Option<Leadership> {
        self.cluster.leader.as_ref().map(|known| Leadership::seen(LEADER, known))
    }

    /// Bids when nobody leads, when the leader's session is over or silent, or when the leader was this agent's
    /// own earlier life, or its own earlier term.
    fn bid(&mut self, view: &View, now: Now) {
        let vacant = match self.cluster.leader.as_ref().and_then(|leader| leader.value.host.clone()) {
            None => true,
            Some(host) if host == self.parts.config.host => true,
            Some(host) => view.hosts.get(&host).is_none_or(|seen| {
                let silent = seen.silent_for(now.boottime);
                !seen.is_open() || silent >= self.parts.config.bounds.session_end_after()
            }),
        };
        if !vacant || self.bidding {
            return;
        }
        self.bidding = true;
        let (parts, sender, previous) = (self.parts.clone(), self.sender.clone(), self.seen_leadership());
        self.parts.tasks.spawn("bid", async move {
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
                self.leadership = Some(leadership);
            }
            Ok(Bid::Lost(_)) => {}
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the bid for leadership failed");
                self.complain("leader", chain(&error));
            }
        }
    }

    /// Nothing of this leadership counts any more. What is under way is conditional on it.
    pub(super) fn stop_leading(&mut self) -> Option<Leadership> {
        self.leading = None;
        self.leadership.take()
    }

    /// Tells the machine what the store holds by now, who is asked, and the time; and does what it wants.
    pub(super) fn decide(&mut self, view: &View, mine: Leadership, now: Now) {
        let revision = Revision(self.cluster.revision);
        let deciding = self.parts.policies.deciding(&self.cluster.policies);
        let parts = Arc::clone(&self.parts);
        if self.leading.as_ref().is_none_or(|leading| leading.mine != mine) {
            self.leading = Some(Leading::new(mine, &parts));
        }
        let Some(leading) = &mut self.leading else { return };
        let mut inputs = Vec::new();
        if leading.version == 0 || !leading.deciding.is_same(&deciding) {
            leading.version += 1;
            leading.deciding = deciding;
            let asked = asked(&leading.deciding, leading.version);
            inputs.push(Input::Policies(asked));
        }
        if leading.seen != revision {
            leading.seen = revision;
            inputs.push(Input::View(view.clone()));
        } else if leading.machine.next_due().is_some_and(|due| due <= now.boottime) {
            inputs.push(Input::Tick);
        }
        for input in inputs {
            let Some(leading) = &mut self.leading else { return };
            let decisions = leading.machine.handle(input, now);
            self.carry_out(decisions);
        }
    }

    /// Something that the leader wanted is done.
    pub(super) fn done(&mut self, done: Done) {
        let Some(leading) = &mut self.leading else { return };
        if leading.mine.term() != done.term {
            return;
        }
        let now = now();
        let written = match &done.what {
            What::Assigned { written, .. } | What::Ended { written, .. } => Some(*written),
            What::Answered(_) | What::Unanswered(_) => None,
        };
        match written {
            Some(Written::Refused { deposed: true }) => {
                tracing::warn!("a write was refused because another agent leads");
                self.stop_leading();
                return;
            }
            // It may still be applied: a new term keeps it from coming after what is decided next.
            Some(Written::Unknown) => {
                tracing::warn!(term = %done.term, "the outcome of a write is not known: a new term begins");
                self.stop_leading();
                return;
            }
            Some(Written::Refused { deposed: false } | Written::Applied(_)) | None => {}
        }
        let input = match done.what {
            What::Assigned { node, written } => Input::Written(node, written.outcome()),
            What::Ended { host, written } => Input::Ended(host, written.outcome()),
            What::Answered(answered) => {
                let (reply, exchange) = *answered;
                leading.open.keep(&self.parts.policies, Some(done.term.0), exchange);
                Input::Reply(reply)
            }
            What::Unanswered(question) => Input::Reply(Reply::unavailable(*question)),
        };
        let decisions = leading.machine.handle(input, now);
        self.carry_out(decisions);
    }

    /// Has everything done that the machine wants, side by side.
    fn carry_out(&mut self, decisions: Decisions) {
        let Some(leading) = &mut self.leading else { return };
        let view = leading.machine.decided_from().clone();
        let (parts, mine) = (&self.parts, &leading.mine);
        let Decisions { endings, assignments, questions, refusals, judged } = decisions;
        for (interface, reason) in refusals {
            tracing::warn!(%interface, %reason, "a policy's answer was refused, the built-in rule decided");
        }
        leading.open.conclude(&parts.policies, &leading.deciding, Some(mine.term().0), judged);
        let (term, sender, writes) = (mine.term(), self.sender.clone(), Arc::clone(&leading.writes));
        let tell = move |what: What| {
            let _ = sender.send(Event::Led(Box::new(Done { term, what })));
        };
        for ending in endings {
            tracing::warn!(host = %ending.host, reason = ?ending.record.ended, "ending a silent session");
            let (parts, mine, tell) = (Arc::clone(parts), mine.clone(), tell.clone());
            let tasks = parts.tasks.clone();
            tasks.spawn("end of a silent lease", async move {
                let written = write(&parts, &mine, &ending_txn(&mine, &ending)).await;
                tell(What::Ended { host: ending.host, written });
            });
        }
        for assignment in assignments {
            let node = assignment.node.clone();
            if breaks(parts, &view, &assignment) {
                tell(What::Assigned { node, written: Written::Refused { deposed: false } });
                continue;
            }
            let (parts, mine, tell) = (Arc::clone(parts), mine.clone(), tell.clone());
            let (writes, old) = (Arc::clone(&writes), view.nodes.get(&node).cloned());
            let tasks = parts.tasks.clone();
            tasks.spawn("assignment", async move {
                let Ok(_permit) = writes.acquire().await else { return };
                let written = write(&parts, &mine, &assignment_txn(&mine, &assignment)).await;
                if let Written::Applied(_) = written {
                    let Assignment { record, reasons, .. } = &assignment;
                    tracing::info!(%node, epoch = %record.epoch, reason = reasons.join("; "), "assignment written");
                    parts.metrics.assigned(&node, record, old.as_ref().map(|old| &old.value));
                }
                tell(What::Assigned { node, written });
            });
        }
        for question in questions {
            let (parts, deciding, tell) = (Arc::clone(parts), leading.deciding.clone(), tell.clone());
            parts.tasks.clone().spawn("question to a policy", async move {
                match ask(&parts, &deciding, question.clone()).await {
                    Ok(answered) => tell(What::Answered(Box::new(answered))),
                    Err(reason) => {
                        tracing::error!(%reason, "a question was not answered, the built-in rule decides");
                        tell(What::Unanswered(Box::new(question)));
                    }
                }
            });
        }
    }

    /// Gives up the leadership in order, so that the next leader need not wait for its end.
    pub(super) async fn resign(&mut self) {
        if let Some(mine) = self.stop_leading()
            && let Err(error) = resign(self.parts.store.as_ref(), &mine).await
        {
            tracing::warn!(error = %chain(&error), "cannot resign the leadership");
        }
    }

    /// A leader to try new nodes with: this agent's own, else one that begins with what this agent knows.
    pub(super) fn trial(&self, new: &BTreeMap<NodeId, NodeRecord>) -> Trial {
        if let Some(leading) = &self.leading {
            return Trial::new(leading.machine(), new, now());
        }
        let deciding = self.parts.policies.deciding(&self.cluster.policies);
        trial(&self.parts, &deciding, self.cluster.view(), new)
    }
}

/// Who is asked of those that decide.
fn asked(deciding: &Deciding, version: u64) -> Asked {
    let asks = |interface| deciding.asks(interface);
    Asked { placement: asks(Interface::Placement), backup_count: asks(Interface::BackupCount), version }
}

/// A trial of new nodes in `view`, where this agent does not lead: all other nodes are decided about first.
#[must_use]
pub fn trial(parts: &Parts, deciding: &Deciding, view: &View, new: &BTreeMap<NodeId, NodeRecord>) -> Trial {
    let (mut machine, now) = (Leader::new(parts.config.bounds), now());
    machine.handle(Input::Policies(asked(deciding, 1)), now);
    // What it decides here nobody writes: it stands as decided.
    machine.handle(Input::View(view.clone()), now);
    Trial::new(&machine, new, now)
}

impl Written {
    /// As the machine is told. It is not told of an outcome that is not known.
    fn outcome(self) -> Outcome {
        match self {
            Self::Applied(revision) => Outcome::Applied(revision.0),
            Self::Refused { .. } | Self::Unknown => Outcome::Refused,
        }
    }
}

/// Whether writing an assignment would break an invariant: that is a defect, and is told.
fn breaks(parts: &Parts, view: &View, assignment: &Assignment) -> bool {
    let broken = invariants::broken_by(view, assignment);
    for broken in &broken {
        tracing::error!(node = %assignment.node, invariant = %broken.id, detail = %broken.detail, "an assignment would break an invariant and is not written: report this");
        parts.metrics.invariant_broken(&broken.id.to_string());
    }
    !broken.is_empty()
}

fn ending_txn(mine: &Leadership, ending: &SessionEnding) -> Txn {
    let key = Key::Session(ending.host.clone()).to_string();
    let renewal = Key::Renewal(ending.host.clone()).to_string();
    let unchanged = match ending.renewed {
        0 => Condition::Absent(renewal),
        renewed => Condition::Unchanged(renewal, Revision(renewed)),
    };
    Txn::new()
        .when(mine.condition())
        .when(unchanged)
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

/// Writes one transaction.
async fn write(parts: &Parts, mine: &Leadership, txn: &Txn) -> Written {
    match parts.store.commit(txn).await {
        Ok(Committed::Applied { revision }) => Written::Applied(revision),
        Ok(Committed::Refused { failed, .. }) => {
            tracing::debug!(?failed, "a write was overtaken");
            Written::Refused { deposed: failed.iter().any(|key| key == mine.condition().key()) }
        }
        Err(error) => {
            tracing::warn!(error = %chain(&error), "a planned write failed");
            Written::Unknown
        }
    }
}

/// Whether new nodes fit, by a trial that asks the policies as the leader would; what is missing if not.
pub async fn admission(parts: &Arc<Parts>, deciding: &Deciding, mut trial: Trial) -> Result<(), Vec<String>> {
    let (mut open, mut replies) = (Open::default(), Vec::new());
    for _ in 0..STEPS_MAX {
        let (questions, judged, fits) = match trial.step(std::mem::take(&mut replies), now()) {
            Admission::Asks(questions) => (questions, None, Ok(())),
            Admission::Admitted(judged) => (Vec::new(), Some(judged), Ok(())),
            Admission::Refused { missing, judged } => (Vec::new(), Some(judged), Err(missing)),
        };
        if let Some(judged) = judged {
            open.conclude(&parts.policies, deciding, None, judged);
            return fits;
        }
        for question in questions {
            let (reply, exchange) = ask(parts, deciding, question).await.map_err(|error| vec![error])?;
            open.keep(&parts.policies, None, exchange);
            replies.push(reply);
        }
    }
    Err(vec!["the policies' answers lead to ever new questions".to_owned()])
}

/// Puts a question where blocking is allowed.
async fn ask(
    parts: &Arc<Parts>,
    deciding: &Deciding,
    question: Question,
) -> Result<(Reply, Exchange), String> {
    let (parts, deciding) = (Arc::clone(parts), deciding.clone());
    let asked = tokio::task::spawn_blocking(move || Exchange::put(&parts.policies, deciding, question));
    asked.await.map_err(|error| format!("asking the policies failed: {error}"))
}
