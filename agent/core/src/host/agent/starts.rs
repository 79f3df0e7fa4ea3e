//! Owns the starting of what reconciling asks for: the state that an instance takes with it, its address, its name.
//!
//! Promises: one job per instance and lane; no address is given out that any host reports as taken. Must not do: choose what
//! is to be done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use uuid::Uuid;

use super::{Busy, Condition, Death, Effect, HostAction, HostAgent, Job, Lane, Local, PoolSettings};
use crate::model::ids::{Epoch, InstanceId, NodeId};
use crate::model::records::{InstanceFact, Phase};
use crate::model::units::{MiB, UnixMillis, Vcpus};

impl HostAgent {
    pub(super) fn start(&mut self, action: HostAction) {
        if self.is_too_early(&action) {
            return;
        }
        match action {
            HostAction::CreateIdle(pool) => self.create_idle(pool),
            HostAction::Create { ref node, instance, memory, vcpus, .. } => {
                let Some(address) = self.free_address() else {
                    let detail = "no address is free".to_owned();
                    return self.dead(instance, Some(node.clone()), Death::DeployFailed { detail });
                };
                self.exited.remove(&instance);
                let fact = booting(self.now.wall, Some(node.clone()), Some(address), memory, vcpus);
                self.local.insert(instance, Local::of(fact));
                let job = self.job(action, instance);
                self.spawn(job);
            }
            HostAction::Forget { instance } => {
                // Its node may want it again.
                self.unsettled = true;
                self.local.remove(&instance);
                self.lanes.retain(|(of, _), _| *of != instance);
                self.exited.remove(&instance);
                self.loaded.remove(&instance);
                self.show_disks();
                self.show_restores();
            }
            HostAction::Destroy { instance, death } => self.destroy_as(instance, death),
            HostAction::DropImages { node } => {
                self.images.remove(&node);
                // The highest epoch of a node that still exists must not be forgotten.
                let forget = !self.records.view.nodes.contains_key(&node);
                self.effect(Effect::DropImages { node, forget });
            }
            action => self.start_on(action),
        }
    }

    fn start_on(&mut self, action: HostAction) {
        let Some((instance, _)) = action.lane() else { return };
        match &action {
            HostAction::Deploy { node, epoch, .. } => {
                self.begins(instance, *epoch);
                self.change(instance, Phase::Deploying, "its node named it");
                self.edit(instance, |local| local.fact.node = Some(node.clone()));
            }
            HostAction::Restore { node, epoch, .. } => self.restoring(instance, node, *epoch),
            // A guest that stands still sends nothing: windows first, the state a moment later.
            HostAction::Checkpoint { .. } if self.is_sending(instance) => return,
            HostAction::Checkpoint { .. } => return self.start_checkpoint(action),
            HostAction::Resume { epoch, .. } | HostAction::Accept { epoch, .. } => {
                self.begins(instance, *epoch);
            }
            HostAction::Guard { epoch, .. } if self.is_ready(instance) => self.begins(instance, *epoch),
            HostAction::CreateIdle(_)
            | HostAction::Create { .. }
            | HostAction::Guard { .. }
            | HostAction::Admit { .. }
            | HostAction::SendWindows(_)
            | HostAction::MigrateOut { .. }
            | HostAction::Destroy { .. }
            | HostAction::Forget { .. }
            | HostAction::Missing { .. }
            | HostAction::DropImages { .. } => {}
        }
        let job = self.job(action, instance);
        self.spawn(job);
    }

