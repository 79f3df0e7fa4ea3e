//! Certificates for tests, in their folders.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

/// An authority that signs what it is asked to.
pub(crate) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Writes a certificate of `host`: the files of the authority, of the certificate and of its key.
    pub(crate) fn issue(&self, folder: &Path, host: &str) -> [PathBuf; 3] {
        self.issue_with(folder, host, |_| {})
    }

    /// The same with something else in it.
    pub(crate) fn issue_with(
        &self,
        folder: &Path,
        host: &str,
        edit: impl FnOnce(&mut CertificateParams),
    ) -> [PathBuf; 3] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(host.try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        edit(&mut params);
        let key = KeyPair::generate().unwrap();
        let made = params.signed_by(&key, &self.issuer).unwrap();
        let files = ["ca.pem".to_owned(), format!("{host}.pem"), format!("{host}.key")];
        let files = files.map(|name| folder.join(name));
        for (file, text) in files.iter().zip([self.pem.clone(), made.pem(), key.serialize_pem()]) {
            fs::write(file, text).unwrap();
        }
        files
    }
}
