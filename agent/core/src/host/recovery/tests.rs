//! What is discovered, as tables: S8 in each of its forms, and what must not go on.

use super::*;
use crate::fixture::{Cluster, fact, host, node};
use crate::model::records::CheckpointId;

const NOW: UnixMillis = UnixMillis(2_000_000);

fn id(number: u128) -> InstanceId {
    InstanceId::from_uuid(uuid::Uuid::from_u128(number))
}

fn member(since: u64, origin: Origin) -> Naming {
    Naming::Member { node: node("alice/exec-1"), since: Epoch(since), origin }
}

/// One instance, and all that is known of it.
struct Case {
    resumed: bool,
    /// What was reported of it; `None`: the facts can be read and do not name it.
    phase: Option<Phase>,
    readable: bool,
    seen: Option<Seen>,
    guarded: Option<u64>,
    naming: Option<Naming>,
    unreadable_node: bool,
}

const CASE: Case = Case {
    resumed: true,
    phase: None,
    readable: true,
    seen: Some(Seen::Running),
    guarded: None,
    naming: None,
    unreadable_node: false,
};

fn outcome(case: Case) -> Option<Recovery> {
    let mut facts = Cluster::of(1).view.hosts[&host("host1")].facts.as_deref().unwrap().clone();
    if let Some(phase) = case.phase {
        let epoch = if phase == Phase::Idle { Epoch(0) } else { Epoch(4) };
        let owner = (epoch > Epoch(0)).then(|| node("alice/exec-1"));
        facts.instances.insert(id(1), fact(phase, owner, epoch));
    }
    let found = case.seen.map(|seen| {
        let (memory, vcpus) = (MiB(512), Vcpus(1));
        (id(1), Found { seen, epoch: Epoch(case.guarded.unwrap_or(0)), address: None, memory, vcpus })
    });
    let reported = if case.readable { Reported::Facts(&facts) } else { Reported::Unreadable };
    let names = case.naming.map(|naming| (id(1), naming)).into_iter().collect();
    let discovery = Discovery {
        resumed: case.resumed,
        reported,
        gone: &sought(reported, &names).into_iter().filter(|_| case.seen.is_none()).collect(),
        found: &found.into_iter().collect(),
        guarded: &case.guarded.map(|epoch| (id(1), Epoch(epoch))).into_iter().collect(),
        names: &names,
        unreadable: case.unreadable_node,
        now: NOW,
    };
    recover(&discovery).remove(&id(1))
}

/// In words, with the phase that it goes on in.
fn word(case: Case) -> String {
    match outcome(case) {
        None => "nothing".to_owned(),
        Some(Recovery::GoesOn(local)) => format!("goes on {}", local.fact.phase.as_str()),
        Some(Recovery::Resume(local)) => format!("resumed {}", local.fact.phase.as_str()),
        Some(Recovery::Destroy { dead, .. }) => {
            if dead.is_some() { "destroyed, dead" } else { "destroyed" }.to_owned()
        }
        Some(Recovery::Dead(fact)) => fact.phase.as_str().to_owned(),
        Some(Recovery::Leave) => "left".to_owned(),
    }
}

const CREATED: Origin = Origin::Created;
const IDLE: Origin = Origin::Idle;
const RESTORED: Origin = Origin::Restored(CheckpointId { epoch: Epoch(3), sequence: 1 });

#[test]
fn a_guest_that_stands_still_for_a_checkpoint_is_resumed_and_one_that_cannot_go_on_is_judged_later() {
    for phase in [Phase::Ready, Phase::Idle] {
        for (seen, expected) in
            [(Seen::Running, "goes on"), (Seen::Paused, "resumed"), (Seen::Failed, "goes on")]
        {
            let name = phase.as_str();
            let case = Case { phase: Some(phase.clone()), seen: Some(seen), guarded: Some(4), ..CASE };
            assert_eq!(word(case), format!("{expected} {name}"), "{seen:?}");
        }
    }
}

