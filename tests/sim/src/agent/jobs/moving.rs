//! Owns both ends of a live migration: what the source makes of its end, and the destination's looks and deeds.
//!
//! Promises: when what has come may run is asked of core. Must not do: decide it.

use understudy_core::host::{ArrivalStep, Come, HostAction, Outcome};
use understudy_core::ids::{Epoch, HostId, InstanceId};
use understudy_core::units::Vcpus;

use super::{Job, again, register, remove};
use crate::Weakness;
use crate::agent::Agent;
use crate::machine::Stage;
use crate::world::{TransferState, World};

impl Agent {
    pub(super) fn accept(&mut self, world: &mut World, me: &HostId, job: &mut Job) -> Option<Outcome> {
        let HostAction::Accept { epoch, .. } = job.of.action else { return Some(Outcome::Done) };
        let instance = job.of.instance;
        job.until = world.now + 50;
        let view = self.view();
        let here = world.machine(me).domains.get(&instance).map(|domain| (domain.stage, domain.life));
        let come = match here {
            None => Come::Nothing,
            Some((Stage::Incoming, _)) => Come::Part,
            Some((Stage::Paused | Stage::Running | Stage::Booting { .. }, _)) => Come::Whole,
        };
        let come = job.arrival.as_ref().filter(|arrival| arrival.needs_a_look(&view)).map(|_| come);
        let clock = world.machine(me).boottime(world.now);
        let step = job.arrival.as_mut()?.step(&view, come, clock);
        let eager = world.weakness == Some(Weakness::EagerDestination);
        match (step, here) {
            (ArrivalStep::Withdraw, _) => self.withdraws(world, me, instance).then_some(Outcome::Done),
            (ArrivalStep::Land, Some((_, life))) => Some(self.land(world, me, job, (life, epoch))),
            (ArrivalStep::Wait, Some((Stage::Paused, life))) if eager => {
                Some(self.land(world, me, job, (life, epoch)))
            }
            (ArrivalStep::Lost, _) => self
                .withdraws(world, me, instance)
                .then_some(Outcome::Died("it left its source and did not arrive".to_owned())),
            (ArrivalStep::Wait | ArrivalStep::Land, _) => None,
        }
    }

    /// The permit first, then what is here; whether it is gone.
    fn withdraws(&mut self, world: &mut World, me: &HostId, instance: InstanceId) -> bool {
        world.machine_mut(me).permits.remove(&instance);
        remove(world, me, instance)
    }

    fn land(&mut self, world: &mut World, me: &HostId, job: &Job, (life, epoch): (u64, Epoch)) -> Outcome {
        let instance = job.of.instance;
        if !register(world, me, job.of.session, instance, (life, epoch)) {
            return again("the guard does not acknowledge it");
        }
        let machine = world.machine_mut(me);
        machine.permits.remove(&instance);
        let came = machine.domains.get(&instance).map(|domain| (domain.memory, domain.address));
        let (memory, address) = came.unwrap_or_default();
        self.watch(instance, life);
        world.resume(me, instance);
        Outcome::Arrived { memory, vcpus: Vcpus(1), address }
    }
}

pub(super) fn migrate_out(world: &mut World, me: &HostId, job: &mut Job) -> Option<Outcome> {
    let HostAction::MigrateOut { to, epoch, .. } = &job.of.action else { return Some(Outcome::Done) };
    let (to, epoch, instance) = (to.clone(), *epoch, job.of.instance);
    let Some(transfer) = job.transfer.or_else(|| world.transfer_of(me, instance)) else {
        if !world.machine(me).domains.contains_key(&instance) {
            return Some(Outcome::Gone);
        }
        job.transfer = world.start_transfer(me, &to, instance, epoch);
        if job.transfer.is_none() && world.now > job.patience {
            return Some(Outcome::Stayed(format!("{to} does not permit it")));
        }
        return None;
    };
    job.transfer = Some(transfer);
    match world.transfer_state(transfer) {
        TransferState::Running => None,
        // What became of it is not known here: the next try finds out.
        TransferState::Moved | TransferState::Stayed(_) if job.fails => {
            Some(again("the connection to libvirtd broke"))
        }
        TransferState::Moved => Some(Outcome::Moved),
        TransferState::Stayed(why) if world.machine(me).domains.contains_key(&instance) => {
            Some(Outcome::Stayed(why))
        }
        TransferState::Stayed(why) => Some(Outcome::Died(why)),
    }
}
