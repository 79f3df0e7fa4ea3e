//! Owns what the driver does about its host's lease: it clears the host before the next one, recovers what goes on, and
//! tells people.
//!
//! Promises: while a lease goes on nothing waits for libvirt: what runs is recovered once it can be looked at. Must not
//! do: renew, confirm or end a lease (its own thread does, by core's word).

mod guard;
mod members;
mod opening;
mod runner;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::sync::oneshot;
use understudy_core::host::Input;
use understudy_core::host::lease::Loss;
use understudy_core::host::opening::Identity;
use understudy_core::model::ids::{BootId, InstanceId, MachineId};
use understudy_core::model::records::Service;
use understudy_core::model::units::Boottime;
use uuid::Uuid;

pub use members::Members;
pub use runner::{LeaseEvent, OpenStore};

use super::event::Event;
use super::recovery::{self, Recovered};
use super::{Driver, Parts, now};
use crate::connect;
use crate::exit::{Exit, Failure, chain};
use runner::{Keeping, LeaseThread};

/// What a condition about the guard goes under.
const GUARD: &str = "guard";
/// What a condition about the discovery of instances goes under.
const RECOVERY: &str = "recovery";
/// What a condition about the host's name goes under.
const NAME: &str = "name";
/// What a condition about the lease's renewals goes under.
const LEASE: &str = "lease";
/// Before this host's instances are looked at again, where they could not be.
const RECOVER_AGAIN: Duration = Duration::from_secs(1);

/// Before the next lease: what runs of an earlier one is destroyed.
#[derive(Debug)]
pub(super) struct Clear {
    previous: Option<u64>,
    done: oneshot::Sender<bool>,
}

/// Where the recovery of a lease that goes on stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recovery {
    /// There is nothing to recover, or it is done.
    None,
    /// To be begun from then on.
    Due(Boottime),
    /// The host's instances are being looked at.
    Running,
}

impl Driver {
    /// Starts the lease's own thread. What an earlier agent's members are is known from the guard's table, also where
    /// neither guard nor libvirt answers.
    pub(super) fn keep_lease(&self, store: OpenStore) -> std::io::Result<LeaseThread> {
        let config = &self.parts.config;
        let inherited = understudy_guard::inherited(&config.guard_table()).unwrap_or_else(|error| {
            tracing::error!(%error, table = %config.guard_table().display(), "cannot read what the guard has acknowledged");
            understudy_guard::Inherited::default()
        });
        for (uuid, pidfd) in inherited.members {
            self.parts.members.hold(InstanceId::from_uuid(Uuid::from_bytes(uuid)), pidfd);
        }
        let inherited = inherited.deadline.map(|deadline| (deadline.lease, Boottime(deadline.boottime_ns)));
        let keeping = Keeping {
            host: config.host.clone(),
            identity: Identity { boot: self.parts.boot.clone(), machine: self.parts.machine.clone() },
            bounds: config.bounds,
            inherited,
            members: self.parts.members.clone(),
            guard: Box::new(guard::Reconnecting::new(config.guard_socket.clone())),
            events: self.sender.clone(),
            tasks: self.parts.tasks.clone(),
        };
        LeaseThread::start(keeping, store)
    }

    pub(super) fn lease_event(&mut self, event: LeaseEvent) {
        match event {
            LeaseEvent::Status(status) => self.lease = status,
            LeaseEvent::Opened { number, resumed } => self.lease_opened(number, resumed),
            LeaseEvent::Clear { previous, done } => self.clear = Some(Clear { previous, done }),
            LeaseEvent::Lost(loss, killed) => self.lease_lost(loss, killed),
            LeaseEvent::Guard(None) => {
                self.inform(Input::Service { service: Service::Guard, answers: true });
                self.clear(GUARD);
            }
            LeaseEvent::Guard(Some(why)) => {
                let text = format!(
                    "understudy-guard does not answer, nothing may start here, and members end when the lease does: see \
                     systemctl status understudy-guard: {why}"
                );
                self.inform(Input::Service { service: Service::Guard, answers: false });
                self.raise(GUARD, text);
            }
            LeaseEvent::Taken { by, boot } => self.name_is_taken(&by, &boot),
            LeaseEvent::Store(true) => self.clear(LEASE),
            LeaseEvent::Store(false) => {
                let remaining = self.lease.until.map(|deadline| deadline.since(now().boottime));
                tracing::warn!(?remaining, "the lease could not be renewed");
                let text = connect::store_silent(&self.parts.config);
                self.raise(LEASE, format!("{text}; instances end when the lease does"));
            }
        }
    }

