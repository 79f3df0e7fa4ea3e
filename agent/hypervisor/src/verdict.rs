//! Owns what is made of a live migration's end and of what both sides have afterwards.
//!
//! Promises: `Moved` is said only when both sides were seen to agree, `StayedHere` only once the call has ended, nothing is
//! under way any more and the instance is here: whatever the destination has of it stands still then, for nobody lets it run
//! before this host has let go, and grows old beside a source that runs on. That is why a destination that does not answer is
//! no reason to leave it open: should the source end before the next look, that copy would be let run. While the call itself
//! hangs, the move may still happen, whatever the sides look like. Must not do: look.

use std::time::Duration;

use crate::types::{InstanceState, MigrationOutcome, PauseCause};

/// How the call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Well,
    Refused(String),
    Hangs,
}

/// What one side has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Side {
    Nothing,
    Has(InstanceState),
    Silent(String),
}

pub(crate) fn judge(end: &End, here: &Side, there: &Side, took: Duration) -> MigrationOutcome {
    let still_here = matches!(here, Side::Has(_) | Side::Silent(_));
    let unknown = |what: &str| MigrationOutcome::Unknown {
        why: format!("{what} (call: {end:?}; here: {here:?}; there: {there:?})"),
        still_here,
    };
    match (end, here, there) {
        (End::Well, Side::Nothing | Side::Silent(_), _) => MigrationOutcome::Moved { took },
        (End::Well, Side::Has(_), _) => unknown("libvirt reported a move, and the instance is still here"),
        (End::Refused(_) | End::Hangs, Side::Nothing, Side::Has(_)) => MigrationOutcome::Moved { took },
        (End::Hangs, _, _) => unknown("libvirt's call hangs, so the instance may still move"),
        (End::Refused(why), Side::Has(state), Side::Nothing) => {
            let left = if *state == InstanceState::Paused(PauseCause::Migration) {
                "; it was left paused"
            } else {
                ""
            };
            MigrationOutcome::StayedHere { why: format!("{why}{left}") }
        }
        // The connection broke between the destination's end and its word of it: libvirt lets the source run on. Both
        // would wait for each other for ever if this host did not say that it has stayed.
        (
            End::Refused(why),
            Side::Has(InstanceState::Running | InstanceState::Paused(_)),
            Side::Has(InstanceState::Paused(_)),
        ) => {
            MigrationOutcome::StayedHere { why: format!("{why}; the destination has a copy that never ran") }
        }
        (
            End::Refused(why),
            Side::Has(InstanceState::Running | InstanceState::Paused(_)),
            Side::Silent(silence),
        ) => MigrationOutcome::StayedHere {
            why: format!(
                "{why}; the destination, which may have a copy that never ran, does not answer: {silence}"
            ),
        },
        (End::Refused(_), Side::Has(_), Side::Has(_)) => unknown("both sides have the instance"),
        (End::Refused(_), Side::Nothing, Side::Nothing) => unknown("neither side has the instance"),
        (End::Refused(_), _, Side::Silent(_)) => unknown("the destination does not answer"),
        (End::Refused(_), Side::Silent(_), _) => unknown("this host's libvirt does not answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_secs(1);

    fn word(outcome: &MigrationOutcome) -> &'static str {
        match outcome {
            MigrationOutcome::Moved { .. } => "moved",
            MigrationOutcome::StayedHere { .. } => "stayed",
            MigrationOutcome::Unknown { still_here: true, .. } => "unknown, here",
            MigrationOutcome::Unknown { still_here: false, .. } => "unknown",
        }
    }

    #[test]
    fn an_outcome_is_said_only_when_both_sides_agree() {
        let (refused, silent) = (End::Refused("no".to_owned()), Side::Silent("gone".to_owned()));
        let (running, paused) =
            (Side::Has(InstanceState::Running), Side::Has(InstanceState::Paused(PauseCause::Migration)));
        let off = Side::Has(InstanceState::Off);
        for (end, here, there, want) in [
            (&End::Well, &Side::Nothing, &Side::Nothing, "moved"),
            (&End::Well, &running, &paused, "unknown, here"),
            (&refused, &running, &Side::Nothing, "stayed"),
            (&refused, &paused, &Side::Nothing, "stayed"),
            (&refused, &running, &silent, "stayed"),
            (&refused, &paused, &silent, "stayed"),
            (&refused, &off, &silent, "unknown, here"),
            (&refused, &silent, &silent, "unknown, here"),
            (&End::Well, &running, &silent, "unknown, here"),
            (&refused, &running, &paused, "stayed"),
            (&refused, &paused, &paused, "stayed"),
            (&refused, &running, &running, "unknown, here"),
            (&refused, &paused, &running, "unknown, here"),
            (&refused, &Side::Nothing, &paused, "moved"),
            (&refused, &Side::Nothing, &Side::Nothing, "unknown"),
            (&refused, &Side::Nothing, &silent, "unknown"),
            (&refused, &silent, &Side::Nothing, "unknown, here"),
            (&refused, &silent, &paused, "unknown, here"),
            (&End::Hangs, &running, &Side::Nothing, "unknown, here"),
            (&End::Hangs, &running, &silent, "unknown, here"),
            (&End::Hangs, &Side::Nothing, &paused, "moved"),
        ] {
            assert_eq!(word(&judge(end, here, there, TOOK)), want, "{end:?} {here:?} {there:?}");
        }
    }

    #[test]
    fn an_instance_that_was_left_paused_is_said_to_be() {
        let paused = Side::Has(InstanceState::Paused(PauseCause::Migration));
        let outcome = judge(&End::Refused("no".to_owned()), &paused, &Side::Nothing, TOOK);
        let MigrationOutcome::StayedHere { why } = outcome else { panic!("{outcome:?}") };
        assert_eq!(why, "no; it was left paused");
    }
}
