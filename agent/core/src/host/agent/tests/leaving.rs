//! What a source makes of a live migration that ends badly.

use super::*;

/// alice's execution node leaves its host, and its agent has begun to move it.
fn leaving() -> (Rig, InstanceId, HostId) {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let (me, instance) = cluster.primary("alice/exec-1");
    cluster.seen(me.as_str()).intent.drain = true;
    cluster.step();
    let to = cluster.record("alice/exec-1").migration.as_ref().unwrap().to.clone();
    let mut rig = Rig::new(cluster, me.as_str(), 0);
    rig.tick();
    assert_eq!(rig.under_way(), ["MigrateOut"]);
    (rig, instance, to)
}

/// S7: before, a migration that ended as failed left its mark on the instance, and every later death was swallowed.
#[test]
fn a_death_after_a_migration_that_failed_is_reported() {
    let (mut rig, instance, to) = leaving();
    rig.end(failed());
    rig.cluster.edit("alice/exec-1", |record| record.migration.as_mut().unwrap().abandoned = true);
    rig.records();
    rig.exits(instance);
    assert!(matches!(rig.death(instance), Some(Death::Exited { .. })), "{:?}", rig.phase(instance));
    let (mut rig, instance, _) = leaving();
    rig.end(failed());
    rig.exits(instance);
    assert_eq!(rig.death(instance), Some(Death::MaybeMoved { to }), "the migration stands");
}

#[test]
fn a_death_while_it_moves_is_the_jobs_to_read_and_is_looked_for_when_the_job_cannot() {
    let (mut rig, instance, to) = leaving();
    rig.exits(instance);
    assert_eq!(rig.phase(instance), Some("ready"));
    rig.end(Outcome::Moved);
    assert_eq!(rig.death(instance), Some(Death::Moved { to }));

    for outcome in [failed(), Outcome::Stayed("refused".to_owned())] {
        let (mut rig, instance, _) = leaving();
        rig.exits(instance);
        rig.seen.clear();
        rig.end(outcome);
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
    let (mut rig, instance, _) = leaving();
    rig.exits(instance);
    rig.end(Outcome::Stayed("refused".to_owned()));
    rig.say(Input::Looked { instance, there: Some(true) });
    rig.pass(10_000);
    assert_eq!(rig.phase(instance), Some("ready"));
}

#[test]
fn a_source_that_is_gone_when_asked_may_have_moved() {
    let (mut rig, instance, to) = leaving();
    rig.end(Outcome::Gone);
    assert_eq!(rig.death(instance), Some(Death::MaybeMoved { to }));
}

#[test]
fn what_arrives_keeps_what_its_source_reported() {
    let mut cluster = Cluster::of(3).with(&["alice/display"]);
    let (from, instance) = cluster.primary("alice/display");
    cluster.seen(from.as_str()).intent.drain = true;
    // Its backup is told to be elsewhere, so that it moves instead of being replaced.
    for _ in 0..10 {
        cluster.step();
        if cluster.record("alice/display").migration.is_some() {
            break;
        }
        cluster.obey();
    }
    let Some(migration) = cluster.record("alice/display").migration.clone() else {
        panic!("{:#?}", cluster.record("alice/display"))
    };
    cluster.facts(from.as_str()).instances.get_mut(&instance).unwrap().address = Some([10, 9, 9, 9].into());
    let mut rig = Rig::new(cluster, migration.to.as_str(), 0);
    rig.tick();
    assert!(rig.under_way().contains(&"Accept".to_owned()), "{:?}", rig.under_way());
    rig.jobs.retain(|job| matches!(job.action, HostAction::Accept { .. }));
    rig.end(Outcome::Arrived { memory: MEMBER, vcpus: Vcpus(1), address: None });
    let fact = &rig.agent.local[&instance].fact;
    assert_eq!((fact.epoch, fact.address), (migration.epoch, Some([10, 9, 9, 9].into())));
}
