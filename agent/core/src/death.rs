//! Owns how an instance died, and what is held against a host.
//!
//! Promises: what follows from a death follows from its variant; the texts in it are for people. The form in records is
//! the variant's name in kebab-case, with its fields: `"not-here"`, `{"moved":{"to":"host2"}}`. Must not do: find a death.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::ids::{Epoch, HostId};
use crate::model::records::CheckpointId;
use crate::model::units::UnixMillis;
use crate::service::Service;

/// How an instance died, by the standard of SAFE-2.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Death {
    /// Its process ended by itself, or was found gone.
    Exited {
        /// How that was seen.
        detail: String,
    },
    /// Its host destroyed it.
    Destroyed {
        /// Why.
        reason: String,
    },
    /// It never came to work as a member. This is held against its host.
    DeployFailed {
        /// What it ran into.
        detail: String,
    },
    /// Its host could not restore it for a while, for want of something else than its image, and another host has a copy of
    /// the state. The copy here is undamaged as far as that host knows.
    NotRestored {
        /// What it ran into.
        detail: String,
    },
    /// Its host gave it back before it had begun, and never begins it in that epoch: what it needs there does not answer.
    Refused {
        /// What does not answer.
        service: Service,
    },
    /// All of it has left by live migration: it runs on, and the migration's destination is authoritative.
    Moved {
        /// Where it is.
        to: HostId,
    },
    /// It is gone in a migration of which the end was not heard: the destination may have all of it or nothing, and is
    /// authoritative.
    MaybeMoved {
        /// Where it may be.
        to: HostId,
    },
    /// It left its source and never arrived at the host that says so.
    NotArrived,
    /// Its host looked for it and has nothing of it.
    NotHere,
    /// The lease of its host was expired.
    HostLost {
        /// Why.
        reason: String,
    },
    /// Its host has a later lease, under which it does not run.
    HostReturned,
}

impl Death {
    /// Whether the migration's destination is authoritative from then on: its own word, or its own death, decides.
    #[must_use]
    pub fn is_move(&self) -> bool {
        match self {
            Self::Moved { .. } | Self::MaybeMoved { .. } => true,
            Self::Exited { .. }
            | Self::Destroyed { .. }
            | Self::DeployFailed { .. }
            | Self::NotRestored { .. }
            | Self::Refused { .. }
            | Self::NotArrived
            | Self::NotHere
            | Self::HostLost { .. }
            | Self::HostReturned => false,
        }
    }

    /// Whether its process was seen to be gone, so that nothing of it arrives anywhere any more. A lease that ran out says so by
    /// the clock alone.
    #[must_use]
    pub fn is_seen(&self) -> bool {
        match self {
            Self::Exited { .. }
            | Self::Destroyed { .. }
            | Self::DeployFailed { .. }
            | Self::NotRestored { .. }
            | Self::Refused { .. }
            | Self::NotHere => true,
            Self::Moved { .. }
            | Self::MaybeMoved { .. }
            | Self::NotArrived
            | Self::HostLost { .. }
            | Self::HostReturned => false,
        }
    }

    /// Whether it is to be held against the host: a kill says nothing about the host, a failed deployment does.
    #[must_use]
    pub fn is_failed_deployment(&self) -> bool {
        match self {
            Self::DeployFailed { .. } | Self::NotRestored { .. } => true,
            Self::Exited { .. }
            | Self::Destroyed { .. }
            | Self::Refused { .. }
            | Self::Moved { .. }
            | Self::MaybeMoved { .. }
            | Self::NotArrived
            | Self::NotHere
            | Self::HostLost { .. }
            | Self::HostReturned => false,
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { detail } => f.write_str(detail),
            Self::Destroyed { reason } => f.write_str(reason),
            Self::DeployFailed { detail } => write!(f, "deployment failed: {detail}"),
            Self::NotRestored { detail } => write!(f, "not restored there in time: {detail}"),
            Self::Refused { service } => {
                write!(f, "refused before it had begun: its host's {service} does not answer")
            }
            Self::Moved { to } => write!(f, "moved away to {to}"),
            Self::MaybeMoved { to } => write!(f, "moved away to {to}, or ended on the way"),
            Self::NotArrived => f.write_str("it left its source and did not arrive"),
            Self::NotHere => f.write_str("is not on this host"),
            Self::HostLost { reason } => write!(f, "host lost: {reason}"),
            Self::HostReturned => f.write_str("host came back without it"),
        }
    }
}

/// Something that went wrong with a member on a host; the node avoids the host for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cooldown {
    /// The host.
    pub host: HostId,
    /// What went wrong.
    pub cause: CooldownCause,
    /// When.
    pub at: UnixMillis,
}

impl Cooldown {
    /// Whether a restore on `host` is no better for it.
    #[must_use]
    pub fn bars_a_restore_on(&self, host: &HostId) -> bool {
        &self.host == host && self.cause.bars_a_restore()
    }
}

