//! Between a tick and what is due there is nothing to do, whatever has happened before.

use proptest::prelude::*;

use super::*;
use crate::death::CopyFault;
use crate::host::input::{CopyEvent, Saved, Shown};
use crate::host::migration::Presence;
use crate::model::records::{CheckpointId, Service};

/// What happens, each drawn from the numbers that come with it.
#[derive(Debug, Clone, Copy)]
enum Happens {
    JobEnds(usize, usize),
    StepEnds(usize, usize),
    CopyEnds(usize, usize),
    Exits(usize),
    Listed(bool),
    Looked(usize, usize),
    Libvirt(bool),
    Guard(bool),
    Drain(usize, bool),
    Loses(usize),
    Reports,
    Plans,
    LeaseLost,
}

fn happens() -> impl Strategy<Value = Happens> {
    let number = || 0..64_usize;
    prop_oneof![
        12 => (number(), number()).prop_map(|(at, how)| Happens::JobEnds(at, how)),
        8 => (number(), number()).prop_map(|(at, how)| Happens::StepEnds(at, how)),
        8 => (number(), number()).prop_map(|(at, how)| Happens::CopyEnds(at, how)),
        2 => number().prop_map(Happens::Exits),
        2 => any::<bool>().prop_map(Happens::Listed),
        2 => (number(), number()).prop_map(|(at, how)| Happens::Looked(at, how)),
        1 => any::<bool>().prop_map(Happens::Libvirt),
        1 => any::<bool>().prop_map(Happens::Guard),
        2 => (number(), any::<bool>()).prop_map(|(at, drains)| Happens::Drain(at, drains)),
        1 => number().prop_map(Happens::Loses),
        8 => Just(Happens::Reports),
        8 => Just(Happens::Plans),
        1 => Just(Happens::LeaseLost),
    ]
}

/// How long after it there is a tick too early, and whether the one that is due comes, or something else before it.
type Then = (u64, bool);

fn outcome(job: &Job, how: usize) -> Outcome {
    let text = || "for some reason".to_owned();
    let well = match &job.action {
        HostAction::Guard { epoch, .. } => Outcome::Guarded(*epoch),
        HostAction::Restore { .. } => Outcome::Loaded { address: None },
        HostAction::Checkpoint { .. } => {
            Outcome::Saved(Saved { taken: crate::model::units::UnixMillis(0), pause_ms: 5, bytes: 1 << 20 })
        }
        _ => Outcome::Done,
    };
    match how % 8 {
        0 => Outcome::Failed(text()),
        1 => Outcome::Died(text()),
        2 => Outcome::Unsure(text()),
        3 => Outcome::Refused(text()),
        _ => well,
    }
}

fn answer(step: MigrationStep, how: usize) -> MigrationAnswer {
    let presence = [Presence::Gone, Presence::Held, Presence::Running, Presence::Paused, Presence::Process];
    match (how % 6, step) {
        (0, _) => MigrationAnswer::Failed("no answer".to_owned()),
        (_, MigrationStep::Look) => MigrationAnswer::Seen(presence[how % presence.len()]),
        (_, MigrationStep::Land) => MigrationAnswer::Landed(None),
        (1, MigrationStep::Transfer { .. }) => MigrationAnswer::Stayed("refused".to_owned()),
        (_, MigrationStep::Transfer { .. }) => MigrationAnswer::Moved,
        (_, MigrationStep::Permit { .. } | MigrationStep::Withdraw | MigrationStep::Resume) => {
            MigrationAnswer::Done
        }
    }
}

fn copy_event(host: HostId, how: usize) -> CopyEvent {
    match how % 5 {
        0 => CopyEvent::Accepted { host, bytes: 1 << 19, of: 1 << 20 },
        1 => CopyEvent::Failed { host, fault: CopyFault::Stalled },
        2 => CopyEvent::Unreadable { host, detail: "gone".to_owned() },
        3 => CopyEvent::Lacks { host, detail: "nothing".to_owned() },
        _ => CopyEvent::Durable(host),
    }
}

