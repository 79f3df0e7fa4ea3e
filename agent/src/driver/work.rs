//! Owns the bookkeeping of jobs: starts what core asks for.
//!
//! Promises: one job per instance and lane; a failed job is tried again after a growing while. Must not do: the work
//! itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use understudy_core::death::Death;
use understudy_core::host::{HostAction, Lane, Local, Situation, converge, forsaken};
use understudy_core::ids::{Epoch, InstanceId, NodeId};
use understudy_core::records::{InstanceFact, Phase};
use understudy_core::units::{Boottime, MiB, Now, Vcpus};
use understudy_core::view::View;
use uuid::Uuid;

use super::jobs::Job;
use super::{Busy, Driver, jobs, now};

/// First and longest wait before a failed job is tried again.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Before another idle instance is tried after one could not be made.
pub(super) const FILL_RETRY: Duration = Duration::from_secs(15);

impl Driver {
    pub(super) fn work(&mut self, view: &View, now: Now) {
        let busy: BTreeSet<(InstanceId, Lane)> = self
            .busy
            .iter()
            .filter(|(_, busy)| match busy {
                Busy::Running => true,
                Busy::Waiting { until, .. } => *until > now.boottime,
            })
            .map(|(&lane, _)| lane)
            .chain(self.ending.keys().map(|&instance| (instance, Lane::Domain)))
            .collect();
        let me = &self.parts.config.host;
        let situation = Situation {
            me,
            session: self.lease.is_open(now.boottime).then_some(self.session_number),
            draining: view.hosts.get(me).is_some_and(|host| host.intent.drain),
            nodes: &view.nodes,
            hosts: &view.hosts,
            checkpoints: &view.checkpoints,
            unreadable: self.cluster.hides_names(),
            local: &self.local,
            busy: &busy,
            images: &self.images,
            taken: &self.taken,
            checkpoint_interval: self.parts.config.bounds.checkpoint_interval,
            pool: self.parts.config.pool,
            filling: self.filling || self.fill_after > now.boottime,
            free: self.free_memory(view),
            now,
            windows_first: self.parts.config.bounds.windows_first,
        };
        let (actions, forsaken) = (converge(&situation), forsaken(&situation));
        for action in actions {
            self.start(action, view);
        }
        for instance in forsaken {
            if matches!(self.busy.get(&(instance, Lane::Domain)), Some(Busy::Running)) {
                self.destroy(instance, "no node names it as a member any more");
            }
        }
        self.force_failovers();
        self.end_what_is_left(now.boottime);
    }

    /// What the host has less what its members, held places and instances take.
    fn free_memory(&self, view: &View) -> MiB {
        let me = &self.parts.config.host;
        let promised: MiB = view
            .nodes
            .values()
            .filter(|node| node.value.touches(me))
            .map(|node| node.value.spec.memory)
            .sum();
        let idle: MiB = self
            .local
            .values()
            .filter(|local| local.fact.node.is_none() && !local.fact.phase.is_dead())
            .map(|local| local.fact.memory)
            .sum();
        self.capacity.unwrap_or_default().memory.saturating_sub(promised + idle)
    }

    /// An operator's failover is a death that this host brings about itself.
    fn force_failovers(&mut self) {
        let me = self.parts.config.host.clone();
        let asked: Vec<InstanceId> = self
            .cluster
            .failovers()
            .filter(|(record, epoch)| record.epoch == *epoch && record.migration.is_none())
            .filter_map(|(record, _)| record.primary.as_ref())
            .filter(|primary| primary.host == me)
            .filter_map(|primary| primary.instance)
            .filter(|instance| self.local.get(instance).is_some_and(|local| !local.fact.phase.is_dead()))
            .collect();
        for instance in asked {
            self.destroy(instance, "an operator asked for a failover");
        }
    }

    fn start(&mut self, action: HostAction, view: &View) {
        match action {
            HostAction::CreateIdle(pool) => self.create_idle(pool.memory, pool.vcpus, view),
            HostAction::Create { ref node, instance, memory, vcpus, .. } => {
                let Some(address) = self.free_address(view) else {
                    let detail = "no address is free".to_owned();
                    self.dead(instance, Some(node.clone()), Death::DeployFailed { detail });
                    return;
                };
                self.fallen.remove(&instance);
                let fact = booting(Some(node.clone()), address, memory, vcpus);
                self.local.insert(instance, Local { fact, paused: false });
                self.spawn(Job { address: Some(address), ..self.job(action, instance) });
            }
            HostAction::Forget { instance } => {
                self.local.remove(&instance);
                self.busy.retain(|(of, _), _| *of != instance);
                self.fallen.remove(&instance);
                self.tell_of_disks();
            }
            HostAction::Destroy { instance, death } => self.end(instance, death),
            HostAction::DropImages { node } => {
                self.images.remove(&node);
                let (images, deleted) = (self.parts.images.clone(), !view.nodes.contains_key(&node));
                self.parts.tasks.block("deletion of images", move || {
                    // The highest epoch of a node that still exists must not be forgotten.
                    let dropped = if deleted { images.forget(&node) } else { images.drop_images(&node) };
                    if let Err(error) = dropped {
                        tracing::warn!(%node, error = %crate::exit::chain(&error), "cannot delete checkpoint images");
                    }
                });
            }
            action => self.start_on(action, view),
        }
    }

