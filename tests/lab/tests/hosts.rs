//! Hosts of the lab: what they share, what they do not, and what happens when plugs are pulled. Need root.

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use understudy_lab::{Host, Lab, LabError, Net, wait};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);
const LIBVIRT: u16 = 16509;

/// A listener inside of a host.
fn listen(host: &Host, port: u16) -> TcpListener {
    let ns = host.net_ns().expect("the host is on");
    ns.run(|| TcpListener::bind((host.mgmt(), port))).expect("enter").expect("bind")
}

/// A connection from one host to another.
fn dial(from: &Host, to: &Host, port: u16, limit: Duration) -> Result<TcpStream, LabError> {
    from.net_ns()?.connect(SocketAddr::from((to.mgmt(), port)), limit)
}

fn interfaces() -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir("/sys/class/net")
        .expect("sysfs")
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
#[ignore = "needs a lab"]
fn three_hosts_have_libvirt_and_etcd_and_nothing_of_them_is_in_the_machines_network() {
    let before = interfaces();
    let options = common::options("full", 3);
    let lab = Lab::up(understudy_lab::LabOptions { etcd: true, libvirt: true, ..options }).expect("up");
    assert_eq!(interfaces(), before);
    for host in lab.hosts() {
        assert_eq!(host.run(["hostname"]).expect("hostname"), host.name());
        assert_eq!(host.run(["virsh", "-c", "qemu:///system", "hostname"]).expect("virsh"), host.name());
        // From the machine, past the network.
        let uri = host.libvirt_uri().expect("on");
        let virsh =
            std::process::Command::new("virsh").args(["-c", &uri, "hostname"]).output().expect("virsh");
        assert_eq!(String::from_utf8_lossy(&virsh.stdout).trim(), host.name(), "{virsh:?}");
        // Over TLS, from every host to every host.
        for other in lab.hosts() {
            let uri = format!("qemu+tls://{}/system", other.name());
            assert_eq!(host.run(["virsh", "-c", &uri, "hostname"]).expect("virsh over TLS"), other.name());
        }
    }
    let members = lab.etcdctl(&["member", "list"]).expect("etcdctl");
    assert_eq!(members.lines().filter(|line| line.contains("started")).count(), 3, "{members}");
    // Without a certificate of the lab nobody is let in.
    let bare = lab.connect("10.77.0.11:2379".parse().expect("an address")).expect("etcd listens");
    drop(bare);
    let refused =
        lab.host(1).exec(["etcdctl", "--endpoints=http://127.0.0.1:2379", "get", "x"]).expect("etcdctl");
    assert!(!refused.status.success());
}

#[test]
#[ignore = "needs a lab"]
fn etcd_takes_writes_while_one_member_is_off_and_the_member_comes_back() {
    let lab = Lab::up(understudy_lab::LabOptions { etcd: true, ..common::options("etcd", 3) }).expect("up");
    lab.etcdctl(&["put", "/test/a", "before"]).expect("put");
    lab.host(2).power_off().expect("power off");
    lab.wait_etcd(LONG).expect("two of three are a quorum");
    lab.etcdctl(&["put", "/test/a", "while off"]).expect("put");
    lab.host(2).boot().expect("boot");
    let own = ["etcdctl", "--endpoints=https://127.0.0.1:2379", "--cacert=/etc/understudy/pki/ca.pem"];
    let own = own
        .into_iter()
        .chain(["--cert=/etc/understudy/pki/agent.pem", "--key=/etc/understudy/pki/agent.key"]);
    let get: Vec<&str> = own.chain(["get", "/test/a", "--print-value-only", "--consistency=s"]).collect();
    // A serializable read is answered by the member itself, from its own disk.
    wait::until("the member has caught up", LONG, || {
        let output = lab.host(2).command(get.clone()).and_then(|c| c.env("ETCDCTL_API", "3").output());
        let output = output.map_err(|error| error.chain())?;
        if output.text() == "while off" {
            Ok(())
        } else {
            Err(format!("{} {}", output.text(), output.errors()))
        }
    })
    .expect("caught up");
}

