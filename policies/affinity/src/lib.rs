//! The policy `affinity`: a terminal goes to the hosts of its own team, where these have room.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use understudy_policy_sdk::placement::{Answer, Question};

understudy_policy_sdk::placement!(place);

/// Hosts with the terminal's label first, then the emptiest; a host that has a member of the node already is last.
///
/// # Errors
/// A text for the operator where a parameter other than `label` is set.
pub fn place(question: &Question<'_>) -> Answer {
    let key = question.parameters(|p| Ok(p.text("label", "team")))?;
    let label = question.terminal_label(key);
    Ok(question.best_because(
        |host| {
            let elsewhere = !label.is_some_and(|label| host.has(label));
            let order = (host.has_member_of_node(), elsewhere, Reverse(host.free_memory_mib()));
            host.suits().then_some(order)
        },
        |host, (_, elsewhere, _)| {
            let whose = if *elsewhere { "not of" } else { "of" };
            format!("{whose} the terminal's {key}, {} MiB free", host.free_memory_mib())
        },
    ))
}

/// The text that shows this policy shows what compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Shown;
