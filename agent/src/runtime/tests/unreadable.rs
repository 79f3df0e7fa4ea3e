//! A record that cannot be read costs nothing of what it may name.

use std::collections::BTreeMap;

use understudy_core::host::{Effect, Input};
use understudy_core::model::ids::NodeId;
use understudy_core::model::records::{CheckpointId, HostFacts, LeaseRecord, Phase};

use super::super::effects::domain::recovery::recover_guarded;
use super::super::{Event, now};
use super::{Rig, instance, me, node, record, running};
use crate::keys::{ALL, Key, encode};

#[tokio::test]
async fn an_instance_whose_nodes_record_cannot_be_read_runs_on_and_is_destroyed_once_nobody_names_it() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Ready, Some(node()));
    rig.name(one);
    rig.work();
    // Written by a newer agent; and the store is listed anew, as after a restart.
    rig.write(&Key::Node(node()), b"{\"newer\": true}".to_vec());
    for _ in 0..3 {
        rig.work();
    }
    assert_eq!(rig.phase(one), Some(Phase::Ready));
    assert!(running(&rig.hypervisor).contains(&one));
    let reported = rig.conditions();
    assert!(
        reported.contains(&Key::Node(node()).to_string()) && reported.contains("update this agent"),
        "{reported}"
    );
    rig.write(&Key::Node(node()), encode(&record(None)));
    assert_eq!(rig.conditions(), "");
    rig.until("nobody names it", |runtime| !runtime.agent.local().contains_key(&one)).await;
    assert!(running(&rig.hypervisor).is_empty());
}

#[tokio::test]
async fn discovery_leaves_alone_what_a_migration_may_bring_for_a_node_whose_record_cannot_be_read() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Ready, Some(node()));
    let reported = HostFacts { instances: BTreeMap::new(), ..rig.runtime.facts() };
    rig.write(&Key::Facts(me()), encode(&reported));
    for (recovering, record, left) in [
        (true, b"{\"newer\": true}".to_vec(), true),
        (true, encode(&record(None)), false),
        // A new lease: what ran in the old one is over.
        (false, b"{\"newer\": true}".to_vec(), false),
    ] {
        if !running(&rig.hypervisor).contains(&one) {
            rig.runs(one, Phase::Ready, Some(node()));
        }
        rig.write(&Key::Node(node()), record);
        let parts = &rig.runtime.parts;
        let runtime = &rig.runtime;
        let records = if recovering { runtime.records_of(1) } else { runtime.records_before(Some(1)) };
        let found = recover_guarded(parts, &records, &Default::default()).unwrap();
        assert!(found.is_empty(), "{found:?}");
        assert_eq!(running(&rig.hypervisor).contains(&one), left, "recovering: {recovering}");
    }
}

#[tokio::test]
async fn images_of_a_node_are_kept_while_its_record_cannot_be_read() {
    let mut rig = Rig::new();
    let node: NodeId = "alice/exec-1".parse().unwrap();
    let id = CheckpointId { epoch: understudy_core::model::ids::Epoch(1), sequence: 1 };
    rig.runtime.parts.images.saw_epoch(&node, id.epoch).unwrap();
    rig.runtime.inform(Input::Images([node.clone()].into()));
    for unreadable in ["cut o", "{}"] {
        rig.write(&Key::Node(node.clone()), unreadable.as_bytes().to_vec());
        let effects = rig.runtime.agent.handle(Input::Tick { open: true }, now());
        let drops = effects.iter().any(|effect| matches!(effect, Effect::DropImages { .. }));
        assert!(!drops, "{effects:?}");
    }
    assert_eq!(rig.runtime.parts.images.seen_epoch(&node), id.epoch);
}

/// What the store holds is heard of.
async fn hear(rig: &mut Rig) {
    let listing = rig.runtime.parts.store.list(ALL).await.unwrap();
    rig.runtime.take(Event::Listed { listing, renewals: true });
}

#[tokio::test]
async fn nothing_is_written_for_a_node_whose_record_cannot_be_read() {
    let mut unplaced = record(None);
    (unplaced.epoch, unplaced.incarnation) = Default::default();
    for (stands, written) in [(b"{\"newer\": true}".to_vec(), false), (encode(&unplaced), true)] {
        let mut rig = Rig::new();
        let store = rig.runtime.parts.store.clone();
        let lease =
            LeaseRecord::open(understudy_core::model::ids::BootId("boot".to_owned()), Default::default(), 1);
        let facts = HostFacts { instances: BTreeMap::new(), ..rig.runtime.facts() };
        let known = Key::Node(node()).to_string();
        let txn = understudy_store::Txn::new()
            .put(Key::Lease(me()).to_string(), encode(&lease))
            .put(Key::Facts(me()).to_string(), encode(&facts))
            .put(&known, stands);
        assert!(store.commit(&txn).await.is_ok());
        let revision = async || store.get(&known).await.unwrap().unwrap().modified;
        let before = revision().await;
        hear(&mut rig).await;
        rig.runtime.lead(true, now());
        while rig.runtime.leadership.term().is_none() {
            let event = rig.runtime.receiver.recv().await.unwrap();
            rig.runtime.take(event);
        }
        hear(&mut rig).await;
        rig.runtime.lead(true, now());
        let is_writing =
            |rig: &Rig| rig.runtime.leadership.machine().is_some_and(|machine| machine.is_writing());
        assert_eq!(is_writing(&rig), written);
        while is_writing(&rig) {
            let event = rig.runtime.receiver.recv().await.unwrap();
            rig.runtime.take(event);
        }
        assert_eq!(revision().await > before, written);
    }
}
