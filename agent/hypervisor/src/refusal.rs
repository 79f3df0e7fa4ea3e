//! Owns the translation of libvirt's error numbers into a few kinds that callers branch on.
//!
//! Promises: no number of libvirt passes this file. Must not do: look at a message's text.

use virt::error::{Error, ErrorDomain, ErrorNumber};

/// What libvirt answered instead of doing as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What sort of refusal it is.
    pub kind: RefusalKind,
    /// libvirt's own words.
    pub message: String,
}

/// What sort of refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// libvirt has no such instance.
    NoInstance,
    /// There is one of that UUID or name.
    AlreadyThere,
    /// The permit hook refused.
    NotPermitted,
    /// Another job holds the instance.
    Busy,
    /// The guest's agent does not answer.
    AgentSilent,
    /// This hypervisor cannot do it.
    Unsupported,
    /// The instance's state does not allow it.
    WrongState,
    /// The description is not acceptable.
    BadDescription,
    /// The job was cancelled.
    Aborted,
    /// The migration would endanger a disk.
    UnsafeMigration,
    /// The connection broke.
    ConnectionLost,
    /// Another sort.
    Other,
}

pub(crate) fn refusal(error: &Error) -> Refusal {
    Refusal { kind: kind(error), message: error.message().to_owned() }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "libvirt adds error numbers; the rest is one kind to us")]
fn kind(error: &Error) -> RefusalKind {
    use ErrorNumber as N;
    if error.domain() == ErrorDomain::Rpc && error.code() != N::NoSupport {
        return RefusalKind::ConnectionLost;
    }
    match error.code() {
        N::NoDomain => RefusalKind::NoInstance,
        N::DomExist => RefusalKind::AlreadyThere,
        N::HookScriptFailed => RefusalKind::NotPermitted,
        N::OperationTimeout => RefusalKind::Busy,
        N::AgentUnresponsive | N::AgentUnsynced => RefusalKind::AgentSilent,
        N::NoSupport | N::NoConnect | N::OperationUnsupported | N::ArgumentUnsupported => {
            RefusalKind::Unsupported
        }
        N::OperationInvalid => RefusalKind::WrongState,
        N::XmlError | N::XmlDetail | N::XmlInvalidSchema | N::ConfigUnsupported => {
            RefusalKind::BadDescription
        }
        N::OperationAborted => RefusalKind::Aborted,
        N::MigrateUnsafe => RefusalKind::UnsafeMigration,
        N::Rpc | N::InvalidConn => RefusalKind::ConnectionLost,
        _ => RefusalKind::Other,
    }
}
