//! A member's network as one client sees it. It can fall silent without closing anything, as a host does that
//! lost its power; lose the answers only; or deliver late what it held back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Everything passes.
    Open,
    /// Nothing passes, nothing is closed; what is sent is held back.
    Silent,
    /// Requests pass, answers do not.
    AnswersLost,
    /// As silent, and nothing more is held back: the sender's withdrawal of what it sent will be lost.
    Deaf,
    /// What was held back passes, but nothing after it.
    Late,
}

pub(crate) struct Proxy {
    port: u16,
    mode: Arc<watch::Sender<Mode>>,
    accepted: Arc<AtomicUsize>,
    held: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Forwards to the endpoint `https://127.0.0.1:<port>`.
    pub(crate) async fn to(endpoint: &str) -> Self {
        let target = endpoint.strip_prefix("https://").unwrap().to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(watch::Sender::new(Mode::Open));
        let accepted = Arc::new(AtomicUsize::new(0));
        let held = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let (switch, count, weight) = (Arc::clone(&mode), Arc::clone(&accepted), Arc::clone(&held));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let (target, switch, held) = (target.clone(), switch.subscribe(), Arc::clone(&weight));
                connections.spawn(async move {
                    let Ok(member) = TcpStream::connect(&target).await else { return };
                    let (client_in, client_out) = client.into_split();
                    let (member_in, member_out) = member.into_split();
                    tokio::join!(
                        requests(client_in, member_out, switch.clone(), &held),
                        answers(member_in, client_out, switch)
                    );
                });
            }
        });
        Self { port, mode, accepted, held, _tasks: tasks }
    }

    /// How many bytes of requests are or were held back.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// How many connections there were.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read) = from.read(&mut buffer).await else { return };
        let open = mode.wait_for(|mode| *mode == Mode::Open).await.is_ok();
        if !open || read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    weight: &AtomicUsize,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut held = Vec::new();
    loop {
        let now = *mode.borrow_and_update();
        if matches!(now, Mode::Open | Mode::AnswersLost | Mode::Late) {
            if to.write_all(&held).await.is_err() {
                return;
            }
            held.clear();
        }
        let reading = !matches!(now, Mode::Deaf | Mode::Late);
        tokio::select! {
            read = from.read(&mut buffer), if reading => match read {
                Ok(0) | Err(_) => return,
                Ok(read) => {
                    held.extend_from_slice(&buffer[..read]);
                    if now == Mode::Silent {
                        weight.fetch_add(read, Ordering::Relaxed);
                    }
                }
            },
            changed = mode.changed() => if changed.is_err() { return },
        }
    }
}
