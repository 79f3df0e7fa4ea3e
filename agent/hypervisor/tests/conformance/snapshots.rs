//! Snapshots under real qemu: of a guest that changes its memory all the time, with agents that hang and die in the middle.

use std::io::{Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid as UnixPid;
use serde_json::{Value, json};
use understudy_core::model::ids::InstanceId;
use understudy_core::model::units::MiB;
use understudy_hypervisor::{
    Hypervisor, InstanceSpec, InstanceState, Libvirt, MigrateError, MigrationTarget, Snapshot, SnapshotError,
    Tier,
};

use crate::host::{Host, LONG, chain, id, inside, until, virsh};

/// Set for the process that plays an agent, which is to be stopped and killed.
const AGENT: &str = "UNDERSTUDY_TEST_AGENT";
/// The UUID of the trial's guest.
const TRIAL: &str = "756e6465-7273-4475-8079-747269616c00";
const SECOND: Duration = Duration::from_secs(1);

/// A guest that changes 128 pages over and over, each page's first number once in a round, and counts the rounds.
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

struct Counter<'a> {
    host: &'a Host,
    hv: &'a Libvirt,
    id: InstanceId,
}

impl<'a> Counter<'a> {
    /// Starts one with as much memory as makes its snapshots last.
    fn start(host: &'a Host, hv: &'a Libvirt, number: u8, mib: u32) -> Self {
        let (disk, xml) = (host.folder.join("counter.img"), host.folder.join(format!("c{number}.xml")));
        let mut sector = GUEST.to_vec();
        sector.resize(510, 0);
        sector.extend([0x55, 0xaa]);
        sector.resize(1 << 20, 0);
        std::fs::write(&disk, sector).unwrap();
        let domain = format!(
            "<domain type='qemu'><name>c{number}</name><uuid>{}</uuid><memory unit='MiB'>{mib}</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>\
             <devices><controller type='usb' model='none'/><disk type='file' device='disk'>\
             <driver name='qemu' type='raw'/><source file='{}'/><target dev='vda' bus='virtio'/><readonly/></disk>\
             </devices></domain>",
            id(number),
            disk.display()
        );
        std::fs::write(&xml, domain).unwrap();
        let (ok, text) = virsh(&["create", &xml.display().to_string()]);
        assert!(ok, "{text}");
        let counter = Self { host, hv, id: id(number) };
        until("the guest counts", || counter.goes_on(SECOND));
        counter
    }

    fn ask(&self, command: &str, arguments: Value) -> Value {
        let command = json!({ "execute": command, "arguments": arguments });
        let answer = self.hv.monitor_with_files(self.id, &command, &[]);
        answer.unwrap_or_else(|error| panic!("{command}: {}", chain(&error)))["return"].take()
    }

    /// The first number of each of the guest's pages at these addresses.
    fn numbers(&self, pages: impl Iterator<Item = u32>) -> Vec<u32> {
        pages
            .map(|page| {
                let text =
                    self.ask("human-monitor-command", json!({ "command-line": format!("xp /1wx {page}") }));
                let (_, number) = text.as_str().unwrap().rsplit_once(": 0x").unwrap();
                u32::from_str_radix(number.trim(), 16).unwrap()
            })
            .collect()
    }

    fn rounds(&self) -> u32 {
        self.numbers(std::iter::once(0x7000))[0]
    }

    /// Whether it counts within a time.
    fn goes_on(&self, limit: Duration) -> bool {
        let (first, end) = (self.rounds(), Instant::now() + limit);
        while Instant::now() < end {
            if self.rounds() != first {
                return true;
            }
        }
        false
    }

    /// qemu's word for its last stream.
    fn stream(&self) -> String {
        self.ask("query-migrate", json!({}))["status"].as_str().unwrap_or("none").to_owned()
    }

    fn runs(&self) -> bool {
        self.ask("query-status", json!({}))["status"] == "running"
    }

    fn switch(&self, on: bool) {
        let wanted = json!({ "capabilities": [{ "capability": "background-snapshot", "state": on }] });
        self.ask("migrate-set-capabilities", wanted);
        assert_eq!(self.is_on(), on);
    }

    fn is_on(&self) -> bool {
        let all = self.ask("query-migrate-capabilities", json!({}));
        all.as_array()
            .unwrap()
            .iter()
            .any(|one| one["capability"] == "background-snapshot" && one["state"] == true)
    }

    fn snapshot(&self) -> Snapshot {
        self.hv.snapshot_memory(self.id, LONG).unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// Plays an agent that takes a snapshot, in a process of its own, which is in the middle of it when this returns.
    fn agent_in_the_middle(&self, test: &str) -> Child {
        for _ in 0..20 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads=1"])
                .env(AGENT, self.id.to_string())
                .spawn()
                .unwrap();
            while child.try_wait().unwrap().is_none() {
                if self.stream() == "active" {
                    return child;
                }
            }
        }
        panic!("a snapshot was never seen in the middle");
    }
}

