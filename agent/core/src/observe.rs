//! Owns the measuring of silence: how long each lease has been seen unchanged, on this host's own clock.
//!
//! Promises: a lease that was never seen, or that was seen while this agent was cut off from the store, counts
//! as silent from the moment that it is seen (again), never from earlier. Must not do: read a clock, end anything.

use std::collections::BTreeMap;

use crate::model::ids::HostId;
use crate::model::units::Boottime;

/// When each host's lease was last seen to change.
#[derive(Debug, Clone, Default)]
pub struct Observer {
    seen: BTreeMap<HostId, (u64, Boottime)>,
}

impl Observer {
    /// Takes note of the revision of a host's lease.
    pub fn saw(&mut self, host: &HostId, revision: u64, now: Boottime) {
        match self.seen.get_mut(host) {
            Some((known, _)) if *known == revision => {}
            Some(entry) => *entry = (revision, now),
            None => {
                self.seen.insert(host.clone(), (revision, now));
            }
        }
    }

    /// This agent could not see the store for a while: every silence starts anew.
    pub fn was_blind(&mut self, now: Boottime) {
        for entry in self.seen.values_mut() {
            entry.1 = now;
        }
    }

    /// Since when the lease of `host` has been unchanged; from `now` on when it was never seen.
    #[must_use]
    pub fn silent_since(&self, host: &HostId, now: Boottime) -> Boottime {
        self.seen.get(host).map_or(now, |(_, since)| *since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_from_the_last_change_and_anew_after_blindness() {
        let host: HostId = "host1".parse().unwrap();
        let mut observer = Observer::default();
        assert_eq!(observer.silent_since(&host, Boottime(5)), Boottime(5));
        observer.saw(&host, 1, Boottime(10));
        observer.saw(&host, 1, Boottime(20));
        assert_eq!(observer.silent_since(&host, Boottime(30)), Boottime(10));
        observer.saw(&host, 2, Boottime(30));
        assert_eq!(observer.silent_since(&host, Boottime(31)), Boottime(30));
        observer.was_blind(Boottime(40));
        assert_eq!(observer.silent_since(&host, Boottime(45)), Boottime(40));
    }
}
