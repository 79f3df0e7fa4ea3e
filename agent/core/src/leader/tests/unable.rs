//! Hosts whose guard or libvirtd is away (S2): what they get, what they give back, what is waited for.

use crate::death::Death;
use crate::fixture::{Cluster, died, fact, node};
use crate::model::ids::Epoch;
use crate::model::records::{Origin, Service, StateKept};

/// S2: a host whose guard or libvirtd is away keeps what it has and gets nothing, and the report names it.
#[test]
fn a_host_that_cannot_do_its_part_takes_no_work_and_is_named() {
    let mut cluster = Cluster::of(2);
    for (name, service) in [("host1", Service::Guard), ("host2", Service::Libvirtd)] {
        cluster.facts(name).unable.insert(service);
        assert!(!cluster.seen(name).accepts_work());
    }
    cluster.add(&["alice/display"]);
    cluster.settle();
    assert!(cluster.record("alice/display").primary.is_none());
    let reported = format!("{:?}", cluster.report);
    for part in ["its guard does not answer", "its libvirtd does not answer"] {
        assert!(reported.contains(part), "{part} is not in {reported}");
    }
    cluster.facts("host2").unable.clear();
    cluster.settle();
    assert_eq!(cluster.primary_host("alice/display"), "host2");
}

/// Gives what its host has refused to another; state is waited for rather than given up (SAFE-9).
#[test]
fn a_refused_member_goes_elsewhere_and_the_only_copy_of_a_state_is_waited_for() {
    let refused = || died(Death::Refused { service: Service::Libvirtd });
    let mut cluster = Cluster::of(3);
    cluster.add(&["alice/display"]);
    cluster.step();
    let (first, instance) = cluster.primary("alice/display");
    cluster.facts(first.as_str()).unable.insert(Service::Libvirtd);
    let given_back = fact(refused(), Some(node("alice/display")), Epoch(1));
    cluster.facts(first.as_str()).instances.insert(instance, given_back);
    cluster.step();
    let record = cluster.record("alice/display");
    assert!(record.primary.as_ref().is_some_and(|primary| primary.host != first), "{record:?}");
    assert!(record.cooldowns.is_empty(), "the host is out by its own word, and back by it");

    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let reserved = cluster.backup_hosts("alice/exec-1")[0].clone();
    cluster.facts(&reserved).unable.insert(Service::Libvirtd);
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let notes = format!("{:?}", cluster.report.notes[&node("alice/exec-1")]);
    assert!(notes.contains("whose libvirtd does not answer"), "{notes}");
    cluster.facts(&reserved).unable.clear();
    cluster.step();
    let primary = cluster.record("alice/exec-1").primary.clone().unwrap();
    assert!(
        matches!(primary.origin, Origin::Restored(_)) && primary.host.as_str() == reserved,
        "{primary:?}"
    );
}

#[test]
fn a_warm_backup_whose_host_cannot_do_its_part_is_passed_over() {
    let mut cluster = Cluster::of(3).with(&["alice/display"]);
    let backup = cluster.backup_hosts("alice/display")[0].clone();
    cluster.facts(&backup).unable.insert(Service::Guard);
    cluster.kill_primary("alice/display");
    cluster.step();
    assert_ne!(cluster.primary_host("alice/display"), backup);
}

/// Nothing had begun: the story of the node must not tell of a state that is lost.
#[test]
fn a_first_placement_that_is_given_back_has_lost_no_state() {
    let mut cluster = Cluster::of(3);
    cluster.add(&["alice/display", "alice/exec-1"]);
    cluster.step();
    let (first, instance) = cluster.primary("alice/exec-1");
    let refused = died(Death::Refused { service: Service::Guard });
    let given_back = fact(refused, Some(node("alice/exec-1")), Epoch(1));
    cluster.facts(first.as_str()).instances.insert(instance, given_back);
    cluster.step();
    let incident = cluster.record("alice/exec-1").incident.clone().unwrap();
    assert_eq!(incident.state, StateKept::NotNeeded, "{incident:?}");
}
