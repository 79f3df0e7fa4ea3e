//! Owns the destination's side of a live migration: when what has come may run, and when it is given up.
//!
//! ```text
//!            ┌─────────── source may still go on with it ──────────┐
//!            ▼                                                     │
//!          Wait ── source released, all of it here ─────────────▶ Land
//!            ├──── source released, nothing here, or a part that stays one ─▶ Lost
//!            └──── abandoned, over, or another one ─────────────▶ Withdraw
//! ```
//!
//! Promises: what has come runs only once its source has released it (SAFE-7); it is called lost only once the source has,
//! and nothing of it can come any more. Must not do: look, or wait.

use std::time::Duration;

use super::source_let_go;
use crate::ids::{Epoch, HostId, InstanceId, NodeId};
use crate::units::Boottime;
use crate::view::View;

/// How long a part of it is given to become whole once its source has released it; libvirt's last step takes milliseconds.
const SETTLED: Duration = Duration::from_secs(30);

/// How the hypervisor shows what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Come {
    /// Nothing of it is here.
    Nothing,
    /// A part of it.
    Part,
    /// A process, of which the hypervisor says nothing.
    Process,
    /// All of it.
    Whole,
}

/// What is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrivalStep {
    /// Nothing yet.
    Wait,
    /// Have the guard acknowledge it, then let it run.
    Land,
    /// Withdraw the permit and what is here, then call it lost.
    Lost,
    /// Withdraw the permit and what is here: nothing may stay.
    Withdraw,
}

/// One instance on its way here.
#[derive(Debug, Clone)]
pub struct Arrival {
    me: HostId,
    session: u64,
    node: NodeId,
    instance: InstanceId,
    epoch: Epoch,
    /// Since when a part of it has been seen here, its source having released it.
    partly_since: Option<Boottime>,
}

impl Arrival {
    /// An arrival that was decided in `epoch`, under this host's lease.
    #[must_use]
    pub fn new(me: HostId, session: u64, node: NodeId, instance: InstanceId, epoch: Epoch) -> Self {
        Self { me, session, node, instance, epoch, partly_since: None }
    }

    /// Whether it matters what the hypervisor shows. As long as the source may go on it does not, and a look takes a part
    /// of the processors from the very migration.
    #[must_use]
    pub fn needs_a_look(&self, view: &View) -> bool {
        !self.is_wanted(view) || self.is_released(view)
    }

    /// What is next; `come` is none when the hypervisor was not asked or did not say.
    pub fn step(&mut self, view: &View, come: Option<Come>, now: Boottime) -> ArrivalStep {
        if !self.is_wanted(view) {
            return ArrivalStep::Withdraw;
        }
        let released = self.is_released(view);
        let partly = released && matches!(come, Some(Come::Part | Come::Whole));
        self.partly_since = self.partly_since.filter(|_| partly).or(partly.then_some(now));
        let settled = self.partly_since.is_some_and(|since| now.since(since) >= SETTLED);
        match come {
            Some(Come::Whole) if released => ArrivalStep::Land,
            Some(Come::Nothing) if released => ArrivalStep::Lost,
            Some(Come::Part) if settled => ArrivalStep::Lost,
            Some(Come::Nothing | Come::Part | Come::Process | Come::Whole) | None => ArrivalStep::Wait,
        }
    }

    /// Whether the node's record still wants it here, under this very decision.
    fn is_wanted(&self, view: &View) -> bool {
        let Some(record) = view.nodes.get(&self.node).map(|known| &known.value) else { return false };
        let of_it = record.primary.as_ref().is_some_and(|primary| primary.instance == Some(self.instance));
        of_it
            && record.migration.as_ref().is_some_and(|migration| {
                let chosen = migration.to == self.me && migration.to_session == self.session;
                chosen && migration.epoch == self.epoch && !migration.abandoned
            })
    }

    fn is_released(&self, view: &View) -> bool {
        source_let_go(view, &self.node, self.instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Cluster, moved, node};

    /// alice's execution node is on its way, and its source has released it or not.
    fn coming(released: bool) -> (Cluster, Arrival) {
        let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
        let (from, instance) = cluster.primary("alice/exec-1");
        cluster.seen(from.as_str()).intent.drain = true;
        cluster.step();
        let migration = cluster.record("alice/exec-1").migration.clone().unwrap();
        if released {
            cluster.report_primary("alice/exec-1", |fact| fact.phase = moved(&migration.to));
        }
        let arrival =
            Arrival::new(migration.to, migration.to_session, node("alice/exec-1"), instance, migration.epoch);
        (cluster, arrival)
    }

    #[test]
    fn what_has_come_runs_only_once_its_source_has_released_it() {
        for (released, come, expected) in [
            (false, Some(Come::Whole), ArrivalStep::Wait),
            (true, Some(Come::Whole), ArrivalStep::Land),
            (false, Some(Come::Part), ArrivalStep::Wait),
            (true, Some(Come::Part), ArrivalStep::Wait),
            (false, Some(Come::Nothing), ArrivalStep::Wait),
            (true, Some(Come::Nothing), ArrivalStep::Lost),
            (true, Some(Come::Process), ArrivalStep::Wait),
            (true, None, ArrivalStep::Wait),
            (false, None, ArrivalStep::Wait),
        ] {
            let (cluster, mut arrival) = coming(released);
            assert_eq!(arrival.needs_a_look(&cluster.view), released);
            let now = cluster.now.boottime;
            assert_eq!(arrival.step(&cluster.view, come, now), expected, "{released} {come:?}");
        }
    }

    #[test]
    fn a_part_that_nothing_is_added_to_is_lost_after_a_while_and_one_that_becomes_whole_lands() {
        let (cluster, mut arrival) = coming(true);
        let (view, begun) = (&cluster.view, cluster.now.boottime);
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(arrival.step(view, Some(Come::Part), at(0)), ArrivalStep::Wait);
        assert_eq!(arrival.step(view, Some(Come::Part), at(29)), ArrivalStep::Wait);
        assert_eq!(arrival.clone().step(view, Some(Come::Whole), at(31)), ArrivalStep::Land);
        assert_eq!(arrival.clone().step(view, None, at(31)), ArrivalStep::Wait, "nobody looked");
        assert_eq!(arrival.step(view, Some(Come::Part), at(30)), ArrivalStep::Lost);
    }

    #[test]
    fn nothing_stays_of_a_migration_that_was_abandoned_is_over_or_is_another_one() {
        type Edit = fn(&mut crate::records::NodeRecord);
        let edits: [Edit; 5] = [
            |record| record.migration.as_mut().unwrap().abandoned = true,
            |record| record.migration = None,
            |record| record.migration.as_mut().unwrap().epoch = Epoch(9),
            |record| record.migration.as_mut().unwrap().to_session = 9,
            |record| record.migration.as_mut().unwrap().to = "host9".parse().unwrap(),
        ];
        for edit in edits {
            for released in [false, true] {
                let (mut cluster, mut arrival) = coming(released);
                cluster.edit("alice/exec-1", edit);
                assert!(arrival.needs_a_look(&cluster.view));
                let step = arrival.step(&cluster.view, Some(Come::Whole), cluster.now.boottime);
                assert_eq!(step, ArrivalStep::Withdraw);
            }
        }
    }
}
