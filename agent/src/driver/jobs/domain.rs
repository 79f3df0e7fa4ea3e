//! Owns making, restoring and ending instances.
//!
//! Promises: nothing starts without a permit of the deciding epoch; an instance that could not be made whole is ended;
//! after a restore the order is: paused with its link down, the intake told of the epoch, guard, link up, resume,
//! clock. Must not do: choose.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use understudy_core::death::Death;
use understudy_core::ids::{Epoch, InstanceId, NodeId, Role};
use understudy_core::records::CheckpointId;
use understudy_core::units::{MiB, Vcpus};
use understudy_hypervisor::{GuestError, InstanceSpec, Note, RestoreSpec, process};

use super::super::event::Outcome;
use super::super::{Parts, Snapshot};
use super::Whose;
use super::checkpoint::ADDRESS;
use crate::exit::chain;

/// How long a permit is good for: one start.
const PERMIT: Duration = Duration::from_secs(60);
/// How long a guest may take to boot. Emulated ones take 4 to 12 s, several at once 24 s.
const BOOT: Duration = Duration::from_secs(120);
/// How long a restored guest's agent is waited for to set the clock; it answers within a second when it does at all.
const CLOCK: Duration = Duration::from_secs(10);
/// One try to reach the guest's agent.
const PING: Duration = Duration::from_secs(5);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a restore waits for the display to hear of its epoch before it goes on without: a display that is dying
/// at the same time must not hold it up, and the old primary is known dead.
const INTAKE: Duration = Duration::from_secs(2);

pub(super) fn create(
    parts: &Parts,
    instance: InstanceId,
    epoch: Epoch,
    address: Option<Ipv4Addr>,
    memory: MiB,
    vcpus: Vcpus,
) -> Outcome {
    if let Err(error) = parts.permits.grant(instance, epoch, process::boottime(), PERMIT) {
        return Outcome::Failed(chain(&error));
    }
    let spec = InstanceSpec {
        id: instance,
        name: format!("understudy-{instance}"),
        template: parts.template.clone(),
        memory,
        vcpus,
        mac: address.map(mac),
        note: Note { epoch, address: address.map(Into::into) },
    };
    let made = parts.hypervisor.create(&spec).map_err(|error| chain(&error));
    let ready = made.and_then(|_| booted(parts, instance));
    if let Err(error) = parts.permits.revoke(instance) {
        tracing::warn!(%instance, error = %chain(&error), "cannot take the permit back; it lapses by itself");
    }
    match ready {
        Ok(()) => Outcome::Done,
        Err(reason) => clean_up(parts, instance, reason),
    }
}

/// A MAC of QEMU's own range whose last three bytes are the address's: unique on the segment as the address is.
fn mac(address: Ipv4Addr) -> understudy_hypervisor::MacAddress {
    let [_, b, c, d] = address.octets();
    understudy_hypervisor::MacAddress([0x52, 0x54, 0x00, b, c, d])
}