impl Drop for Counter<'_> {
    fn drop(&mut self) {
        let _ = self.hv.destroy(self.id);
    }
}

/// Whether this process plays an agent; then it has done so.
fn plays_agent(host: &Host) -> bool {
    let Ok(id) = std::env::var(AGENT) else { return false };
    let snapshot = host.libvirt().snapshot_memory(id.parse().unwrap(), LONG);
    let snapshot = snapshot.unwrap_or_else(|error| panic!("{}", chain(&error)));
    eprintln!("figure: {:?}", snapshot.saved);
    true
}

fn signal(child: &Child, signal: Signal) {
    kill(UnixPid::from_raw(child.id().try_into().unwrap()), signal).expect("it is there");
}

#[test]
#[ignore = "needs a host"]
fn a_snapshot_is_of_one_moment_of_a_guest_that_changes_all_the_time() {
    inside("one", "snapshots::a_snapshot_is_of_one_moment_of_a_guest_that_changes_all_the_time", |host| {
        let hv = host.libvirt();
        let guest = Counter::start(host, &hv, 1, 128);
        for _ in 0..3 {
            let before = guest.rounds();
            let mut snapshot = guest.snapshot();
            let after = guest.rounds();
            eprintln!("figure: {:?}", snapshot.saved);
            assert!(guest.runs() && guest.goes_on(SECOND) && !guest.is_on());
            assert_eq!(snapshot.image.metadata().unwrap().len(), snapshot.saved.bytes);
            assert_eq!(snapshot.image.stream_position().unwrap(), 0);
            assert!(snapshot.saved.pause < Duration::from_millis(100), "{:?}", snapshot.saved);
            let image = guest.host.folder.join("image");
            std::io::copy(&mut snapshot.image, &mut std::fs::File::create(&image).unwrap()).unwrap();
            guest.hv.destroy(guest.id).unwrap();
            let (ok, text) = virsh(&["restore", &image.display().to_string(), "--paused"]);
            assert!(ok, "{text}");
            // Pages that are ahead by one are those that the round which was under way had come by.
            let rounds = guest.rounds();
            let pages = guest.numbers((0x10..0x90).map(|page| page * 0x1000));
            let ahead = pages.iter().take_while(|page| **page == rounds + 1).count();
            assert!(pages[ahead..].iter().all(|page| *page == rounds), "{rounds}: {pages:?}");
            assert!(before <= rounds && rounds <= after, "{before} {rounds} {after}");
            assert_eq!(guest.rounds(), rounds, "it is paused");
            assert!(virsh(&["resume", "c1"]).0);
            assert!(guest.goes_on(SECOND));
        }
    });
}

#[test]
#[ignore = "needs a host"]
fn a_snapshot_that_breaks_off_leaves_a_guest_that_runs_and_can_be_saved() {
    inside(
        "one",
        "snapshots::a_snapshot_that_breaks_off_leaves_a_guest_that_runs_and_can_be_saved",
        |host| {
            let hv = host.libvirt();
            let guest = Counter::start(host, &hv, 1, 1024);
            let late = hv.snapshot_memory(guest.id, Duration::from_millis(30));
            assert!(matches!(late, Err(SnapshotError::TimedOut { .. })), "{late:?}");
            assert!(["failed", "cancelled"].contains(&guest.stream().as_str()), "{}", guest.stream());
            assert!(guest.runs() && guest.goes_on(SECOND) && !guest.is_on());
            let saved = hv.save_memory(guest.id, &host.folder.join("save"), LONG).unwrap();
            eprintln!("figure: {saved:?}");
            eprintln!("figure: {:?}", guest.snapshot().saved);
            assert!(guest.runs() && guest.goes_on(SECOND));
        },
    );
}

