//! Owns creating, restoring and destroying instances.
//!
//! Promises: nothing starts without a permit of the deciding epoch; what could not be made whole is told, for core to end:
//! whoever did not get far may be late, and what runs under the same name be of a newer decision; after a restore the order
//! is: paused with its link down, guard, link up, resume, clock; when is for core to say. Must not do: choose.

pub(in crate::runtime) mod recovery;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use understudy_checkpoint::{Damage, ImageError};
use understudy_core::death::Death;
use understudy_core::host::Outcome;
use understudy_core::model::ids::{Epoch, InstanceId, NodeId};
use understudy_core::model::records::CheckpointId;
use understudy_core::model::units::{MiB, Vcpus};
use understudy_hypervisor::{
    CallError, GuestError, InstanceSpec, Note, RefusalKind, RestoreError, RestoreSpec, process,
};

use super::checkpoint::ADDRESS;
use super::{Whose, fence};
use crate::exit::chain;
use crate::runtime::Parts;

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
        Err(reason) => Outcome::Unsure(reason),
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
    tracing::info!(%instance, reason = %death, "destroying an instance");
    // What is being made of it may not have come to its start: that is refused from here on.
    if let Err(error) = parts.permits.revoke(instance) {
        tracing::warn!(%instance, error = %chain(&error), "cannot take the permit back; it lapses by itself");
    }
    match parts.hypervisor.destroy(instance) {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Failed(chain(&error)),
    }
}

pub(in crate::runtime) fn restore(
    parts: &Parts,
    node: &NodeId,
    instance: InstanceId,
    (epoch, checkpoint): (Epoch, CheckpointId),
    environment: &str,
) -> Outcome {
    let mut steps = Steps::new(instance);
    if let Err(error) = parts.permits.grant(instance, epoch, process::boottime(), PERMIT) {
        return Outcome::Failed(chain(&error));
    }
    let image = match parts.ready_images.take(node, checkpoint) {
        Ok(image) => image,
        Err(error) => return leave_nothing(parts, instance, no_image(&error)),
    };
    let reported = image.manifest.description.domain.get(ADDRESS);
    let address: Option<Ipv4Addr> = reported.and_then(|text| text.parse().ok());
    let spec = RestoreSpec {
        image: image.path().to_owned(),
        id: instance,
        template: parts.template.clone(),
        role_disk: parts.config.environments.get(environment).cloned(),
        note: Note { epoch, address: address.map(Into::into) },
    };
    steps.done(if image.was_ready() { "image was ready" } else { "image made" });
    // Read while libvirt does: the guest stands still until both are done.
    let (restored, compared) = std::thread::scope(|scope| {
        let compared = scope.spawn(|| parts.ready_images.compare(&image));
        (parts.hypervisor.restore(&spec), compared.join())
    });
    let compared = match compared {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(not_the_same(&error)),
        Err(_) => Some(Outcome::Failed("the image could not be compared with its digests".to_owned())),
    };
    let outcome = match (restored, compared) {
        (Ok(_), None) => {
            steps.done("restored, paused");
            return Outcome::Loaded { address };
        }
        // There is nothing of this try, and without libvirtd that could not be proven.
        (Err(error), compared) if never_asked(&error) => {
            if compared.is_none() {
                parts.ready_images.give_back(image);
            }
            let revoked = parts.permits.revoke(instance);
            return Outcome::Failed(revoked.map_or_else(|error| chain(&error), |()| chain(&error)));
        }
        // Another runs here, and it is not this try's to end.
        (Err(error), _) if is_anothers(&error) => return Outcome::Unsure(chain(&error)),
        // Whatever libvirt said of it, it was not what the checkpoint is.
        (_, Some(outcome)) => outcome,
        (Err(error), None) => not_restored(&error),
    };
    leave_nothing(parts, instance, outcome)
}

/// An image that is not what it was made of: the checkpoint itself may be whole, and the next try makes the image anew, of
/// what matches its digests.
fn not_the_same(error: &ImageError) -> Outcome {
    match error {
        ImageError::Damaged(_, _, Damage::Image(_)) => Outcome::Failed(chain(error)),
        ImageError::Store(_) | ImageError::Unknown(..) | ImageError::Damaged(..) => no_image(error),
    }
}

/// A passing error of the disk is no damage.
fn no_image(error: &ImageError) -> Outcome {
    match error {
        ImageError::Store(_) => Outcome::Failed(chain(error)),
        ImageError::Unknown(..) | ImageError::Damaged(..) => Outcome::Damaged(chain(error)),
    }
}

/// Of an image that is what the checkpoint is: whose it is stays wrong. Whether a refusal says that something is wrong with
/// the image, and not with the host, is for core to judge; also one to read it, for whatever reason.
fn not_restored(error: &RestoreError) -> Outcome {
    let reason = chain(error);
    match error {
        RestoreError::OtherInstance { .. } | RestoreError::Describe(_) => Outcome::Damaged(reason),
        RestoreError::Damaged { .. } => Outcome::Refused(reason),
        RestoreError::Restore { source, .. } => match source.refused() {
            Some(RefusalKind::Other | RefusalKind::BadDescription | RefusalKind::Unsupported) => {
                Outcome::Refused(reason)
            }
            Some(
                RefusalKind::NoInstance
                | RefusalKind::AlreadyThere
                | RefusalKind::NotPermitted
                | RefusalKind::Busy
                | RefusalKind::AgentSilent
                | RefusalKind::WrongState
                | RefusalKind::Aborted
                | RefusalKind::UnsafeMigration
                | RefusalKind::ConnectionLost,
            )
            | None => Outcome::Failed(reason),
        },
        RestoreError::Image { .. }
        | RestoreError::AlreadyHere(_)
        | RestoreError::NotPermitted { .. }
        | RestoreError::Look { .. } => Outcome::Failed(reason),
    }
}

