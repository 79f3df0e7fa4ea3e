//! Owns the stage of tests with agents in this process: the memory store, a hypervisor that is played with guests that do
//! what they are told, a guard that acknowledges everything, and policies made from text.

#[path = "../../src/peers/tests/certificates.rs"]
pub(crate) mod certificates;
#[path = "../../policy/tests/common/guests.rs"]
pub(crate) mod guests;
#[path = "../../policy/tests/common/samples.rs"]
pub(crate) mod samples;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use understudy::api::{self, ApiState};
use understudy::config::Config;
use understudy::gateway::{self, GatewayState, Limits, SCREEN_PORT};
use understudy::keys::{Key, decode, encode};
use understudy::metrics::Metrics;
use understudy::peers::Security;
use understudy::peers::identity::Identity;
use understudy::peers::listener::{Caller, PeerListener};
use understudy::policy_manager::Policies;
use understudy::policy_manager::status::PoliciesStatus;
use understudy::runtime::{Parts, Runtime, Snapshot};
use understudy_checkpoint::{ImageStore, ReadyImages};
use understudy_core::model::ids::{BootId, HostId};
use understudy_core::model::records::{Capacity, HostFacts, LeaseRecord};
use understudy_core::model::units::{MiB, Vcpus};
use understudy_core::sets::{PolicySetRecord, RefusedSet, SetFacts};
use understudy_hypervisor::fake::Site;
use understudy_hypervisor::permit::Permits;
use understudy_hypervisor::{GuestOutput, Template};
use understudy_store::MemoryStore;
use understudy_store::{Committed, Store, Txn};

/// What nothing here should ever take, on however busy a machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// One agent.
pub(crate) struct Agent {
    pub(crate) folder: PathBuf,
    pub(crate) parts: Arc<Parts>,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    stop: watch::Sender<bool>,
    running: Option<tokio::task::JoinHandle<()>>,
    home: PathBuf,
}

fn config(home: &Path, name: &str, api: &str, more: &str) -> Config {
    let text = format!(
        r#"
[host]
name = "{name}"
state_dir = "{home}/state"
runtime_dir = "{home}/run"
[store]
kind = "embedded"
[pool]
idle = 0
[network]
addresses = "10.0.0.2-10.0.0.9"
[environments]
desktop = "/nowhere/role.erofs"
[api]
listen = "{api}"
[policies]
dir = "{home}/policies"
{more}
"#,
        home = home.display()
    );
    Config::parse(Path::new("agent.toml"), &text).unwrap()
}

/// The section of an agent that its peers reach over TLS, at an address that is chosen when it starts.
pub(crate) fn peers(files: &[PathBuf; 3]) -> String {
    let [ca, cert, key] = files;
    format!("[peers]\nlisten = \"PEERS\"\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n")
}

/// As the daemon serves its peers.
fn serve_peers(listener: TcpListener, state: ApiState) {
    let Security::Certificates(identity) = state.parts.security.clone() else { return };
    identity.look().unwrap();
    let router = api::peers(state).into_make_service_with_connect_info::<Caller>();
    tokio::spawn(async move { axum::serve(PeerListener::new(listener, identity), router).await });
}

impl Agent {
    /// Starts an agent in `home`, where an earlier one of the same name may have left its state.
    pub(crate) async fn start(home: &Path, name: &str, store: &MemoryStore, more: &str) -> Self {
        fs::create_dir_all(home.join(name).join("policies")).unwrap();
        Self::start_without_folder(home, name, store, more).await
    }

