//! Owns the model of the steps of a live migration, on either side, with the time that they take and the ways in which they
//! fail.
//!
//! Promises: an answer is what was seen of this machine, or of the transfer that was begun from it. Must not do: decide what
//! is next.

use std::time::Duration;

use understudy_core::errors::chain;
use understudy_core::host::{
    HostAction, Input, Job as CoreJob, Landed, MigrationAnswer, MigrationStep, Presence,
};
use understudy_core::model::ids::{HostId, InstanceId};
use understudy_hypervisor::fake::{Course, Left};
use understudy_hypervisor::{
    Hypervisor, InstanceState, Liveness, MigrationOutcome, MigrationTarget, PauseCause,
};

use super::{ipv4, permit, withdraw};
use crate::agent::Agent;
use crate::world::{STEP_MS, World};

/// One step under way.
#[derive(Debug)]
struct Step {
    of: CoreJob,
    step: MigrationStep,
    /// When it is looked at next.
    until: u64,
    fails: bool,
    /// The number of the migration that it has begun.
    begun: Option<u64>,
}

/// All steps under way.
#[derive(Debug, Default)]
pub(in crate::agent) struct Steps {
    under_way: Vec<Step>,
}

impl Steps {
    /// What was under way has as much left to do as before.
    pub(super) fn stood_still(&mut self, since: u64, lost: u64) {
        for step in self.under_way.iter_mut().filter(|step| step.until > since) {
            step.until += lost;
        }
    }
}

impl Agent {
    /// What takes no time is done in the same moment.
    pub(in crate::agent) fn begin_step(
        &mut self,
        world: &mut World,
        me: &HostId,
        of: CoreJob,
        step: MigrationStep,
    ) -> Option<Input> {
        let (least, most) = match step {
            MigrationStep::Permit { .. } | MigrationStep::Transfer { .. } => (0, 0),
            MigrationStep::Look | MigrationStep::Resume => (0, 50),
            MigrationStep::Land => (0, 100),
            MigrationStep::Withdraw => (25, 100),
        };
        let until = world.now + world.duration(least, most);
        let mut step = Step { of, step, until, fails: world.work_fails(), begun: None };
        let answer = if until == world.now { self.take_step(world, me, &mut step) } else { None };
        if answer.is_none() {
            self.steps.under_way.push(step);
            return None;
        }
        self.dirty = true;
        answer.map(|answer| Input::Stepped { job: Box::new(step.of), answer })
    }

    pub(in crate::agent) fn take_steps(&mut self, world: &mut World, me: &HostId) {
        for mut step in std::mem::take(&mut self.steps.under_way) {
            let answer = (step.until <= world.now).then(|| self.take_step(world, me, &mut step)).flatten();
            match answer {
                Some(answer) => {
                    self.dirty = true;
                    self.inform(world, me, Input::Stepped { job: Box::new(step.of), answer });
                }
                None => self.steps.under_way.push(step),
            }
        }
    }

    fn take_step(&mut self, world: &mut World, me: &HostId, step: &mut Step) -> Option<MigrationAnswer> {
        let instance = step.of.instance;
        Some(match step.step {
            MigrationStep::Permit { .. } => Self::permit(world, me, &step.of),
            MigrationStep::Look => look(world, me, instance),
            MigrationStep::Land => self.land(world, me, &step.of),
            MigrationStep::Withdraw => done(withdraw(world, me, instance)),
            MigrationStep::Transfer { lasts } => return transfer(world, me, step, lasts),
            MigrationStep::Resume => {
                done(world.machine(me).hypervisor.resume(instance).map_err(|error| chain(&error)))
            }
        })
    }

    fn permit(world: &World, me: &HostId, of: &CoreJob) -> MigrationAnswer {
        let HostAction::Accept { epoch, .. } = of.action else { return MigrationAnswer::Done };
        if let Err(why) = permit(world, me, of.instance, epoch) {
            return MigrationAnswer::Failed(why);
        }
        MigrationAnswer::Done
    }

