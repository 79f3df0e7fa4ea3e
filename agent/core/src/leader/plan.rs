//! Owns the plan from nothing: the leader run once over all nodes of a view.
//!
//! Promises: it comes to what a leader that has followed the same cluster from its beginning comes to; a property test
//! holds the two together. Must not do: anything that the leader does not do.
//!
//! Cost: O(hosts + nodes). It serves scenarios, admission where this agent does not lead, explanation and tests.

use std::collections::BTreeMap;

use super::{AskCopies, Decisions, Input, Leader, Plan, Policies, Question, Reply, Report};
use crate::bounds::Bounds;
use crate::model::ids::NodeId;
use crate::model::records::Kept;
use crate::model::units::Now;
use crate::model::view::View;

/// What to do about the cluster as it is, by the built-in rules, with what hosts say of the checkpoints that they have; none
/// from one that does not answer.
#[must_use]
pub fn plan(
    view: &View,
    bounds: &Bounds,
    now: Now,
    copies: impl FnMut(&AskCopies) -> Option<Kept>,
) -> (Plan, Report) {
    let mut leader = Leader::new(*bounds);
    leader.take(Input::View(view.clone()), now);
    leader.all(now, |_| unreachable!("where nobody is asked there are no questions"), copies)
}

/// What to do about the cluster as it is, with the answers of policies. `deficits` are what they are told that nodes were
/// short of before.
pub fn plan_asking(
    view: &View,
    deficits: &BTreeMap<NodeId, u32>,
    bounds: &Bounds,
    now: Now,
    answer: impl FnMut(Question) -> Reply,
    copies: impl FnMut(&AskCopies) -> Option<Kept>,
) -> (Plan, Report) {
    let mut leader = Leader::new(*bounds);
    leader.take(Input::Policies(Policies { placement: true, backup_count: true, version: 1 }), now);
    leader.take(Input::View(view.clone()), now);
    for (node, short) in deficits {
        leader.deficits.set(node, *short);
    }
    leader.all(now, answer, copies)
}

impl Leader {
    /// Decides all that there is to decide, and asks until nothing is left to be asked.
    pub(super) fn all(
        &mut self,
        now: Now,
        mut answer: impl FnMut(Question) -> Reply,
        mut copies: impl FnMut(&AskCopies) -> Option<Kept>,
    ) -> (Plan, Report) {
        self.hear(&mut copies);
        self.decide();
        while !self.asked.new.is_empty() {
            for question in std::mem::take(&mut self.asked.new) {
                self.take(Input::Reply(answer(question)), now);
            }
            self.decide();
        }
        let Decisions { expiries, assignments, questions: _, copies: _, refusals, judged } = self.hand_out();
        let report = Report { refusals, judged, ..self.report.clone() };
        (Plan { expiries, assignments }, report)
    }

    /// Asks for the copies of all nodes before anything is decided, so that it does not matter whose answer comes first.
    fn hear(&mut self, copies: &mut impl FnMut(&AskCopies) -> Option<Kept>) {
        loop {
            let mut trial = self.clone();
            trial.decide();
            let asked = std::mem::take(&mut trial.words.new);
            if asked.is_empty() {
                return;
            }
            for ask in asked {
                match copies(&ask) {
                    Some(said) => {
                        trial.words.take(&ask, said);
                    }
                    None => trial.words.give_up((&ask.node, &ask.host)),
                }
            }
            self.words = trial.words;
        }
    }
}
