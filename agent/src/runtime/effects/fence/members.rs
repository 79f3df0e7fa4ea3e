//! Owns a pidfd of each member's process, held from before it runs, so that all of them can be killed without a look-up.
//!
//! Promises: a kill neither waits for libvirt nor reads `/proc`, and meets no process but those that were held. Must not
//! do: decide when.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use understudy_core::model::ids::InstanceId;

type Held = BTreeMap<InstanceId, OwnedFd>;

/// The processes of this host's members.
#[derive(Debug, Clone, Default)]
pub struct Members(Arc<Mutex<Held>>);

impl Members {
    /// Holds a process from here on: before it may run as a member. The one before it of the same instance is let go.
    pub fn hold(&self, instance: InstanceId, pidfd: OwnedFd) {
        let mut held = self.held();
        held.retain(|_, pidfd| !understudy_guard::pidfd_is_dead(pidfd.as_fd()));
        held.insert(instance, pidfd);
    }

    /// How many of them live.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.held().values().filter(|pidfd| !understudy_guard::pidfd_is_dead(pidfd.as_fd())).count()
    }

    /// Kills all of them; how many it were. One that could not be signalled stays held.
    pub(super) fn kill(&self) -> usize {
        let mut killed = 0;
        self.held().retain(|instance, pidfd| match understudy_guard::pidfd_kill(pidfd.as_fd()) {
            Ok(()) => {
                killed += 1;
                false
            }
            Err(error) => {
                tracing::error!(%instance, %error, "cannot kill a member of a lost lease");
                true
            }
        });
        killed
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Entries go in and out whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
