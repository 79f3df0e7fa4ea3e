//! Owns the changes of a running instance: role disk, link, pause, note, save, cancel.
//!
//! Promises: asking for what is already so does nothing. Must not do: leave an instance paused after a save.

use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use understudy_core::model::ids::InstanceId;
use understudy_core::model::units::Boottime;
use virt::domain_snapshot::DomainSnapshot;
use virt_sys as sys;

use super::{Libvirt, find};
use crate::domain::{Domain, METADATA_PREFIX, link_up, note_element, set_link};
use crate::error::{CallError, ControlError, RoleDiskError, SaveError};
use crate::event::{EventKind, HypervisorEvent, Lifecycle};
use crate::ffi;
use crate::libvirt::state::{Seen, state_of};
use crate::refusal::RefusalKind;
use crate::types::{InstanceState, Note, SavedMemory};
use crate::{METADATA_NAMESPACE, role_disk};

/// How long a save that was cancelled may take to be over, and how long its last event may be under way.
const AFTER_SAVE: Duration = Duration::from_secs(10);
const EVENT_UNDER_WAY: Duration = Duration::from_secs(1);

impl Libvirt {
    /// What libvirt has of an instance, which must be there.
    fn must_find(&self, id: InstanceId) -> Result<(Seen, Domain), ControlError> {
        let seen = self.look_up(id).map_err(|source| ControlError::Change { id, source })?;
        let seen = seen.ok_or(ControlError::NoInstance(id))?;
        let domain = Domain::parse(&seen.xml).map_err(ControlError::Describe)?;
        Ok((seen, domain))
    }

    pub(super) fn plug_role_disk(&self, id: InstanceId, path: &Path) -> Result<(), RoleDiskError> {
        role_disk::check(path)?;
        let (_, domain) = self.must_find(id).map_err(|error| match error {
            ControlError::NoInstance(id) => RoleDiskError::NoInstance(id),
            ControlError::Describe(source) => RoleDiskError::Describe(source),
            ControlError::Change { id, source } => RoleDiskError::Attach { id, source },
        })?;
        match domain.role_disk() {
            Some(attached) if attached == path => return Ok(()),
            Some(attached) => return Err(RoleDiskError::Other { id, attached }),
            None => {}
        }
        let disk = domain.role_disk_to_attach(path).write().map_err(RoleDiskError::Describe)?;
        let attached = self.on_domain(id, "attach disk", self.deadlines.change, move |domain| {
            domain.attach_device_flags(&disk, sys::VIR_DOMAIN_AFFECT_LIVE).map(|_| ())
        });
        attached.map_err(|source| match source.refused() {
            Some(RefusalKind::NoInstance) => RoleDiskError::NoInstance(id),
            _ => RoleDiskError::Attach { id, source },
        })
    }

    pub(super) fn plug_link(&self, id: InstanceId, up: bool) -> Result<(), ControlError> {
        let (_, domain) = self.must_find(id)?;
        for card in domain.interfaces().filter(|card| link_up(card) != up) {
            let mut card = card.clone();
            set_link(&mut card, up);
            let card = card.write().map_err(ControlError::Describe)?;
            self.control(id, "set link", move |domain| {
                domain.update_device_flags(&card, sys::VIR_DOMAIN_AFFECT_LIVE).map(|_| ())
            })?;
        }
        // qemu announced a restored instance while its link was down: nobody heard. A network that does not know
        // costs seconds, but no more.
        if up && let Err(error) = self.announce(id) {
            tracing::warn!(%id, ?error, "an instance's new place could not be announced");
        }
        Ok(())
    }

    pub(super) fn run(&self, id: InstanceId) -> Result<(), ControlError> {
        self.control(id, "resume", |domain| match state_of(domain)? {
            InstanceState::Running => Ok(()),
            _ => domain.resume().map(|_| ()),
        })
    }

    pub(super) fn halt(&self, id: InstanceId) -> Result<(), ControlError> {
        self.control(id, "suspend", |domain| match state_of(domain)? {
            InstanceState::Paused(_) => Ok(()),
            _ => domain.suspend().map(|_| ()),
        })
    }

    pub(super) fn write_note(&self, id: InstanceId, note: &Note) -> Result<(), ControlError> {
        // libvirt itself adds prefix and namespace.
        let element = note_element("instance", note).write().map_err(ControlError::Describe)?;
        self.control(id, "set note", move |domain| {
            let kind = sys::VIR_DOMAIN_METADATA_ELEMENT.cast_signed();
            let (key, namespace) = (Some(METADATA_PREFIX), Some(METADATA_NAMESPACE));
            domain.set_metadata(kind, Some(&element), key, namespace, sys::VIR_DOMAIN_AFFECT_LIVE).map(|_| ())
        })
    }

