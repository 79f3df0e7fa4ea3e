//! Owns the images of checkpoints between their being saved and the last word of core about them: they are sent and deleted.
//!
//! Promises: what goes on with an image ends with core's word, or with the runtime, and then nothing of it stays; each end is
//! told, but of what core has ended itself. Must not do: decide who gets one, or for how long.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc::UnboundedSender, watch};
use tokio::time::Instant;
use understudy_core::death::CopyFault;
use understudy_core::host::{CopyEvent, Destination, HostAction, Input, Job};
use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::records::CheckpointId;

use super::trackers::Segment;
use crate::exit::chain;
use crate::peers::{self, Peer, Security, SendError, Shipment};
use crate::runtime::{Event, Runtime};

/// How often it is told at the most that a host goes on accepting: a small part of the time that it may pause.
const TOLD: Duration = Duration::from_millis(500);

/// What was made of an image.
#[derive(Debug)]
pub(super) struct Taken {
    /// What is said of it.
    pub(super) shipment: Shipment,
    /// What goes out.
    pub(super) segments: Vec<Segment>,
}

impl Taken {
    /// What a host gets that is known to have this.
    fn segment(&self, base: Option<CheckpointId>) -> Option<&Segment> {
        let of = |base: Option<CheckpointId>| self.segments.iter().find(|segment| segment.base == base);
        of(base).or_else(|| of(None))
    }
}

/// An image on its way. Its files go with the last who works with it.
#[derive(Debug)]
pub(super) struct Outgoing {
    path: PathBuf,
    unwanted: AtomicBool,
    /// Once it is saved.
    pub(super) taken: OnceLock<Taken>,
    /// How many segments were begun.
    begun: AtomicUsize,
}

impl Outgoing {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, unwanted: AtomicBool::new(false), taken: OnceLock::new(), begun: AtomicUsize::new(0) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where one of its segments is to be.
    pub(super) fn segment_path(&self, number: usize) -> PathBuf {
        self.begun.fetch_max(number + 1, Ordering::Relaxed);
        self.path.with_extension(format!("{number}.pages"))
    }

    /// Reads for as long as somebody waits for the image.
    pub(super) fn read<R: Read>(&self, reader: R) -> impl Read {
        While { image: self, reader }
    }

    pub(super) fn end(&self) {
        self.unwanted.store(true, Ordering::Relaxed);
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        for number in 0..self.begun.load(Ordering::Relaxed) {
            let _ = std::fs::remove_file(self.segment_path(number));
        }
    }
}

struct While<'a, R> {
    image: &'a Outgoing,
    reader: R,
}

impl<R: Read> Read for While<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.image.unwanted.load(Ordering::Relaxed) {
            return Err(io::Error::other("the node has changed, nobody waits for it any more"));
        }
        self.reader.read(buffer)
    }
}

/// What goes on with one image. To drop it ends all of that.
#[derive(Debug)]
struct Goes {
    image: Arc<Outgoing>,
    sends: BTreeMap<HostId, watch::Sender<()>>,
}

impl Drop for Goes {
    fn drop(&mut self) {
        self.image.end();
    }
}

/// All images on their way.
#[derive(Debug, Default)]
pub(in crate::runtime) struct Copies(BTreeMap<(NodeId, CheckpointId), Goes>);

/// Whose copy it is.
#[derive(Clone)]
struct Reporter {
    node: NodeId,
    id: CheckpointId,
    sender: UnboundedSender<Event>,
}

impl Reporter {
    fn report(&self, event: CopyEvent) {
        let input = Input::Copy { node: self.node.clone(), id: self.id, event };
        let _ = self.sender.send(Event::Host(Box::new(input)));
    }
}

impl Runtime {
    pub(in crate::runtime) fn save(&mut self, job: Job) {
        let HostAction::Checkpoint { node, epoch, .. } = &job.action else { return };
        let id = CheckpointId { epoch: *epoch, sequence: job.sequence.unwrap_or(1) };
        let local = self.agent.local();
        self.parts.trackers.keep(|instance| local.contains_key(&instance));
        let name = format!("{}-{}-{}.image", job.instance, id.epoch, id.sequence);
        let image = Arc::new(Outgoing::new(self.parts.scratch.join(name)));
        let goes = Goes { image: image.clone(), sends: BTreeMap::new() };
        self.copies.0.insert((node.clone(), id), goes);
        super::save(self.parts.clone(), self.sender.clone(), image, job);
    }

