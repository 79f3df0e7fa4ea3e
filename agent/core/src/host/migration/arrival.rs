//! Owns the destination's side of a live migration: when what has come may run, and when it is given up.
//!
//! ```text
//! Permit ─▶ waiting ── source released ─▶ Look ── all of it here ─────────────────────▶ Land ─▶ arrived
//!             │  ▲                         │ ├─── nothing here, or a part that stays one ─▶ Withdraw ─▶ lost
//!             │  └─── not whole yet, 5 ms ─┘ │
//!             ├─────── the lease is over, or no record wants it here under this decision ──▶ Withdraw ─▶ nothing is here
//!             └─────── the permit has lapsed ─▶ failed, and begun anew where it is still wanted
//! ```
//!
//! Promises: what has come runs only once its source has released it (SAFE-7), and only on what a look since then has
//! shown; it is called lost only once the source has released it and nothing of it can come any more: the permit is revoked
//! and what was here is destroyed. While its record cannot be read neither is done. Must not do: look, or wait.
//!
//! Cost: a change of the records takes two look-ups in them. A look takes processors from the migration: there is none
//! before the source has released the instance, and after that one every [`LOOK`] until it is whole, for libvirt's last step
//! takes milliseconds and the guest stands still meanwhile, half of this on average for the wait alone.

use std::time::Duration;

use super::{Landed, MigrationAnswer, MigrationStep, Next, Presence};
use crate::host::input::{Job, Outcome};
use crate::host::{HostAction, Records, source_released};
use crate::model::ids::{HostId, NodeId};
use crate::model::records::NodeRecord;
use crate::model::units::{Boottime, Vcpus};
use crate::model::view::View;

/// Between two looks at what the source has released.
const LOOK: Duration = Duration::from_millis(5);
/// The same where libvirt does not know it, or does not answer: it is nothing of milliseconds then, and each look is a turn of
/// the agent's loop.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a part of it is given to become whole once its source has released it; libvirt's last step takes milliseconds.
const SETTLED: Duration = Duration::from_secs(30);

/// One instance on its way here.
#[derive(Debug)]
pub(in crate::host) struct Arrival {
    me: HostId,
    job: Job,
    node: NodeId,
    patience: Duration,
    /// When the permit lapses at the earliest.
    until: Boottime,
    stage: Stage,
    /// Since when a part of it has been seen here, its source having released it.
    partly_since: Option<Boottime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Permitting,
    /// No look is taken before then.
    Waiting(Boottime),
    Looking,
    Landing,
    Withdrawing {
        lost: bool,
    },
}

/// What an arrival follows from, besides its own state.
#[derive(Debug, Clone, Copy)]
pub(in crate::host) struct Known<'a> {
    /// What the store holds.
    pub(in crate::host) records: &'a Records,
    /// This host's lease, if it has not lost it.
    pub(in crate::host) lease: Option<u64>,
    /// This host's clock.
    pub(in crate::host) now: Boottime,
}

impl Arrival {
    /// Takes in what `job` accepts, within this time. None for another job.
    pub(in crate::host) fn begin(
        me: HostId,
        job: Job,
        patience: Duration,
        now: Boottime,
    ) -> Option<(Self, MigrationStep)> {
        let HostAction::Accept { node, .. } = &job.action else { return None };
        let node = node.clone();
        let until = now + patience;
        let arrival = Self { me, job, node, patience, until, stage: Stage::Permitting, partly_since: None };
        Some((arrival, MigrationStep::Permit { lasts: patience }))
    }

    pub(in crate::host) fn job(&self) -> &Job {
        &self.job
    }

    /// The records have changed, or time has passed.
    pub(in crate::host) fn review(&mut self, known: Known<'_>) -> Next {
        let Stage::Waiting(look_at) = self.stage else { return Next::Wait };
        if self.is_over(known) {
            return self.withdraw(false);
        }
        if known.now >= self.until {
            let (instance, patience) = (self.job.instance, self.patience);
            return Next::End(Outcome::Failed(format!(
                "instance {instance} did not arrive within {patience:?}"
            )));
        }
        if !self.is_released(&known.records.view) {
            self.partly_since = None;
            return Next::Wait;
        }
        if look_at <= known.now { self.take(Stage::Looking, MigrationStep::Look) } else { Next::Wait }
    }

