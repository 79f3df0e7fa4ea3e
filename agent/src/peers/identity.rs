//! Owns this host's certificate for its peers: what its files have to be, the settings of connections that are made of them,
//! and their renewal.
//!
//! Promises: files are taken into use only after they were verified as a peer would verify them, so that bad ones never
//! replace good ones; TLS 1.3 and nothing older, a certificate from both ends, and no connection that is resumed without
//! one. Must not do: open connections.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use understudy_core::model::ids::HostId;

use crate::config::PeerFiles;

/// How long before its end a certificate is a condition of its host: time for whoever renews it by hand. Tools that renew do
/// so when a third of the validity is left, which is longer for all that are valid for three weeks and more.
pub const EXPIRES_SOON: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why this host's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("cannot read {}: see that the file is there and that the agent's user may read it", path.display())]
    Read {
        /// Of the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file has something else in it.
    #[error("{} does not hold {wanted} that can be used: put a file in PEM form there", path.display())]
    Content {
        /// Of the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The key is another certificate's.
    #[error("{} is not the key of {}: put the one that belongs to it there", key.display(), certificate.display())]
    OtherKey {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
        /// What was compared.
        #[source]
        source: rustls::Error,
    },
    /// No peer would accept the certificate.
    #[error("no peer would accept {}, which {}", path.display(), refusal(.source, host))]
    Refused {
        /// The certificate's file.
        path: PathBuf,
        /// Whom it should name.
        host: HostId,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

impl IdentityError {
    /// The key of the configuration that is at fault.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            Self::Read { key, .. } | Self::Content { key, .. } => key,
            Self::OtherKey { .. } => "peers.key",
            Self::Refused { .. } => "peers.cert",
        }
    }
}

/// What is wrong with a certificate that should name `host`, and what to do, as words that follow it.
pub(super) fn refusal(error: &rustls::Error, host: &HostId) -> String {
    let rustls::Error::InvalidCertificate(fault) = error else {
        return "cannot be used: issue another".to_owned();
    };
    match fault {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "has expired: renew it, or see the clocks of the hosts".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet: see the clocks of the hosts".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "was not signed by an authority of peers.ca: all hosts need certificates of the same one"
                .to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("does not name {host}: issue one with subjectAltName=DNS:{host}")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is not for both ends of a connection: issue one with extendedKeyUsage=serverAuth,clientAuth"
                .to_owned()
        }
        _ => "cannot be used: issue another".to_owned(),
    }
}

/// A host as certificates name it; none for a name that reads as a number.
pub(crate) fn name_of(host: &HostId) -> Option<ServerName<'static>> {
    ServerName::try_from(host.as_str().to_owned()).ok()
}

/// Files that were found good.
#[derive(Debug)]
pub struct Verified {
    /// Authority, certificate and key as they are in the files.
    texts: [Vec<u8>; 3],
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    /// Whether the certificate ends within [`EXPIRES_SOON`].
    expires_soon: bool,
}

/// Reads the files of `host` and verifies its certificate as its peers will.
///
/// # Errors
/// What is wrong with which file.
pub fn read(host: &HostId, files: &PeerFiles) -> Result<Verified, IdentityError> {
    let loaded = Loaded::of(files)?;
    let now = UnixTime::now();
    let refused =
        |source| IdentityError::Refused { path: files.certificate.clone(), host: host.clone(), source };
    loaded.verify(host, now).map_err(refused)?;
    let soon = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + EXPIRES_SOON);
    let expires_soon = loaded.verify(host, soon).is_err();
    loaded.settle(files, expires_soon)
}

/// What files hold, whatever it is worth.
struct Loaded {
    texts: [Vec<u8>; 3],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    of_server: Arc<WebPkiServerVerifier>,
    of_client: Arc<dyn ClientCertVerifier>,
}

