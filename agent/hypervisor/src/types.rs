//! Owns the plain words in which instances are described, asked for and reported.
//!
//! Promises: nothing here is specific to libvirt. Must not do: any work.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_core::model::units::{MiB, Vcpus};

use crate::process::Pid;
use crate::template::Template;

/// A network card's hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// A text that is no hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a MAC address: use six hexadecimal bytes such as 52:54:00:12:34:56")]
pub struct MacError(String);

impl MacAddress {
    /// The address of an instance that asks for none: QEMU's prefix and the last bytes of its UUID, so that the
    /// same instance has the same address wherever it is created.
    #[must_use]
    pub fn derived(id: InstanceId) -> Self {
        let uuid = id.uuid();
        let bytes = uuid.as_bytes();
        Self([0x52, 0x54, 0x00, bytes[13], bytes[14], bytes[15]])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = MacError;
    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| is_byte(part)).ok_or_else(|| MacError(text.to_owned()))?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacError(text.to_owned()))?;
        }
        if parts.next().is_some() { Err(MacError(text.to_owned())) } else { Ok(Self(bytes)) }
    }
}

/// Whether a text is two hexadecimal digits; the number parser alone would take a sign too.
fn is_byte(text: &str) -> bool {
    text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;
    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        mac.to_string()
    }
}

/// What the agent writes onto an instance itself, so that it can be read back after an agent's restart and by
/// the permit hook.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Note {
    /// The newest epoch in which something was done with this instance; 0 while it is idle.
    pub epoch: Epoch,
    /// The address that the guest was given.
    pub address: Option<IpAddr>,
}

/// Why an instance stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseCause {
    /// Somebody asked for it.
    Asked,
    /// It was restored paused or received paused and not resumed yet, or it is the source of a migration of which
    /// the end is not known. (libvirt has one word for these.)
    Migration,
    /// Its memory is being saved.
    Saving,
    /// A disk did not answer.
    IoError,
    /// Its watchdog fired.
    Watchdog,
    /// The guest's kernel panicked.
    Panicked,
    /// It is on its way up or down.
    Changing,
    /// libvirt names no cause that this crate knows.
    Unknown,
}

/// What libvirt says of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// Its processors run.
    Running,
    /// Its processors stand still; the process is there.
    Paused(PauseCause),
    /// The guest is shutting down; the process is there.
    ShuttingDown,
    /// The guest crashed and the process is kept for a look.
    Crashed,
    /// libvirt has no process for it. No proof that there is none: see [`Liveness`].
    Off,
}

/// One managed instance, as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceFact {
    /// Its UUID.
    pub id: InstanceId,
    /// Its name on this host.
    pub name: String,
    /// What libvirt says of it.
    pub state: InstanceState,
    /// The qemu process that carries its UUID; `None` when there is none or it is not looked for.
    pub pid: Option<Pid>,
    /// What the agent wrote onto it.
    pub note: Note,
    /// Its memory.
    pub memory: MiB,
    /// Its processors.
    pub vcpus: Vcpus,
    /// The address of its first network card.
    pub mac: Option<MacAddress>,
    /// Whether the link of its first network card is up.
    pub link_up: bool,
    /// Whether the guest has opened its agent's channel.
    pub agent_connected: bool,
    /// The file that it has as its role disk.
    pub role_disk: Option<PathBuf>,
}

/// What is known of an instance's liveness, for decisions that need its death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// libvirt answered that it is off or unknown, *and* no process of this host carries its UUID.
    Gone,
    /// libvirt has it.
    Known(InstanceState),
    /// libvirt does not have it, a process that carries its UUID is there all the same.
    ProcessOnly(Pid),
}

/// The host's room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// The host's logical processors.
    pub vcpus: Vcpus,
    /// The host's memory.
    pub memory_total: MiB,
    /// The memory that can be given out without swapping, page cache counted as free.
    pub memory_free: MiB,
}

/// An instance to create.
#[derive(Debug, Clone)]
pub struct InstanceSpec {
    /// Its UUID.
    pub id: InstanceId,
    /// Its name; unique on the host.
    pub name: String,
    /// What it is made from.
    pub template: Arc<Template>,
    /// Its memory.
    pub memory: MiB,
    /// Its processors.
    pub vcpus: Vcpus,
    /// The address of its first network card; derived from the UUID when `None`.
    pub mac: Option<MacAddress>,
    /// What to write onto it.
    pub note: Note,
}

