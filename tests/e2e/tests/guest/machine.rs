//! One instance in plain QEMU, on a segment of its own, without libvirt. Promises: what was started ends with its
//! value, also when a test fails, and when the test itself is killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use understudy_e2e::qga::{Ended, Qga};

/// Emulated guests on a busy machine: far above what is measured on an idle one.
pub(crate) const LIMIT: Duration = Duration::from_mins(4);

/// Runs a program of this machine and panics with its words when it fails.
pub(crate) fn host(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {err}");
    out.trim().to_owned()
}

/// Asks until the answer is good, at most [`LIMIT`]; the last bad one is told.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(instead) if Instant::now() >= end => {
                panic!("not within {LIMIT:?}: {what}; instead: {instead}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// A network segment: a namespace with one bridge, 10.77.1.1/24.
pub(crate) struct Segment(String);

impl Segment {
    pub(crate) fn new() -> Self {
        let segment = Self(format!("ustlab-g{}", std::process::id()));
        let name = segment.0.as_str();
        host("ip", &["netns", "add", name]);
        for words in [
            "link set lo up",
            "link add vmbr0 type bridge",
            "addr add 10.77.1.1/24 dev vmbr0",
            "link set vmbr0 up",
        ] {
            let arguments: Vec<_> = ["-n", name].into_iter().chain(words.split(' ')).collect();
            host("ip", &arguments);
        }
        segment
    }

    /// A TCP connection made inside the segment. Namespaces belong to threads, so that one is spent on it.
    pub(crate) fn connect(&self, address: &str) -> std::io::Result<TcpStream> {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.0))?;
        let address: SocketAddr = address.parse().expect("tests give literal addresses");
        let connect = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
            stream.set_read_timeout(Some(Duration::from_mins(1)))?;
            Ok(stream)
        };
        std::thread::spawn(connect).join().expect("connecting does not panic")
    }

    /// The body of `http://ADDRESS/PATH`.
    pub(crate) fn http(&self, address: &str, path: &str) -> Result<String, String> {
        let ask = || {
            let mut stream = self.connect(address)?;
            write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        let answer = ask().map_err(|error: std::io::Error| error.to_string())?;
        let body = answer.split_once("\r\n\r\n").filter(|(head, _)| head.split(' ').nth(1) == Some("200"));
        body.map(|(_, body)| body.trim().to_owned()).filter(|body| !body.is_empty()).ok_or(answer)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// What differs from one instance to another.
#[derive(Clone, Copy)]
pub(crate) struct Spec<'a> {
    pub(crate) name: &'a str,
    /// Last byte of the MAC.
    pub(crate) number: u8,
    /// The role disk that is there from the start, if any.
    pub(crate) role: Option<&'a Path>,
    /// A saved memory to begin with, if any; the instance is paused then.
    pub(crate) memory: Option<&'a Path>,
}

/// A running instance.
pub(crate) struct Machine {
    qemu: Child,
    directory: PathBuf,
    pub(crate) name: String,
}

impl Machine {
    pub(crate) fn start(segment: &Segment, images: &Path, directory: &Path, spec: Spec<'_>) -> Self {
        let Spec { name, number, role, memory } = spec;
        let directory = directory.join(format!("{name}{}", if memory.is_some() { "-restored" } else { "" }));
        std::fs::create_dir(&directory).expect("a fresh directory");
        let (at, tap) = (directory.display(), format!("t-{name}"));
        let old =
            Command::new("ip").args(["-n", &segment.0, "link", "del", &tap]).stderr(Stdio::null()).status();
        drop(old);
        host("ip", &["-n", &segment.0, "tuntap", "add", &tap, "mode", "tap"]);
        host("ip", &["-n", &segment.0, "link", "set", &tap, "master", "vmbr0", "up"]);
        let mut command = Command::new("ip");
        // The machine's own words are those of config/guest/template.xml.
        command.args([
            "netns",
            "exec",
            &segment.0,
            "setpriv",
            "--pdeathsig",
            "KILL",
            "qemu-system-x86_64",
            "-name",
            name,
        ]);
        command.args([
            "-accel",
            "tcg,tb-size=32",
            "-cpu",
            "qemu64",
            "-M",
            "pc-i440fx-7.2,usb=off",
            "-m",
            "192",
        ]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-device", "pvpanic"]);
        command.args([
            "-serial",
            &format!("file:{at}/console"),
            "-qmp",
            &format!("unix:{at}/qmp,server=on,wait=off"),
        ]);
        command.arg("-kernel").arg(images.join("vmlinuz")).arg("-initrd").arg(images.join("initrd.img"));
        command.args(["-append", "console=ttyS0 quiet panic=-1 oops=panic"]);
        command.args(["-netdev", &format!("tap,id=n0,ifname={tap},script=no,downscript=no")]);
        command
            .args(["-device", &format!("virtio-net-pci,netdev=n0,mac=52:54:00:77:01:{number:02x},romfile=")]);
        command.args(["-device", "virtio-serial-pci", "-device", "virtio-balloon-pci"]);
        command.args(["-chardev", &format!("socket,id=ga,path={at}/agent,server=on,wait=off")]);
        command.args(["-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"]);
        if let Some(role) = role {
            command
                .args(["-drive", &format!("file={},if=none,id=role,format=raw,readonly=on", role.display())]);
            command.args(["-device", "virtio-blk-pci,drive=role,serial=understudy-role"]);
        }
        if let Some(memory) = memory {
            command.args(["-incoming", &format!("exec:cat {}", memory.display())]);
        }
        let qemu = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().expect("qemu starts");
        Self { qemu, directory, name: name.to_owned() }
    }

    pub(crate) fn agent(&self) -> Qga {
        Qga::connect(&self.directory.join("agent"), LIMIT)
            .unwrap_or_else(|error| panic!("{}: {error:?}", self.name))
    }

    /// Runs a command in the guest, whatever comes of it.
    pub(crate) fn run(&self, argv: &[&str], stdin: &str) -> Ended {
        let started = Instant::now();
        let ended =
            self.agent().run(argv, stdin, LIMIT).unwrap_or_else(|error| panic!("{}: {error:?}", self.name));
        eprintln!(
            "{:>6.2} s  {}: {} -> {}",
            started.elapsed().as_secs_f64(),
            self.name,
            argv.join(" "),
            ended.code
        );
        ended
    }

    /// `us WORDS`, whatever comes of it.
    pub(crate) fn us_ended(&self, words: &str, stdin: &str) -> Ended {
        let argv: Vec<_> = std::iter::once("/sbin/us").chain(words.split(' ')).collect();
        self.run(&argv, stdin)
    }

    /// `us WORDS`, which must succeed.
    pub(crate) fn us(&self, words: &str, stdin: &str) -> String {
        let ended = self.us_ended(words, stdin);
        assert_eq!(ended.code, 0, "{}: us {words}: {}{}", self.name, ended.stdout, ended.stderr);
        ended.stdout
    }

    /// One command over the monitor.
    pub(crate) fn qmp(&self, command: &str, arguments: Value) -> Value {
        let mut stream = UnixStream::connect(self.directory.join("qmp")).expect("qemu has its monitor");
        let mut lines = BufReader::new(stream.try_clone().expect("a socket can be cloned")).lines();
        let mut ask = |question: Value| {
            writeln!(stream, "{question}").expect("the monitor reads");
            loop {
                let line = lines.next().expect("the monitor answers").expect("the monitor answers");
                let answer: Value = serde_json::from_str(&line).expect("the monitor speaks JSON");
                assert!(answer.get("error").is_none(), "{question}: {answer}");
                if let Some(result) = answer.get("return") {
                    return result.clone();
                }
            }
        };
        ask(json!({ "execute": "qmp_capabilities" }));
        ask(json!({ "execute": command, "arguments": arguments }))
    }

    pub(crate) fn plug_role_disk(&self, image: &Path) {
        let file = json!({ "driver": "file", "filename": image, "read-only": true });
        self.qmp(
            "blockdev-add",
            json!({ "driver": "raw", "node-name": "plugged", "read-only": true, "file": file }),
        );
        let device = json!({ "driver": "virtio-blk-pci", "drive": "plugged", "id": "disk", "serial": "understudy-role" });
        self.qmp("device_add", device);
    }

    pub(crate) fn unplug_role_disk(&self) {
        self.qmp("device_del", json!({ "id": "disk" }));
        eventually("disk unplugged", || {
            let disks = self.qmp("query-block", json!({}));
            if disks.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(disks.to_string()) }
        });
        self.qmp("blockdev-del", json!({ "node-name": "plugged" }));
    }

    /// Stops the guest and writes its memory to a file.
    pub(crate) fn save(&self, memory: &Path) {
        self.qmp("stop", json!({}));
        self.qmp("migrate", json!({ "uri": format!("exec:cat > {}", memory.display()) }));
        eventually("memory saved", || {
            let state = self.qmp("query-migrate", json!({}));
            assert_ne!(state["status"], "failed", "{state}");
            if state["status"] == "completed" { Ok(()) } else { Err(state.to_string()) }
        });
    }

    /// Waits until a saved memory is loaded; the guest stays paused.
    pub(crate) fn await_loaded(&self) {
        let qmp = self.directory.join("qmp");
        eventually("monitor", || if qmp.exists() { Ok(()) } else { Err("no socket".to_owned()) });
        eventually("memory loaded", || {
            let state = self.qmp("query-status", json!({}));
            if state["status"] == "inmigrate" { Err(state.to_string()) } else { Ok(()) }
        });
    }

    /// Ends the machine as a crash of qemu would.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            let console = std::fs::read_to_string(self.directory.join("console")).unwrap_or_default();
            eprintln!("console of {}:\n{console}", self.name);
        }
    }
}
