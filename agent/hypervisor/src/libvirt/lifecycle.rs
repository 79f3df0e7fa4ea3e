//! Owns how instances come to be and end: create, restore, destroy.
//!
//! Promises: every instance is transient, so that nothing of it can start by itself; an end is reported only when
//! no process is left; an end needs no libvirtd where there is a process to be ended. Must not do: keep what it made
//! in memory.

use std::fs::File;
use std::time::Duration;

use understudy_core::model::ids::InstanceId;
use virt::domain::Domain as VirtDomain;
use virt_sys as sys;

use super::Libvirt;
use crate::accelerator::{Accelerator, Attempt};
use crate::domain::Domain;
use crate::error::{CallError, CreateError, DestroyError, ListError, RestoreError};
use crate::process;
use crate::refusal::RefusalKind;
use crate::restoring;
use crate::types::{InstanceFact, InstanceSpec, RestoreSpec};

/// After libvirt has destroyed a domain its process is gone in milliseconds; one that is not is killed.
const GONE_SOON: Duration = Duration::from_secs(2);
/// The kernel may take a while to tear down a large or busy process.
const GONE_AFTER_KILL: Duration = Duration::from_secs(15);

impl Libvirt {
    pub(super) fn boot(&self, spec: &InstanceSpec) -> Result<InstanceFact, CreateError> {
        let id = spec.id;
        let create = |source| CreateError::Create { id, source };
        if self.look_up(id).map_err(create)?.is_some() {
            return self
                .just_made(id)
                .map_err(|source| CreateError::Look { id, source: Box::new(source) })?
                .ok_or_else(|| CreateError::Taken { name: id.to_string() });
        }
        if let Err(source) = self.make_as_it_runs(spec)? {
            return Err(match source.refused() {
                Some(RefusalKind::NotPermitted) => CreateError::NotPermitted { id, source },
                Some(_) if self.name_is_taken(&spec.name, id) => {
                    CreateError::Taken { name: spec.name.clone() }
                }
                _ => CreateError::Create { id, source },
            });
        }
        let fact = self.just_made(id).map_err(|source| CreateError::Look { id, source: Box::new(source) })?;
        fact.ok_or_else(|| CreateError::Create { id, source: went_away("create") })
    }

    /// Makes an instance. While KVM is on trial and libvirt refuses it, by emulation.
    fn make_as_it_runs(&self, spec: &InstanceSpec) -> Result<Result<(), CallError>, CreateError> {
        let made = match self.trial.attempt(spec.id) {
            Attempt::Settled(accelerator) => return self.make(spec, accelerator),
            Attempt::Emulation(reason) => {
                let made = self.make(spec, Accelerator::Tcg)?;
                if made.is_ok() {
                    self.trial.emulate(&reason);
                }
                return Ok(made);
            }
            Attempt::Kvm => self.make(spec, Accelerator::Kvm)?,
        };
        let Err(refused) = &made else { return Ok(made) };
        self.trial.not_begun(spec.id);
        let of_the_host = matches!(
            refused.refused(),
            Some(RefusalKind::Unsupported | RefusalKind::BadDescription | RefusalKind::Other)
        );
        if !of_the_host || self.name_is_taken(&spec.name, spec.id) {
            return Ok(made);
        }
        let reason = format!("libvirt refuses it: {refused}");
        match self.make(spec, Accelerator::Tcg)? {
            Ok(()) => {
                self.trial.emulate(&reason);
                return Ok(Ok(()));
            }
            // The permit is good for one start, and that one came so far.
            Err(error) if error.refused() == Some(RefusalKind::NotPermitted) => self.trial.refused(reason),
            // Neither the one nor the other: it is not for the accelerator.
            Err(_) => {}
        }
        Ok(made)
    }

    fn make(
        &self,
        spec: &InstanceSpec,
        accelerator: Accelerator,
    ) -> Result<Result<(), CallError>, CreateError> {
        let domain = spec.template.render(spec, accelerator);
        let describe = |source| CreateError::Describe { id: spec.id, source };
        let xml = domain.and_then(|domain| domain.write()).map_err(describe)?;
        Ok(self.link.call("create", self.deadlines.start, move |connect| {
            VirtDomain::create_xml(connect, &xml, sys::VIR_DOMAIN_NONE).map(|_| ())
        }))
    }

    /// The fact on an instance that was made a moment ago.
    fn just_made(&self, id: InstanceId) -> Result<Option<InstanceFact>, ListError> {
        match self.look_up(id).map_err(ListError::List)? {
            Some(seen) => self.fact(&seen),
            None => Ok(None),
        }
    }

    fn name_is_taken(&self, name: &str, id: InstanceId) -> bool {
        let name = name.to_owned();
        let owner = self.link.call("look up", self.deadlines.query, move |connect| {
            VirtDomain::lookup_by_name(connect, &name)?.get_uuid()
        });
        owner.is_ok_and(|owner| owner != id.uuid())
    }

