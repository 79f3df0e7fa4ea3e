//! Owns the order of hosts.
//!
//! Hosts are compared by class first and by strain second; the class says what a failure or a start would cost,
//! the strain says how much room there is. Equals stay in the order of their rows.

use understudy_policy_sdk::placement::{Host, Kin, Pick, Question};

use crate::Weights;

/// What counts before any strain, the gravest first: derived order is the order of comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    /// Has a member of this node already: the two would die together.
    kin: Kin,
    /// Something is wrong with the host.
    degraded: bool,
    /// Has no idle instance, so that one must be created and booted first.
    cold: bool,
    /// Members of the terminal's other nodes: a host's death should cost a terminal one node.
    siblings: u32,
}

/// The hosts that would do, best first, at most as many as are wanted.
#[must_use]
pub fn rank(question: &Question<'_>, weights: Weights) -> Vec<Pick> {
    question.best_because(
        |host| host.suits().then(|| (class(host), strain(host, weights))),
        |host, (class, strain)| reason(host, *class, *strain),
    )
}

fn class(host: Host<'_>) -> Class {
    Class { kin: host.kin(), degraded: host.is_degraded(), cold: host.is_cold(), siblings: host.siblings() }
}

/// A migration or restore under way keeps about as much of a host busy as a tenth of its processors.
const TRAFFIC_PERMILLE: u64 = 100;

/// How hard the host works already, in weighted thousandths.
fn strain(host: Host<'_>, weights: Weights) -> u64 {
    u64::from(weights.room) * host.taken_permille()
        + u64::from(weights.load) * u64::from(host.load_permille())
        + u64::from(weights.traffic) * TRAFFIC_PERMILLE * u64::from(host.moves())
}

fn reason(host: Host<'_>, class: Class, strain: u64) -> String {
    let Class { kin, degraded, cold, siblings } = class;
    let mut words = vec![if cold { "no idle instance" } else { "ready to take it" }.to_owned()];
    match kin {
        Kin::None => {}
        Kin::Backup => words.push("has the node's backup".to_owned()),
        Kin::Primary => words.push("has the node's primary".to_owned()),
    }
    if degraded {
        words.push("degraded".to_owned());
    }
    if siblings > 0 {
        words.push(format!("{siblings} other member(s) of the terminal"));
    }
    words.push(format!("strain {strain}, {} MiB free", host.free_memory_mib()));
    words.join(", ")
}