#[test]
#[ignore = "needs a host"]
fn an_agent_that_hangs_or_dies_in_the_middle_of_a_snapshot_holds_no_guest_up() {
    let name = "snapshots::an_agent_that_hangs_or_dies_in_the_middle_of_a_snapshot_holds_no_guest_up";
    inside("one", name, |host| {
        if plays_agent(host) {
            return;
        }
        let hv = host.libvirt();
        let guest = Counter::start(host, &hv, 1, 1024);
        // It hangs: the guest runs on all the while, and the snapshot is whole when it wakes up.
        let mut agent = guest.agent_in_the_middle(name);
        signal(&agent, Signal::SIGSTOP);
        assert_eq!(guest.stream(), "active", "it was stopped in the middle");
        let (begun, mut longest) = (Instant::now(), Duration::ZERO);
        while begun.elapsed() < 2 * SECOND {
            let since = Instant::now();
            assert!(guest.goes_on(SECOND), "it stands still while its agent does");
            longest = longest.max(since.elapsed());
        }
        eprintln!(
            "figure: with its agent stopped the guest was seen to stand still for {longest:?} at the most"
        );
        assert_eq!(guest.stream(), "completed");
        signal(&agent, Signal::SIGCONT);
        assert!(agent.wait().unwrap().success(), "the snapshot was not whole");
        assert!(!guest.is_on());
        // It dies: the same, and the next agent finds a guest that runs, and sets right what is left.
        let mut agent = guest.agent_in_the_middle(name);
        signal(&agent, Signal::SIGKILL);
        agent.wait().unwrap();
        assert!(guest.goes_on(SECOND), "it stands still for its agent's death");
        assert!(guest.is_on(), "what was killed has left it so");
        let next = host.libvirt();
        assert!(guest.runs());
        eprintln!(
            "figure: {:?}",
            next.snapshot_memory(guest.id, LONG).unwrap_or_else(|e| panic!("{}", chain(&e))).saved
        );
        assert!(guest.runs() && guest.goes_on(SECOND) && !guest.is_on());
    });
}

#[test]
#[ignore = "needs a host"]
fn a_libvirtd_that_dies_in_the_middle_of_a_snapshot_holds_no_guest_up() {
    inside("one", "snapshots::a_libvirtd_that_dies_in_the_middle_of_a_snapshot_holds_no_guest_up", |host| {
        let (hv, other) = (host.libvirt(), host.libvirt());
        let guest = Counter::start(host, &hv, 1, 1024);
        let lost = std::thread::scope(|scope| {
            let taken = scope.spawn(|| other.snapshot_memory(guest.id, LONG));
            until("it is in the middle", || guest.stream() == "active");
            kill_libvirtd();
            taken.join().unwrap()
        });
        let Err(SnapshotError::Lost { .. }) = lost else { panic!("{lost:?}") };
        start_libvirtd();
        until("libvirt is back", || hv.instances().is_ok());
        assert!(guest.runs() && guest.goes_on(SECOND));
        assert!(guest.is_on(), "nobody could switch it off");
        hv.save_memory(guest.id, &host.folder.join("save"), LONG).unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert!(!guest.is_on());
        guest.snapshot();
        assert!(guest.runs() && guest.goes_on(SECOND));
    });
}

