//! The life of a lease as tables, and what holds along every path through it.

use super::*;
use crate::bounds::Profile;

const SECOND: u64 = 1_000_000_000;

struct Rig {
    lease: HostLease,
    last: Attempt,
}

impl Rig {
    fn new(inherited: Option<(u64, Boottime)>) -> Self {
        Self { lease: HostLease::new(Profile::Safe.bounds(), inherited), last: Attempt(0) }
    }

    /// Open since the first second, renewed for the last time at the tenth: it ends at the sixteenth.
    fn open() -> Self {
        let mut rig = Self::new(None);
        rig.due(9 * SECOND);
        rig.opened(10 * SECOND, 10 * SECOND);
        assert_eq!(rig.answer(LeaseAnswer::GuardAcknowledged, 10 * SECOND), None);
        rig
    }

    fn apply(&mut self, effect: Option<LeaseEffect>) -> Option<LeaseEffect> {
        match effect {
            Some(
                LeaseEffect::Open(attempt) | LeaseEffect::Renew(attempt) | LeaseEffect::Confirm(attempt, _),
            ) => self.last = attempt,
            Some(LeaseEffect::KillMembers(_)) | None => {}
        }
        effect
    }

    fn due(&mut self, now: u64) -> Option<LeaseEffect> {
        let effect = self.lease.step(LeaseInput::Due, Boottime(now));
        self.apply(effect)
    }

    fn answer(&mut self, answer: LeaseAnswer, now: u64) -> Option<LeaseEffect> {
        let effect = self.lease.step(LeaseInput::Answer(self.last, answer), Boottime(now));
        self.apply(effect)
    }

    fn opened(&mut self, sent: u64, now: u64) -> Option<LeaseEffect> {
        let (sent, acknowledged) = (Boottime(sent), None);
        self.answer(LeaseAnswer::Opened { number: 1, sent, acknowledged }, now)
    }

    fn is_open(&self, now: u64) -> bool {
        self.lease.status().is_open(Boottime(now))
    }
}

const LOST: Option<LeaseEffect> = Some(LeaseEffect::KillMembers(Loss::Deadline));

#[test]
fn nothing_may_run_before_the_guard_has_acknowledged_and_the_deadline_counts_from_before_the_request() {
    let mut rig = Rig::new(None);
    assert!(matches!(rig.due(0), Some(LeaseEffect::Open(_))));
    let asked = rig.opened(SECOND, 2 * SECOND);
    assert_eq!(asked, Some(LeaseEffect::Confirm(rig.last, Boottime(7 * SECOND))));
    assert!(!rig.is_open(2 * SECOND));
    rig.answer(LeaseAnswer::GuardAcknowledged, 2 * SECOND);
    assert!(rig.is_open(2 * SECOND) && !rig.is_open(7 * SECOND));
    assert_eq!(rig.lease.status().number, 1);
}

/// S1: what counts is the deadline that the guard acknowledged, not the one that it is asked for.
#[test]
fn at_the_acknowledged_deadline_members_are_killed_whatever_is_under_way() {
    type Step = fn(&mut Rig);
    let under_way: [(&str, Step); 5] = [
        ("open, renewal overdue", |_| {}),
        ("renewing", |rig| {
            rig.due(11 * SECOND);
        }),
        ("renewal unanswered", |rig| {
            rig.due(11 * SECOND);
            rig.answer(LeaseAnswer::Unavailable, 12 * SECOND);
        }),
        ("confirming", |rig| {
            rig.due(11 * SECOND);
            rig.answer(LeaseAnswer::Renewed, 11 * SECOND);
        }),
        ("confirming with a silent guard", |rig| {
            rig.due(11 * SECOND);
            rig.answer(LeaseAnswer::Renewed, 11 * SECOND);
            rig.answer(LeaseAnswer::GuardSilent, 12 * SECOND);
            rig.due(13 * SECOND);
        }),
    ];
    for (name, step) in under_way {
        let mut rig = Rig::open();
        step(&mut rig);
        assert!(rig.lease.next_due().unwrap() <= Boottime(16 * SECOND), "{name}");
        assert_eq!(rig.due(16 * SECOND), LOST, "{name}");
        assert!(!rig.is_open(16 * SECOND), "{name}");
        assert!(
            matches!(rig.due(16 * SECOND), Some(LeaseEffect::Open(_))),
            "{name}: then the next is opened"
        );
    }
}

#[test]
fn an_answer_that_comes_at_the_deadline_is_too_late_and_one_to_a_lease_that_is_over_is_void() {
    for answer in [LeaseAnswer::Renewed, LeaseAnswer::Unavailable, LeaseAnswer::Refused] {
        let mut rig = Rig::open();
        rig.due(11 * SECOND);
        let old = rig.last;
        assert_eq!(rig.answer(answer, 16 * SECOND), LOST);
        rig.due(16 * SECOND);
        let late = rig.lease.step(LeaseInput::Answer(old, answer), Boottime(17 * SECOND));
        assert_eq!((late, rig.is_open(17 * SECOND)), (None, false));
    }
}

#[test]
fn no_renewal_is_sent_while_the_guard_is_silent_and_it_is_asked_ten_times_a_second() {
    let mut rig = Rig::open();
    rig.due(11 * SECOND);
    rig.answer(LeaseAnswer::Renewed, 11 * SECOND);
    let mut asked = 0;
    for tenth in 110..150 {
        let now = tenth * SECOND / 10;
        assert_eq!(rig.answer(LeaseAnswer::GuardSilent, now), None);
        assert!(matches!(rig.due(now + SECOND / 10), Some(LeaseEffect::Confirm(..))), "{tenth}");
        asked += 1;
    }
    assert_eq!(asked, 40);
    rig.answer(LeaseAnswer::GuardAcknowledged, 15 * SECOND);
    assert!(rig.is_open(16 * SECOND));
}

