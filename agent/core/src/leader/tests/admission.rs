//! Tables of admission.

use std::collections::BTreeMap;

use crate::fixture::{BuiltIn, Cluster, node, reply, spec};
use crate::leader::{Admission, Input, Leader, Policies, Reply, Trial};
use crate::model::ids::NodeId;
use crate::model::records::NodeRecord;
use crate::model::units::{MiB, Vcpus};

fn terminal(name: &str) -> BTreeMap<NodeId, NodeRecord> {
    ["display", "exec-1"]
        .into_iter()
        .map(|part| node(&format!("{name}/{part}")))
        .map(|id| (id.clone(), NodeRecord::new(spec(id.role()), "token".to_owned())))
        .collect()
}

/// Answers every question with the built-in rule, as without policies.
fn ask(cluster: &mut Cluster, new: &BTreeMap<NodeId, NodeRecord>) -> Admission {
    let mut leader = Leader::new(cluster.bounds);
    leader.handle(Input::Policies(Policies { placement: true, backup_count: true, version: 1 }), cluster.now);
    let mut questions = leader.handle(Input::View(cluster.view.clone()), cluster.now).questions;
    while !questions.is_empty() {
        let replies: Vec<Reply> = questions.drain(..).map(|asked| reply(&mut BuiltIn, asked)).collect();
        for reply in replies {
            questions.extend(leader.handle(Input::Reply(reply), cluster.now).questions);
        }
    }
    let mut trial = Trial::new(&leader, new, cluster.now);
    let mut replies = Vec::new();
    for _ in 0..50 {
        match trial.step(std::mem::take(&mut replies), cluster.now) {
            Admission::Asks(questions) => {
                assert!(!questions.is_empty());
                replies = questions.into_iter().map(|asked| reply(&mut BuiltIn, asked)).collect();
            }
            other => return other,
        }
    }
    panic!("it never stops asking");
}

fn missing(admission: Admission) -> Vec<String> {
    match admission {
        Admission::Refused { missing, .. } => missing,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_terminal_that_fits_with_its_backups_is_admitted_and_nothing_is_changed() {
    let mut cluster = Cluster::of(2);
    let nodes = cluster.view.nodes.clone();
    assert!(matches!(ask(&mut cluster, &terminal("alice")), Admission::Admitted(_)));
    assert_eq!(cluster.view.nodes, nodes);
}

#[test]
fn without_room_for_the_primaries_it_is_refused_host_by_host() {
    let mut cluster = Cluster::of(2);
    for name in ["host1", "host2"] {
        cluster.facts(name).capacity.memory = MiB(300);
    }
    let missing = missing(ask(&mut cluster, &terminal("alice")));
    assert_eq!(missing.len(), 2, "{missing:?}");
    for part in ["alice/display", "host1 has 300 MiB free of 512 MiB needed", "host2 has 300 MiB"] {
        assert!(missing[0].contains(part), "{missing:?}");
    }
}

#[test]
fn without_room_for_the_backups_it_is_refused_too() {
    let mut cluster = Cluster::of(2);
    cluster.facts("host2").capacity.memory = MiB(512);
    let missing = missing(ask(&mut cluster, &terminal("alice")));
    assert_eq!(missing.len(), 1, "{missing:?}");
    for part in
        ["0 of 1 backups find a place", "host2 has 0 MiB free of 512 MiB needed", "host1 has a member"]
    {
        assert!(missing[0].contains(part), "{missing:?}");
    }
}

#[test]
fn one_host_has_no_place_for_backups_and_takes_a_terminal_that_asks_for_none() {
    let mut wanting = terminal("alice");
    assert!(matches!(ask(&mut Cluster::of(1), &wanting), Admission::Admitted(_)));
    for record in wanting.values_mut() {
        record.spec.labels.insert("backups".to_owned(), "1".to_owned());
    }
    let missing = missing(ask(&mut Cluster::of(1), &wanting));
    assert!(missing[0].contains("0 of 1 backups"), "{missing:?}");
}

/// Processors are shared out, memory is not: only a host that has fewer altogether can never run it.
#[test]
fn more_processors_than_a_host_has_are_refused_with_what_is_missing_and_overcommitment_is_not() {
    for (processors, hosts, expected) in [
        (16, [16, 16, 2], &[][..]),
        (
            17,
            [16, 16, 2],
            &[
                "alice/display: no host can take the primary: host1 has 16 vCPUs of 17 vCPUs needed, host2 has 16",
                "alice/exec-1: no host",
            ],
        ),
        (
            16,
            [16, 2, 2],
            &["0 of 1 backups", "host2 has 2 vCPUs of 16 vCPUs needed, host3 has 2 vCPUs of 16 vCPUs needed"],
        ),
        (1000, [2, 2, 2], &["host1 has 2 vCPUs of 1000 vCPUs needed", "alice/exec-1: no host"]),
    ] {
        let mut cluster = Cluster::of(3);
        for (name, has) in ["host1", "host2", "host3"].into_iter().zip(hosts) {
            cluster.facts(name).capacity.vcpus = Vcpus(has);
        }
        let mut wanting = terminal("alice");
        wanting.values_mut().for_each(|record| record.spec.vcpus = Vcpus(processors));
        let said = match ask(&mut cluster, &wanting) {
            Admission::Admitted(_) => String::new(),
            other => missing(other).join("\n"),
        };
        assert_eq!(said.is_empty(), expected.is_empty(), "{processors} of {hosts:?}: {said}");
        assert!(expected.iter().all(|part| said.contains(part)), "{processors} of {hosts:?}: {said}");
    }
}

#[test]
fn without_any_host_it_is_refused() {
    let missing = missing(ask(&mut Cluster::of(0), &terminal("alice")));
    assert!(missing[0].contains("no host is known"), "{missing:?}");
}

#[test]
fn what_existing_nodes_lack_makes_nothing_refused() {
    let mut cluster = Cluster::of(2);
    cluster.add(&["big/display"]);
    cluster.edit("big/display", |record| record.spec.memory = MiB(64 * 1024));
    assert!(matches!(ask(&mut cluster, &terminal("alice")), Admission::Admitted(_)));
}

#[test]
fn room_that_existing_nodes_are_about_to_take_counts_as_taken() {
    let mut cluster = Cluster::of(2);
    for name in ["host1", "host2"] {
        cluster.facts(name).capacity.memory = MiB(1024);
    }
    assert!(matches!(ask(&mut cluster, &terminal("alice")), Admission::Admitted(_)));
    // bob's were admitted a moment ago and have no place yet.
    cluster.add(&["bob/display", "bob/exec-1"]);
    let missing = missing(ask(&mut cluster, &terminal("alice")));
    assert_eq!(missing.len(), 2, "{missing:?}");
}
