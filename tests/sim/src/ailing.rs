//! Owns the faults of single parts: instances that resist their end, with operators who ask for failovers meanwhile, a
//! libvirtd that is away, agents of another version, which cannot read the records of some node, and hosts that take no
//! images, stand still in the middle of one, have lost the newest, or have damaged what the next ones add to.
//!
//! Promises: it draws from generators of its own, so that runs without these faults stay as they are. Must not do: lose
//! what it hides; a record that cannot be read is there.

use std::collections::BTreeMap;

use understudy_core::keys::{Key, encode};
use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::records::{Checkpoint, CheckpointId, FailoverRequest, NodeRecord};

use crate::world::World;
use crate::world::traffic::kept;

/// How often each comes, in so many of 100 000 steps.
const HOLD_WEIGHT: u64 = 300;
const LIBVIRTD_WEIGHT: u64 = 400;
const FAILOVER_WEIGHT: u64 = 250;
const FOREIGN_WEIGHT: u64 = 150;
const FULL_WEIGHT: u64 = 120;
const STALL_WEIGHT: u64 = 120;
const DAMAGE_WEIGHT: u64 = 120;
const FALL_BACK_WEIGHT: u64 = 60;
/// Once a node waits for its state: about once in a minute.
const GIVE_UP_WEIGHT: u64 = 40;
/// How long an agent that is replaced by one of another version is away, in milliseconds.
const REPLACED_MS: u64 = 300;

impl World {
    /// What goes wrong in this step.
    pub(crate) fn ail(&mut self) {
        let hosts = self.hosts();
        if self.strikes(HOLD_WEIGHT)
            && let Some(host) = self.ailing_rng.pick(&hosts).cloned()
        {
            let until = self.now + self.ailing_rng.between(1_000, 20_000);
            let machine = self.machine_mut(&host);
            machine.holds_until = until;
            machine.hypervisor.set_all_unkillable(true);
            self.note(format!("libvirtd of {host} destroys nothing"));
        }
        if self.libvirtd_rng.below(100_000) < LIBVIRTD_WEIGHT
            && let Some(host) = self.libvirtd_rng.pick(&hosts).cloned()
        {
            let until = self.now + self.libvirtd_rng.between(500, 25_000);
            let machine = self.machine_mut(&host);
            machine.libvirtd_back = until;
            machine.hypervisor.set_libvirt_up(false);
            self.note(format!("libvirtd of {host} does not answer"));
        }
        if self.strikes(FAILOVER_WEIGHT)
            && let Some(node) = self.some_node()
            && let Some(epoch) = self.record(&node).map(|record| record.epoch)
        {
            self.note(format!("an operator wants a failover of {node}"));
            self.write(Key::Failover(node), Some(encode(&FailoverRequest { epoch })));
        }
        if self.strikes(FOREIGN_WEIGHT)
            && let Some(node) = self.some_node()
            && let Some(host) = self.ailing_rng.pick(&hosts).cloned()
        {
            let until = self.now + self.ailing_rng.between(5_000, 40_000);
            self.note(format!("an agent that cannot read {node} comes to {host}"));
            self.machine_mut(&host).foreign.insert(Key::Node(node).to_string(), until);
            self.crash_agent(&host, self.now + REPLACED_MS);
        }
        if self.strikes(FULL_WEIGHT)
            && let Some(host) = self.ailing_rng.pick(&hosts).cloned()
        {
            let until = self.now + self.ailing_rng.between(1_000, 60_000);
            self.fill_disk(&host, until);
        }
        if self.strikes(STALL_WEIGHT)
            && let Some(host) = self.ailing_rng.pick(&hosts).cloned()
        {
            let until = self.now + self.ailing_rng.between(1_000, 60_000);
            self.stall_images(&host, until);
        }
        if self.pages_rng.below(100_000) < DAMAGE_WEIGHT
            && let Some(host) = self.pages_rng.pick(&hosts).cloned()
        {
            let until = self.now + self.pages_rng.between(1_000, 30_000);
            self.machine_mut(&host).pages_damaged_until = until;
            self.note(format!("what {host} keeps of checkpoints cannot be added to"));
        }
        if self.asks_rng.below(100_000) < FALL_BACK_WEIGHT
            && let Some(host) = self.asks_rng.pick(&hosts).cloned()
        {
            self.fall_back(&host);
        }
        if self.waits_rng.below(100_000) < GIVE_UP_WEIGHT {
            self.give_up_a_state();
        }
        self.update_agents();
    }

