//! Owns the question whether this host takes an image of a node that somebody sends.
//!
//! Promises: an image is taken only under the very revision of the node's record that its sender decided from, only from
//! the host that this record names as the primary's, and only by a host that it names as a backup: one that is behind may
//! yet hear that it is none, and drop what the store names by then; what the store cache may just not show yet is put off,
//! not refused. Must not do: look at the image, or at a certificate.

use std::collections::BTreeSet;

use crate::model::ids::{Epoch, HostId, InstanceId, NodeId};
use crate::model::view::View;

/// What to do with an image that is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// Take it.
    Taken,
    /// As far as this host knows it has no use for it, and why; it may know too little yet.
    NotYet(String),
    /// Its node has left that epoch (SAFE-4), or its record has changed since, and no later word can change that.
    Over(String),
}

/// Who sends an image.
#[derive(Debug, Clone, Copy)]
pub enum SentBy<'a> {
    /// Somebody of this machine, over loopback, where agents have no certificates.
    Local,
    /// Whoever has the key of a certificate that names these hosts.
    Certified(&'a BTreeSet<HostId>),
}

/// Whether `me` takes an image of `node` from this sender that was taken of this instance in `epoch` and decided from this
/// revision of the node's record; an agent of an earlier version does not say from which.
///
/// A stray image must not get in: the highest epoch of a node that was ever taken is remembered, and refuses all that are
/// older. That of a record can be passed on; one above it was made up, or is of a record that is still on its way.
#[must_use]
pub fn offered(
    view: &View,
    me: &HostId,
    sender: SentBy<'_>,
    node: &NodeId,
    (epoch, revision): (Epoch, Option<u64>),
    instance: InstanceId,
) -> Offer {
    let Some(known) = view.nodes.get(node) else {
        return Offer::NotYet(format!("{me} knows no node {node}"));
    };
    let record = &known.value;
    if epoch < record.epoch {
        return Offer::Over(format!("taken in epoch {epoch}, {node} is in epoch {}", record.epoch));
    }
    if let Some(revision) = revision.filter(|revision| *revision < known.revision) {
        let by = known.revision;
        return Offer::Over(format!("{node} has changed: decided from revision {revision}, it is at {by}"));
    }
    if epoch > record.epoch {
        return Offer::NotYet(format!("taken in epoch {epoch}, {me} knows {node} in epoch {}", record.epoch));
    }
    if let Some(revision) = revision.filter(|revision| *revision > known.revision) {
        let by = known.revision;
        return Offer::NotYet(format!("decided from revision {revision} of {node}, {me} knows {by}"));
    }
    if record.state_of() != Some(instance) {
        return Offer::Over(format!("it is of {instance}, which is not the primary of {node}"));
    }
    let reserved = record.holds_places(node.role()) && record.backups.iter().any(|backup| &backup.host == me);
    if !reserved {
        return Offer::NotYet(format!("{me} holds no place for {node} as far as it knows"));
    }
    let primary = record.primary.as_ref().map(|member| &member.host);
    if let SentBy::Certified(hosts) = sender
        && !primary.is_some_and(|host| hosts.contains(host))
    {
        let is = primary.map_or_else(|| "nowhere".to_owned(), |host| format!("on {host}"));
        let names: Vec<&str> = hosts.iter().map(HostId::as_str).collect();
        let names = if names.is_empty() { "no host of this cluster".to_owned() } else { names.join(", ") };
        let text = format!("the primary of {node} is {is}, but the sender's certificate names {names}");
        return Offer::NotYet(text);
    }
    Offer::Taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Cluster, host, node};

    fn primary_of(cluster: &Cluster) -> InstanceId {
        cluster.primary("alice/exec-1").1
    }

    /// Of another life of the node, or of a deleted one of its name.
    #[test]
    fn an_image_of_another_instance_than_the_primarys_is_never_taken() {
        let cluster = Cluster::of(3).with(&["alice/exec-1"]);
        let backup = host(&cluster.backup_hosts("alice/exec-1")[0]);
        let of = |instance| {
            let epoch = cluster.record("alice/exec-1").epoch;
            offered(&cluster.view, &backup, SentBy::Local, &node("alice/exec-1"), (epoch, None), instance)
        };
        assert_eq!(of(primary_of(&cluster)), Offer::Taken);
        assert!(matches!(of(InstanceId::from_uuid(uuid::Uuid::nil())), Offer::Over(_)));
    }

    #[test]
    fn an_image_is_taken_by_a_backup_in_the_nodes_own_epoch_and_put_off_while_the_store_may_still_say_so() {
        let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
        cluster.edit("alice/exec-1", |record| record.epoch = Epoch(4));
        let backup = cluster.backup_hosts("alice/exec-1")[0].clone();
        let primary = cluster.primary_host("alice/exec-1");
        for (me, of, epoch, expected) in [
            (&backup, "alice/exec-1", 4, Offer::Taken),
            (
                &backup,
                "alice/exec-1",
                3,
                Offer::Over("taken in epoch 3, alice/exec-1 is in epoch 4".to_owned()),
            ),
            (
                &backup,
                "alice/exec-1",
                5,
                Offer::NotYet(format!("taken in epoch 5, {backup} knows alice/exec-1 in epoch 4")),
            ),
            (&backup, "bob/exec-1", 4, Offer::NotYet(format!("{backup} knows no node bob/exec-1"))),
            (
                &primary,
                "alice/exec-1",
                4,
                Offer::NotYet(format!("{primary} holds no place for alice/exec-1 as far as it knows")),
            ),
            // Whoever sends it: an older epoch is over for everybody.
            (
                &primary,
                "alice/exec-1",
                1,
                Offer::Over("taken in epoch 1, alice/exec-1 is in epoch 4".to_owned()),
            ),
        ] {
            assert_eq!(
                offered(
                    &cluster.view,
                    &host(me),
                    SentBy::Local,
                    &node(of),
                    (Epoch(epoch), None),
                    primary_of(&cluster)
                ),
                expected,
                "{me} {of} {epoch}"
            );
        }
    }

    /// D2: it may have been no backup in between, and have dropped what it had.
    #[test]
    fn an_image_is_taken_only_under_the_revision_that_its_sender_decided_from() {
        let cluster = Cluster::of(3).with(&["alice/exec-1"]);
        let (id, epoch) = (node("alice/exec-1"), cluster.record("alice/exec-1").epoch);
        let backup = host(&cluster.backup_hosts("alice/exec-1")[0]);
        let known = cluster.view.nodes[&id].revision;
        for (revision, taken, over) in [
            (Some(known), true, false),
            (None, true, false),
            (Some(known - 1), false, true),
            (Some(known + 1), false, false),
        ] {
            let offer =
                offered(&cluster.view, &backup, SentBy::Local, &id, (epoch, revision), primary_of(&cluster));
            assert_eq!((offer == Offer::Taken, matches!(offer, Offer::Over(_))), (taken, over), "{offer:?}");
        }
    }

    /// The backup is itself a host with a good certificate: it may not send state in the primary's name.
    #[test]
    fn an_image_is_taken_only_from_the_host_of_the_nodes_primary() {
        let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
        let (id, epoch) = (node("alice/exec-1"), cluster.record("alice/exec-1").epoch);
        let backup = host(&cluster.backup_hosts("alice/exec-1")[0]);
        let primary = host(&cluster.primary_host("alice/exec-1"));
        let of = primary_of(&cluster);
        let from = |cluster: &Cluster, hosts: &[&HostId]| {
            let named = hosts.iter().copied().cloned().collect();
            offered(&cluster.view, &backup, SentBy::Certified(&named), &id, (epoch, None), of)
        };
        assert_eq!(from(&cluster, &[&primary]), Offer::Taken);
        assert_eq!(from(&cluster, &[&backup, &primary]), Offer::Taken);
        let refused = |named: &str| {
            Offer::NotYet(format!(
                "the primary of {id} is on {primary}, but the sender's certificate names {named}"
            ))
        };
        assert_eq!(from(&cluster, &[&backup]), refused(backup.as_str()));
        assert_eq!(from(&cluster, &[]), refused("no host of this cluster"));
        cluster.edit("alice/exec-1", |record| record.primary = None);
        assert!(matches!(from(&cluster, &[&primary]), Offer::Over(_)));
    }

    /// Its backups are warm instances, and nobody would ever restore it.
    #[test]
    fn of_an_unprotected_node_nothing_is_taken() {
        let cluster = Cluster::of(2).with(&["alice/display"]);
        let backup = host(&cluster.backup_hosts("alice/display")[0]);
        let epoch = cluster.record("alice/display").epoch;
        let offer = offered(
            &cluster.view,
            &backup,
            SentBy::Local,
            &node("alice/display"),
            (epoch, None),
            cluster.primary("alice/display").1,
        );
        assert!(matches!(offer, Offer::NotYet(_)), "{offer:?}");
    }
}
