//! Owns one connection between a terminal and its display: WebSocket on one side, VNC over TCP on the other.
//!
//! ```text
//! resolve ──▶ connect (2 s) ──▶ greeting (5 s) ──▶ relay ──▶ End
//!    └────────────┴── cut at once when the terminal's display changes ─┘
//! ```
//!
//! Promises: the display is resolved anew for every connection; a connection never outlives what it resolved,
//! even when either side stands still; a slow reader slows its writer, and nothing is buffered beyond
//! one chunk per direction. Must not retry: the page does, because only it can go to another gateway.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tracing::{debug, info};
use understudy_core::model::ids::{Epoch, TerminalId};
use understudy_core::model::view::{Display, Gateways};

use super::GatewayState;
use super::counters::{Counters, End};

/// Largest piece of the display's stream in one WebSocket message. A browser hands a message over only when
/// all of it is there, so that a piece must pass a slow line well before the page takes the gateway for dead
/// (900 ms): 16 KiB do so from 0.15 Mbit/s up.
const CHUNK_BYTES: usize = 16 * 1024;

type Sink = SplitSink<WebSocket, Message>;

/// What the client understands beside the display's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// The display's bytes only, as every noVNC client expects (subprotocol `binary`, or none).
    Plain,
    /// Also the gateway's own words, as text frames: a greeting, beats, newer lists of gateways.
    Understudy,
}

/// The gateway's words, as the page reads them.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Word<'a> {
    Hello { epoch: Option<Epoch>, gateways: &'a [String] },
    Gateways { gateways: &'a [String] },
    Beat,
}

impl Word<'_> {
    fn message(&self) -> Message {
        let text = serde_json::to_string(self).expect("words hold nothing that JSON cannot");
        Message::Text(text.into())
    }
}

/// Serves one WebSocket to its end.
pub(super) async fn serve(socket: WebSocket, terminal: TerminalId, dialect: Dialect, state: GatewayState) {
    let (mut sink, mut stream) = socket.split();
    let guard = Counted::enter(&state.counters);
    let end = resolve_and_relay(&mut sink, &mut stream, &terminal, dialect, &state).await;
    guard.leave(end);
    let frame = CloseFrame { code: end.code(), reason: end.as_str().into() };
    // What the client sent meanwhile is read up to its own closing frame: a socket that is closed with unread
    // bytes is reset, and a reset takes the reason away from the client. One that takes no more bytes is left
    // to the kernel.
    let farewell = async {
        sink.send(Message::Close(Some(frame))).await?;
        while let Some(Ok(_)) = stream.next().await {}
        Ok::<_, axum::Error>(())
    };
    let delivered = timeout(state.limits.farewell, farewell).await;
    debug!(%terminal, reason = end.as_str(), delivered = matches!(delivered, Ok(Ok(()))), "connection ended");
}

/// Counts a connection also when its task is dropped in the middle, as at the end of the runtime.
struct Counted<'a> {
    counters: &'a Counters,
    end: End,
}

impl<'a> Counted<'a> {
    fn enter(counters: &'a Counters) -> Self {
        counters.enter();
        Self { counters, end: End::Shutdown }
    }

    fn leave(mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.counters.leave(self.end);
    }
}

async fn resolve_and_relay(
    sink: &mut Sink,
    stream: &mut SplitStream<WebSocket>,
    terminal: &TerminalId,
    dialect: Dialect,
    state: &GatewayState,
) -> End {
    let mut watched = state.directory.follow(terminal);
    let display = *watched.borrow_and_update();
    let addr = display.and_then(|display| display.address);
    let mut control = Control::new(dialect, state);
    if let Some(hello) = control.hello(addr.and(display).map(|display| display.epoch))
        && sink.send(hello).await.is_err()
    {
        return End::ClientLeft;
    }
    let Some(screen) = display else { return End::TerminalGone };
    let Some(addr) = addr.map(|address| SocketAddr::from((address, state.screen_port))) else {
        return End::NoDisplay;
    };
    let end = tokio::select! {
        // First, so that a connection whose display moved relays not one byte more.
        biased;
        end = changed(&mut watched, screen) => end,
        end = relay(sink, stream, addr, control, state) => end,
    };
    info!(%terminal, epoch = %screen.epoch, display = %addr, reason = end.as_str(), "terminal left its display");
    end
}

/// Resolves when the terminal's display is not `held` any more. Looks before it waits: no change is missed
/// between resolving and watching.
async fn changed(watched: &mut watch::Receiver<Option<Display>>, held: Display) -> End {
    match watched.wait_for(|display| *display != Some(held)).await.as_deref() {
        Ok(Some(Display { address: Some(_), .. })) => End::DisplayMoved,
        Ok(Some(Display { address: None, .. })) => End::NoDisplay,
        Ok(None) => End::TerminalGone,
        Err(_) => End::Shutdown,
    }
}

