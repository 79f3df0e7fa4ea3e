//! Owns when a change that was refused is proposed again, although nobody changed a file.
//!
//! Promises: soon after a sign that the reason may be gone (a host that could not have it went, or came back; another set
//! decides), and now and then without one, since a disk that was cleared gives no sign. Waits double with each refusal of
//! the same change, up to a bound. Must not do: propose.

use std::collections::BTreeMap;
use std::time::Duration;

use super::RefusedSet;
use crate::model::ids::HostId;
use crate::model::units::Boottime;

/// Open hosts, each with the number of its lease.
pub type OpenHosts = BTreeMap<HostId, u64>;

/// The first wait and the longest after a sign: a host that comes and goes costs a proposal a minute.
const SIGN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// The same without one: whoever cleared a disk sees the policy decide within a minute, and one that cannot be had at all
/// costs four loads an hour.
const NO_SIGN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(900));

/// How often and when the same change was refused last, and under which circumstances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    times: u32,
    at: Boottime,
    active: u64,
    refusers: BTreeMap<HostId, Option<u64>>,
    passes: bool,
}

impl Refusal {
    /// The hosts of the cluster refused a set while generation `active` decided. `before` is the last refusal of the
    /// same change.
    #[must_use]
    pub fn by_hosts(before: Option<&Self>, refused: &RefusedSet, active: u64, at: Boottime) -> Self {
        Self { refusers: refused.refusers.clone(), ..Self::here(before, false, active, at) }
    }

    /// This host could not load it itself. `passes` says that the reason may go without a sign at any moment: a peer
    /// could not be reached.
    #[must_use]
    pub fn here(before: Option<&Self>, passes: bool, active: u64, at: Boottime) -> Self {
        let times = before.map_or(0, |before| before.times.saturating_add(1));
        Self { times, at, active, refusers: BTreeMap::new(), passes }
    }

    /// From when on it may be proposed again, as things stand.
    #[must_use]
    pub fn due(&self, active: u64, open: &OpenHosts) -> Boottime {
        let other = |(host, lease): (&HostId, &Option<u64>)| open.get(host) != lease.as_ref();
        let sign = self.passes || self.active != active || self.refusers.iter().any(other);
        let (first, longest) = if sign { SIGN } else { NO_SIGN };
        let doublings = self.times.min(16);
        self.at + first.saturating_mul(1 << doublings).min(longest)
    }

    /// How often it was refused.
    #[must_use]
    pub fn times(&self) -> u32 {
        self.times + 1
    }
}
