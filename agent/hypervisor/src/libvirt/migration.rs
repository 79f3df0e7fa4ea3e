//! Owns live migration: one call that the two libvirtds carry out between them, and the look at both sides when
//! it did not end well.
//!
//! ```text
//!   call ── ended well ─────────────────────────────────────> Moved
//!     ├──── refused ── look at both sides ──────────────────> StayedHere | Moved | Unknown
//!     └──── time-out ── cancel, wait ── look at both sides ─> the same; Unknown while the call hangs
//! ```
//!
//! Promises: what came of it is said as [`judge`] says it, from one look at either side. Must not do: resume either side.

use std::time::{Duration, Instant};

use understudy_core::errors::chain;
use understudy_core::model::ids::InstanceId;
use virt::domain::MigrateParameters;
use virt::error::ErrorNumber;
use virt_sys as sys;

use super::state::state_of;
use super::{Libvirt, find};
use crate::error::{CallError, MigrateError};
use crate::ffi;
use crate::types::{InstanceState, MigrationOutcome, MigrationTarget};
use crate::verdict::{End, Side, judge};

/// How long a cancelled migration may take to be over. libvirt acts on a cancel only between two steps, and its
/// step against a silent peer ends with its keepalive (6 s where it is set as this product's notes ask).
const AFTER_CANCEL: Duration = Duration::from_secs(10);

/// Opening a connection to the destination, TLS included.
const LOOK_THERE: Duration = Duration::from_secs(5);

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
        let _job = self.jobs.begin(id, deadline).ok_or(MigrateError::Busy { id, after: deadline })?;
        self.reset_held(id).map_err(|source| MigrateError::Reset { id, source })?;
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
