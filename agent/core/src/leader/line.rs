//! Owns who follows the renewals of leases: the leader, and those who are next in line to lead.
//!
//! ```text
//!             reads the leader's renewal once in a `lease_expire_after`
//!                   ┌──────┐
//!                   ▼      │ it has changed: the line is as long as at first
//!               Outside ───┘ unchanged, or nobody leads: the line is twice as long
//!                │    ▲
//!   in the line  │    │ another leads, the leader renews again, or one that stands before this host is back
//!                ▼    │
//!              In line: follows all renewals, and bids once the leader's lease is over or silent
//! ```
//!
//! Promises: a host alone knows whether it is in the line, from the records that all follow; where leader and line are lost
//! together, as with a rack, others take their places, after one `lease_expire_after` for each doubling. Who stands where
//! follows from a digest of the names, so that neighbours do not stand together. Two who disagree harm nothing: that there is
//! one leader is the election's promise. Must not do: bid, read.
//!
//! Cost, with N hosts: to find one's place N comparisons, at most once in `lease_renew`; the line costs the store one read
//! for each host in a `lease_expire_after`.

use uuid::Uuid;

use crate::bounds::Bounds;
use crate::model::ids::HostId;
use crate::model::units::Boottime;
use crate::model::view::View;

/// How many stand in the line beside the leader, as long as it renews its lease. Hosts that cannot do their part do not count.
const NEXT: usize = 2;
/// How often the line can be doubled: it has a place for everybody long before.
const DOUBLED_MAX: u32 = 20;

/// One host's place in the line.
#[derive(Debug)]
pub struct Line {
    me: HostId,
    bounds: Bounds,
    follows: bool,
    /// The leader of whom the rest is said.
    leader: Option<HostId>,
    /// The renewal of its that was read or seen last.
    read: Option<u64>,
    /// How often it had not changed.
    doubled: u32,
    /// When the place is worked out again, and when the leader's renewal is read.
    look: Boottime,
    /// None before the first look.
    ask: Option<Boottime>,
    /// When it was stepped last.
    stepped: Boottime,
}

impl Line {
    /// Before anything of the cluster is known it follows renewals: a cluster that begins needs a leader at once.
    #[must_use]
    pub fn new(me: HostId, bounds: Bounds) -> Self {
        Self {
            me,
            bounds,
            follows: true,
            leader: None,
            read: None,
            doubled: 0,
            look: Boottime(0),
            ask: None,
            stepped: Boottime(0),
        }
    }

    /// Whether this host follows renewals.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.follows
    }

    /// When it is to be stepped although nothing happens until then. Its place is looked at after changes alone.
    #[must_use]
    pub fn due(&self) -> Option<Boottime> {
        let ask = self.ask.filter(|_| !self.follows);
        let again = (self.look == Boottime(0)).then_some(self.stepped);
        ask.filter(|at| *at > self.stepped).into_iter().chain(again).min()
    }

    /// Time has passed, or records have changed. The host of which the last renewal is to be read, if one is.
    pub fn step(&mut self, view: &View, leader: Option<&HostId>, now: Boottime) -> Option<HostId> {
        self.stepped = now;
        let other = self.leader.as_ref() != leader || self.ask.is_none();
        if other {
            (self.leader, self.read, self.doubled) = (leader.cloned(), None, 0);
            self.ask = Some(now + self.bounds.lease_expire_after());
        }
        // Who came to follow because it did not renew sees that it does again.
        let renewed = leader.and_then(|leader| view.hosts.get(leader)).map_or(0, |seen| seen.renewed);
        if self.follows && self.doubled > 0 && self.read.is_some_and(|read| renewed > read) {
            (self.read, self.doubled, self.look) = (Some(renewed), 0, Boottime(0));
            self.ask = Some(now + self.bounds.lease_expire_after());
        }
        if other || now >= self.look {
            self.look = now + self.bounds.lease_renew;
            self.follows = leader == Some(&self.me) || self.is_in_line(view);
        }
        if self.follows || self.ask.is_some_and(|ask| now < ask) {
            return None;
        }
        self.ask = Some(now + self.bounds.lease_expire_after());
        if leader.is_none() {
            self.double();
        }
        leader.cloned()
    }

    /// The revision of the renewal that was asked for, if there is one.
    pub fn read(&mut self, leader: &HostId, revision: u64) {
        if self.leader.as_ref() != Some(leader) || self.follows {
            return;
        }
        match self.read.replace(revision) {
            Some(before) if before == revision => self.double(),
            Some(_) => self.doubled = 0,
            None => {}
        }
    }

    fn double(&mut self) {
        self.doubled = (self.doubled + 1).min(DOUBLED_MAX);
        self.look = Boottime(0);
    }

    fn is_in_line(&self, view: &View) -> bool {
        let mine = place(&self.me);
        let others = view.hosts.iter().filter(|(host, seen)| {
            **host != self.me && self.leader.as_ref() != Some(*host) && seen.is_able()
        });
        let before = others.filter(|(host, _)| place(host) < mine);
        before.take(NEXT << self.doubled).count() < NEXT << self.doubled
    }
}