/// What is held against a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum CooldownCause {
    /// A member died there.
    Died {
        /// How.
        death: Death,
        /// In which epoch of its node: it tells one death from the next.
        epoch: Epoch,
        /// The checkpoint that it was to be restored from; none where it was not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<CheckpointId>,
    },
    /// A live migration did not come to an end there.
    MigrationFailed {
        /// The migration's epoch.
        epoch: Epoch,
        /// What its source ran into.
        reason: String,
    },
    /// It took no copies of the node's checkpoints. What it took before can still be restored there.
    NoCopies {
        /// Why not.
        fault: CopyFault,
        /// The epoch of the node.
        epoch: Epoch,
    },
}

impl CooldownCause {
    /// The checkpoint that a restore found damaged; none where it was none, or failed for another reason.
    #[must_use]
    pub fn damaged(&self) -> Option<CheckpointId> {
        match self {
            Self::Died { death: Death::DeployFailed { .. }, from, .. } => *from,
            Self::Died { .. } | Self::MigrationFailed { .. } | Self::NoCopies { .. } => None,
        }
    }

    /// Whether a restore there is no better: what kept copies or a live migration from coming in says nothing about the
    /// copies that are there.
    #[must_use]
    pub fn bars_a_restore(&self) -> bool {
        match self {
            Self::Died { .. } => true,
            Self::MigrationFailed { .. } | Self::NoCopies { .. } => false,
        }
    }
}

/// Why a copy of a checkpoint did not come to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum CopyFault {
    /// Its agent was not reached, or the connection broke.
    Unreachable {
        /// What the sender ran into.
        detail: String,
    },
    /// Its agent refused it.
    Refused {
        /// What that said.
        detail: String,
    },
    /// It accepted no byte for [`crate::bounds::COPY_STALL`].
    Stalled,
    /// It took longer than a copy of that size may.
    Slow,
}

impl fmt::Display for CopyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { detail } => write!(f, "cannot be reached: {detail}"),
            Self::Refused { detail } => write!(f, "refuses it: {detail}"),
            Self::Stalled => f.write_str("accepts nothing any more"),
            Self::Slow => f.write_str("is too slow"),
        }
    }
}

impl fmt::Display for CooldownCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Died { death, epoch, .. } => write!(f, "{death}, in epoch {epoch}"),
            Self::MigrationFailed { epoch, reason } => {
                write!(f, "migration in epoch {epoch} failed: {reason}")
            }
            Self::NoCopies { fault, epoch } => {
                write!(f, "it took no checkpoints in epoch {epoch}: {fault}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<(Death, &'static str, &'static str)> {
        let to: HostId = "host2".parse().unwrap();
        let text = || "moved away to deployment failed".to_owned();
        vec![
            (
                Death::Exited { detail: text() },
                "moved away to deployment failed",
                r#"{"exited":{"detail":"moved away to deployment failed"}}"#,
            ),
            (
                Death::Destroyed { reason: text() },
                "moved away to deployment failed",
                r#"{"destroyed":{"reason":"moved away to deployment failed"}}"#,
            ),
            (
                Death::DeployFailed { detail: "no role disk".to_owned() },
                "deployment failed: no role disk",
                r#"{"deploy-failed":{"detail":"no role disk"}}"#,
            ),
            (
                Death::NotRestored { detail: "EIO".to_owned() },
                "not restored there in time: EIO",
                r#"{"not-restored":{"detail":"EIO"}}"#,
            ),
            (
                Death::Refused { service: Service::Guard },
                "refused before it had begun: its host's guard does not answer",
                r#"{"refused":{"service":"guard"}}"#,
            ),
            (Death::Moved { to: to.clone() }, "moved away to host2", r#"{"moved":{"to":"host2"}}"#),
            (
                Death::MaybeMoved { to },
                "moved away to host2, or ended on the way",
                r#"{"maybe-moved":{"to":"host2"}}"#,
            ),
            (Death::NotArrived, "it left its source and did not arrive", r#""not-arrived""#),
            (Death::NotHere, "is not on this host", r#""not-here""#),
            (
                Death::HostLost { reason: "silent".to_owned() },
                "host lost: silent",
                r#"{"host-lost":{"reason":"silent"}}"#,
            ),
            (Death::HostReturned, "host came back without it", r#""host-returned""#),
        ]
    }

    #[test]
    fn a_death_reads_back_as_it_was_written_and_its_form_is_stable() {
        for (death, shown, written) in all() {
            assert_eq!(death.to_string(), shown);
            assert_eq!(serde_json::to_string(&death).unwrap(), written);
            assert_eq!(serde_json::from_str::<Death>(written).unwrap(), death);
        }
    }

    #[test]
    fn what_follows_from_a_death_follows_from_its_variant_and_never_from_its_text() {
        for (death, ..) in all() {
            let named = format!("{death:?}");
            assert_eq!(
                death.is_move(),
                named.starts_with("Moved") || named.starts_with("MaybeMoved"),
                "{named}"
            );
            let by_the_clock = ["Moved", "MaybeMoved", "NotArrived", "HostLost", "HostReturned"];
            assert_eq!(death.is_seen(), !by_the_clock.iter().any(|word| named.starts_with(word)), "{named}");
            let failed = named.starts_with("DeployFailed") || named.starts_with("NotRestored");
            assert_eq!(death.is_failed_deployment(), failed, "{named}");
        }
    }
}
