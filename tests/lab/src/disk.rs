//! The disk of a host: a folder of the machine that outlives the host's power.
//!
//! `etc/`, `lib/`, `log/`, `cache/` appear in the host as its own `/etc/libvirt`, `/etc/pki`,
//! `/etc/understudy`, `/var/lib/libvirt`, `/var/lib/understudy`, `/var/lib/etcd`, `/var/log`, `/var/cache`.
//! Everything else of `/etc` and `/var/lib` is the machine's, under a private overlay: so mount points can
//! be made in a host without leaving an empty folder on the machine.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{At, LabError};
use crate::net;
use crate::pki::Pki;
use crate::service::ServiceSpec;

/// Folders of the disk and where the host sees them.
pub(crate) const FOLDERS: [(&str, &str); 8] = [
    ("etc/libvirt", "/etc/libvirt"),
    ("etc/pki", "/etc/pki"),
    ("etc/understudy", "/etc/understudy"),
    ("lib/libvirt", "/var/lib/libvirt"),
    ("lib/understudy", "/var/lib/understudy"),
    ("lib/etcd", "/var/lib/etcd"),
    ("log", "/var/log"),
    ("cache", "/var/cache"),
];

/// Single files of the disk and where the host sees them.
pub(crate) const FILES: [(&str, &str); 3] =
    [("etc/hosts", "/etc/hosts"), ("etc/hostname", "/etc/hostname"), ("etc/machine-id", "/etc/machine-id")];

/// Folders of the machine under a private overlay, by the name of the overlay's folder on the disk.
pub(crate) const OVERLAYS: [(&str, &str); 2] = [("etc", "/etc"), ("lib", "/var/lib")];

/// No lab folder may lie below these: they are covered in a host.
pub(crate) const COVERED: [&str; 8] =
    ["/etc", "/var/lib", "/var/log", "/var/cache", "/run", "/var/run", "/proc", "/sys"];

/// A folder or file of the machine that a host sees too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the machine, not below a path that is covered in the host (`/run`, `/etc`, ...).
    pub source: PathBuf,
    /// Absolute path in the host; made when it is missing.
    pub target: PathBuf,
    /// Whether the host may only read it.
    pub read_only: bool,
}

/// What PID 1 of a host has to know: `host.json` on its disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostConfig {
    pub(crate) index: u8,
    pub(crate) name: String,
    pub(crate) disk: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) mgmt: Ipv4Addr,
    pub(crate) vm: Ipv4Addr,
    pub(crate) binds: Vec<Bind>,
}

impl HostConfig {
    pub(crate) fn file(disk: &Path) -> PathBuf {
        disk.join("host.json")
    }

    pub(crate) fn services_file(disk: &Path) -> PathBuf {
        disk.join("services.json")
    }

    pub(crate) fn read(file: &Path) -> Result<HostConfig, LabError> {
        let text = fs::read_to_string(file).at("read", file)?;
        serde_json::from_str(&text).map_err(std::io::Error::from).at("parse", file)
    }

    pub(crate) fn write(&self) -> Result<(), LabError> {
        write_json(&HostConfig::file(&self.disk), self)
    }
}

/// The services of a host in start order.
pub(crate) fn read_services(file: &Path) -> Result<Vec<ServiceSpec>, LabError> {
    let text = fs::read_to_string(file).at("read", file)?;
    serde_json::from_str(&text).map_err(std::io::Error::from).at("parse", file)
}

/// Writes `value` so that a reader sees the old or the new text, never a half.
pub(crate) fn write_json<T: Serialize>(file: &Path, value: &T) -> Result<(), LabError> {
    let text = serde_json::to_string_pretty(value).expect("plain data");
    let next = file.with_extension("next");
    fs::write(&next, text).at("write", &next)?;
    fs::rename(&next, file).at("replace", file)
}

/// Lays out the disk of a host that has none yet.
pub(crate) fn lay_out(
    config: &HostConfig,
    hosts: u8,
    pki: &Pki,
    hook: Option<&Path>,
    services: &[ServiceSpec],
) -> Result<(), LabError> {
    let disk = &config.disk;
    for (folder, _) in FOLDERS {
        let path = disk.join(folder);
        fs::create_dir_all(&path).at("create", &path)?;
    }
    // libvirtd does not make these by itself.
    for folder in ["log/libvirt/qemu", "cache/libvirt"] {
        let path = disk.join(folder);
        fs::create_dir_all(&path).at("create", &path)?;
    }
    for (overlay, _) in OVERLAYS {
        for part in ["upper", "work"] {
            let path = disk.join("overlay").join(overlay).join(part);
            fs::create_dir_all(&path).at("create", &path)?;
        }
    }
    put(disk, "etc/hosts", &hosts_file(hosts))?;
    put(disk, "etc/hostname", &format!("{}\n", config.name))?;
    put(disk, "etc/machine-id", &format!("{:032x}\n", 0x00ab_c000 + u32::from(config.index)))?;
    put(disk, "etc/libvirt/libvirtd.conf", &libvirtd_conf(config))?;
    put(disk, "etc/libvirt/qemu.conf", &qemu_conf(config))?;
    put(disk, "etc/libvirt/libvirt.conf", "")?;
    pki.install(&config.name, &disk.join("etc"))?;
    if let Some(hook) = hook {
        let target = disk.join("etc/libvirt/hooks/qemu");
        let folder = target.parent().expect("the path has a folder");
        fs::create_dir_all(folder).at("create", folder)?;
        fs::copy(hook, &target).at("copy the libvirt hook from", hook)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).at("make executable", &target)?;
    }
    write_json(&HostConfig::services_file(disk), &services)?;
    config.write()
}

fn put(disk: &Path, name: &str, text: &str) -> Result<(), LabError> {
    let path = disk.join(name);
    fs::write(&path, text).at("write", &path)
}

fn hosts_file(hosts: u8) -> String {
    let mut text = "127.0.0.1 localhost\n".to_owned();
    for index in 1..=hosts {
        text.push_str(&format!("{} {}\n", net::mgmt(index), net::host_name(index)));
    }
    text
}

/// Keep-alive of libvirt: 2 s x 3 instead of 5 s x 5, or a silent peer blocks a migration for 30 s.
const KEEPALIVE: &str = "keepalive_interval = 2\nkeepalive_count = 3\n";

fn libvirtd_conf(config: &HostConfig) -> String {
    let (index, mgmt) = (config.index, config.mgmt);
    format!(
        "listen_tls = 1\nlisten_tcp = 1\nlisten_addr = \"{mgmt}\"\n\
         auth_tcp = \"none\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n\
         unix_sock_group = \"root\"\nunix_sock_rw_perms = \"0700\"\n\
         host_uuid = \"{index:08}-77aa-4000-8000-{index:012}\"\n\
         log_level = 3\nlog_outputs = \"3:stderr\"\n{KEEPALIVE}"
    )
}

/// No security driver, no mount namespace and no cgroups for qemu: the machine's are none of a host's business.
fn qemu_conf(config: &HostConfig) -> String {
    let mgmt = config.mgmt;
    format!(
        "security_driver = \"none\"\nuser = \"root\"\ngroup = \"root\"\n\
         dynamic_ownership = 0\nremember_owner = 0\nnamespaces = []\ncgroup_controllers = []\n\
         stdio_handler = \"file\"\nmigration_address = \"0.0.0.0\"\nmigration_host = \"{mgmt}\"\n\
         default_tls_x509_cert_dir = \"/etc/pki/qemu\"\nmigrate_tls_x509_verify = 1\n{KEEPALIVE}"
    )
}