/// Any fixed order that does not follow the names' own.
fn place(host: &HostId) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, host.as_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bounds::Profile;
    use crate::fixture::{Cluster, host};

    fn line(name: &str) -> Line {
        Line::new(host(name), Profile::Safe.bounds())
    }

    /// The hosts of a cluster that follow renewals.
    fn followers(
        cluster: &Cluster,
        lines: &mut [Line],
        leader: Option<&HostId>,
        now: Boottime,
    ) -> Vec<HostId> {
        for line in lines.iter_mut() {
            line.step(&cluster.view, leader, now);
        }
        lines.iter().filter(|line| line.follows()).map(|line| line.me.clone()).collect()
    }

    fn lines(count: usize) -> (Cluster, Vec<Line>) {
        let lines = (1..=count).map(|number| line(&format!("host{number}"))).collect();
        (Cluster::of(count), lines)
    }

    #[test]
    fn the_leader_and_two_more_follow_renewals_and_in_a_small_cluster_everybody() {
        for count in 1..=3 {
            let (cluster, mut lines) = lines(count);
            let leader = host("host1");
            assert_eq!(followers(&cluster, &mut lines, Some(&leader), Boottime(1)).len(), count);
        }
        let (cluster, mut lines) = lines(40);
        for leader in ["host1", "host7", "host40"] {
            let leader = host(leader);
            let follow = followers(&cluster, &mut lines, Some(&leader), Boottime(1));
            assert!(follow.len() == 3 && follow.contains(&leader), "{follow:?}");
        }
    }

    #[test]
    fn who_stands_before_one_counts_as_long_as_its_lease_is_open() {
        let (mut cluster, mut lines) = lines(10);
        let leader = host("host1");
        let first = followers(&cluster, &mut lines, Some(&leader), Boottime(1));
        let lost = first.iter().find(|host| **host != leader).unwrap().clone();
        cluster.lose(lost.as_str());
        lines.retain(|line| line.me != lost);
        let later = Boottime(1) + Profile::Safe.bounds().lease_renew;
        let then = followers(&cluster, &mut lines, Some(&leader), later);
        assert!(then.len() == 3 && then.iter().all(|host| *host != lost), "{then:?}");
    }

    #[test]
    fn while_the_leader_renews_its_lease_the_line_stays_and_once_it_does_not_the_line_doubles() {
        let (cluster, mut lines) = lines(40);
        let (leader, each) = (host("host1"), Profile::Safe.bounds().lease_expire_after());
        let mut now = Boottime(1);
        let mut pass = |revision: Option<u64>, lines: &mut Vec<Line>| {
            now = now + each;
            for line in lines.iter_mut() {
                if let Some(asked) = line.step(&cluster.view, Some(&leader), now) {
                    assert!(asked == leader && !line.follows());
                    // An answer that does not come changes nothing.
                    revision.into_iter().for_each(|revision| line.read(&asked, revision));
                }
            }
            let now = now + Duration::from_millis(1);
            followers(&cluster, lines, Some(&leader), now).len()
        };
        for revision in [Some(1), Some(2), None, Some(3)] {
            // The first moment is that of the first look.
            assert_eq!(pass(revision, &mut lines), 3, "{revision:?}");
        }
        let lengths: Vec<usize> = (0..6).map(|_| pass(Some(3), &mut lines)).collect();
        assert_eq!(lengths, [5, 9, 17, 33, 40, 40], "the leader and twice as many each time");
    }

    /// The store took no writes for a while, and the same leader goes on: the load must not stay what it has become.
    #[test]
    fn a_leader_that_renews_again_makes_the_line_short_again() {
        let (mut cluster, mut lines) = lines(40);
        let (leader, each) = (host("host1"), Profile::Safe.bounds().lease_expire_after());
        cluster.seen("host1").renewed = 9;
        for round in 1..=4 {
            for line in &mut lines {
                if let Some(asked) = line.step(&cluster.view, Some(&leader), Boottime(1) + each * round) {
                    line.read(&asked, 9);
                }
            }
        }
        let now = Boottime(1) + each * 5;
        assert!(followers(&cluster, &mut lines, Some(&leader), now).len() > 3);
        cluster.seen("host1").renewed = 10;
        let later = now + Duration::from_millis(1);
        let asked = lines.iter_mut().filter_map(|line| line.step(&cluster.view, Some(&leader), later));
        assert_eq!(asked.count(), 0, "what was seen a moment ago is not read");
        assert_eq!(followers(&cluster, &mut lines, Some(&leader), later).len(), 3);
        // And long again if it falls silent once more.
        for round in 6..=9 {
            for line in &mut lines {
                if let Some(asked) = line.step(&cluster.view, Some(&leader), Boottime(1) + each * round) {
                    line.read(&asked, 10);
                }
            }
        }
        assert!(followers(&cluster, &mut lines, Some(&leader), Boottime(1) + each * 10).len() > 3);
    }

    /// A place that nobody can use is no place.
    #[test]
    fn a_host_that_cannot_do_its_part_does_not_count() {
        let (mut cluster, mut lines) = lines(10);
        let leader = host("host1");
        let first = followers(&cluster, &mut lines, Some(&leader), Boottime(1));
        for name in first.iter().filter(|host| **host != leader) {
            cluster.facts(name.as_str()).unable = [crate::model::records::Service::Libvirtd].into();
        }
        let later = Boottime(1) + Profile::Safe.bounds().lease_renew;
        assert_eq!(followers(&cluster, &mut lines, Some(&leader), later).len(), 5, "two more beside them");
    }

    #[test]
    fn a_new_leader_makes_the_line_short_again() {
        let (cluster, mut lines) = lines(40);
        let (old, new) = (host("host1"), host("host2"));
        let each = Profile::Safe.bounds().lease_expire_after();
        for round in 1..=4 {
            let now = Boottime(1) + each * round;
            for line in &mut lines {
                if let Some(asked) = line.step(&cluster.view, Some(&old), now) {
                    line.read(&asked, 9);
                }
            }
        }
        let now = Boottime(1) + each * 5;
        assert!(followers(&cluster, &mut lines, Some(&old), now).len() > 3);
        assert_eq!(followers(&cluster, &mut lines, Some(&new), now).len(), 3);
    }

    /// Nobody leads and those in line are gone: somebody comes to follow all the same.
    #[test]
    fn where_nobody_leads_the_line_doubles_until_somebody_does() {
        let (cluster, mut lines) = lines(40);
        // The first two are silent, and open still.
        let first = followers(&cluster, &mut lines, None, Boottime(1));
        assert_eq!(first.len(), 2);
        lines.retain(|line| !first.contains(&line.me));
        let each = Profile::Safe.bounds().lease_expire_after();
        assert!(followers(&cluster, &mut lines, None, Boottime(2)).is_empty());
        followers(&cluster, &mut lines, None, Boottime(1) + each);
        let now = Boottime(1) + each + Profile::Safe.bounds().lease_renew;
        assert_eq!(followers(&cluster, &mut lines, None, now).len(), 2);
    }
}
