//! Owns a host's lease: its right to run members, as its own agent sees it.
//!
//! Promises: the deadline handed to the guard counts from before the renewal was sent; no renewal is sent before the
//! guard has acknowledged the last deadline; whatever is under way, at the last *acknowledged* deadline every member is
//! killed, and so it is when the store or the guard refuses; a lease that is over is never renewed or confirmed again,
//! and an answer to what was asked for it changes nothing. Must not do: read a clock, talk to the store or the guard.
//!
//! ```text
//!          refused / unavailable: again after `lease_renew`
//!            ┌────┐
//!            ▼    │
//!        Closed ──┴─ opened ──▶ Confirming ── guard acknowledged ──▶ Open
//!          ▲ ▲                  │ ▲  silent: asked again              │ renew due
//!          │ │ never            │ │                                   ▼
//!          │ └─ acknowledged ◀──┘ └─────────── renewed ─────────── Renewing
//!          │                                       unavailable: back to Open, due again soon
//!          │
//!          └── from every state: the acknowledged deadline is reached, or store or guard refuse: `KillMembers`
//! ```

use std::time::Duration;

use crate::bounds::Bounds;
use crate::model::units::Boottime;

/// Before a guard that did not answer is asked again. It is a local process that systemd restarts within as much.
const ASK_GUARD_AGAIN: Duration = Duration::from_millis(100);

/// Names one request to the store or the guard: an answer to any but the last one is void.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt(pub u64);

/// Where the lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed {
        retry: Boottime,
    },
    Opening,
    /// `ask`: when the guard is asked again; none while a question is under way.
    Confirming {
        deadline: Boottime,
        ask: Option<Boottime>,
    },
    Open {
        renew: Boottime,
    },
    Renewing {
        sent: Boottime,
    },
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseInput {
    /// Time passed.
    Due,
    /// The answer to a request.
    Answer(Attempt, LeaseAnswer),
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseAnswer {
    /// The store holds an open lease of this host under this number.
    Opened {
        /// Its number.
        number: u64,
        /// Read before it was written.
        sent: Boottime,
        /// What the guard had acknowledged for this very lease, where it goes on from before the agent's start.
        acknowledged: Option<Boottime>,
    },
    /// The store holds the renewed lease.
    Renewed,
    /// The store holds something else: the leader expired the lease, or another agent opened one.
    Refused,
    /// The store did not answer, its answer was lost, or something is missing for a lease to be opened.
    Unavailable,
    /// The guard has acknowledged the deadline.
    GuardAcknowledged,
    /// The guard will not acknowledge this lease any more: it has expired there, or a later one was acknowledged.
    GuardRefused,
    /// The guard did not answer.
    GuardSilent,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseEffect {
    /// Take up this boot's own lease if it stands, else make sure that nothing of an earlier one runs and open the next.
    Open(Attempt),
    /// Renew the lease by compare-and-swap.
    Renew(Attempt),
    /// Hand this deadline to the guard.
    Confirm(Attempt, Boottime),
    /// The lease is lost: every member of this host dies now.
    KillMembers(Loss),
}

/// Why a lease was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// No renewal was acknowledged in time.
    Deadline,
    /// The store holds another lease, or the end of this one.
    Store,
    /// The guard holds that it is over.
    Guard,
}

/// What others need to know of the lease.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The number of the lease; 0 before the first.
    pub number: u64,
    /// The last deadline that the guard acknowledged; none while nothing may run.
    pub until: Option<Boottime>,
}

impl LeaseStatus {
    /// Whether members may run here at `now`.
    #[must_use]
    pub fn is_open(&self, now: Boottime) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// The state machine. One `step` per input.
#[derive(Debug, Clone)]
pub struct HostLease {
    bounds: Bounds,
    state: State,
    status: LeaseStatus,
    attempt: Attempt,
}

impl HostLease {
    /// The lease of an agent that starts. `inherited` is what this boot's guard acknowledged last, as far as its table
    /// tells: members of an earlier agent may run until then and no longer, whether or not this agent gets to open it.
    #[must_use]
    pub fn new(bounds: Bounds, inherited: Option<(u64, Boottime)>) -> Self {
        let status = inherited
            .map_or_else(LeaseStatus::default, |(number, until)| LeaseStatus { number, until: Some(until) });
        let state = State::Closed { retry: Boottime(0) };
        Self { bounds, state, status, attempt: Attempt::default() }
    }

    /// What others need to know.
    #[must_use]
    pub fn status(&self) -> LeaseStatus {
        self.status
    }

