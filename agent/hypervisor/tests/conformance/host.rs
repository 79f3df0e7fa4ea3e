//! Hosts for the tests: a test that needs one runs itself again inside, as the child of `hosts.sh`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use understudy_core::ids::{Epoch, InstanceId};
use understudy_core::units::{MiB, Vcpus};
use understudy_hypervisor::permit::Permits;
use understudy_hypervisor::process::boottime;
use understudy_hypervisor::{
    AcceleratorSetting, Hypervisor, InstanceFact, InstanceSpec, Libvirt, LibvirtConfig, Note, Template,
};

const INSIDE: &str = "UNDERSTUDY_TEST_HOST";

/// What is emulated on two busy cores takes its time.
pub const LONG: Duration = Duration::from_secs(180);

/// The inside of a host.
pub struct Host {
    pub folder: PathBuf,
    pub template: Arc<Template>,
}

fn skip(test: &str, reason: &str) {
    // Not by a print macro: what those write is thrown away when the test passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
}

fn images() -> Option<PathBuf> {
    let cache = |home: std::ffi::OsString| Path::new(&home).join(".cache/understudy/images");
    let folder = std::env::var_os("UNDERSTUDY_IMAGES")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(cache))?;
    ["vmlinuz", "initrd.img"].iter().all(|file| folder.join(file).exists()).then_some(folder)
}

fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let tools = [
        "libvirtd",
        "qemu-system-x86_64",
        "unshare",
        "setpriv",
        "nsenter",
        "ip",
        "pgrep",
        "openssl",
        "virsh",
    ];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    let lacks = |tool: &&&str| !folders.iter().any(|folder| folder.join(tool).exists());
    if let Some(tool) = tools.iter().find(lacks) {
        return Some(format!("needs {tool}"));
    }
    images().is_none().then(|| "needs the guest images: run `cargo xtask images`".to_owned())
}

/// Runs `body` inside a host of its own; `hosts` is `one` or `two`. `test` is this test's own full name.
pub fn inside(hosts: &str, test: &str, body: impl FnOnce(&Host)) {
    if let Some(folder) = std::env::var_os(INSIDE) {
        let images = images().expect("looked for outside");
        let template = Arc::new(Template::parse(&template(&images)).expect("the tests' template is right"));
        return body(&Host { folder: PathBuf::from(folder), template });
    }
    if let Some(reason) = missing() {
        return skip(test, &reason);
    }
    let folder = tempfile::Builder::new().prefix("understudy-hv-").tempdir().expect("a folder");
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork"])
        .args(["--kill-child", "--propagation", "private", "sh"])
        .arg(source.join("tests/conformance/hosts.sh"))
        .arg(hosts)
        .arg(folder.path())
        .arg(source.join("../../config/libvirt/qemu-hook"))
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, folder.path())
        .status()
        .expect("unshare runs");
    if !status.success() {
        for log in ["h1/log/libvirtd.log", "h2/log/libvirtd.log", "h1/log/u1.serial", "h1/log/u2.serial"] {
            if let Ok(text) = std::fs::read_to_string(folder.path().join(log)) {
                // libvirt looks for parts of a machine that a namespace does not have.
                let noise = ["ethtool", "DBus", "Dbus", "SystemBus", "dnsmasq", "dmi", "SecurityManagerNew"];
                let lines = text.lines().filter(|line| !noise.iter().any(|word| line.contains(word)));
                eprintln!("--- {log}\n{}", lines.collect::<Vec<_>>().join("\n"));
            }
        }
        panic!("{test} failed inside its host: {status}");
    }
}

fn template(images: &Path) -> String {
    let images = images.display();
    format!(
        "<domain type='kvm'>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <kernel>{images}/vmlinuz</kernel><initrd>{images}/initrd.img</initrd><cmdline>console=ttyS0 quiet</cmdline></os>
  <features><acpi/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>
  <cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>
  <clock offset='utc'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <controller type='pci' model='pcie-root'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <interface type='bridge'><source bridge='vmbr0'/><model type='virtio'/><rom enabled='no'/></interface>
    <serial type='file'><source path='/var/log/libvirt/@name@.serial' append='on'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='virtio'/>
    <panic model='isa'/>
  </devices>
</domain>"
    )
}

impl Host {
    pub fn libvirt(&self) -> Libvirt {
        Libvirt::start(LibvirtConfig {
            accelerator: AcceleratorSetting::Fixed(understudy_hypervisor::Accelerator::Tcg),
            ..LibvirtConfig::local()
        })
        .expect("libvirt is taken into use")
    }

    pub fn permits(&self, host: u8) -> Permits {
        Permits::open(&self.folder.join(format!("h{host}/permits"))).expect("a folder for permits")
    }

    pub fn permit(&self, host: u8, id: InstanceId, epoch: Epoch) {
        self.permits(host).grant(id, epoch, boottime(), LONG).expect("a permit");
    }

    pub fn spec(&self, number: u8) -> InstanceSpec {
        InstanceSpec {
            id: id(number),
            name: format!("u{number}"),
            template: Arc::clone(&self.template),
            memory: MiB(160),
            vcpus: Vcpus(1),
            mac: None,
            note: Note { epoch: Epoch(1), address: Some("10.77.1.9".parse().expect("an address")) },
        }
    }

    /// Boots an instance and waits for its agent.
    pub fn boot(&self, hypervisor: &dyn Hypervisor, number: u8) -> InstanceFact {
        let spec = self.spec(number);
        self.permit(1, spec.id, spec.note.epoch);
        hypervisor.create(&spec).unwrap_or_else(|error| panic!("cannot create: {}", chain(&error)));
        until("the guest's agent answers", || hypervisor.guest_ping(spec.id, Duration::from_secs(3)).is_ok());
        fact(hypervisor, spec.id).expect("it is listed")
    }

    /// A whole, empty erofs image.
    pub fn role_disk(&self) -> PathBuf {
        let (path, tree) = (self.folder.join("role.erofs"), self.folder.join("role"));
        std::fs::create_dir_all(&tree).expect("a folder");
        std::fs::write(tree.join("hello"), "role").expect("a file");
        let made = Command::new("mkfs.erofs").arg(&path).arg(&tree).output().expect("mkfs.erofs runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        path
    }
}

pub fn id(number: u8) -> InstanceId {
    format!("11111111-2222-4333-8444-0000000000{number:02x}").parse().expect("a UUID")
}

pub fn fact(hypervisor: &dyn Hypervisor, id: InstanceId) -> Option<InstanceFact> {
    hypervisor.instances().expect("instances are listed").into_iter().find(|fact| fact.id == id)
}

pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < end, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

pub fn virsh(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("virsh").arg("-q").args(arguments).output().expect("virsh runs");
    let text =
        [output.stdout, output.stderr].map(|stream| String::from_utf8_lossy(&stream).into_owned()).concat();
    (output.status.success(), text)
}
