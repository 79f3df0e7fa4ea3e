//! Owns the accepting of connections of peers: TLS 1.3, and a certificate of the cluster's authority from each.
//!
//! Promises: nothing is read of a request before that is certain; who is slow at a handshake keeps nobody else waiting.
//! Must not do: decide what a peer may do (`api` does, by what its certificate names).

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use rustls::client::verify_server_name;
use rustls::pki_types::CertificateDer;
use rustls::server::ParsedCertificate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use understudy_core::model::ids::HostId;

use super::connection::rustls_error;
use super::identity::{Identity, name_of};
use crate::exit::chain;

/// A handshake on the network between hosts, as the other end bounds it.
const HANDSHAKE: Duration = super::CONNECT;
/// Handshakes at a time: several times the peers that send to one host at once. Others wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 64;
/// How long one that was refused has to read why, and how much it may yet send: a connection that is closed before all of
/// that was read is reset, and the refusal lost.
const PARTING: (Duration, u64) = (Duration::from_secs(1), 64 * 1024);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Caller {
    /// What it has shown, and has the key of; none of this end's own.
    certificate: Option<CertificateDer<'static>>,
}

impl Caller {
    /// Which of these hosts its certificate names.
    #[must_use]
    pub fn named_of<'h>(&self, hosts: impl IntoIterator<Item = &'h HostId>) -> BTreeSet<HostId> {
        let Some(Ok(certificate)) = self.certificate.as_ref().map(ParsedCertificate::try_from) else {
            return BTreeSet::new();
        };
        let is_named = |host: &&HostId| {
            name_of(host).is_some_and(|name| verify_server_name(&certificate, &name).is_ok())
        };
        hosts.into_iter().filter(is_named).cloned().collect()
    }
}

impl Connected<IncomingStream<'_, PeerListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, PeerListener>) -> Self {
        stream.remote_addr().clone()
    }
}

type Accepted = (TlsStream<TcpStream>, Caller);

/// Connections of peers.
#[derive(Debug)]
pub struct PeerListener {
    tcp: TcpListener,
    identity: Arc<Identity>,
    handshakes: JoinSet<Option<Accepted>>,
}

impl PeerListener {
    /// Accepts what comes to `tcp` with what `identity` has at that time.
    #[must_use]
    pub fn new(tcp: TcpListener, identity: Arc<Identity>) -> Self {
        Self { tcp, identity, handshakes: JoinSet::new() }
    }
}

impl Listener for PeerListener {
    type Io = TlsStream<TcpStream>;
    type Addr = Caller;

    async fn accept(&mut self) -> Accepted {
        loop {
            let may_begin = self.handshakes.len() < HANDSHAKES_MAX;
            tokio::select! {
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Some(accepted)) = done {
                        return accepted;
                    }
                }
                (stream, address) = Listener::accept(&mut self.tcp), if may_begin => {
                    self.handshakes.spawn(shake(stream, address, self.identity.clone()));
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Caller> {
        self.tcp.local_addr().map(|_| Caller { certificate: None })
    }
}

async fn shake(stream: TcpStream, address: SocketAddr, identity: Arc<Identity>) -> Option<Accepted> {
    let Some(settings) = identity.server() else {
        tracing::debug!(%address, "a peer finds no certificate here");
        return None;
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%address, %error, "a peer's connection keeps its delays");
    }
    let accepting = TlsAcceptor::from(settings).accept(stream).into_fallible();
    match timeout(HANDSHAKE, accepting).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let certificate = shown.map(|shown| shown.clone().into_owned());
            Some((stream, Caller { certificate }))
        }
        Ok(Err((error, stream))) => {
            refused(address, &error);
            part(stream).await;
            None
        }
        Err(_) => {
            tracing::debug!(%address, "a handshake took too long");
            None
        }
    }
}

fn refused(address: SocketAddr, error: &io::Error) {
    let reason = chain(error);
    match rustls_error(error) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            tracing::warn!(%address, reason, "a peer is refused for its certificate: see that peers.ca is the same on both hosts, and their clocks");
        }
        Some(_) | None => tracing::debug!(%address, reason, "a connection of a peer has failed"),
    }
}

/// Lets the other end read what is wrong.
async fn part(mut stream: TcpStream) {
    let (time, bytes) = PARTING;
    let _ = stream.shutdown().await;
    let mut rest = stream.take(bytes);
    let _ = timeout(time, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
}
