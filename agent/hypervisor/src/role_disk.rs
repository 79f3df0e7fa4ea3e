//! Owns the check that a role disk is a whole erofs image before a guest is given it.
//!
//! Promises: a missing, foreign or cut-off file is found here and named, and not as a mount error in the guest.
//! Must not do: read the whole file; corruption in the middle is found by erofs itself.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::RoleDiskError;

/// Where erofs keeps its superblock, and its length without extensions.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 128;
const MAGIC: u32 = 0xE0F5_E1E2;

/// Looks at a role disk.
///
/// # Errors
/// [`RoleDiskError::Missing`] or [`RoleDiskError::Damaged`].
pub fn check(path: &Path) -> Result<(), RoleDiskError> {
    let missing = |source| RoleDiskError::Missing { path: path.to_owned(), source };
    let damaged = |why: &str| Err(RoleDiskError::Damaged { path: path.to_owned(), why: why.to_owned() });
    let file = File::open(path).map_err(missing)?;
    let length = file.metadata().map_err(missing)?.len();
    let mut superblock = [0; SUPERBLOCK_BYTES];
    if file.read_exact_at(&mut superblock, SUPERBLOCK_AT).is_err() {
        return damaged("too short for an erofs image");
    }
    let word = |at: usize| {
        u32::from_le_bytes([superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]])
    };
    if word(0) != MAGIC {
        return damaged("not an erofs image");
    }
    let (block_bits, blocks) = (superblock[12], u64::from(word(36)));
    if !(9..=16).contains(&block_bits) {
        return damaged("an impossible block size");
    }
    if length < blocks << block_bits {
        return damaged("cut off");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(change: impl Fn(&mut Vec<u8>)) -> Result<(), RoleDiskError> {
        let mut bytes = vec![0; 8 * 4096];
        bytes[1024..1028].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[1024 + 12] = 12;
        bytes[1024 + 36..1024 + 40].copy_from_slice(&8u32.to_le_bytes());
        change(&mut bytes);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        check(file.path())
    }

    #[test]
    fn a_whole_image_is_taken_and_every_other_file_is_named_as_what_it_is() {
        assert!(image(|_| {}).is_ok());
        for (change, says) in [
            ((|b: &mut Vec<u8>| b.clear()) as fn(&mut Vec<u8>), "too short"),
            (|b| b.truncate(1100), "too short"),
            (|b| b.truncate(4096), "cut off"),
            (|b| b[1024] ^= 1, "not an erofs"),
            (|b| b[1036] = 40, "block size"),
        ] {
            let error = image(change).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        assert!(matches!(check(Path::new("/nowhere/role")), Err(RoleDiskError::Missing { .. })));
    }
}
