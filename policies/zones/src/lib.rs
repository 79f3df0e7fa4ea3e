//! The policy `zones`: a node's primary and its backups in different zones, so that the loss of a zone leaves one.
//!
//! Owns the fallback: another zone, or at least another rack, or at least another host. Promises never to pick a host
//! that takes no work or has no room. Must not do: leave a member without a place because only its own zone is left.

#[cfg(test)]
mod tests;

use understudy_policy_sdk::placement::{Answer, Host, Kin, Part, Question};

understudy_policy_sdk::placement!(place);

/// What is compared, the gravest first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    /// What the host's zone has of the node.
    zone: Kin,
    /// What its rack has, where the zone is the same.
    rack: Kin,
    /// What it has itself.
    host: Kin,
    degraded: bool,
    /// Has no idle instance, so that one must be created and booted first.
    cold: bool,
    /// Members of the terminal's other nodes: a host's death should cost a terminal one node.
    siblings: u32,
    /// What is taken, in thousandths.
    taken_permille: u64,
}

/// The hosts that would do, those of another zone first.
///
/// # Errors
/// A text for the operator where a parameter is set: there is none.
pub fn place(question: &Question<'_>) -> Answer {
    question.no_parameters()?;
    // The primary that moves leaves its zone: only the backups tie it.
    let members: Vec<(Host<'_>, Kin)> =
        question.staying_members().map(|(host, part)| (host, kin(part))).collect();
    Ok(question.best_because(|host| host.suits().then(|| order(host, &members)), reason))
}

fn kin(part: Part) -> Kin {
    match part {
        Part::Primary => Kin::Primary,
        Part::Backup => Kin::Backup,
    }
}

fn order(host: Host<'_>, members: &[(Host<'_>, Kin)]) -> Order {
    let mut order = Order {
        zone: Kin::None,
        rack: Kin::None,
        host: host.kin(),
        degraded: host.is_degraded(),
        cold: host.is_cold(),
        siblings: host.siblings(),
        taken_permille: host.taken_permille(),
    };
    for (member, kin) in members {
        if shares(host.zone(), member.zone()) {
            order.zone = order.zone.max(*kin);
            if shares(host.rack(), member.rack()) {
                order.rack = order.rack.max(*kin);
            }
        }
    }
    order
}

/// A host without a name for its place may be anywhere, so it is not taken to be elsewhere.
fn shares(one: &str, other: &str) -> bool {
    one == other || one.is_empty() || other.is_empty()
}

fn reason(host: Host<'_>, order: &Order) -> String {
    let what = |kin| match kin {
        Kin::None => "no member",
        Kin::Backup => "a backup",
        Kin::Primary => "the primary",
    };
    let name = |name: &str| if name.is_empty() { "unknown".to_owned() } else { format!("'{name}'") };
    let mut words = vec![format!("zone {} has {} of the node", name(host.zone()), what(order.zone))];
    if order.zone != Kin::None {
        words.push(format!("rack {} has {}", name(host.rack()), what(order.rack)));
    }
    if order.host != Kin::None {
        words.push(format!("the host has {}", what(order.host)));
    }
    words.extend(order.degraded.then(|| "degraded".to_owned()));
    words.extend(order.cold.then(|| "no idle instance".to_owned()));
    words.push(format!("{} thousandths taken", order.taken_permille));
    words.join(", ")
}
