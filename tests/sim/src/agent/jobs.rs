//! Owns the model of the daemon's jobs: each action of core, with the time that it takes and the ways in which it fails.
//!
//! Promises: the rules of `agent/core/DESIGN.md` that a job must keep are kept here. Must not do: change what the agent
//! knows; the outcome does.

pub(super) mod moving;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use understudy_core::errors::chain;
use understudy_core::host::{HostAction, Input, Job as CoreJob, Outcome, Saved, SendWindows};
use understudy_core::model::ids::{Epoch, HostId, InstanceId, NodeId};
use understudy_core::model::records::{Checkpoint, CheckpointId, WindowsSent};
use understudy_core::model::units::{MiB, Vcpus};
use understudy_core::model::view::View;
use understudy_hypervisor::fake::{Fault, Operation};
use understudy_hypervisor::{
    CallError, Hypervisor, InstanceSpec, Note, RefusalKind, RestoreError, RestoreSpec,
};

use super::Agent;
use super::copies::BYTES;
use crate::Weakness;
use crate::guest::{command, role_disk};
use crate::world::World;
use crate::world::traffic::{kept, outgoing};

/// Of restores that fail, how many find their image damaged; the others are tried again.
const DAMAGED_PERMILLE: u64 = 500;
/// The address of what is restored: it stands in the image, and nothing here connects to it.
const RESTORED: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
/// How long a guest may take to boot, and how often it is asked whether it has.
const BOOT_MS: u64 = 120_000;
const PING_MS: u64 = 50;
/// No call to the simulated hypervisor takes time.
const PATIENCE: Duration = Duration::from_secs(30);

/// One action under way.
#[derive(Debug)]
pub(super) struct Job {
    id: u64,
    pub(super) of: CoreJob,
    /// When it is looked at next.
    until: u64,
    /// When a boot is given up.
    patience: u64,
    fails: bool,
    /// How that went which it does first, of what takes time afterwards.
    begun: Result<(), String>,
}

impl Job {
    pub(super) fn new(world: &mut World, me: &HostId, agent: &mut Agent, id: u64, of: CoreJob) -> Self {
        let (least, most) = match &of.action {
            HostAction::Create { .. } | HostAction::CreateIdle(_) => (100, 300),
            HostAction::Guard { .. } => (10, 50),
            HostAction::Deploy { .. } => (300, 3_000),
            HostAction::Restore { .. } => (475, 2_475),
            // The other half of a restore, begun at the next step; its thread may be late.
            HostAction::Resume { .. } => (0, 500),
            HostAction::Admit { .. } => (50, 200),
            HostAction::SendWindows(_) => (100, 500),
            HostAction::Checkpoint { .. } => (150, 1_000),
            HostAction::Destroy { .. } => (100, 400),
            HostAction::MigrateOut { .. }
            | HostAction::Accept { .. }
            | HostAction::Forget { .. }
            | HostAction::Missing { .. }
            | HostAction::DropImages { .. } => (0, 0),
        };
        let until = world.now + world.duration(least, most);
        let (patience, fails) = (world.now + BOOT_MS, world.work_fails());
        let begun = begin(world, me, agent, &of);
        Self { id, fails, of, until, patience, begun }
    }
}

fn begin(world: &mut World, me: &HostId, agent: &mut Agent, of: &CoreJob) -> Result<(), String> {
    match &of.action {
        HostAction::CreateIdle(pool) => agent.make(world, me, of, Epoch(0), (pool.memory, pool.vcpus)),
        HostAction::Create { epoch, memory, vcpus, .. } => {
            agent.make(world, me, of, *epoch, (*memory, *vcpus))
        }
        HostAction::Checkpoint { node, epoch, .. } => {
            let path = outgoing(me, node, checkpoint_id(of, *epoch));
            let saved = world.machine(me).hypervisor.save_memory(of.instance, &path, PATIENCE);
            saved.map(drop).map_err(|error| chain(&error))
        }
        HostAction::Guard { .. }
        | HostAction::Deploy { .. }
        | HostAction::Restore { .. }
        | HostAction::Resume { .. }
        | HostAction::Admit { .. }
        | HostAction::SendWindows(_)
        | HostAction::Destroy { .. }
        | HostAction::MigrateOut { .. }
        | HostAction::Accept { .. }
        | HostAction::Forget { .. }
        | HostAction::Missing { .. }
        | HostAction::DropImages { .. } => Ok(()),
    }
}

