//! Owns a connection to a peer: over TLS, where the peer's certificate names the host that is meant; or in the clear, where
//! it does not leave this machine.
//!
//! Promises: nothing is sent before that is certain; what is wrong is said with what to do about it, on which host. Must not
//! do: know what is sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use understudy_core::model::ids::HostId;

use super::identity::{Identity, name_of, refusal};
use crate::config::is_loopback;

/// What agents know each other by.
#[derive(Debug, Clone, Default)]
pub enum Security {
    /// Nothing: they are all on this machine, and talk over loopback.
    #[default]
    Loopback,
    /// Certificates.
    Certificates(Arc<Identity>),
}

/// A peer, and how it is reached.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// Which host's agent is meant.
    pub host: &'a HostId,
    /// `host:port`, as it has reported it.
    pub address: &'a str,
    /// What it is known by.
    pub security: &'a Security,
}

/// Why a connection is of no use though somebody answers.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// It would leave the machine in the clear.
    #[error(
        "{0} is on another machine, and nothing would be encrypted on the way: give this host [peers] in its configuration"
    )]
    Clear(HostId),
    /// This host has none.
    #[error("this host has no certificate that can be used: see its `understudy status`")]
    NoCertificate,
    /// The peer's certificate is not accepted.
    #[error("the certificate of {host} {}", refusal(.source, host))]
    Refused {
        /// The peer.
        host: HostId,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The peer does not accept this host's certificate.
    #[error(
        "{host} does not accept this host's certificate: see that peers.ca is the same on both, and their clocks; \
         its log says more"
    )]
    RefusedThere {
        /// The peer.
        host: HostId,
        /// What it says.
        #[source]
        source: rustls::Error,
    },
    /// It answers in something else.
    #[error("{host} does not answer in TLS 1.3: give it [peers] in its configuration and restart its agent")]
    Plain {
        /// The peer.
        host: HostId,
        /// What came.
        #[source]
        source: rustls::Error,
    },
    /// It ended the connection.
    #[error("{host} ended the connection before it was secured: see `understudy status` and the log there")]
    Ended {
        /// The peer.
        host: HostId,
        /// How.
        #[source]
        source: io::Error,
    },
    /// Something else of TLS.
    #[error("{host} does not keep to the protocol: see that both agents are of the same version")]
    Protocol {
        /// The peer.
        host: HostId,
        /// What.
        #[source]
        source: rustls::Error,
    },
}

impl SecurityError {
    fn of(host: &HostId, error: io::Error) -> Self {
        let host = host.clone();
        let Some(source) = rustls_error(&error) else { return Self::Ended { host, source: error } };
        match source {
            rustls::Error::InvalidCertificate(_) => Self::Refused { host, source },
            rustls::Error::AlertReceived(
                AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure,
            )
            | rustls::Error::InvalidMessage(_)
            | rustls::Error::InappropriateMessage { .. }
            | rustls::Error::PeerIncompatible(_) => Self::Plain { host, source },
            rustls::Error::AlertReceived(_) => Self::RefusedThere { host, source },
            _ => Self::Protocol { host, source },
        }
    }
}

/// What TLS says in an error of the stream.
pub(super) fn rustls_error(error: &io::Error) -> Option<rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>().cloned()
}

/// A connection over which a peer may be asked.
#[derive(Debug)]
pub(super) enum Connection {
    /// Within this machine.
    Loopback(TcpStream),
    /// With the host that was meant.
    Secure(Box<TlsStream<TcpStream>>, HostId),
}

impl Connection {
    /// Secures a stream to this peer.
    pub(super) async fn over(stream: TcpStream, peer: &Peer<'_>) -> Result<Self, SecurityError> {
        let ended = |source| SecurityError::Ended { host: peer.host.clone(), source };
        let identity = match peer.security {
            Security::Certificates(identity) => identity,
            Security::Loopback if is_loopback(stream.peer_addr().map_err(ended)?) => {
                return Ok(Self::Loopback(stream));
            }
            Security::Loopback => return Err(SecurityError::Clear(peer.host.clone())),
        };
        let settings = identity.client().ok_or(SecurityError::NoCertificate)?;
        let unnamed =
            || SecurityError::Refused { host: peer.host.clone(), source: rustls::Error::UnsupportedNameType };
        let name = name_of(peer.host).ok_or_else(unnamed)?;
        // The request follows the handshake's last word, and need not wait until that is acknowledged.
        stream.set_nodelay(true).map_err(ended)?;
        let connected = TlsConnector::from(settings).connect(name, stream).await;
        let stream = connected.map_err(|error| SecurityError::of(peer.host, error))?;
        Ok(Self::Secure(Box::new(stream), peer.host.clone()))
    }
}

/// With TLS 1.3 the peer looks at this host's certificate after the handshake is over here: what it has against it comes in
/// place of an answer.
fn explained(host: &HostId, error: io::Error) -> io::Error {
    match rustls_error(&error) {
        Some(rustls::Error::AlertReceived(_)) => io::Error::new(error.kind(), SecurityError::of(host, error)),
        Some(_) | None => error,
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Loopback(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Secure(stream, host) => {
                Pin::new(stream).poll_read(context, buffer).map_err(|error| explained(host, error))
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Loopback(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Secure(stream, _) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Loopback(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            Self::Secure(stream, _) => Pin::new(stream).poll_write_vectored(context, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Loopback(stream) => stream.is_write_vectored(),
            Self::Secure(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Loopback(stream) => Pin::new(stream).poll_flush(context),
            Self::Secure(stream, _) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Loopback(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Secure(stream, _) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
