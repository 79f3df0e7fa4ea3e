//! Owns the model of the daemon's jobs: each action of core, with the time that it takes and the ways in which it fails.
//!
//! Promises: the rules of `agent/core/DESIGN.md` that a job must keep are kept here. Must not do: change what the agent
//! knows; the outcome does.

pub(super) mod moving;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use understudy_core::host::{HostAction, Input, Job as CoreJob, Outcome, Saved, SendWindows};
use understudy_core::ids::{Epoch, HostId, InstanceId, NodeId};
use understudy_core::records::{CheckpointId, Origin, WindowsSent};
use understudy_core::units::MiB;
use understudy_core::view::View;

use super::Agent;
use super::copies::BYTES;
use crate::Weakness;
use crate::machine::{Domain, Image, Stage};
use crate::world::World;

/// Of restores that fail, how many find their image damaged; the others are tried again.
const DAMAGED_PERMILLE: u64 = 500;
/// The address of what is restored: it stands in the image, and nothing here connects to it.
const RESTORED: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
/// How long a source waits for the destination's permit.
const PERMIT_MS: u64 = 10_000;
/// One action under way.
#[derive(Debug)]
pub(super) struct Job {
    id: u64,
    pub(super) of: CoreJob,
    /// When it is looked at next.
    until: u64,
    fails: bool,
    image: Option<Image>,
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
        let mut job = Self { id, fails: world.work_fails(), of, until, image: None };
        job.begin(world, me, agent);
        job
    }

    fn begin(&mut self, world: &mut World, me: &HostId, agent: &mut Agent) {
        let instance = self.of.instance;
        match &self.of.action {
            HostAction::CreateIdle(pool) => agent.make(world, me, &self.of, pool.memory),
            HostAction::Create { memory, .. } => agent.make(world, me, &self.of, *memory),
            HostAction::Missing { .. } => drop(world.machine_mut(me).permits.remove(&instance)),
            HostAction::Checkpoint { epoch, .. } => {
                let domain = world.machine(me).domains.get(&instance);
                let id = CheckpointId { epoch: *epoch, sequence: self.of.sequence.unwrap_or(1) };
                self.image = domain
                    .filter(|domain| domain.stage == Stage::Running && domain.deployed)
                    .map(|domain| Image { id, generation: domain.generation, counter: domain.counter });
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
            | HostAction::DropImages { .. } => {}
        }
    }
}

impl Agent {
    /// A domain that begins to boot.
    fn make(&mut self, world: &mut World, me: &HostId, of: &CoreJob, memory: MiB) {
        let domain = Domain {
            life: world.next_life(),
            node: None,
            memory,
            stage: Stage::Booting { until: world.now + world.duration(500, 3_000) },
            deployed: false,
            acts: false,
            token: String::new(),
            generation: 0,
            counter: 0,
            admitted: BTreeMap::new(),
            windows: None,
            address: of.address,
        };
        self.watched.insert(of.instance, domain.life);
        world.machine_mut(me).domains.insert(of.instance, domain);
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
        if world.lacks_libvirtd(me) {
            return without_libvirtd(world, me, job);
        }
        match &job.of.action {
            HostAction::CreateIdle(_) | HostAction::Create { .. } => self.booted(world, me, job),
            HostAction::Guard { epoch, .. } => Some(guard(world, me, &job.of, *epoch)),
            HostAction::Deploy { node, .. } => {
                Some(self.deploy(world, me, instance, node.clone(), job.fails))
            }
            HostAction::Admit { node, begun, .. } => {
                let domain = world.machine_mut(me).domains.get_mut(&instance);
                let Some(domain) = domain.filter(|domain| domain.deployed && domain.stage == Stage::Running)
                else {
                    return Some(again("its intake does not answer"));
                };
                let admitted = domain.admitted.entry(node.clone()).or_default();
                if *begun < *admitted {
                    return Some(again("a newer epoch is let in"));
                }
                *admitted = *begun;
                Some(Outcome::Done)
            }
            HostAction::SendWindows(send) => Some(send_windows(world, me, &send.clone())),
            HostAction::Restore { .. } => Some(self.restore(world, me, job)),
            HostAction::Resume { .. } => Some(self.resume(world, me, job)),
            HostAction::Checkpoint { .. } => Some(self.checkpoint(world, me, job)),
            HostAction::Destroy { .. } | HostAction::Missing { .. } => {
                let ended = remove(world, me, instance) || world.weakness == Some(Weakness::TrustsEnds);
                Some(if ended { Outcome::Done } else { again("libvirtd does not end it") })
            }
            // Taken step by step, or nothing that a job does.
            HostAction::MigrateOut { .. }
            | HostAction::Accept { .. }
            | HostAction::Forget { .. }
            | HostAction::DropImages { .. } => Some(Outcome::Done),
        }
    }

