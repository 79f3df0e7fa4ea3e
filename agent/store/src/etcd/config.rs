//! Owns what an operator says about the etcd cluster, and what of it can be wrong without asking the cluster.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::InvalidRequest;
use crate::rules::RESERVED;

/// How to reach the cluster.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// `https://host:port` of each member (`http://` without `tls`). One is enough to work, all are needed to
    /// survive the loss of one.
    pub endpoints: Vec<String>,
    /// The prefix of every key, such as `/understudy/v1/`.
    pub root: String,
    /// A name that no other client of this cluster uses at the same time: the host's id. It names the few keys
    /// by which a commit that is sent twice is applied once.
    pub client: String,
    /// The certificates. `None`: no encryption, for a cluster on loopback only.
    pub tls: Option<TlsFiles>,
    /// etcd's own users, where the cluster has authentication on.
    pub user: Option<Credentials>,
    /// How long to wait for what.
    pub timeouts: Timeouts,
}

/// Files in PEM form.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The authority that signed the members' certificates.
    pub authority: PathBuf,
    /// This client's own, where the cluster asks for one (`--client-cert-auth`).
    pub identity: Option<IdentityFiles>,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    /// The certificate, with its chain if it has one.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A user of etcd.
#[derive(Clone)]
pub struct Credentials {
    /// The name.
    pub name: String,
    /// The password, which no log shows.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection to one member, with its TLS handshake.
    pub connect: Duration,
    /// For an answer of one member, before another is asked. Doubled in each round through all members after
    /// the second: the first two find a working member, the others wait for a slow one.
    pub attempt: Duration,
    /// For the whole call, with all its attempts.
    pub request: Duration,
    /// How often a member that serves a watch is asked whether it is there. It is given up after three times
    /// as long without a word.
    pub watch_probe: Duration,
}

impl Default for Timeouts {
    /// `attempt` is several times what a loaded disk takes for one sync, and less than etcd's own election
    /// (1 to 1.5 s), so that the attempt after the election is made at once. `request` leaves room for an
    /// election and two attempts after it.
    fn default() -> Self {
        Self {
            connect: Duration::from_millis(500),
            attempt: Duration::from_millis(500),
            request: Duration::from_secs(5),
            watch_probe: Duration::from_millis(400),
        }
    }
}

impl EtcdConfig {
    /// A configuration with the default time-outs, without TLS and without a user.
    #[must_use]
    pub fn new(endpoints: Vec<String>, root: impl Into<String>, client: impl Into<String>) -> Self {
        Self {
            endpoints,
            root: root.into(),
            client: client.into(),
            tls: None,
            user: None,
            timeouts: Timeouts::default(),
        }
    }

    pub(super) fn check(&self) -> Result<(), InvalidRequest> {
        let wrong = |text: String| Err(InvalidRequest::Configuration(text));
        if self.endpoints.is_empty() {
            return wrong(
                "no etcd endpoint is configured: name at least one, such as https://host:2379".into(),
            );
        }
        let scheme = if self.tls.is_some() { "https://" } else { "http://" };
        for endpoint in &self.endpoints {
            if endpoint.strip_prefix(scheme).is_none_or(str::is_empty) {
                let why = if self.tls.is_some() { "with certificates" } else { "without certificates" };
                return wrong(format!("the etcd endpoint '{endpoint}' must begin with {scheme} {why}"));
            }
        }
        if !(self.root.starts_with('/') && self.root.ends_with('/')) || self.root.contains("//") {
            return wrong(format!("the etcd root '{}' must begin and end with one '/'", self.root));
        }
        if self.client.is_empty() || self.client.contains('/') || self.client.starts_with(RESERVED) {
            return wrong(format!("the etcd client name '{}' must be a plain name", self.client));
        }
        let Timeouts { connect, attempt, request, watch_probe } = self.timeouts;
        if [connect, attempt, watch_probe].iter().any(Duration::is_zero) || request < attempt {
            return wrong(format!(
                "the etcd time-outs must be above zero and the request's ({request:?}) not below the attempt's ({attempt:?})"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> EtcdConfig {
        EtcdConfig::new(vec!["http://127.0.0.1:2379".into()], "/understudy/v1/", "alpha")
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_own_words() {
        let tls = || Some(TlsFiles { authority: "ca.pem".into(), identity: None });
        let short = Timeouts { request: Duration::from_millis(1), ..Timeouts::default() };
        let table = [
            (good(), ""),
            (EtcdConfig { endpoints: vec![], ..good() }, "no etcd endpoint"),
            (EtcdConfig { endpoints: vec!["a:2379".into()], ..good() }, "'a:2379' must begin with http://"),
            (EtcdConfig { endpoints: vec!["http://".into()], ..good() }, "must begin with http://"),
            (EtcdConfig { tls: tls(), ..good() }, "must begin with https://"),
            (EtcdConfig { root: "understudy".into(), ..good() }, "root 'understudy'"),
            (EtcdConfig { root: "/a//".into(), ..good() }, "root '/a//'"),
            (EtcdConfig { client: "a/b".into(), ..good() }, "client name 'a/b'"),
            (EtcdConfig { timeouts: short, ..good() }, "time-outs"),
        ];
        for (config, words) in table {
            let text = config.check().err().map(|error| error.to_string()).unwrap_or_default();
            assert!(text.contains(words) && text.is_empty() == words.is_empty(), "{words:?}: {text:?}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        let user = Credentials { name: "agent".into(), password: "secret-word".into() };
        let text = format!("{:?}", EtcdConfig { user: Some(user), ..good() });
        assert!(text.contains("agent") && !text.contains("secret-word"), "{text}");
    }
}