    /// The step that is under way went so. An answer that no step waits for changes nothing.
    pub(in crate::host) fn answered(&mut self, answer: MigrationAnswer, known: Known<'_>) -> Next {
        use MigrationAnswer::{Done, Failed};
        match (self.stage, answer) {
            (Stage::Permitting, Done) => {
                self.stage = Stage::Waiting(known.now);
                self.review(known)
            }
            (Stage::Looking, MigrationAnswer::Seen(presence)) => self.looked(Some(presence), known),
            (Stage::Looking, Failed(_)) => self.looked(None, known),
            (Stage::Landing, MigrationAnswer::Landed(came)) => Next::End(self.arrived(came, known)),
            (Stage::Withdrawing { lost: false }, Done) => Next::End(Outcome::Done),
            (Stage::Withdrawing { lost: true }, Done) => {
                Next::End(Outcome::Died("it left its source and did not arrive".to_owned()))
            }
            (Stage::Landing, Failed(_)) if self.is_over(known) => self.withdraw(false),
            (Stage::Permitting | Stage::Landing | Stage::Withdrawing { .. }, Failed(why)) => {
                Next::End(Outcome::Failed(why))
            }
            (_, _) => Next::Wait,
        }
    }

    /// When it has something to do without another word.
    pub(in crate::host) fn due(&self, view: &View) -> Option<Boottime> {
        match self.stage {
            Stage::Waiting(look_at) if self.is_released(view) => Some(look_at.min(self.until)),
            Stage::Waiting(_) => Some(self.until),
            Stage::Permitting | Stage::Looking | Stage::Landing | Stage::Withdrawing { .. } => None,
        }
    }

    fn looked(&mut self, presence: Option<Presence>, known: Known<'_>) -> Next {
        self.stage = Stage::Waiting(known.now + LOOK);
        if self.is_over(known) || !self.is_released(&known.records.view) {
            return self.review(known);
        }
        match presence {
            Some(Presence::Running | Presence::Paused) => self.take(Stage::Landing, MigrationStep::Land),
            Some(Presence::Gone) => self.withdraw(true),
            Some(Presence::Held | Presence::Other) => {
                let since = *self.partly_since.get_or_insert(known.now);
                if known.now.since(since) >= SETTLED { self.withdraw(true) } else { self.review(known) }
            }
            Some(Presence::Process) | None => {
                (self.partly_since, self.stage) = (None, Stage::Waiting(known.now + LOOK_AGAIN));
                self.review(known)
            }
        }
    }

    fn take(&mut self, stage: Stage, step: MigrationStep) -> Next {
        self.stage = stage;
        Next::Take(step)
    }

    fn withdraw(&mut self, lost: bool) -> Next {
        self.take(Stage::Withdrawing { lost }, MigrationStep::Withdraw)
    }

    /// What the hypervisor does not say of it, its node does.
    fn arrived(&self, came: Option<Landed>, known: Known<'_>) -> Outcome {
        let spec = known.records.view.nodes.get(&self.node).map(|node| &node.value.spec);
        let came = came.unwrap_or_else(|| Landed {
            memory: spec.map(|spec| spec.memory).or(self.job.memory).unwrap_or_default(),
            vcpus: spec.map_or(Vcpus(0), |spec| spec.vcpus),
            address: self.job.address,
        });
        Outcome::Arrived { memory: came.memory, vcpus: came.vcpus, address: came.address }
    }

    /// Whether nothing may come any more: the lease that it was to come under is over, or the node's record does not want it
    /// here under this very decision. A record that cannot be read may want it.
    fn is_over(&self, known: Known<'_>) -> bool {
        if known.lease != Some(self.job.lease) {
            return true;
        }
        match known.records.view.nodes.get(&self.node) {
            Some(node) => !self.is_wanted(&node.value),
            None => !known.records.unreadable,
        }
    }

    fn is_wanted(&self, record: &NodeRecord) -> bool {
        let HostAction::Accept { instance, epoch, .. } = &self.job.action else { return false };
        let of_it = record.primary.as_ref().is_some_and(|primary| primary.instance == Some(*instance));
        of_it
            && record.migration.as_ref().is_some_and(|migration| {
                let chosen = migration.to == self.me && migration.to_lease == self.job.lease;
                chosen && migration.epoch == *epoch && !migration.abandoned
            })
    }

    fn is_released(&self, view: &View) -> bool {
        source_released(view, &self.node, self.job.instance)
    }
}

#[cfg(test)]
mod tests;