    fn booted(&mut self, world: &mut World, me: &HostId, job: &mut Job) -> Option<Outcome> {
        match world.machine(me).domains.get(&job.of.instance).map(|domain| domain.stage) {
            None => Some(Outcome::Died("qemu ended while the guest booted".to_owned())),
            Some(Stage::Booting { .. }) => {
                job.until += 50;
                None
            }
            Some(_) if job.fails => {
                Some(self.failed(world, me, job.of.instance, "the guest's agent does not answer"))
            }
            Some(_) => Some(Outcome::Done),
        }
    }

    /// What a job could not bring up is ended.
    fn failed(&mut self, world: &mut World, me: &HostId, instance: InstanceId, why: &str) -> Outcome {
        if !remove(world, me, instance) {
            return Outcome::Unsure(why.to_owned());
        }
        self.watched.remove(&instance);
        Outcome::Died(why.to_owned())
    }

    /// Nothing of a restore may stay that did not come to its end.
    fn try_again(&mut self, world: &mut World, me: &HostId, instance: InstanceId, why: &str) -> Outcome {
        match self.failed(world, me, instance, why) {
            Outcome::Died(why) => Outcome::Failed(why),
            unsure => unsure,
        }
    }

    fn deploy(
        &mut self,
        world: &mut World,
        me: &HostId,
        instance: InstanceId,
        node: NodeId,
        fails: bool,
    ) -> Outcome {
        let generation = world.next_life();
        let token = self.token(&node);
        let known = self.mirror.as_ref().and_then(|mirror| mirror.view().nodes.get(&node));
        let primary = known.and_then(|known| known.value.primary.as_ref());
        let acts = primary.is_some_and(|primary| &primary.host == me && primary.instance == Some(instance));
        if fails {
            return self.failed(world, me, instance, "no role disk");
        }
        let Some(domain) = world.machine_mut(me).domains.get_mut(&instance) else {
            return Outcome::Died("qemu ended".to_owned());
        };
        if !domain.deployed {
            domain.deployed = true;
            domain.generation = generation;
        }
        domain.acts |= acts;
        domain.token = token;
        domain.node = Some(node);
        Outcome::Done
    }

    fn restore(&mut self, world: &mut World, me: &HostId, job: &Job) -> Outcome {
        let HostAction::Restore { node, checkpoint, .. } = &job.of.action else { return Outcome::Done };
        let instance = job.of.instance;
        let images = world.machine(me).images.get(node);
        let image = images.and_then(|images| images.iter().find(|image| image.id == *checkpoint)).cloned();
        let Some(image) = image else {
            return Outcome::Damaged(format!("checkpoint {checkpoint} is not here"));
        };
        if job.fails {
            let damaged = world.rng.chance(DAMAGED_PERMILLE);
            return if damaged {
                Outcome::Damaged("the image is damaged".to_owned())
            } else {
                again("libvirtd does not answer")
            };
        }
        if world.machine(me).domains.contains_key(&instance) {
            return self.try_again(world, me, instance, "something of it is here already");
        }
        let domain = Domain {
            life: world.next_life(),
            node: Some(node.clone()),
            memory: job.of.memory.unwrap_or_default(),
            stage: Stage::Paused,
            deployed: true,
            acts: true,
            token: self.token(node),
            generation: image.generation,
            counter: image.counter,
            admitted: BTreeMap::new(),
            windows: None,
            address: Some(RESTORED),
        };
        let life = domain.life;
        self.watch(instance, life);
        world.machine_mut(me).domains.insert(instance, domain);
        self.outlive(world, me, job, (life, image.generation));
        Outcome::Loaded { address: Some(RESTORED) }
    }

    /// With the protection switched off, a job lets run what it made although its session is over.
    fn outlive(&self, world: &mut World, me: &HostId, job: &Job, (life, generation): (u64, u64)) {
        let HostAction::Restore { node, epoch, .. } = &job.of.action else { return };
        let over = job.of.session != self.number && world.weakness == Some(Weakness::JobsOutliveSessions);
        if over && register(world, me, job.of.session, job.of.instance, (life, *epoch)) {
            world.resume(me, job.of.instance);
            world.restored(node, me, self.restored_from(node), generation);
        }
    }

    fn resume(&mut self, world: &mut World, me: &HostId, job: &Job) -> Outcome {
        let HostAction::Resume { node, epoch, .. } = &job.of.action else { return Outcome::Done };
        let instance = job.of.instance;
        let paused = world.machine(me).domains.get(&instance).filter(|domain| domain.stage == Stage::Paused);
        let Some((life, generation)) = paused.map(|domain| (domain.life, domain.generation)) else {
            return self.try_again(world, me, instance, "it is not here");
        };
        if job.fails || !register(world, me, job.of.session, instance, (life, *epoch)) {
            return self.try_again(world, me, instance, "the guard did not acknowledge it");
        }
        world.resume(me, instance);
        world.restored(node, me, self.restored_from(node), generation);
        Outcome::Done
    }