    /// Whether the store is being asked to open a lease, or is about to be.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self.state {
            State::Closed { .. } | State::Opening => true,
            State::Confirming { .. } | State::Open { .. } | State::Renewing { .. } => false,
        }
    }

    /// When the next [`LeaseInput::Due`] is due, to the nanosecond: a late one is a late kill.
    #[must_use]
    pub fn next_due(&self) -> Option<Boottime> {
        let own = match self.state {
            State::Closed { retry } => Some(retry),
            State::Open { renew } => Some(renew),
            State::Confirming { deadline, ask } => Some(ask.map_or(deadline, |ask| ask.min(deadline))),
            State::Opening | State::Renewing { .. } => None,
        };
        own.into_iter().chain(self.status.until).min()
    }

    /// Takes one input and says what to do.
    pub fn step(&mut self, input: LeaseInput, now: Boottime) -> Option<LeaseEffect> {
        if self.status.until.is_some_and(|until| now >= until) {
            return Some(self.lose(Loss::Deadline, now));
        }
        match input {
            LeaseInput::Due => self.due(now),
            LeaseInput::Answer(attempt, answer) if attempt == self.attempt => self.answered(answer, now),
            LeaseInput::Answer(..) => None,
        }
    }

    fn due(&mut self, now: Boottime) -> Option<LeaseEffect> {
        match self.state {
            State::Closed { retry } if now >= retry => {
                self.state = State::Opening;
                Some(LeaseEffect::Open(self.next_attempt()))
            }
            // Never acknowledged, so that nothing runs under it. To renew it would keep others waiting for nothing.
            State::Confirming { deadline, .. } if now >= deadline => {
                self.close(now + self.bounds.lease_renew);
                None
            }
            State::Confirming { deadline, ask: Some(ask) } if now >= ask => Some(self.confirm(deadline)),
            State::Open { renew } if now >= renew => {
                self.state = State::Renewing { sent: now };
                Some(LeaseEffect::Renew(self.next_attempt()))
            }
            State::Closed { .. }
            | State::Opening
            | State::Confirming { .. }
            | State::Open { .. }
            | State::Renewing { .. } => None,
        }
    }

    fn answered(&mut self, answer: LeaseAnswer, now: Boottime) -> Option<LeaseEffect> {
        match (self.state, answer) {
            (State::Opening, LeaseAnswer::Opened { number, sent, acknowledged }) => {
                self.status = LeaseStatus { number, until: acknowledged };
                Some(self.confirm(sent + self.bounds.lease_ttl))
            }
            (State::Opening, LeaseAnswer::Refused | LeaseAnswer::Unavailable) => {
                self.state = State::Closed { retry: now + self.bounds.lease_renew };
                None
            }
            (State::Renewing { sent }, LeaseAnswer::Renewed) => {
                Some(self.confirm(sent + self.bounds.lease_ttl))
            }
            (State::Renewing { .. }, LeaseAnswer::Unavailable) => {
                self.state = State::Open { renew: now + self.bounds.lease_renew / 4 };
                None
            }
            (State::Renewing { .. }, LeaseAnswer::Refused) => Some(self.lose(Loss::Store, now)),
            (State::Confirming { deadline, .. }, LeaseAnswer::GuardAcknowledged) => {
                self.status.until = Some(deadline);
                let renew = deadline - self.bounds.lease_ttl + self.bounds.lease_renew;
                self.state = State::Open { renew };
                None
            }
            (State::Confirming { .. }, LeaseAnswer::GuardRefused) => Some(self.lose(Loss::Guard, now)),
            (State::Confirming { deadline, .. }, LeaseAnswer::GuardSilent) => {
                self.state = State::Confirming { deadline, ask: Some(now + ASK_GUARD_AGAIN) };
                None
            }
            // An answer to another question than the one that was asked.
            (
                State::Closed { .. }
                | State::Opening
                | State::Confirming { .. }
                | State::Open { .. }
                | State::Renewing { .. },
                _,
            ) => None,
        }
    }

    fn confirm(&mut self, deadline: Boottime) -> LeaseEffect {
        self.state = State::Confirming { deadline, ask: None };
        LeaseEffect::Confirm(self.next_attempt(), deadline)
    }

    fn lose(&mut self, loss: Loss, now: Boottime) -> LeaseEffect {
        self.close(now);
        LeaseEffect::KillMembers(loss)
    }

    fn close(&mut self, retry: Boottime) {
        self.status.until = None;
        self.state = State::Closed { retry };
        // Whatever is under way was asked for the lease that is over.
        self.next_attempt();
    }

    fn next_attempt(&mut self) -> Attempt {
        self.attempt.0 += 1;
        self.attempt
    }
}

#[cfg(test)]
mod tests;