    pub(in crate::runtime) fn send(
        &mut self,
        node: NodeId,
        id: CheckpointId,
        revision: u64,
        to: Destination,
    ) {
        let reporter = Reporter { node, id, sender: self.sender.clone() };
        let key = (reporter.node.clone(), id);
        let Some(goes) = self.copies.0.get_mut(&key) else { return };
        if goes.image.taken.get().is_none() {
            return;
        }
        let (alive, mut ended) = watch::channel(());
        goes.sends.insert(to.host.clone(), alive);
        let image = goes.image.clone();
        let security = self.parts.security.clone();
        self.parts.tasks.spawn("copy of a checkpoint", async move {
            tokio::select! {
                // Nothing is ever said on it: it ends when core has no use for the copy any more.
                _ = ended.changed() => {}
                event = send(&image, revision, (&to, &security), reporter.clone()) => reporter.report(event),
            }
        });
    }

    pub(in crate::runtime) fn cancel_send(
        &mut self,
        node: NodeId,
        id: CheckpointId,
        host: &HostId,
        fault: Option<CopyFault>,
    ) {
        match fault {
            Some(fault) => {
                tracing::warn!(%node, checkpoint = %id, %host, %fault, "a copy of a checkpoint was given up");
            }
            None => {
                tracing::debug!(%node, checkpoint = %id, %host, "a copy of a checkpoint is of no use any more");
            }
        }
        if let Some(goes) = self.copies.0.get_mut(&(node, id)) {
            goes.sends.remove(host);
        }
    }

    pub(in crate::runtime) fn discard(&mut self, node: NodeId, id: CheckpointId) {
        self.copies.0.remove(&(node, id));
    }
}

async fn send(
    image: &Outgoing,
    revision: u64,
    (to, security): (&Destination, &Security),
    reporter: Reporter,
) -> CopyEvent {
    let (host, mut last) = (to.host.clone(), None::<Instant>);
    let Some((taken, segment)) = image.taken.get().and_then(|taken| Some((taken, taken.segment(to.base)?)))
    else {
        return CopyEvent::Unreadable { host, detail: "nothing of it was made for this host".to_owned() };
    };
    let whole = segment.bytes;
    let accepted = {
        let (host, reporter) = (host.clone(), reporter.clone());
        move |bytes: u64| {
            if bytes >= whole || last.is_none_or(|last| last.elapsed() >= TOLD) {
                last = Some(Instant::now());
                reporter.report(CopyEvent::Accepted { host: host.clone(), bytes, of: whole });
            }
        }
    };
    let peer = Peer { host: &to.host, address: &to.api, security };
    let sent = peers::send_checkpoint(peer, &segment.path, &taken.shipment, revision, accepted).await;
    let Err(error) = sent else { return CopyEvent::Durable(host) };
    let detail = chain(&error);
    if let SendError::Lacks { said } = error {
        tracing::info!(node = %reporter.node, checkpoint = %reporter.id, %host, said, "the whole of the next checkpoint goes there");
        return CopyEvent::Lacks { host, detail };
    }
    tracing::warn!(node = %reporter.node, checkpoint = %reporter.id, %host, error = %detail, "a copy of a checkpoint failed");
    match error {
        SendError::Image(..) => CopyEvent::Unreadable { host, detail },
        SendError::Refused { .. } | SendError::Lacks { .. } => {
            CopyEvent::Failed { host, fault: CopyFault::Refused { detail } }
        }
        SendError::Reach(_) | SendError::Broken(_) | SendError::Ask(_) => {
            CopyEvent::Failed { host, fault: CopyFault::Unreachable { detail } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_read_no_further_once_nobody_waits_for_it_and_goes_with_the_last_who_works_with_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("image");
        std::fs::write(&path, [7; 100]).unwrap();
        let image = Arc::new(Outgoing::new(path.clone()));
        let mut copies = Copies::default();
        let key = ("alice/exec-1".parse().unwrap(), id());
        copies.0.insert(key.clone(), Goes { image: image.clone(), sends: BTreeMap::new() });
        let mut reader = image.read(io::repeat(7));
        reader.read_exact(&mut [0; 100]).unwrap();
        copies.0.remove(&key);
        assert!(reader.read_exact(&mut [0; 1]).is_err());
        drop(reader);
        let segment = image.segment_path(0);
        std::fs::write(&segment, "pages").unwrap();
        assert!(path.exists(), "it is still worked with");
        drop(image);
        assert!(!path.exists() && !segment.exists());
    }

    fn id() -> CheckpointId {
        CheckpointId { epoch: understudy_core::model::ids::Epoch(1), sequence: 1 }
    }
}
