//! What cannot be destroyed is not called dead, nor forgotten: core decides so, and is heard here.

use understudy_core::host::{DomainEvent, Input};
use understudy_core::model::ids::Epoch;
use understudy_core::model::records::Phase;

use super::{Rig, died, instance, node, running};

#[tokio::test]
async fn a_member_whose_deployment_failed_and_that_cannot_be_destroyed_is_not_dead_until_it_is_gone() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Idle, None);
    rig.name(one);
    rig.known.get_mut(&one).unwrap().fact.epoch = Epoch(1);
    rig.recover();
    rig.hypervisor.set_libvirt_up(false);
    rig.hypervisor.set_unkillable(one, true);
    rig.until("it was tried to destroy it", |runtime| !runtime.conditions.is_empty()).await;
    assert_eq!(rig.phase(one), Some(Phase::Deploying));
    let reported = rig.conditions();
    for part in [&one.to_string(), "deployment failed", "may run on", "systemctl status libvirtd"] {
        assert!(reported.contains(part), "{part} is not in: {reported}");
    }
    // It is nobody's any more: that is no reason to forget what may run.
    rig.write(&crate::keys::Key::Node(node()), crate::keys::encode(&super::record(None)));
    for _ in 0..3 {
        rig.work();
    }
    assert_eq!(rig.phase(one), Some(Phase::Deploying));
    rig.name(one);
    rig.hypervisor.set_unkillable(one, false);
    rig.until("it is dead", |runtime| died(runtime, one, "deployment failed")).await;
    assert!(running(&rig.hypervisor).is_empty() && rig.conditions().is_empty(), "{}", rig.conditions());
}

#[tokio::test]
async fn a_destroy_that_failed_is_tried_again() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Ready, Some(node()));
    rig.name(one);
    rig.hypervisor.set_unkillable(one, true);
    rig.runtime.inform(Input::Hypervisor(DomainEvent::Hangs(one)));
    rig.until("it was tried", |runtime| !runtime.conditions.is_empty()).await;
    assert_eq!(rig.phase(one), Some(Phase::Ready));
    rig.hypervisor.set_unkillable(one, false);
    rig.until("it is dead", |runtime| died(runtime, one, "the guest hangs")).await;
    assert!(running(&rig.hypervisor).is_empty());
}

/// With libvirtd down the end of the process is all that is known, and it is enough.
#[tokio::test]
async fn a_process_that_was_seen_to_end_is_dead_although_libvirt_cannot_be_asked() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Ready, Some(node()));
    rig.name(one);
    rig.runtime.listen_to_hypervisor();
    rig.hypervisor.set_unkillable(one, true);
    rig.hypervisor.set_libvirt_up(false);
    rig.runtime.inform(Input::Hypervisor(DomainEvent::Hangs(one)));
    rig.until("it was tried", |runtime| runtime.conditions.contains_key("destroys")).await;
    rig.hypervisor.kill(one);
    rig.until("it is dead", |runtime| died(runtime, one, "the guest hangs")).await;
}

#[tokio::test]
async fn what_should_be_here_and_is_not_known_is_looked_for_before_it_is_called_missing() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Ready, Some(node()));
    rig.known.clear();
    rig.recover();
    rig.name(one);
    rig.hypervisor.set_unkillable(one, true);
    rig.work();
    rig.one_job().await;
    assert_eq!(rig.phase(one), None);
    rig.hypervisor.set_unkillable(one, false);
    rig.until("it is dead", |runtime| died(runtime, one, "is not on this host")).await;
    assert!(running(&rig.hypervisor).is_empty());
}
