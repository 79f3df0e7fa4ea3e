//! Owns the CLI's way to the agent: HTTP over its unix socket.

use std::path::Path;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::exit::{Exit, Failure, chain};

/// Asks the agent behind `socket` and reads its JSON answer.
///
/// # Errors
/// With the exit code that the CLI ends with.
pub async fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<serde_json::Value>,
) -> Result<T, Failure> {
    let (status, bytes) = exchange(socket, method, path, body).await?;
    if status.is_success() {
        return serde_json::from_slice(if bytes.is_empty() { b"null" } else { &bytes }).map_err(|error| {
            Failure::new(Exit::Failed, format!("the agent's answer cannot be read: {error}"))
        });
    }
    let text = match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(value) => value.get("error").and_then(|text| text.as_str()).map(str::to_owned),
        Err(_) => None,
    };
    let exit = match status {
        StatusCode::NOT_FOUND => Exit::NotFound,
        StatusCode::CONFLICT | StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Exit::Refused,
        _ => Exit::Failed,
    };
    Err(Failure::new(exit, text.unwrap_or_else(|| String::from_utf8_lossy(&bytes).trim().to_owned())))
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<serde_json::Value>,
) -> Result<(StatusCode, Bytes), Failure> {
    let absent = |error: &dyn std::error::Error| {
        let shown = socket.display();
        Failure::new(
            Exit::NoAgent,
            format!("the agent does not answer on {shown}: {}; is understudy.service running?", chain(error)),
        )
    };
    let stream = UnixStream::connect(socket).await.map_err(|error| absent(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| absent(&error))?;
    tokio::spawn(connection);
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "understudy")
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| Failure::new(Exit::Failed, chain(&error)))?;
    let response = sender.send_request(request).await.map_err(|error| absent(&error))?;
    let status = response.status();
    let bytes = response.into_body().collect().await.map_err(|error| absent(&error))?.to_bytes();
    Ok((status, bytes))
}
