//! Owns the model of the daemon's effects of core's `Leadership`: the bid, answers of a policy that says anything, and
//! writes.
//!
//! Promises: the leadership is the one that ships; what it wants written is written as it wants it, unless the run is to show
//! what comes of less (`BlindWrites`, `LeadsWithoutSet`). Must not do: decide.

use understudy_core::keys::LEADER;
use understudy_core::leader::leadership::{
    BidOutcome, Effect, Input, Notice, Seen, Subject, What, WriteId, WriteOutcome, WriteRequest,
};
use understudy_core::leader::{Policies, Question, Reply};
use understudy_core::model::ids::HostId;
use understudy_core::model::units::Now;
use understudy_core::model::view::Answer as Said;
use understudy_core::policy::{BackupCountAnswer, Pick, PlacementAnswer};
use understudy_store::Txn;
use understudy_store::election::{Bid, Leadership};

use super::{Agent, Tag};
use crate::world::{Answer, Body, World};

impl Agent {
    /// Shows core what there is, and does what it wants. A policy answers at once, and core goes on with that.
    pub(super) fn lead(&mut self, world: &mut World, me: &HostId) {
        let now = clocks(world, me);
        loop {
            let Some(cache) = &self.cache else { return };
            let asks = world.policy_is_mad();
            let version = cache.policies.active.as_ref().map_or(0, |set| set.value.generation);
            let sets = self.sets.shown(&cache.policies, world.weakness);
            let seen = Seen {
                cache,
                lease_open: self.lease.status().is_open(now.boottime),
                policies: Policies { placement: asks, backup_count: asks, version },
                sets: &sets,
                failed: &[],
            };
            let effects = self.leadership.handle(Input::Seen(seen), now);
            let asked = effects.iter().any(|effect| matches!(effect, Effect::Ask(..)));
            self.carry_out_leading(world, me, effects);
            if !asked {
                return;
            }
        }
    }

    /// What an effect came to.
    pub(super) fn tell_leadership(&mut self, world: &mut World, me: &HostId, input: Input<'static>) {
        let effects = self.leadership.handle(input, clocks(world, me));
        self.carry_out_leading(world, me, effects);
    }

    fn carry_out_leading(&mut self, world: &mut World, me: &HostId, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Bid(previous) => {
                    let previous = previous.map(|known| Leadership::seen(LEADER, &known));
                    self.send(world, me, Tag::Bid, Body::Bid(previous));
                }
                Effect::Resign(own) => {
                    self.send(world, me, Tag::Resign, Body::Resign(Leadership::seen(LEADER, &own)));
                }
                Effect::Ask(asking, question) => {
                    self.asks_its_set(world, me);
                    let reply = answered(world, question);
                    self.tell_leadership(world, me, Input::Reply(asking, reply));
                }
                Effect::AskCopies(term, asks) => self.ask_copies(world, term, asks),
                Effect::Write(request) => self.write_leading(world, me, *request),
                Effect::Judged(..) => {}
                Effect::Notice(notice) => noticed(world, me, notice),
            }
        }
    }

    fn write_leading(&mut self, world: &mut World, me: &HostId, request: WriteRequest) {
        let WriteRequest { id, transaction, what } = request;
        let txn = Txn::from(transaction);
        match what {
            What::Assign { assignment, .. } => {
                self.asks_its_set(world, me);
                world.decided(&assignment.node, &assignment.record, &assignment.reasons);
            }
            What::Expire(_) | What::Suspend(_) => {}
            What::Activate(record) => {
                world.note(format!("set {} decides from here on", record.generation));
            }
            What::Refuse(refused) => {
                world.note(format!("set {} is refused: {}", refused.generation, refused.reason));
            }
        }
        let decided_by = self.active_set();
        self.send(world, me, Tag::Written { id, decided_by }, Body::Commit(txn));
    }

    /// A write that the leader wanted has an outcome.
    pub(super) fn written_leading(
        &mut self,
        world: &mut World,
        me: &HostId,
        (id, decided_by): (WriteId, u64),
        answer: Answer,
    ) {
        let outcome = match answer {
            Answer::Applied(revision) => WriteOutcome::Applied(revision),
            Answer::Refused { failed } => WriteOutcome::refused(&failed),
            Answer::Unavailable | Answer::Read(_) | Answer::Bid(_) => WriteOutcome::Unknown,
        };
        if let (Subject::Node(_), WriteOutcome::Applied(revision)) = (&id.subject, outcome) {
            world.written_by_its_set(me, revision, decided_by);
        }
        self.tell_leadership(world, me, Input::Written(id, outcome));
    }

    pub(super) fn bid_ended(&mut self, world: &mut World, me: &HostId, answer: Answer) {
        let outcome = match answer {
            Answer::Bid(Bid::Won(mine)) => BidOutcome::Won(mine.known()),
            Answer::Bid(Bid::Lost(_)) => BidOutcome::Lost,
            Answer::Applied(_) | Answer::Refused { .. } | Answer::Read(_) | Answer::Unavailable => {
                BidOutcome::Failed
            }
        };
        self.tell_leadership(world, me, Input::BidEnded(outcome));
    }
}

fn clocks(world: &World, me: &HostId) -> Now {
    let machine = world.machine(me);
    Now { boottime: machine.boottime(world.now), wall: machine.wall(world.now) }
}

fn noticed(world: &mut World, me: &HostId, notice: Notice) {
    match notice {
        Notice::Leads(term) => world.note(format!("{me} leads in term {term}")),
        Notice::NotReady(_) => {
            world.note(format!("{me} gives up the leadership: its policies are not ready"));
        }
        Notice::Broken(_, broken) => {
            for broken in broken {
                world.fail(format!("the plan of {me} breaks {broken}"));
            }
        }
        Notice::AnotherLeads(_)
        | Notice::Deposed(_)
        | Notice::OutcomeUnknown(_)
        | Notice::AnswerRefused(..) => world.verbose(|| format!("{me}: {notice:?}")),
    }
}

/// What a policy says: anything, where it is mad.
fn answered(world: &mut World, question: Question) -> Reply {
    match question {
        Question::Placement(question) => {
            let answer = if world.policy_is_mad() && world.rng.chance(700) {
                let count = world.rng.below(5);
                let pick = |index: u64| Pick { index: u32::try_from(index).unwrap_or(0), reason: None };
                let picks = (0..count).map(|_| pick(world.rng.below(6))).collect();
                Said::Given(PlacementAnswer { picks })
            } else {
                Said::Unavailable
            };
            Reply::Placement(question, answer)
        }
        Question::BackupCount(question) => {
            let answer = if world.policy_is_mad() && world.rng.chance(200) {
                let backups = u32::try_from(world.rng.below(20)).unwrap_or(0);
                let primaries = u32::try_from(world.rng.below(3)).unwrap_or(0);
                Said::Given(BackupCountAnswer { primaries, backups, reason: None })
            } else {
                Said::Unavailable
            };
            Reply::BackupCount(question, answer)
        }
    }
}
