//! Owns the model of the steps of a live migration, on either side, with the time that they take and the ways in which they
//! fail.
//!
//! Promises: an answer is what was seen of this machine, or of the transfer that was begun from it. Must not do: decide what
//! is next.

use understudy_core::host::{
    HostAction, Input, Job as CoreJob, Landed, MigrationAnswer, MigrationStep, Presence,
};
use understudy_core::ids::{HostId, InstanceId};
use understudy_core::units::Vcpus;

use super::{PERMIT_MS, register, remove};
use crate::Weakness;
use crate::agent::Agent;
use crate::machine::Stage;
use crate::world::{TransferState, World};

/// One step under way.
#[derive(Debug)]
struct Step {
    of: CoreJob,
    step: MigrationStep,
    /// When it is looked at next.
    until: u64,
    /// How long it waits for others.
    patience: u64,
    fails: bool,
    transfer: Option<u64>,
}

/// All steps under way.
#[derive(Debug, Default)]
pub(in crate::agent) struct Steps {
    under_way: Vec<Step>,
    /// What is let run as soon as it is whole, with that protection switched off.
    eager: Vec<CoreJob>,
}

impl Steps {
    /// What was under way has as much left to do as before.
    pub(super) fn stood_still(&mut self, since: u64, lost: u64) {
        for step in self.under_way.iter_mut().filter(|step| step.until > since) {
            step.until += lost;
            step.patience += lost;
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
        let (patience, fails) = (world.now + PERMIT_MS, world.work_fails());
        let mut step = Step { of, step, until, patience, fails, transfer: None };
        let answer = if until == world.now { self.take_step(world, me, &mut step) } else { None };
        if answer.is_none() {
            self.steps.under_way.push(step);
            return None;
        }
        self.dirty = true;
        answer.map(|answer| Input::Stepped { job: Box::new(step.of), answer })
    }

    pub(in crate::agent) fn take_steps(&mut self, world: &mut World, me: &HostId) {
        self.land_early(world, me);
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
        // Who migrates waits for the other side anyway; a permit needs no libvirtd.
        if world.lacks_libvirtd(me) && !matches!(step.step, MigrationStep::Permit { .. }) {
            step.until = world.machine(me).libvirtd_back;
            return None;
        }
        match step.step {
            MigrationStep::Permit { .. } => {
                self.permit(world, me, &step.of);
                Some(MigrationAnswer::Done)
            }
            MigrationStep::Look => Some(MigrationAnswer::Seen(presence(world, me, instance))),
            MigrationStep::Land => Some(self.land(world, me, &step.of)),
            MigrationStep::Withdraw => {
                world.machine_mut(me).permits.remove(&instance);
                let gone = remove(world, me, instance);
                Some(if gone { MigrationAnswer::Done } else { failed("libvirtd does not end it") })
            }
            MigrationStep::Transfer { .. } => transfer(world, me, step),
            MigrationStep::Resume => {
                world.resume(me, instance);
                Some(MigrationAnswer::Done)
            }
        }
    }

    fn permit(&mut self, world: &mut World, me: &HostId, of: &CoreJob) {
        let HostAction::Accept { epoch, .. } = of.action else { return };
        world.machine_mut(me).permits.insert(of.instance, epoch);
        if world.weakness == Some(Weakness::EagerDestination) {
            self.steps.eager.push(of.clone());
        }
    }

    /// With the protection switched off, whoever permits it also lets it run once all of it is here.
    fn land_early(&mut self, world: &mut World, me: &HostId) {
        for of in std::mem::take(&mut self.steps.eager) {
            if presence(world, me, of.instance) == Presence::Paused {
                self.land(world, me, &of);
            } else {
                self.steps.eager.push(of);
            }
        }
    }

    fn land(&mut self, world: &mut World, me: &HostId, of: &CoreJob) -> MigrationAnswer {
        let HostAction::Accept { epoch, .. } = of.action else { return MigrationAnswer::Done };
        let domain = world.machine(me).domains.get(&of.instance);
        let Some((life, memory, address)) = domain.map(|domain| (domain.life, domain.memory, domain.address))
        else {
            return failed("it is not here");
        };
        if !register(world, me, of.session, of.instance, (life, epoch)) {
            return failed("the guard does not acknowledge it");
        }
        world.machine_mut(me).permits.remove(&of.instance);
        self.watch(of.instance, life);
        world.resume(me, of.instance);
        MigrationAnswer::Landed(Some(Landed { memory, vcpus: Vcpus(1), address }))
    }
}

fn failed(why: &str) -> MigrationAnswer {
    MigrationAnswer::Failed(why.to_owned())
}

fn presence(world: &World, me: &HostId, instance: InstanceId) -> Presence {
    match world.machine(me).domains.get(&instance).map(|domain| domain.stage) {
        None => Presence::Gone,
        Some(Stage::Incoming) => Presence::Held,
        Some(Stage::Paused) => Presence::Paused,
        Some(Stage::Running | Stage::Booting { .. }) => Presence::Running,
    }
}

fn transfer(world: &mut World, me: &HostId, step: &mut Step) -> Option<MigrationAnswer> {
    let HostAction::MigrateOut { to, epoch, .. } = &step.of.action else {
        return Some(MigrationAnswer::Done);
    };
    let instance = step.of.instance;
    let here = |world: &World| world.machine(me).domains.contains_key(&instance);
    let Some(transfer) = step.transfer.or_else(|| world.transfer_of(me, instance)) else {
        if !here(world) {
            return Some(failed("there is no such instance"));
        }
        step.transfer = world.start_transfer(me, to, instance, *epoch);
        let gives_up = step.transfer.is_none() && world.now > step.patience;
        return gives_up.then(|| MigrationAnswer::Stayed(format!("{to} does not permit it")));
    };
    step.transfer = Some(transfer);
    match world.transfer_state(transfer) {
        TransferState::Running => None,
        // What became of it is not known here: the next try finds out.
        TransferState::Moved | TransferState::Stayed(_) if step.fails => {
            Some(failed("the connection to libvirtd broke"))
        }
        TransferState::Moved => Some(MigrationAnswer::Moved),
        TransferState::Stayed(why) if here(world) => Some(MigrationAnswer::Stayed(why)),
        TransferState::Stayed(why) => Some(failed(&format!("neither side has it: {why}"))),
    }
}
