//! Owns the saving of one checkpoint: the guest's state into a file of a tmpfs, and what is said of it.
//!
//! Promises: what nobody waits for any more is not read on. Must not do: send or record it.

mod copies;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use understudy_checkpoint::Description;
use understudy_core::host::{HostAction, Job, Outcome, Saved};
use understudy_core::model::records::CheckpointId;

pub(in crate::runtime) use copies::Copies;

use crate::exit::chain;
use crate::peers::Shipment;
use crate::runtime::{Event, Parts, now};
use copies::Outgoing;

/// Saving the memory of a small guest takes a few hundred ms; emulated on a busy machine, seconds.
const SAVE: Duration = Duration::from_secs(30);

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
    let HostAction::Checkpoint { node, instance, epoch, .. } = &job.action else {
        return Err("no checkpoint is asked for".to_owned());
    };
    let memory = job.memory.ok_or_else(|| "the instance is not known".to_owned())?;
    let (path, taken) = (image.path(), now().wall);
    let _ = std::fs::remove_file(path);
    let saved = parts.hypervisor.save_memory(*instance, path, SAVE).map_err(|error| chain(&error))?;
    let unreadable = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let mut file = image.read(std::fs::File::open(path).map_err(unreadable)?);
    let (digest, bytes) = understudy_checkpoint::digest_of(&mut file).map_err(unreadable)?;
    let pause_ms = u64::try_from(saved.pause.as_millis()).unwrap_or(u64::MAX);
    // The address lives in the guest: whoever restores it must know where it will answer.
    let address = job.address.map(|address| (ADDRESS.to_owned(), address.to_string()));
    let domain = address.into_iter().collect();
    let description = Description { instance: *instance, taken, pause_ms, memory, domain };
    let id = CheckpointId { epoch: *epoch, sequence: job.sequence.unwrap_or(1) };
    // Filled once: one job saves it.
    let _ = image.shipment.set(Shipment { node: node.clone(), id, bytes, digest, description });
    Ok(Saved { taken, pause_ms, bytes })
}