fn checkpoint_id(of: &CoreJob, epoch: Epoch) -> CheckpointId {
    CheckpointId { epoch, sequence: of.sequence.unwrap_or(1) }
}

impl Agent {
    /// An instance that begins to boot.
    fn make(
        &mut self,
        world: &mut World,
        me: &HostId,
        of: &CoreJob,
        epoch: Epoch,
        (memory, vcpus): (MiB, Vcpus),
    ) -> Result<(), String> {
        let (life, boots) = (world.next_life(), world.duration(500, 3_000));
        let hypervisor = &world.machine(me).hypervisor;
        permit(world, me, of.instance, epoch)?;
        hypervisor.set_boot_time(Duration::from_millis(boots));
        let spec = InstanceSpec {
            id: of.instance,
            name: format!("understudy-{}", of.instance),
            template: world.template.clone(),
            memory,
            vcpus,
            mac: None,
            note: note(epoch, of.address),
        };
        hypervisor.create(&spec).map_err(|error| chain(&error))?;
        hypervisor.change_memory(of.instance, |memory| memory.life = life);
        self.watch(world, me, of.instance);
        Ok(())
    }

    /// What it was doing has as much left to do as before.
    pub(crate) fn stood_still(&mut self, since: u64, lost: u64) {
        self.copies.stood_still(since, lost);
        self.steps.stood_still(since, lost);
        for job in self.jobs.iter_mut().filter(|job| job.until > since) {
            job.until += lost;
        }
    }

    pub(super) fn step_jobs(&mut self, world: &mut World, me: &HostId) {
        let due: Vec<u64> = self.jobs.iter().filter(|job| job.until <= world.now).map(|job| job.id).collect();
        for id in due {
            let Some(at) = self.jobs.iter().position(|job| job.id == id) else { continue };
            let mut job = self.jobs.remove(at);
            match self.step_job(world, me, &mut job) {
                Some(outcome) => {
                    self.dirty = true;
                    self.inform(world, me, Input::Finished { job: Box::new(job.of), outcome });
                }
                None => self.jobs.insert(at, job),
            }
        }
    }

    fn step_job(&mut self, world: &mut World, me: &HostId, job: &mut Job) -> Option<Outcome> {
        let instance = job.of.instance;
        Some(match &job.of.action {
            HostAction::CreateIdle(_) | HostAction::Create { .. } => return self.booted(world, me, job),
            HostAction::Guard { epoch, .. } => self.guard(world, me, &job.of, *epoch),
            HostAction::Deploy { node, .. } => self.deploy(world, me, instance, node, job.fails),
            HostAction::Admit { node, incarnation, .. } => {
                let words = ["admit", &node.to_string(), &incarnation.0.to_string()];
                us(world, me, instance, &words).map_or_else(Outcome::Failed, |()| Outcome::Done)
            }
            HostAction::SendWindows(send) => send_windows(world, me, send),
            HostAction::Restore { .. } => self.restore(world, me, job),
            HostAction::Resume { .. } => self.resume(world, me, job),
            HostAction::Checkpoint { .. } => self.checkpoint(world, me, job),
            HostAction::Destroy { .. } => match destroy(world, me, instance) {
                Err(why) if world.weakness != Some(Weakness::TrustsDestroys) => Outcome::Failed(why),
                Ok(()) | Err(_) => Outcome::Done,
            },
            HostAction::Missing { .. } => match withdraw(world, me, instance) {
                Err(why) if world.weakness != Some(Weakness::TrustsDestroys) => Outcome::Failed(why),
                Ok(()) | Err(_) => Outcome::Done,
            },
            // Taken step by step, or nothing that a job does.
            HostAction::MigrateOut { .. }
            | HostAction::Accept { .. }
            | HostAction::Forget { .. }
            | HostAction::DropImages { .. } => Outcome::Done,
        })
    }

