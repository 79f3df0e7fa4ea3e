//! Owns live migration: one call that the two libvirtds carry out between them, and the look at both sides when
//! it did not end well.
//!
//! ```text
//!   call ── ended well ─────────────────────────────────────> Moved
//!     ├──── refused ── look at both sides ──────────────────> StayedHere | Moved | Unknown
//!     └──── time-out ── cancel, wait ── look at both sides ─> the same; Unknown while the call hangs
//! ```
//!
//! Promises: `StayedHere` and `Moved` are said only when both sides were seen to agree; while libvirt's own call
//! hangs, the move may still happen, whatever the sides look like. Must not do: resume either side.

use std::time::{Duration, Instant};

use understudy_core::errors::chain;
use understudy_core::ids::InstanceId;
use virt::domain::MigrateParameters;
use virt::error::ErrorNumber;
use virt_sys as sys;

use super::state::state_of;
use super::{Libvirt, find};
use crate::error::{CallError, MigrateError};
use crate::ffi;
use crate::types::{InstanceState, MigrationOutcome, MigrationTarget, PauseCause};

/// How long a cancelled migration may take to be over. libvirt acts on a cancel only between two steps, and its
/// step against a silent peer ends with its keepalive (6 s where it is set as this product's notes ask).
const AFTER_CANCEL: Duration = Duration::from_secs(10);

/// Opening a connection to the destination, TLS included.
const LOOK_THERE: Duration = Duration::from_secs(5);

/// How the call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Well,
    Refused(String),
    Hangs,
}

/// What one side has.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Side {
    Nothing,
    Has(InstanceState),
    Silent(String),
}

impl Libvirt {
    pub(super) fn move_away(
        &self,
        id: InstanceId,
        target: &MigrationTarget,
        deadline: Duration,
    ) -> Result<MigrationOutcome, MigrateError> {
        let begin = |source| MigrateError::Begin { id, source };
        if self.look_up(id).map_err(begin)?.is_none() {
            return Err(MigrateError::NoInstance(id));
        }
        let begun = Instant::now();
        let (uri, parameters, flags) = (target.uri.clone(), parameters(target), flags(target));
        let pending = self
            .link
            .begin("migrate", move |connect| {
                find(connect, id)?.migrate_to_uri3(Some(&uri), parameters, flags)
            })
            .map_err(begin)?;
        let end = match pending.wait(deadline) {
            Err(CallError::TimedOut { .. }) => {
                if let Err(error) = self.cancel(id) {
                    tracing::warn!(%id, %error, "cannot cancel a migration that takes too long");
                }
                end(pending.wait(AFTER_CANCEL))
            }
            other => end(other),
        };
        let here = self.side_here(id);
        // When all is well the destination need not be asked.
        let there = if end == End::Well && here == Side::Nothing {
            Side::Nothing
        } else {
            self.side_there(id, target)
        };
        let outcome = judge(&end, &here, &there, begun.elapsed());
        if !matches!(outcome, MigrationOutcome::Moved { .. }) {
            tracing::warn!(%id, to = target.uri, ?end, ?here, ?there, "migration did not go well");
        }
        Ok(outcome)
    }

    fn side_here(&self, id: InstanceId) -> Side {
        let look = self.link.call("look here", self.deadlines.query, move |connect| {
            let domain = match find(connect, id) {
                Err(error) if error.code() == ErrorNumber::NoDomain => return Ok(None),
                other => other?,
            };
            Ok(Some((state_of(&domain)?, ffi::has_job(&domain)?)))
        });
        match look {
            Ok(None) => Side::Nothing,
            Ok(Some((_, true))) => Side::Silent("libvirt still has a job on it".to_owned()),
            Ok(Some((InstanceState::Off, false))) => Side::Nothing,
            Ok(Some((state, false))) => Side::Has(state),
            Err(error) => Side::Silent(error.to_string()),
        }
    }

    fn side_there(&self, id: InstanceId, target: &MigrationTarget) -> Side {
        let look = self.link.call_other(&target.uri, "look there", LOOK_THERE, move |connect| {
            match find(connect, id).and_then(|domain| state_of(&domain)) {
                Err(error) if error.code() == ErrorNumber::NoDomain => Ok(None),
                other => other.map(Some),
            }
        });
        match look {
            Ok(None | Some(InstanceState::Off)) => Side::Nothing,
            Ok(Some(state)) => Side::Has(state),
            Err(error) => Side::Silent(chain(&error)),
        }
    }
}

fn end(result: Result<(), CallError>) -> End {
    match result {
        Ok(()) => End::Well,
        Err(CallError::TimedOut { .. }) => End::Hangs,
        Err(error) => End::Refused(chain(&error)),
    }
}

fn parameters(target: &MigrationTarget) -> MigrateParameters {
    MigrateParameters {
        uri: target.data_uri.clone(),
        bandwidth: target.bandwidth.map(|mib| mib.0),
        tls_destination: target.tls_name.clone(),
        ..MigrateParameters::default()
    }
}

fn flags(target: &MigrationTarget) -> u32 {
    let tls = if target.tls { sys::VIR_MIGRATE_TLS } else { 0 };
    sys::VIR_MIGRATE_LIVE
        | sys::VIR_MIGRATE_PEER2PEER
        | sys::VIR_MIGRATE_PAUSED
        | sys::VIR_MIGRATE_UNDEFINE_SOURCE
        | sys::VIR_MIGRATE_AUTO_CONVERGE
        | tls
}

fn judge(end: &End, here: &Side, there: &Side, took: Duration) -> MigrationOutcome {
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
        for (end, here, there, want) in [
            (&End::Well, &Side::Nothing, &Side::Nothing, "moved"),
            (&End::Well, &running, &paused, "unknown, here"),
            (&refused, &running, &Side::Nothing, "stayed"),
            (&refused, &paused, &Side::Nothing, "stayed"),
            (&refused, &running, &silent, "unknown, here"),
            (&refused, &running, &paused, "unknown, here"),
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