    /// Agents that could not read everything are replaced in time.
    pub(crate) fn update_agents(&mut self) {
        for host in self.hosts() {
            if self.is_to_be_updated(&host, self.now) {
                self.update(&host, self.now);
            }
        }
    }

    /// An agent of another version, which cannot read this record.
    pub(crate) fn replace_agent(&mut self, host: &HostId, key: &Key, until: u64) {
        self.note(format!("an agent that cannot read {key} comes to {host}"));
        self.machine_mut(host).foreign.insert(key.to_string(), until);
        self.crash_agent(host, self.now + REPLACED_MS);
    }

    /// Everything ends what it is told to, and every agent reads everything.
    pub(crate) fn recover(&mut self) {
        self.ailing = false;
        for host in self.hosts() {
            let machine = self.machine_mut(&host);
            (machine.holds_until, machine.libvirtd_back) = (0, 0);
            machine.hypervisor.set_all_unkillable(false);
            machine.hypervisor.set_libvirt_up(true);
            (machine.full_until, machine.stalls_until, machine.pages_damaged_until) = (0, 0, 0);
            if self.is_to_be_updated(&host, u64::MAX) {
                self.update(&host, u64::MAX);
            }
        }
    }

    /// An operator does not want to wait for a host any longer.
    fn give_up_a_state(&mut self) {
        let waits = |record: &NodeRecord| record.state_wait.is_some_and(|wait| !wait.given_up);
        let waiting = self.nodes().find(|(_, record)| waits(record));
        let Some((node, mut record)) = waiting.map(|(node, record)| (node.clone(), record.clone())) else {
            return;
        };
        if let Some(wait) = &mut record.state_wait {
            wait.given_up = true;
        }
        self.note(format!("an operator wants {node} to start without waiting for its state"));
        self.write(Key::Node(node), Some(encode(&record)));
    }

    /// Its disk has lost the newest checkpoint of each node of which it has another.
    fn fall_back(&mut self, host: &HostId) {
        let of_one_epoch = |images: &BTreeMap<CheckpointId, Checkpoint>| {
            let mut newest = images.keys().rev();
            newest.next().zip(newest.next()).is_some_and(|(one, other)| one.epoch == other.epoch)
        };
        let all = self.machine_mut(host).images.iter_mut().filter(|(_, images)| of_one_epoch(images));
        let lost: Vec<(NodeId, CheckpointId)> =
            all.filter_map(|(node, images)| Some((node.clone(), images.pop_last()?.0))).collect();
        for (node, id) in lost {
            self.site.remove_image(&kept(host, &node, id));
            self.note(format!("{host} has lost checkpoint {id} of {node}, and has the one before it"));
        }
    }

    pub(crate) fn fill_disk(&mut self, host: &HostId, until: u64) {
        self.machine_mut(host).full_until = until;
        self.note(format!("the disk of {host} takes no images"));
    }

    pub(crate) fn stall_images(&mut self, host: &HostId, until: u64) {
        self.machine_mut(host).stalls_until = until;
        self.note(format!("{host} stands still in the middle of images"));
    }

    fn strikes(&mut self, weight: u64) -> bool {
        self.ailing_rng.below(100_000) < weight
    }

    fn some_node(&mut self) -> Option<NodeId> {
        let nodes: Vec<NodeId> = self.nodes().map(|(node, _)| node.clone()).collect();
        self.ailing_rng.pick(&nodes).cloned()
    }

    fn is_to_be_updated(&self, host: &HostId, until: u64) -> bool {
        self.machine(host).foreign.values().any(|&end| end <= until)
    }

    /// The next agent of the host reads what this one could not.
    fn update(&mut self, host: &HostId, until: u64) {
        self.machine_mut(host).foreign.retain(|_, end| *end > until);
        self.note(format!("a newer agent comes to {host}"));
        self.crash_agent(host, self.now + REPLACED_MS);
    }
}
