//! Owns the replay of recorded questions with another policy.
//!
//! Promises: each question is put with the parameters that the policy of that name had when it was asked, unless others
//! are given; instructions are counted instead of time, so that the same records and the same component give the same
//! result on every machine. Must not do: ask a running agent.

use std::collections::BTreeMap;

use serde::Serialize;
use understudy_core::leader::{recount, replace};
use understudy_core::model::ids::NodeId;
use understudy_core::model::units::UnixMillis;
use understudy_core::policy::{BuiltIn, Interface};
use understudy_policy::{Limits, PolicyFault, ReplayFault, Replayer};

use super::records::{Decision, History, Matter, Said, SetLine};

/// What came of a replay.
#[derive(Debug, Default, Serialize)]
pub struct Replayed {
    /// Questions that were put to the policy.
    pub questions: usize,
    /// Those that it would have decided alike.
    pub same: usize,
    /// Those that it would have decided otherwise.
    pub differences: Vec<Difference>,
    /// Those that it did not answer, so that the built-in rule would have decided.
    pub failures: usize,
    /// Questions that were recorded and not put to it: of an interface that it does not answer, or without a decision.
    pub passed_over: usize,
    /// Lines of the records that could not be read.
    pub unreadable: usize,
}

/// A question that the other policy would have decided otherwise.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// When it was asked.
    pub at: UnixMillis,
    /// What was asked.
    pub interface: Interface,
    /// The node.
    pub node: NodeId,
    /// What was decided.
    pub was: String,
    /// By whom.
    pub by: String,
    /// What would have been decided.
    pub would: String,
    /// Why the policy wants that, or why the built-in rule would have decided in its place.
    pub why: Option<String>,
}

/// The policy refuses the parameters of a set in the records.
#[derive(Debug, thiserror::Error)]
#[error("with its parameters of set {generation}: give it others by --settings")]
pub struct NoReplay {
    /// The set.
    pub generation: u64,
    /// Why.
    #[source]
    pub source: ReplayFault,
}

/// The parameters and the memory of a policy in a recorded set; none where it does not belong to it.
#[must_use]
pub fn recorded(set: Option<&SetLine>, name: &str) -> Option<(BTreeMap<String, String>, Limits)> {
    let policy = set?.set.get(name)?;
    Some((policy.parameters.clone(), Limits { memory: policy.memory, ..Limits::default() }))
}

/// Puts every question of a history to another policy: with the parameters that it has, or, where `as_recorded`, with
/// those of each set that has a policy of its name.
///
/// # Errors
/// When the policy refuses such parameters.
pub fn replay(history: &History, policy: &mut Replayer, as_recorded: bool) -> Result<Replayed, NoReplay> {
    let mut replayed = Replayed { unreadable: history.unreadable, ..Replayed::default() };
    let mut last = None;
    for (decision, set) in history.decisions.iter().zip(&history.sets) {
        let own = recorded(set.as_deref(), policy.name()).filter(|_| as_recorded);
        if own.is_some() && own != last {
            if let Some((parameters, limits)) = &own {
                policy
                    .configure(parameters, *limits)
                    .map_err(|source| NoReplay { generation: decision.generation, source })?;
            }
            last = own;
        }
        match judged(decision, policy) {
            None => replayed.passed_over += 1,
            Some((failed, difference)) => {
                replayed.questions += 1;
                replayed.failures += usize::from(failed);
                match difference {
                    None => replayed.same += 1,
                    Some(difference) => replayed.differences.push(difference),
                }
            }
        }
    }
    Ok(replayed)
}

/// Whether it failed, and what would have been otherwise.
fn judged(decision: &Decision, policy: &Replayer) -> Option<(bool, Option<Difference>)> {
    match &decision.matter {
        Matter::Placement(asking) => {
            let made = asking.made.as_ref()?;
            let outcome = policy.ask_placement(&asking.question);
            if matches!(outcome, Err(PolicyFault::Unavailable { .. })) {
                return None;
            }
            let again = replace(&asking.question, &made.eligible, outcome.as_ref().ok());
            let name = |host: &Option<understudy_core::model::ids::HostId>| {
                host.as_ref().map_or_else(|| "no host".to_owned(), ToString::to_string)
            };
            let row = again
                .first
                .as_ref()
                .and_then(|first| asking.question.hosts.iter().position(|row| row.host == *first));
            let picks = outcome.iter().flat_map(|answer| &answer.picks);
            let reason = picks
                .filter(|pick| usize::try_from(pick.index).ok() == row)
                .find_map(|pick| pick.reason.clone());
            let difference = (again.first != made.first).then(|| Difference {
                at: decision.at,
                interface: Interface::Placement,
                node: asking.question.node.clone(),
                was: name(&made.first),
                by: decider(&asking.decided, made.built_in),
                would: name(&again.first),
                why: why(outcome.as_ref().err(), again.built_in, reason),
            });
            Some((outcome.is_err(), difference))
        }
        Matter::BackupCount(asking) => {
            let made = asking.made.as_ref()?;
            let outcome = policy.ask_backup_count(&asking.question);
            if matches!(outcome, Err(PolicyFault::Unavailable { .. })) {
                return None;
            }
            let again = recount(&asking.question, outcome.as_ref().ok());
            let reason = outcome.as_ref().ok().and_then(|answer| answer.reason.clone());
            let difference = (again.backups != made.backups).then(|| Difference {
                at: decision.at,
                interface: Interface::BackupCount,
                node: asking.question.node.clone(),
                was: format!("{} backups", made.backups),
                by: decider(&asking.decided, made.built_in),
                would: format!("{} backups", again.backups),
                why: why(outcome.as_ref().err(), again.built_in, reason),
            });
            Some((outcome.is_err(), difference))
        }
    }
}

fn decider<A>(said: &Said<A>, built_in: Option<BuiltIn>) -> String {
    match (&said.policy, built_in) {
        (Some(policy), None) => policy.name.clone(),
        (_, _) => "built-in rule".to_owned(),
    }
}

fn why(fault: Option<&PolicyFault>, built_in: Option<BuiltIn>, reason: Option<String>) -> Option<String> {
    match (fault, built_in) {
        (Some(fault), _) => Some(format!("built-in rule: {fault}")),
        (None, Some(why)) => Some(format!("built-in rule: {}", why.as_str())),
        (None, None) => reason,
    }
}