/// A command to run inside a guest.
#[derive(Debug, Clone)]
pub struct GuestCommand {
    /// Program and arguments; no shell is involved.
    pub argv: Vec<String>,
    /// What the program reads from its standard input.
    pub stdin: Vec<u8>,
    /// How long to wait for the program's end.
    pub deadline: Duration,
}

/// How a command in a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestOutput {
    /// The exit code; 128 + the signal's number when a signal ended it, as shells say it.
    pub exit: i32,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

/// A finished save of an instance's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedMemory {
    /// Size of the image file.
    pub bytes: u64,
    /// How long the whole took.
    pub took: Duration,
    /// How long the guest stood still, from libvirt's own suspend and resume events; `took` when they were not
    /// seen.
    pub pause: Duration,
}

/// An instance to bring back from an image.
#[derive(Debug, Clone)]
pub struct RestoreSpec {
    /// The image, as [`crate::Hypervisor::save_memory`] wrote it.
    pub image: PathBuf,
    /// The instance that the image must be of.
    pub id: InstanceId,
    /// This host's template: the emulator, kernel, bridge and log paths of this host are taken from it.
    pub template: Arc<Template>,
    /// Where the role disk lies on this host, when the instance has one.
    pub role_disk: Option<PathBuf>,
    /// What to write onto it: the epoch of the restore.
    pub note: Note,
}

/// Where an instance is to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationTarget {
    /// libvirt's address of the destination as the source's libvirtd reaches it: `qemu+tls://host2/system`.
    pub uri: String,
    /// Whether memory travels encrypted between the two qemu processes.
    pub tls: bool,
    /// The name in the destination's certificate, when it is not the host name that libvirt finds by itself.
    pub tls_name: Option<String>,
    /// Where the destination's qemu listens: `tcp://10.0.0.2`; libvirt's choice when `None`.
    pub data_uri: Option<String>,
    /// The most MiB per second; libvirt's default when `None`.
    pub bandwidth: Option<MiB>,
}

/// How a migration ended, found out on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigrationOutcome {
    /// It is on the destination, paused, and nothing of it is left here. Whoever watches over the destination
    /// resumes it.
    Moved {
        /// How long the call took.
        took: Duration,
    },
    /// It is still here, and the destination has nothing of it that ever ran. It may have been left paused.
    StayedHere {
        /// Why it did not move.
        why: String,
    },
    /// One side does not answer, it runs on the destination too or neither has it: hold, and look again.
    Unknown {
        /// What was seen.
        why: String,
        /// Whether this host's libvirt has it.
        still_here: bool,
    },
}

/// Counters of one network card since the instance began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    /// The host's name of the card.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Packets dropped on receive.
    pub rx_drops: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Packets dropped on send.
    pub tx_drops: u64,
}

/// Counters of one disk since the instance began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockStats {
    /// The guest's name of the disk.
    pub name: String,
    /// Bytes read.
    pub read_bytes: u64,
    /// Read requests.
    pub read_requests: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Write requests.
    pub write_requests: u64,
}

/// Counters of one domain, managed or not, for the metrics. A figure that could not be had without waiting is
/// `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceStats {
    /// Its UUID.
    pub id: InstanceId,
    /// Its name on this host.
    pub name: String,
    /// What libvirt says of it.
    pub state: InstanceState,
    /// Processor time used, all processors together.
    pub cpu_time: Option<Duration>,
    /// Memory that the guest has at present, in KiB.
    pub memory_current_kib: Option<u64>,
    /// Memory that the guest may have at most, in KiB.
    pub memory_maximum_kib: Option<u64>,
    /// The qemu process's resident memory, in KiB.
    pub memory_rss_kib: Option<u64>,
    /// Processors at present.
    pub vcpus: Option<Vcpus>,
    /// Its network cards.
    pub interfaces: Vec<InterfaceStats>,
    /// Its disks.
    pub blocks: Vec<BlockStats>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_reads_back_as_it_was_written() {
        assert_eq!("52:54:00:AB:cd:0f".parse::<MacAddress>().unwrap().to_string(), "52:54:00:ab:cd:0f");
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:0f:11",
            "52-54-00-ab-cd-0f",
            "52:54:00:ab:cd:+1",
            "5:4:0:1:2:3",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }
}