    fn booted(&mut self, world: &mut World, me: &HostId, job: &mut Job) -> Option<Outcome> {
        let instance = job.of.instance;
        let hypervisor = &world.machine(me).hypervisor;
        let why = match std::mem::replace(&mut job.begun, Ok(())) {
            Err(why) => why,
            Ok(()) => match hypervisor.guest_ping(instance, PATIENCE) {
                Ok(()) if job.fails => "the guest's agent does not answer".to_owned(),
                Ok(()) => {
                    hypervisor.revoke(instance);
                    return Some(Outcome::Done);
                }
                Err(_) if hypervisor.process_of(instance).is_none() => {
                    "qemu ended while the guest booted".to_owned()
                }
                Err(error) if job.patience <= world.now => chain(&error),
                Err(_) => {
                    job.until += PING_MS;
                    return None;
                }
            },
        };
        Some(Outcome::Unsure(why))
    }

    fn deploy(
        &mut self,
        world: &mut World,
        me: &HostId,
        instance: InstanceId,
        node: &NodeId,
        fails: bool,
    ) -> Outcome {
        let generation = world.next_life();
        let known = self.cache.as_ref().and_then(|cache| cache.view().nodes.get(node));
        let primary = known.and_then(|known| known.value.primary.as_ref());
        let acts = primary.is_some_and(|primary| &primary.host == me && primary.instance == Some(instance));
        let token = known.map(|known| known.value.token.clone()).unwrap_or_default();
        let hypervisor = &world.machine(me).hypervisor;
        let attached = hypervisor.attach_role_disk(instance, role_disk(!fails));
        let words = ["deploy", &node.to_string(), &token, &generation.to_string()];
        let deployed = attached.map_err(|error| chain(&error)).and_then(|()| us(world, me, instance, &words));
        if let Err(why) = deployed {
            return Outcome::Unsure(why);
        }
        hypervisor.change_memory(instance, |memory| memory.acts |= acts);
        Outcome::Done
    }

    fn restore(&mut self, world: &mut World, me: &HostId, job: &Job) -> Outcome {
        let HostAction::Restore { node, epoch, checkpoint, .. } = &job.of.action else {
            return Outcome::Done;
        };
        let (instance, path) = (job.of.instance, kept(me, node, *checkpoint));
        let images = world.machine(me).images.get(node);
        if !images.is_some_and(|images| images.contains_key(checkpoint)) {
            return Outcome::Damaged(format!("checkpoint {checkpoint} is not here"));
        }
        let (damaged, life) = (job.fails && world.rng.chance(DAMAGED_PERMILLE), world.next_life());
        let hypervisor = world.machine(me).hypervisor.clone();
        if damaged {
            world.site.damage_image(&path);
        } else if job.fails && !world.lacks_libvirtd(me) {
            hypervisor.inject(Operation::Restore, Fault::LostRequest);
        }
        if let Err(why) = permit(world, me, instance, *epoch) {
            return Outcome::Failed(why);
        }
        let spec = RestoreSpec {
            image: path,
            id: instance,
            template: world.template.clone(),
            role_disk: None,
            note: note(*epoch, Some(RESTORED)),
        };
        match hypervisor.restore(&spec) {
            Ok(_) => {}
            // There is nothing of this try, and without libvirtd that could not be proven.
            Err(error @ RestoreError::Restore { source: CallError::Down { .. }, .. }) => {
                hypervisor.revoke(instance);
                return Outcome::Failed(chain(&error));
            }
            // Another runs here, and it is not this try's to end.
            Err(error @ RestoreError::AlreadyHere(_)) => return Outcome::Unsure(chain(&error)),
            Err(error) => {
                let withdrawn = withdraw(world, me, instance);
                return withdrawn.map_or_else(Outcome::Unsure, |()| not_restored(&error));
            }
        }
        // What it was connected to when it was saved it is not any more.
        hypervisor.change_memory(instance, |memory| {
            (memory.life, memory.acts, memory.windows) = (life, true, None);
            memory.admitted.clear();
        });
        self.watch(world, me, instance);
        world.run_restored(me, instance);
        Outcome::Loaded { address: Some(RESTORED) }
    }

