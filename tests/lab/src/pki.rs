//! One authority per lab and one certificate per host, for libvirt, qemu, etcd and the agents.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{At, LabError};
use crate::{net, tool};

/// What the certificates of hosts are called where etcd and the agents look for them.
pub(crate) const HOST_CA: &str = "/etc/understudy/pki/ca.pem";
pub(crate) const HOST_CERT: &str = "/etc/understudy/pki/agent.pem";
pub(crate) const HOST_KEY: &str = "/etc/understudy/pki/agent.key";

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
        self.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "3650",
            "-subj",
            "/CN=understudy lab",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ])?;
        for index in 1..=hosts {
            let name = net::host_name(index);
            let names = format!(
                "DNS:{name},DNS:localhost,IP:{},IP:{},IP:127.0.0.1",
                net::mgmt(index),
                net::vm(index)
            );
            self.issue(&name, &names)?;
        }
        self.issue("switch", &format!("DNS:switch,IP:{}", net::MGMT_SWITCH))
    }

    fn issue(&self, name: &str, names: &str) -> Result<(), LabError> {
        let extensions = format!(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature,keyEncipherment\n\
             extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName={names}\n"
        );
        let file = self.dir.join(format!("{name}.ext"));
        fs::write(&file, extensions).at("write", &file)?;
        let (key, csr, pem, ext) =
            (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"), format!("{name}.ext"));
        let subject = format!("/O=understudy lab/CN={name}");
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            &subject,
            "-keyout",
            &key,
            "-out",
            &csr,
        ])?;
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "3650",
            "-out",
            &pem,
            "-extfile",
            &ext,
        ])
    }

    fn openssl(&self, args: &[&str]) -> Result<(), LabError> {
        tool::run(Command::new("openssl").args(args).current_dir(&self.dir), "").map(drop)
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