impl Loaded {
    fn of(files: &PeerFiles) -> Result<Self, IdentityError> {
        let authority = contents("peers.ca", &files.authority)?;
        let mut roots = RootCertStore::empty();
        for root in certificates("peers.ca", &files.authority, &authority)? {
            roots.add(root).map_err(|error| no_certificate("peers.ca", &files.authority, error))?;
        }
        let certificate = contents("peers.cert", &files.certificate)?;
        let chain = certificates("peers.cert", &files.certificate, &certificate)?;
        let key = contents("peers.key", &files.key)?;
        let der = PrivateKeyDer::from_pem_slice(&key).map_err(|error| IdentityError::Content {
            key: "peers.key",
            path: files.key.clone(),
            wanted: "a private key",
            source: Box::new(error),
        })?;
        let unusable = |error: VerifierBuilderError| no_certificate("peers.ca", &files.authority, error);
        let roots = Arc::new(roots);
        let of_server = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider());
        let of_client = WebPkiClientVerifier::builder_with_provider(roots, provider());
        Ok(Self {
            texts: [authority, certificate, key],
            chain,
            key: der,
            of_server: of_server.build().map_err(unusable)?,
            of_client: of_client.build().map_err(unusable)?,
        })
    }

    /// As both ends of a connection of `host` do.
    fn verify(&self, host: &HostId, at: UnixTime) -> Result<(), rustls::Error> {
        let (leaf, rest) = self.chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let name = name_of(host).ok_or(rustls::Error::UnsupportedNameType)?;
        self.of_client.verify_client_cert(leaf, rest, at)?;
        self.of_server.verify_server_cert(leaf, rest, &name, &[], at)?;
        Ok(())
    }

    fn settle(self, files: &PeerFiles, expires_soon: bool) -> Result<Verified, IdentityError> {
        let other_key = |source| IdentityError::OtherKey {
            key: files.key.clone(),
            certificate: files.certificate.clone(),
            source,
        };
        let texts = self.texts.clone();
        let (client, server) = self.settings().map_err(other_key)?;
        Ok(Verified { texts, client: Arc::new(client), server: Arc::new(server), expires_soon })
    }

    fn settings(self) -> Result<(ClientConfig, ServerConfig), rustls::Error> {
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_webpki_verifier(self.of_server)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        // Each connection presents its certificates anew: what has expired or was replaced ends with the next one.
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(self.of_client)
            .with_single_cert(self.chain, self.key)?;
        server.send_tls13_tickets = 0;
        Ok((client, server))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn contents(key: &'static str, path: &Path) -> Result<Vec<u8>, IdentityError> {
    std::fs::read(path).map_err(|source| IdentityError::Read { key, path: path.to_owned(), source })
}

fn no_certificate(
    key: &'static str,
    path: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> IdentityError {
    IdentityError::Content { key, path: path.to_owned(), wanted: "a certificate", source: source.into() }
}

fn certificates(
    key: &'static str,
    path: &Path,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(|error| no_certificate(key, path, error))?;
    if found.is_empty() {
        return Err(no_certificate(key, path, pem::Error::NoItemsFound));
    }
    Ok(found)
}

/// What a look at the files has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// They have changed, and new connections use what is in them.
    pub renewed: bool,
    /// The certificate ends within [`EXPIRES_SOON`].
    pub expires_soon: bool,
}

/// What this host shows its peers, and what it verifies them by.
#[derive(Debug)]
pub struct Identity {
    host: HostId,
    files: PeerFiles,
    current: Mutex<Option<Arc<Verified>>>,
}

impl Identity {
    /// Nothing is read yet, and until then there are no connections.
    #[must_use]
    pub fn new(host: HostId, files: PeerFiles) -> Self {
        Self { host, files, current: Mutex::new(None) }
    }

    /// Shows what is in the files as it is: what an agent would not do, but another program may.
    #[cfg(test)]
    pub(super) fn unverified(host: HostId, files: PeerFiles) -> Self {
        let verified = Loaded::of(&files).and_then(|loaded| loaded.settle(&files, false)).unwrap();
        Self { host, files, current: Mutex::new(Some(Arc::new(verified))) }
    }

    /// Reads the files, and uses what is in them from then on if it is good. Blocks for as long as a file is read.
    ///
    /// # Errors
    /// What is wrong with which file: what was in use before stays so.
    pub fn look(&self) -> Result<Look, IdentityError> {
        let read = read(&self.host, &self.files)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let expires_soon = read.expires_soon;
        let renewed = current.as_ref().is_none_or(|current| current.texts != read.texts);
        if renewed {
            *current = Some(Arc::new(read));
        }
        Ok(Look { renewed, expires_soon })
    }

    fn current(&self) -> Option<Arc<Verified>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How connections to peers are made; none before the files were good.
    #[must_use]
    pub fn client(&self) -> Option<Arc<ClientConfig>> {
        self.current().map(|current| current.client.clone())
    }

    /// How connections of peers are accepted; none before the files were good.
    #[must_use]
    pub fn server(&self) -> Option<Arc<ServerConfig>> {
        self.current().map(|current| current.server.clone())
    }
}
