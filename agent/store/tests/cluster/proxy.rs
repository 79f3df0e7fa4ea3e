//! A member's network as one client sees it: it can fall silent without closing anything, as a host does that
//! lost its power.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) struct Proxy {
    port: u16,
    silent: Arc<watch::Sender<bool>>,
    accepted: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Forwards to the endpoint `https://127.0.0.1:<port>`.
    pub(crate) async fn to(endpoint: &str) -> Self {
        let target = endpoint.strip_prefix("https://").unwrap().to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let silent = Arc::new(watch::Sender::new(false));
        let accepted = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let (switch, count) = (Arc::clone(&silent), Arc::clone(&accepted));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let (target, switch) = (target.clone(), switch.subscribe());
                connections.spawn(async move {
                    let Ok(member) = TcpStream::connect(&target).await else { return };
                    let (client_in, client_out) = client.into_split();
                    let (member_in, member_out) = member.into_split();
                    tokio::join!(
                        forward(client_in, member_out, switch.clone()),
                        forward(member_in, client_out, switch)
                    );
                });
            }
        });
        Self { port, silent, accepted, _tasks: tasks }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// How many connections there were.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// From now on nothing passes and nothing is closed; or it passes again.
    pub(crate) fn silence(&self, silent: bool) {
        self.silent.send_replace(silent);
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut silent: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read) = from.read(&mut buffer).await else { return };
        if silent.wait_for(|silent| !silent).await.is_err() || read == 0 {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