fn booted(parts: &Parts, instance: InstanceId) -> Result<(), String> {
    let until = Instant::now() + BOOT;
    loop {
        match parts.hypervisor.guest_ping(instance, PING) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= until => {
                return Err(format!("the guest's agent did not answer within {BOOT:?}: {}", chain(&error)));
            }
            Err(_) => {
                if matches!(process::process_of(instance), Ok(None)) {
                    return Err("qemu ended while the guest booted".to_owned());
                }
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Ends what could not be made whole. Only when that worked is it dead.
pub(super) fn clean_up(parts: &Parts, instance: InstanceId, reason: String) -> Outcome {
    match withdraw(parts, instance) {
        Outcome::Failed(why) => Outcome::Unsure(format!("{reason}; and {why}")),
        _ => Outcome::Died(reason),
    }
}

/// The permit first: nothing may come in after what is here was ended.
pub(super) fn withdraw(parts: &Parts, instance: InstanceId) -> Outcome {
    if let Err(error) = parts.permits.revoke(instance) {
        return Outcome::Failed(chain(&error));
    }
    match parts.hypervisor.destroy(instance) {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Failed(chain(&error)),
    }
}

pub(super) fn destroy(parts: &Parts, instance: InstanceId, death: &Death) -> Outcome {
    tracing::info!(%instance, reason = %death, "ending an instance");
    // What is being made of it may not have come to its start: that is refused from here on.
    if let Err(error) = parts.permits.revoke(instance) {
        tracing::warn!(%instance, error = %chain(&error), "cannot take the permit back; it lapses by itself");
    }
    match parts.hypervisor.destroy(instance) {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Failed(chain(&error)),
    }
}

pub(super) fn restore(
    parts: &Parts,
    cluster: &watch::Receiver<Arc<Snapshot>>,
    node: &NodeId,
    whose: Whose,
    epoch: Epoch,
    checkpoint: CheckpointId,
) -> Outcome {
    let (instance, _) = whose;
    let mut steps = Steps::new(instance);
    let image = match parts.images.image(node, checkpoint) {
        Ok(image) => image,
        Err(error) => return Outcome::Died(chain(&error)),
    };
    if let Err(error) = parts.permits.grant(instance, epoch, process::boottime(), PERMIT) {
        return Outcome::Died(chain(&error));
    }
    let record = cluster.borrow().view.nodes.get(node).map(|known| known.value.clone());
    let role_disk =
        record.as_ref().and_then(|record| parts.config.environments.get(&record.spec.environment)).cloned();
    let told = image.manifest.description.domain.get(ADDRESS);
    let address: Option<Ipv4Addr> = told.and_then(|text| text.parse().ok());
    let spec = RestoreSpec {
        image: image.path,
        id: instance,
        template: parts.template.clone(),
        role_disk,
        note: Note { epoch, address: address.map(Into::into) },
    };
    steps.done("image found");
    if let Err(error) = parts.hypervisor.restore(&spec) {
        return clean_up(parts, instance, chain(&error));
    }
    steps.done("restored, paused");
    match wake(parts, cluster, node, whose, epoch, &mut steps) {
        Ok(()) => Outcome::Restored { address },
        Err(reason) => clean_up(parts, instance, reason),
    }
}

fn wake(
    parts: &Parts,
    cluster: &watch::Receiver<Arc<Snapshot>>,
    node: &NodeId,
    whose: Whose,
    epoch: Epoch,
    steps: &mut Steps,
) -> Result<(), String> {
    let (instance, _) = whose;
    wait_for_intake(cluster, node, epoch);
    steps.done("the display lets it in");
    super::register(parts, whose, epoch)?;
    steps.done("guard acknowledged");
    parts.hypervisor.set_link(instance, true).map_err(|error| chain(&error))?;
    steps.done("link up");
    parts.hypervisor.resume(instance).map_err(|error| chain(&error))?;
    steps.done("resumed");
    if let Err(error) = set_clock(parts, instance) {
        tracing::warn!(%instance, error = %chain(&error), "the restored guest's clock could not be set");
    }
    steps.done("clock set");
    Ok(())
}

/// libvirt hears of the agent's channel a moment after the guest went on: until then it refuses to ask.
pub(in crate::driver) fn set_clock(parts: &Parts, instance: InstanceId) -> Result<(), GuestError> {
    let until = Instant::now() + CLOCK;
    loop {
        match parts.hypervisor.guest_set_time(instance) {
            Err(GuestError::Silent { .. }) if Instant::now() < until => std::thread::sleep(PAUSE / 4),
            outcome => return outcome,
        }
    }
}

/// What each step of a restore took, for whoever wants to know where the time went.
struct Steps {
    instance: InstanceId,
    last: Instant,
}

impl Steps {
    fn new(instance: InstanceId) -> Self {
        Self { instance, last: Instant::now() }
    }

    fn done(&mut self, step: &'static str) {
        let took = std::mem::replace(&mut self.last, Instant::now()).elapsed();
        tracing::debug!(instance = %self.instance, step, ?took, "restoring");
    }
}

/// Waits until the terminal's display lets nothing of an older epoch in any more.
fn wait_for_intake(cluster: &watch::Receiver<Arc<Snapshot>>, node: &NodeId, epoch: Epoch) {
    let until = Instant::now() + INTAKE;
    while Instant::now() < until {
        let told = {
            let snapshot = cluster.borrow();
            let display = snapshot.view.nodes.get(&NodeId::display(node.terminal()));
            let primary = display.and_then(|display| display.value.primary.as_ref());
            // On this very host the driver's own facts are newer than what the store gave back.
            let fact = primary.and_then(|primary| snapshot.view.fact(primary));
            debug_assert_eq!(node.role(), Role::Execution);
            match fact {
                Some(fact) => fact.admitted.get(node).is_some_and(|admitted| *admitted >= epoch),
                None => true,
            }
        };
        if told {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    tracing::warn!(%node, %epoch, "the display did not hear of the restore in time, going on without");
}
