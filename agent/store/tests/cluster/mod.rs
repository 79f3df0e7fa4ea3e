//! A real etcd cluster with TLS on loopback, for one test: members can be killed, frozen and brought back.
//!
//! Every member is ended when the cluster is dropped, and by the kernel if the test's thread ends before.

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod certificates;
pub(crate) mod proxy;

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::{Client, CompactionOptions, ConnectOptions, TlsOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use understudy_store::{Etcd, EtcdConfig, IdentityFiles, Store, TlsFiles};

use certificates::Certificates;

/// For a cluster to start or to agree again, on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const ROOT: &str = "/understudy/v1/";

pub(crate) struct Cluster {
    folder: TempDir,
    pub(crate) certificates: Certificates,
    members: Vec<Member>,
    pub(crate) extra: Vec<String>,
}

struct Member {
    child: Option<Child>,
    client_port: u16,
    peer_port: u16,
}

impl Cluster {
    /// A cluster that has a leader.
    pub(crate) async fn start(size: usize) -> Self {
        Self::start_with(size, &[]).await
    }

    pub(crate) async fn start_with(size: usize, extra: &[&str]) -> Self {
        // Another process may take a port between its choice and its use.
        for _ in 0..5 {
            let folder = tempfile::tempdir().unwrap();
            let certificates = Certificates::make(&folder.path().join("tls"));
            let extra = extra.iter().map(|&argument| argument.to_owned()).collect();
            let mut cluster = Self { folder, certificates, members: ports(size), extra };
            for index in 0..size {
                cluster.launch(index, "new");
            }
            if cluster.agreed().await {
                return cluster;
            }
        }
        panic!("no etcd cluster came up");
    }

    fn launch(&mut self, index: usize, state: &str) {
        let peers =
            |member: (usize, &Member)| format!("m{}=https://127.0.0.1:{}", member.0, member.1.peer_port);
        let initial: Vec<String> = self.members.iter().enumerate().map(peers).collect();
        let member = &self.members[index];
        let client = format!("https://127.0.0.1:{}", member.client_port);
        let peer = format!("https://127.0.0.1:{}", member.peer_port);
        let log = File::create(self.folder.path().join(format!("m{index}-{state}.log"))).unwrap();
        // The parent's death is the end of its thread: `launch` runs on the test's own.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "etcd", "--logger", "zap", "--log-level", "warn"]);
        command.args(["--name", &format!("m{index}"), "--initial-cluster-state", state]);
        command.args(["--initial-cluster", &initial.join(","), "--initial-cluster-token", "understudy-test"]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.arg("--data-dir").arg(self.folder.path().join(format!("m{index}")));
        for prefix in ["", "peer-"] {
            for (option, file) in
                [("cert-file", "server.pem"), ("key-file", "server.key"), ("trusted-ca-file", "ca.pem")]
            {
                command.arg(format!("--{prefix}{option}")).arg(self.certificates.file(file));
            }
            command.arg(format!("--{prefix}client-cert-auth"));
        }
        command.args(&self.extra).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.members[index].child = Some(command.spawn().expect("etcd starts"));
    }

    /// Waits for a leader; `false` if a member ended instead.
    async fn agreed(&mut self) -> bool {
        let store = self.store("start").await;
        let started = Instant::now();
        loop {
            if store.get("none").await.is_ok() {
                return true;
            }
            let ended = |member: &mut Member| {
                member.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some())
            };
            if self.members.iter_mut().any(ended) {
                return false;
            }
            assert!(started.elapsed() < LIMIT, "the cluster has no leader");
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn endpoint(&self, index: usize) -> String {
        format!("https://127.0.0.1:{}", self.members[index].client_port)
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        (0..self.size()).map(|index| self.endpoint(index)).collect()
    }

    pub(crate) fn tls(&self) -> TlsFiles {
        let identity = IdentityFiles {
            certificate: self.certificates.file("client.pem"),
            key: self.certificates.file("client.key"),
        };
        TlsFiles { authority: self.certificates.file("ca.pem"), identity: Some(identity) }
    }

    pub(crate) fn config(&self, client: &str) -> EtcdConfig {
        EtcdConfig { tls: Some(self.tls()), ..EtcdConfig::new(self.endpoints(), ROOT, client) }
    }

    pub(crate) async fn store(&self, client: &str) -> Etcd {
        Etcd::open(self.config(client)).await.unwrap()
    }

    /// A client of one member, for what the store does not do.
    pub(crate) async fn admin(&self, index: usize) -> Client {
        self.admin_at(&self.endpoint(index)).await
    }

    pub(crate) async fn admin_at(&self, endpoint: &str) -> Client {
        let pem = |name: &str| std::fs::read(self.certificates.file(name)).unwrap();
        let tls = TlsOptions::new()
            .ca_certificate(etcd_client::Certificate::from_pem(pem("ca.pem")))
            .identity(etcd_client::Identity::from_pem(pem("client.pem"), pem("client.key")));
        Client::connect([endpoint], Some(ConnectOptions::new().with_tls(tls))).await.unwrap()
    }

    /// The member that leads.
    pub(crate) async fn leader(&self) -> usize {
        let started = Instant::now();
        loop {
            for index in 0..self.size() {
                let mut admin = self.admin(index).await;
                if let Ok(Ok(status)) = timeout(Duration::from_secs(2), admin.status()).await {
                    let me = status.header().unwrap().member_id();
                    if me == status.leader() {
                        return index;
                    }
                }
            }
            assert!(started.elapsed() < LIMIT, "no member leads");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Forgets every change so far.
    pub(crate) async fn compact(&self) {
        let mut admin = self.admin(self.leader().await).await;
        // A compaction keeps what is the newest at its own revision: that is to be a record of nobody's.
        let put = admin.put("/elsewhere", "", None).await.unwrap();
        let revision = put.header().unwrap().revision();
        admin.compact(revision, Some(CompactionOptions::new().with_physical())).await.unwrap();
    }

    fn pid(&self, index: usize) -> Pid {
        let child = self.members[index].child.as_ref().expect("the member runs");
        Pid::from_raw(i32::try_from(child.id()).unwrap())
    }

    /// As a host whose processor stands still: connections stay, nothing answers.
    pub(crate) fn freeze(&self, index: usize) {
        kill(self.pid(index), Signal::SIGSTOP).unwrap();
    }

    pub(crate) fn thaw(&self, index: usize) {
        kill(self.pid(index), Signal::SIGCONT).unwrap();
    }

    pub(crate) fn kill(&mut self, index: usize) {
        let mut child = self.members[index].child.take().expect("the member runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self, index: usize) {
        self.launch(index, "existing");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut child) = member.child.take() {
                // SIGKILL ends a frozen process as well.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "log") {
                    let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                    let tail: Vec<&str> = text.lines().rev().take(5).collect();
                    eprintln!("{}: {tail:#?}", entry.path().display());
                }
            }
        }
    }
}

fn ports(size: usize) -> Vec<Member> {
    // All are held until all are chosen, so that no two are the same.
    let listeners: Vec<TcpListener> =
        (0..2 * size).map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap()).collect();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let member =
        |pair: &[TcpListener]| Member { child: None, client_port: port(&pair[0]), peer_port: port(&pair[1]) };
    listeners.chunks(2).map(member).collect()
}
