//! Owns the sorting of what etcd and the connection say into what the caller may do next.

use std::error::Error;
use std::fmt;

use etcd_client::Error as ClientError;
use tonic::{Code, Status};

use crate::error::BoxError;

/// What a fault means for a request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It was surely not applied; another member may be asked.
    NotApplied,
    /// It may have been applied; another member may be asked.
    Unclear,
    /// The revision asked for is gone.
    Compacted,
    /// This client may not do it.
    Denied,
    /// The request is wrong.
    Wrong,
    /// The cluster cannot take writes before an operator has acted.
    Full,
}

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    /// Set for a failed handshake.
    pub(super) tls: Option<rustls::Error>,
    pub(super) source: BoxError,
}

/// A member that did not keep to the protocol, or not to the time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Odd {
    #[error("the member answered without a header")]
    NoHeader,
    #[error("the member's answer does not fit the request")]
    Answer,
    #[error("no answer within {0:?}")]
    Silent(std::time::Duration),
    #[error("the member closed the watch")]
    WatchClosed,
    #[error("the member ended the watch: {0}")]
    WatchCancelled(String),
}

/// The end of a request that no member did. Its cause is what the last one said.
#[derive(Debug, thiserror::Error)]
#[error("no etcd member did it ({endpoints})")]
pub(super) struct NoMember {
    /// All that could be asked, as the operator configured them.
    pub(super) endpoints: String,
    #[source]
    pub(super) source: BoxError,
}

impl Fault {
    pub(super) fn new(kind: Kind, source: impl Into<BoxError>) -> Self {
        Self { kind, tls: None, source: source.into() }
    }

    pub(super) fn no_header() -> Self {
        Self::new(Kind::Unclear, Odd::NoHeader)
    }

    /// A fault before anything was sent.
    pub(super) fn connecting(error: impl Error + Send + Sync + 'static) -> Self {
        let tls = handshake_error(&error);
        Self { kind: Kind::NotApplied, tls, source: Box::new(error) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::error::chain(&*self.source))
    }
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        // The client's error names no source, although it has one: it is looked at before it is boxed.
        let tls = match &error {
            ClientError::GRpcStatus(status) => handshake_error(status),
            ClientError::TransportError(transport) => handshake_error(transport),
            _ => None,
        };
        let kind = match &error {
            // A handshake that the member ended carried no request.
            _ if tls.is_some() => Kind::NotApplied,
            ClientError::GRpcStatus(status) => sort(status.code(), status.message()),
            ClientError::InvalidArgs(_) | ClientError::InvalidUri(_) => Kind::Wrong,
            _ => Kind::Unclear,
        };
        let source: BoxError = match error {
            ClientError::GRpcStatus(status) => Box::new(Report::from(status)),
            other => Box::new(other),
        };
        Self { kind, tls, source }
    }
}

/// A status without tonic's listing of headers.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Report {
    message: String,
    #[source]
    status: Option<BoxError>,
}

impl From<Status> for Report {
    fn from(status: Status) -> Self {
        let message = if status.message().is_empty() {
            status.code().description().to_owned()
        } else {
            status.message().to_owned()
        };
        let cause = status.source().map(crate::error::chain);
        Self { message, status: cause.map(Into::into) }
    }
}

/// etcd's codes cover several meanings each, so its fixed messages are looked at as well (they are part of its
/// API: `rpctypes/error.go`).
fn sort(code: Code, message: &str) -> Kind {
    let says = |words: &str| message.contains(words);
    match code {
        Code::PermissionDenied => Kind::Denied,
        Code::InvalidArgument if says("authentication failed") || says("user name is empty") => Kind::Denied,
        Code::FailedPrecondition if says("authentication is not enabled") => Kind::Denied,
        // A token that has expired; the next connection gets a new one.
        Code::Unauthenticated => Kind::NotApplied,
        Code::InvalidArgument => Kind::Wrong,
        Code::OutOfRange if says("has been compacted") => Kind::Compacted,
        Code::ResourceExhausted if says("database space exceeded") => Kind::Full,
        Code::ResourceExhausted if says("too many requests") => Kind::NotApplied,
        Code::Unavailable if says("no leader") => Kind::NotApplied,
        _ => Kind::Unclear,
    }
}

/// The TLS error at the bottom of a failed connection, if there is one.
pub(super) fn handshake_error(error: &(dyn Error + 'static)) -> Option<rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls.clone());
        }
        // An I/O error holds another error that is not its source.
        if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            let inner: &(dyn Error + 'static) = inner;
            if let Some(tls) = handshake_error(inner) {
                return Some(tls);
            }
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_messages_are_sorted_by_what_the_caller_may_do() {
        let table = [
            (Code::Unavailable, "etcdserver: no leader", Kind::NotApplied),
            (Code::Unavailable, "etcdserver: request timed out", Kind::Unclear),
            (Code::Unavailable, "etcdserver: leader changed", Kind::Unclear),
            (Code::PermissionDenied, "etcdserver: permission denied", Kind::Denied),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                Kind::Denied,
            ),
            (Code::InvalidArgument, "etcdserver: user name is empty", Kind::Denied),
            (Code::InvalidArgument, "etcdserver: request is too large", Kind::Wrong),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", Kind::Compacted),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Kind::Full),
            (Code::Unauthenticated, "etcdserver: invalid auth token", Kind::NotApplied),
            (Code::Internal, "h2 protocol error", Kind::Unclear),
            (Code::Unknown, "transport error", Kind::Unclear),
        ];
        for (code, message, kind) in table {
            assert_eq!(sort(code, message), kind, "{code:?} {message}");
        }
    }

    #[test]
    fn a_tls_error_is_found_inside_an_io_error() {
        let tls = rustls::Error::HandshakeNotComplete;
        let io = std::io::Error::new(std::io::ErrorKind::InvalidData, tls.clone());
        assert_eq!(handshake_error(&io), Some(tls));
        assert_eq!(handshake_error(&std::io::Error::other("x")), None);
    }
}
