//! What was given and not begun is given back where the guard or libvirtd is away (S2; design, rule 8).

use super::*;
use crate::bounds::REFUSE;
use crate::fixture::fact;
use crate::model::records::{Origin, Service};

const WAIT: u64 = 3_000;

/// alice's display is to be made on the one host that there is, and waits.
fn waiting(idle: bool) -> (Rig, InstanceId) {
    let mut cluster = Cluster::of(1);
    if idle {
        cluster.idle("host1", 1);
    }
    let mut rig = Rig::new(cluster, "host1", 0);
    rig.cluster.add(&["alice/display"]);
    rig.cluster.step();
    rig.records();
    let instance = rig.cluster.primary("alice/display").1;
    (rig, instance)
}

fn guard(rig: &mut Rig, answers: bool) {
    rig.say(Input::Service { service: Service::Guard, answers });
}

fn libvirtd_is_lost(rig: &mut Rig) {
    rig.say(Input::Hypervisor(DomainEvent::Lost));
}

fn refused(rig: &Rig, instance: InstanceId) -> Option<Service> {
    match rig.death(instance)? {
        Death::Refused { service } => Some(service),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_not_begun_is_refused_after_a_wait_and_never_begun_again() {
    assert_eq!(u128::from(WAIT), REFUSE.as_millis());
    let (mut rig, instance) = waiting(false);
    libvirtd_is_lost(&mut rig);
    rig.tick();
    assert_eq!(rig.under_way(), ["Create"]);
    rig.end(Outcome::Died("libvirtd does not answer".to_owned()));
    // That is a failed deployment already: one that had not come so far is refused.
    assert!(matches!(rig.death(instance), Some(Death::DeployFailed { .. })));

    let (mut rig, instance) = waiting(true);
    guard(&mut rig, false);
    rig.tick();
    assert_eq!(rig.under_way(), ["Guard"]);
    rig.pass(WAIT);
    assert_eq!(refused(&rig, instance), None, "somebody works on it");
    guard(&mut rig, true);
    guard(&mut rig, false);
    rig.pass(WAIT - 1);
    rig.end(failed());
    assert_eq!(refused(&rig, instance), None, "it may be back soon");
    rig.say(Input::Tick { open: false });
    assert_eq!(refused(&rig, instance), None);
    rig.pass(1);
    assert_eq!(rig.under_way(), ["Destroy"]);
    assert_eq!(refused(&rig, instance), None, "it runs");
    rig.end(Outcome::Done);
    assert_eq!(refused(&rig, instance), Some(Service::Guard));
    guard(&mut rig, true);
    rig.pass(60_000);
    assert_eq!((rig.under_way(), refused(&rig, instance)), (Vec::new(), Some(Service::Guard)), "for good");
    assert!(rig.agent.unable().is_empty());
}

/// The state is on other hosts' disks too, or this one is asked again in another epoch.
#[test]
fn a_restore_that_did_not_come_to_its_last_step_is_refused_and_taken_up_again_in_the_next_epoch() {
    let mut cluster = Cluster::of(2).with(&["alice/exec-1"]);
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let (me, instance) = cluster.primary("alice/exec-1");
    let mut rig = Rig::new(cluster, me.as_str(), 0);
    libvirtd_is_lost(&mut rig);
    rig.tick();
    rig.end(failed());
    rig.pass(WAIT);
    assert_eq!(refused(&rig, instance), Some(Service::Libvirtd));
    rig.say(Input::Hypervisor(DomainEvent::Regained));
    rig.pass(60_000);
    assert_eq!(rig.under_way(), [""; 0]);
    rig.cluster.edit("alice/exec-1", |record| {
        record.epoch = record.epoch.next();
        record.incarnation = record.epoch;
    });
    rig.records();
    for _ in 0..2 {
        rig.tick();
    }
    assert_eq!((rig.under_way(), rig.phase(instance)), (vec!["Restore".to_owned()], Some("restoring")));
}

#[test]
fn what_may_have_begun_stays_whatever_is_away() {
    // A guest that is being deployed, one that serves, one that is about to be let run.
    let (mut deploying, one) = waiting(true);
    deploying.tick();
    deploying.end(Outcome::Guarded(Epoch(1)));
    deploying.tick();
    assert_eq!(deploying.under_way(), ["Deploy"]);
    deploying.end(failed());
    let (ready, two) = Rig::with_execution_node(2);
    let mut cluster = Cluster::of(2).with(&["alice/exec-1"]);
    cluster.kill_primary("alice/exec-1");
    cluster.step();
    let (me, three) = cluster.primary("alice/exec-1");
    let mut resuming = Rig::new(cluster, me.as_str(), 0);
    resuming.tick();
    resuming.end(Outcome::Loaded { address: None });
    resuming.tick();
    assert_eq!(resuming.under_way(), ["Resume"]);
    resuming.end(failed());
    for (mut rig, instance) in [(deploying, one), (ready, two), (resuming, three)] {
        guard(&mut rig, false);
        libvirtd_is_lost(&mut rig);
        for _ in 0..5 {
            rig.jobs.clear();
            rig.pass(WAIT);
        }
        assert_eq!(rig.death(instance), None);
    }
}

/// The agent before may have deployed it and not have written that down.
#[test]
fn an_idle_instance_that_had_a_name_when_the_agent_started_is_not_refused() {
    let (mut rig, instance) = waiting(true);
    let found = rig.agent.local().clone();
    rig.say(Input::Recovered { lease: 1, found });
    guard(&mut rig, false);
    rig.tick();
    rig.end(failed());
    rig.pass(WAIT);
    assert_eq!(rig.death(instance), None);
}

#[test]
fn a_warm_backup_that_is_to_take_over_is_refused_before_the_guard_is_asked_and_not_after() {
    for asked in [false, true] {
        let mut cluster = Cluster::of(2).with(&["alice/display"]);
        cluster.kill_primary("alice/display");
        cluster.step();
        let (me, instance) = cluster.primary("alice/display");
        let origin = cluster.record("alice/display").primary.as_ref().unwrap().origin;
        assert_eq!(origin, Origin::Promoted);
        let mut rig = Rig::new(cluster, me.as_str(), 0);
        rig.agent.ability = Ability::default();
        if asked {
            rig.tick();
            assert_eq!(rig.under_way(), ["Guard"]);
            rig.end(failed());
        } else {
            let busy = Busy::Waiting { until: Boottime(u64::MAX), tries: 1 };
            rig.agent.lanes.insert((instance, Lane::Domain), busy);
        }
        guard(&mut rig, false);
        rig.jobs.clear();
        rig.pass(WAIT);
        assert_eq!(rig.under_way().contains(&"Destroy".to_owned()), !asked);
    }
}

/// An agent that starts anew on the first of two hosts, libvirtd away: it cannot look at what runs.
fn started_anew() -> (Rig, u64) {
    let mut rig = Rig::new(Cluster::of(2).with(&["alice/exec-1"]), "host1", 0);
    let settings = rig.agent.settings.clone();
    let lease = rig.agent.lease;
    rig.agent = HostAgent::new(settings);
    rig.say(Input::Service { service: Service::Libvirtd, answers: false });
    (rig, lease)
}

/// bob's display is to be made on the first host.
fn named_on_host1(rig: &mut Rig, lease: u64) -> InstanceId {
    rig.cluster.add(&["bob/display"]);
    rig.cluster.step();
    rig.cluster.edit("bob/display", |record| {
        let primary = record.primary.as_mut().unwrap();
        (primary.host, primary.lease) = (host("host1"), lease);
    });
    rig.cluster.primary("bob/display").1
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Given {
    Since,
    Before,
    /// And what the store named is not what it names now, but for the instance.
    BeforeInAnotherEpoch,
    /// What the store named first could not be read as a whole.
    Unread,
}

/// S2, where the agent has started anew too. What was named before is not touched: it may have begun.
#[test]
fn an_agent_that_cannot_look_yet_gives_back_what_came_after_its_start_and_that_stays() {
    for given in [Given::Since, Given::Before, Given::BeforeInAnotherEpoch, Given::Unread] {
        let (mut rig, lease) = started_anew();
        match given {
            Given::Since => rig.records(),
            Given::Before | Given::BeforeInAnotherEpoch => {
                named_on_host1(&mut rig, lease);
                rig.records();
            }
            Given::Unread => {
                let (view, failovers) = (rig.cluster.view.clone(), BTreeMap::new());
                rig.say(Input::Records(Box::new(Records { view, failovers, unreadable: true })));
            }
        }
        match given {
            Given::Since | Given::Unread => drop(named_on_host1(&mut rig, lease)),
            Given::Before => {}
            Given::BeforeInAnotherEpoch => {
                rig.cluster.edit("bob/display", |record| record.epoch = record.epoch.next());
            }
        }
        rig.records();
        let instance = rig.cluster.primary("bob/display").1;
        rig.pass(WAIT);
        assert_eq!(refused(&rig, instance), None, "which lease goes on is not known yet");
        rig.say(Input::Resumed { lease });
        rig.say(Input::Tick { open: false });
        assert_eq!(refused(&rig, instance), None);
        rig.tick();
        let service = (given == Given::Since).then_some(Service::Libvirtd);
        assert_eq!(refused(&rig, instance), service, "{given:?}");
        let others: Vec<_> = rig.agent.local().keys().filter(|id| **id != instance).collect();
        assert!(others.is_empty(), "{others:?}");
        let mut found = rig.cluster.local("host1");
        if service.is_some() {
            // Whatever it is: it does not stay.
            let mut one = found.values().next().unwrap().clone();
            one.fact.phase = Phase::Booting;
            found.insert(instance, one);
        }
        rig.say(Input::Hypervisor(DomainEvent::Regained));
        rig.say(Input::Recovered { lease, found });
        rig.say(Input::Listed(None));
        let words = rig.under_way();
        assert_eq!(words.contains(&"Destroy".to_owned()), service.is_some(), "{words:?}");
        if service.is_some() {
            rig.end(Outcome::Done);
        }
        rig.pass(60_000);
        assert!(!rig.under_way().contains(&"Create".to_owned()), "nobody has heard of this agent yet");
        rig.say(Input::Reported { lease });
        rig.pass(60_000);
        assert_eq!(refused(&rig, instance), service, "for good");
        let made = matches!(given, Given::Before | Given::Unread);
        assert_eq!(rig.under_way().contains(&"Create".to_owned()), made, "{given:?}");
    }
}

/// What answers may still not do its part: a qemu that cannot be ended, a list that is never given.
#[test]
fn a_host_whose_recovery_fails_is_unable_whatever_answers_and_gives_back_what_it_was_given() {
    let (mut rig, lease) = started_anew();
    rig.say(Input::Service { service: Service::Libvirtd, answers: true });
    rig.records();
    rig.say(Input::Unrecovered { service: Service::Guard });
    assert!(rig.agent.unable().is_empty(), "nothing is to be recovered");
    rig.say(Input::Resumed { lease });
    let instance = named_on_host1(&mut rig, lease);
    rig.records();
    for _ in 0..2 {
        rig.say(Input::Unrecovered { service: Service::Libvirtd });
        assert_eq!(rig.agent.unable(), [Service::Libvirtd].into());
        assert_eq!(refused(&rig, instance), None);
        rig.pass(WAIT / 2);
        rig.say(Input::Hypervisor(DomainEvent::Regained));
    }
    assert_eq!(refused(&rig, instance), Some(Service::Libvirtd));
    let found = rig.cluster.local("host1");
    rig.say(Input::Recovered { lease, found });
    assert!(rig.agent.unable().is_empty());
}

/// One that has looked at what runs, and was given bob's display.
fn recovered_anew() -> (Rig, u64, InstanceId) {
    let (mut rig, lease) = started_anew();
    let instance = named_on_host1(&mut rig, lease);
    rig.records();
    rig.say(Input::Resumed { lease });
    let found = rig.cluster.local("host1");
    rig.say(Input::Hypervisor(DomainEvent::Regained));
    rig.say(Input::Recovered { lease, found });
    (rig, lease, instance)
}

/// Its write was on its way when the agent ended: the leader may have acted on it before this agent hears of it.
#[test]
fn a_death_that_an_earlier_agent_reported_and_that_lands_late_holds_and_nothing_begins_before_none_can_land()
{
    let deaths =
        [Death::Refused { service: Service::Guard }, Death::DeployFailed { detail: "no room".to_owned() }];
    for lands in deaths.map(Some).into_iter().chain([None]) {
        let (mut rig, lease, instance) = recovered_anew();
        rig.say(Input::Reported { lease: lease - 1 });
        rig.pass(60_000);
        let made = |rig: &Rig| rig.under_way().contains(&"Create".to_owned());
        assert!(rig.agent.owes_report() && !made(&rig), "{:?}", rig.under_way());
        if let Some(death) = lands.clone() {
            let epoch = rig.cluster.record("bob/display").epoch;
            let fact = fact(Phase::Dead { death, at: rig.agent.now.wall }, None, epoch);
            rig.cluster.facts("host1").instances.insert(instance, fact);
            rig.records();
        }
        rig.say(Input::Reported { lease });
        rig.pass(60_000);
        assert_eq!((rig.death(instance), made(&rig)), (lands.clone(), lands.is_none()));
        assert!(!rig.agent.owes_report());
    }
}

/// It was ready once: it is not made anew as if it had not been.
#[test]
fn what_an_earlier_agent_reports_late_as_ready_is_looked_for() {
    let (mut rig, lease, instance) = recovered_anew();
    let epoch = rig.cluster.record("bob/display").epoch;
    let ready = fact(Phase::Ready, Some("bob/display".parse().unwrap()), epoch);
    rig.cluster.facts("host1").instances.insert(instance, ready);
    rig.records();
    assert!(rig.seen.contains(&Effect::LookFor(instance)));
    rig.say(Input::Looked { instance, there: Some(false) });
    rig.say(Input::Reported { lease });
    rig.pass(60_000);
    assert!(matches!(rig.death(instance), Some(Death::Exited { .. })), "{:?}", rig.death(instance));
    assert!(!rig.under_way().contains(&"Create".to_owned()));
}
