//! Owns a host's right to run primaries, as its own agent sees it.
//!
//! Promises: the deadline handed to the guard counts from before the renewal was sent; no renewal is sent before
//! the guard has acknowledged the last deadline; a session that was refused once is never renewed again. Must not
//! do: read a clock, talk to the store or the guard.
//!
//! ```text
//!            open refused / unavailable: again after `session_renew`
//!            ┌────┐
//!            ▼    │
//!        Closed ──┴─ opened ──▶ Confirming ── guard acknowledged ──▶ Open
//!            ▲                      ▲                                 │ renew due
//!            │ refused              │ renewed                         ▼
//!            └──────────────────────┴───────────────────────────── Renewing
//!                                                 unavailable: back to Open, due again soon
//!            Open and past the acknowledged deadline: Closed, everything stopped
//! ```

use crate::bounds::Bounds;
use crate::units::Boottime;

/// Where the session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed { retry: Boottime },
    Opening { sent: Boottime },
    Confirming { deadline: Boottime },
    Open { renew: Boottime },
    Renewing { sent: Boottime },
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEvent {
    /// Time passed.
    Tick,
    /// The store holds the new or renewed session.
    Written,
    /// The store holds something else: the leader ended the session, or another agent opened one.
    Refused,
    /// The store did not answer, or its answer was lost.
    Unavailable,
    /// The guard has acknowledged the deadline.
    GuardAcknowledged,
    /// The guard did not acknowledge.
    GuardSilent,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionAction {
    /// Make sure that nothing of an earlier session runs, read every epoch anew, then open the next session.
    Open,
    /// Renew the session by compare-and-swap.
    Renew,
    /// Hand this deadline to the guard.
    Confirm(Boottime),
    /// The session is lost: every member instance of this host dies now.
    StopAll,
}

/// The state machine. One `step` per event.
#[derive(Debug, Clone)]
pub struct Session {
    bounds: Bounds,
    state: State,
    /// The last deadline that the guard acknowledged.
    deadline: Option<Boottime>,
}

impl Session {
    /// No session yet.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, state: State::Closed { retry: Boottime(0) }, deadline: None }
    }

    /// Whether primaries may run here at `now`.
    #[must_use]
    pub fn is_open(&self, now: Boottime) -> bool {
        self.deadline.is_some_and(|deadline| now < deadline)
    }

    /// The deadline that the guard holds.
    #[must_use]
    pub fn deadline(&self) -> Option<Boottime> {
        self.deadline
    }

    /// When the next `Tick` is due.
    #[must_use]
    pub fn next_tick(&self) -> Option<Boottime> {
        match self.state {
            State::Closed { retry } => Some(retry),
            State::Open { renew } => Some(renew),
            State::Opening { .. } | State::Confirming { .. } | State::Renewing { .. } => None,
        }
    }

    /// Takes one event and says what to do.
    pub fn step(&mut self, event: SessionEvent, now: Boottime) -> Option<SessionAction> {
        let (state, action) = match (self.state, event) {
            (State::Closed { retry }, SessionEvent::Tick) if now >= retry => {
                (State::Opening { sent: now }, Some(SessionAction::Open))
            }
            (State::Opening { sent } | State::Renewing { sent }, SessionEvent::Written) => {
                let deadline = sent + self.bounds.session_ttl;
                (State::Confirming { deadline }, Some(SessionAction::Confirm(deadline)))
            }
            (State::Opening { .. }, SessionEvent::Refused | SessionEvent::Unavailable) => {
                (State::Closed { retry: now + self.bounds.session_renew }, None)
            }
            (State::Confirming { deadline }, SessionEvent::GuardAcknowledged) => {
                self.deadline = Some(deadline);
                (State::Open { renew: deadline - self.bounds.session_ttl + self.bounds.session_renew }, None)
            }
            // The guard could not be asked before the deadline itself went by: only a new renewal helps.
            (State::Confirming { deadline }, SessionEvent::GuardSilent | SessionEvent::Tick)
                if now >= deadline =>
            {
                (State::Open { renew: now }, None)
            }
            // Without the guard's word the session is not renewed; the last acknowledged deadline stands.
            (State::Confirming { deadline }, SessionEvent::GuardSilent | SessionEvent::Tick) => {
                (State::Confirming { deadline }, Some(SessionAction::Confirm(deadline)))
            }
            // The guard has ended everything by then. Where there is no guard any more, this is the second line.
            (State::Open { .. }, SessionEvent::Tick)
                if self.deadline.is_some_and(|deadline| now >= deadline) =>
            {
                self.deadline = None;
                (State::Closed { retry: now }, Some(SessionAction::StopAll))
            }
            (State::Open { renew }, SessionEvent::Tick) if now >= renew => {
                (State::Renewing { sent: now }, Some(SessionAction::Renew))
            }
            (State::Renewing { .. }, SessionEvent::Unavailable) => {
                (State::Open { renew: now + self.bounds.session_renew / 4 }, None)
            }
            (State::Renewing { .. }, SessionEvent::Refused) => {
                self.deadline = None;
                (State::Closed { retry: now }, Some(SessionAction::StopAll))
            }
            (state, _) => (state, None),
        };
        self.state = state;
        action
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bounds::Profile;

    const SECOND: u64 = 1_000_000_000;

    fn opened_at(sent: u64) -> Session {
        let mut session = Session::new(Profile::Safe.bounds());
        assert_eq!(session.step(SessionEvent::Tick, Boottime(sent)), Some(SessionAction::Open));
        let deadline = Boottime(sent) + Duration::from_secs(6);
        assert_eq!(
            session.step(SessionEvent::Written, Boottime(sent + SECOND / 2)),
            Some(SessionAction::Confirm(deadline)),
            "the deadline counts from before the request was sent"
        );
        assert_eq!(session.step(SessionEvent::GuardAcknowledged, Boottime(sent + SECOND / 2)), None);
        session
    }

    #[test]
    fn nothing_is_open_before_the_guard_has_acknowledged() {
        let mut session = Session::new(Profile::Safe.bounds());
        session.step(SessionEvent::Tick, Boottime(0));
        session.step(SessionEvent::Written, Boottime(1));
        assert!(!session.is_open(Boottime(2)));
        session.step(SessionEvent::GuardAcknowledged, Boottime(3));
        assert!(session.is_open(Boottime(4)));
        assert!(!session.is_open(Boottime(6 * SECOND)));
    }

    #[test]
    fn no_renewal_is_sent_while_the_guard_is_silent() {
        let mut session = Session::new(Profile::Safe.bounds());
        session.step(SessionEvent::Tick, Boottime(0));
        session.step(SessionEvent::Written, Boottime(1));
        for second in 1..6 {
            let action = session.step(SessionEvent::GuardSilent, Boottime(second * SECOND));
            assert!(matches!(action, Some(SessionAction::Confirm(_))), "{action:?}");
        }
    }

    #[test]
    fn a_deadline_that_passed_before_the_guard_answered_needs_a_new_renewal() {
        let mut session = Session::new(Profile::Safe.bounds());
        session.step(SessionEvent::Tick, Boottime(0));
        session.step(SessionEvent::Written, Boottime(1));
        assert_eq!(session.step(SessionEvent::GuardSilent, Boottime(6 * SECOND)), None);
        assert_eq!(session.step(SessionEvent::Tick, Boottime(6 * SECOND)), Some(SessionAction::Renew));
    }

    #[test]
    fn an_unanswered_renewal_leaves_the_old_deadline_and_is_tried_again() {
        let mut session = opened_at(10 * SECOND);
        assert_eq!(session.step(SessionEvent::Tick, Boottime(10 * SECOND)), None, "not due");
        assert_eq!(session.step(SessionEvent::Tick, Boottime(11 * SECOND)), Some(SessionAction::Renew));
        assert_eq!(session.step(SessionEvent::Unavailable, Boottime(12 * SECOND)), None);
        assert_eq!(session.deadline(), Some(Boottime(16 * SECOND)));
        assert_eq!(session.step(SessionEvent::Tick, Boottime(13 * SECOND)), Some(SessionAction::Renew));
    }

    #[test]
    fn a_session_past_its_deadline_stops_everything_and_is_opened_anew() {
        let mut session = opened_at(10 * SECOND);
        for second in 11..16 {
            assert_eq!(
                session.step(SessionEvent::Tick, Boottime(second * SECOND)),
                Some(SessionAction::Renew)
            );
            assert_eq!(session.step(SessionEvent::Unavailable, Boottime(second * SECOND + SECOND / 2)), None);
        }
        assert_eq!(session.step(SessionEvent::Tick, Boottime(16 * SECOND)), Some(SessionAction::StopAll));
        assert_eq!(session.step(SessionEvent::Tick, Boottime(16 * SECOND)), Some(SessionAction::Open));
    }

    #[test]
    fn a_refused_renewal_stops_everything_and_opens_anew() {
        let mut session = opened_at(10 * SECOND);
        session.step(SessionEvent::Tick, Boottime(11 * SECOND));
        assert_eq!(session.step(SessionEvent::Refused, Boottime(12 * SECOND)), Some(SessionAction::StopAll));
        assert!(!session.is_open(Boottime(12 * SECOND)));
        assert_eq!(session.step(SessionEvent::Tick, Boottime(12 * SECOND)), Some(SessionAction::Open));
    }
}