#[test]
fn what_was_being_restored_or_deployed_goes_on_or_is_taken_up_again_by_its_node() {
    let restored = || Some(member(4, RESTORED));
    for (phase, seen, guarded, expected) in [
        (Phase::Restoring, Seen::Running, Some(4), "goes on ready"),
        (Phase::Restoring, Seen::Incoming, Some(4), "resumed ready"),
        (Phase::Restoring, Seen::Incoming, None, "destroyed"),
        (Phase::Restoring, Seen::Incoming, Some(3), "destroyed"),
        (Phase::Deploying, Seen::Running, Some(4), "goes on deploying"),
        (Phase::Deploying, Seen::Paused, Some(4), "resumed deploying"),
    ] {
        let name = format!("{} {seen:?} {guarded:?}", phase.as_str());
        let case = Case { phase: Some(phase), seen: Some(seen), guarded, naming: restored(), ..CASE };
        assert_eq!(word(case), expected, "{name}");
    }
    let booting = |naming| Case { phase: Some(Phase::Booting), naming, ..CASE };
    assert_eq!(word(booting(Some(member(0, CREATED)))), "left", "its node has it booted");
    assert_eq!(word(booting(None)), "destroyed");
    assert_eq!(word(Case { phase: Some(Phase::Deploying), ..CASE }), "destroyed", "nobody names it");
}

/// The agent ended before it could write down what it had begun.
#[test]
fn what_was_not_reported_is_inferred_from_its_node_and_the_guard() {
    for (guarded, seen, origin, expected) in [
        (Some(4), Seen::Running, IDLE, "goes on deploying"),
        (Some(4), Seen::Running, CREATED, "goes on deploying"),
        (Some(4), Seen::Running, Origin::Promoted, "goes on deploying"),
        (Some(4), Seen::Running, Origin::Migrated, "goes on ready"),
        (Some(4), Seen::Paused, IDLE, "resumed deploying"),
        (Some(4), Seen::Paused, RESTORED, "resumed ready"),
        (Some(3), Seen::Running, IDLE, "goes on idle"),
        (None, Seen::Running, IDLE, "goes on idle"),
        (None, Seen::Running, CREATED, "left"),
        (None, Seen::Incoming, IDLE, "destroyed"),
    ] {
        for readable in [true, false] {
            let naming = Some(member(4, origin));
            let case = Case { seen: Some(seen), guarded, naming, readable, ..CASE };
            assert_eq!(word(case), expected, "{guarded:?} {seen:?} {origin:?} {readable}");
        }
    }
    // It was restored under the id of one that is known dead.
    let naming = Some(member(5, RESTORED));
    let died = Some(crate::fixture::dead("qemu ended"));
    let case = Case { phase: died.clone(), guarded: Some(5), naming, ..CASE };
    assert_eq!(word(case), "goes on ready");
    assert_eq!(word(Case { phase: died, naming: Some(member(4, IDLE)), ..CASE }), "destroyed, dead");
}

#[test]
fn for_want_of_readable_facts_nothing_is_destroyed() {
    let unread = |seen, guarded| Case { readable: false, seen: Some(seen), guarded, ..CASE };
    assert_eq!(word(unread(Seen::Running, None)), "goes on idle");
    for seen in [Seen::Paused, Seen::Incoming, Seen::Failed, Seen::Off] {
        assert_eq!(word(unread(seen, None)), "left", "{seen:?}");
    }
    assert_eq!(word(unread(Seen::Running, Some(4))), "left");
    // Also before the next lease, but for what was a member.
    assert_eq!(word(Case { resumed: false, ..unread(Seen::Running, None) }), "goes on idle");
    assert_eq!(word(Case { resumed: false, ..unread(Seen::Running, Some(4)) }), "destroyed");
    let earlier = Some(Naming::Earlier);
    let member = Case { resumed: false, naming: earlier, ..unread(Seen::Running, None) };
    assert_eq!(word(member), "destroyed");
}

#[test]
fn before_the_next_lease_only_idle_instances_go_on() {
    for (phase, seen, guarded, expected) in [
        (Phase::Idle, Seen::Running, None, "goes on idle"),
        (Phase::Idle, Seen::Running, Some(4), "destroyed"),
        (Phase::Idle, Seen::Paused, None, "destroyed"),
        (Phase::Ready, Seen::Running, Some(4), "destroyed"),
        (Phase::Ready, Seen::Running, None, "destroyed"),
        (Phase::Booting, Seen::Running, None, "destroyed"),
    ] {
        let name = format!("{} {seen:?} {guarded:?}", phase.as_str());
        let case = Case { resumed: false, phase: Some(phase), seen: Some(seen), guarded, ..CASE };
        assert_eq!(word(case), expected, "{name}");
    }
    let strange = Case { resumed: false, unreadable_node: true, ..CASE };
    assert_eq!(word(strange), "destroyed", "it may be a member of the lease that is over");
}