    /// The checkpoint that a node's record has its primary restored from, for the story.
    fn restored_from(&self, node: &NodeId) -> Option<CheckpointId> {
        let known = self.mirror.as_ref()?.view().nodes.get(node)?;
        match known.value.primary.as_ref()?.origin {
            Origin::Restored(id) => Some(id),
            Origin::Idle | Origin::Created | Origin::Promoted | Origin::Migrated | Origin::Held => None,
        }
    }

    /// The secret of a node, as far as this agent knows.
    fn token(&self, node: &NodeId) -> String {
        let known = self.mirror.as_ref().and_then(|mirror| mirror.view().nodes.get(node));
        known.map(|known| known.value.token.clone()).unwrap_or_default()
    }

    /// What it has read of the store, and which checkpoint of a node that names here.
    pub(crate) fn told_of(&self, node: &NodeId, me: &HostId) -> Option<(&View, Option<CheckpointId>)> {
        let view = self.mirror.as_ref()?.view();
        let named = view.checkpoints.get(node).and_then(|known| known.value.on(me)).map(|copy| copy.id);
        Some((view, named))
    }

    fn checkpoint(&mut self, world: &World, me: &HostId, job: &mut Job) -> Outcome {
        let HostAction::Checkpoint { node, .. } = &job.of.action else { return Outcome::Done };
        let Some(image) = job.image.take() else { return again("it does not run") };
        self.copies.keep(node.clone(), image);
        Outcome::Saved(Saved { taken: world.machine(me).wall(world.now), pause_ms: 5, bytes: BYTES })
    }
}

/// What was half made cannot be ended either. The guard needs no libvirtd.
fn without_libvirtd(world: &mut World, me: &HostId, job: &mut Job) -> Option<Outcome> {
    let why = "libvirtd does not answer".to_owned();
    match &job.of.action {
        HostAction::CreateIdle(_) | HostAction::Create { .. } | HostAction::Deploy { .. } => {
            Some(Outcome::Unsure(why))
        }
        HostAction::Guard { epoch, .. } => Some(guard(world, me, &job.of, *epoch)),
        HostAction::Restore { .. } | HostAction::Resume { .. }
            if world.machine(me).domains.contains_key(&job.of.instance) =>
        {
            Some(Outcome::Unsure(why))
        }
        // A process is killed without it; that none is there is for libvirtd to say.
        HostAction::Destroy { .. } if world.machine(me).domains.contains_key(&job.of.instance) => {
            let killed = remove(world, me, job.of.instance);
            Some(if killed { Outcome::Done } else { Outcome::Failed(why) })
        }
        HostAction::Restore { .. }
        | HostAction::Resume { .. }
        | HostAction::Admit { .. }
        | HostAction::SendWindows(_)
        | HostAction::Checkpoint { .. }
        | HostAction::Destroy { .. }
        | HostAction::Missing { .. }
        | HostAction::MigrateOut { .. }
        | HostAction::Accept { .. }
        | HostAction::Forget { .. }
        | HostAction::DropImages { .. } => Some(Outcome::Failed(why)),
    }
}

fn again(why: &str) -> Outcome {
    Outcome::Failed(why.to_owned())
}

/// Ends a domain, unless libvirtd does not; whether it is gone.
fn remove(world: &mut World, me: &HostId, instance: InstanceId) -> bool {
    let (holds, domains) = (world.holds(me), &mut world.machine_mut(me).domains);
    if holds && domains.contains_key(&instance) {
        return false;
    }
    domains.remove(&instance);
    true
}

/// Has the guard acknowledge what runs under this id, if anything does.
fn guard(world: &mut World, me: &HostId, of: &CoreJob, epoch: Epoch) -> Outcome {
    let life = world.machine(me).domains.get(&of.instance).map(|domain| domain.life);
    let held = life.is_some_and(|life| register(world, me, of.session, of.instance, (life, epoch)));
    if held { Outcome::Guarded(epoch) } else { again("the guard does not acknowledge it") }
}

/// Asks the guard to take a process under its eyes, on behalf of the session that the job belongs to.
fn register(
    world: &mut World,
    me: &HostId,
    session: u64,
    instance: InstanceId,
    process: (u64, Epoch),
) -> bool {
    let now = world.now;
    let session = (world.weakness != Some(Weakness::JobsOutliveSessions)).then_some(session);
    let machine = world.machine_mut(me);
    let clock = machine.boottime(now);
    now >= machine.guard_deaf_until && machine.guard.register(instance, process, session, clock)
}

fn send_windows(world: &mut World, me: &HostId, send: &SendWindows) -> Outcome {
    let at = world.machine(me).wall(world.now);
    let Some(life) = world.intake(me, send) else { return again("the display does not take them") };
    let domain = world.machine_mut(me).domains.get_mut(&send.instance);
    let Some(domain) = domain.filter(|domain| domain.deployed && domain.stage == Stage::Running) else {
        return again("the sender does not run");
    };
    domain.windows = Some((life, send.begun));
    world.note(format!("windows of {} are sent, epoch {}", send.node, send.begun));
    let SendWindows { display, display_begun, begun, .. } = *send;
    Outcome::WindowsSent(WindowsSent { display, display_begun, begun, at })
}