    fn land(&mut self, world: &mut World, me: &HostId, of: &CoreJob) -> MigrationAnswer {
        let HostAction::Accept { epoch, .. } = of.action else { return MigrationAnswer::Done };
        if let Err(why) = self.register(world, me, of, epoch) {
            return MigrationAnswer::Failed(why);
        }
        let hypervisor = &world.machine(me).hypervisor;
        if let Err(error) = hypervisor.resume(of.instance) {
            return MigrationAnswer::Failed(chain(&error));
        }
        hypervisor.revoke(of.instance);
        self.watch(world, me, of.instance);
        let here = hypervisor.instances().unwrap_or_default();
        let fact = here.iter().find(|fact| fact.id == of.instance);
        MigrationAnswer::Landed(fact.map(|fact| Landed {
            memory: fact.memory,
            vcpus: fact.vcpus,
            address: ipv4(fact.note.address),
        }))
    }
}

fn done(result: Result<(), String>) -> MigrationAnswer {
    result.map_or_else(MigrationAnswer::Failed, |()| MigrationAnswer::Done)
}

/// On the way in libvirt calls it paused for migration; once its state is complete, paused as asked.
fn look(world: &World, me: &HostId, instance: InstanceId) -> MigrationAnswer {
    MigrationAnswer::Seen(match world.machine(me).hypervisor.liveness(instance) {
        Err(error) => return MigrationAnswer::Failed(chain(&error)),
        Ok(Liveness::Gone) => Presence::Gone,
        Ok(Liveness::ProcessOnly(_)) => Presence::Process,
        Ok(Liveness::Known(InstanceState::Running)) => Presence::Running,
        Ok(Liveness::Known(InstanceState::Paused(PauseCause::Asked))) => Presence::Paused,
        Ok(Liveness::Known(InstanceState::Paused(_))) => Presence::Held,
        Ok(Liveness::Known(_)) => Presence::Other,
    })
}

/// Begins it, and says what came of it once it has ended.
fn transfer(world: &mut World, me: &HostId, step: &mut Step, lasts: Duration) -> Option<MigrationAnswer> {
    let HostAction::MigrateOut { uri, data_uri, .. } = &step.of.action else {
        return Some(MigrationAnswer::Done);
    };
    let Some(begun) = step.begun else {
        let (opens, takes) = (world.duration(25, 300), world.duration(1_000, 4_000));
        let loses_end = world.rng.chance(world.swarm.lost_finishes);
        let (opens, takes) = (Duration::from_millis(opens), Duration::from_millis(takes));
        let target = MigrationTarget {
            uri: uri.clone(),
            tls: true,
            tls_name: None,
            data_uri: data_uri.clone(),
            bandwidth: None,
        };
        // Not drawn: the seeds that failed once stay what they were.
        let left = if (world.now / STEP_MS).is_multiple_of(3) { Left::Paused } else { Left::Running };
        let course = Course { opens, takes, loses_end: loses_end.then_some(left) };
        let hypervisor = &world.machine(me).hypervisor;
        return match hypervisor.begin_migration(step.of.instance, &target, lasts, course) {
            Ok(begun) => {
                step.begun = Some(begun);
                None
            }
            Err(error) => Some(MigrationAnswer::Failed(chain(&error))),
        };
    };
    Some(match world.machine(me).hypervisor.migration(begun)? {
        // What became of it is not known here: the next try finds out.
        MigrationOutcome::Moved { .. } | MigrationOutcome::StayedHere { .. } if step.fails => {
            MigrationAnswer::Failed("the connection to libvirtd broke".to_owned())
        }
        MigrationOutcome::Moved { .. } => MigrationAnswer::Moved,
        MigrationOutcome::StayedHere { why } => MigrationAnswer::Stayed(why),
        MigrationOutcome::Unknown { why, .. } => MigrationAnswer::Failed(why),
    })
}
