//! What cannot be ended is not called dead, nor forgotten.

use understudy_core::host::{HostAction, PoolSettings};
use understudy_core::ids::Epoch;
use understudy_core::records::{CheckpointId, Phase};
use understudy_core::units::Vcpus;

use super::super::event::Outcome;
use super::{MEMORY, Rig, died, instance, node, running};

#[tokio::test]
async fn a_member_whose_deployment_failed_and_that_cannot_be_ended_is_not_dead_until_it_is_gone() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Idle, None);
    rig.name(one);
    rig.driver.local.get_mut(&one).unwrap().fact.epoch = understudy_core::ids::Epoch(1);
    rig.hypervisor.set_libvirt_up(false);
    rig.hypervisor.set_unkillable(one, true);
    rig.until("it was tried to end it", |driver| !driver.complaints.is_empty()).await;
    assert_eq!(rig.phase(one), Some(Phase::Deploying));
    let told = rig.complaints();
    for part in [&one.to_string(), "deployment failed", "may run on", "systemctl status libvirtd"] {
        assert!(told.contains(part), "{part} is not in: {told}");
    }
    // It is nobody's any more: that is no reason to forget what may run.
    rig.write(&crate::keys::Key::Node(node()), crate::keys::encode(&super::record(None)));
    for _ in 0..3 {
        rig.work();
    }
    assert_eq!(rig.phase(one), Some(Phase::Deploying));
    rig.name(one);
    rig.hypervisor.set_unkillable(one, false);
    rig.until("it is dead", |driver| died(driver, one, "deployment failed")).await;
    assert!(running(&rig.hypervisor).is_empty() && rig.complaints().is_empty(), "{}", rig.complaints());
}

#[tokio::test]
async fn an_idle_instance_that_was_not_made_whole_and_cannot_be_ended_stays_counted() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Booting, None);
    rig.hypervisor.set_unkillable(one, true);
    let pool = PoolSettings { idle: 1, memory: MEMORY, vcpus: Vcpus(1) };
    let job = rig.driver.job(HostAction::CreateIdle(pool), one);
    rig.driver.finish(job, Outcome::Unsure("no sign of the guest".to_owned()));
    rig.until("it was tried to end it", |driver| driver.complaints.contains_key("ending")).await;
    assert_eq!(rig.phase(one), Some(Phase::Booting));
    rig.hypervisor.set_unkillable(one, false);
    rig.until("it is forgotten", |driver| !driver.local.contains_key(&one)).await;
    assert!(running(&rig.hypervisor).is_empty());
}

#[tokio::test]
async fn an_end_that_failed_is_tried_again() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Ready, Some(node()));
    rig.name(one);
    rig.hypervisor.set_unkillable(one, true);
    rig.driver.destroy(one, "the guest hangs");
    rig.until("it was tried", |driver| !driver.complaints.is_empty()).await;
    assert_eq!(rig.phase(one), Some(Phase::Ready));
    rig.hypervisor.set_unkillable(one, false);
    rig.until("it is dead", |driver| died(driver, one, "the guest hangs")).await;
    assert!(running(&rig.hypervisor).is_empty());
}

/// The old primary must be dead before another node takes its place, and one that is not there yet is not.
#[tokio::test]
async fn what_is_ended_while_it_is_being_made_is_not_dead_until_nothing_makes_it_any_more() {
    let restore = HostAction::Restore {
        node: node(),
        instance: instance(1),
        epoch: Epoch(1),
        checkpoint: CheckpointId { epoch: Epoch(1), sequence: 1 },
        valid: Epoch(1),
    };
    let create = HostAction::Create {
        node: node(),
        instance: instance(1),
        epoch: Epoch(1),
        memory: MEMORY,
        vcpus: Vcpus(1),
    };
    let outcomes = [
        (restore.clone(), Phase::Restoring, Outcome::Restored { address: None }, true),
        (restore, Phase::Restoring, Outcome::Died("not permitted".to_owned()), false),
        (create, Phase::Booting, Outcome::Done, true),
    ];
    for (action, phase, outcome, comes) in outcomes {
        let (mut rig, one) = (Rig::new(), instance(1));
        rig.name(one);
        rig.knows(one, phase.clone(), Some(node()));
        let job = rig.driver.job(action, one);
        rig.driver.begun(&job);
        rig.driver.destroy(one, "an operator asked for a failover");
        rig.until("it was tried", |driver| driver.ending.values().all(|ending| ending.waits())).await;
        assert_eq!(rig.phase(one), Some(phase.clone()), "it may still come");
        if comes {
            rig.runs(one, phase.clone(), Some(node()));
        }
        rig.driver.finish(job, outcome);
        assert_eq!(rig.phase(one), Some(phase));
        rig.until("it is dead", |driver| died(driver, one, "an operator asked for a failover")).await;
        assert!(running(&rig.hypervisor).is_empty() && rig.complaints().is_empty(), "{}", rig.complaints());
    }
}

/// With libvirtd down the end of the process is all that is known, and it is enough.
#[tokio::test]
async fn a_process_that_was_seen_to_end_is_dead_although_libvirt_cannot_be_asked() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Ready, Some(node()));
    rig.name(one);
    rig.driver.listen_to_hypervisor();
    rig.hypervisor.set_unkillable(one, true);
    rig.hypervisor.set_libvirt_up(false);
    rig.driver.destroy(one, "the guest hangs");
    rig.until("it was tried", |driver| driver.complaints.contains_key("ending")).await;
    rig.hypervisor.kill(one);
    rig.until("it is dead", |driver| died(driver, one, "the guest hangs")).await;
}

#[tokio::test]
async fn what_should_be_here_and_is_not_known_is_looked_for_before_it_is_called_missing() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Ready, Some(node()));
    rig.driver.local.clear();
    rig.name(one);
    rig.hypervisor.set_unkillable(one, true);
    rig.work();
    rig.until("it was looked for", |driver| {
        driver.busy.values().any(|busy| matches!(busy, super::super::Busy::Waiting { .. }))
    })
    .await;
    assert_eq!(rig.phase(one), None);
    rig.hypervisor.set_unkillable(one, false);
    rig.until("it is dead", |driver| died(driver, one, "is not on this host")).await;
    assert!(running(&rig.hypervisor).is_empty());
}
