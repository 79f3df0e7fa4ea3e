//! Certificates for one test, made by openssl in its folder.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An authority and what it signed.
pub(crate) struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// An authority with a certificate for members on loopback and one for clients.
    pub(crate) fn make(folder: &Path) -> Self {
        let config = "[req]\ndistinguished_name=dn\n[dn]\n\
            [ca]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n\
            [server]\nsubjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n\
            [client]\nextendedKeyUsage=clientAuth\n";
        std::fs::create_dir_all(folder).unwrap();
        let this = Self { folder: folder.to_owned() };
        std::fs::write(this.file("openssl.cnf"), config).unwrap();
        this.sign("ca", "ca", false);
        this.sign("server", "server", true);
        this.sign("client", "client", true);
        this
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes `<name>.pem` and `<name>.key`, signed by the authority or by itself.
    pub(crate) fn sign(&self, name: &str, extensions: &str, by_authority: bool) {
        let mut command = Command::new("openssl");
        command.current_dir(&self.folder).args(["req", "-x509", "-new", "-nodes", "-days", "2"]);
        command.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-config", "openssl.cnf"]);
        command.args(["-subj", &format!("/CN={name}"), "-extensions", extensions]);
        command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
        if by_authority {
            command.args(["-CA", "ca.pem", "-CAkey", "ca.key"]);
        }
        let output = command.output().expect("openssl runs");
        assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    }
}
