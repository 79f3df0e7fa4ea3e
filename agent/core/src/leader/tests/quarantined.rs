//! Nodes of which a record could not be read.

use crate::fixture::{Cluster, node};
use crate::model::records::Origin;

#[test]
fn no_idle_instance_is_given_out_while_an_unread_record_may_name_it() {
    for (quarantined, origin) in [(&["bob/display"][..], Origin::Created), (&[], Origin::Idle)] {
        let mut cluster = Cluster::of(2);
        cluster.idle("host1", 1);
        cluster.idle("host2", 1);
        cluster.add(&["alice/display"]);
        cluster.view.quarantined = quarantined.iter().map(|name| node(name)).collect();
        cluster.step();
        let record = cluster.record("alice/display");
        let origins: Vec<_> = record.members().map(|member| member.origin).collect();
        assert_eq!(origins, [origin, origin], "{quarantined:?}");
    }
}

#[test]
fn nothing_is_planned_for_a_node_of_which_a_record_could_not_be_read() {
    let mut cluster = Cluster::of(3).with(&["alice/display", "bob/display"]);
    for name in ["alice/display", "bob/display"] {
        cluster.kill_primary(name);
    }
    cluster.view.quarantined.insert(node("bob/display"));
    let planned: Vec<_> = cluster.step().assignments.into_iter().map(|one| one.node).collect();
    assert_eq!(planned, [node("alice/display")]);
    assert!(cluster.report.notes[&node("bob/display")][0].contains("cannot be read"), "{:?}", cluster.report);
    cluster.view.quarantined.clear();
    let planned: Vec<_> = cluster.step().assignments.into_iter().map(|one| one.node).collect();
    assert_eq!(planned, [node("bob/display")]);
}
