//! Owns the circuit breaker of policies: how often each failed, and what follows: it is left in peace for a while, or suspended.
//!
//! ```text
//!             fault or refusal (failures + 1)           at the third in a row
//!   trusted ---------------------------------> failing -----------------------> suspended
//!      ^                                          |                                 |
//!      +----- an answer that core could use ------+          restored, or another component
//!
//!   a deadline fault also holds it off: it is not asked until the time is over
//! ```
//!
//! Promises: a failover waits for one deadline, not for one per question; a policy that fails now and then is asked on,
//! one that fails in a row is not. Must not do: look at clocks, or write the record that suspends a policy for the
//! cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_core::model::units::Boottime;
use understudy_core::policy::Interface;

use crate::fault::PolicyFault;
use crate::set::By;

/// Failures in a row after which a policy is suspended: one may be a busy machine, two a coincidence.
pub const FAILURES_MAX: u32 = 3;
/// How long a policy that overran its deadline is not asked: longer than a failover with all its questions lasts.
pub const HOLD_OFF: Duration = Duration::from_secs(30);

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Core could use the answer.
    Used,
    /// Core refused the whole answer, for this reason.
    Refused(String),
    /// There was no answer.
    Failed(PolicyFault),
}

/// Whether a policy may be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Asked,
    /// Not before this time: it overran its deadline a while ago.
    HeldOff {
        /// When it may again.
        until: Boottime,
    },
    /// Not any more.
    Suspended {
        /// What it did, for the operator.
        reason: String,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Record {
    /// By what was asked: good answers to one question do not make up for failures at another.
    failures: BTreeMap<Interface, u32>,
    held_off: Option<Boottime>,
    suspended: Option<String>,
}

/// What this host saw of its policies. One component under one name is one policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CircuitBreaker {
    records: BTreeMap<By, Record>,
}

impl CircuitBreaker {
    /// Whether a policy may be asked at `at`.
    #[must_use]
    pub fn standing(&self, policy: &By, at: Boottime) -> Standing {
        match self.records.get(policy) {
            Some(Record { suspended: Some(reason), .. }) => Standing::Suspended { reason: reason.clone() },
            Some(Record { held_off: Some(until), .. }) if at < *until => Standing::HeldOff { until: *until },
            Some(_) | None => Standing::Asked,
        }
    }

    /// Note what became of a question. Returns the reason when this is what suspends the policy; write it down for
    /// the cluster and raise an alert.
    ///
    /// An error that a policy gives as its answer is no failure: `wit/` lets it refuse what it cannot answer, such as a
    /// label that it cannot read.
    pub fn note(
        &mut self,
        policy: &By,
        interface: Interface,
        outcome: &Outcome,
        at: Boottime,
    ) -> Option<String> {
        let what = match outcome {
            Outcome::Used => {
                if let Some(record) = self.records.get_mut(policy) {
                    record.failures.remove(&interface);
                }
                return None;
            }
            Outcome::Failed(
                PolicyFault::Unavailable { .. }
                | PolicyFault::Busy { .. }
                | PolicyFault::Guest { .. }
                | PolicyFault::Parameters { .. },
            ) => return None,
            Outcome::Refused(reason) => reason.clone(),
            Outcome::Failed(fault) => fault.to_string(),
        };
        let record = self.records.entry(policy.clone()).or_default();
        if matches!(outcome, Outcome::Failed(PolicyFault::Deadline { .. })) {
            record.held_off = Some(at + HOLD_OFF);
        }
        let failures = record.failures.entry(interface).or_default();
        *failures += 1;
        if *failures < FAILURES_MAX || record.suspended.is_some() {
            return None;
        }
        let reason = format!("failed {failures} times in a row at {interface}, the last time: {what}");
        record.suspended = Some(reason.clone());
        Some(reason)
    }

    /// Forget what policies of this name did: an operator trusts it again.
    pub fn restore(&mut self, name: &str) {
        self.records.retain(|policy, _| policy.name != name);
    }

