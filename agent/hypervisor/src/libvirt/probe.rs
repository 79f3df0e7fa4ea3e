//! Owns the trial of snapshots on a guest of its own: whether this host's qemu, kernel and libvirt can take one, and whether a
//! guest survives one that breaks off.
//!
//! The guest is a boot sector that changes 128 pages over and over and counts its rounds, so that it stands still as soon as
//! one of those pages is held; the count is read through qemu's monitor. Two snapshots are taken of it. The first one goes as
//! those of instances go, and has to be whole. The second goes into a pipe that nobody reads, so that the guest stands still in
//! the middle of it; then the pipe is closed, and the guest has to go on. QEMU 10.0.2 does; on 7.2 it never ran again.
//!
//! Promises: tried, not guessed from versions; the guest is removed whatever happens: by libvirt when this process ends, by its
//! UUID here and at the next trial. Must not do: touch an instance, other than to set right what an earlier agent left there.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;
use serde_json::json;
use understudy_core::errors::chain;
use understudy_core::model::ids::InstanceId;
use uuid::Uuid;
use virt::domain::Domain as VirtDomain;
use virt_sys as sys;

use super::Libvirt;
use super::monitor::Question;
use crate::error::CallError;
use crate::process;
use crate::refusal::RefusalKind;
use crate::snapshot::{MonitorError, ProbeError, SnapshotError, Tier};
use crate::xml::Element;

/// The guest's, on every host alike: it never leaves one.
pub(super) const TRIAL: Uuid = Uuid::from_u128(0x756e_6465_7273_4475_8079_7472_6961_6c00);
/// The file that it boots from, in the folder that is given.
const DISK: &str = "snapshot-trial.img";
/// The guest: below 640 KiB, with interrupts off.
///
/// ```text
///        cli; xor ax,ax; mov ds,ax
/// round: mov ax,0x1000
/// page:  mov es,ax; inc dword es:[0]; add ax,0x100; cmp ax,0x9000; jb page
///        inc dword [0x7000]; jmp round
/// ```
const GUEST: [u8; 31] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xb8, 0x00, 0x10, 0x8e, 0xc0, 0x26, 0x66, 0xff, 0x06, 0x00, 0x00, 0x05,
    0x00, 0x01, 0x3d, 0x00, 0x90, 0x72, 0xf0, 0x66, 0xff, 0x06, 0x00, 0x70, 0xeb, 0xe6,
];
/// Reads the count of rounds.
const COUNT: &str = "xp /1wx 0x7000";
const SECTOR: usize = 512;
/// SeaBIOS reads nothing of a disk that has no whole cylinder.
const DISK_BYTES: u64 = 1 << 20;
/// Until the guest counts. Emulated on a busy machine its firmware takes seconds.
const BOOT: Duration = Duration::from_secs(30);
/// For one snapshot of 16 MiB: tens of milliseconds.
const SNAPSHOT: Duration = Duration::from_secs(20);
/// A guest that has got its page back goes on at once. A busy host is given more, because being wrong costs it its snapshots
/// until the agent starts again; one that never runs again is not known by less.
const GOES_ON: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);
/// How long the guest has to come to a page that is held, of a million rounds a second.
const STILL: Duration = Duration::from_millis(50);
/// What lets others than root use userfaultfd.
const SYSCTL: &str = "/proc/sys/vm/unprivileged_userfaultfd";

/// What is wrong with snapshots here.
enum Fault {
    /// It is known.
    Known(String),
    /// libvirt could not be asked.
    Ask(CallError),
    /// The host had no time or memory for it at the moment.
    Later(String),
}

impl From<MonitorError> for Fault {
    fn from(error: MonitorError) -> Self {
        match error {
            MonitorError::Ask { source, .. } if is_silent(&source) => Self::Ask(source),
            error => Self::Known(chain(&error)),
        }
    }
}

impl Libvirt {
    pub(super) fn try_snapshots(&self, folder: &Path) -> Result<Tier, ProbeError> {
        for instance in self.list().map_err(ProbeError::List)? {
            let Some(_job) = self.jobs.begin(instance.id, self.deadlines.change) else { continue };
            if let Err(error) = self.reset_held(instance.id) {
                tracing::error!(id = %instance.id, error = %chain(&error), "what an earlier snapshot left cannot be set right");
            }
        }
        let trial = InstanceId::from_uuid(TRIAL);
        self.remove_trial(trial)?;
        let disk = folder.join(DISK);
        write_disk(&disk).map_err(|source| ProbeError::Disk { path: disk.clone(), source })?;
        let tried = self.start_trial(&disk).and_then(|()| self.try_on(trial));
        let removed = self.remove_trial(trial);
        let tier = match tried {
            Ok(()) => Tier::Background,
            Err(Fault::Known(reason)) => Tier::Saved { reason },
            Err(Fault::Ask(source)) => return Err(ProbeError::Ask(source)),
            Err(Fault::Later(why)) => return Err(ProbeError::Later(why)),
        };
        removed?;
        Ok(tier)
    }