#[test]
fn what_a_migration_brings_or_an_unreadable_record_may_bring_is_left() {
    for seen in [Seen::Running, Seen::Paused, Seen::Incoming] {
        assert_eq!(word(Case { seen: Some(seen), naming: Some(Naming::Arriving), ..CASE }), "left");
        assert_eq!(word(Case { seen: Some(seen), unreadable_node: true, ..CASE }), "left");
        assert_eq!(word(Case { seen: Some(seen), ..CASE }), "destroyed", "no record names it");
    }
    let leaving = Some(Naming::MigratingOut { to: host("host2") });
    let source = |seen| Case { phase: Some(Phase::Ready), seen, naming: leaving.clone(), ..CASE };
    assert_eq!(word(source(Some(Seen::Running))), "goes on ready");
    assert_eq!(word(source(Some(Seen::Incoming))), "left", "both ends may have all of it");
    let gone = outcome(source(None));
    let maybe = Death::MaybeMoved { to: host("host2") };
    assert!(
        matches!(gone, Some(Recovery::Dead(fact)) if matches!(&fact.phase, Phase::Dead { death, .. } if *death == maybe))
    );
}

#[test]
fn a_member_that_is_gone_and_of_which_the_report_cannot_be_read_is_dead_and_not_made_again() {
    let naming = || Some(member(4, CREATED));
    let gone = |readable, resumed| Case { seen: None, naming: naming(), readable, resumed, ..CASE };
    let Some(Recovery::Dead(fact)) = outcome(gone(false, true)) else { panic!() };
    let is_dead = matches!(fact.phase, Phase::Dead { death: Death::NotHere, .. });
    assert!(is_dead && fact.epoch == Epoch(4), "{fact:?}");
    assert_eq!(word(gone(true, true)), "nothing", "nobody reported it: it never was");
    assert_eq!(word(gone(false, false)), "nothing");
    assert_eq!(word(Case { naming: Some(Naming::Arriving), ..gone(false, true) }), "nothing");
}

#[test]
fn only_what_is_known_to_be_gone_is_dead_and_a_known_death_is_kept() {
    let gone = |phase| Case { phase: Some(phase), seen: None, ..CASE };
    assert_eq!(word(gone(Phase::Ready)), "dead");
    assert_eq!(word(gone(crate::fixture::dead("qemu ended"))), "dead");
    assert_eq!(word(Case { seen: Some(Seen::Off), ..gone(Phase::Ready) }), "destroyed, dead");
    assert_eq!(word(Case { resumed: false, ..gone(Phase::Ready) }), "nothing");
}

#[test]
fn nodes_name_members_of_this_lease_of_others_and_what_passes() {
    let cluster = Cluster::of(3).with(&["alice/display"]);
    let record = cluster.record("alice/display").clone();
    let primary = record.primary.clone().unwrap();
    let here = |number| {
        let nodes = [(node("alice/display"), record.clone())];
        let all = nodes.iter().map(|(node, record)| (node, record));
        names(&primary.host, number, all, None).remove(&primary.instance.unwrap())
    };
    assert!(matches!(here(1), Some(Naming::Member { node: named, .. }) if named == node("alice/display")));
    assert_eq!(here(2), Some(Naming::Earlier));
}

/// The guard was started anew without its table, and then the agent was: with the lease nobody would end what goes on.
#[test]
fn a_member_that_the_guard_has_lost_goes_on_as_one_that_is_to_be_registered() {
    for (guarded, naming, unguarded) in [
        (Some(4), Some(member(4, RESTORED)), false),
        (Some(3), Some(member(3, RESTORED)), true),
        (None, Some(member(4, RESTORED)), true),
        (None, Some(Naming::MigratingOut { to: host("host2") }), true),
    ] {
        let case = Case { phase: Some(Phase::Ready), guarded, naming: naming.clone(), ..CASE };
        let Some(Recovery::GoesOn(local)) = outcome(case) else { panic!("{guarded:?}") };
        assert_eq!(local.unguarded, unguarded, "{guarded:?} {naming:?}");
        assert_eq!(
            (local.fact.epoch, local.fact.phase),
            (Epoch(4), Phase::Ready),
            "it is in that life still"
        );
    }
}
