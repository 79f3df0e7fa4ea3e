//! What is to be destroyed is not dead before it is gone.

use super::*;
use crate::host::input::Shown;

fn hangs(rig: &mut Rig, instance: InstanceId) {
    rig.say(Input::Hypervisor(DomainEvent::Hangs(instance)));
}

#[test]
fn what_cannot_be_destroyed_keeps_its_phase_is_reported_and_is_tried_again() {
    let (mut rig, instance) = Rig::with_execution_node(2);
    hangs(&mut rig, instance);
    hangs(&mut rig, instance);
    assert_eq!(rig.under_way(), ["Destroy"], "once");
    for wait in [200, 400] {
        rig.end(failed());
        assert_eq!(rig.phase(instance), Some("ready"));
        let reported = rig.condition(Condition::Destroys);
        assert!(reported.contains(&instance.to_string()) && reported.contains("may run on"), "{reported}");
        rig.pass(wait - 1);
        assert_eq!(rig.under_way(), [""; 0]);
        rig.pass(1);
        assert_eq!(rig.under_way(), ["Destroy"]);
    }
    rig.end(Outcome::Done);
    assert!(matches!(rig.death(instance), Some(Death::Destroyed { reason }) if reason.contains("hangs")));
    assert_eq!(rig.condition(Condition::Destroys), "");
}

/// With libvirtd down the end of the process is all that is known, and it is enough.
#[test]
fn one_whose_process_was_seen_to_end_is_dead_though_the_hypervisor_does_not_say_so() {
    let (mut rig, instance) = Rig::with_execution_node(2);
    hangs(&mut rig, instance);
    rig.exits(instance);
    assert_eq!(rig.phase(instance), Some("ready"));
    rig.end(failed());
    assert!(matches!(rig.death(instance), Some(Death::Destroyed { .. })));
}

/// The old primary must be dead before another takes its place, and one that is not there yet is not.
#[test]
fn what_is_destroyed_while_it_is_being_made_is_not_dead_until_nothing_makes_it_any_more() {
    for outcome in [Outcome::Done, Outcome::Died("not permitted".to_owned())] {
        let mut cluster = Cluster::of(1);
        cluster.add(&["alice/display"]);
        cluster.step();
        let instance = cluster.primary("alice/display").1;
        let mut rig = Rig::new(cluster, "host1", 0);
        rig.tick();
        assert_eq!(rig.under_way(), ["Create"]);
        let create = rig.jobs.remove(0);
        let epoch = rig.cluster.record("alice/display").epoch;
        let failovers = BTreeMap::from([(node("alice/display"), epoch)]);
        let view = rig.cluster.view.clone();
        rig.say(Input::Records(Box::new(Records { view, failovers, unreadable: false })));
        rig.tick();
        rig.end(Outcome::Done);
        assert_eq!(rig.phase(instance), Some("booting"), "it may still come");
        rig.say(Input::Finished { job: Box::new(create), outcome });
        assert_eq!(rig.phase(instance), Some("booting"), "its end says more than what became of its making");
        rig.pass(200);
        rig.end(Outcome::Done);
        assert!(matches!(rig.death(instance), Some(Death::Destroyed { .. })));
    }
}

#[test]
fn an_idle_instance_that_was_not_made_whole_and_cannot_be_destroyed_stays_counted() {
    let mut rig = Rig::new(Cluster::of(1), "host1", 1);
    rig.tick();
    let instance = rig.jobs[0].instance;
    rig.end(Outcome::Unsure("no sign of the guest".to_owned()));
    assert_eq!(rig.under_way(), ["Destroy"]);
    rig.end(failed());
    assert_eq!(rig.phase(instance), Some("booting"));
    rig.pass(200);
    rig.end(Outcome::Done);
    rig.tick();
    assert_eq!(rig.phase(instance), None, "dead, and nobody's");
}

#[test]
fn a_deployment_for_nobody_any_more_is_destroyed_beside_its_job() {
    let mut cluster = Cluster::of(1);
    cluster.idle("host1", 1);
    cluster.add(&["alice/display"]);
    cluster.step();
    let instance = cluster.primary("alice/display").1;
    let mut rig = Rig::new(cluster, "host1", 0);
    rig.tick();
    rig.end(Outcome::Guarded(Epoch(1)));
    rig.tick();
    assert_eq!(rig.under_way(), ["Deploy"]);
    rig.cluster.view.nodes.remove(&node("alice/display"));
    rig.records();
    rig.tick();
    assert_eq!(rig.under_way(), ["Deploy", "Destroy"]);
    let deploy = rig.jobs.remove(0);
    rig.end(Outcome::Done);
    rig.tick();
    assert!(matches!(rig.death(instance), Some(Death::Destroyed { .. })), "its job is not over");
    rig.say(Input::Finished { job: Box::new(deploy), outcome: Outcome::Died("qemu ended".to_owned()) });
    rig.tick();
    assert_eq!(rig.phase(instance), None, "it is forgotten");
}

#[test]
fn a_disk_error_is_reported_as_long_as_the_instance_is_known_and_destroys_a_guest_that_stands_still() {
    for paused in [false, true] {
        let (mut rig, instance) = Rig::with_execution_node(2);
        let device = "vdb".to_owned();
        rig.say(Input::Hypervisor(DomainEvent::DiskFailed { instance, device, paused }));
        assert!(rig.condition(Condition::Disks).contains("vdb"));
        assert_eq!(rig.under_way().contains(&"Destroy".to_owned()), paused);
        if !paused {
            rig.exits(instance);
        } else {
            rig.end(Outcome::Done);
        }
        rig.cluster.view.nodes.remove(&node("alice/exec-1"));
        rig.records();
        rig.tick();
        assert_eq!(rig.condition(Condition::Disks), "");
    }
}

#[test]
fn what_stopped_while_nobody_heard_is_found_by_its_state() {
    for (shown, ends) in
        [(Shown::Panicked, true), (Shown::Hangs, true), (Shown::DiskFailed, true), (Shown::Well, false)]
    {
        let (mut rig, instance) = Rig::with_execution_node(2);
        rig.say(Input::Hypervisor(DomainEvent::Lost));
        assert!(rig.condition(Condition::Libvirt).contains("libvirtd"));
        rig.seen.clear();
        rig.say(Input::Hypervisor(DomainEvent::Regained));
        assert_eq!(rig.condition(Condition::Libvirt), "");
        assert!(rig.asked(&Effect::List));
        rig.say(Input::Listed(Some(BTreeMap::from([(instance, shown)]))));
        assert_eq!(rig.under_way().contains(&"Destroy".to_owned()), ends, "{shown:?}");
    }
}
