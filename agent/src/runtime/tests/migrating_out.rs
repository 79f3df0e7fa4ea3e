//! What a source says of an instance that is gone in a live migration of which it did not hear the end.

use understudy_core::model::ids::{BootId, Epoch, HostId};
use understudy_core::model::records::{HostFacts, LeaseRecord, Migration, Phase};
use understudy_core::model::units::UnixMillis;

use super::super::effects::domain::recovery::recover_guarded;
use super::{Rig, died, instance, me, node, record};
use crate::keys::{Key, encode};

/// alice's display leaves for `host2`.
fn leaves(rig: &mut Rig, abandoned: bool) {
    let to: HostId = "host2".parse().unwrap();
    let lease = LeaseRecord::open(BootId("boot".to_owned()), Default::default(), 1);
    let facts = HostFacts { lease: 1, instances: Default::default(), ..rig.runtime.facts() };
    rig.write(&Key::Lease(to.clone()), encode(&lease));
    rig.write(&Key::Facts(to.clone()), encode(&facts));
    let migration =
        Migration { from: me(), to, to_lease: 1, epoch: Epoch(2), abandoned, started: UnixMillis(0) };
    let record = record(Some(instance(1)));
    let record =
        understudy_core::model::records::NodeRecord { epoch: Epoch(2), migration: Some(migration), ..record };
    rig.write(&Key::Node(node()), encode(&record));
}

#[tokio::test]
async fn a_try_that_finds_it_gone_leaves_the_decision_to_the_destination() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Ready, Some(node()));
    leaves(&mut rig, false);
    rig.hypervisor.kill(one);
    rig.until("it is gone", |runtime| died(runtime, one, "")).await;
    assert!(died(&rig.runtime, one, "moved away to host2, or ended"), "{:?}", rig.phase(one));
}

#[tokio::test]
async fn so_does_a_destroy_before_the_first_try_and_one_that_a_new_agent_finds() {
    for (abandoned, moved) in [(false, true), (true, false)] {
        let (mut rig, one) = (Rig::new(), instance(1));
        rig.runs(one, Phase::Ready, Some(node()));
        leaves(&mut rig, abandoned);
        let reported = HostFacts { lease: 1, ..rig.runtime.facts() };
        rig.runtime.listen_to_hypervisor();
        rig.hypervisor.kill(one);
        while let Some(event) = rig.runtime.receiver.recv().await {
            rig.runtime.take(event);
            if died(&rig.runtime, one, "") {
                break;
            }
        }
        assert_eq!(died(&rig.runtime, one, "moved away"), moved, "{:?}", rig.phase(one));
        rig.write(&Key::Facts(me()), encode(&reported));
        let records = rig.runtime.records_of(1);
        let found = recover_guarded(&rig.runtime.parts, &records, &Default::default()).unwrap();
        let phases: Vec<&Phase> = found.iter().map(|found| &found.local.fact.phase).collect();
        let [Phase::Dead { death, .. }] = phases.as_slice() else { panic!("{phases:?}") };
        assert_eq!(death.is_move(), moved, "{death}");
    }
}

/// Before, it was called failed: on that word the destination destroys what an earlier try, of which nobody heard the end,
/// may have brought there.
#[tokio::test]
async fn a_try_that_libvirt_was_not_asked_for_is_not_called_failed() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Ready, Some(node()));
    leaves(&mut rig, false);
    rig.work();
    let looked = rig.runtime.receiver.recv().await.unwrap();
    rig.hypervisor.set_libvirt_up(false);
    rig.runtime.take(looked);
    rig.steps(1).await;
    assert_eq!(rig.runtime.agent.local()[&one].fact.migration_failed, None);
}
