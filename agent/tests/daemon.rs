//! The daemon as a process, with what it needs wrong, missing or damaged: what it says, with which code it ends or what it
//! waits for, and that it goes on by itself. libvirt is its own driver for trials, so that nothing but this binary is
//! needed; etcd is real where it is installed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../src/peers/tests/certificates.rs"]
mod certificates;

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use certificates::Authority;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// What nothing here should ever take, on however busy a machine.
const LIMIT: Duration = Duration::from_secs(60);
const TRIALS: &str = "test:///default";
const TEMPLATE: &str = include_str!("../../config/guest/template.xml");

/// A host's folder with everything that an agent needs, all of it right.
struct Home {
    folder: TempDir,
}

impl Home {
    fn new() -> Self {
        let home = Self { folder: tempfile::tempdir().unwrap() };
        fs::write(home.path("template.xml"), TEMPLATE).unwrap();
        fs::write(home.path("role.erofs"), role_disk()).unwrap();
        home.configure(TRIALS, &format!("kind = \"embedded\"\npath = \"{}\"", home.path("store.redb")));
        home
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn configure(&self, uri: &str, store: &str) {
        let text = format!(
            r#"
[host]
name = "host1"
reserved_memory_mib = 0
state_dir = "{home}/state"
runtime_dir = "{home}/run"
[libvirt]
uri = "{uri}"
accelerator = "qemu"
template = "{home}/template.xml"
[store]
{store}
[pool]
idle = 0
[network]
addresses = "10.0.0.2-10.0.0.9"
[environments]
desktop = "{home}/role.erofs"
[api]
listen = "127.0.0.1:0"
[policies]
dir = "{home}/policies"
[log]
format = "plain"
"#,
            home = self.folder.path().display()
        );
        fs::write(self.path("agent.toml"), text).unwrap();
    }

    fn edit(&self, from: &str, to: &str) {
        let file = self.path("agent.toml");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{from} is not in\n{text}");
        fs::write(file, text.replace(from, to)).unwrap();
    }

    fn check(&self, more: &[&str]) -> Output {
        understudy(&[&["check-config", &self.path("agent.toml")], more].concat())
    }

    /// The daemon ends by itself: its exit code and last words.
    fn ends(&self) -> (Option<i32>, String) {
        let mut agent = Agent::start(self);
        let status = wait("the agent ends", || agent.child.try_wait().unwrap());
        (status.code(), agent.log())
    }
}

/// The head of an erofs image of one block: as much as is looked at before a guest is given it.
fn role_disk() -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[1024..1028].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
    image[1024 + 12] = 12;
    image[1024 + 36] = 1;
    image
}