    pub(super) fn end(&self, id: InstanceId) -> Result<(), DestroyError> {
        let wrap = |source| DestroyError::Processes { id, source };
        self.trial.destroyed(id);
        // Held before libvirt is asked: by it the process is ended, and its end is seen, also without libvirt.
        let held = match &self.pid_folder {
            Some(_) => process::handle_of(id).map_err(wrap)?,
            None => None,
        };
        let destroyed = self.on_domain(id, "destroy", self.deadlines.start, |domain| {
            if domain.is_active()? {
                domain.destroy()?;
            }
            // Someone defined it by hand: it could start again by itself.
            if domain.is_persistent().unwrap_or(false) {
                domain
                    .undefine_flags(sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | sys::VIR_DOMAIN_UNDEFINE_NVRAM)?;
            }
            Ok(())
        });
        match destroyed {
            Ok(()) => {}
            Err(error) if error.refused() == Some(RefusalKind::NoInstance) => {}
            // It ended by itself in the middle; what counts is looked at below.
            Err(error) if error.refused() == Some(RefusalKind::WrongState) => {}
            // Without a process to hold on to, nothing is known: a libvirtd that hangs may yet start one.
            Err(source) => {
                let Some(handle) = held else { return Err(DestroyError::Destroy { id, source }) };
                tracing::warn!(%id, error = %source, "libvirt does not end the instance, its process is killed");
                if !process::kill_and_wait(&handle, GONE_AFTER_KILL).map_err(wrap)? {
                    tracing::error!(%id, "the instance's process has not ended after SIGKILL");
                }
            }
        }
        if self.pid_folder.is_none() {
            return Ok(());
        }
        let Some(pid) = process::wait_gone(id, GONE_SOON).map_err(wrap)? else { return Ok(()) };
        tracing::warn!(%id, %pid, "libvirt has the instance no more, its process runs on and is killed");
        if let Some(handle) = process::open(pid, id).map_err(wrap)? {
            process::kill(&handle).map_err(wrap)?;
        }
        match process::wait_gone(id, GONE_AFTER_KILL).map_err(wrap)? {
            None => Ok(()),
            Some(pid) => Err(DestroyError::StillThere { id, pid }),
        }
    }

    pub(super) fn bring_back(&self, spec: &RestoreSpec) -> Result<InstanceFact, RestoreError> {
        let id = spec.id;
        let restore = |source| RestoreError::Restore { id, source };
        File::open(&spec.image).map_err(|source| RestoreError::Image { path: spec.image.clone(), source })?;
        if self.look_up(id).map_err(restore)?.is_some() {
            return Err(RestoreError::AlreadyHere(id));
        }
        let xml = self.image_fitted(spec)?;
        let path = spec.image.to_string_lossy().into_owned();
        let restored = self.link.call("restore", self.deadlines.start, move |connect| {
            VirtDomain::domain_restore_flags(connect, &path, Some(&xml), sys::VIR_DOMAIN_SAVE_PAUSED)
        });
        restored.map_err(|source| match source.refused() {
            Some(RefusalKind::NotPermitted) => RestoreError::NotPermitted { id, source },
            _ => RestoreError::Restore { id, source },
        })?;
        let fact =
            self.just_made(id).map_err(|source| RestoreError::Look { id, source: Box::new(source) })?;
        fact.ok_or_else(|| RestoreError::Restore { id, source: went_away("restore") })
    }

    /// The description in an image, checked to be of the right instance and fitted to this host.
    fn image_fitted(&self, spec: &RestoreSpec) -> Result<String, RestoreError> {
        let path = spec.image.to_string_lossy().into_owned();
        let text = self.link.call("read image", self.deadlines.query, move |connect| {
            VirtDomain::save_image_get_xml_desc(connect, &path, 0)
        });
        let text = text.map_err(|source| match source {
            CallError::Refused { .. } if source.refused() != Some(RefusalKind::ConnectionLost) => {
                RestoreError::Damaged { path: spec.image.clone(), source }
            }
            source => RestoreError::Restore { id: spec.id, source },
        })?;
        let image = Domain::parse(&text).map_err(RestoreError::Describe)?;
        let found = image.id().map_err(RestoreError::Describe)?;
        if found != spec.id {
            return Err(RestoreError::OtherInstance { path: spec.image.clone(), wanted: spec.id, found });
        }
        let fitted = restoring::fitted(&image, spec).map_err(RestoreError::Describe)?;
        fitted.write().map_err(RestoreError::Describe)
    }
}

fn went_away(call: &'static str) -> CallError {
    CallError::Refused {
        call,
        refusal: crate::refusal::Refusal {
            kind: RefusalKind::NoInstance,
            message: "it ended right after it began: see its log under /var/log/libvirt/qemu".to_owned(),
        },
    }
}