async fn relay(
    sink: &mut Sink,
    stream: &mut SplitStream<WebSocket>,
    addr: SocketAddr,
    mut control: Control,
    state: &GatewayState,
) -> End {
    let display = match control.serve_during(sink, connect(addr, state.limits.connect)).await {
        Ok(Ok(display)) => display,
        Ok(Err(end)) | Err(end) => return end,
    };
    let (from, to) = display.into_split();
    tokio::select! {
        end = downstream(sink, control, from, state.limits.greeting) => end,
        end = upstream(stream, to, state.limits.client_silence) => end,
    }
}

async fn connect(addr: SocketAddr, limit: Duration) -> Result<TcpStream, End> {
    match timeout(limit, TcpStream::connect(addr)).await {
        // Input events are a few bytes each, and a person waits for every one of them.
        Ok(Ok(stream)) => stream.set_nodelay(true).map(|()| stream).map_err(|_| End::DisplayUnreachable),
        Ok(Err(error)) => {
            debug!(%addr, %error, "display takes no connection");
            Err(End::DisplayUnreachable)
        }
        Err(_) => Err(End::DisplayUnreachable),
    }
}

/// Display to terminal. In RFB the server speaks first: a display that does not is frozen.
async fn downstream(
    sink: &mut Sink,
    mut control: Control,
    mut from: OwnedReadHalf,
    greeting: Duration,
) -> End {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut read = match control.serve_during(sink, timeout(greeting, from.read(&mut buffer))).await {
        Ok(Ok(read)) => read,
        Ok(Err(_)) => return End::DisplaySilent,
        Err(end) => return end,
    };
    loop {
        let bytes = match read {
            Ok(0) | Err(_) => return End::DisplayClosed,
            Ok(length) => axum::body::Bytes::copy_from_slice(&buffer[..length]),
        };
        if sink.send(Message::Binary(bytes)).await.is_err() {
            return End::ClientLeft;
        }
        read = match control.serve_during(sink, from.read(&mut buffer)).await {
            Ok(read) => read,
            Err(end) => return end,
        };
    }
}

/// Terminal to display. A living client answers pings, so that silence means that it is gone.
async fn upstream(stream: &mut SplitStream<WebSocket>, mut to: OwnedWriteHalf, silence: Duration) -> End {
    loop {
        match timeout(silence, stream.next()).await {
            Ok(Some(Ok(Message::Binary(bytes)))) => {
                if to.write_all(&bytes).await.is_err() {
                    return End::DisplayClosed;
                }
            }
            // Text has no meaning from a client yet; a later page may say more than this gateway knows.
            Ok(Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_)))) => {}
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => return End::ClientLeft,
            Err(_) => return End::ClientSilent,
        }
    }
}

/// What the gateway says by itself, beside the display's bytes.
struct Control {
    dialect: Dialect,
    gateways: watch::Receiver<Gateways>,
    sent: Vec<String>,
    beat: Interval,
    ping: Interval,
}

impl Control {
    fn new(dialect: Dialect, state: &GatewayState) -> Self {
        let every = |period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        Self {
            dialect,
            gateways: state.directory.gateways(),
            sent: Vec::new(),
            beat: every(state.limits.beat),
            ping: every(state.limits.ping),
        }
    }

    /// The first word, if the client understands words. `epoch` is `None` when there is nothing to show.
    fn hello(&mut self, epoch: Option<Epoch>) -> Option<Message> {
        self.sent.clone_from(&self.gateways.borrow_and_update().open);
        let word = Word::Hello { epoch, gateways: &self.sent };
        (self.dialect == Dialect::Understudy).then(|| word.message())
    }

    /// Does `work`, and meanwhile sends what is due, so that the page sees a living gateway whatever the
    /// display does.
    async fn serve_during<W: Future>(&mut self, sink: &mut Sink, work: W) -> Result<W::Output, End> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                message = self.due() => sink.send(message).await.map_err(|_| End::ClientLeft)?,
            }
        }
    }

    /// The next message that is due. Cancel safe: it only waits before it changes anything.
    async fn due(&mut self) -> Message {
        let words = self.dialect == Dialect::Understudy;
        loop {
            tokio::select! {
                _ = self.ping.tick() => return Message::Ping(axum::body::Bytes::new()),
                _ = self.beat.tick(), if words => return Word::Beat.message(),
                Ok(()) = self.gateways.changed(), if words => {
                    let gateways = self.gateways.borrow_and_update().open.clone();
                    if gateways != self.sent {
                        self.sent = gateways;
                        return Word::Gateways { gateways: &self.sent }.message();
                    }
                }
            }
        }
    }
}
