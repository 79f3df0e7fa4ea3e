//! The policy `spread`: every member goes where a failure costs least and where there is most room.
//!
//! Owns the order of hosts, see [`rank`]. Promises never to pick a host that takes no work or has no room, and
//! to pick a host that has a member of the node already only when no other is left. Must not do: guess; a
//! parameter that it does not know is refused.

mod rank;
#[cfg(test)]
mod tests;
mod weights;

use understudy_policy_sdk::placement::{Answer, Question};

pub use rank::rank;
pub use weights::Weights;

understudy_policy_sdk::placement!(place);

/// The hosts that would do, best first.
///
/// # Errors
/// A text for the operator where a parameter is unknown or out of range.
pub fn place(question: &Question<'_>) -> Answer {
    Ok(rank(question, question.parameters(Weights::read)?))
}
