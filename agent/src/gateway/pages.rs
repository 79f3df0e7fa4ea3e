//! Owns the gateway's HTTP answers: the page, the list of gateways, the way into a WebSocket.
//!
//! Promises: what a request says about a terminal comes out escaped or not at all; a terminal that does not
//! exist gets a clear answer. Must not carry any of the display's bytes.

use axum::Json;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETAG, IF_NONE_MATCH, ORIGIN,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Redirect, Response};
use serde::Serialize;
use tracing::warn;
use understudy_core::model::ids::TerminalId;

use super::socket::{self, Dialect};
use super::{GatewayState, assets, origin};

/// The subprotocol of the page (page/link.js).
const PAGE_PROTOCOL: &str = "understudy.v1";
/// The subprotocol of VNC clients such as noVNC's own.
const PLAIN_PROTOCOL: &str = "binary";

/// The largest message a terminal may send: input events are tens of bytes, a pasted text may be long.
const CLIENT_MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Nothing but this gateway's own files runs in the page. Connections are open to every host, because a page
/// outlives the gateway it came from and follows lists of gateways that did not exist when it was loaded; the
/// embedded script is the only one that could make use of it. noVNC draws cursors and JPEGs from `data:`.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src data: blob:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// `GET /t/{terminal}`: links in the page are relative to the slash.
pub(super) async fn add_slash(Path(terminal): Path<String>) -> Response {
    match terminal.parse::<TerminalId>() {
        Ok(terminal) => Redirect::permanent(&format!("/t/{terminal}/")).into_response(),
        Err(_) => missing(&terminal),
    }
}

/// `GET /t/{terminal}/`: the page.
pub(super) async fn terminal(
    State(state): State<GatewayState>,
    Path(terminal): Path<String>,
    headers: HeaderMap,
) -> Response {
    let Some(terminal) = known(&state, &terminal) else { return missing(&terminal) };
    let etag = format!("\"{}-{terminal}\"", assets::version());
    let policy = [
        (CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ];
    if headers.get(IF_NONE_MATCH).is_some_and(|has| has.as_bytes() == etag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, policy, [(ETAG, etag)]).into_response();
    }
    (policy, [(ETAG, etag)], Html(fill(assets::terminal_html(), terminal.as_str()))).into_response()
}

#[derive(Serialize)]
struct GatewayList {
    gateways: Vec<String>,
}

/// `GET /t/{terminal}/gateways.json`: every gateway of the cluster, for programs; the page hears of them over
/// its WebSocket.
pub(super) async fn gateways(
    State(state): State<GatewayState>,
    Path(terminal): Path<String>,
    headers: HeaderMap,
) -> Response {
    if known(&state, &terminal).is_none() {
        return (StatusCode::NOT_FOUND, "no such terminal\n").into_response();
    }
    let gateways = state.directory.gateways();
    let list = GatewayList { gateways: gateways.borrow().open.clone() };
    let mut response = ([(CACHE_CONTROL, "no-store"), (VARY, "Origin")], Json(&list)).into_response();
    if let Some(asking) = headers.get(ORIGIN)
        && origin::allowed(&headers, &gateways.borrow())
    {
        response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, asking.clone());
    }
    response
}

/// `GET /t/{terminal}/ws`: the screen. An unknown terminal is told in the closing frame, because a browser
/// shows its page nothing of a refused upgrade.
pub(super) async fn websocket(
    State(state): State<GatewayState>,
    Path(terminal): Path<String>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let Ok(terminal) = terminal.parse::<TerminalId>() else {
        return (StatusCode::NOT_FOUND, "no such terminal\n").into_response();
    };
    if !origin::allowed(&headers, &state.directory.gateways().borrow()) {
        state.counters.refuse_origin();
        warn!(%terminal, origin = ?headers.get(ORIGIN), "refused a page of another site");
        return (StatusCode::FORBIDDEN, "this page is not one of the cluster's gateways\n").into_response();
    }
    let upgrade =
        upgrade.protocols([PAGE_PROTOCOL, PLAIN_PROTOCOL]).max_message_size(CLIENT_MESSAGE_BYTES_MAX);
    let page = upgrade.selected_protocol() == Some(&HeaderValue::from_static(PAGE_PROTOCOL));
    let dialect = if page { Dialect::Understudy } else { Dialect::Plain };
    upgrade.on_upgrade(move |socket| socket::serve(socket, terminal, dialect, state))
}

fn known(state: &GatewayState, terminal: &str) -> Option<TerminalId> {
    let terminal = terminal.parse().ok()?;
    state.directory.display(&terminal).map(|_| terminal)
}

fn missing(terminal: &str) -> Response {
    let headers = [
        (CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'self'; img-src data:"),
        (CACHE_CONTROL, "no-store"),
    ];
    (StatusCode::NOT_FOUND, headers, Html(fill(assets::missing_html(), terminal))).into_response()
}

fn fill(template: &str, terminal: &str) -> String {
    template.replace("{assets}", &assets::prefix()).replace("{terminal}", &escaped(terminal))
}

/// Safe in HTML text and in double-quoted attributes.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}
