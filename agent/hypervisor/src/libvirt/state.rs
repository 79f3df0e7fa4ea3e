//! Owns the reading side: instances, one instance's liveness, room.
//!
//! Promises: an instance that goes away while it is looked at is left out and is no error. Must not do: change
//! anything.

use procfs::{Current, Meminfo};
use understudy_core::model::ids::InstanceId;
use understudy_core::model::units::{MiB, Vcpus};
use virt::connect::Connect;
use virt::domain::Domain as VirtDomain;
use virt::error::{Error, ErrorNumber};

use super::{Libvirt, find};
use crate::domain::Domain;
use crate::error::{CallError, CapacityError, ListError};
use crate::numbers;
use crate::process;
use crate::refusal::RefusalKind;
use crate::types::{Capacity, InstanceFact, InstanceState, Liveness};

/// One domain as libvirt tells of it.
pub(super) struct Seen {
    pub(super) state: InstanceState,
    pub(super) name: String,
    pub(super) xml: String,
}

pub(super) fn see(domain: &VirtDomain) -> Result<Seen, Error> {
    Ok(Seen { state: state_of(domain)?, name: domain.get_name()?, xml: domain.get_xml_desc(0)? })
}

pub(super) fn state_of(domain: &VirtDomain) -> Result<InstanceState, Error> {
    let (state, reason) = domain.get_state()?;
    Ok(numbers::state(state, reason))
}

fn see_all(connect: &Connect) -> Result<Vec<Seen>, Error> {
    let mut all = Vec::new();
    for domain in connect.list_all_domains(0)? {
        match see(&domain) {
            Ok(seen) => all.push(seen),
            // It went away between the list and the look.
            Err(error) if error.code() == ErrorNumber::NoDomain => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

impl Libvirt {
    pub(super) fn list(&self) -> Result<Vec<InstanceFact>, ListError> {
        let all = self.link.call("list", self.deadlines.query, see_all).map_err(ListError::List)?;
        let facts = all.iter().map(|seen| self.fact(seen));
        facts.filter_map(Result::transpose).collect()
    }

    /// What libvirt has of one instance; `None` when it has nothing.
    pub(super) fn look_up(&self, id: InstanceId) -> Result<Option<Seen>, CallError> {
        let seen = self.link.call("look up", self.deadlines.query, move |connect| see(&find(connect, id)?));
        match seen {
            Err(error) if error.refused() == Some(RefusalKind::NoInstance) => Ok(None),
            other => other.map(Some),
        }
    }

    /// The fact on a domain, `None` when it is not managed. A process that it has is watched from here on.
    pub(super) fn fact(&self, seen: &Seen) -> Result<Option<InstanceFact>, ListError> {
        let describe = |source| ListError::Describe { name: seen.name.clone(), source };
        let domain = Domain::parse(&seen.xml).map_err(describe)?;
        let Some(note) = domain.note() else { return Ok(None) };
        let id = domain.id().map_err(describe)?;
        let pid = match (&self.pid_folder, seen.state) {
            (None, _) | (_, InstanceState::Off) => None,
            (Some(folder), _) => {
                let noted = process::noted_process(&folder.join(format!("{}.pid", seen.name)), id);
                match noted.map_err(ListError::Processes)? {
                    Some(pid) => Some(pid),
                    None => process::process_of(id).map_err(ListError::Processes)?,
                }
            }
        };
        if let (Some(watch), Some(pid)) = (&self.watch, pid) {
            watch.watch(id, pid).map_err(ListError::Processes)?;
        }
        if domain.agent_connected() {
            self.trial.answered(id, domain.by_kvm());
        }
        Ok(Some(InstanceFact {
            id,
            name: seen.name.clone(),
            state: seen.state,
            pid,
            note,
            memory: domain.memory().map_err(describe)?,
            vcpus: domain.vcpus(),
            mac: domain.mac(),
            link_up: domain.link_up(),
            agent_connected: domain.agent_connected(),
            role_disk: domain.role_disk(),
        }))
    }

    pub(super) fn probe_liveness(&self, id: InstanceId) -> Result<Liveness, ListError> {
        let seen = self.look_up(id).map_err(ListError::List)?;
        match seen.map(|seen| seen.state) {
            None | Some(InstanceState::Off) if self.pid_folder.is_some() => {
                let process = process::process_of(id).map_err(ListError::Processes)?;
                Ok(process.map_or(Liveness::Gone, Liveness::ProcessOnly))
            }
            // No processes to look at: a remote or simulated libvirtd, whose word is all there is.
            None | Some(InstanceState::Off) => Ok(Liveness::Gone),
            Some(state) => Ok(Liveness::Known(state)),
        }
    }

    pub(super) fn room(&self) -> Result<Capacity, CapacityError> {
        let read = |connect: &Connect| Ok((connect.get_node_info()?, connect.get_free_memory()?));
        let (node, free) =
            self.link.call("capacity", self.deadlines.query, read).map_err(CapacityError::Read)?;
        // On this host the kernel is asked: libvirt's figures leave out the page cache, which on a host that has run
        // for a while is most of the free memory, and memory that was added while the host runs.
        let (total, free) = match self.pid_folder.as_ref().and_then(|_| host_memory()) {
            Some(figures) => figures,
            None => (MiB(node.memory >> 10), MiB(free >> 20)),
        };
        Ok(Capacity { vcpus: Vcpus(node.cpus), memory_total: total, memory_free: free })
    }
}

/// This host's memory, and how much of it can be given out without swapping.
fn host_memory() -> Option<(MiB, MiB)> {
    let memory = Meminfo::current().ok()?;
    Some((MiB(memory.mem_total >> 20), MiB(memory.mem_available? >> 20)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_hosts_memory_is_reported_in_mebibytes() {
        let (total, available) = host_memory().unwrap();
        assert!((MiB(256)..MiB(1 << 27)).contains(&total), "{total}");
        assert!(available > MiB(0) && available < total, "{available} of {total}");
    }
}
