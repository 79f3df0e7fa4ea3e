//! Owns the explanation of a placement as the API and the command line show it.
//!
//! Promises: the policy that decides and the shadows are asked the very question of the node's next member, with reasons;
//! each host is shown with its verdict. Must not do: hold a policy to what it answers here.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_core::leader::Explanation;
use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::units::MiB;
use understudy_core::policy::{BuiltIn, HostState, Interface, PlacementAnswer, Purpose, RefusedPick};
use understudy_policy::By;

use super::Deciding;
use super::ask::said;
use super::records::{Fault, Said};

/// Where the next member of a node would go, and why.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explained {
    /// The node.
    pub node: NodeId,
    /// What the member would be.
    pub purpose: Purpose,
    /// Memory that it needs.
    pub memory: MiB,
    /// Who was asked, and what was said.
    pub said: Said<PlacementAnswer>,
    /// Why the built-in rule decides; none where the policy does.
    pub built_in: Option<BuiltIn>,
    /// The host that would be tried first.
    pub first: Option<HostId>,
    /// Each host with its verdict.
    pub hosts: Vec<ExplainedHost>,
    /// Picks that would not be used.
    pub refused: Vec<RefusedPick>,
    /// What the shadow policies would have done.
    #[serde(default)]
    pub shadows: Vec<ExplainedShadow>,
}

/// A policy that decides nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExplainedShadow {
    /// Who was asked, and what was said.
    pub said: Said<PlacementAnswer>,
    /// Why the built-in rule would decide in its place; none where the policy would.
    pub built_in: Option<BuiltIn>,
    /// The hosts in the order in which they would be tried.
    pub ranked: Vec<HostId>,
    /// Whether another host would be tried first.
    pub differs: bool,
}

/// One host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExplainedHost {
    /// Its name.
    pub host: HostId,
    /// Whether it takes work, as the policy is told.
    pub state: HostState,
    /// Memory that is free.
    pub free_memory: MiB,
    /// Idle instances that the member could have. A primary goes to a host that has one before it goes to one without.
    #[serde(default)]
    pub idle: u32,
    /// Why it may not take the member; none where it may.
    pub excluded: Option<String>,
    /// Its place in the order in which hosts would be tried, from 1; none where it would not be.
    pub rank: Option<usize>,
    /// The policy's reason.
    pub reason: Option<String>,
}

/// Asks who decides and the shadows, and puts it all together. Blocks up to the deadline of each.
pub(crate) fn explained(deciding: &Deciding, explanation: &Explanation) -> Explained {
    let question = &explanation.question;
    let info = deciding.set.deciding(Interface::Placement);
    let by = info.map(|info| By { name: info.name.clone(), digest: info.digest.clone() });
    let silent = |kind: &str, message: String| {
        let fault = Some(Fault { kind: kind.to_owned(), message });
        let none = said::<PlacementAnswer>(by.as_ref(), Ok(PlacementAnswer::default()), Duration::ZERO);
        Said { answer: None, fault, ..none }
    };
    let said = match by.as_ref().map(|by| deciding.suspended.get(&by.name)) {
        None if !deciding.ready => {
            silent("unavailable", "the policies that decide are not ready on this host".to_owned())
        }
        None => silent("unavailable", "no policy answers placement".to_owned()),
        Some(Some(reason)) => silent("suspended", reason.clone()),
        Some(None) => {
            let asked = deciding.set.ask_placement(question);
            said(by.as_ref(), asked.outcome, asked.took)
        }
    };
    let (ranked, verdict) = explanation.judge(said.answer.as_ref());
    let reason = |place: u32| {
        let picks = said.answer.iter().flat_map(|answer| &answer.picks);
        picks.filter(|pick| pick.index == place).find_map(|pick| pick.reason.clone())
    };
    let hosts = question.hosts.iter().zip(0_u32..).map(|(row, place)| ExplainedHost {
        host: row.host.clone(),
        state: row.state,
        free_memory: row.free_memory,
        idle: row.idle.values().sum(),
        excluded: explanation.excluded.get(&row.host).cloned(),
        rank: ranked.iter().position(|host| *host == row.host).map(|at| at + 1),
        reason: reason(place),
    });
    let shadows = shadows(deciding, explanation, verdict.first.as_ref());
    Explained {
        node: question.node.clone(),
        purpose: question.purpose,
        memory: question.memory,
        hosts: hosts.collect(),
        built_in: verdict.built_in,
        first: verdict.first,
        refused: verdict.refused,
        shadows,
        said,
    }
}

fn shadows(deciding: &Deciding, explanation: &Explanation, first: Option<&HostId>) -> Vec<ExplainedShadow> {
    let asked = deciding.set.shadow_placement(&explanation.question).into_iter();
    let asked =
        asked.filter(|asked| !asked.by.as_ref().is_some_and(|by| deciding.suspended.contains_key(&by.name)));
    asked
        .map(|asked| {
            let said = said(asked.by.as_ref(), asked.outcome, asked.took);
            let (ranked, verdict) = explanation.judge(said.answer.as_ref());
            let differs = verdict.first.as_ref() != first;
            ExplainedShadow { said, built_in: verdict.built_in, ranked, differs }
        })
        .collect()
}
