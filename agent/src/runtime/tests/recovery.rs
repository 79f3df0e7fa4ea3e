//! An agent's restart costs no healthy instance (S8): what core decides of it, done over the hypervisor's double.

use understudy_core::death::Death;
use understudy_core::host::{HostAgent, Input};
use understudy_core::model::ids::{Epoch, NodeId};
use understudy_core::model::records::{Origin, Phase, Service};
use understudy_hypervisor::{Hypervisor, InstanceState};

use super::super::LeaseEvent;
use super::super::effects::domain::recovery::{Recovered, recover_guarded};
use super::super::effects::fence::Guarded;
use super::super::{host_settings, now};
use super::{Rig, instance, me, node, running};
use crate::keys::{Key, encode};

/// A primary that runs, guarded in its node's first epoch, and that was reported in this phase.
fn primary(phase: Phase) -> (Rig, Guarded) {
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, phase, Some(node()));
    rig.name(one);
    let facts = rig.runtime.facts();
    rig.write(&Key::Facts(me()), encode(&facts));
    (rig, [(one, Epoch(1))].into_iter().collect())
}

fn recover(rig: &Rig, guarded: &Guarded) -> Option<Vec<Recovered>> {
    recover_guarded(&rig.runtime.parts, &rig.runtime.records_of(1), guarded).ok()
}

fn goes_on(found: &[Recovered]) -> bool {
    found.iter().any(|found| found.instance == instance(1) && found.local.fact.phase == Phase::Ready)
}

fn runs(rig: &Rig) -> bool {
    let all = rig.hypervisor.instances().unwrap();
    all.iter().any(|fact| fact.id == instance(1) && fact.state == InstanceState::Running)
}

#[tokio::test]
async fn a_guest_that_stood_still_for_a_checkpoint_when_the_agent_ended_goes_on() {
    let (rig, guarded) = primary(Phase::Ready);
    rig.hypervisor.suspend(instance(1)).unwrap();
    assert!(!runs(&rig));
    assert!(goes_on(&recover(&rig, &guarded).unwrap()) && runs(&rig));
}

#[tokio::test]
async fn while_libvirtd_is_away_nothing_is_destroyed_and_then_all_goes_on() {
    let (rig, guarded) = primary(Phase::Ready);
    rig.hypervisor.set_libvirt_up(false);
    for _ in 0..3 {
        assert!(recover(&rig, &guarded).is_none());
    }
    assert!(running(&rig.hypervisor).contains(&instance(1)));
    rig.hypervisor.set_libvirt_up(true);
    assert!(goes_on(&recover(&rig, &guarded).unwrap()) && runs(&rig));
}

#[tokio::test]
async fn facts_of_another_version_cost_nothing() {
    let (mut rig, guarded) = primary(Phase::Ready);
    rig.write(&Key::Facts(me()), b"{\"newer\": true}".to_vec());
    let found = recover(&rig, &guarded).unwrap();
    // Deployed again: that leaves alone what is right already.
    let phases: Vec<&Phase> = found.iter().map(|found| &found.local.fact.phase).collect();
    assert!(phases == [&Phase::Deploying] && runs(&rig), "{phases:?}");
    // Nor does an idle instance that nobody names.
    let (mut rig, one) = (Rig::new(), instance(1));
    rig.runs(one, Phase::Idle, None);
    rig.write(&Key::Facts(me()), b"{\"newer\": true}".to_vec());
    let found = recover(&rig, &Guarded::new()).unwrap();
    assert!(found.iter().any(|found| found.local.fact.phase == Phase::Idle) && runs(&rig));
}

#[tokio::test]
async fn a_restore_that_was_cut_short_while_the_clock_was_set_goes_on() {
    let (rig, guarded) = primary(Phase::Restoring);
    let found = recover(&rig, &guarded).unwrap();
    assert!(goes_on(&found) && runs(&rig));
    assert!(found.iter().all(|found| found.set_clock));
}

