//! Owns the question whether new nodes fit, with all their backups.
//!
//! Promises: what is admitted finds places for every primary and every wanted backup by the very plan that will make
//! them; room that existing nodes still lack counts as taken; a refusal says what is missing, host by host. Must not
//! do: reserve anything; between admission and plan the cluster may change, and then the report says what is lacking.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::bounds::Bounds;
use crate::ids::NodeId;
use crate::plan::{Plan, Report, plan};
use crate::policy::Judged;
use crate::records::NodeRecord;
use crate::units::Now;
use crate::view::{Versioned, View};

/// Whether new nodes fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// They do; with what became of the answers.
    Admitted(Judged),
    /// Policies have to be asked first: put the answers into the view, then ask again.
    Asks(Plan),
    /// They do not.
    Refused {
        /// What is missing, for people: a line per primary and per set of backups.
        missing: Vec<String>,
        /// What became of the answers.
        judged: Judged,
    },
}

/// Whether the cluster has room for `new` and all the backups that they are to have.
#[must_use]
pub fn admit(view: &View, new: &BTreeMap<NodeId, NodeRecord>, bounds: &Bounds, now: Now) -> Admission {
    // Existing nodes take theirs first. What finds no place even so needs room that is not there for anybody.
    let (of_existing, _) = plan(view, bounds, now);
    if of_existing.has_questions() {
        return Admission::Asks(of_existing);
    }
    let mut with_new = view.clone();
    for assignment in of_existing.assignments {
        with_new.nodes.update(&assignment.node, |known| known.value = assignment.record);
    }
    let nodes =
        new.iter().map(|(node, record)| (node.clone(), Versioned { value: record.clone(), revision: 0 }));
    with_new.nodes.extend(nodes);
    let (of_new, report) = plan(&with_new, bounds, now);
    if of_new.has_questions() {
        return Admission::Asks(of_new);
    }
    let missing: Vec<String> = new.keys().filter_map(|node| missing(node, &of_new, &report)).collect();
    let judged = report.judged;
    if missing.is_empty() { Admission::Admitted(judged) } else { Admission::Refused { missing, judged } }
}

/// What `node` would lack; none when it would be whole.
fn missing(node: &NodeId, plan: &Plan, report: &Report) -> Option<String> {
    let assigned = plan.assignments.iter().find(|assignment| &assignment.node == node);
    let record = assigned.map(|assignment| &assignment.record);
    let why =
        || report.notes.get(node).map_or_else(|| "no place was found".to_owned(), |notes| notes.join("; "));
    if record.is_none_or(|record| record.primary.is_none()) {
        return Some(format!("{node}: {}", why()));
    }
    let wanted = report.wanted.get(node).copied().unwrap_or(0);
    let has = record.map_or(0, |record| u32::try_from(record.backups.len()).unwrap_or(u32::MAX));
    (has < wanted).then(|| format!("{node}: {has} of {wanted} backups find a place: {}", why()))
}
