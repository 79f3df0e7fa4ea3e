//! The policy `pack`: as few hosts as possible, so that the others can be switched off or kept for what is large.
//!
//! Promises never to pick a host that takes no work or has no room, and to fill none beyond its reserve, nor to put
//! two members of a node on one host, while another is left. Must not do: move what runs; a policy is asked only
//! where something new goes.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use understudy_policy_sdk::placement::{Answer, Host, Kin, Question};

understudy_policy_sdk::placement!(place);

/// What is compared, the gravest first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    /// Has a member of this node already: the two would die together.
    kin: Kin,
    degraded: bool,
    /// Would have less left than the reserve.
    tight: bool,
    /// Has no member of any node yet: it would be one host more.
    unused: bool,
    /// Has no idle instance, so that one must be created and booted first.
    cold: bool,
    /// What is taken, in thousandths: the fullest first.
    taken_permille: Reverse<u64>,
}

/// The hosts that would do, the fullest of those in use first.
///
/// # Errors
/// A text for the operator where a parameter is unknown or out of range.
pub fn place(question: &Question<'_>) -> Answer {
    let reserve = question.parameters(|p| p.number("reserve-percent", 10, 0..=90))?;
    let order = |host: Host<'_>| Order {
        kin: host.kin(),
        degraded: host.is_degraded(),
        tight: left_permille(question, host) < u64::from(reserve) * 10,
        unused: host.members() == 0,
        cold: host.is_cold(),
        taken_permille: Reverse(host.taken_permille()),
    };
    Ok(question.best_because(|host| host.suits().then(|| order(host)), |_, order| reason(order)))
}

/// What the host would have left of memory or processors, the smaller share. An idle instance is taken already.
fn left_permille(question: &Question<'_>, host: Host<'_>) -> u64 {
    let (memory, vcpus) =
        if host.has_idle() { (0, 0) } else { (question.request.memory_mib, question.request.vcpus) };
    let share = |left: u64, total: u64| left.saturating_mul(1000).checked_div(total).unwrap_or(0);
    let memory = share(host.free_memory_mib().saturating_sub(memory), host.total_memory_mib());
    memory.min(share(host.free_vcpus().saturating_sub(vcpus).into(), host.total_vcpus().into()))
}

fn reason(order: &Order) -> String {
    let Order { kin, degraded, tight, unused, cold, taken_permille: Reverse(taken) } = order;
    let words = [
        (true, if *unused { "not in use yet" } else { "in use" }),
        (*kin != Kin::None, "has a member of the node"),
        (*degraded, "degraded"),
        (*tight, "would go below its reserve"),
        (*cold, "no idle instance"),
    ];
    let words: Vec<&str> = words.iter().filter(|(holds, _)| *holds).map(|(_, word)| *word).collect();
    format!("{}, {taken} thousandths taken", words.join(", "))
}
