//! Agents that reach each other over loopback, with certificates of every kind.

mod certificates;
mod copies;
mod files;

use std::net::SocketAddr;
use std::path::Path;

use axum::extract::ConnectInfo;
use axum::routing::get;
use axum::{Json, Router};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, date_time_ymd};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{AlertDescription, ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;
use understudy_core::model::ids::HostId;
use understudy_policy::Digest;

use super::connection::rustls_error;
use super::identity::{Identity, name_of};
use super::listener::{Caller, PeerListener};
use super::*;
use crate::config::PeerFiles;
use certificates::Authority;

const COMPONENT: &[u8] = b"a component";

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn files([authority, certificate, key]: [PathBuf; 3]) -> PeerFiles {
    PeerFiles { authority, certificate, key }
}

/// Two agents, each with its folder.
struct Pair {
    authority: Authority,
    own: TempDir,
    theirs: TempDir,
}

impl Pair {
    fn new() -> Self {
        let folder = || tempfile::tempdir().unwrap();
        Self { authority: Authority::new(), own: folder(), theirs: folder() }
    }

    fn client(&self) -> Arc<Identity> {
        good("host1", self.authority.issue(self.own.path(), "host1"))
    }

    fn server(&self) -> Arc<Identity> {
        good("host2", self.authority.issue(self.theirs.path(), "host2"))
    }
}

fn good(name: &str, written: [PathBuf; 3]) -> Arc<Identity> {
    let identity = Identity::new(host(name), files(written));
    identity.look().unwrap();
    Arc::new(identity)
}

fn any(name: &str, written: [PathBuf; 3]) -> Arc<Identity> {
    Arc::new(Identity::unverified(host(name), files(written)))
}

/// A peer that has [`COMPONENT`], and says who asks.
async fn serve(identity: Arc<Identity>) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let asked = |ConnectInfo(caller): ConnectInfo<Caller>| async move {
        Json(caller.named_of(&["host1", "host2", "host3"].map(host)))
    };
    let router = Router::new()
        .route("/v1/policies/{digest}", get(async || COMPONENT))
        .route("/named", get(asked))
        .into_make_service_with_connect_info::<Caller>();
    let listener = PeerListener::new(tcp, identity);
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn fetch(own: &Arc<Identity>, name: &str, address: SocketAddr) -> Result<Bytes, String> {
    let (host, address) = (host(name), address.to_string());
    let security = Security::Certificates(own.clone());
    let peer = Peer { host: &host, address: &address, security: &security };
    fetch_component(peer, &Digest::of(COMPONENT), MiB(1)).await
}

/// Fetches, and is refused in these words.
async fn refused(own: &Arc<Identity>, name: &str, address: SocketAddr, words: &[&str]) {
    let error = fetch(own, name, address).await.unwrap_err();
    for word in words {
        assert!(error.contains(word), "{word}: {error}");
    }
}

fn expired(params: &mut CertificateParams) {
    params.not_after = date_time_ymd(2020, 1, 1);
}

/// What a client with these settings hears from the peer in place of an answer.
async fn alert(settings: ClientConfig, name: &str, address: SocketAddr) -> AlertDescription {
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(settings));
    let error = match connector.connect(name_of(&host(name)).unwrap(), stream).await {
        Err(error) => error,
        Ok(mut stream) => {
            let _ = stream.write_all(b"GET /named HTTP/1.1\r\nhost: x\r\n\r\n").await;
            stream.read_to_end(&mut Vec::new()).await.unwrap_err()
        }
    };
    match rustls_error(&error) {
        Some(rustls::Error::AlertReceived(alert)) => alert,
        other => panic!("{other:?}: {error}"),
    }
}