impl Rig {
    fn happens(&mut self, what: Happens) {
        let me = self.agent.settings.me.clone();
        let names: Vec<String> = self.cluster.view.hosts.keys().map(ToString::to_string).collect();
        let local: Vec<InstanceId> = self.agent.local.keys().copied().collect();
        let pick = |at: usize| (!local.is_empty()).then(|| local[at % local.len()]);
        match what {
            Happens::JobEnds(at, how) if !self.jobs.is_empty() => {
                let job = self.jobs.remove(at % self.jobs.len());
                let outcome = outcome(&job, how);
                self.say(Input::Finished { job: Box::new(job), outcome });
            }
            Happens::StepEnds(at, how) if !self.steps.is_empty() => {
                let (job, step) = self.steps.remove(at % self.steps.len());
                self.say(Input::Stepped { job: Box::new(job), answer: answer(step, how) });
            }
            Happens::CopyEnds(at, how) => {
                let sent: Vec<(NodeId, CheckpointId, HostId)> = self
                    .sent
                    .iter()
                    .filter_map(|effect| match effect {
                        Effect::Send { node, id, to, .. } => Some((node.clone(), *id, to.host.clone())),
                        _ => None,
                    })
                    .collect();
                if let Some((node, id, host)) = sent.get(sent.len().saturating_sub(1 + at % 3)).cloned() {
                    self.say(Input::Copy { node, id, event: copy_event(host, how) });
                }
            }
            Happens::Exits(at) => pick(at).into_iter().for_each(|instance| self.exits(instance)),
            Happens::Listed(knows) => {
                let all = local.iter().map(|&instance| (instance, Shown::Well)).collect();
                self.say(Input::Listed(knows.then_some(all)));
            }
            Happens::Looked(at, how) => {
                let there = [None, Some(true), Some(false)][how % 3];
                pick(at).into_iter().for_each(|instance| self.say(Input::Looked { instance, there }));
            }
            Happens::Libvirt(answers) => {
                let event = if answers { DomainEvent::Regained } else { DomainEvent::Lost };
                self.say(Input::Hypervisor(event));
            }
            Happens::Guard(answers) => self.say(Input::Service { service: Service::Guard, answers }),
            Happens::Drain(at, drains) => {
                self.cluster.seen(&names[at % names.len()]).intent.drain = drains;
            }
            Happens::Loses(at) if names[at % names.len()] != me.as_str() => {
                self.cluster.lose(&names[at % names.len()]);
            }
            Happens::Reports => {
                let facts = self.agent.local.iter().map(|(&id, local)| (id, local.fact.clone())).collect();
                self.cluster.facts(me.as_str()).instances = facts;
            }
            Happens::Plans => drop(self.cluster.step()),
            Happens::LeaseLost => {
                self.say(Input::LeaseLost);
                self.tick();
                let lease = self.cluster.view.hosts[&me].lease.value.number;
                let found = self.cluster.local(me.as_str());
                self.say(Input::Recovered { lease, found });
            }
            Happens::JobEnds(..) | Happens::StepEnds(..) | Happens::Loses(_) => {}
        }
        self.records();
        self.tick();
    }

    /// Ticks at once for as long as it says that there is more to do.
    fn settle(&mut self) {
        for _ in 0..20 {
            if self.agent.due().is_none_or(|due| due > self.cluster.now.boottime) {
                return;
            }
            self.tick();
        }
        panic!("it never comes to rest: {:#?}", self.agent);
    }

    fn sent_so_far(&mut self) {
        let seen = std::mem::take(&mut self.seen);
        self.sent.extend(seen.into_iter().filter(|effect| matches!(effect, Effect::Send { .. })));
    }
}

/// What the events above come to seldom.
#[test]
fn each_wait_is_due_when_it_is_over() {
    let after = |rig: &Rig| rig.agent.due().map(|due| due.since(rig.cluster.now.boottime));
    let seconds = |count| Some(Duration::from_secs(count));
    let (mut rig, instance) = Rig::with_execution_node(2);
    rig.tick();
    assert_eq!(after(&rig), seconds(5), "the next checkpoint");
    rig.say(Input::Service { service: Service::Guard, answers: false });
    assert_eq!(after(&rig), seconds(3), "what was not begun is given back");
    rig.agent.loaded.insert(instance, Loaded { since: rig.cluster.now.boottime, address: None });
    assert_eq!(after(&rig), seconds(2), "what was restored runs, let in or not");
    let dead = crate::fixture::fact(crate::fixture::dead("killed"), None, Epoch(1));
    let nobodys = InstanceId::from_uuid(Uuid::from_u128(9));
    rig.agent.local.insert(nobodys, Local::of(dead));
    rig.tick();
    assert_eq!(after(&rig), seconds(0), "a node may want again what was forgotten");
    assert!(rig.agent.due() <= Some(rig.cluster.now.boottime));
    rig.tick();
    assert_eq!(after(&rig), seconds(2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn nothing_is_done_before_it_is_due(
        idle in 0..2_u32,
        events in proptest::collection::vec((happens(), (1..1_000_u64, any::<bool>())), 1..60),
    ) {
        let cluster = Cluster::of(3).with(&["alice/display", "alice/exec-1", "bob/exec-1"]);
        let me = cluster.primary_host("alice/exec-1");
        let mut rig = Rig::new(cluster, &me, idle);
        for (what, (early, comes)) in events {
            let (early, comes): Then = (early, comes);
            rig.happens(what);
            rig.settle();
            rig.sent_so_far();
            let now = rig.cluster.now.boottime;
            let due = rig.agent.due().unwrap_or(now + Duration::from_secs(600));
            prop_assert!(due > now);
            // In whole milliseconds, which both clocks count, and never as late as it is due.
            let before = u64::try_from(due.since(now).as_nanos().saturating_sub(1) / 1_000_000).unwrap();
            let early = (before * early / 1_000).min(before);
            rig.pass(early);
            prop_assert_eq!(&rig.seen, &[], "{:?} before {:?}, after {:?}", early, due, what);
            if comes {
                rig.pass(u64::try_from(due.since(rig.cluster.now.boottime).as_nanos().div_ceil(1_000_000)).unwrap());
                rig.settle();
                rig.sent_so_far();
            }
        }
    }
}
