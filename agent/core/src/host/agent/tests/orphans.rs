//! What the hypervisor has and nobody knows (LIVE-4).

use super::*;
use crate::host::input::Shown;

fn stray() -> InstanceId {
    InstanceId::derived(&node("bob/display"), Epoch(1), &host("host9"), 0)
}

fn lists(rig: &mut Rig, instances: &[InstanceId]) {
    rig.say(Input::Listed(Some(instances.iter().map(|&instance| (instance, Shown::Well)).collect())));
}

#[test]
fn the_hypervisor_is_asked_what_it_has_every_ten_seconds_and_an_orphan_is_destroyed() {
    let (mut rig, known) = Rig::with_execution_node(2);
    rig.seen.clear();
    rig.pass(9_999);
    assert!(!rig.asked(&Effect::List));
    rig.pass(1);
    assert!(rig.asked(&Effect::List));
    rig.pass(60_000);
    assert!(!rig.asked(&Effect::List), "one look at a time");
    lists(&mut rig, &[known, stray()]);
    rig.jobs.retain(|job| matches!(job.action, HostAction::Destroy { .. }));
    assert_eq!((rig.jobs.len(), rig.jobs[0].instance), (1, stray()));
    rig.end(Outcome::Done);
    rig.tick();
    assert_eq!(rig.phase(stray()), None);
}

#[test]
fn nothing_is_an_orphan_that_a_record_may_name_or_that_a_job_works_on() {
    // A record cannot be read.
    let (mut rig, _) = Rig::with_execution_node(2);
    let view = rig.cluster.view.clone();
    let unread = Records { view, failovers: BTreeMap::new(), unreadable: true };
    rig.say(Input::Records(Box::new(unread)));
    lists(&mut rig, &[stray()]);
    assert_eq!(rig.under_way(), [""; 0]);
    // A migration brings it.
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let (from, instance) = cluster.primary("alice/exec-1");
    cluster.seen(from.as_str()).intent.drain = true;
    cluster.step();
    let to = cluster.record("alice/exec-1").migration.as_ref().unwrap().to.clone();
    let mut rig = Rig::new(cluster, to.as_str(), 0);
    lists(&mut rig, &[instance]);
    assert_eq!(rig.under_way(), [""; 0]);
    // A job of an older lease still makes it: when it ends, what it made goes.
    let mut rig = Rig::new(Cluster::of(1), "host1", 1);
    rig.tick();
    let made = rig.jobs[0].instance;
    rig.say(Input::LeaseLost);
    rig.jobs.clear();
    rig.say(Input::Recovered { lease: 2, found: BTreeMap::new() });
    lists(&mut rig, &[made]);
    assert_eq!(rig.under_way(), [""; 0]);
}

#[test]
fn what_was_found_when_a_lease_was_opened_is_looked_for_once_more() {
    let (mut rig, instance) = Rig::with_execution_node(2);
    assert!(rig.asked(&Effect::LookFor(instance)), "it may have ended before it was known here");
    rig.say(Input::Looked { instance, there: Some(false) });
    assert!(matches!(rig.death(instance), Some(Death::Exited { .. })));
}
