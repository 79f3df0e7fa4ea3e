//! What a host leaves alone while a record cannot be read.

use super::super::{Local, orphaned};
use super::{Locals, actions, fresh, letters, migrating_out};
use crate::fixture::{Cluster, Rest, dead, fact, host, node};
use crate::model::ids::{Epoch, InstanceId};
use crate::model::records::Phase;
use crate::model::units::MiB;

/// What no record that can be read names may be named by one that cannot.
#[test]
fn while_a_record_cannot_be_read_nothing_is_destroyed_or_deleted_for_want_of_a_name() {
    let mut cluster = Cluster::of(2).with(&["alice/exec-1"]);
    let at = cluster.primary_host("alice/exec-1");
    let mut rest = Rest { images: [node("alice/exec-1"), node("bob/exec-1")].into(), ..fresh(&cluster) };
    rest.pool.idle = 2;
    cluster.facts(&at).capacity.memory = MiB(256);
    cluster.idle(&at, 1);
    let mut local = cluster.local(&at);
    let deploying = InstanceId::derived(&node("carol/display"), Epoch(1), &host(&at), 0);
    for (phase, number) in [(Phase::Deploying, 0), (dead("killed"), 1)] {
        let id = InstanceId::derived(&node("carol/display"), Epoch(1), &host(&at), number);
        let seen = fact(phase, Some(node("carol/display")), Epoch(1));
        local.insert(id, Local::of(seen));
    }
    cluster.view.nodes.remove(&node("alice/exec-1"));
    let me = host(&at);
    let found = letters(&actions(&cluster, &at, &local, &rest));
    for action in ["Destroy", "Forget", "DropImages"] {
        assert!(found.contains(&action.to_owned()), "{action} is not in {found:?}");
    }
    assert_eq!(orphaned(&cluster.situation(&me, &local, &rest)), [deploying]);
    rest.unreadable = true;
    assert_eq!(letters(&actions(&cluster, &at, &local, &rest)), Vec::<String>::new());
    assert_eq!(orphaned(&cluster.situation(&me, &local, &rest)), Vec::new());
}

#[test]
fn while_a_record_cannot_be_read_what_left_is_not_called_missing_and_anothers_is_left_alone() {
    let (mut cluster, from, to, _) = migrating_out();
    cluster.view.hosts.remove(&to);
    let mut rest = fresh(&cluster);
    let gone =
        |cluster: &Cluster, rest: &Rest| letters(&actions(cluster, from.as_str(), &Locals::new(), rest));
    assert_eq!(gone(&cluster, &rest), ["Missing"]);
    rest.unreadable = true;
    assert_eq!(gone(&cluster, &rest), Vec::<String>::new(), "its new host cannot be heard");

    let mut cluster = Cluster::of(1);
    cluster.idle("host1", 1);
    cluster.add(&["alice/display"]);
    cluster.step();
    let instance = cluster.primary("alice/display").1;
    let seen = fact(Phase::Ready, Some(node("bob/display")), Epoch(1));
    let local = Locals::from([(instance, Local::of(seen))]);
    assert_eq!(letters(&actions(&cluster, "host1", &local, &Rest::default())), ["Destroy"]);
    let rest = Rest { unreadable: true, ..Rest::default() };
    assert_eq!(letters(&actions(&cluster, "host1", &local, &rest)), Vec::<String>::new());
}
