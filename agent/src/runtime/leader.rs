//! Owns the loop's side of core's `Leadership`: what it is shown, where its effects go, its questions to the policies, its
//! notices in the log; and trials of new nodes.
//!
//! Promises: every effect comes back as an event, once, but a question to a host that does not answer. Must not do: decide when
//! to bid, what to write or what an outcome means (core does), or write itself (`effects::store::leader` does).

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use understudy_core::bounds::ASK_AGAIN;
use understudy_core::leader::leadership::{Asking, BidOutcome, Effect, FailedPolicy, Input, Notice, Seen};
use understudy_core::leader::{
    Admission, AskCopies, Input as LeaderInput, Leader, Policies as Asked, Question, Reply, Trial,
};
use understudy_core::model::ids::{NodeId, Term};
use understudy_core::model::records::NodeRecord;
use understudy_core::model::units::Now;
use understudy_core::model::view::View;
use understudy_core::policy::Interface;
use understudy_store::election::{Bid, ElectionError};

use super::effects::checkpoint::kept_on;
use super::effects::store::leader as writes;
use super::event::Event;
use super::{Parts, Runtime, now};
use crate::exit::chain;
use crate::peers;
use crate::policy_manager::{Deciding, Exchange, Open};

/// Steps of questions that an admission may take: more mean that answers lead to ever new questions, which is a defect.
const STEPS_MAX: u32 = 1_000;

/// What the leader's effects are carried out with.
#[derive(Default)]
pub(super) struct Leading {
    /// Who is asked.
    deciding: Deciding,
    /// Counts the changes of who is asked.
    version: u64,
    /// Answers of this term that core has not judged yet.
    open: Open,
    turns: writes::Turns,
}

/// What came of an effect.
#[derive(Debug)]
pub struct Done {
    input: Input<'static>,
    /// How a question went, to be kept for the records.
    exchange: Option<Exchange>,
}

/// Where what came of an effect is sent to.
pub(super) struct Teller(UnboundedSender<Event>);

impl Teller {
    pub(super) fn tell(&self, input: Input<'static>, exchange: Option<Exchange>) {
        let _ = self.0.send(Event::Led(Box::new(Done { input, exchange })));
    }
}

impl Leading {
    /// Who is asked, by those that decide at this moment.
    fn asks(&mut self, deciding: Deciding) -> Asked {
        if self.version == 0 || !self.deciding.is_same(&deciding) {
            self.version += 1;
            self.deciding = deciding;
        }
        asked(&self.deciding, self.version)
    }
}

impl Runtime {
    /// Shows core what there is, and has done what it wants. An agent that does not `work` leads nobody, and hears when its
    /// term is over all the same.
    pub(super) fn lead(&mut self, works: bool, now: Now) {
        let deciding = self.parts.policies.deciding(&self.cache.policies);
        let failed = works.then(|| self.parts.policies.failed()).into_iter().flatten();
        let failed: Vec<FailedPolicy> =
            failed.map(|(name, digest, reason)| FailedPolicy { name, digest, reason }).collect();
        let seen = Seen {
            cache: &self.cache,
            lease_open: works && self.lease.is_open(now.boottime),
            policies: self.leading.asks(deciding),
            sets: &self.policy_facts,
            failed: &failed,
        };
        let effects = self.leadership.handle(Input::Seen(seen), now);
        self.carry_out_leading(effects);
    }

