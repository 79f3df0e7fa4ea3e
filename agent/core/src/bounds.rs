//! Owns the time bounds: every one is named and derived here, and nowhere else.
//!
//! Promises: `lease_ttl + lease_margin` of silence seen by a leader means that nothing of that host's
//! lease runs any more. Must not do: read a clock.
//!
//! Derivation. An agent counts its deadline from before a renewal was *sent*; a leader counts from the moment
//! that it *saw* the renewal, which is later. So the host's deadline `sent + ttl` always lies before the
//! leader's `seen + ttl`. The margin covers what is left: how late the guard kills after the deadline, the
//! drift of the two clocks over one `ttl`, and the time a SIGKILL takes to end a process. Two clocks that are each wrong by
//! 1 %, one fast and one slow, are 1.01 / 0.99 = 2.02 % apart; 2.1 % is reckoned.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;

/// Between two tries of a job that failed: the first soon, because most of what fails is over within a second; the longest
/// short beside what a person waits for.
pub const RETRY: Backoff = Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(10) };
/// Before another idle instance is tried after one could not be made: a boot takes 4 to 12 s on emulated guests, and costs
/// the others as much.
pub const FILL_RETRY: Duration = Duration::from_secs(15);
/// Between two looks at all that the hypervisor has: an orphan stays this long, and a look costs libvirt a few calls for
/// each instance.
pub const LOOK: Duration = Duration::from_secs(10);

/// How long what was restored waits, paused, for its display to let its epoch in: a display that hears of it does so within
/// a fraction of this, and one that is dying at the same time must not hold it up; the old primary is known dead. Where its
/// process was seen to end nobody waits.
pub const INTAKE: Duration = Duration::from_secs(2);

/// How long a host's guard or libvirtd may be away before the host gives back what it was given and has not begun. systemd
/// starts either again within 1 s, and libvirtd takes another to read its domains; a terminal that waits on the host for it
/// is back elsewhere a deployment later.
pub const REFUSE: Duration = Duration::from_secs(3);
/// How long a copy of a checkpoint may go on without a byte accepted. A host that stands still costs the node's other
/// backups an interval and 10 s at the most: this, and 2 s for what is before and after it.
pub const COPY_STALL: Duration = Duration::from_secs(8);
/// The least that a copy must come to on the whole, in bytes a second: two thirds of a tenth of a gigabit, for what is lost
/// to the disk and to other copies.
pub const COPY_RATE: u64 = 8 << 20;
/// How long after the next checkpoint is due a copy may still go on of which another host has all already.
pub const COPY_LATE: Duration = Duration::from_secs(10);
/// How many copies in a row do not come to a host, and over which time, before it is said to take none: an agent that
/// restarts misses one or two within a few seconds.
pub const COPY_ATTEMPTS: u32 = 3;
/// See [`COPY_ATTEMPTS`]: three intervals.
pub const COPY_PATIENCE: Duration = Duration::from_secs(15);

/// How long a node without a primary waits for a host that is lost and has the only copy of its state, before it starts
/// with nothing. A server's reboot takes 2 to 5 minutes, most of it before its kernel runs; a power cycle of a virtual host, or
/// a switch, less. Kubernetes keeps a pod on an unreachable node as long, for the same reason. The terminal is dark
/// meanwhile, so that it is no longer than that, and an operator can end it.
pub const STATE_WAIT: Duration = Duration::from_mins(5);
/// That wait is written down in such steps, and so survives a change of the leader: ten writes for each node that waits. Each
/// may be wrong by one step where a wall clock is set.
pub const STATE_WAIT_STEP: Duration = Duration::from_secs(30);
/// How long a node waits for the newest copy of its state, on a host that is there and has to report first, or to have its
/// guard or libvirtd back, where an older one could be restored at once, however long the node has waited before: the older
/// one is behind by an interval, of 5 s, and a terminal that is dark for longer than that has gained nothing. systemd has
/// either back within [`REFUSE`].
pub const NEWER_STATE: Duration = Duration::from_secs(5);

/// How long a restore is tried again on a host where it fails for want of something else than its image, such as room or a
/// disk that answers, before another host that has a copy is to try: as long as the longest wait of [`RETRY`].
pub const RESTORE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a leader waits for a host's word on which checkpoints of a node it has. The host looks in its memory: on a network
/// that works the answer is there within a few milliseconds, and a host that is gone, and not known to be lost yet, holds a
/// failover up no longer than this.
pub const ASK: Duration = Duration::from_secs(1);
/// How long such a word counts where its node goes on waiting for its state: then its host is asked again.
pub const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long a host takes no checkpoint of an epoch that begins to come after it was asked: what it has said stays true until
/// the decision is written, and longer where it is asked again. Whoever was asked for one that is not dead after all is
/// protected again after that.
pub const CLOSED: Duration = Duration::from_secs(30);

/// How soon silence counts as failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Stalls of a few seconds are no failure.
    #[default]
    Safe,
    /// Sub-second suspicion, for good networks with fence agents.
    Fast,
}