#[test]
#[ignore = "needs a lab"]
fn a_power_cut_is_silent_and_a_crash_is_not() {
    let lab =
        Lab::up(understudy_lab::LabOptions { libvirt: true, ..common::options("power", 2) }).expect("up");
    let (one, two) = (lab.host(1), lab.host(2));
    let connect = || {
        let stream = dial(one, two, LIBVIRT, LONG).expect("libvirtd listens");
        stream.set_read_timeout(Some(SECOND)).expect("set a timeout");
        stream
    };
    for frozen in [false, true] {
        let mut stream = connect();
        if frozen {
            two.freeze().expect("freeze");
        }
        two.power_off().expect("power off");
        assert!(!two.is_on());
        let heard = stream.read(&mut [0; 1]);
        assert!(matches!(&heard, Err(e) if e.kind() == ErrorKind::WouldBlock), "frozen {frozen}: {heard:?}");
        assert!(dial(one, two, LIBVIRT, SECOND).is_err());
        assert!(matches!(two.exec(["true"]), Err(LabError::Off { .. })));
        two.boot().expect("boot");
        // The new kernel knows nothing of the old connection and says so.
        stream.write_all(b"x").expect("queued");
        let heard = stream.set_read_timeout(Some(LONG)).and_then(|()| stream.read(&mut [0; 1]));
        assert!(matches!(&heard, Err(e) if e.kind() == ErrorKind::ConnectionReset), "{heard:?}");
    }
    let mut stream = connect();
    stream.set_read_timeout(Some(LONG)).expect("set a timeout");
    two.crash().expect("crash");
    let heard = stream.read(&mut [0; 1]);
    assert!(!matches!(&heard, Err(e) if e.kind() == ErrorKind::WouldBlock), "{heard:?}");
}

/// A guest without disk or system: its firmware is enough to start, move and kill it.
const GUEST: &str = "<domain type='qemu'><name>g</name><uuid>11111111-2222-4333-8444-000000000001</uuid>
<memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
<features><acpi/></features><cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>
<interface type='bridge'><source bridge='vmbr0'/><model type='virtio'/><rom enabled='no'/></interface>
</devices></domain>";

#[test]
#[ignore = "needs a lab"]
fn a_guest_moves_between_hosts_over_tls_survives_libvirtd_and_dies_with_its_host() {
    let lab =
        Lab::up(understudy_lab::LabOptions { libvirt: true, ..common::options("guest", 2) }).expect("up");
    let (one, two) = (lab.host(1), lab.host(2));
    let virsh = |host: &Host, args: &[&str]| {
        let argv = ["virsh", "-q", "-c", "qemu:///system"].iter().chain(args).copied();
        host.command(argv).expect("on").stdin(GUEST).run().unwrap_or_else(|error| panic!("{}", error.chain()))
    };
    let list = |host: &Host| virsh(host, &["list", "--name"]);
    virsh(one, &["create", "/dev/stdin"]);
    virsh(one, &["migrate", "g", "qemu+tls://host2/system", "--live", "--p2p", "--tls"]);
    assert_eq!((list(one).as_str(), list(two).as_str()), ("", "g"));
    two.kill_libvirtd().expect("kill");
    let qemu = || two.exec(["pgrep", "-f", "^/usr/bin/qemu-system-x86_64"]).expect("pgrep").text();
    let pid = qemu();
    assert!(!pid.is_empty(), "the guest runs on without libvirtd");
    two.start_libvirtd().expect("start");
    assert_eq!((list(two), qemu()), ("g".to_owned(), pid));
    two.freeze().expect("freeze");
    two.reboot().expect("reboot");
    assert_eq!((list(two), qemu()), (String::new(), String::new()));
}