    fn resume(&mut self, world: &mut World, me: &HostId, job: &Job) -> Outcome {
        let HostAction::Resume { node, epoch, .. } = &job.of.action else { return Outcome::Done };
        let instance = job.of.instance;
        let registered = if job.fails {
            Err("the guard did not acknowledge it".to_owned())
        } else {
            self.register(world, me, &job.of, *epoch)
        };
        let hypervisor = &world.machine(me).hypervisor;
        let woken = registered.and_then(|()| {
            let linked = hypervisor.set_link(instance, true);
            linked.and_then(|()| hypervisor.resume(instance)).map_err(|error| chain(&error))
        });
        if let Err(why) = woken {
            return Outcome::Unsure(why);
        }
        let generation = hypervisor.look(instance, |instance| instance.memory().generation);
        world.restored(node, me, self.restored_from(node), generation.unwrap_or_default());
        Outcome::Done
    }

    /// The checkpoint that a node's record has its primary restored from, for the story.
    fn restored_from(&self, node: &NodeId) -> Option<CheckpointId> {
        let known = self.cache.as_ref()?.view().nodes.get(node)?;
        known.value.primary.as_ref()?.origin.restored()
    }

    /// What it has read of the store, and which checkpoint of a node is being restored here.
    pub(crate) fn read_of(&self, node: &NodeId, me: &HostId) -> Option<(&View, Option<CheckpointId>)> {
        let view = self.cache.as_ref()?.view();
        let primary = view.nodes.get(node).and_then(|known| known.value.primary.as_ref());
        let here = primary.filter(|primary| &primary.host == me);
        Some((view, here.and_then(|primary| primary.origin.restored())))
    }

    fn checkpoint(&mut self, world: &World, me: &HostId, job: &mut Job) -> Outcome {
        let HostAction::Checkpoint { node, epoch, .. } = &job.of.action else { return Outcome::Done };
        if let Err(why) = std::mem::replace(&mut job.begun, Ok(())) {
            return Outcome::Failed(why);
        }
        let (id, taken) = (checkpoint_id(&job.of, *epoch), world.machine(me).wall(world.now));
        let what = Checkpoint { id, taken, instance: job.of.instance, pause_ms: 5 };
        self.copies.keep(node.clone(), what);
        Outcome::Saved(Saved { taken, pause_ms: 5, bytes: BYTES })
    }
}

/// What is wrong with the image stays wrong; whether a refusal says that is for core to judge.
fn not_restored(error: &RestoreError) -> Outcome {
    let reason = chain(error);
    match error {
        RestoreError::Damaged { .. } | RestoreError::OtherInstance { .. } | RestoreError::Describe(_) => {
            Outcome::Damaged(reason)
        }
        RestoreError::Restore { source, .. } if source.refused() == Some(RefusalKind::Other) => {
            Outcome::Refused(reason)
        }
        RestoreError::Restore { .. }
        | RestoreError::Image { .. }
        | RestoreError::AlreadyHere(_)
        | RestoreError::NotPermitted { .. }
        | RestoreError::Look { .. } => Outcome::Failed(reason),
    }
}