/// The time bounds that all agents of a cluster share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Between two renewals of a host's lease.
    pub lease_renew: Duration,
    /// A host's instances die this long after its last successful renewal was sent.
    pub lease_ttl: Duration,
    /// How much longer than `lease_ttl` a leader waits.
    pub lease_margin: Duration,
    /// Longest wait for one request to the store.
    pub store_request: Duration,
    /// Between two checkpoints of a protected execution member.
    pub checkpoint_interval: Duration,
    /// A host where a member failed is avoided for this node this long.
    pub cooldown: Duration,
    /// A migration that takes longer is looked at from both sides.
    pub migration: Duration,
    /// How long after a failover was decided the repair of backups waits for the windows.
    pub windows_first: Duration,
}

impl Profile {
    /// The bounds of this profile.
    #[must_use]
    pub fn bounds(self) -> Bounds {
        let (renew, ttl, margin, request) = match self {
            Self::Safe => (1_000, 6_000, 1_000, 1_500),
            Self::Fast => (250, 1_500, 500, 500),
        };
        Bounds {
            lease_renew: Duration::from_millis(renew),
            lease_ttl: Duration::from_millis(ttl),
            lease_margin: Duration::from_millis(margin),
            store_request: Duration::from_millis(request),
            checkpoint_interval: Duration::from_secs(5),
            cooldown: Duration::from_secs(30),
            migration: Duration::from_secs(120),
            // Hardware draws windows in about a second, emulation in nine to fourteen.
            windows_first: Duration::from_secs(15),
        }
    }
}

impl Bounds {
    /// How long a leader must see a lease unchanged before it may expire it.
    #[must_use]
    pub fn lease_expire_after(&self) -> Duration {
        self.lease_ttl + self.lease_margin
    }

    /// The rules between the bounds that must hold, each as a sentence when it does not.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.lease_ttl < self.lease_renew * 3 {
            faults.push(format!(
                "lease_ttl ({:?}) must be at least three times lease_renew ({:?}), so that two lost renewals end nothing",
                self.lease_ttl, self.lease_renew
            ));
        }
        if self.lease_margin < self.lease_ttl * 21 / 1_000 + Duration::from_millis(100) {
            faults.push(format!(
                "lease_margin ({:?}) must cover 2.1 % of drift between two clocks over lease_ttl and 100 ms for the kill",
                self.lease_margin
            ));
        }
        if self.store_request * 2 > self.lease_ttl {
            faults.push(format!(
                "store_request ({:?}) must fit twice into lease_ttl ({:?})",
                self.store_request, self.lease_ttl
            ));
        }
        faults
    }

    /// Each bound with its name, for `understudy bounds`.
    #[must_use]
    pub fn table(&self) -> Vec<(&'static str, Duration, &'static str)> {
        vec![
            ("lease_renew", self.lease_renew, "between two renewals of a host's lease"),
            ("lease_ttl", self.lease_ttl, "instances die this long after the last good renewal was sent"),
            ("lease_margin", self.lease_margin, "kill lateness, clock drift, process exit"),
            (
                "lease_expire_after",
                self.lease_expire_after(),
                "silence after which a leader expires a lease (ttl + margin)",
            ),
            ("store_request", self.store_request, "longest wait for one request to the store"),
            (
                "checkpoint_interval",
                self.checkpoint_interval,
                "between two checkpoints (three times that on a draining host and while a live migration leaves or comes): the greatest age is this plus one copy",
            ),
            ("cooldown", self.cooldown, "a host where a member failed is avoided this long"),
            ("migration", self.migration, "a live migration that takes longer is looked at from both sides"),
            (
                "windows_first",
                self.windows_first,
                "after a failover backups are booted once the windows are back, at the latest then",
            ),
            (
                "state_wait",
                STATE_WAIT,
                "a node whose only copies of its state are on lost hosts waits for them, then starts afresh",
            ),
            (
                "ask",
                ASK,
                "a leader waits for a host's word on which checkpoints it has, before it decides without that host",
            ),
            (
                "closed",
                CLOSED,
                "a host that was asked takes no more checkpoints of the dead primary, so that its word stays true",
            ),
            (
                "newer_state",
                NEWER_STATE,
                "the newest copy of a state is waited for on a host that cannot restore it yet, before an older one is taken",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_profiles_keep_the_rules_between_bounds() {
        for profile in [Profile::Safe, Profile::Fast] {
            assert_eq!(profile.bounds().faults(), Vec::<String>::new(), "{profile:?}");
        }
    }

    #[test]
    fn a_margin_without_room_for_the_kill_is_named() {
        let bounds = Bounds { lease_margin: Duration::from_millis(50), ..Profile::Safe.bounds() };
        assert!(bounds.faults().iter().any(|fault| fault.contains("lease_margin")));
        // Enough for one clock that is wrong by 1 %, and not for two.
        let ttl = Duration::from_secs(60);
        for (margin, enough) in [(1_359, false), (1_360, true)] {
            let lease_margin = Duration::from_millis(margin);
            let bounds = Bounds { lease_ttl: ttl, lease_margin, ..Profile::Safe.bounds() };
            assert_eq!(bounds.faults().is_empty(), enough, "{margin} ms: {:?}", bounds.faults());
        }
    }
}
