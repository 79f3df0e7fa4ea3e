//! Owns the count of questions that are under way: no more than the engine has room for.
//!
//! Promises: who gets no slot in time is told so, and whoever asked is not held to it. Must not do: choose whose turn it
//! is.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The slots of one engine.
#[derive(Debug)]
pub(crate) struct Slots {
    free: Mutex<u32>,
    freed: Condvar,
}

/// A slot; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Slot<'a>(&'a Slots);

impl Slots {
    pub(crate) fn new(count: u32) -> Self {
        Self { free: Mutex::new(count), freed: Condvar::new() }
    }

    /// Waits for a slot; none where all were taken for so long.
    pub(crate) fn take(&self, patience: Duration) -> Option<Slot<'_>> {
        let (mut free, _) = self
            .freed
            .wait_timeout_while(self.free(), patience, |free| *free == 0)
            .unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(1)?;
        Some(Slot(self))
    }

    fn free(&self) -> MutexGuard<'_, u32> {
        // A count is never half-written.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.free() += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_waited_for_and_given_back() {
        let slots = Slots::new(1);
        let first = slots.take(Duration::ZERO).unwrap();
        assert!(slots.take(Duration::from_millis(1)).is_none());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| slots.take(Duration::from_secs(60)).is_some());
            drop(first);
            assert!(waits.join().unwrap());
        });
        assert!(slots.take(Duration::ZERO).is_some(), "the other gave it back");
    }
}