fn note(epoch: Epoch, address: Option<Ipv4Addr>) -> Note {
    Note { epoch, address: address.map(Into::into) }
}

/// An address as agents note it.
pub(super) fn ipv4(address: Option<IpAddr>) -> Option<Ipv4Addr> {
    match address {
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(_)) | None => None,
    }
}

/// The permit first: nothing may come in after what is here was ended.
fn withdraw(world: &World, me: &HostId, instance: InstanceId) -> Result<(), String> {
    writes_permits(world, me)?;
    destroy(world, me, instance)
}

/// A permit that cannot be taken back lapses by itself.
fn destroy(world: &World, me: &HostId, instance: InstanceId) -> Result<(), String> {
    let hypervisor = &world.machine(me).hypervisor;
    if writes_permits(world, me).is_ok() {
        hypervisor.revoke(instance);
    }
    hypervisor.destroy(instance).map_err(|error| chain(&error))
}

/// Lets an instance come to life here once.
fn permit(world: &World, me: &HostId, instance: InstanceId, epoch: Epoch) -> Result<(), String> {
    writes_permits(world, me)?;
    world.machine(me).hypervisor.permit(instance, epoch);
    Ok(())
}

fn writes_permits(world: &World, me: &HostId) -> Result<(), String> {
    let fails = world.machine(me).permits_fail_until > world.now;
    if fails { Err("cannot keep permits: read-only file system".to_owned()) } else { Ok(()) }
}

/// Runs the guest's command.
fn us(world: &World, me: &HostId, instance: InstanceId, words: &[&str]) -> Result<(), String> {
    let output = world.machine(me).hypervisor.guest_exec(instance, &command(words));
    match output.map_err(|error| chain(&error))?.exit {
        0 => Ok(()),
        exit => Err(format!("'us {}' ended with {exit}", words.join(" "))),
    }
}

impl Agent {
    /// Has the guard acknowledge what runs under this id, then notes the epoch on it.
    fn guard(&mut self, world: &mut World, me: &HostId, of: &CoreJob, epoch: Epoch) -> Outcome {
        if let Err(why) = self.register(world, me, of, epoch) {
            return Outcome::Failed(why);
        }
        // The note is for people and for the hook; the guard's word is what counts.
        let _ = world.machine(me).hypervisor.set_note(of.instance, &note(epoch, of.address));
        Outcome::Guarded(epoch)
    }

    /// Asks the guard to take a process under its eyes, on behalf of the lease that the job belongs to.
    pub(super) fn register(
        &mut self,
        world: &mut World,
        me: &HostId,
        of: &CoreJob,
        epoch: Epoch,
    ) -> Result<(), String> {
        let now = world.now;
        let machine = world.machine_mut(me);
        let process = machine.hypervisor.process_of(of.instance).ok_or("no process runs the instance")?;
        // Held before it may run: what is not held is not killed when the lease is lost.
        self.members.insert(of.instance, process);
        let clock = machine.boottime(now);
        let held = !machine.lacks_guard(now)
            && machine.guard.register(of.instance, (process, epoch), of.lease, clock);
        held.then_some(()).ok_or_else(|| "the guard does not acknowledge it".to_owned())
    }
}

fn send_windows(world: &mut World, me: &HostId, send: &SendWindows) -> Outcome {
    let at = world.machine(me).wall(world.now);
    let Some(life) = world.intake(me, send) else {
        return Outcome::Failed("the display does not take them".to_owned());
    };
    let words = ["sent", &life.to_string(), &send.incarnation.0.to_string()];
    if let Err(why) = us(world, me, send.instance, &words) {
        return Outcome::Failed(why);
    }
    world.note(format!("windows of {} are sent, epoch {}", send.node, send.incarnation));
    let SendWindows { display, display_incarnation, incarnation, .. } = *send;
    Outcome::WindowsSent(WindowsSent { display, display_incarnation, incarnation, at })
}
