//! What becomes of guests that cannot go on.

use understudy_core::host::{DomainEvent, Input};
use understudy_core::model::ids::InstanceId;
use understudy_core::model::records::Phase;
use understudy_hypervisor::fake::FakeHypervisor;

use super::{Rig, died, instance, node, running};

type Fault = fn(&FakeHypervisor, InstanceId);

const FATAL: [(Fault, &str); 3] = [
    (|host, id| host.panic_guest(id), "the guest's kernel panicked"),
    (|host, id| host.hang_guest(id), "did not feed its watchdog"),
    (|host, id| host.fail_disk(id, "vdb", true), "an error of its disk vdb"),
];

#[tokio::test]
async fn a_member_that_cannot_go_on_is_destroyed_and_dead_for_that() {
    for (fault, reason) in FATAL {
        let (mut rig, one) = (Rig::new(), instance(1));
        rig.runs(one, Phase::Ready, Some(node()));
        rig.name(one);
        rig.runtime.listen_to_hypervisor();
        fault(&rig.hypervisor, one);
        rig.until(reason, |runtime| died(runtime, one, reason)).await;
        assert!(running(&rig.hypervisor).is_empty(), "{reason}");
    }
}

/// A failover may be given it at any time, and takes it for one that is booted and waits.
#[tokio::test]
async fn an_idle_instance_that_cannot_go_on_is_destroyed_and_another_is_made() {
    for (fault, reason) in FATAL {
        let (mut rig, one) = (Rig::with_pool(1), instance(1));
        rig.runs(one, Phase::Idle, None);
        rig.runtime.listen_to_hypervisor();
        fault(&rig.hypervisor, one);
        rig.until(reason, |runtime| !runtime.agent.local().contains_key(&one)).await;
        assert!(!running(&rig.hypervisor).contains(&one), "{reason}");
        let facts = understudy_core::model::records::HostFacts { lease: 1, ..rig.runtime.facts() };
        rig.write(&crate::keys::Key::Facts(super::me()), crate::keys::encode(&facts));
        rig.until("another is made", |runtime| {
            runtime
                .agent
                .local()
                .values()
                .any(|local| local.fact.phase == Phase::Idle && local.fact.node.is_none())
        })
        .await;
    }
}

#[tokio::test]
async fn a_disk_error_that_the_guest_survives_is_reported_and_no_more() {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Ready, Some(node()));
    rig.name(one);
    rig.runtime.listen_to_hypervisor();
    rig.hypervisor.fail_disk(one, "vdb", false);
    rig.until("it is told", |runtime| runtime.conditions.contains_key("disks")).await;
    assert_eq!(rig.phase(one), Some(Phase::Ready));
    let reported = rig.conditions();
    for part in [&one.to_string(), "vdb", "journalctl -k"] {
        assert!(reported.contains(part), "{part} is not in: {reported}");
    }
    rig.hypervisor.kill(one);
    rig.until("it is dead", |runtime| died(runtime, one, "qemu process")).await;
    rig.write(&crate::keys::Key::Node(node()), crate::keys::encode(&super::record(None)));
    rig.until("it is forgotten", |runtime| !runtime.conditions.contains_key("disks")).await;
}

#[tokio::test]
async fn what_stopped_while_libvirt_was_away_is_found_when_it_is_back() {
    let quiet: [(Fault, &str); 2] = [FATAL[0], (FATAL[2].0, "an error of its disk")];
    for (fault, reason) in quiet {
        let (mut rig, one, idle) = (Rig::new(), instance(1), instance(2));
        rig.runs(one, Phase::Ready, Some(node()));
        rig.runs(idle, Phase::Idle, None);
        rig.name(one);
        rig.runtime.listen_to_hypervisor();
        rig.hypervisor.set_libvirt_up(false);
        rig.until("it is away", |runtime| runtime.conditions.contains_key("libvirt")).await;
        fault(&rig.hypervisor, one);
        fault(&rig.hypervisor, idle);
        rig.hypervisor.set_libvirt_up(true);
        rig.until(reason, |runtime| died(runtime, one, reason)).await;
        rig.until(reason, |runtime| !runtime.agent.local().contains_key(&idle)).await;
        assert!(running(&rig.hypervisor).is_empty(), "{reason}");
    }
}

/// LIVE-4: a managed domain that no record names and no agent knows. Before, it stayed until the next lease.
#[tokio::test]
async fn an_orphan_that_nobody_made_known_is_destroyed_while_the_lease_goes_on() {
    let (mut rig, known, orphan) = (Rig::new(), instance(1), instance(2));
    rig.runs(orphan, Phase::Idle, None);
    rig.known.clear();
    rig.runs(known, Phase::Ready, Some(node()));
    rig.name(known);
    rig.runtime.inform(Input::Hypervisor(DomainEvent::Panicked(orphan)));
    assert_eq!(running(&rig.hypervisor), [known, orphan].into(), "what it does not know it leaves alone");
    rig.runtime.inform(Input::Hypervisor(DomainEvent::Regained));
    rig.until("it is gone", |runtime| died(runtime, orphan, "no record names it")).await;
    assert_eq!(running(&rig.hypervisor), [known].into());
    assert_eq!(rig.phase(known), Some(Phase::Ready));
}

/// S2: what is missing is told, and takes no work meanwhile.
#[tokio::test]
async fn a_host_whose_guard_or_libvirtd_does_not_answer_says_so_in_its_facts() {
    use super::super::LeaseEvent;
    use understudy_core::model::records::Service;
    let mut rig = Rig::new();
    assert!(rig.runtime.facts().unable.is_empty());
    rig.runtime.lease_event(LeaseEvent::Guard(Some("connection refused".to_owned())));
    let reported = rig.runtime.facts();
    assert_eq!(reported.unable.into_iter().collect::<Vec<_>>(), [Service::Guard]);
    let text = reported.conditions.join("\n");
    assert!(
        text.contains("systemctl status understudy-guard") && text.contains("connection refused"),
        "{text}"
    );
    rig.runtime.lease_event(LeaseEvent::Guard(None));
    assert!(rig.runtime.facts().unable.is_empty() && rig.conditions().is_empty());

    rig.runtime.listen_to_hypervisor();
    rig.hypervisor.set_libvirt_up(false);
    rig.until("it is told", |runtime| runtime.facts().unable.contains(&Service::Libvirtd)).await;
    assert!(rig.conditions().contains("systemctl status libvirtd"), "{}", rig.conditions());
    rig.hypervisor.set_libvirt_up(true);
    rig.until("it is over", |runtime| runtime.facts().unable.is_empty()).await;
}

/// S15: where KVM does not work and nobody asked for emulation, operators are told, and work goes on.
#[tokio::test]
async fn a_host_that_fell_back_to_emulation_says_so_and_takes_work() {
    let mut rig = Rig::new();
    let emulated = |rig: &Rig| {
        let text = rig.runtime.parts.metrics.text(super::now().wall);
        text.lines().any(|line| line == "understudy_emulated 1")
    };
    rig.runtime.listen_to_hypervisor();
    assert!(rig.conditions().is_empty() && !emulated(&rig));
    rig.hypervisor.fall_back("the first guest did not boot");
    rig.until("it is told", |runtime| !runtime.facts().conditions.is_empty()).await;
    let reported = rig.runtime.facts();
    let [text] = reported.conditions.as_slice() else { panic!("{:?}", reported.conditions) };
    for part in
        ["agent.toml: libvirt.accelerator", "the first guest did not boot", "restart the agent", "\"qemu\""]
    {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(reported.unable.is_empty() && emulated(&rig));
}