/// S2: a host that has no guard does not keep a lease that it can run nothing under.
#[test]
fn a_lease_that_the_guard_never_acknowledged_is_not_renewed() {
    let mut rig = Rig::new(None);
    rig.due(0);
    rig.opened(0, 0);
    rig.answer(LeaseAnswer::GuardSilent, SECOND);
    assert_eq!(rig.due(6 * SECOND), None);
    assert!(rig.lease.is_closed());
    assert!(matches!(rig.due(7 * SECOND), Some(LeaseEffect::Open(_))));
}

#[test]
fn an_unanswered_renewal_leaves_the_old_deadline_and_is_tried_again() {
    let mut rig = Rig::open();
    assert_eq!(rig.due(10 * SECOND), None, "not due");
    assert!(matches!(rig.due(11 * SECOND), Some(LeaseEffect::Renew(_))));
    assert_eq!(rig.answer(LeaseAnswer::Unavailable, 12 * SECOND), None);
    assert_eq!(rig.lease.status().until, Some(Boottime(16 * SECOND)));
    assert!(matches!(rig.due(13 * SECOND), Some(LeaseEffect::Renew(_))));
}

#[test]
fn what_store_or_guard_refuse_is_lost_at_once() {
    let mut rig = Rig::open();
    rig.due(11 * SECOND);
    let lost = rig.answer(LeaseAnswer::Refused, 12 * SECOND);
    assert_eq!(lost, Some(LeaseEffect::KillMembers(Loss::Store)));
    let mut rig = Rig::open();
    rig.due(11 * SECOND);
    rig.answer(LeaseAnswer::Renewed, 11 * SECOND);
    let lost = rig.answer(LeaseAnswer::GuardRefused, 12 * SECOND);
    assert_eq!(lost, Some(LeaseEffect::KillMembers(Loss::Guard)));
    assert!(!rig.is_open(12 * SECOND));
}

/// The agent was restarted: its predecessor's members run until the deadline that the guard holds.
#[test]
fn an_inherited_deadline_holds_until_the_lease_is_taken_up_and_where_it_is_not() {
    let inherited = Some((4, Boottime(5 * SECOND)));
    let mut rig = Rig::new(inherited);
    rig.due(SECOND);
    rig.answer(LeaseAnswer::Unavailable, 2 * SECOND);
    rig.due(3 * SECOND);
    assert_eq!(rig.due(5 * SECOND), LOST);

    let mut rig = Rig::new(inherited);
    rig.due(SECOND);
    let sent = Boottime(2 * SECOND);
    rig.answer(LeaseAnswer::Opened { number: 4, sent, acknowledged: Some(Boottime(5 * SECOND)) }, 3 * SECOND);
    rig.answer(LeaseAnswer::GuardSilent, 4 * SECOND);
    assert!(rig.is_open(4 * SECOND), "it goes on while the guard restarts");
    assert_eq!(rig.due(5 * SECOND), LOST);

    // The next one: nothing of the one before runs any more, so that its deadline means nothing.
    let mut rig = Rig::new(inherited);
    rig.due(SECOND);
    rig.answer(LeaseAnswer::Opened { number: 5, sent, acknowledged: None }, 3 * SECOND);
    assert_eq!(rig.due(5 * SECOND), None);
    rig.answer(LeaseAnswer::GuardAcknowledged, 5 * SECOND);
    assert!(rig.is_open(7 * SECOND));
}

/// Over random histories: no member may run at a time that the guard has not acknowledged, and none is left to run after
/// it without having been killed.
#[test]
fn along_every_path_members_run_only_up_to_an_acknowledged_deadline_and_are_killed_there() {
    use proptest::prelude::*;
    let steps = proptest::collection::vec((0_u8..8, 1_u64..2_000), 1..200);
    let mut runner = proptest::test_runner::TestRunner::default();
    let outcome = runner.run(&steps, |steps| {
        let mut rig = Rig::new(None);
        let (mut now, mut asked, mut promised) = (SECOND, None, None::<u64>);
        for (choice, wait) in steps {
            // Time never passes a due moment unseen.
            let then = now + wait * 1_000_000;
            now = rig.lease.next_due().map_or(then, |due| due.0.clamp(now, then));
            let effect = match choice {
                0..=2 => rig.due(now),
                3 => rig.opened(now, now),
                4 => rig.answer(LeaseAnswer::Renewed, now),
                5 => rig.answer(LeaseAnswer::GuardSilent, now),
                6 => rig.answer(LeaseAnswer::Unavailable, now),
                _ => {
                    let before = rig.lease.status().until;
                    let effect = rig.answer(LeaseAnswer::GuardAcknowledged, now);
                    if rig.lease.status().until != before && effect.is_none() {
                        promised = asked;
                    }
                    effect
                }
            };
            match effect {
                Some(LeaseEffect::Confirm(_, deadline)) => asked = Some(deadline.0),
                Some(LeaseEffect::KillMembers(_)) => promised = None,
                Some(LeaseEffect::Open(_)) => prop_assert!(promised.is_none_or(|until| now < until)),
                Some(LeaseEffect::Renew(_)) | None => {}
            }
            prop_assert_eq!(rig.lease.status().until.map(|until| until.0), promised);
            prop_assert!(
                promised.is_none_or(|until| now <= until),
                "not killed at {:?} but {}",
                promised,
                now
            );
        }
        Ok(())
    });
    outcome.unwrap();
}