#[test]
#[ignore = "needs a lab"]
fn a_reboot_gives_a_new_boot_id_keeps_the_disk_and_loses_run() {
    let lab = common::bare("boot", 1);
    let host = lab.host(1);
    let boot_id = || host.run(["cat", "/proc/sys/kernel/random/boot_id"]).expect("cat");
    let machine = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("read");
    let first = boot_id();
    assert_eq!(first, host.boot_id().expect("recorded"));
    assert_ne!(first, machine.trim());
    host.run(["touch", "/run/lost", "/var/lib/understudy/kept", "/etc/understudy/kept"]).expect("touch");
    assert!(host.on_disk("/var/lib/understudy/kept").expect("on the disk").exists());
    assert!(host.live_path("/run/lost").expect("on").exists());
    host.reboot().expect("reboot");
    assert_ne!(boot_id(), first);
    let left =
        host.exec(["ls", "/run/lost", "/var/lib/understudy/kept", "/etc/understudy/kept"]).expect("ls");
    assert_eq!(left.text(), "/etc/understudy/kept\n/var/lib/understudy/kept");
    // The machine has seen none of it.
    assert!(!std::path::Path::new("/var/lib/understudy/kept").exists());
}

#[test]
#[ignore = "needs a lab"]
fn a_frozen_host_accepts_connections_and_answers_nothing_until_it_is_thawed() {
    let lab =
        Lab::up(understudy_lab::LabOptions { libvirt: true, ..common::options("freeze", 1) }).expect("up");
    let host = lab.host(1);
    host.freeze().expect("freeze");
    assert!(host.is_frozen().expect("readable"));
    let addr = SocketAddr::from((host.mgmt(), LIBVIRT));
    drop(lab.connect(addr).expect("its kernel accepts"));
    let hung = host.command(["true"]).expect("on").limit(SECOND).output();
    assert!(matches!(hung, Err(LabError::Timeout { .. })), "{hung:?}");
    host.thaw().expect("thaw");
    assert_eq!(host.run(["virsh", "-c", "qemu:///system", "hostname"]).expect("virsh"), "host1");
}

#[test]
#[ignore = "needs a lab"]
fn a_pulled_cable_cuts_one_network_and_heals() {
    let lab = common::bare("cut", 2);
    let (one, two) = (lab.host(1), lab.host(2));
    let _listener = listen(two, 7000);
    dial(one, two, 7000, LONG).expect("connected");
    two.cut(Net::Mgmt).expect("cut");
    assert!(dial(one, two, 7000, SECOND).is_err());
    let ns = two.net_ns().expect("on");
    let other = ns.run(|| TcpListener::bind((two.vm(), 7001))).expect("enter").expect("bind");
    lab.connect(SocketAddr::from((two.vm(), 7001))).expect("the other network stands");
    drop(other);
    two.heal(Net::Mgmt).expect("heal");
    dial(one, two, 7000, LONG).expect("connected again");
}

#[test]
#[ignore = "needs a lab"]
fn a_one_way_drop_makes_one_host_deaf_and_leaves_the_other_one_hearing() {
    let lab = common::bare("drop", 3);
    let socket = |host: &Host| {
        let ns = host.net_ns().expect("on");
        let socket = ns.run(|| UdpSocket::bind((host.mgmt(), 7000))).expect("enter").expect("bind");
        socket.set_read_timeout(Some(SECOND)).expect("set a timeout");
        socket
    };
    let sockets: Vec<_> = lab.hosts().iter().map(socket).collect();
    let heard = |from: usize, to: usize| {
        sockets[from].send_to(b"x", (lab.hosts()[to].mgmt(), 7000)).expect("sent");
        sockets[to].recv(&mut [0; 1]).is_ok()
    };
    assert!(heard(0, 1) && heard(1, 0));
    lab.host(1).drop_from(lab.host(2)).expect("drop");
    lab.host(1).drop_from(lab.host(2)).expect("drop twice is drop");
    assert!(heard(0, 1) && !heard(1, 0) && heard(2, 0));
    lab.host(1).drop_from(lab.host(3)).expect("drop");
    lab.host(1).hear(lab.host(2)).expect("hear");
    lab.host(1).hear(lab.host(2)).expect("hear twice is hear");
    assert!(heard(1, 0) && !heard(2, 0));
    lab.host(1).hear_all().expect("hear");
    assert!(heard(2, 0));
}