#[tokio::test]
async fn before_the_next_lease_no_member_is_left_and_libvirtd_is_waited_for() {
    let (rig, guarded) = primary(Phase::Ready);
    let clear = || recover_guarded(&rig.runtime.parts, &rig.runtime.records_before(Some(1)), &guarded);
    rig.hypervisor.set_libvirt_up(false);
    assert!(clear().is_err(), "what may run cannot be looked at");
    rig.hypervisor.set_libvirt_up(true);
    assert!(clear().unwrap().is_empty() && running(&rig.hypervisor).is_empty());
}

/// S2: an agent that starts while libvirtd is away has what was reported, and gives back what it is given since.
#[tokio::test]
async fn what_was_reported_stands_until_it_can_be_looked_at_beside_what_is_given_back() {
    let (mut rig, _) = primary(Phase::Ready);
    let expected = rig.runtime.facts().instances;
    assert!(expected.contains_key(&instance(1)));
    rig.hypervisor.set_libvirt_up(false);
    rig.runtime.agent = HostAgent::new(host_settings(&rig.runtime.parts.config, None));
    rig.runtime.inform(Input::Service { service: Service::Libvirtd, answers: false });
    rig.runtime.inform_of_records();
    (rig.runtime.has_recovered, rig.runtime.capacity) = (false, None);
    rig.runtime.lease_event(LeaseEvent::Opened { number: 1, resumed: true });
    rig.runtime.advance();
    let facts = rig.runtime.facts();
    assert_eq!(facts.instances, expected);
    assert!(facts.unable.contains(&Service::Libvirtd));

    let given: NodeId = "bob/display".parse().unwrap();
    let mut record = super::record(Some(instance(2)));
    record.primary.as_mut().unwrap().origin = Origin::Created;
    rig.write(&Key::Node(given), encode(&record));
    rig.until_advanced("it is given back", |runtime| runtime.agent.local().contains_key(&instance(2))).await;
    let mut facts = rig.runtime.facts();
    let refused = facts.instances.remove(&instance(2)).unwrap();
    let Phase::Dead { death, .. } = refused.phase else { panic!("{refused:?}") };
    assert_eq!(death, Death::Refused { service: Service::Libvirtd });
    assert_eq!(facts.instances, expected);
    let said = rig.conditions();
    assert!(said.contains("it takes no work: see systemctl status"), "{said}");
}

/// S10: said at once, and the end of the agent where it lasts.
#[tokio::test]
async fn a_name_that_another_machine_holds_is_reported_with_both_and_ends_the_agent_after_a_while() {
    let mut rig = Rig::new();
    let taken = || {
        let by = understudy_core::model::ids::MachineId("another".to_owned());
        LeaseEvent::Taken { by, boot: understudy_core::model::ids::BootId("their-boot".to_owned()) }
    };
    rig.runtime.lease_event(taken());
    let reported = rig.conditions();
    for part in ["agent.toml", "host.name", "'host1'", "another", "their-boot", "boot boot"] {
        assert!(reported.contains(part), "{part} is not in: {reported}");
    }
    assert!(rig.runtime.ended.is_none(), "the leader may yet expire it");
    rig.runtime.taken_since = Some(now().boottime - std::time::Duration::from_secs(15));
    rig.runtime.lease_event(taken());
    let ended = rig.runtime.ended.as_ref().unwrap();
    assert!(ended.exit == crate::exit::Exit::NameTaken && ended.message == reported, "{ended:?}");
}

/// S13: what a task was to say never comes, and a flag would wait for it for ever.
#[tokio::test]
async fn a_task_that_panics_ends_the_agent_with_the_reason() {
    let rig = Rig::new();
    let tasks = rig.runtime.parts.tasks.clone();
    let (_stop, stopping) = tokio::sync::watch::channel(false);
    let store: super::super::OpenStore = Box::pin(std::future::ready(rig.runtime.parts.store.clone()));
    let running = tokio::spawn(rig.runtime.run(store, stopping));
    tasks.spawn("planning", async { panic!("no such node") });
    let ended = tokio::time::timeout(super::LIMIT, running).await.unwrap().unwrap().unwrap_err();
    for part in ["planning", "no such node"] {
        assert!(ended.message.contains(part), "{part} is not in: {}", ended.message);
    }
}
