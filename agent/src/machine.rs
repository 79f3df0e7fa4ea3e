//! Owns what tells this machine from another one with the same host's name.
//!
//! Promises: a clone of the disk on other hardware, and another installation on the same hardware, are other machines; what
//! leaves this module is a hash that serves nothing else. Must not do: decide what follows.
//!
//! `/etc/machine-id` alone would not do: whoever clones a host's disk clones it too, and that is how two hosts come to one
//! name. DMI's UUID alone would not either: a reinstalled host is another host, whose instances are gone. So both are
//! taken, the second where it can be read; systemd asks for the first to be hashed before it is shown to anybody.

use std::path::Path;

use understudy_core::model::ids::MachineId;

const INSTALLATION: &str = "etc/machine-id";
const HARDWARE: &str = "sys/class/dmi/id/product_uuid";
/// What the hash is for, so that it equals no other program's.
const CONTEXT: &str = "understudy 2026-11 machine of a host lease";

/// This machine, seen below `root`. Unknown where there is no machine id.
#[must_use]
pub fn machine_id(root: &Path) -> MachineId {
    let read = |path: &str| {
        let text = std::fs::read_to_string(root.join(path)).unwrap_or_default();
        text.trim().to_ascii_lowercase()
    };
    let (installation, hardware) = (read(INSTALLATION), read(HARDWARE));
    if installation.is_empty() {
        return MachineId::default();
    }
    let key = blake3::derive_key(CONTEXT, format!("{installation}\n{hardware}").as_bytes());
    MachineId(key[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(installation: Option<&str>, hardware: Option<&str>) -> MachineId {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [(INSTALLATION, installation), (HARDWARE, hardware)] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if let Some(text) = text {
                std::fs::write(path, text).unwrap();
            }
        }
        machine_id(root.path())
    }

    #[test]
    fn a_cloned_disk_and_a_new_installation_are_other_machines() {
        let first = of(Some("aaaa\n"), Some("UUID-1\n"));
        assert_eq!(first, of(Some("aaaa"), Some("uuid-1")), "it stays the same");
        assert_eq!(first.0.len(), 32);
        assert!(!first.0.contains("aaaa"));
        for other in
            [of(Some("aaaa"), Some("uuid-2")), of(Some("bbbb"), Some("uuid-1")), of(Some("aaaa"), None)]
        {
            assert!(first.differs_from(&other), "{other}");
        }
        assert!(!first.differs_from(&of(None, Some("uuid-1"))), "not known");
    }
}