#[test]
#[ignore = "needs a lab"]
fn a_slow_link_is_slow_until_it_is_fast_again() {
    let lab = common::bare("slow", 2);
    let (one, two) = (lab.host(1), lab.host(2));
    let listener = listen(two, 7000);
    let bytes = 1_000_000;
    let carry = || {
        let begun = Instant::now();
        let mut out = dial(one, two, 7000, LONG).expect("connected");
        let mut back = listener.accept().expect("accepted").0;
        std::thread::scope(|scope| {
            scope.spawn(move || out.write_all(&vec![0; bytes]).expect("written"));
            let mut got = Vec::new();
            assert_eq!(back.read_to_end(&mut got).expect("read"), bytes);
        });
        begun.elapsed()
    };
    one.slow("8mbit").expect("slow");
    // 8 Mbit at 8 Mbit/s, less the 64 kB that the bucket holds at first.
    let slow = carry();
    assert!(slow > Duration::from_millis(900), "{slow:?}");
    one.fast().expect("fast");
    let fast = carry();
    assert!(fast < slow / 2, "{fast:?} after {slow:?}");
}

#[test]
#[ignore = "needs a lab"]
fn a_forwarder_carries_a_connection_from_the_machine_until_it_is_dropped() {
    let lab = common::bare("forward", 1);
    let listener = listen(lab.host(1), 7000);
    let forward = lab.forward(0, SocketAddr::from((lab.host(1).mgmt(), 7000))).expect("forward");
    let mut client = TcpStream::connect(forward.local()).expect("connect");
    client.set_read_timeout(Some(LONG)).expect("set a timeout");
    let mut server = listener.accept().expect("accepted").0;
    client.write_all(b"ping").expect("write");
    let mut got = [0; 4];
    server.read_exact(&mut got).expect("read");
    server.write_all(&got).expect("write");
    client.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"ping");
    let local = forward.local();
    drop(forward);
    assert_eq!(client.read(&mut got).expect("an orderly end"), 0);
    assert!(TcpStream::connect(local).is_err());
}

#[test]
#[ignore = "needs a lab"]
fn commands_in_a_host_have_its_exit_code_output_input_and_variables() {
    let lab = common::bare("exec", 1);
    let host = lab.host(1);
    let script = "cat; echo $WORD; echo oops >&2; exit 3";
    let command = host.command(["sh", "-c", script]).expect("on").stdin("in\n").env("WORD", "out");
    let output = command.output().expect("ran");
    assert_eq!((output.status.code(), output.text().as_str()), (Some(3), "in\nout"));
    assert_eq!(output.errors(), "oops");
    assert_eq!(host.exec(["no-such-program"]).expect("ran").status.code(), Some(127));
    let failed = host.run(["sh", "-c", "echo why >&2; false"]);
    assert!(matches!(&failed, Err(LabError::Tool { stderr, .. }) if stderr == "why"), "{failed:?}");
    // A daemon that a command leaves holds its output: that is said, not waited for.
    let daemon = host.exec(["sh", "-c", "sleep 20 &"]);
    assert!(
        matches!(&daemon, Err(LabError::Timeout { detail, .. }) if detail.contains("output")),
        "{daemon:?}"
    );
    let output = host.command(["cat"]).expect("on").stdin(vec![b'x'; 1 << 20]).output().expect("ran");
    assert_eq!(output.stdout.len(), 1 << 20);
    // What is dropped is killed, inside of the host too.
    let child = host.command(["sleep", "1000"]).expect("on").spawn().expect("spawned");
    let sleeps = || host.exec(["pgrep", "-x", "sleep"]).is_ok_and(|output| output.status.success());
    wait::until_true("the command runs", LONG, sleeps).expect("runs");
    drop(child);
    wait::until_true("the command is gone", LONG, || !sleeps()).expect("gone");
}
