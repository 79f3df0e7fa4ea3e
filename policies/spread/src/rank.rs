//! Owns the order of hosts.
//!
//! Hosts are compared by class first and by strain second; the class says what a failure or a start would cost,
//! the strain says how much room there is. Equals stay in the order of their rows.

use crate::Weights;
use crate::wit::exports::understudy::policy::placement::{HostState, Hosts, Part, Pick, Purpose, Request};

/// What counts before any strain, the gravest first: derived order is the order of comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    /// Has a member of this node already: the two would die together.
    kin: u8,
    /// Something is wrong with the host.
    degraded: bool,
    /// Has no idle instance, so that one must be created and booted first.
    cold: bool,
    /// Members of the terminal's other nodes: a host's death should cost a terminal one node.
    siblings: u32,
}

struct Candidate {
    row: usize,
    class: Class,
    strain: u64,
}

/// The hosts that would do, best first, at most as many as are wanted.
#[must_use]
pub fn rank(request: &Request, hosts: &Hosts, weights: Weights) -> Vec<Pick> {
    let kin = kin(request, hosts);
    let siblings = siblings(request, hosts);
    let mut candidates: Vec<Candidate> = (0..hosts.state.len())
        .filter_map(|row| {
            let degraded = match hosts.state[row] {
                HostState::Ready => false,
                HostState::Degraded => true,
                HostState::Draining | HostState::Fenced | HostState::Unknown => return None,
            };
            let idle = takes_idle(request.purpose) && has_idle(request, hosts, row);
            let room =
                hosts.free_vcpus[row] >= request.vcpus && hosts.free_memory_mib[row] >= request.memory_mib;
            if !idle && !room {
                return None;
            }
            let cold = takes_idle(request.purpose) && !idle;
            let class = Class { kin: kin[row], degraded, cold, siblings: siblings[row] };
            Some(Candidate { row, class, strain: strain(hosts, row, weights) })
        })
        .collect();
    let order = |a: &Candidate, b: &Candidate| (a.class, a.strain, a.row).cmp(&(b.class, b.strain, b.row));
    let wanted = usize::try_from(request.wanted).unwrap_or(usize::MAX);
    if wanted < candidates.len() {
        // Sorting only the best matters with thousands of hosts.
        candidates.select_nth_unstable_by(wanted, order);
        candidates.truncate(wanted);
    }
    candidates.sort_unstable_by(order);
    candidates
        .iter()
        .map(|c| Pick {
            host: u32::try_from(c.row).unwrap_or(u32::MAX),
            reason: request.reasons.then(|| reason(hosts, c)),
        })
        .collect()
}

/// Whether an instance from the pool would do: a held place runs nothing, a migration brings its own.
fn takes_idle(purpose: Purpose) -> bool {
    match purpose {
        Purpose::Primary | Purpose::WarmBackup => true,
        Purpose::HeldBackup | Purpose::Migration => false,
    }
}

fn has_idle(request: &Request, hosts: &Hosts, row: usize) -> bool {
    let Some(template) = request.template else { return false };
    let entries = hosts.idle_start[row] as usize..hosts.idle_start[row + 1] as usize;
    entries.into_iter().any(|e| hosts.idle_template[e] == template && hosts.idle_count[e] > 0)
}

/// For each row 0, or 1 where it has a backup of the node, or 2 where it has the primary.
fn kin(request: &Request, hosts: &Hosts) -> Vec<u8> {
    let mut kin = vec![0; hosts.state.len()];
    for member in &request.members {
        if let Some(k) = kin.get_mut(member.host as usize) {
            *k = match member.part {
                Part::Primary => 2,
                Part::Backup => 1.max(*k),
            };
        }
    }
    kin
}

fn siblings(request: &Request, hosts: &Hosts) -> Vec<u32> {
    let mut siblings = vec![0; hosts.state.len()];
    for member in &request.siblings {
        if let Some(s) = siblings.get_mut(member.host as usize) {
            *s += 1;
        }
    }
    siblings
}

/// A migration or restore under way keeps about as much of a host busy as a tenth of its processors.
const TRAFFIC_PERMILLE: u64 = 100;

/// How hard the host works already, in weighted thousandths.
fn strain(hosts: &Hosts, row: usize, weights: Weights) -> u64 {
    let memory = taken_permille(hosts.free_memory_mib[row], hosts.total_memory_mib[row]);
    let vcpus = taken_permille(hosts.free_vcpus[row].into(), hosts.total_vcpus[row].into());
    let moves = u64::from(hosts.migrations_in[row])
        + u64::from(hosts.migrations_out[row])
        + u64::from(hosts.restores[row]);
    u64::from(weights.room) * memory.max(vcpus)
        + u64::from(weights.load) * u64::from(hosts.load_permille[row])
        + u64::from(weights.traffic) * TRAFFIC_PERMILLE * moves
}

fn taken_permille(free: u64, total: u64) -> u64 {
    // Of nothing, all is taken.
    free.min(total).saturating_mul(1000).checked_div(total).map_or(1000, |free| 1000 - free)
}

fn reason(hosts: &Hosts, candidate: &Candidate) -> String {
    let Class { kin, degraded, cold, siblings } = candidate.class;
    let mut words = vec![if cold { "no idle instance" } else { "ready to take it" }.to_owned()];
    if kin > 0 {
        words.push(format!("has the node's {}", if kin == 2 { "primary" } else { "backup" }));
    }
    if degraded {
        words.push("degraded".to_owned());
    }
    if siblings > 0 {
        words.push(format!("{siblings} other member(s) of the terminal"));
    }
    words.push(format!("strain {}, {} MiB free", candidate.strain, hosts.free_memory_mib[candidate.row]));
    words.join(", ")
}
