//! Owns the taking of one checkpoint: the guest's state into memory, from there into what each host lacks of it, and what is
//! said of it.
//!
//! Promises: what nobody waits for any more is not read on. Must not do: send it.

mod ask;
mod copies;
mod kept;
mod tier;
mod trackers;

use std::sync::{Arc, PoisonError};

use tokio::sync::mpsc::UnboundedSender;
use understudy_checkpoint::Description;
use understudy_core::host::{HostAction, Job, Outcome, Saved};
use understudy_core::model::records::CheckpointId;

pub use ask::{kept_on, said};
pub(in crate::runtime) use copies::Copies;
pub(in crate::runtime) use kept::tell;
pub use kept::{Keeping, keep_ready};
#[cfg(test)]
pub(in crate::runtime) use tier::settle;
pub use tier::{CheckpointTier, find_tier};
pub use trackers::Trackers;

use crate::exit::chain;
use crate::peers::Shipment;
use crate::runtime::{Event, Parts, now};
use copies::{Outgoing, Taken};

/// Under which key a manifest's description has the guest's address.
pub(super) const ADDRESS: &str = "address";

/// Starts the job; its end comes as [`Event::Job`].
fn save(parts: Arc<Parts>, sender: UnboundedSender<Event>, image: Arc<Outgoing>, job: Job) {
    let tasks = parts.tasks.clone();
    tasks.block("checkpoint", move || {
        let outcome = match take(&parts, &image, &job) {
            Ok(saved) => Outcome::Saved(saved),
            Err(reason) => Outcome::Failed(reason),
        };
        // Whoever hears of the end may have the file go at once.
        drop(image);
        let _ = sender.send(Event::Job { job: Box::new(job), outcome });
    });
}

fn take(parts: &Parts, image: &Outgoing, job: &Job) -> Result<Saved, String> {
    let HostAction::Checkpoint { node, instance, epoch, to, .. } = &job.action else {
        return Err("no checkpoint is asked for".to_owned());
    };
    let memory = job.memory.ok_or_else(|| "the instance is not known".to_owned())?;
    let (path, taken) = (image.path(), now().wall);
    let state = tier::take_state(parts, (*instance, memory), path)?;
    let id = CheckpointId { epoch: *epoch, sequence: job.sequence.unwrap_or(1) };
    let tracked = parts.trackers.of(*instance);
    // A panic in the middle of an image leaves what the next one sets right.
    let mut tracked = tracked.lock().unwrap_or_else(PoisonError::into_inner);
    let bases = to.iter().map(|to| to.base);
    let segments =
        tracked.take(&mut image.read(&state.image), (node, id), bases, |number| image.segment_path(number));
    let segments = segments.map_err(|error| chain(&error))?;
    drop(tracked);
    let pause = state.into_pause();
    // What goes out is in the segments: the tmpfs need not hold both.
    let _ = std::fs::remove_file(path);
    let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    let bytes = segments.iter().map(|segment| segment.bytes).max().unwrap_or(0);
    // The address lives in the guest: whoever restores it must know where it will answer.
    let address = job.address.map(|address| (ADDRESS.to_owned(), address.to_string()));
    let domain = address.into_iter().collect();
    let description = Description { instance: *instance, taken, pause_ms, memory, domain };
    // Filled once: one job saves it.
    let _ = image.taken.set(Taken { shipment: Shipment { node: node.clone(), id, description }, segments });
    Ok(Saved { taken, pause_ms, bytes })
}