    /// The same where nobody has made the folder of policies.
    pub(crate) async fn start_without_folder(
        home: &Path,
        name: &str,
        store: &MemoryStore,
        more: &str,
    ) -> Self {
        let home = home.join(name);
        for folder in ["state", "run"] {
            fs::create_dir_all(home.join(folder)).unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let of_peers = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let more = more.replace("PEERS", &of_peers.local_addr().unwrap().to_string());
        let config = config(&home, name, &listener.local_addr().unwrap().to_string(), &more);
        let security = config.peers.as_ref().map_or(Security::Loopback, |peers| {
            Security::Certificates(Arc::new(Identity::new(config.host.clone(), peers.files.clone())))
        });
        guard(&config.guard_socket);
        let metrics = Arc::new(Metrics::new().unwrap());
        let shipped = include_str!("../../../config/guest/template.xml");
        let site = Site::default();
        site.set_guest(Arc::new(|_, _, _| GuestOutput { exit: 0, stdout: Vec::new(), stderr: Vec::new() }));
        let hypervisor = site.host(&format!("fake://{name}"), Vcpus(16), MiB(16_384));
        config.environments.values().for_each(|disk| hypervisor.put_role_disk(disk, Ok(())));
        let images = ImageStore::open(&home.join("state/checkpoints")).unwrap();
        let parts = Arc::new(Parts {
            boot: BootId("boot".to_owned()),
            machine: Default::default(),
            store: Arc::new(store.another()),
            hypervisor: Arc::new(hypervisor),
            template: Arc::new(Template::parse(shipped).unwrap()),
            permits: Permits::open(&home.join("run/permits")).unwrap(),
            policies: Arc::new(Policies::open(&config, &metrics)),
            ready_images: Arc::new(ReadyImages::open(images.clone(), &home.join("ready"), 0).unwrap()),
            images: Arc::new(images),
            keeping: Default::default(),
            checkpoint_tier: Default::default(),
            trackers: Default::default(),
            security,
            members: Default::default(),
            tasks: Default::default(),
            scratch: home.join("run"),
            metrics,
            config,
        });
        let (publisher, directory) = gateway::directory();
        let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let gateway = GatewayState::new(directory, SCREEN_PORT, Limits::default()).counters();
        let capacity = Some(Capacity { vcpus: Vcpus(16), memory: MiB(16_384) });
        let runtime =
            Runtime::new(parts.clone(), capacity, tokio::sync::mpsc::unbounded_channel(), publisher, sender);
        let events = runtime.events();
        let state = ApiState { parts: parts.clone(), snapshots: snapshots.clone(), gateway, events };
        let socket = UnixListener::bind(&parts.config.api_socket).unwrap();
        serve_peers(of_peers, state.clone());
        let operators = api::local(state.clone());
        tokio::spawn(async move { axum::serve(socket, operators).await });
        tokio::spawn(async move { axum::serve(listener, api::local(state)).await });
        let (stop, stopping) = watch::channel(false);
        let lease_store: Arc<dyn understudy_store::Store> = Arc::new(store.another());
        let running = Some(tokio::spawn(async move {
            let store: understudy::runtime::OpenStore = Box::pin(std::future::ready(lease_store));
            runtime.run(store, stopping).await.unwrap();
        }));
        Self { folder: home.join("policies"), parts, snapshots, stop, running, home }
    }

    pub(crate) async fn stop(&mut self) {
        self.stop.send_replace(true);
        self.running.take().unwrap().await.unwrap();
        for socket in ["run/guard.sock", "run/api.sock"] {
            let _ = fs::remove_file(self.home.join(socket));
        }
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        // As `cp` would, but whole: beside it, then renamed.
        let partial = self.folder.join(format!("{name}.partial"));
        fs::write(&partial, bytes).unwrap();
        fs::rename(partial, self.folder.join(name)).unwrap();
    }

    /// Asks the agent's own interface.
    pub(crate) async fn get(&self, path: &str) -> (hyper::StatusCode, serde_json::Value) {
        self.ask(hyper::Method::GET, path).await
    }

    pub(crate) async fn ask(
        &self,
        method: hyper::Method,
        path: &str,
    ) -> (hyper::StatusCode, serde_json::Value) {
        self.send(method, path, "").await
    }

    pub(crate) async fn send(
        &self,
        method: hyper::Method,
        path: &str,
        json: &str,
    ) -> (hyper::StatusCode, serde_json::Value) {
        let (status, text) = self.request(method, path, json).await;
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// What it says to a request with this body, as it is.
    pub(crate) async fn request(
        &self,
        method: hyper::Method,
        path: &str,
        json: &str,
    ) -> (hyper::StatusCode, String) {
        use http_body_util::{BodyExt, Full};
        let stream = tokio::net::TcpStream::connect(self.parts.config.api_listen.unwrap()).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "x")
            .header("content-type", "application/json")
            .body(Full::new(axum::body::Bytes::copy_from_slice(json.as_bytes())))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What status says of the policies, once the agent has read the store.
    pub(crate) async fn status(&self) -> PoliciesStatus {
        let shown = wait("status", || async {
            let (code, shown) = self.get("/v1/policies").await;
            (code == hyper::StatusCode::OK).then_some(shown)
        })
        .await;
        serde_json::from_value(shown).unwrap()
    }

    pub(crate) fn leads(&self) -> bool {
        self.snapshots.borrow().leading
    }
}

/// Acknowledges everything.
fn guard(path: &Path) {
    use nix::sys::socket::{
        AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recv, send,
        socket,
    };
    use std::os::fd::AsRawFd;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&listener, Backlog::new(16).unwrap()).unwrap();
    std::thread::spawn(move || {
        while let Ok(peer) = accept(listener.as_raw_fd()) {
            std::thread::spawn(move || {
                let mut request = [0; 64];
                while matches!(recv(peer, &mut request, MsgFlags::empty()), Ok(length) if length > 0) {
                    let mut reply = [0; 96];
                    reply[..5].copy_from_slice(&request[..5]);
                    reply[8..12].copy_from_slice(&request[8..12]);
                    let _ = send(peer, &reply, MsgFlags::MSG_NOSIGNAL);
                }
                let _ = nix::unistd::close(peer);
            });
        }
    });
}

/// Waits until `look` finds something.
pub(crate) async fn wait<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn record<T: serde::de::DeserializeOwned>(store: &dyn Store, key: &Key) -> Option<T> {
    let entry = store.get(&key.to_string()).await.unwrap()?;
    Some(decode(&entry.key, &entry.value).unwrap())
}

pub(crate) async fn active(store: &MemoryStore) -> Option<PolicySetRecord> {
    record(store, &Key::PolicyActive).await
}

pub(crate) async fn candidate(store: &MemoryStore) -> Option<PolicySetRecord> {
    record(store, &Key::PolicyCandidate).await
}

pub(crate) async fn refused(store: &MemoryStore) -> Option<RefusedSet> {
    record(store, &Key::PolicyRefused).await
}

pub(crate) async fn write<T: serde::Serialize>(store: &dyn Store, key: &Key, value: &T) {
    let txn = Txn::new().put(key.to_string(), encode(value));
    assert!(matches!(store.commit(&txn).await.unwrap(), Committed::Applied { .. }));
}

/// A host without an agent: its records, renewed by nobody.
pub(crate) async fn played_host(store: &dyn Store, name: &str, facts: HostFacts) -> HostId {
    let host: HostId = name.parse().unwrap();
    let lease = LeaseRecord::open(BootId("b".to_owned()), Default::default(), 1);
    write(store, &Key::Lease(host.clone()), &lease).await;
    write(store, &Key::Facts(host.clone()), &facts).await;
    host
}

/// What such a host reports, which has these sets ready.
pub(crate) fn facts(ready: &[u64]) -> HostFacts {
    let policies = SetFacts { ready: ready.iter().copied().collect(), ..SetFacts::default() };
    HostFacts { policies, ..samples::facts(MiB(16_384)) }
}

/// A placement policy that picks nothing, or runs `body` where the terminal's name has another length than that of the
/// trial question. `mark`, a number, makes components differ.
pub(crate) fn guest(body: &str, mark: &str) -> Vec<u8> {
    guests::placement_guest(&format!("(drop (i32.const {mark})) {body}"))
}
