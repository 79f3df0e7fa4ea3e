//! Owns what a simulated guest keeps in its memory and how it answers commands, unless the user of the double brings both.
//!
//! Promises: nothing but memory is touched. Must not do: know of hosts.

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_core::model::ids::InstanceId;

use crate::types::{GuestCommand, GuestOutput};

/// What a guest keeps in its memory. It travels with saves, restores and migrations.
pub trait Memory: Clone + Default + Send + 'static {
    /// The guest's processors have run for so long.
    fn run(&mut self, by: Duration) {
        let _ = by;
    }
}

/// The memory of a guest of which nobody wants to know more than that it is kept.
pub type GuestMemory = BTreeMap<String, Vec<u8>>;

impl Memory for GuestMemory {}

/// Answers commands in guests.
pub type Guest<G = GuestMemory> = dyn Fn(InstanceId, &mut G, &GuestCommand) -> GuestOutput + Send + Sync;

/// The default guest: `put KEY` keeps its input, `get KEY` prints it (exit 1 when there is none), `exit N` exits,
/// `hang` never ends. Anything else is not found, as a shell says it.
pub(super) fn plain_guest(_: InstanceId, memory: &mut GuestMemory, command: &GuestCommand) -> GuestOutput {
    let done = |exit, stdout: &[u8]| GuestOutput { exit, stdout: stdout.to_vec(), stderr: Vec::new() };
    let words: Vec<&str> = command.argv.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["put", key] => {
            memory.insert((*key).to_owned(), command.stdin.clone());
            done(0, b"")
        }
        ["get", key] => memory.get(*key).map_or_else(|| done(1, b""), |value| done(0, value)),
        ["exit", code] => done(code.parse().unwrap_or(2), b""),
        _ => done(127, b""),
    }
}
