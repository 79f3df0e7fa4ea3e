//! Owns the way of a terminal's screen to a browser: the page, its assets, and the WebSocket to the display.
//!
//! Promises: every gateway serves every terminal; a terminal is looked up when somebody asks for it; a socket of an
//! older epoch is cut as soon as the directory says so (SAFE-4); a page that lost its gateway can go on through any
//! other. Must not decide anything: which display is the primary comes from the [`Directory`], into which the runtime
//! publishes. What an event costs, directory.rs says.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;

mod assets;
mod counters;
mod directory;
mod origin;
mod pages;
mod socket;
#[cfg(test)]
mod tests;

pub use counters::{Counters, End};
pub use directory::{Directory, Publisher, Refused, directory};

/// Where a display member takes VNC connections.
pub const SCREEN_PORT: u16 = 5900;

/// How long a gateway waits for what. Values are for people's eyes and hands, not for failure detection:
/// that a display is lost is decided elsewhere, and cuts the socket at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until the display takes the TCP connection.
    pub connect: Duration,
    /// From there to the display's first byte. A busy emulated guest needs seconds.
    pub greeting: Duration,
    /// Between two signs of life to the page. The page gives up after three of them are missing
    /// (`SILENCE_MS` in page/link.js): change both or none.
    pub beat: Duration,
    /// Between two pings to the client.
    pub ping: Duration,
    /// Until a client that sends nothing, not even pongs, is taken for gone: three pings.
    pub client_silence: Duration,
    /// For the closing frame and the client's answer to it, before the socket is dropped.
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            greeting: Duration::from_secs(5),
            beat: Duration::from_millis(250),
            ping: Duration::from_secs(5),
            client_silence: Duration::from_secs(15),
            farewell: Duration::from_millis(200),
        }
    }
}

/// What all requests share.
#[derive(Debug, Clone)]
pub struct GatewayState {
    directory: Directory,
    screen_port: u16,
    counters: Arc<Counters>,
    limits: Limits,
}

impl GatewayState {
    /// A gateway that looks terminals up in `directory` and reaches displays at `screen_port`. When the directory's
    /// publisher is dropped, all sockets end with [`End::Shutdown`], which sends the pages to another gateway.
    #[must_use]
    pub fn new(directory: Directory, screen_port: u16, limits: Limits) -> Self {
        Self { directory, screen_port, counters: Arc::default(), limits }
    }

    /// What this gateway has served, for the metrics.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

/// The gateway's routes. Serve them from a listener with `TCP_NODELAY` (`axum::serve::ListenerExt::tap_io`):
/// input events and beats are a few bytes each.
pub fn router(state: GatewayState) -> Router {
    Router::new()
        .route("/t/{terminal}", get(pages::add_slash))
        .route("/t/{terminal}/", get(pages::terminal))
        .route("/t/{terminal}/gateways.json", get(pages::gateways))
        .route("/t/{terminal}/ws", get(pages::websocket))
        .route("/assets/{version}/{*path}", get(assets::serve))
        .with_state(state)
}
