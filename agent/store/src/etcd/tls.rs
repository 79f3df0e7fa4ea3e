//! Owns the reading of certificate files, so that what is wrong is said with the file's name.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::config::{IdentityFiles, TlsFiles};
use super::fault::handshake_error;
use crate::error::{BoxError, StoreError};

/// Reads and checks the files.
pub(super) fn read(files: &TlsFiles) -> Result<ClientTlsConfig, StoreError> {
    let (authority, _) = certificates(&files.authority, "the certificate authority of etcd")?;
    let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
    match &files.identity {
        None => Ok(config),
        Some(files) => Ok(config.identity(identity(files)?)),
    }
}

fn identity(files: &IdentityFiles) -> Result<Identity, StoreError> {
    let (certificate, chain) = certificates(&files.certificate, "the client certificate for etcd")?;
    let key_words = "the client key for etcd";
    let key = contents(&files.key, key_words)?;
    let der = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|error| unusable(&files.key, key_words, "a private key", error))?;
    CertifiedKey::from_der(chain, der, &ring::default_provider()).map_err(|error| StoreError::Denied {
        problem: format!("{key_words} in {} does not fit the certificate", files.key.display()),
        advice: format!("put the key that belongs to {} there", files.certificate.display()),
        file: Some(files.key.clone()),
        source: Some(Box::new(error)),
    })?;
    Ok(Identity::from_pem(certificate, key))
}

fn certificates(path: &Path, what: &str) -> Result<(Vec<u8>, Vec<CertificateDer<'static>>), StoreError> {
    let bytes = contents(path, what)?;
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| unusable(path, what, "a certificate", error))?;
    if found.is_empty() {
        return Err(unusable(path, what, "a certificate", pem::Error::NoItemsFound));
    }
    for certificate in &found {
        // Parses it, as a later handshake would do with less to say.
        RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|error| unusable(path, what, "a certificate", error))?;
    }
    Ok((bytes, found))
}

fn contents(path: &Path, what: &str) -> Result<Vec<u8>, StoreError> {
    fs::read(path).map_err(|error| StoreError::Denied {
        problem: format!("cannot read {what}, {}", path.display()),
        advice: "see that the file is there and that the agent's user may read it".to_owned(),
        file: Some(path.to_owned()),
        source: Some(Box::new(error)),
    })
}

fn unusable(path: &Path, what: &str, wanted: &str, source: impl Into<BoxError>) -> StoreError {
    StoreError::Denied {
        problem: format!("{what}, {}, does not hold {wanted} that can be used", path.display()),
        advice: "put a file in PEM form there".to_owned(),
        file: Some(path.to_owned()),
        source: Some(source.into()),
    }
}

/// Shakes hands with a member and says what it has against this client.
///
/// With TLS 1.3 a member looks at the client's certificate after the client has taken the handshake for done
/// and sent its first request. The member's refusal is then lost when the connection is reset, or kept as mere
/// text by h2. Here nothing is sent, so that the refusal arrives. `None`: the fault is another.
pub(super) async fn diagnose(endpoint: &Uri, files: &TlsFiles) -> Option<rustls::Error> {
    let (host, port) = (endpoint.host()?, endpoint.port_u16()?);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = TcpStream::connect((host.clone(), port)).await.ok()?;
    let connector = TlsConnector::from(Arc::new(client(files)?));
    let name = ServerName::try_from(host).ok()?;
    let failed = match connector.connect(name, stream).await {
        Err(error) => error,
        // A member that is content sends its settings at once.
        Ok(mut stream) => stream.read_u8().await.err()?,
    };
    handshake_error(&failed)
}

fn client(files: &TlsFiles) -> Option<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&files.authority, "").ok()?.1);
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(roots);
    let mut config = match &files.identity {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let chain = certificates(&files.certificate, "").ok()?.1;
            let key = PrivateKeyDer::from_pem_slice(&contents(&files.key, "").ok()?).ok()?;
            builder.with_client_auth_cert(chain, key).ok()?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Some(config)
}

/// What a failed handshake with `endpoint` means to the operator.
pub(super) fn handshake(endpoint: &str, files: Option<&TlsFiles>, error: rustls::Error) -> StoreError {
    let authority = files.map(|files| files.authority.clone());
    let own = files.and_then(|files| files.identity.as_ref()).map(|identity| identity.certificate.clone());
    let shown = |path: &Option<PathBuf>| {
        path.as_ref().map_or_else(|| "none is configured".to_owned(), |path| path.display().to_string())
    };
    let (problem, advice, file) = match &error {
        rustls::Error::InvalidCertificate(_) => (
            format!(
                "the certificate of {endpoint} was not accepted by the authority in {}",
                shown(&authority)
            ),
            "see that this authority signed it for that name or address, and that neither has expired",
            authority,
        ),
        rustls::Error::AlertReceived(_) => (
            format!("{endpoint} did not accept the client certificate ({})", shown(&own)),
            "give this client a certificate that is signed by the authority which etcd trusts, and not expired",
            own,
        ),
        _ => {
            (format!("no encrypted connection to {endpoint}"), "see that etcd serves TLS on that port", None)
        }
    };
    StoreError::Denied { problem, advice: advice.to_owned(), file, source: Some(Box::new(error)) }
}