    /// The lease of a machine that is gone for good, as after a reinstallation, is expired by the leader meanwhile; one
    /// that is not has an owner.
    fn name_is_taken(&mut self, by: &MachineId, boot: &BootId) {
        let Parts { config, machine, boot: own, .. } = self.parts.as_ref();
        let text = format!(
            "{}: host.name: another machine is '{}': it is {by} (boot {boot}), this one is {machine} (boot {own}): give \
             one of the two another name; if the other was reinstalled or is gone for good, its lease ends by itself",
            config.file.display(),
            config.host
        );
        let now = now().boottime;
        let patience = config.bounds.lease_expire_after() * 2;
        let since = *self.taken_since.get_or_insert_with(|| {
            tracing::error!(error = %text, "this host gets no lease");
            now
        });
        if now.since(since) >= patience {
            self.ended = Some(Failure::new(Exit::NameTaken, text.clone()));
        }
        self.raise(NAME, text);
    }

    fn lease_opened(&mut self, number: u64, resumed: bool) {
        tracing::info!(lease = number, resumed, "lease opened");
        self.taken_since = None;
        self.clear(NAME);
        self.lease_number = number;
        self.has_recovered = false;
        if resumed {
            self.recovery = Recovery::Due(now().boottime);
        } else if let Some(found) = self.cleared.take() {
            self.finish_recovery(found);
        }
    }

    /// What this host ran under the lost lease may already run elsewhere. Its processes were killed; what libvirt still
    /// has of them is destroyed before the next lease.
    fn lease_lost(&mut self, loss: Loss, killed: usize) {
        let why = match loss {
            Loss::Deadline => "it was not renewed and acknowledged in time",
            Loss::Store => "the store holds another lease, or its end",
            Loss::Guard => "the guard holds that it is over",
        };
        tracing::error!(lease = self.lease_number, killed, why, "the lease is lost: every member was killed");
        self.inform(Input::LeaseLost);
        self.has_recovered = false;
        self.recovery = Recovery::None;
    }

    /// Begins what waited for the store to be read.
    pub(super) fn advance_lease(&mut self, now: Boottime) {
        if !self.synced {
            return;
        }
        if let Some(clear) = self.clear.take() {
            self.clear_host(clear);
        }
        if matches!(self.recovery, Recovery::Due(at) if at <= now) {
            self.recovery = Recovery::Running;
            self.recover();
        }
    }

    fn clear_host(&mut self, Clear { previous, done }: Clear) {
        let (parts, sender) = (self.parts.clone(), self.sender.clone());
        let records = self.records_before(previous);
        self.parts.tasks.block("clearing", move || {
            let found = recovery::recover(&parts, &records).map_err(|error| chain(&error));
            let _ = sender.send(Event::Cleared { found, done });
        });
    }

    pub(super) fn host_cleared(
        &mut self,
        found: Result<Vec<Recovered>, String>,
        done: oneshot::Sender<bool>,
    ) {
        let cleared = found.is_ok();
        match found {
            Ok(found) => self.cleared = Some(found),
            Err(error) => tracing::warn!(%error, "cannot see to it that nothing of an earlier lease runs"),
        }
        let _ = done.send(cleared);
    }

    /// Whether what an earlier agent reported under the lease that goes on is known, and not looked at yet.
    pub(super) fn speaks_for_its_predecessor(&self) -> bool {
        let me = &self.parts.config.host;
        let reported = self.cache.facts(me).is_some_and(|facts| facts.lease == self.lease_number);
        self.recovery != Recovery::None && reported && !self.cache.has_quarantined_facts(me)
    }

    fn recover(&self) {
        let (parts, sender, number) = (self.parts.clone(), self.sender.clone(), self.lease_number);
        let records = self.records_of(number);
        self.parts.tasks.block("recovery", move || {
            let found = recovery::recover(&parts, &records).map_err(|error| chain(&error));
            let _ = sender.send(Event::Recovered { number, found });
        });
    }

    pub(super) fn recovered(&mut self, number: u64, found: Result<Vec<Recovered>, String>) {
        if self.recovery != Recovery::Running || number != self.lease_number {
            return;
        }
        match found {
            Ok(found) => {
                self.recovery = Recovery::None;
                self.clear(RECOVERY);
                self.finish_recovery(found);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot look at this host's instances, they run on");
                self.raise(
                    RECOVERY,
                    format!("this host's instances run on, and cannot be looked at: {error}"),
                );
                self.recovery = Recovery::Due(now().boottime + RECOVER_AGAIN);
            }
        }
    }
}