    pub(super) fn bid_ended(&mut self, bid: Result<Bid, ElectionError>) {
        let outcome = match bid {
            Ok(Bid::Won(mine)) => BidOutcome::Won(mine.known()),
            Ok(Bid::Lost(_)) => BidOutcome::Lost,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the bid for leadership failed");
                self.raise("leader", chain(&error));
                BidOutcome::Failed
            }
        };
        if outcome != BidOutcome::Failed {
            self.clear("leader");
        }
        self.tell_leadership(Input::BidEnded(outcome));
    }

    /// Something that the leader wanted is done.
    pub(super) fn done(&mut self, done: Done) {
        if let (Some(exchange), Input::Reply(asking, _)) = (done.exchange, &done.input)
            && self.leadership.awaits(*asking)
        {
            self.leading.open.keep(&self.parts.policies, Some(asking.term.0), exchange);
        }
        self.tell_leadership(done.input);
    }

    fn tell_leadership(&mut self, input: Input<'static>) {
        let effects = self.leadership.handle(input, now());
        self.carry_out_leading(effects);
    }

    fn carry_out_leading(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Bid(previous) => writes::bid(&self.parts, self.sender.clone(), previous),
                Effect::Resign(own) => writes::start_resigning(&self.parts, self.teller(), own),
                Effect::Ask(asking, question) => self.ask(asking, question),
                Effect::AskCopies(term, asks) => self.ask_copies(term, asks),
                Effect::Write(request) => {
                    writes::write(&self.parts, self.teller(), &self.leading.turns, *request);
                }
                Effect::Judged(term, judged) => {
                    let Leading { open, deciding, .. } = &mut self.leading;
                    open.conclude(&self.parts.policies, deciding, Some(term.0), judged);
                }
                Effect::Notice(notice) => self.notice(notice),
            }
        }
    }

    fn ask(&self, asking: Asking, question: Question) {
        let (parts, deciding, tell) = (self.parts.clone(), self.leading.deciding.clone(), self.teller());
        self.parts.tasks.spawn("question to a policy", async move {
            match ask(&parts, &deciding, question.clone()).await {
                Ok((reply, exchange)) => tell.tell(Input::Reply(asking, reply), Some(exchange)),
                Err(reason) => {
                    tracing::error!(%reason, "a question was not answered, the built-in rule decides");
                    tell.tell(Input::Reply(asking, Reply::unavailable(question)), None);
                }
            }
        });
    }

    /// All of them go to one host. An answer counts until the host is asked again.
    fn ask_copies(&self, term: Term, asks: Vec<AskCopies>) {
        let (parts, tell) = (self.parts.clone(), self.teller());
        self.parts.tasks.spawn("question to a host", async move {
            let Some(AskCopies { host, api, .. }) = asks.first() else { return };
            let asked: Vec<peers::Asked> = asks.iter().map(peers::Asked::from).collect();
            match kept_on(&parts, (host, api), &asked, ASK_AGAIN).await {
                Ok(kept) => {
                    for (ask, kept) in asks.into_iter().zip(kept) {
                        tell.tell(Input::Copies(term, ask, kept), None);
                    }
                }
                Err(error) => {
                    tracing::info!(%host, nodes = asked.len(), error = %chain(&error), "a host does not say which checkpoints it has");
                }
            }
        });
    }

    /// Where what came of an effect is sent to.
    fn teller(&self) -> Teller {
        Teller(self.sender.clone())
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Leads(term) => {
                tracing::info!(%term, "this agent leads");
                self.leading.open = Open::default();
                // What an earlier term still wants written is void, and must not be waited for.
                self.leading.turns = writes::Turns::default();
            }
            Notice::AnotherLeads(term) => tracing::warn!(%term, "another agent leads"),
            Notice::Deposed(term) => {
                tracing::warn!(%term, "a write was refused because another agent leads");
            }
            Notice::OutcomeUnknown(term) => {
                tracing::warn!(%term, "the outcome of a write is not known: a new term begins");
            }
            Notice::NotReady(term) => {
                tracing::warn!(%term, "this agent gives up the leadership: the policies that decide are not ready on this host");
            }
            Notice::Broken(node, broken) => {
                for broken in broken {
                    tracing::error!(%node, invariant = %broken.id, detail = %broken.detail, "an assignment would break an invariant and is not written: report this");
                    self.parts.metrics.invariant_broken(&broken.id.to_string());
                }
            }
            Notice::AnswerRefused(interface, reason) => {
                tracing::warn!(%interface, %reason, "a policy's answer was refused, the built-in rule decided");
            }
        }
    }

    /// Gives up the leadership in order, so that the next leader need not wait for its end.
    pub(super) async fn resign(&mut self) {
        for effect in self.leadership.handle(Input::Stop, now()) {
            if let Effect::Resign(own) = effect {
                writes::give_up(&self.parts, &own).await;
            }
        }
    }

    /// A leader to try new nodes with: this agent's own, else one that begins with what this agent knows.
    pub(super) fn trial(&self, new: &BTreeMap<NodeId, NodeRecord>) -> Trial {
        if let Some(machine) = self.leadership.machine() {
            return Trial::new(machine, new, now());
        }
        let deciding = self.parts.policies.deciding(&self.cache.policies);
        trial(&self.parts, &deciding, self.cache.view(), new)
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
    machine.handle(LeaderInput::Policies(asked(deciding, 1)), now);
    // What it decides here nobody writes: it stands as decided.
    machine.handle(LeaderInput::View(view.clone()), now);
    Trial::new(&machine, new, now)
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
