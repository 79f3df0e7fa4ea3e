//! Owns what a lab is raised with: plain data and its defaults.

use std::path::PathBuf;

/// How a lab is raised.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// Name of the lab and of its cgroups: `ustlab` and up to 12 lower-case letters, digits or dashes.
    /// Labs with different prefixes stand beside each other.
    pub prefix: String,
    /// How many hosts.
    pub hosts: u8,
    /// Folder for the hosts' disks, on a real file system (overlayfs writes there). Removed at the end.
    /// `/var/tmp/understudy-lab-PREFIX` when not given.
    pub dir: Option<PathBuf>,
    /// Whether the hosts (the first five) carry etcd members.
    pub etcd: bool,
    /// Heartbeat of etcd; its own default is 100 ms.
    pub etcd_heartbeat_ms: u32,
    /// Election time-out of etcd; its own default is 1000 ms.
    pub etcd_election_ms: u32,
    /// Whether the hosts run libvirtd.
    pub libvirt: bool,
    /// A file that is installed as `/etc/libvirt/hooks/qemu`. libvirtd looks for it only when it starts.
    pub libvirt_hook: Option<PathBuf>,
    /// The binary that plays PID 1 of the hosts, if the calling one does not start with
    /// [`crate::init_if_asked`] (a test binary): the path of `lab`.
    pub helper: Option<PathBuf>,
    /// Where the hosts' consoles and logs are copied to before the lab is taken down, whatever for: the one
    /// way to them when raising it failed. Not copied when a signal ends the process.
    pub logs: Option<PathBuf>,
    /// Whether a lab of the same prefix that was kept on purpose is taken down first.
    pub replace_kept: bool,
}

impl Default for LabOptions {
    fn default() -> Self {
        LabOptions {
            prefix: "ustlab".to_owned(),
            hosts: 3,
            dir: None,
            etcd: true,
            etcd_heartbeat_ms: 100,
            etcd_election_ms: 1000,
            libvirt: true,
            libvirt_hook: None,
            helper: None,
            logs: None,
            replace_kept: false,
        }
    }
}
