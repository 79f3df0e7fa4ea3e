//! What a destination makes of a live migration, from its permit to its end.

use super::*;
use crate::fixture::moved;
use crate::host::migration::{Landed, Presence};
use crate::model::records::Migration;

/// alice's display leaves a draining host, seen from where it goes to. Its permit is asked for.
fn coming() -> (Rig, InstanceId, Migration) {
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
    let mut rig = Rig::new(cluster, migration.to.as_str(), 0);
    rig.tick();
    assert!(matches!(rig.steps().as_slice(), [MigrationStep::Permit { .. }]), "{:?}", rig.steps());
    (rig, instance, migration)
}

/// Its source has released it, and a look is under way.
fn released() -> (Rig, InstanceId, Migration) {
    let (mut rig, instance, migration) = coming();
    rig.answer(MigrationAnswer::Done);
    assert_eq!(rig.steps(), []);
    let to = migration.to.clone();
    rig.cluster.report_primary("alice/display", |fact| fact.phase = moved(&to));
    rig.records();
    assert_eq!(rig.steps(), [MigrationStep::Look], "by the records alone, before the next turn");
    (rig, instance, migration)
}

#[test]
fn what_arrives_keeps_what_its_source_reported() {
    let (mut rig, instance, migration) = released();
    let from = migration.from.clone();
    let address = Some([10, 9, 9, 9].into());
    rig.cluster.facts(from.as_str()).instances.get_mut(&instance).unwrap().address = address;
    rig.records();
    rig.answer(MigrationAnswer::Seen(Presence::Paused));
    assert_eq!(rig.steps(), [MigrationStep::Land]);
    let landed = Landed { memory: MEMBER, vcpus: Vcpus(1), address: None };
    rig.answer(MigrationAnswer::Landed(Some(landed)));
    let fact = &rig.agent.local[&instance].fact;
    assert_eq!((fact.epoch, fact.address, fact.phase.as_str()), (migration.epoch, address, "ready"));
}

/// Its guest runs before anything is known of it here, and the end of its process is told once.
#[test]
fn what_ends_as_it_lands_is_looked_for_and_dead() {
    let (mut rig, instance, _) = released();
    rig.answer(MigrationAnswer::Seen(Presence::Paused));
    assert_eq!(rig.steps(), [MigrationStep::Land]);
    rig.exits(instance);
    let landed = Landed { memory: MEMBER, vcpus: Vcpus(1), address: None };
    rig.answer(MigrationAnswer::Landed(Some(landed)));
    assert!(rig.asked(&Effect::LookFor(instance)));
    rig.say(Input::Looked { instance, there: Some(false) });
    assert!(rig.death(instance).is_some(), "{:?}", rig.agent.local[&instance]);
}

#[test]
fn a_part_is_looked_at_again_by_time_alone() {
    let (mut rig, _, _) = released();
    rig.answer(MigrationAnswer::Seen(Presence::Held));
    assert_eq!(rig.steps(), []);
    assert_eq!(rig.agent.due(), Some(rig.cluster.now.boottime + Duration::from_millis(5)));
    rig.pass(4);
    assert_eq!(rig.steps(), []);
    rig.pass(1);
    assert_eq!(rig.steps(), [MigrationStep::Look]);
}

#[test]
fn what_did_not_arrive_is_dead_once_it_was_withdrawn_and_is_tried_again_where_that_failed() {
    for withdrawn in [false, true] {
        let (mut rig, instance, _) = released();
        rig.answer(MigrationAnswer::Seen(Presence::Gone));
        assert_eq!((rig.steps(), rig.death(instance)), (vec![MigrationStep::Withdraw], None));
        let failed = MigrationAnswer::Failed("no answer".to_owned());
        rig.answer(if withdrawn { MigrationAnswer::Done } else { failed });
        assert_eq!(rig.death(instance), withdrawn.then_some(Death::NotArrived));
        rig.pass(200);
        assert_eq!(rig.steps().len(), usize::from(!withdrawn));
    }
}

#[test]
fn an_abandoned_one_is_withdrawn_and_called_missing_after_that() {
    let (mut rig, instance, _) = coming();
    rig.cluster.edit("alice/display", |record| record.migration.as_mut().unwrap().abandoned = true);
    rig.records();
    rig.tick();
    assert_eq!((rig.steps().len(), rig.under_way()), (1, vec![]), "the permit is being granted");
    rig.answer(MigrationAnswer::Done);
    assert_eq!(rig.steps(), [MigrationStep::Withdraw]);
    rig.answer(MigrationAnswer::Done);
    rig.tick();
    assert_eq!(rig.under_way(), ["Missing"]);
    rig.end(Outcome::Done);
    assert_eq!(rig.death(instance), Some(Death::NotHere));
}

/// Before, the permit stood until it lapsed: what came in after the host was cleared stayed, paused.
#[test]
fn with_the_lease_goes_what_was_to_come_under_it_and_nothing_else_is_done_to_it_meanwhile() {
    let (mut rig, instance, _) = coming();
    rig.answer(MigrationAnswer::Done);
    rig.say(Input::LeaseLost);
    assert_eq!(rig.steps(), [MigrationStep::Withdraw]);
    rig.say(Input::Recovered { lease: 2, found: BTreeMap::new() });
    let me = rig.agent.settings.me.clone();
    rig.cluster.reopen(me.as_str());
    rig.cluster.edit("alice/display", |record| record.migration.as_mut().unwrap().to_lease = 2);
    rig.records();
    rig.tick();
    assert_eq!(rig.steps(), [MigrationStep::Withdraw], "its next permit waits for that");
    rig.answer(MigrationAnswer::Done);
    assert_eq!((rig.under_way(), rig.phase(instance)), (vec![], None));
    rig.tick();
    assert!(matches!(rig.steps().as_slice(), [MigrationStep::Permit { .. }]), "{:?}", rig.steps());
}

#[test]
fn what_could_not_be_withdrawn_with_its_lease_is_destroyed_under_the_next() {
    let (mut rig, instance, _) = coming();
    rig.answer(MigrationAnswer::Done);
    rig.say(Input::LeaseLost);
    rig.say(Input::Recovered { lease: 2, found: BTreeMap::new() });
    rig.answer(MigrationAnswer::Failed("no answer".to_owned()));
    assert_eq!((rig.under_way(), rig.jobs[0].instance), (vec!["Destroy".to_owned()], instance));
}
