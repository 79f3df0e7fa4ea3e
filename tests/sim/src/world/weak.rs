//! Owns the protections of store and hypervisor that can be switched off: a store that does not compare, a libvirt that lets
//! run what it has restored or what has arrived.
//!
//! Promises: with nothing switched off nothing here has an effect. Must not do: draw.

use understudy_core::keys::Key;
use understudy_core::model::ids::{HostId, InstanceId};
use understudy_hypervisor::{Hypervisor, InstanceState, PauseCause};
use understudy_store::{Txn, Write};

use super::World;
use crate::Weakness;

impl World {
    /// A store that writes the records of nodes without comparing.
    pub(super) fn forget_conditions(&self, txn: &mut Txn) {
        if self.weakness == Some(Weakness::BlindWrites) {
            let is_node = |write: &Write| matches!(Key::parse(write.key()), Some(Key::Node(_)));
            if txn.writes.iter().any(is_node) {
                txn.conditions.clear();
            }
        }
    }

    /// A libvirt that lets run what it restores, as it does unless it is told not to.
    pub(crate) fn run_restored(&self, host: &HostId, instance: InstanceId) {
        if self.weakness == Some(Weakness::EagerRestore) {
            // What cannot be let run stands still, as it should.
            let _ = self.machine(host).hypervisor.resume(instance);
        }
    }

    /// A libvirt at the destination that lets run what has arrived, as it does unless it is told not to.
    pub(super) fn run_arrivals(&mut self) {
        if self.weakness != Some(Weakness::EagerDestination) {
            return;
        }
        let arrivals: Vec<(HostId, InstanceId)> = self
            .nodes()
            .filter_map(|(_, record)| {
                let migration = record.migration.as_ref()?;
                Some((migration.to.clone(), record.primary.as_ref()?.instance?))
            })
            .collect();
        for (host, instance) in arrivals {
            let hypervisor = &self.machine(&host).hypervisor;
            let state = hypervisor.look(instance, |one| one.fact().state);
            if state == Some(InstanceState::Paused(PauseCause::Asked)) {
                // What cannot be let run stands still, and is tried again.
                let _ = hypervisor.resume(instance);
            }
        }
    }
}
