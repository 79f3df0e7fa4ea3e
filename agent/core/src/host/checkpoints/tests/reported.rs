//! What a host reports of how its primaries are protected.

use super::*;

/// It is written to the store at each change.
#[test]
fn what_is_reported_stays_the_same_from_one_checkpoint_to_the_next() {
    let mut rig = Rig::new();
    let [one, other] = rig.backups();
    let mut reported = Vec::new();
    for bytes in [90, 70, 120, 65, 40, 127] {
        rig.begin();
        let saved = Saved { taken: UnixMillis(7), pause_ms: 5, bytes: bytes << 20 };
        rig.machine.saved(&node(NODE), rig.id, Some(saved), rig.cluster.now.boottime);
        rig.review();
        rig.durable(&one);
        rig.durable(&other);
        rig.pass(rig.cluster.bounds.checkpoint_interval);
        reported.push(rig.machine.protection(
            &rig.cluster.view,
            &rig.cluster.bounds,
            rig.cluster.now.boottime,
        ));
    }
    assert_eq!(reported[0][&node(NODE)].bytes, 128 << 20);
    assert!(reported.iter().all(|all| *all == reported[0]), "{reported:?}");
    rig.begin();
    rig.machine.saved(
        &node(NODE),
        rig.id,
        Some(Saved { taken: UnixMillis(7), pause_ms: 5, bytes: 32 << 20 }),
        rig.cluster.now.boottime,
    );
    assert_eq!(rig.machine.sizes[&node(NODE)], 32 << 20, "it has become another");
}

#[test]
fn a_host_that_gets_nothing_new_is_behind_after_a_while_and_is_looked_at_then() {
    let mut rig = Rig::new();
    let [one, other] = rig.backups();
    rig.begin();
    rig.saved();
    rig.durable(&one);
    rig.durable(&other);
    let (began, bounds) = (rig.cluster.now.boottime, rig.cluster.bounds);
    let after = bounds.checkpoint_interval * 4 + COPY_LATE;
    assert!(rig.machine.due(&bounds).any(|at| at == began + after));
    while rig.cluster.now.boottime.since(began) + bounds.checkpoint_interval < after {
        rig.taken_by(&one, &other);
        assert_eq!(rig.ages()[&other], Age::Fresh);
    }
    rig.taken_by(&one, &other);
    assert_eq!(rig.ages(), BTreeMap::from([(one, Age::Fresh), (other.clone(), Age::Behind)]));
    rig.pass(bounds.cooldown);
    rig.begin();
    rig.saved();
    rig.durable(&other);
    assert_eq!(rig.ages()[&other], Age::Fresh);
}

/// What was saved of an earlier life protects this one no more.
#[test]
fn a_checkpoint_of_an_earlier_life_is_not_reported() {
    let mut rig = Rig::begun();
    let [one, other] = rig.backups();
    rig.durable(&one);
    rig.durable(&other);
    rig.cluster.edit(NODE, |record| {
        (record.epoch, record.incarnation) = (Epoch(2), Epoch(2));
    });
    assert!(rig.ages().is_empty());
}

/// What lies at the backups' hosts does not go with the agent that sent it there.
#[test]
fn what_an_earlier_agent_reported_stands_until_a_copy_says_more_or_none_comes_for_too_long() {
    let mut before = Rig::begun();
    let [one, other] = before.backups();
    before.durable(&one);
    before.durable(&other);
    let (view, now, bounds) = (&before.cluster.view, before.cluster.now.boottime, before.cluster.bounds);
    let reported = before.machine.protection(view, &bounds, now);
    let mut rig = Rig { machine: Checkpoints::default(), ..before };
    rig.machine.inherit(&reported, now);
    let both = BTreeMap::from([(one.clone(), Age::Fresh), (other.clone(), Age::Fresh)]);
    assert_eq!(rig.ages(), both);
    // A later word of its own is no predecessor's.
    rig.machine.inherit(&BTreeMap::new(), now);
    assert_eq!(rig.ages(), both);
    rig.begin();
    rig.saved();
    rig.durable(&one);
    rig.hear(CopyEvent::Lacks { host: other.clone(), detail: "nothing".to_owned() });
    assert_eq!(rig.ages(), both, "whoever gets the whole is refused, not lacking");
    rig.cluster.edit(NODE, |record| record.backups[1].place += 1);
    assert_eq!(rig.ages(), BTreeMap::from([(one.clone(), Age::Fresh)]), "it was let go meanwhile");
    rig.cluster.edit(NODE, |record| record.backups[1].place -= 1);
    rig.pass(bounds.checkpoint_interval * 4 + COPY_LATE);
    assert_eq!(rig.ages()[&other], Age::Behind);
    let due = rig.machine.due(&bounds).any(|at| at == now + bounds.checkpoint_interval * 4 + COPY_LATE);
    assert!(due, "it is looked at then");
}
