//! Which images a host keeps.

use super::{actions, fresh, letters};
use crate::fixture::{Cluster, node};

#[test]
fn images_of_a_node_without_a_place_here_are_dropped() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let mut rest = fresh(&cluster);
    rest.images.insert(node("alice/exec-1"));
    let held = cluster.backup_hosts("alice/exec-1")[0].clone();
    let dropped = |cluster: &Cluster, name: &str| {
        letters(&actions(cluster, name, &cluster.local(name), &rest)).contains(&"DropImages".to_owned())
    };
    let third = ["host1", "host2", "host3"]
        .into_iter()
        .find(|name| *name != held && *name != cluster.primary_host("alice/exec-1"))
        .unwrap();
    assert!(!dropped(&cluster, &held));
    assert!(dropped(&cluster, third));
    cluster.edit("alice/exec-1", |record| {
        let left = record.backups.drain(..).map(|backup| backup.host);
        record.keepers.extend(left);
    });
    assert!(!dropped(&cluster, &held), "nobody else may have the state");
    cluster.edit("alice/exec-1", |record| record.keepers.clear());
    assert!(dropped(&cluster, &held));
}
