//! Owns the loop's side of its host's lease: the host is cleared before the next one, what goes on is recovered, and people
//! are notified.
//!
//! Promises: while a lease goes on nothing waits for libvirt: what runs is recovered once it can be looked at. Must not
//! do: renew, confirm or end a lease (its own thread in `effects::fence` does, by core's word).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use understudy_core::host::Input;
use understudy_core::host::lease::Loss;
use understudy_core::host::opening::Identity;
use understudy_core::host::recovery::{Naming, names};
use understudy_core::model::ids::{BootId, InstanceId, MachineId};
use understudy_core::model::records::{HostFacts, Service};
use understudy_core::model::units::Boottime;
use uuid::Uuid;

use super::effects::domain::recovery::{self, Recovered};
use super::effects::domain::set_clock;
use super::effects::fence::{Keeping, LeaseEvent, LeaseThread, OpenStore, Reconnecting};
use super::event::Event;
use super::{Parts, Runtime, now};
use crate::connect;
use crate::exit::{Exit, Failure, chain};

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

/// What this host reported, as far as it can be read.
#[derive(Debug, Clone)]
pub(super) enum Known {
    Nothing,
    Facts(Arc<HostFacts>),
    Unreadable,
}

/// What the store says of this host's instances.
#[derive(Debug, Clone)]
pub(super) struct Records {
    pub(super) resumed: bool,
    pub(super) known: Known,
    pub(super) names: BTreeMap<InstanceId, Naming>,
    pub(super) unreadable: bool,
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

impl Runtime {
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
            guard: Box::new(Reconnecting::new(config.guard_socket.clone())),
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
                let follows = remaining.map_or("", |_| "; instances end when the lease does");
                let text = connect::store_silent(&self.parts.config);
                self.raise(LEASE, format!("{text}{follows}"));
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
            self.inform(Input::Resumed { lease: number });
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
        self.recovers() && reported && !self.cache.has_quarantined_facts(me)
    }

    fn recover(&self) {
        let (parts, sender, number) = (self.parts.clone(), self.sender.clone(), self.lease_number);
        let records = self.records_of(number);
        self.parts.tasks.block("recovery", move || {
            let found = recovery::recover(&parts, &records);
            let found = found.map_err(|error| (error.service(), chain(&error)));
            let _ = sender.send(Event::Recovered { number, found });
        });
    }

    pub(super) fn recovered(&mut self, number: u64, found: Result<Vec<Recovered>, (Service, String)>) {
        if self.recovery != Recovery::Running || number != self.lease_number {
            return;
        }
        match found {
            Ok(found) => {
                self.recovery = Recovery::None;
                self.clear(RECOVERY);
                self.finish_recovery(found);
            }
            Err((service, error)) => {
                tracing::warn!(%error, "cannot look at this host's instances, they run on");
                let text = format!(
                    "this host's instances run on, and cannot be looked at, it takes no work: see systemctl status \
                     {}: {error}",
                    service.unit()
                );
                self.raise(RECOVERY, text);
                self.inform(Input::Unrecovered { service });
                self.recovery = Recovery::Due(now().boottime + RECOVER_AGAIN);
            }
        }
    }

    /// What the store says of this host's instances, for the lease that goes on under this number.
    pub(super) fn records_of(&self, number: u64) -> Records {
        Records { resumed: true, ..self.records(Some(number), number) }
    }

    /// The same before the next lease; `previous` was the one of this boot before.
    pub(super) fn records_before(&self, previous: Option<u64>) -> Records {
        // No lease has the number 0: whatever is named is named under another.
        Records { resumed: false, ..self.records(previous, 0) }
    }

    fn records(&self, reported: Option<u64>, number: u64) -> Records {
        let me = &self.parts.config.host;
        let facts = self.cache.facts(me).filter(|facts| Some(facts.lease) == reported);
        let known = match facts {
            _ if reported.is_none() => Known::Nothing,
            _ if self.cache.has_quarantined_facts(me) => Known::Unreadable,
            Some(facts) => Known::Facts(Arc::new(facts.clone())),
            None => Known::Nothing,
        };
        let nodes = self.cache.view().nodes.iter().map(|(node, known)| (node, &known.value));
        let names = names(me, number, nodes, facts);
        Records { resumed: false, known, names, unreadable: self.cache.has_quarantined_nodes() }
    }

    /// Goes on with what was found.
    pub(super) fn finish_recovery(&mut self, found: Vec<Recovered>) {
        self.set_clocks(found.iter().filter(|found| found.set_clock).map(|found| found.instance).collect());
        let found = found.into_iter().map(|found| (found.instance, found.local)).collect();
        self.has_recovered = true;
        self.inform(Input::Recovered { lease: self.lease_number, found });
    }

    fn set_clocks(&self, instances: Vec<InstanceId>) {
        for instance in instances {
            let parts = self.parts.clone();
            self.parts.tasks.block("clock of a guest", move || {
                if let Err(error) = set_clock(&parts, instance) {
                    tracing::warn!(%instance, error = %chain(&error), "the restored guest's clock could not be set");
                }
            });
        }
    }
}
