//! Owns what the gateway's tests stand on: displays that speak as much RFB as is needed, gateways on loopback,
//! and terminals that look at single frames.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::serve::ListenerExt;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use understudy_core::model::view::View;

use super::view::view;
use crate::gateway::{Counters, Directory, GatewayState, Limits, Publisher, directory, router};

/// Far beyond what anything here takes, also on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The port of every display of these tests, as 5900 is of guests. Held on an address of its own, so that nobody else is
/// given it.
static SCREENS: LazyLock<(u16, std::net::TcpListener)> = LazyLock::new(|| {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    (held.local_addr().unwrap().port(), held)
});

/// An address of loopback that no other display of this process has.
pub(super) fn screen_address() -> SocketAddr {
    static GIVEN: AtomicU16 = AtomicU16::new(1);
    let [high, low] = GIVEN.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 1, high, low), SCREENS.0))
}

/// What a fake display does with a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    /// Greets after `delay`, then sends back what it gets.
    Echo { delay: Duration },
    /// Takes the connection and says nothing.
    Mute,
    /// Greets, then sends without end and never reads.
    Flood,
    /// Greets, then neither sends nor reads.
    Deaf,
}

/// A fake display on loopback.
pub(super) struct Display {
    pub(super) addr: SocketAddr,
    /// Connections it took.
    pub(super) taken: Arc<AtomicU64>,
    /// Of these, the ones that have ended.
    pub(super) ended: Arc<AtomicU64>,
    /// Bytes that it could send.
    pub(super) sent: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Display {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Display {
    /// A display whose greeting ends in `name`, so that tests see which one they reached.
    pub(super) async fn start(name: &'static str, manner: Manner) -> Self {
        let addr = screen_address();
        let listener = TcpListener::bind(addr).await.unwrap();
        let [taken, ended, sent] = std::array::from_fn(|_| Arc::new(AtomicU64::new(0)));
        let counts = (Arc::clone(&taken), Arc::clone(&ended), Arc::clone(&sent));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counts.0.fetch_add(1, Ordering::SeqCst);
                let (ended, sent) = (Arc::clone(&counts.1), Arc::clone(&counts.2));
                tokio::spawn(async move {
                    behave(stream, name, manner, &sent).await;
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self { addr, taken, ended, sent, task }
    }
}

async fn behave(mut stream: TcpStream, name: &str, manner: Manner, sent: &AtomicU64) {
    let greeting = format!("RFB 003.008\n{name}");
    let mut buffer = vec![7; 4096];
    match manner {
        Manner::Mute => {
            let _ = stream.read(&mut buffer).await;
        }
        Manner::Echo { delay } => {
            tokio::time::sleep(delay).await;
            if stream.write_all(greeting.as_bytes()).await.is_err() {
                return;
            }
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
        }
        Manner::Flood => {
            let _ = stream.write_all(greeting.as_bytes()).await;
            while let Ok(length) = stream.write(&buffer).await {
                sent.fetch_add(length as u64, Ordering::SeqCst);
            }
        }
        Manner::Deaf => {
            let _ = stream.write_all(greeting.as_bytes()).await;
            std::future::pending::<()>().await;
        }
    }
}

/// An address that answers no connection, as a host that lost its power: a full backlog drops every SYN.
pub(super) struct BlackHole {
    pub(super) addr: SocketAddr,
    _held: (tokio::net::TcpListener, Vec<TcpStream>),
}

impl BlackHole {
    pub(super) async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        let addr = screen_address();
        socket.bind(addr).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut fillers = Vec::new();
        while let Ok(filler) = timeout(Duration::from_millis(300), TcpStream::connect(addr)).await {
            fillers.push(filler.unwrap());
            assert!(fillers.len() < 64, "the backlog never fills");
        }
        Self { addr, _held: (listener, fillers) }
    }
}

/// A gateway on loopback; ends with the test.
pub(super) struct Gateway {
    pub(super) addr: SocketAddr,
    pub(super) counters: Arc<Counters>,
    pub(super) server: JoinHandle<()>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Gateway {
    pub(super) async fn start(directory: Directory, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = GatewayState::new(directory, SCREENS.0, limits);
        let counters = state.counters();
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router(state)).await.unwrap() });
        Self { addr, counters, server }
    }

    /// Connects a terminal that offers `protocol` and comes from a page of `origin`.
    pub(super) async fn try_connect(
        &self,
        terminal: &str,
        protocol: Option<&'static str>,
        origin: Option<&str>,
    ) -> Result<Terminal, tokio_tungstenite::tungstenite::Error> {
        let mut request = format!("ws://{}/t/{terminal}/ws", self.addr).into_client_request().unwrap();
        if let Some(protocol) = protocol {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        if let Some(origin) = origin {
            request.headers_mut().insert("origin", origin.parse().unwrap());
        }
        let (socket, response) = timeout(PATIENCE, connect_async(request)).await.unwrap()?;
        let protocol = response.headers().get("sec-websocket-protocol");
        let protocol = protocol.map(|value| value.to_str().unwrap().to_owned());
        Ok(Terminal { socket, protocol })
    }

    /// A terminal that wants the display's bytes only.
    pub(super) async fn connect(&self, terminal: &str) -> Terminal {
        self.try_connect(terminal, Some("binary"), None).await.unwrap()
    }

    /// A terminal that speaks as the page does.
    pub(super) async fn connect_page(&self, terminal: &str) -> Terminal {
        self.try_connect(terminal, Some("understudy.v1"), None).await.unwrap()
    }

    /// The whole answer to a GET: status line, headers, body.
    pub(super) async fn get(&self, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}\r\n", self.addr);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// The terminal's end of a connection.
pub(super) struct Terminal {
    pub(super) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The subprotocol that the gateway chose.
    pub(super) protocol: Option<String>,
}

impl Terminal {
    pub(super) async fn send(&mut self, bytes: &'static [u8]) {
        self.socket.send(Message::binary(bytes)).await.unwrap();
    }

    /// The next message, as long as the whole wait since `start` is short: beats alone must not keep a test.
    async fn next(&mut self, start: Instant) -> Option<Message> {
        let left = PATIENCE.saturating_sub(start.elapsed());
        let next = timeout(left, self.socket.next()).await.expect("what was waited for never came");
        next.and_then(Result::ok)
    }

    /// Bytes of the display until they end in `end`.
    pub(super) async fn read_until(&mut self, end: &str) -> Vec<u8> {
        let (start, mut all) = (Instant::now(), Vec::new());
        while !all.ends_with(end.as_bytes()) {
            match self.next(start).await {
                Some(Message::Binary(bytes)) => all.extend_from_slice(&bytes),
                Some(Message::Text(_) | Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("waited for '{end}', got {other:?} after {all:?}"),
            }
        }
        all
    }

    /// The gateway's next word of `kind`.
    pub(super) async fn word(&mut self, kind: &str) -> serde_json::Value {
        let start = Instant::now();
        loop {
            match self.next(start).await {
                Some(Message::Text(text)) => {
                    let word: serde_json::Value = serde_json::from_str(&text).unwrap();
                    if word["type"] == kind {
                        return word;
                    }
                }
                Some(Message::Binary(_) | Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("waited for the word '{kind}', got {other:?}"),
            }
        }
    }

    /// The code and reason with which the gateway closes.
    pub(super) async fn closed(&mut self) -> (u16, String) {
        let start = Instant::now();
        loop {
            match self.next(start).await {
                Some(Message::Close(Some(frame))) => return (frame.code.into(), frame.reason.to_string()),
                Some(Message::Close(None)) | None => panic!("closed without a reason"),
                Some(_) => {}
            }
        }
    }
}

pub(super) const OPEN: [&str; 2] = ["http://host1:8443", "http://host2:8443"];
pub(super) const LOST: [&str; 1] = ["http://host9:8443"];

/// A view with one terminal, `alice`.
pub(super) fn alice(epoch: u64, addr: Option<SocketAddr>) -> View {
    view(&[("alice", epoch, addr.map(ipv4))], &OPEN, &LOST)
}

pub(super) fn ipv4(addr: SocketAddr) -> Ipv4Addr {
    let SocketAddr::V4(addr) = addr else { panic!("{addr} is no IPv4 address") };
    *addr.ip()
}

/// A directory that holds this.
pub(super) fn shown(view: View) -> (Publisher, Directory) {
    let (publisher, directory) = directory();
    publisher.publish(view);
    (publisher, directory)
}

/// Waits until `holds`; panics with `what` when it never does.
pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
