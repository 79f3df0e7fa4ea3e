//! Owns what a component is asked in the words of its version of `wit/`, and what it answered in ours.
//!
//! Promises: every version of the interface means the same question; what a version cannot tell apart is taken for the
//! graver. Must not do: know of files, sets or trials.

use understudy_core::policy::{BackupCountAnswer, BackupCountQuestion, Interface, Pick};
use wasmtime::component::InstancePre;

use crate::columns;
use crate::engine::{Guest, Sandbox, Subject, Usage};
use crate::fault::PolicyFault;
use crate::inspect::Track;
use crate::settings::PolicySettings;
use crate::text::one_line;

/// Longest reason for a pick.
const REASON_BYTES_MAX: usize = 256;

/// A component ready to be asked, with all that a question needs but the question.
pub(crate) struct Asker<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) subject: &'a Subject,
    pub(crate) pre: &'a InstancePre<Guest>,
}

/// An answer or not, and what it took.
pub(crate) type Answered<A> = (Result<A, PolicyFault>, Usage);

/// One version of the interface, linked to one component.
pub(crate) trait Speaks: Send + Sync {
    /// Every pick that it makes.
    fn place(&self, asker: &Asker<'_>, columns: &columns::Placement) -> Answered<Vec<Pick>>;

    fn count(&self, asker: &Asker<'_>, question: &BackupCountQuestion) -> Answered<BackupCountAnswer>;

    /// Whether an error says of itself that it is about the question and not about the parameters.
    fn tells_refusals_apart(&self) -> bool;
}

/// Link a component that speaks `track` and answers `has`.
pub(crate) fn speaker(
    track: Track,
    pre: &InstancePre<Guest>,
    has: impl Fn(Interface) -> bool,
    settings: &PolicySettings,
) -> wasmtime::Result<Box<dyn Speaks>> {
    Ok(match track {
        Track::V01 => Box::new(v01::Speaker::link(pre, has, settings)?),
        Track::V02 => Box::new(v02::Speaker::link(pre, has, settings)?),
    })
}

fn unavailable<A>(interface: Interface) -> Answered<A> {
    (Err(PolicyFault::Unavailable { interface }), Usage::default())
}

fn reason(text: Option<String>) -> Option<String> {
    text.map(|text| one_line(&text, REASON_BYTES_MAX))
}

/// What every version has alike: the calls and the picks. A version brings its bindings, how its columns are made of
/// the first version's, and what its errors mean.
macro_rules! speaker {
    ($version:ident, $columns:path, $counts:path, $refusal:path, $tells_apart:literal) => {
        mod $version {
            use super::*;
            use crate::bindings::$version::exports::understudy::policy::{backup_count, placement};
            use crate::bindings::$version::understudy::policy::types::Parameter;

            pub(super) struct Speaker {
                placement: Option<placement::GuestIndices>,
                backup_count: Option<backup_count::GuestIndices>,
                parameters: Vec<Parameter>,
            }

            impl Speaker {
                pub(super) fn link(
                    pre: &InstancePre<Guest>,
                    has: impl Fn(Interface) -> bool,
                    settings: &PolicySettings,
                ) -> wasmtime::Result<Self> {
                    let (placement, backup_count) = (has(Interface::Placement), has(Interface::BackupCount));
                    let parameters = settings.parameters.iter();
                    Ok(Self {
                        placement: placement.then(|| placement::GuestIndices::new(pre)).transpose()?,
                        backup_count: backup_count
                            .then(|| backup_count::GuestIndices::new(pre))
                            .transpose()?,
                        parameters: parameters
                            .map(|(key, value)| Parameter { key: key.clone(), value: value.clone() })
                            .collect(),
                    })
                }
            }

            impl Speaks for Speaker {
                fn place(&self, asker: &Asker<'_>, columns: &columns::Placement) -> Answered<Vec<Pick>> {
                    let Some(indices) = &self.placement else { return unavailable(Interface::Placement) };
                    let columns = $columns(columns);
                    let (request, hosts) = (&columns.0, &columns.1);
                    let (picks, usage) = asker.sandbox.ask(asker.subject, asker.pre, |store, instance| {
                        let guest = indices.load(&mut *store, instance)?;
                        let picks = guest.call_place(&mut *store, request, hosts, &self.parameters)?;
                        Ok(picks.map_err($refusal))
                    });
                    let pick = |p: placement::Pick| Pick { index: p.host, reason: reason(p.reason) };
                    (picks.map(|picks| picks.into_iter().map(pick).collect()), usage)
                }

                fn count(
                    &self,
                    asker: &Asker<'_>,
                    question: &BackupCountQuestion,
                ) -> Answered<BackupCountAnswer> {
                    let Some(indices) = &self.backup_count else {
                        return unavailable(Interface::BackupCount);
                    };
                    let (request, cluster) = $counts(columns::backup_count(question));
                    let (counts, usage) = asker.sandbox.ask(asker.subject, asker.pre, |store, instance| {
                        let guest = indices.load(&mut *store, instance)?;
                        let counts = guest.call_count(&mut *store, &request, cluster, &self.parameters)?;
                        Ok(counts.map_err($refusal))
                    });
                    let answer = counts.map(|counts| BackupCountAnswer {
                        primaries: counts.primaries,
                        backups: counts.backups,
                        reason: reason(counts.reason),
                    });
                    (answer, usage)
                }

                fn tells_refusals_apart(&self) -> bool {
                    $tells_apart
                }
            }
        }
    };
}

speaker!(v01, std::convert::identity, std::convert::identity, crate::engine::Refusal::Question, false);
speaker!(
    v02,
    crate::columns::v02::placement,
    crate::columns::v02::backup_count,
    crate::columns::v02::refusal,
    true
);
