//! What a host sees of the file system.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::disk::{Bind, FILES, FOLDERS, HostConfig, OVERLAYS};
use crate::error::{At, Doing, LabError};

const NONE: Option<&str> = None;

/// Nothing that is mounted here reaches the machine. What is unmounted there goes away here too, where it
/// was shared: a host must not hold the machine's disks.
pub(crate) fn make_private() -> Result<(), LabError> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE).doing("make all mounts private")
}

/// Lets go of the machine's named network namespaces, which a copied mount would keep alive.
fn let_go() {
    while umount2("/run/netns", MntFlags::MNT_DETACH).is_ok() {}
}

/// Everything, in the order in which sources are still visible: `/run` is covered last.
pub(super) fn mount_all(config: &HostConfig) -> Result<(), LabError> {
    let_go();
    for (name, target) in OVERLAYS {
        let base = config.disk.join("overlay").join(name);
        let options = format!(
            "lowerdir={target},upperdir={},workdir={}",
            base.join("upper").display(),
            base.join("work").display()
        );
        mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_str())).doing(
            format!(
                "lay an overlay over {target}: LabOptions::dir must be on a disk that overlayfs can write to"
            ),
        )?;
    }
    for (from, to) in FOLDERS.into_iter().chain(FILES) {
        bind(&Bind { source: config.disk.join(from), target: to.into(), read_only: false })?;
    }
    for extra in &config.binds {
        bind(extra)?;
    }
    pseudo("proc", "/proc", NONE)?;
    pseudo("sysfs", "/sys", NONE)?;
    // libvirt must not find the machine's cgroups.
    pseudo("tmpfs", "/sys/fs/cgroup", Some("mode=755"))?;
    let boot_id = config.disk.join("boot_id");
    let target = Path::new("/proc/sys/kernel/random/boot_id");
    bind(&Bind { source: boot_id, target: target.into(), read_only: true })?;
    pseudo("tmpfs", "/run", Some("mode=755"))?;
    for folder in ["/run/lock", "/run/libvirt", "/run/understudy", super::supervisor::NOTIFY] {
        fs::create_dir_all(folder).at("create", Path::new(folder))?;
    }
    Ok(())
}

/// Shows a folder or file of the machine at another path.
pub(super) fn bind(bind: &Bind) -> Result<(), LabError> {
    let Bind { source, target, read_only } = bind;
    let kind = fs::metadata(source).at("look at", source)?;
    if !target.exists() {
        let folder = if kind.is_dir() { Some(target.as_path()) } else { target.parent() };
        if let Some(folder) = folder {
            fs::create_dir_all(folder).at("create", folder)?;
        }
        if !kind.is_dir() {
            fs::write(target, "").at("create", target)?;
        }
    }
    let words = format!("bind {} to {}", source.display(), target.display());
    mount(Some(source), target, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).doing(words.as_str())?;
    if *read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, target, NONE, flags, NONE).doing(format!("{words} read-only"))?;
    }
    Ok(())
}

fn pseudo(kind: &str, target: &str, options: Option<&str>) -> Result<(), LabError> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
        .doing(format!("mount {kind} on {target}"))
}