    /// Forget policies that are not among these: a changed file starts anew.
    pub fn keep<'a>(&mut self, policies: impl IntoIterator<Item = &'a By>) {
        let kept: Vec<&By> = policies.into_iter().collect();
        self.records.retain(|policy, _| kept.contains(&policy));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Digest;

    /// What happens, in which order, and whether the policy is suspended.
    type Case = (&'static str, Vec<(Interface, Outcome)>, bool);

    fn policy(mark: &str) -> By {
        By { name: "p".to_owned(), digest: Digest::of(mark.as_bytes()) }
    }

    fn trap() -> Outcome {
        Outcome::Failed(PolicyFault::Trap { policy: "p".to_owned(), message: "unreachable".to_owned() })
    }

    fn deadline() -> Outcome {
        Outcome::Failed(PolicyFault::Deadline { policy: "p".to_owned(), limit: Duration::from_millis(500) })
    }

    fn refused() -> Outcome {
        Outcome::Refused("b is full".to_owned())
    }

    fn error() -> Outcome {
        Outcome::Failed(PolicyFault::Guest { policy: "p".to_owned(), message: "what?".to_owned() })
    }

    fn at(seconds: u64) -> Boottime {
        Boottime::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn three_failures_in_a_row_suspend_a_policy_and_nothing_else_does() {
        use Interface::{BackupCount, Placement};
        let busy = || Outcome::Failed(PolicyFault::Busy { policy: "p".to_owned() });
        let cases: [Case; 9] = [
            ("three traps", vec![(Placement, trap()), (Placement, trap()), (Placement, trap())], true),
            ("all kinds", vec![(Placement, trap()), (Placement, refused()), (Placement, deadline())], true),
            ("two traps", vec![(Placement, trap()), (Placement, trap())], false),
            (
                "an answer between",
                vec![
                    (Placement, trap()),
                    (Placement, trap()),
                    (Placement, Outcome::Used),
                    (Placement, trap()),
                ],
                false,
            ),
            (
                "an answer to another question between",
                vec![
                    (Placement, trap()),
                    (Placement, trap()),
                    (BackupCount, Outcome::Used),
                    (Placement, trap()),
                ],
                true,
            ),
            (
                "failures at both questions",
                vec![(Placement, trap()), (BackupCount, trap()), (Placement, trap()), (BackupCount, trap())],
                false,
            ),
            ("errors are answers", vec![(Placement, error()); 9], false),
            ("a busy host is no fault of the policy", vec![(Placement, busy()); 9], false),
            (
                "an error does not make up for traps",
                vec![(Placement, trap()), (Placement, trap()), (Placement, error()), (Placement, trap())],
                true,
            ),
        ];
        for (what, outcomes, suspended) in cases {
            let mut breaker = CircuitBreaker::default();
            let mut reported = 0;
            for (interface, outcome) in &outcomes {
                reported += usize::from(breaker.note(&policy("1"), *interface, outcome, at(0)).is_some());
            }
            assert_eq!(reported, usize::from(suspended), "{what}");
            let is_suspended =
                matches!(breaker.standing(&policy("1"), at(1_000)), Standing::Suspended { .. });
            assert_eq!(is_suspended, suspended, "{what}");
        }
    }

    #[test]
    fn it_is_reported_once_with_what_happened_last() {
        let mut breaker = CircuitBreaker::default();
        let mut note = |outcome| breaker.note(&policy("1"), Interface::Placement, &outcome, at(0));
        assert_eq!((note(trap()), note(trap())), (None, None));
        let reason = note(refused()).unwrap();
        assert_eq!(reason, "failed 3 times in a row at placement, the last time: b is full");
        assert_eq!(note(trap()), None, "questions that were under way already");
        assert_eq!(breaker.standing(&policy("1"), at(0)), Standing::Suspended { reason });
    }

    #[test]
    fn a_deadline_holds_a_policy_off_and_a_trap_does_not() {
        let mut breaker = CircuitBreaker::default();
        breaker.note(&policy("1"), Interface::Placement, &trap(), at(10));
        assert_eq!(breaker.standing(&policy("1"), at(10)), Standing::Asked);
        breaker.note(&policy("1"), Interface::Placement, &deadline(), at(10));
        let until = at(10) + HOLD_OFF;
        assert_eq!(breaker.standing(&policy("1"), at(10)), Standing::HeldOff { until });
        assert_eq!(breaker.standing(&policy("1"), Boottime(until.0 - 1)), Standing::HeldOff { until });
        assert_eq!(breaker.standing(&policy("1"), until), Standing::Asked);
        assert_eq!(breaker.standing(&policy("2"), at(10)), Standing::Asked, "another component");
    }

    #[test]
    fn a_new_file_or_an_operator_makes_a_policy_trusted_again() {
        let suspended = || {
            let mut breaker = CircuitBreaker::default();
            for _ in 0..FAILURES_MAX {
                breaker.note(&policy("1"), Interface::Placement, &trap(), at(0));
            }
            breaker
        };
        let mut breaker = suspended();
        breaker.keep(&[policy("1")]);
        assert_eq!(breaker, suspended());
        assert_eq!(breaker.standing(&policy("2"), at(0)), Standing::Asked);
        breaker.keep(&[policy("2")]);
        assert_eq!(breaker, CircuitBreaker::default());
        let mut breaker = suspended();
        breaker.restore("q");
        assert_eq!(breaker, suspended());
        breaker.restore("p");
        assert_eq!(breaker, CircuitBreaker::default());
    }
}
