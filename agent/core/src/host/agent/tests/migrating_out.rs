//! What a source makes of a live migration that ends badly.

use super::*;
use crate::host::migration::Presence;

/// alice's execution node leaves its host, and its agent has begun to move it.
fn migrating_out() -> (Rig, InstanceId, HostId) {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let (me, instance) = cluster.primary("alice/exec-1");
    cluster.seen(me.as_str()).intent.drain = true;
    cluster.step();
    let to = cluster.record("alice/exec-1").migration.as_ref().unwrap().to.clone();
    let mut rig = Rig::new(cluster, me.as_str(), 0);
    rig.tick();
    assert_eq!(rig.steps(), [MigrationStep::Look]);
    (rig, instance, to)
}

/// It was seen to be here, and libvirt moves it.
fn moving() -> (Rig, InstanceId, HostId) {
    let (mut rig, instance, to) = migrating_out();
    rig.answer(MigrationAnswer::Seen(Presence::Running));
    assert!(matches!(rig.steps().as_slice(), [MigrationStep::Transfer { .. }]));
    (rig, instance, to)
}

fn nobody_knows() -> MigrationAnswer {
    MigrationAnswer::Failed("libvirt's call hangs".to_owned())
}

/// It stayed, and was seen to run.
fn stays(rig: &mut Rig) {
    rig.answer(MigrationAnswer::Stayed("refused".to_owned()));
    rig.answer(MigrationAnswer::Seen(Presence::Running));
}

/// S7: before, a migration that ended as failed left its mark on the instance, and every later death was swallowed.
#[test]
fn a_death_after_a_migration_that_failed_is_reported() {
    let (mut rig, instance, to) = moving();
    rig.answer(nobody_knows());
    rig.cluster.edit("alice/exec-1", |record| record.migration.as_mut().unwrap().abandoned = true);
    rig.records();
    rig.exits(instance);
    assert!(matches!(rig.death(instance), Some(Death::Exited { .. })), "{:?}", rig.phase(instance));
    let (mut rig, instance, _) = moving();
    rig.answer(nobody_knows());
    rig.exits(instance);
    assert_eq!(rig.death(instance), Some(Death::MaybeMoved { to }), "the migration stands");
}

#[test]
fn a_death_while_it_moves_is_the_jobs_to_read_and_is_looked_for_when_the_job_cannot() {
    let (mut rig, instance, to) = moving();
    rig.exits(instance);
    assert_eq!(rig.phase(instance), Some("ready"));
    rig.answer(MigrationAnswer::Moved);
    assert_eq!(rig.death(instance), Some(Death::Moved { to }));

    for stayed in [false, true] {
        let (mut rig, instance, _) = moving();
        rig.exits(instance);
        rig.seen.clear();
        if stayed {
            stays(&mut rig);
        } else {
            rig.answer(nobody_knows());
        }
        assert_eq!(rig.phase(instance), Some("ready"), "nobody knows yet");
        assert!(rig.asked(&Effect::LookFor(instance)));
        rig.say(Input::Looked { instance, there: None });
        rig.cluster.edit("alice/exec-1", |record| record.migration.as_mut().unwrap().abandoned = true);
        rig.records();
        rig.pass(10_000);
        assert!(rig.asked(&Effect::LookFor(instance)), "nobody could say");
        rig.say(Input::Looked { instance, there: Some(false) });
        assert!(rig.death(instance).is_some());
    }
}

#[test]
fn what_was_looked_for_and_is_there_lives_on() {
    let (mut rig, instance, _) = migrating_out();
    rig.answer(MigrationAnswer::Seen(Presence::Running));
    rig.exits(instance);
    stays(&mut rig);
    rig.say(Input::Looked { instance, there: Some(true) });
    rig.pass(10_000);
    assert_eq!(rig.phase(instance), Some("ready"));
}

#[test]
fn a_source_that_is_gone_when_asked_may_have_moved() {
    let (mut rig, instance, to) = migrating_out();
    rig.answer(MigrationAnswer::Seen(Presence::Gone));
    assert_eq!(rig.death(instance), Some(Death::MaybeMoved { to }));
}

#[test]
fn what_stayed_is_reported_with_the_reason_once_it_runs_again_and_is_not_moved_again() {
    let (mut rig, instance, _) = moving();
    rig.answer(MigrationAnswer::Stayed("refused".to_owned()));
    rig.answer(MigrationAnswer::Seen(Presence::Held));
    assert_eq!(rig.steps(), [MigrationStep::Resume]);
    let failed = |rig: &Rig| rig.agent.local[&instance].fact.migration_failed.clone();
    assert_eq!(failed(&rig), None, "it stands still");
    rig.answer(MigrationAnswer::Done);
    assert_eq!(failed(&rig), Some((Epoch(2), "refused".to_owned())));
    rig.pass(60_000);
    assert_eq!(rig.steps(), []);
}

#[test]
fn what_nobody_has_a_word_on_is_looked_at_again_after_a_wait_that_doubles() {
    let (mut rig, _, _) = moving();
    for wait in [200, 400, 800] {
        rig.answer(nobody_knows());
        rig.pass(wait - 1);
        assert_eq!(rig.steps(), [], "{wait}");
        rig.pass(1);
        assert_eq!(rig.steps(), [MigrationStep::Look]);
        rig.answer(MigrationAnswer::Seen(Presence::Running));
    }
}

#[test]
fn once_the_lease_is_lost_nothing_lets_run_again_what_stayed() {
    let (mut rig, _, _) = moving();
    let (job, _) = rig.steps.remove(0);
    rig.say(Input::LeaseLost);
    rig.say(Input::Stepped { job: Box::new(job), answer: MigrationAnswer::Stayed("cut".to_owned()) });
    assert_eq!((rig.steps(), rig.under_way()), (vec![], vec![]));
}

/// Both had it for a moment, and the source's process ended before the second look: what the destination has is newer than
/// any checkpoint, and must not be given up for one.
#[test]
fn one_that_stayed_and_is_gone_at_the_second_look_may_be_at_the_destination() {
    let (mut rig, instance, to) = moving();
    rig.answer(MigrationAnswer::Stayed("the destination does not answer".to_owned()));
    rig.answer(MigrationAnswer::Seen(Presence::Gone));
    assert_eq!(rig.death(instance), Some(Death::MaybeMoved { to }));
    assert_eq!(rig.agent.local[&instance].fact.migration_failed, None);
}
