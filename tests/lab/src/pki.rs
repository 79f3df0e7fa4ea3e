//! One authority per lab and one certificate per host, for libvirt, qemu, etcd and the agents.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::error::{At, LabError};
use crate::net;

/// What the certificates of hosts are called where etcd and the agents look for them.
pub(crate) const HOST_CA: &str = "/etc/understudy/pki/ca.pem";
pub(crate) const HOST_CERT: &str = "/etc/understudy/pki/agent.pem";
pub(crate) const HOST_KEY: &str = "/etc/understudy/pki/agent.key";

const ORGANIZATION: &str = "understudy lab";

/// The certificates of a lab, in one folder of the machine.
#[derive(Clone, Debug)]
pub(crate) struct Pki {
    dir: PathBuf,
}

impl Pki {
    pub(crate) fn in_dir(lab: &Path) -> Pki {
        Pki { dir: lab.join("pki") }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    pub(crate) fn cert(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pem"))
    }

    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.key"))
    }

    /// Makes the authority, a certificate for each host and one for the switch, where the tests are.
    pub(crate) fn generate(&self, hosts: u8) -> Result<(), LabError> {
        fs::create_dir_all(&self.dir).at("create", &self.dir)?;
        let issuer = self.authority()?;
        for index in 1..=hosts {
            let name = net::host_name(index);
            let addresses = [net::mgmt(index), net::vm(index), Ipv4Addr::LOCALHOST];
            self.issue(&issuer, &name, &[&name, "localhost"], &addresses)?;
        }
        self.issue(&issuer, "switch", &["switch"], &[net::MGMT_SWITCH])
    }

    /// Makes the authority. Nobody signs anything later: its key is not kept.
    fn authority(&self) -> Result<Issuer<'static, KeyPair>, LabError> {
        let mut params = parameters();
        params.distinguished_name.push(DnType::CommonName, ORGANIZATION);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().for_("the authority")?;
        let made = params.self_signed(&key).for_("the authority")?;
        write(&self.ca(), &made.pem(), 0o644)?;
        Ok(Issuer::new(params, key))
    }

    fn issue(
        &self,
        issuer: &Issuer<'_, KeyPair>,
        name: &str,
        names: &[&str],
        addresses: &[Ipv4Addr],
    ) -> Result<(), LabError> {
        let mut params = parameters();
        params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
        params.distinguished_name.push(DnType::CommonName, name);
        for &name in names {
            params.subject_alt_names.push(SanType::DnsName(name.try_into().for_(name)?));
        }
        params.subject_alt_names.extend(addresses.iter().map(|&address| SanType::IpAddress(address.into())));
        // libvirt looks for both, and that it is no authority.
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().for_(name)?;
        let made = params.signed_by(&key, issuer).for_(name)?;
        write(&self.cert(name), &made.pem(), 0o644)?;
        write(&self.key(name), &key.serialize_pem(), 0o600)
    }

    /// Puts the certificates of `name` where libvirt, qemu, etcd and the agent look for them below `etc`.
    pub(crate) fn install(&self, name: &str, etc: &Path) -> Result<(), LabError> {
        let (ca, cert, key) = (self.ca(), self.cert(name), self.key(name));
        let files: [(&Path, &str); 13] = [
            (&ca, "pki/CA/cacert.pem"),
            (&cert, "pki/libvirt/servercert.pem"),
            (&key, "pki/libvirt/private/serverkey.pem"),
            (&cert, "pki/libvirt/clientcert.pem"),
            (&key, "pki/libvirt/private/clientkey.pem"),
            (&ca, "pki/qemu/ca-cert.pem"),
            (&cert, "pki/qemu/server-cert.pem"),
            (&key, "pki/qemu/server-key.pem"),
            (&cert, "pki/qemu/client-cert.pem"),
            (&key, "pki/qemu/client-key.pem"),
            (&ca, "understudy/pki/ca.pem"),
            (&cert, "understudy/pki/agent.pem"),
            (&key, "understudy/pki/agent.key"),
        ];
        for (from, to) in files {
            let to = etc.join(to);
            let folder = to.parent().expect("the path has a folder");
            fs::create_dir_all(folder).at("create", folder)?;
            fs::copy(from, &to).at("copy to", &to)?;
        }
        Ok(())
    }
}

/// What all have in common. Long enough for every lab, and within the dates that every library reads alike.
fn parameters() -> CertificateParams {
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2049, 12, 31));
    params.distinguished_name = DistinguishedName::new();
    params
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), LabError> {
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    opened.and_then(|mut file| file.write_all(text.as_bytes())).at("write", path)
}

/// Names whose certificate it was.
trait For<T> {
    fn for_(self, name: &str) -> Result<T, LabError>;
}

impl<T> For<T> for Result<T, rcgen::Error> {
    fn for_(self, name: &str) -> Result<T, LabError> {
        self.map_err(|source| LabError::Certificate { name: name.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

    use super::*;

    fn identity(pki: &Pki, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let certificate = CertificateDer::from_pem_file(pki.cert(name)).unwrap();
        (vec![certificate], PrivateKeyDer::from_pem_file(pki.key(name)).unwrap())
    }

    /// Whether `client`, which trusts `pki`, and `server` accept each other under the name `called`.
    fn accepted(pki: &Pki, client: (&Pki, &str), server: &str, called: &str) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pki.ca()).unwrap()).unwrap();
        let roots = Arc::new(roots);
        let (certificates, key) = identity(client.0, client.1);
        let ours = ClientConfig::builder().with_root_certificates(roots.clone());
        let ours = ours.with_client_auth_cert(certificates, key).unwrap();
        let (certificates, key) = identity(pki, server);
        let verifier = WebPkiClientVerifier::builder(roots).build().unwrap();
        let theirs = ServerConfig::builder().with_client_cert_verifier(verifier);
        let theirs = theirs.with_single_cert(certificates, key).unwrap();
        let name = ServerName::try_from(called.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(ours), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(theirs)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn hosts_and_switch_accept_each_other_by_name_and_address_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let (pki, other) = (Pki::in_dir(&folder.path().join("a")), Pki::in_dir(&folder.path().join("b")));
        for pki in [&pki, &other] {
            pki.generate(2).unwrap();
        }
        let one = net::host_name(1);
        let addresses = [net::mgmt(1), net::vm(1), Ipv4Addr::LOCALHOST].map(|address| address.to_string());
        for called in [one.as_str(), "localhost"].into_iter().chain(addresses.iter().map(String::as_str)) {
            accepted(&pki, (&pki, "switch"), &one, called)
                .unwrap_or_else(|error| panic!("{called}: {error}"));
        }
        accepted(&pki, (&pki, &one), &net::host_name(2), &net::host_name(2)).unwrap();
        accepted(&pki, (&pki, &one), "switch", &net::MGMT_SWITCH.to_string()).unwrap();
        assert!(accepted(&pki, (&pki, &one), &net::host_name(2), &one).is_err(), "another's name");
        assert!(accepted(&pki, (&other, &one), &one, &one).is_err(), "another lab's client");
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(pki.key(&one)), mode(pki.cert(&one))), (0o600, 0o644));
    }
}
