//! Owns what stops this host's members in time: their registration with the guard, the pidfds that they are killed by, and,
//! in the modules below, the thread of the lease and its line to the guard.
//!
//! Promises: a process is held and registered before it may run, under the lease that asked for it. Must not do: decide when
//! anything is stopped (core's lease and the guard do), touch libvirt but to note the epoch.

pub(super) mod lease_thread;
mod line;
mod members;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::Duration;

use understudy_core::host::Outcome;
use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_guard::{Class, Client, ClientError, Registration};
use understudy_hypervisor::{Note, process};
use uuid::Uuid;

pub(in crate::runtime) use lease_thread::{Keeping, LeaseThread};
pub use lease_thread::{LeaseEvent, OpenStore};
pub(in crate::runtime) use line::Reconnecting;
pub use members::Members;

use super::Whose;
use crate::exit::chain;
use crate::runtime::Parts;

/// How long the guard may take to answer; it is a local process that does nothing else.
const GUARD_PATIENCE: Duration = Duration::from_millis(500);

/// What the guard holds, in which epoch.
pub(in crate::runtime) type Guarded = BTreeMap<InstanceId, Epoch>;

/// Asks the guard what it holds, and does not end already.
pub(super) fn guarded(parts: &Parts) -> Result<Guarded, ClientError> {
    let status =
        Client::connect(&parts.config.guard_socket, GUARD_PATIENCE).and_then(|mut guard| guard.status())?;
    let held = |entry: &understudy_guard::Entry| {
        (InstanceId::from_uuid(Uuid::from_bytes(entry.uuid)), Epoch(entry.epoch))
    };
    Ok(status.entries.iter().filter(|entry| !entry.dying).map(held).collect())
}

/// Has the guard acknowledge the instance's process, then notes the epoch on the domain.
pub(super) fn guard(parts: &Parts, whose: Whose, epoch: Epoch, address: Option<Ipv4Addr>) -> Outcome {
    let (instance, _) = whose;
    match register(parts, whose, epoch) {
        Ok(()) => {}
        Err(reason) => return Outcome::Failed(reason),
    }
    let note = Note { epoch, address: address.map(Into::into) };
    if let Err(error) = parts.hypervisor.set_note(instance, &note) {
        // The note is for people and for the hook; the guard's word is what counts.
        tracing::warn!(%instance, error = %chain(&error), "cannot note the epoch on the domain");
    }
    Outcome::Guarded(epoch)
}

/// Has the guard acknowledge the process under the lease that asks, and holds it by its pidfd.
pub(super) fn register(parts: &Parts, (instance, lease): Whose, epoch: Epoch) -> Result<(), String> {
    let describe = |what: &str, error: &dyn std::error::Error| format!("{what}: {}", chain(error));
    parts
        .permits
        .raise(instance, epoch)
        .map_err(|error| describe("cannot keep the highest epoch", &error))?;
    let pid = process::process_of(instance)
        .map_err(|error| describe("cannot look for the instance's process", &error))?
        .ok_or_else(|| "no process runs the instance".to_owned())?;
    let pid = u32::try_from(pid.0).map_err(|error| describe("impossible process id", &error))?;
    let pidfd =
        understudy_guard::pidfd_open(pid).map_err(|error| describe("cannot watch the process", &error))?;
    // Held before it may run: what is not held is not killed when the lease is lost.
    let held = pidfd.try_clone().map_err(|error| describe("cannot hold the process", &error))?;
    parts.members.hold(instance, held);
    let registration = Registration {
        uuid: *instance.uuid().as_bytes(),
        epoch: epoch.0,
        lease,
        pid,
        pidfd: pidfd.as_fd(),
        class: Class::RamOnly,
    };
    Client::connect(&parts.config.guard_socket, GUARD_PATIENCE)
        .and_then(|mut guard| guard.register(&registration))
        .map_err(|error| describe("the guard did not acknowledge the instance", &error))
}
