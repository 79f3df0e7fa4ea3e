//! Tables of what a source makes of each step.

use std::time::Duration;

use super::*;
use crate::model::ids::{Epoch, InstanceId};
use MigrationAnswer::{Done, Moved, Seen};

const PATIENCE: Duration = Duration::from_secs(120);

fn leaves() -> Departure {
    let instance = InstanceId::from_uuid(uuid::Uuid::from_u128(7));
    let action = HostAction::MigrateOut {
        node: "alice/exec-1".parse().unwrap(),
        instance,
        epoch: Epoch(2),
        to: "host2".parse().unwrap(),
        uri: "qemu://host2".to_owned(),
        data_uri: None,
    };
    let job = Job { action, instance, address: None, sequence: None, memory: None, lease: 1 };
    let (departure, step) = Departure::begin(job, PATIENCE).unwrap();
    assert_eq!(step, MigrationStep::Look, "an earlier try may have moved it");
    departure
}

fn failed() -> MigrationAnswer {
    MigrationAnswer::Failed("no answer".to_owned())
}

fn stayed() -> MigrationAnswer {
    MigrationAnswer::Stayed("refused".to_owned())
}

/// The steps that are asked for after the first look, and how it ends.
fn answered(answers: &[MigrationAnswer]) -> (Vec<MigrationStep>, Option<Outcome>) {
    let (mut departure, mut steps) = (leaves(), Vec::new());
    for answer in answers {
        match departure.answered(answer.clone()) {
            Next::Take(step) => steps.push(step),
            Next::End(outcome) => return (steps, Some(outcome)),
            Next::Wait => panic!("{answer:?} is not waited for"),
        }
    }
    (steps, None)
}

#[test]
fn what_is_here_is_moved_within_the_bound_and_what_is_not_may_have_moved_before() {
    let transfer = MigrationStep::Transfer { lasts: PATIENCE };
    for here in [Presence::Process, Presence::Running, Presence::Paused, Presence::Held, Presence::Other] {
        assert_eq!(answered(&[Seen(here)]), (vec![transfer], None), "{here:?}");
        assert_eq!(answered(&[Seen(here), Moved]).1, Some(Outcome::Moved));
    }
    assert_eq!(answered(&[Seen(Presence::Gone)]), (vec![], Some(Outcome::Gone)));
    assert_eq!(answered(&[failed()]), (vec![], Some(Outcome::Failed("no answer".to_owned()))));
}

#[test]
fn what_stayed_runs_again_before_that_is_said_and_is_dead_only_if_nothing_of_it_is_here() {
    let after = |answers: &[MigrationAnswer]| {
        let all: Vec<MigrationAnswer> =
            [Seen(Presence::Running), stayed()].into_iter().chain(answers.iter().cloned()).collect();
        let (steps, outcome) = answered(&all);
        assert_eq!(steps[1], MigrationStep::Look);
        (steps[2..].to_vec(), outcome)
    };
    let refused = || Some(Outcome::Stayed("refused".to_owned()));
    let also = || Some(Outcome::Failed("refused; and no answer".to_owned()));
    for (here, steps, outcome) in [
        (Presence::Running, vec![], refused()),
        (Presence::Process, vec![], refused()),
        (Presence::Other, vec![], refused()),
        (Presence::Paused, vec![MigrationStep::Resume], None),
        (Presence::Held, vec![MigrationStep::Resume], None),
    ] {
        assert_eq!(after(&[Seen(here)]), (steps, outcome), "{here:?}");
    }
    let died = Outcome::Died("qemu ended in the middle of a migration: refused".to_owned());
    assert_eq!(after(&[Seen(Presence::Gone)]).1, Some(died));
    assert_eq!(after(&[Seen(Presence::Held), Done]).1, refused());
    assert_eq!(
        after(&[Seen(Presence::Held), failed()]).1,
        also(),
        "it stands still: nobody says that it stayed"
    );
    assert_eq!(after(&[failed()]).1, also());
}

/// Before, a call that libvirt did not take, or that found nothing to move, was told as "it stayed, and nothing of it is
/// there". The try before it may have ended without a word and have moved it since: on that the leader abandons the
/// migration, and the destination destroys the only copy.
#[test]
fn a_try_that_nobody_has_a_word_on_is_tried_again_and_never_called_stayed() {
    let outcome = answered(&[Seen(Presence::Running), failed()]).1;
    assert_eq!(outcome, Some(Outcome::Failed("no answer".to_owned())));
    assert_eq!(answered(&[Seen(Presence::Gone)]).1, Some(Outcome::Gone), "the next try finds it gone");
}

#[test]
fn an_answer_that_no_step_waits_for_changes_nothing() {
    let landed = || MigrationAnswer::Landed(None);
    for (before, answers) in [
        (vec![], vec![Done, Moved, stayed(), landed()]),
        (vec![Seen(Presence::Running)], vec![Done, Seen(Presence::Gone), landed()]),
        (vec![Seen(Presence::Running), stayed()], vec![Done, Moved, stayed(), landed()]),
        (
            vec![Seen(Presence::Running), stayed(), Seen(Presence::Held)],
            vec![Moved, stayed(), Seen(Presence::Gone), landed()],
        ),
    ] {
        let mut departure = leaves();
        for answer in before {
            departure.answered(answer);
        }
        for answer in answers {
            assert_eq!(departure.answered(answer.clone()), Next::Wait, "{answer:?} {:?}", departure.stage);
        }
        assert_ne!(departure.answered(failed()), Next::Wait, "the step is still under way");
    }
}