    fn start_on(&mut self, action: HostAction, view: &View) {
        let Some((instance, _)) = action.lane() else { return };
        let wall = now().wall;
        match &action {
            HostAction::Deploy { node, .. } => {
                self.change(instance, Phase::Deploying, "its node named it");
                if let Some(local) = self.local.get_mut(&instance) {
                    local.fact.node = Some(node.clone());
                }
            }
            HostAction::Restore { node, epoch, .. } => {
                let record = view.nodes.get(node).map(|known| &known.value.spec);
                let (memory, vcpus) = record.map_or((MiB(0), Vcpus(0)), |spec| (spec.memory, spec.vcpus));
                let fact = InstanceFact {
                    phase: Phase::Restoring,
                    epoch: *epoch,
                    since: wall,
                    ..booting(Some(node.clone()), Ipv4Addr::UNSPECIFIED, memory, vcpus)
                };
                self.fallen.remove(&instance);
                tracing::info!(%instance, %node, to = "restoring", reason = "its node named it", "instance changes");
                self.local
                    .insert(instance, Local { fact: InstanceFact { address: None, ..fact }, paused: true });
            }
            HostAction::MigrateOut { .. } => {
                self.leaving.insert(instance);
            }
            // A guest that stands still sends nothing: windows first, the state a moment later.
            HostAction::Checkpoint { .. } if self.is_sending(instance) => return,
            HostAction::Checkpoint { node, epoch, .. } => {
                self.taken.insert(node.clone(), now().boottime);
                let known = view.checkpoints.get(node).filter(|known| known.value.id.epoch == *epoch);
                let newest = known.map_or(0, |known| known.value.id.sequence);
                let tried =
                    self.sequences.get(node).filter(|(of, _)| of == epoch).map_or(0, |(_, tried)| *tried);
                self.sequences.insert(node.clone(), (*epoch, newest.max(tried) + 1));
            }
            _ => {}
        }
        let known = self.local.get(&instance).map(|local| &local.fact);
        let (address, memory) = (known.and_then(|fact| fact.address), known.map(|fact| fact.memory));
        let sequence = match &action {
            HostAction::Checkpoint { node, .. } => self.sequences.get(node).map(|(_, sequence)| *sequence),
            _ => None,
        };
        self.spawn(Job { address, sequence, memory, ..self.job(action, instance) });
    }

    fn create_idle(&mut self, memory: MiB, vcpus: Vcpus, view: &View) {
        let Some(address) = self.free_address(view) else {
            self.complain(
                "pool",
                "no address is free for another instance: widen network.addresses".to_owned(),
            );
            return;
        };
        let instance = InstanceId::from_uuid(Uuid::new_v4());
        self.filling = true;
        self.local.insert(instance, Local { fact: booting(None, address, memory, vcpus), paused: false });
        let action = HostAction::CreateIdle(understudy_core::host::PoolSettings { idle: 1, memory, vcpus });
        self.spawn(Job { address: Some(address), ..self.job(action, instance) });
    }

    /// An address of this host's range that no instance of any host has.
    fn free_address(&self, view: &View) -> Option<Ipv4Addr> {
        let everywhere = view
            .hosts
            .values()
            .filter_map(|host| host.facts.as_ref())
            .flat_map(|facts| facts.instances.values());
        let taken: BTreeSet<Ipv4Addr> = everywhere
            .chain(self.local.values().map(|local| &local.fact))
            .filter_map(|fact| fact.address)
            .collect();
        self.parts.config.addresses.addresses().find(|address| !taken.contains(address))
    }

    pub(super) fn job(&self, action: HostAction, instance: InstanceId) -> Job {
        let session = self.session_number;
        Job { action, instance, address: None, sequence: None, memory: None, session }
    }

    fn spawn(&mut self, job: Job) {
        if let Some(lane) = job.action.lane() {
            self.busy
                .entry(lane)
                .and_modify(|busy| {
                    if let Busy::Waiting { tries, .. } = *busy {
                        *busy = Busy::Waiting { until: Boottime(u64::MAX), tries };
                    }
                })
                .or_insert(Busy::Running);
        }
        self.launch(job);
    }

    /// Starts a job without taking its lane.
    pub(super) fn launch(&mut self, job: Job) {
        self.begun(&job);
        tracing::debug!(action = ?job.action, "job starts");
        jobs::spawn(self.parts.clone(), self.snapshots.subscribe(), self.sender.clone(), job);
    }

    /// Keeps in mind what a job does beside the state of its instance.
    pub(super) fn begun(&mut self, job: &Job) {
        if job.makes() {
            self.making.insert((job.instance, job.session));
        }
    }

    pub(super) fn is_sending(&self, instance: InstanceId) -> bool {
        match self.busy.get(&(instance, Lane::Windows)) {
            Some(Busy::Running) => true,
            Some(Busy::Waiting { until, .. }) => *until == Boottime(u64::MAX),
            None => false,
        }
    }

    /// While a job makes an instance, its word on the end says more than the end of the process.
    pub(super) fn is_in_the_making(&self, instance: InstanceId) -> bool {
        let running = self.busy.contains_key(&(instance, Lane::Domain));
        let phase = self.local.get(&instance).map(|local| &local.fact.phase);
        running && matches!(phase, Some(Phase::Booting | Phase::Deploying | Phase::Restoring))
    }
}

pub(super) fn booting(node: Option<NodeId>, address: Ipv4Addr, memory: MiB, vcpus: Vcpus) -> InstanceFact {
    InstanceFact {
        phase: Phase::Booting,
        node,
        epoch: Epoch(0),
        address: Some(address).filter(|address| !address.is_unspecified()),
        memory,
        vcpus,
        since: now().wall,
        windows: None,
        admitted: std::collections::BTreeMap::new(),
        migration_failed: None,
    }
}

/// The IPv4 address among what the hypervisor knows.
pub(super) fn ipv4(address: Option<IpAddr>) -> Option<Ipv4Addr> {
    match address {
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(_)) | None => None,
    }
}
