//! Hosts for the tests: a test that needs one runs itself again inside, as the child of `hosts.sh`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use understudy_core::errors::chain;
use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_core::model::units::{MiB, Vcpus};
use understudy_hypervisor::permit::Permits;
use understudy_hypervisor::process::boottime;
use understudy_hypervisor::{
    AcceleratorSetting, Hypervisor, InstanceFact, InstanceSpec, Libvirt, LibvirtConfig, Note, Template,
};

const IMAGES_WHEN_INSTALLED: &str = "/var/lib/understudy/images";

const INSIDE: &str = "UNDERSTUDY_TEST_HOST";

/// What is emulated on two busy cores takes its time.
pub(crate) const LONG: Duration = Duration::from_secs(180);

/// The inside of a host.
pub(crate) struct Host {
    pub(crate) folder: PathBuf,
    pub(crate) template: Arc<Template>,
}

/// The newest complete set of guest images in the cache that `config/guest/build` fills.
fn images() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = set("UNDERSTUDY_IMAGES")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("understudy/images")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/understudy/images")))?;
    let whole = |folder: &PathBuf| ["vmlinuz", "initrd.img"].iter().all(|file| folder.join(file).exists());
    let folders = std::fs::read_dir(cache).ok()?.filter_map(|entry| Some(entry.ok()?.path())).filter(whole);
    folders.max_by_key(|folder| folder.metadata().and_then(|data| data.modified()).ok())
}

/// Runs `body` inside a host of its own; `hosts` is `one` or `two`. `test` is this test's own full name.
pub(crate) fn inside(hosts: &str, test: &str, body: impl FnOnce(&Host)) {
    if let Some(folder) = std::env::var_os(INSIDE) {
        std::fs::write(Path::new(&folder).join("ran"), test).unwrap();
        let images = images().expect("config/guest/build has made the guest images");
        let template = Arc::new(Template::parse(&template(&images)).expect("the tests' template is right"));
        return body(&Host { folder: PathBuf::from(folder), template });
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
        .args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(INSIDE, folder.path())
        .status()
        .expect("unshare runs");
    if status.success() {
        // A name that is not this test's own would run nothing, and well.
        assert!(folder.path().join("ran").exists(), "'{test}' is not the name of a test");
    } else {
        for log in [
            "h1/log/libvirtd.log",
            "h2/log/libvirtd.log",
            "h1/log/qemu/u1.console.log",
            "h1/log/qemu/u2.console.log",
        ] {
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

/// The template that is shipped, with the images where they are on this machine.
fn template(images: &Path) -> String {
    let shipped = include_str!("../../../../config/guest/template.xml");
    assert!(shipped.contains(IMAGES_WHEN_INSTALLED));
    shipped.replace(IMAGES_WHEN_INSTALLED, &images.display().to_string())
}

impl Host {
    pub(crate) fn libvirt(&self) -> Libvirt {
        Libvirt::start(LibvirtConfig {
            accelerator: AcceleratorSetting::Fixed(understudy_hypervisor::Accelerator::Tcg),
            ..LibvirtConfig::local()
        })
        .expect("libvirt is taken into use")
    }

    pub(crate) fn permits(&self, host: u8) -> Permits {
        Permits::open(&self.folder.join(format!("h{host}/permits"))).expect("a folder for permits")
    }

    pub(crate) fn permit(&self, host: u8, id: InstanceId, epoch: Epoch) {
        self.permits(host).grant(id, epoch, boottime(), LONG).expect("a permit");
    }

    pub(crate) fn spec(&self, number: u8) -> InstanceSpec {
        InstanceSpec {
            id: id(number),
            name: format!("u{number}"),
            template: Arc::clone(&self.template),
            memory: MiB(192),
            vcpus: Vcpus(1),
            mac: None,
            note: Note { epoch: Epoch(1), address: Some("10.77.1.9".parse().expect("an address")) },
        }
    }

    /// Boots an instance and waits for its agent.
    pub(crate) fn boot(&self, hypervisor: &dyn Hypervisor, number: u8) -> InstanceFact {
        let spec = self.spec(number);
        self.permit(1, spec.id, spec.note.epoch);
        hypervisor.create(&spec).unwrap_or_else(|error| panic!("cannot create: {}", chain(&error)));
        until("the guest's agent answers", || hypervisor.guest_ping(spec.id, Duration::from_secs(3)).is_ok());
        fact(hypervisor, spec.id).expect("it is listed")
    }

    /// A whole, empty erofs image.
    pub(crate) fn role_disk(&self) -> PathBuf {
        let (path, tree) = (self.folder.join("role.erofs"), self.folder.join("role"));
        std::fs::create_dir_all(&tree).expect("a folder");
        std::fs::write(tree.join("hello"), "role").expect("a file");
        let made = Command::new("mkfs.erofs").arg(&path).arg(&tree).output().expect("mkfs.erofs runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        path
    }
}

pub(crate) fn id(number: u8) -> InstanceId {
    format!("11111111-2222-4333-8444-0000000000{number:02x}").parse().expect("a UUID")
}

pub(crate) fn fact(hypervisor: &dyn Hypervisor, id: InstanceId) -> Option<InstanceFact> {
    hypervisor.instances().expect("instances are listed").into_iter().find(|fact| fact.id == id)
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < end, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn virsh(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("virsh").arg("-q").args(arguments).output().expect("virsh runs");
    let text =
        [output.stdout, output.stderr].map(|stream| String::from_utf8_lossy(&stream).into_owned()).concat();
    (output.status.success(), text)
}