    pub(super) fn cancel(&self, id: InstanceId) -> Result<(), ControlError> {
        match self.control(id, "abort job", ffi::abort_job) {
            // libvirt's way to say that there is none.
            Err(ControlError::Change { source, .. }) if source.refused() == Some(RefusalKind::WrongState) => {
                Ok(())
            }
            other => other,
        }
    }

    fn control(
        &self,
        id: InstanceId,
        call: &'static str,
        work: impl FnOnce(&virt::domain::Domain) -> Result<(), virt::error::Error> + Send + 'static,
    ) -> Result<(), ControlError> {
        self.on_domain(id, call, self.deadlines.change, work).map_err(|source| match source.refused() {
            Some(RefusalKind::NoInstance) => ControlError::NoInstance(id),
            _ => ControlError::Change { id, source },
        })
    }

    pub(super) fn save(
        &self,
        id: InstanceId,
        path: &Path,
        deadline: Duration,
    ) -> Result<SavedMemory, SaveError> {
        let _job = self.jobs.begin(id, deadline).ok_or(SaveError::Busy { id, after: deadline })?;
        self.reset_held(id).map_err(|source| SaveError::Reset { id, source })?;
        let (seen, domain) = self.must_find(id).map_err(|error| match error {
            ControlError::NoInstance(id) => SaveError::NoInstance(id),
            ControlError::Describe(source) => SaveError::Describe(source),
            ControlError::Change { id, source } => SaveError::Save { id, source },
        })?;
        if seen.state != InstanceState::Running {
            return Err(SaveError::NotRunning(id));
        }
        if let Some(disk) = domain.writable_disk() {
            return Err(SaveError::WritableDisk { id, disk: disk.source.unwrap_or_default() });
        }
        let snapshot = domain.memory_snapshot(path).write().map_err(SaveError::Describe)?;
        let events = self.hub.subscribe();
        let begun = Instant::now();
        let result = self.snapshot(id, snapshot, deadline);
        let took = begun.elapsed();
        if let Err(source) = result {
            self.after_failed_save(id);
            return Err(SaveError::Save { id, source });
        }
        let pause = pause_seen(&events, id).unwrap_or(took);
        let image = std::fs::metadata(path);
        let bytes = image.map_err(|source| SaveError::Image { path: path.to_owned(), source })?.len();
        Ok(SavedMemory { bytes, took, pause })
    }

    fn snapshot(&self, id: InstanceId, snapshot: String, deadline: Duration) -> Result<(), CallError> {
        let pending = self.link.begin("save memory", move |connect| {
            let domain = find(connect, id)?;
            DomainSnapshot::create_xml(&domain, &snapshot, sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA)
                .map(|_| ())
        })?;
        match pending.wait(deadline) {
            Err(late @ CallError::TimedOut { .. }) => {
                if let Err(error) = self.cancel(id) {
                    tracing::warn!(%id, %error, "cannot cancel a save that takes too long");
                }
                // The save may have been done just before it was cancelled; late is late all the same.
                match pending.wait(AFTER_SAVE) {
                    Ok(()) | Err(_) => Err(late),
                }
            }
            other => other,
        }
    }

    /// A failed or cancelled save may leave the instance paused.
    fn after_failed_save(&self, id: InstanceId) {
        let paused = self
            .look_up(id)
            .is_ok_and(|seen| seen.is_some_and(|seen| matches!(seen.state, InstanceState::Paused(_))));
        if paused && let Err(error) = self.run(id) {
            tracing::error!(%id, %error, "an instance stands still after a failed save");
        }
    }
}

/// The time between the first suspension and the last resumption; libvirt tells of the latter when the save is
/// already over, so it is waited for a moment.
fn pause_seen(events: &Receiver<HypervisorEvent>, id: InstanceId) -> Option<Duration> {
    let until = Instant::now() + EVENT_UNDER_WAY;
    let mut suspended: Option<Boottime> = None;
    loop {
        let event = events.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?;
        match event.kind {
            EventKind::Lifecycle { id: of, change: Lifecycle::Suspended(_) } if of == id => {
                suspended.get_or_insert(event.at);
            }
            EventKind::Lifecycle { id: of, change: Lifecycle::Resumed } if of == id => {
                return suspended.map(|since| event.at.since(since));
            }
            _ => {}
        }
    }
}
