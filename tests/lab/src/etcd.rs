//! The etcd members of a lab: one per host up to five, TLS between members and for clients.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::error::LabError;
use crate::net::{self, NetNs};
use crate::pki::{HOST_CA, HOST_CERT, HOST_KEY, Pki};
use crate::service::ServiceSpec;
use crate::{tool, wait};

/// More members make every write slower and survive no more than two losses are likely.
const MEMBERS_MAX: u8 = 5;

/// How many hosts carry a member.
pub(crate) fn members(hosts: u8) -> u8 {
    hosts.min(MEMBERS_MAX)
}

/// Client addresses of all members.
pub(crate) fn endpoints(hosts: u8) -> Vec<String> {
    (1..=members(hosts)).map(|index| format!("https://{}:2379", net::mgmt(index))).collect()
}

/// The member of host `index`.
pub(crate) fn service(index: u8, hosts: u8, heartbeat_ms: u32, election_ms: u32) -> ServiceSpec {
    let (name, ip) = (net::host_name(index), net::mgmt(index));
    let peers: Vec<String> = (1..=members(hosts))
        .map(|i| format!("{}=https://{}:2380", net::host_name(i), net::mgmt(i)))
        .collect();
    let (peer, client) = (format!("https://{ip}:2380"), format!("https://{ip}:2379"));
    let argv = [
        "etcd".to_owned(),
        format!("--name={name}"),
        "--data-dir=/var/lib/etcd".to_owned(),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--listen-client-urls={client},https://127.0.0.1:2379"),
        format!("--advertise-client-urls={client}"),
        format!("--initial-cluster={}", peers.join(",")),
        "--initial-cluster-state=new".to_owned(),
        "--initial-cluster-token=understudy-lab".to_owned(),
        format!("--heartbeat-interval={heartbeat_ms}"),
        format!("--election-timeout={election_ms}"),
        format!("--cert-file={HOST_CERT}"),
        format!("--key-file={HOST_KEY}"),
        format!("--trusted-ca-file={HOST_CA}"),
        "--client-cert-auth".to_owned(),
        format!("--peer-cert-file={HOST_CERT}"),
        format!("--peer-key-file={HOST_KEY}"),
        format!("--peer-trusted-ca-file={HOST_CA}"),
        "--peer-client-cert-auth".to_owned(),
    ];
    // Ready as soon as started: a member alone waits for its peers, and its host must boot all the same.
    ServiceSpec::new("etcd", argv)
}

/// Runs etcdctl as the switch's client.
pub(crate) fn ctl(
    switch: &NetNs,
    pki: &Pki,
    endpoints: &[String],
    limit: Duration,
    args: &[&str],
) -> Result<String, LabError> {
    let path = |path: &Path| path.display().to_string();
    let (ca, cert, key) = (path(&pki.ca()), path(&pki.cert("switch")), path(&pki.key("switch")));
    switch.run(|| {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &endpoints.join(",")]);
        command.args(["--cacert", &ca, "--cert", &cert, "--key", &key]);
        command.args([format!("--command-timeout={}ms", limit.as_millis()), "--dial-timeout=1s".to_owned()]);
        tool::run(command.args(args), "")
    })?
}

/// Waits until a write goes through a quorum.
pub(crate) fn wait_writable(
    switch: &NetNs,
    pki: &Pki,
    endpoints: &[String],
    limit: Duration,
) -> Result<(), LabError> {
    wait::until("etcd takes a write", limit, || {
        let args = ["put", "/lab/writable", "1"];
        ctl(switch, pki, endpoints, Duration::from_secs(2), &args).map(drop).map_err(|error| error.chain())
    })
}
