//! Owns by what means this host takes its checkpoints: a snapshot that the guest hardly notices where the trial at the agent's
//! start says so, else a save that holds it up.
//!
//! Promises: before the trial has ended, and where a snapshot does not suit an instance, it is a save; where time or memory is
//! short there is no checkpoint, because a save would hold its guest up for as long; which it is, and why, is in the log, in the
//! metrics and, where it is the lesser, a condition of the host. Must not do: choose when.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use understudy_core::model::ids::InstanceId;
use understudy_core::model::units::MiB;
use understudy_hypervisor::{SavedMemory, Snapshot, Tier};

use crate::exit::chain;
use crate::runtime::{Event, Parts};

/// Saving the memory of a small guest takes a few hundred ms; emulated on a busy machine, seconds.
const SAVE: Duration = Duration::from_secs(30);
/// Between two trials that could not be made: libvirtd is not there.
const RETRY: Duration = Duration::from_secs(5);
/// Under which key the condition is told.
const ABOUT: &str = "checkpoint tier";

/// What is streamed in a second at the least: an emulated guest on a busy machine comes to several times that.
const STREAMED_MIB: u64 = 32;

/// The means, once they are known.
#[derive(Debug, Default)]
pub struct CheckpointTier {
    found: OnceLock<Tier>,
    /// Held from when memory is reserved for a snapshot until its pages are taken out: a host has memory for one at a time.
    turn: Mutex<()>,
}

/// The state of an instance, to be read once.
pub(super) struct State<'a> {
    pub(super) image: File,
    saved: SavedMemory,
    _turn: Option<MutexGuard<'a, ()>>,
}

impl State<'_> {
    /// How long the guest stood still. The memory that holds the state is free again.
    pub(super) fn into_pause(self) -> Duration {
        self.saved.pause
    }
}

/// Finds out what this host can do, as soon as libvirt answers.
pub fn find_tier(parts: Arc<Parts>, events: UnboundedSender<Event>) {
    let tasks = parts.tasks.clone();
    tasks.spawn("trial of snapshots", async move {
        let mut reported = false;
        loop {
            let (hypervisor, folder) = (parts.hypervisor.clone(), parts.config.state_dir.clone());
            match tokio::task::spawn_blocking(move || hypervisor.probe_snapshots(&folder)).await {
                Ok(Ok(tier)) => return settle(&parts, &events, tier),
                Ok(Err(error)) => {
                    if !std::mem::replace(&mut reported, true) {
                        tracing::warn!(error = %chain(&error), "snapshots cannot be tried, trying again until they can");
                    }
                }
                Err(error) => return parts.tasks.joined::<()>("trial of snapshots", Err(error)),
            }
            tokio::time::sleep(RETRY).await;
        }
    });
}

/// Uses what was found, and tells it.
pub(in crate::runtime) fn settle(parts: &Parts, events: &UnboundedSender<Event>, tier: Tier) {
    parts.metrics.checkpoint_tier(tier == Tier::Background);
    match &tier {
        Tier::Background => tracing::info!(tier = "background", "checkpoints are snapshots"),
        Tier::Saved { reason } => {
            tracing::warn!(tier = "saved", reason, "checkpoints hold their guests up for a whole save");
            let text = format!("checkpoints hold their guests up for a whole save: {reason}");
            // Only a runtime that has ended does not take it.
            let _ = events.send(Event::Condition { about: ABOUT, text: Some(text) });
        }
    }
    // Tried once for each start of the agent.
    let _ = parts.checkpoint_tier.found.set(tier);
}

/// Takes the state of an instance, as an image of libvirt's to be read; a file at this path where it is saved.
pub(super) fn take_state<'a>(
    parts: &'a Parts,
    (instance, memory): (InstanceId, MiB),
    path: &Path,
) -> Result<State<'a>, String> {
    if parts.checkpoint_tier.found.get() == Some(&Tier::Background) {
        let turn = parts.checkpoint_tier.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = SAVE + Duration::from_secs(memory.0 / STREAMED_MIB);
        match parts.hypervisor.snapshot_memory(instance, limit) {
            Ok(Snapshot { image, saved }) => return Ok(State { image, saved, _turn: Some(turn) }),
            Err(error) => {
                parts.metrics.snapshot_failed();
                if !error.is_for_a_save() {
                    return Err(chain(&error));
                }
                tracing::warn!(%instance, error = %chain(&error), "no snapshot for this checkpoint, the instance is saved");
            }
        }
    }
    let _ = std::fs::remove_file(path);
    let saved = parts.hypervisor.save_memory(instance, path, SAVE).map_err(|error| chain(&error))?;
    let file = File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(State { image: file, saved, _turn: None })
}