    fn remove_trial(&self, trial: InstanceId) -> Result<(), ProbeError> {
        self.end(trial).map_err(|error| ProbeError::Remove(Box::new(error)))
    }

    fn start_trial(&self, disk: &Path) -> Result<(), Fault> {
        let describe =
            |error: crate::xml::XmlError| Fault::Known(format!("cannot describe the trial's guest: {error}"));
        let xml = description(self.accelerator().domain_type(), disk).map_err(describe)?;
        let made = self.link.call("create", self.deadlines.start, move |connect| {
            VirtDomain::create_xml(connect, &xml, sys::VIR_DOMAIN_START_AUTODESTROY).map(|_| ())
        });
        made.map_err(|source| match source {
            _ if is_silent(&source) => Fault::Ask(source),
            _ => Fault::Known(format!(
                "the trial's guest cannot be started ({}): qemu must be able to read {}; then restart the agent",
                chain(&source),
                disk.display()
            )),
        })
    }

    fn try_on(&self, trial: InstanceId) -> Result<(), Fault> {
        if !self.counts(trial, BOOT)? {
            let text = "the trial's guest does not boot: see its log under /var/log/libvirt/qemu";
            return Err(Fault::Later(text.to_owned()));
        }
        match self.take_snapshot(trial, SNAPSHOT) {
            Ok(_) => {}
            Err(error) => return Err(self.fault(trial, error)),
        }
        if !self.counts(trial, GOES_ON)? {
            return Err(known("a guest does not go on after a snapshot: use another version of qemu"));
        }
        self.break_one_off(trial)
    }

    /// Takes a snapshot that breaks off in the middle. Until the pipe is closed nothing is asked of qemu: a device that writes
    /// into a page which is held stops its main loop, and with it the monitor.
    fn break_one_off(&self, trial: InstanceId) -> Result<(), Fault> {
        let no_pipe = |error: nix::errno::Errno| Fault::Known(format!("no pipe can be made: {error}"));
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(no_pipe)?;
        self.begin_stream(trial, writer.as_fd())?;
        let full = wait_full(&writer).map_err(no_pipe)?;
        drop((reader, writer));
        let goes_on = match self.counts(trial, GOES_ON) {
            // Its main loop stands still as well, which also libvirt says after a while.
            Err(MonitorError::Ask { source: CallError::TimedOut { .. }, .. }) => false,
            other => other?,
        };
        if !goes_on {
            return Err(known(
                "a guest does not go on after a snapshot that broke off, as under QEMU 7.2: \
                 use a newer one, 10.0.2 goes on",
            ));
        }
        let ended = self.wait_ended(trial, Instant::now() + GOES_ON)?;
        if !(full && ended.is_some_and(|stream| stream.state != "completed")) {
            return Err(known("a snapshot that was to break off did not: report this"));
        }
        self.leave(trial)?;
        Ok(())
    }