    fn restoring(&mut self, instance: InstanceId, node: &NodeId, epoch: Epoch) {
        let spec = self.records.view.nodes.get(node).map(|known| &known.value.spec);
        let (memory, vcpus) = spec.map_or((MiB(0), Vcpus(0)), |spec| (spec.memory, spec.vcpus));
        let from = self.local.get(&instance).map(|local| local.fact.phase.clone());
        if from != Some(Phase::Restoring) {
            self.changed(instance, from.as_ref(), &Phase::Restoring, "its node named it");
        }
        let fresh = booting(self.now.wall, Some(node.clone()), None, memory, vcpus);
        let fact = InstanceFact { phase: Phase::Restoring, epoch, ..fresh };
        self.exited.remove(&instance);
        self.loaded.remove(&instance);
        self.local.insert(instance, Local { fact, paused: true, unguarded: false });
    }

    fn is_ready(&self, instance: InstanceId) -> bool {
        self.local.get(&instance).is_some_and(|local| local.fact.phase == Phase::Ready)
    }

    fn is_sending(&self, instance: InstanceId) -> bool {
        matches!(self.lanes.get(&(instance, Lane::Windows)), Some(Busy::Running { .. }))
    }

    fn create_idle(&mut self, pool: PoolSettings) {
        let Some(address) = self.free_address() else {
            let text = "no address is free for another instance: widen network.addresses";
            return self.raise(Condition::Pool, text.to_owned());
        };
        self.named += 1;
        let name = Uuid::new_v5(&self.settings.names, &self.named.to_be_bytes());
        let instance = InstanceId::from_uuid(name);
        self.filling = true;
        let fact = booting(self.now.wall, None, Some(address), pool.memory, pool.vcpus);
        self.local.insert(instance, Local::of(fact));
        let job = self.job(HostAction::CreateIdle(pool), instance);
        self.spawn(job);
    }

    /// An address of this host's range that no instance of any host has.
    fn free_address(&self) -> Option<Ipv4Addr> {
        let reported = self.records.view.hosts.values().filter_map(|host| host.facts.as_ref());
        let reported = reported.flat_map(|facts| facts.instances.values());
        let all = reported.chain(self.local.values().map(|local| &local.fact));
        let ours = |address: &Ipv4Addr| self.settings.addresses.contains(address);
        let taken: BTreeSet<Ipv4Addr> = all.filter_map(|fact| fact.address).filter(ours).collect();
        let (first, last) = (*self.settings.addresses.start(), *self.settings.addresses.end());
        let mut range = (u32::from(first)..=u32::from(last)).map(Ipv4Addr::from);
        range.find(|address| !taken.contains(address))
    }

    pub(super) fn job(&self, action: HostAction, instance: InstanceId) -> Job {
        let known = self.local.get(&instance).map(|local| &local.fact);
        let (address, memory) = (known.and_then(|fact| fact.address), known.map(|fact| fact.memory));
        Job { action, instance, address, sequence: None, memory, lease: self.lease }
    }

    pub(super) fn spawn(&mut self, job: Job) {
        if let Some(lane) = job.action.lane() {
            let tries = match self.lanes.get(&lane) {
                Some(Busy::Running { tries } | Busy::Waiting { tries, .. }) => *tries,
                None => 0,
            };
            self.lanes.insert(lane, Busy::Running { tries });
        }
        if job.makes() {
            self.starting.insert((job.instance, job.lease));
        }
        if matches!(job.action, HostAction::Accept { .. } | HostAction::MigrateOut { .. }) {
            self.begin_migration(job);
        } else {
            self.begin_job(job);
        }
    }

    pub(super) fn begin_job(&mut self, job: Job) {
        if job.acts() {
            self.acting.push((job.instance, job.lease));
        }
        self.effect(Effect::Start(Box::new(job)));
    }
}

/// What is known of an instance that begins.
pub(super) fn booting(
    since: UnixMillis,
    node: Option<NodeId>,
    address: Option<Ipv4Addr>,
    memory: MiB,
    vcpus: Vcpus,
) -> InstanceFact {
    InstanceFact {
        phase: Phase::Booting,
        node,
        epoch: Epoch(0),
        address,
        memory,
        vcpus,
        since,
        windows: None,
        admitted: BTreeMap::new(),
        migration_failed: None,
    }
}