/// Whether libvirtd was not even asked to restore it.
fn never_asked(error: &RestoreError) -> bool {
    match error {
        RestoreError::Restore { source, .. } => matches!(source, CallError::Down { .. }),
        RestoreError::Damaged { .. }
        | RestoreError::OtherInstance { .. }
        | RestoreError::Describe(_)
        | RestoreError::Image { .. }
        | RestoreError::AlreadyHere(_)
        | RestoreError::NotPermitted { .. }
        | RestoreError::Look { .. } => false,
    }
}

/// Whether an instance of that name was here already.
fn is_anothers(error: &RestoreError) -> bool {
    match error {
        RestoreError::AlreadyHere(_) => true,
        RestoreError::Restore { source, .. } => source.refused() == Some(RefusalKind::AlreadyThere),
        RestoreError::Damaged { .. }
        | RestoreError::OtherInstance { .. }
        | RestoreError::Describe(_)
        | RestoreError::Image { .. }
        | RestoreError::NotPermitted { .. }
        | RestoreError::Look { .. } => false,
    }
}

/// Nothing of a try may stay that did not come to its end.
fn leave_nothing(parts: &Parts, instance: InstanceId, outcome: Outcome) -> Outcome {
    match withdraw(parts, instance) {
        Outcome::Failed(why) => Outcome::Unsure(why),
        _ => outcome,
    }
}

/// Lets run what was restored.
pub(super) fn resume(parts: &Parts, whose: Whose, epoch: Epoch) -> Outcome {
    wake(parts, whose, epoch).map_or_else(Outcome::Unsure, |()| Outcome::Done)
}

fn wake(parts: &Parts, whose: Whose, epoch: Epoch) -> Result<(), String> {
    let (instance, _) = whose;
    let mut steps = Steps::new(instance);
    fence::register(parts, whose, epoch)?;
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
pub(in crate::runtime) fn set_clock(parts: &Parts, instance: InstanceId) -> Result<(), GuestError> {
    until_set(Instant::now() + CLOCK, || parts.hypervisor.guest_set_time(instance))
}

/// A guest that has just been let run may be slow to take the time: what it was sent is old by then, and it is sent again.
fn until_set(until: Instant, mut set: impl FnMut() -> Result<(), GuestError>) -> Result<(), GuestError> {
    loop {
        match set() {
            Err(GuestError::Silent { .. }) if Instant::now() < until => std::thread::sleep(PAUSE / 4),
            Err(GuestError::Clock { .. }) if Instant::now() < until => {}
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use understudy_hypervisor::Refusal;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_time_that_was_old_when_the_guest_took_it_is_sent_again_within_the_patience() {
        let id = InstanceId::from_uuid(Uuid::from_u128(7));
        let off = || Err(GuestError::Clock { id, off: Duration::from_secs(1) });
        let mut answers = vec![Ok(()), off(), off()];
        assert!(until_set(Instant::now() + CLOCK, || answers.pop().unwrap()).is_ok() && answers.is_empty());
        assert!(matches!(until_set(Instant::now(), off), Err(GuestError::Clock { .. })));
    }

    #[test]
    fn only_what_is_wrong_with_the_image_itself_is_called_damage() {
        let id = InstanceId::from_uuid(Uuid::from_u128(7));
        let path = || "/nowhere/image".into();
        let refuses = |kind| CallError::Refused {
            call: "restore",
            refusal: Refusal { kind, message: "load of migration failed".to_owned() },
        };
        let refused = || refuses(RefusalKind::Other);
        let (busy, broke) = (refuses(RefusalKind::Busy), refuses(RefusalKind::ConnectionLost));
        let silent = || CallError::TimedOut { call: "restore", after: Duration::from_secs(1) };
        let down = || CallError::Down { uri: "qemu:///system".to_owned(), last: None };
        let word = |error: RestoreError| match not_restored(&error) {
            Outcome::Damaged(_) => "damaged",
            Outcome::Refused(_) => "refused",
            Outcome::Failed(_) => "failed",
            other => panic!("{other:?}"),
        };
        let unasked = RestoreError::Restore { id, source: down() };
        let asked = RestoreError::Restore { id, source: silent() };
        assert!(never_asked(&unasked) && !never_asked(&asked), "a call that is late may still take effect");
        let there = RestoreError::Restore { id, source: refuses(RefusalKind::AlreadyThere) };
        assert!(is_anothers(&there) && is_anothers(&RestoreError::AlreadyHere(id)) && !is_anothers(&asked));
        for (error, expected) in [
            (RestoreError::Damaged { path: path(), source: refused() }, "refused"),
            (RestoreError::OtherInstance { path: path(), wanted: id, found: id }, "damaged"),
            (RestoreError::Restore { id, source: refused() }, "refused"),
            (RestoreError::Restore { id, source: busy }, "failed"),
            (RestoreError::Restore { id, source: broke }, "failed"),
            (RestoreError::Restore { id, source: silent() }, "failed"),
            (RestoreError::Restore { id, source: down() }, "failed"),
            (RestoreError::NotPermitted { id, source: refused() }, "failed"),
            (RestoreError::AlreadyHere(id), "failed"),
            (RestoreError::Image { path: path(), source: std::io::Error::from_raw_os_error(5) }, "failed"),
        ] {
            let reported = error.to_string();
            assert_eq!(word(error), expected, "{reported}");
        }
    }
}