    /// Whether the guest's count rises.
    fn counts(&self, trial: InstanceId, limit: Duration) -> Result<bool, MonitorError> {
        let until = Instant::now() + limit;
        let first = self.count_of(trial)?;
        loop {
            if self.count_of(trial)? != first {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn count_of(&self, trial: InstanceId) -> Result<u32, MonitorError> {
        let command = "human-monitor-command";
        let question = Question::new(command, json!({ "command-line": COUNT }));
        let answer = self.ask_qemu(trial, question, self.deadlines.query)?;
        let text = answer.as_str().unwrap_or_default();
        let count =
            text.rsplit_once(": 0x").and_then(|(_, count)| u32::from_str_radix(count.trim(), 16).ok());
        count.ok_or_else(|| MonitorError::Answer { command, what: text.to_owned() })
    }

    /// What went wrong with a snapshot, and what to do where the kernel keeps qemu from userfaultfd.
    fn fault(&self, trial: InstanceId, error: SnapshotError) -> Fault {
        let text = chain(&error);
        match error {
            SnapshotError::Look { source, .. }
            | SnapshotError::Reset { source: MonitorError::Ask { source, .. }, .. }
            | SnapshotError::Begin { source: MonitorError::Ask { source, .. }, .. }
            | SnapshotError::Lost { source: MonitorError::Ask { source, .. }, .. }
            | SnapshotError::Leave { source: MonitorError::Ask { source, .. }, .. }
                if is_silent(&source) =>
            {
                Fault::Ask(source)
            }
            SnapshotError::Memory { .. } | SnapshotError::TimedOut { .. } | SnapshotError::Busy { .. } => {
                Fault::Later(text)
            }
            SnapshotError::Begin { source: MonitorError::Refused { .. }, .. } => {
                let others_may = fs::read_to_string(SYSCTL).is_ok_and(|text| text.trim() != "0");
                match self.user_of(trial) {
                    Some(user) if user != 0 && !others_may => Fault::Known(format!(
                        "{text}: qemu runs as user {user}, whom the kernel keeps from userfaultfd: \
                         'sysctl vm.unprivileged_userfaultfd=1' lets it, also in a file of /etc/sysctl.d; \
                         then restart the agent"
                    )),
                    _ => Fault::Known(text),
                }
            }
            _ => Fault::Known(text),
        }
    }

    /// The user as whom qemu runs.
    fn user_of(&self, id: InstanceId) -> Option<u32> {
        self.pid_folder.as_ref()?;
        let pid = process::process_of(id).ok()??;
        procfs::process::Process::new(pid.0).ok()?.uid().ok()
    }
}

/// Waits until a pipe takes no more, and for as long as the guest needs to notice. False when that does not come.
fn wait_full(writer: &OwnedFd) -> Result<bool, nix::errno::Errno> {
    let until = Instant::now() + SNAPSHOT;
    loop {
        let mut room = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
        let full = poll(&mut room, PollTimeout::ZERO)? == 0;
        std::thread::sleep(if full { STILL } else { LOOK });
        if full || Instant::now() >= until {
            return Ok(full);
        }
    }
}

/// Whether nothing is known for it: libvirtd is down, hangs, or went away in the middle.
fn is_silent(error: &CallError) -> bool {
    matches!(error.refused(), None | Some(RefusalKind::ConnectionLost))
}

fn known(text: &str) -> Fault {
    Fault::Known(text.to_owned())
}

/// A disk with that in its first sector, which whoever runs qemu may read.
fn write_disk(path: &PathBuf) -> std::io::Result<()> {
    let mut sector = GUEST.to_vec();
    sector.resize(SECTOR - 2, 0);
    sector.extend([0x55, 0xaa]);
    fs::write(path, sector)?;
    fs::File::options().write(true).open(path)?.set_len(DISK_BYTES)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

fn description(kind: &str, disk: &Path) -> Result<String, crate::xml::XmlError> {
    let text = format!(
        "<domain type='{kind}'><name>understudy-trial</name><uuid>{TRIAL}</uuid><memory unit='MiB'>16</memory>\
         <vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>\
         <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>\
         <devices><controller type='usb' model='none'/><memballoon model='none'/>\
         <disk type='file' device='disk'><driver name='qemu' type='raw'/><source/>\
         <target dev='vda' bus='virtio'/><readonly/></disk></devices></domain>"
    );
    let mut domain = Element::parse(&text)?;
    let source = domain
        .child_mut("devices")
        .and_then(|devices| devices.child_mut("disk"))
        .and_then(|disk| disk.child_mut("source"));
    if let Some(source) = source {
        source.set("file", &disk.to_string_lossy());
    }
    domain.write()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trials_guest_boots_from_a_sector_that_anybody_may_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DISK);
        write_disk(&path).unwrap();
        let sector = fs::read(&path).unwrap();
        assert_eq!(sector.len() as u64, DISK_BYTES);
        assert_eq!(sector[SECTOR - 2..SECTOR], [0x55, 0xaa]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn the_trials_guest_is_never_taken_for_an_instance() {
        let text = description("qemu", Path::new("/a folder/<x>.img")).unwrap();
        let domain = crate::domain::Domain::parse(&text).unwrap();
        assert_eq!(domain.id().unwrap().uuid(), TRIAL);
        assert!(domain.note().is_none(), "it is not managed");
        assert!(domain.writable_disk().is_none());
        assert_eq!(domain.disks()[0].source.as_deref(), Some(Path::new("/a folder/<x>.img")));
    }
}