/// One that shows no certificate.
fn nameless(authority: &Path, version: &'static SupportedProtocolVersion) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

#[tokio::test]
async fn peers_of_one_authority_reach_each_other_and_know_who_asks() {
    let pair = Pair::new();
    let (own, address) = (pair.client(), serve(pair.server()).await);
    assert_eq!(fetch(&own, "host2", address).await.unwrap(), COMPONENT);
    let name = name_of(&host("host2")).unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = TlsConnector::from(own.client().unwrap()).connect(name, stream).await.unwrap();
    stream.write_all(b"GET /named HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert!(said.ends_with(r#"["host1"]"#), "{said}");
}

#[tokio::test]
async fn a_client_without_a_certificate_or_with_tls_1_2_is_refused() {
    let pair = Pair::new();
    let address = serve(pair.server()).await;
    let authority = pair.theirs.path().join("ca.pem");
    let refused = alert(nameless(&authority, &rustls::version::TLS13), "host2", address).await;
    assert_eq!(refused, AlertDescription::CertificateRequired);
    let refused = alert(nameless(&authority, &rustls::version::TLS12), "host2", address).await;
    assert_eq!(refused, AlertDescription::ProtocolVersion);
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused_by_either_end() {
    let (pair, stranger) = (Pair::new(), Pair::new());
    let address = serve(pair.server()).await;
    refused(
        &stranger.client(),
        "host2",
        address,
        &[
            "no secure connection to 127.0.0.1",
            "the certificate of host2 was not signed by an authority of peers.ca",
        ],
    )
    .await;
    // It trusts the peer, but the peer does not trust it.
    let [authority, ..] = pair.authority.issue(pair.own.path(), "host1");
    let [_, certificate, key] = stranger.authority.issue(stranger.own.path(), "host1");
    let own = any("host1", [authority, certificate, key]);
    refused(&own, "host2", address, &["host2 does not accept this host's certificate", "peers.ca"]).await;
}

/// A good certificate of one host does not make it another.
#[tokio::test]
async fn a_peer_whose_certificate_names_another_host_is_refused_by_name() {
    let pair = Pair::new();
    let (own, address) = (pair.client(), serve(pair.server()).await);
    refused(
        &own,
        "host3",
        address,
        &["the certificate of host3 does not name host3: issue one with subjectAltName=DNS:host3", "host2"],
    )
    .await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_either_end() {
    let pair = Pair::new();
    let late = any("host2", pair.authority.issue_with(pair.theirs.path(), "host2", expired));
    refused(
        &pair.client(),
        "host2",
        serve(late).await,
        &["the certificate of host2 has expired: renew it, or see the clocks of the hosts"],
    )
    .await;
    let own = any("host1", pair.authority.issue_with(pair.own.path(), "host1", expired));
    let words = ["host2 does not accept this host's certificate", "clocks", "Expired"];
    refused(&own, "host2", serve(pair.server()).await, &words).await;
}

#[tokio::test]
async fn a_certificate_for_clients_alone_is_none_of_a_peer() {
    let pair = Pair::new();
    let only = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    let theirs = any("host2", pair.authority.issue_with(pair.theirs.path(), "host2", only));
    refused(&pair.client(), "host2", serve(theirs).await, &["extendedKeyUsage=serverAuth,clientAuth"]).await;
}

#[tokio::test]
async fn what_is_in_the_clear_is_neither_accepted_nor_sent() {
    let pair = Pair::new();
    let address = serve(pair.server()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /named HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    // A record of type alert, and nothing else.
    assert!(said.first() == Some(&21) && said.len() < 16, "{said:?}");

    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap();
    let router = Router::new().route("/v1/policies/{digest}", get(async || COMPONENT));
    tokio::spawn(async move { axum::serve(plain, router).await });
    let words = ["host2 does not answer in TLS 1.3: give it [peers] in its configuration"];
    refused(&pair.client(), "host2", address, &words).await;
}

#[tokio::test]
async fn an_agent_whose_files_were_never_good_has_no_connections_until_they_are() {
    let pair = Pair::new();
    let written = pair.authority.issue(pair.theirs.path(), "host2");
    let key = std::fs::read(&written[2]).unwrap();
    std::fs::write(&written[2], "no key").unwrap();
    let theirs = Arc::new(Identity::new(host("host2"), files(written.clone())));
    assert!(theirs.look().is_err());
    let address = serve(theirs.clone()).await;
    let own = pair.client();
    refused(
        &own,
        "host2",
        address,
        &["host2 ended the connection before it was secured", "understudy status"],
    )
    .await;
    refused(&theirs, "host1", address, &["this host has no certificate that can be used"]).await;
    std::fs::write(&written[2], key).unwrap();
    theirs.look().unwrap();
    assert_eq!(fetch(&own, "host2", address).await.unwrap(), COMPONENT);
}

#[tokio::test]
async fn who_never_ends_a_handshake_keeps_nobody_waiting() {
    let pair = Pair::new();
    let (own, address) = (pair.client(), serve(pair.server()).await);
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let fetched = timeout(CONNECT / 2, fetch(&own, "host2", address)).await;
    assert_eq!(fetched.unwrap().unwrap(), COMPONENT);
}

/// Both ends go over to an authority that nobody knew when they started.
#[tokio::test]
async fn renewed_certificates_are_used_by_the_next_connection() {
    let pair = Pair::new();
    let (own, theirs) = (pair.client(), pair.server());
    let address = serve(theirs.clone()).await;
    assert!(fetch(&own, "host2", address).await.is_ok());
    let other = Authority::new();
    other.issue(pair.theirs.path(), "host2");
    assert!(theirs.look().unwrap().renewed);
    refused(&own, "host2", address, &["was not signed by an authority of peers.ca"]).await;
    other.issue(pair.own.path(), "host1");
    assert!(own.look().unwrap().renewed);
    assert_eq!(fetch(&own, "host2", address).await.unwrap(), COMPONENT);
}