fn understudy(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_understudy")).args(words).output().expect("built for this test")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that is ended with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The daemon.
struct Agent {
    child: Child,
    socket: String,
    log: PathBuf,
}

impl Agent {
    fn start(home: &Home) -> Self {
        let log = home.folder.path().join("agent.log");
        let file = File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_understudy"))
            .args(["agent", "--config", &home.path("agent.toml")])
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, socket: home.path("run/api.sock"), log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn ask(&self, words: &[&str]) -> Output {
        understudy(&[&["--socket", &self.socket], words].concat())
    }

    /// What `understudy status` says while the agent waits: not before it has looked at what it needs.
    fn waits_for(&mut self, part: &str) -> String {
        wait(part, || {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {}", self.log());
            let output = self.ask(&["status"]);
            let text = said(&output);
            (output.status.code() == Some(1) && text.contains(part)).then_some(text)
        })
    }

    /// The first status for which `look` finds something.
    fn status<T>(&self, what: &str, mut look: impl FnMut(&Value) -> Option<T>) -> T {
        wait(what, || {
            let output = self.ask(&["--json", "status"]);
            serde_json::from_slice(&output.stdout).ok().and_then(|status| look(&status))
        })
    }

    fn condition(&self, part: &str) -> String {
        self.status(part, |status| {
            let all = status["conditions"].as_array()?.iter().filter_map(Value::as_str);
            all.filter(|text| text.contains(part)).map(str::to_owned).next()
        })
    }

    /// Asks it to stop, as systemd does.
    fn stop(mut self) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        let status = wait("the agent stops", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports of 127.0.0.1 on which nobody listens: held until all are chosen.
fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

fn assert_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn with_everything_right_it_runs_and_stops_when_asked() {
    let home = Home::new();
    let output = home.check(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let agent = Agent::start(&home);
    agent.status("the store is read", |status| (status["host"] == "host1").then_some(()));
    agent.stop();
}

#[test]
fn what_a_file_says_wrongly_ends_the_daemon_with_3_and_is_reported_by_key() {
    let table = [
        ("reserved_memory_mib", "reserved_memory", "reserved_memory"),
        ("idle = 0", "idle = 65", "pool.idle: 65 is out of range: use 0 to 64"),
        ("uri = \"test:///default\"", "uri = \"foo:///system\"", "libvirt.uri: 'foo:///system'"),
        ("uri = \"test:///default\"", "uri = \"qemu:///sistem\"", "libvirt.uri: 'qemu:///sistem'"),
        ("uri = \"test:///default\"", "uri = \"qemu+tls://host2/system\"", "use qemu:///system"),
        ("accelerator = \"qemu\"", "accelerator = \"xen\"", "libvirt.accelerator: 'xen'"),
    ];
    for (from, to, words) in table {
        let home = Home::new();
        home.edit(from, to);
        let (code, log) = home.ends();
        for (code, text) in [(code, log), {
            let output = home.check(&["--offline"]);
            (output.status.code(), said(&output))
        }] {
            assert_eq!(code, Some(3), "{to}: {text}");
            assert_all(&text, &[words, &home.path("agent.toml")]);
        }
        assert!(!Path::new(&home.path("store.redb")).exists(), "nothing was made");
    }
}

#[test]
fn a_template_without_the_guest_agents_channel_ends_it_with_3_before_anything_is_made() {
    let home = Home::new();
    let without = TEMPLATE.replace("org.qemu.guest_agent.0", "org.example.other");
    assert_ne!(without, TEMPLATE);
    fs::write(home.path("template.xml"), without).unwrap();
    let (code, log) = home.ends();
    let output = home.check(&[]);
    for (code, text) in [(code, log), (output.status.code(), said(&output))] {
        assert_eq!(code, Some(3), "{text}");
        assert_all(&text, &["libvirt.template", &home.path("template.xml"), "org.qemu.guest_agent.0"]);
    }
    assert!(!Path::new(&home.path("store.redb")).exists());
}

#[test]
fn certificates_that_cannot_be_used_end_it_with_3_and_are_reported_by_file() {
    let home = Home::new();
    let store = "kind = \"etcd\"\nendpoints = [\"https://127.0.0.1:1\"]";
    home.configure(TRIALS, &format!("{store}\nca = \"{}\"", home.path("ca.pem")));
    let missing = ["store.ca", "ca.pem", "No such file"];
    // There, and no certificate.
    let garbage = ["store", "ca.pem"];
    for words in [missing.as_slice(), &garbage] {
        let (code, log) = home.ends();
        let output = home.check(&[]);
        for (code, text) in [(code, log), (output.status.code(), said(&output))] {
            assert_eq!(code, Some(3), "{text}");
            assert_all(&text, words);
            assert_eq!(text.matches("ca.pem").count(), 1, "told once: {text}");
        }
        fs::write(home.path("ca.pem"), "no certificate").unwrap();
    }
}

/// Whoever has more than one host is told before anything of a guest goes over a network in the clear.
#[test]
fn an_agent_of_several_hosts_without_certificates_listens_on_loopback_or_ends_with_3() {
    let home = Home::new();
    home.configure(TRIALS, "kind = \"etcd\"\nendpoints = [\"http://127.0.0.1:1\"]");
    assert_eq!(home.check(&["--offline"]).status.code(), Some(0));
    home.edit("listen = \"127.0.0.1:0\"", "listen = \"0.0.0.0:7480\"");
    let (code, log) = home.ends();
    let output = home.check(&["--offline"]);
    for (code, text) in [(code, log), (output.status.code(), said(&output))] {
        assert_eq!(code, Some(3), "{text}");
        let words = ["peers.listen: is missing", "the memory of guests", "0.0.0.0:7480"];
        assert_all(
            &text,
            &[&home.path("agent.toml"), words[0], words[1], words[2], "api.listen on 127.0.0.1"],
        );
    }
}

/// Instances of this host go on without it, and so does the agent that is started again.
#[test]
fn a_certificate_that_no_peer_would_accept_is_reported_until_it_is_renewed_and_does_not_end_the_agent() {
    let (home, authority) = (Home::new(), Authority::new());
    let folder = home.folder.path();
    let [ca, cert, key] = authority.issue_with(folder, "host1", |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let peers =
        format!("[peers]\nlisten = \"127.0.0.1:0\"\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n[log]");
    home.edit("[log]", &peers);
    assert_eq!(home.check(&["--offline"]).status.code(), Some(0));
    let output = home.check(&[]);
    assert_eq!(output.status.code(), Some(3));
    let words = [
        home.path("agent.toml"),
        "peers.cert".into(),
        home.path("host1.pem"),
        "has expired: renew it".into(),
    ];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_all(&said(&output), &words);
    let agent = Agent::start(&home);
    assert_all(&agent.condition("peers.cert"), &words);
    authority.issue(folder, "host1");
    agent.status("the condition is cleared", |status| {
        let all = status["conditions"].as_array()?;
        all.iter().all(|text| !text.to_string().contains("peers.cert")).then_some(())
    });
    assert_eq!(home.check(&[]).status.code(), Some(0));
    // What replaces a good one and is not good is told, too.
    fs::write(&key, "no key").unwrap();
    assert_all(&agent.condition("peers.key"), &[&home.path("host1.key"), "put a file in PEM form there"]);
    let log = agent.log();
    assert_eq!(log.matches("peers may not accept this host").count(), 2, "told once each: {log}");
    agent.stop();
}

/// An agent that is started again while a role disk is damaged must not leave its host without one.
#[test]
fn a_missing_or_damaged_role_disk_is_reported_until_it_is_whole_and_does_not_end_the_agent() {
    let home = Home::new();
    let role = home.path("role.erofs");
    fs::remove_file(&role).unwrap();
    let output = home.check(&[]);
    assert_eq!(output.status.code(), Some(3));
    assert_all(&said(&output), &["environments.desktop", &role, "build it with config/guest/build"]);
    let agent = Agent::start(&home);
    let text = agent.condition("environments.desktop");
    assert_all(&text, &[&home.path("agent.toml"), &role, "copy it from another host"]);

    fs::write(&role, &role_disk()[..2000]).unwrap();
    let text = agent.condition("is damaged");
    assert_all(&text, &["environments.desktop", &role, "cut off", "copy it anew"]);
    assert_all(&said(&home.check(&[])), &["environments.desktop", "is damaged"]);

    fs::write(&role, role_disk()).unwrap();
    agent.status("the condition is cleared", |status| {
        let all = status["conditions"].as_array()?;
        all.iter().all(|text| !text.to_string().contains("environments.desktop")).then_some(())
    });
    agent.stop();
}

#[test]
fn a_libvirt_that_does_not_answer_is_waited_for_and_named() {
    let home = Home::new();
    let socket = home.path("libvirt-sock");
    home.edit(TRIALS, &format!("qemu+unix:///system?socket={socket}"));
    let mut agent = Agent::start(&home);
    let text = agent.waits_for("libvirt.uri");
    let wants = [
        home.path("agent.toml"),
        socket.clone(),
        "check that libvirtd runs".into(),
        "goes on by itself".into(),
    ];
    let wants: Vec<&str> = wants.iter().map(String::as_str).collect();
    assert_all(&text, &wants);
    let output = home.check(&[]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert_all(&said(&output), &["libvirt.uri", &socket, "check that libvirtd runs"]);
    // One that would be no libvirt at all changes nothing of that, and a wish is refused with the same words.
    let description = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/terminals/alice.toml");
    let wish = agent.ask(&["terminal", "create", "alice", "--from", description]);
    assert_eq!(wish.status.code(), Some(1));
    assert_all(&said(&wish), &["libvirt.uri"]);
    let log = agent.log();
    assert_eq!(log.matches("libvirt does not answer").count(), 1, "told once, not every second: {log}");
    agent.stop();
}

/// It is asked again and again, and the log is not to be drowned by that.
#[test]
fn a_guard_that_does_not_run_is_reported_once_and_named_in_status() {
    let home = Home::new();
    home.edit("format = \"plain\"", "format = \"plain\"\nfilter = \"debug\"");
    let agent = Agent::start(&home);
    let text = agent.condition("understudy-guard");
    assert_all(&text, &["systemctl status understudy-guard", &home.path("run/guard.sock")]);
    let log = wait("it was asked again and again", || {
        let log = agent.log();
        (log.matches("DEBUG the guard still does not do its part").count() >= 3).then_some(log)
    });
    assert_eq!(log.matches("ERROR").count(), 1, "{log}");
    agent.stop();
}

fn etcd(home: &Home, client: u16, peer: u16) -> Running {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let log = File::create(home.path("etcd.log")).unwrap();
    let child = Command::new("etcd")
        .args(["--name", "one", "--data-dir", &home.path("etcd"), "--logger", "zap", "--log-level", "warn"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}")])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Running(child)
}

#[test]
#[ignore = "needs etcd"]
fn an_etcd_that_does_not_answer_is_waited_for_and_named_and_the_agent_goes_on_when_it_comes() {
    let [client, nobody, peer] = free_ports();
    let home = Home::new();
    let (first, second) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{nobody}"));
    home.configure(TRIALS, &format!("kind = \"etcd\"\nendpoints = [\"{first}\", \"{second}\"]"));
    let mut agent = Agent::start(&home);
    // The lease's own words may come first: they name no address.
    let text = agent.waits_for(&first);
    let file = home.path("agent.toml");
    assert_all(&text, &[&file, "store.endpoints", &second, "see that etcd runs there", "goes on by itself"]);
    let output = home.check(&[]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert_all(&said(&output), &["store.endpoints", &first, &second, "see that etcd runs there"]);
    assert_eq!(home.check(&["--offline"]).status.code(), Some(0));

    let running = etcd(&home, client, peer);
    agent.status("the store is read", |status| (status["host"] == "host1").then_some(()));
    assert_eq!(home.check(&[]).status.code(), Some(0));
    // Gone again: what was read is shown, and what is missing with it.
    drop(running);
    agent.condition("the store does not answer");
    let _running = etcd(&home, client, peer);
    agent.status("the condition of the store is cleared", |status| {
        let all = status["conditions"].as_array()?;
        all.iter().all(|text| !text.to_string().contains("the store does not answer")).then_some(())
    });
    let log = agent.log();
    assert_all(&log, &["cannot read the store", "the store answers"]);
    agent.stop();
}
