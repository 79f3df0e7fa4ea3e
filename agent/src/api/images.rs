//! Owns the receiving end of a checkpoint.
//!
//! Promises: success is answered only once the image is durable. Must not do: take one that the store of images
//! refuses (an older epoch, a wrong digest).

use std::io::{self, Read};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use understudy_checkpoint::Expected;

use super::{ApiState, Refusal};
use crate::exit::chain;
use crate::peers::{SHIPMENT_HEADER, Shipment};

/// Chunks that may wait for the disk.
const AHEAD: usize = 8;

/// The body's chunks as a blocking reader. A body that broke off is an error, never an end.
struct Chunks {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let taken = self.current.split_to(buffer.len().min(self.current.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

pub(super) async fn receive(
    State(state): State<ApiState>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let bad = |text: String| Refusal::new(StatusCode::BAD_REQUEST, text);
    let header = headers.get(SHIPMENT_HEADER).and_then(|value| value.to_str().ok());
    let header = header.ok_or_else(|| bad(format!("the header {SHIPMENT_HEADER} is missing")))?;
    let shipment: Shipment =
        serde_json::from_str(header).map_err(|error| bad(format!("{SHIPMENT_HEADER}: {error}")))?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let images = state.parts.images.clone();
    let writer = tokio::task::spawn_blocking(move || {
        let Shipment { node, id, bytes, digest, description } = shipment;
        let mut chunks = Chunks { receiver, current: Bytes::new() };
        images.receive(&node, id, &mut chunks, Expected { bytes, digest }, description)
    });
    let mut stream = body.into_data_stream();
    while let Some(chunk) = stream.next().await {
        if sender.send(chunk.map_err(io::Error::other)).await.is_err() {
            // The writer has given up; it says why.
            break;
        }
    }
    drop(sender);
    match writer.await {
        Ok(Ok(_)) => Ok(StatusCode::NO_CONTENT),
        Ok(Err(error)) => Err(Refusal::new(StatusCode::CONFLICT, chain(&error))),
        Err(error) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}