fn kill_libvirtd() {
    let mut pid = String::new();
    std::fs::File::open("/run/libvirtd.pid").unwrap().read_to_string(&mut pid).unwrap();
    kill(UnixPid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    until("it is gone", || !Path::new(&format!("/proc/{}", pid.trim())).exists());
    let _ = std::fs::remove_file("/run/libvirtd.pid");
}

fn start_libvirtd() {
    let started = Command::new("libvirtd").args(["--daemon", "--pid-file", "/run/libvirtd.pid"]).status();
    assert!(started.unwrap().success());
}

#[test]
#[ignore = "needs a host"]
fn what_an_earlier_agent_left_is_set_right_before_a_save_and_a_move_and_by_the_trial() {
    let name = "snapshots::what_an_earlier_agent_left_is_set_right_before_a_save_and_a_move_and_by_the_trial";
    inside("one", name, |host| {
        let hv = host.libvirt();
        let guest = Counter::start(host, &hv, 1, 64);
        guest.switch(true);
        hv.save_memory(guest.id, &host.folder.join("save"), LONG).unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert!(!guest.is_on() && guest.runs() && guest.goes_on(SECOND));
        guest.switch(true);
        let nowhere = MigrationTarget {
            uri: "qemu+unix:///system?socket=/nowhere".to_owned(),
            tls: false,
            tls_name: None,
            data_uri: None,
            bandwidth: None,
        };
        let _: Result<_, MigrateError> = hv.migrate(guest.id, &nowhere, LONG);
        assert!(!guest.is_on());
        // One that a snapshot stopped goes on; one that somebody suspended stays so.
        guest.switch(true);
        guest.ask("stop", json!({}));
        assert!(!guest.runs());
        hv.save_memory(guest.id, &host.folder.join("save"), LONG).unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert!(!guest.is_on() && guest.runs() && guest.goes_on(SECOND));
        hv.suspend(guest.id).unwrap();
        hv.save_memory(guest.id, &host.folder.join("save"), LONG).unwrap_err();
        let managed = host.boot(&hv, 2);
        let left = Counter { host, hv: &hv, id: managed.id };
        left.switch(true);
        left.ask("stop", json!({}));
        assert_eq!(hv.probe_snapshots(&host.folder).unwrap(), Tier::Background);
        assert!(left.runs() && !left.is_on());
        left.switch(true);
        hv.suspend(managed.id).unwrap();
        hv.probe_snapshots(&host.folder).unwrap();
        assert!(!left.runs() && !left.is_on(), "somebody suspended it");
    });
}

/// Removes a domain that was left behind, whatever the trial makes of it.
fn domains() -> String {
    virsh(&["list", "--all", "--uuid"]).1
}

#[test]
#[ignore = "needs a host"]
fn the_trial_says_what_this_host_can_do_and_leaves_nothing_behind() {
    inside("one", "snapshots::the_trial_says_what_this_host_can_do_and_leaves_nothing_behind", |host| {
        let hv = host.libvirt();
        let begun = Instant::now();
        assert_eq!(hv.probe_snapshots(&host.folder).unwrap(), Tier::Background);
        eprintln!("figure: the trial took {:?}", begun.elapsed());
        assert_eq!(domains().trim(), "");
        // One that an agent left which was killed.
        let text = "<domain type='qemu'><name>understudy-trial</name><uuid>{}</uuid><memory unit='MiB'>16</memory>\
                    <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features></domain>";
        let xml = host.folder.join("left.xml");
        std::fs::write(&xml, text.replace("{}", TRIAL)).unwrap();
        assert!(virsh(&["create", &xml.display().to_string()]).0);
        assert_eq!(domains().trim(), TRIAL);
        assert_eq!(hv.probe_snapshots(&host.folder).unwrap(), Tier::Background);
        assert_eq!(domains().trim(), "");
        // qemu cannot read what the guest boots from, or is kept from userfaultfd: it says what to do.
        let Tier::Saved { reason } = without_root(host) else { panic!("it takes snapshots without root") };
        eprintln!("figure: {reason}");
        assert!(reason.contains("vm.unprivileged_userfaultfd=1"), "{reason}");
        assert_eq!(domains().trim(), "");
    });
}

/// What the trial says where qemu runs as nobody and the kernel keeps userfaultfd for root.
fn without_root(host: &Host) -> Tier {
    let setting = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap();
    assert_eq!(setting.trim(), "0", "this machine lets everybody use userfaultfd: set it to 0 for this test");
    let conf = Path::new("/etc/libvirt/qemu.conf");
    let text = std::fs::read_to_string(conf).unwrap();
    let text = text
        .replace("user = \"root\"", "user = \"nobody\"")
        .replace("group = \"root\"", "group = \"nogroup\"");
    std::fs::write(conf, text).unwrap();
    let open = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    [&host.folder, Path::new("/var/lib/libvirt")].into_iter().for_each(open);
    kill_libvirtd();
    start_libvirtd();
    let hv = host.libvirt();
    until("libvirt is back", || hv.instances().is_ok());
    hv.probe_snapshots(&host.folder).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

#[test]
#[ignore = "needs a host"]
fn a_snapshot_holds_a_guest_with_a_system_up_for_a_small_part_of_what_a_save_does() {
    inside(
        "one",
        "snapshots::a_snapshot_holds_a_guest_with_a_system_up_for_a_small_part_of_what_a_save_does",
        |host| {
            let hv = host.libvirt();
            let spec = InstanceSpec { memory: MiB(128), ..host.spec(1) };
            host.permit(1, spec.id, spec.note.epoch);
            let instance = hv.create(&spec).unwrap_or_else(|error| panic!("{}", chain(&error)));
            until("the guest's agent answers", || hv.guest_ping(spec.id, Duration::from_secs(3)).is_ok());
            let counted =
                |id| hv.stats().unwrap().into_iter().find(|stats| stats.id == id).and_then(|s| s.cpu_time);
            for _ in 0..3 {
                let cpu = counted(instance.id).unwrap();
                let save = hv.save_memory(instance.id, &host.folder.join("save"), LONG).unwrap();
                let between = counted(instance.id).unwrap();
                let snapshot =
                    hv.snapshot_memory(instance.id, LONG).unwrap_or_else(|e| panic!("{}", chain(&e))).saved;
                let after = counted(instance.id).unwrap();
                eprintln!("figure: save {save:?}, of the guest's processors {:?}", between - cpu);
                eprintln!("figure: snapshot {snapshot:?}, of the guest's processors {:?}", after - between);
                assert!(snapshot.pause * 5 < save.pause, "{snapshot:?} {save:?}");
            }
            assert_eq!(crate::suite::state(&hv, instance.id), Some(InstanceState::Running));
            hv.guest_ping(instance.id, LONG).unwrap();
            hv.destroy(instance.id).unwrap();
        },
    );
}
