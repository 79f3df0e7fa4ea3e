//! Owns the permits without which libvirt's hook lets no managed instance start, be restored or come in.
//!
//! A permit is a file `<folder>/<uuid>` of four lines: UUID, epoch, boot id, expiry in whole seconds of
//! `CLOCK_BOOTTIME`. Beside it lies `<uuid>.floor` with the highest epoch that this host has heard of for the
//! instance: an older permit is void, whoever wrote it. One permit covers one start: the hook removes it when the
//! instance runs, and until then every phase of that start (`restore` or `migrate`, then `prepare` and `start`)
//! looks at the same one.
//!
//! Promises: a permit is there whole or not at all; the floor never sinks during a boot. Must not do: decide who
//! may start; keep anything over a reboot (the folder is under /run, and the boot id makes an old one void).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_core::model::ids::{BootId, Epoch, InstanceId};
use understudy_core::model::units::Boottime;

/// Where the hook looks.
pub const FOLDER: &str = "/run/understudy/permits";

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why a permit was not written or removed.
#[derive(Debug, thiserror::Error)]
pub enum PermitError {
    /// A newer epoch is known.
    #[error("no permit for instance {id} in epoch {asked}: this host has heard of epoch {known}")]
    OldEpoch {
        /// For which instance.
        id: InstanceId,
        /// The epoch asked for.
        asked: Epoch,
        /// The newest one known.
        known: Epoch,
    },
    /// The file could not be written, read or removed.
    #[error("cannot keep permits in {}: the agent must be able to write there", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The permits of this host.
#[derive(Debug, Clone)]
pub struct Permits {
    folder: PathBuf,
    boot: BootId,
}

/// This boot's id.
///
/// # Errors
/// When the kernel does not tell.
pub fn boot_id() -> io::Result<BootId> {
    Ok(BootId(fs::read_to_string(BOOT_ID)?.trim().to_owned()))
}

impl Permits {
    /// Opens the folder, making it when it is not there, readable by root alone.
    ///
    /// # Errors
    /// When it cannot be made or the boot id cannot be read.
    pub fn open(folder: &Path) -> Result<Self, PermitError> {
        let wrap = |source| PermitError::File { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(wrap)?;
        let only_root = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(folder, only_root).map_err(wrap)?;
        Ok(Self { folder: folder.to_owned(), boot: boot_id().map_err(wrap)? })
    }

    /// Lets the instance start once in this epoch, within `life` from `now`.
    ///
    /// # Errors
    /// When a newer epoch is known, or the file cannot be written.
    pub fn grant(
        &self,
        id: InstanceId,
        epoch: Epoch,
        now: Boottime,
        life: Duration,
    ) -> Result<(), PermitError> {
        let known = self.floor(id)?;
        if epoch < known {
            return Err(PermitError::OldEpoch { id, asked: epoch, known });
        }
        self.raise(id, epoch)?;
        // Rounded up, because the hook reads whole seconds; a permit of no life would else be valid for none.
        let expiry = (now + life).0.div_ceil(1_000_000_000);
        self.write(&id.to_string(), &format!("{id}\n{epoch}\n{}\n{expiry}\n", self.boot))
    }

    /// Takes an unused permit back. None is fine.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn revoke(&self, id: InstanceId) -> Result<(), PermitError> {
        let path = self.folder.join(id.to_string());
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(PermitError::File { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Notes that this host has heard of an epoch for the instance: older permits are void from here on.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn raise(&self, id: InstanceId, epoch: Epoch) -> Result<(), PermitError> {
        if epoch <= self.floor(id)? {
            return Ok(());
        }
        self.write(&floor_name(id), &format!("{epoch}\n"))
    }

    /// The newest epoch that this host has heard of for the instance in this boot.
    ///
    /// # Errors
    /// When the file is there and cannot be understood.
    pub fn floor(&self, id: InstanceId) -> Result<Epoch, PermitError> {
        let path = self.folder.join(floor_name(id));
        let wrap = |source| PermitError::File { path: path.clone(), source };
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Epoch::default()),
            Err(error) => Err(wrap(error)),
            Ok(text) => text.trim().parse().map(Epoch).map_err(|error| wrap(io::Error::other(error))),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<(), PermitError> {
        let path = self.folder.join(name);
        let draft = self.folder.join(format!(".{name}.new"));
        let written = File::create(&draft).and_then(|mut file| file.write_all(text.as_bytes()));
        // No fsync: the folder does not outlive the boot, and the permit must not either.
        written.and_then(|()| fs::rename(&draft, &path)).map_err(|source| PermitError::File { path, source })
    }
}

fn floor_name(id: InstanceId) -> String {
    format!("{id}.floor")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Boottime = Boottime(100_500_000_000);

    fn id() -> InstanceId {
        "11111111-2222-4333-8444-000000000001".parse().unwrap()
    }

    #[test]
    fn a_permit_says_who_when_and_until_when() {
        let folder = tempfile::tempdir().unwrap();
        let permits = Permits::open(&folder.path().join("permits")).unwrap();
        permits.grant(id(), Epoch(3), NOW, Duration::from_secs(10)).unwrap();
        let text = fs::read_to_string(folder.path().join("permits").join(id().to_string())).unwrap();
        let boot = boot_id().unwrap();
        assert_eq!(text, format!("11111111-2222-4333-8444-000000000001\n3\n{boot}\n111\n"));
        permits.revoke(id()).unwrap();
        permits.revoke(id()).unwrap();
        assert!(!folder.path().join("permits").join(id().to_string()).exists());
    }

    #[test]
    fn an_older_epoch_than_the_newest_heard_of_gets_no_permit() {
        let folder = tempfile::tempdir().unwrap();
        let permits = Permits::open(folder.path()).unwrap();
        permits.raise(id(), Epoch(5)).unwrap();
        permits.raise(id(), Epoch(4)).unwrap();
        assert_eq!(permits.floor(id()).unwrap(), Epoch(5));
        let refused = permits.grant(id(), Epoch(4), NOW, Duration::from_secs(1));
        assert!(matches!(refused, Err(PermitError::OldEpoch { known: Epoch(5), .. })));
        permits.grant(id(), Epoch(5), NOW, Duration::from_secs(1)).unwrap();
        permits.grant(id(), Epoch(6), NOW, Duration::from_secs(1)).unwrap();
        assert_eq!(Permits::open(folder.path()).unwrap().floor(id()).unwrap(), Epoch(6));
    }

    #[test]
    fn a_floor_that_cannot_be_understood_gives_no_permit() {
        let folder = tempfile::tempdir().unwrap();
        let permits = Permits::open(folder.path()).unwrap();
        fs::write(folder.path().join(floor_name(id())), "many\n").unwrap();
        assert!(matches!(
            permits.grant(id(), Epoch(9), NOW, Duration::from_secs(1)),
            Err(PermitError::File { .. })
        ));
    }
}
