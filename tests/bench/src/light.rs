//! Owns the light role disk: a role whose commands do nothing, so that twenty-four emulated guests fit on two processors.
//!
//! Promises: kernel, initramfs and template are those of the build, and so is the way in which the agent deploys it; what a guest
//! would do for a person is left out. Must not do: serve a benchmark that times what guests do.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use understudy_e2e::stage::Artifacts;

/// The shell is that of the initramfs, which the role's own root sees through the first process: that one stays in the
/// folder `/`, as busybox's init does.
const NOTHING: &str = "#!/proc/1/cwd/bin/sh\n# A role that does nothing.\nexit 0\n";
/// What the guest calls (config/guest/README.md, The us contract).
const SCRIPTS: [&str; 4] = ["prepare", "display", "exec", "health"];
/// What the guest mounts into the root of a role.
const MOUNTS: [&str; 5] = ["dev", "proc", "sys", "run", "tmp"];

/// The same artifacts with the light role, made in `scratch`.
///
/// # Errors
/// When the images cannot be copied, or `mkfs.erofs` fails.
pub(crate) fn role(artifacts: &Artifacts, scratch: &Path) -> Result<Artifacts> {
    let (tree, images) = (scratch.join("role"), scratch.join("images"));
    for folder in [&tree, &images] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        }
    }
    let scripts = tree.join("usr/lib/understudy");
    let folders = MOUNTS.map(|name| tree.join(name));
    for folder in folders.iter().chain([&scripts, &images]) {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let contract = artifacts.root.join("config/guest/role/contract");
    fs::copy(&contract, scripts.join("contract")).with_context(|| format!("copy {}", contract.display()))?;
    for name in SCRIPTS {
        let path = scripts.join(name);
        fs::write(&path, NOTHING).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    }
    for name in ["vmlinuz", "initrd.img"] {
        let from = artifacts.images.join(name);
        fs::copy(&from, images.join(name)).with_context(|| format!("copy {}", from.display()))?;
    }
    let made = Command::new("mkfs.erofs")
        .arg("-T0")
        .args([&images.join("role.erofs"), &tree])
        .output()
        .context("start mkfs.erofs (package erofs-utils)")?;
    ensure!(made.status.success(), "mkfs.erofs: {}", String::from_utf8_lossy(&made.stderr).trim());
    Ok(Artifacts { images, ..artifacts.clone() })
}
