//! Real qemu under a real libvirtd, in hosts of their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid as UnixPid;
use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_core::model::units::MiB;
use understudy_hypervisor::process::process_of;
use understudy_hypervisor::{
    CallError, Deadlines, DestroyError, EventKind, GuestCommand, Hypervisor, InstanceSpec, InstanceState,
    Libvirt, LibvirtConfig, Lifecycle, ListError, Liveness, MigrationOutcome, MigrationTarget, StartError,
    StopCause,
};

use crate::host::{Host, LONG, chain, fact, inside, until, virsh};
use crate::suite::{Bed, Pair, conforms, moves, state};

struct RealBed<'a> {
    host: &'a Host,
    libvirt: Libvirt,
}

fn shell(script: &str) -> Vec<String> {
    ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec()
}

impl Bed for RealBed<'_> {
    fn hypervisor(&self) -> &dyn Hypervisor {
        &self.libvirt
    }
    fn spec(&self, number: u8) -> InstanceSpec {
        self.host.spec(number)
    }
    fn permit(&self, id: InstanceId, epoch: Epoch) {
        // The suite asks for older epochs too, which the writer of permits refuses; the hook must do so as well.
        if self.host.permits(1).floor(id).unwrap() <= epoch {
            self.host.permit(1, id, epoch);
        }
    }
    fn put(&self) -> Vec<String> {
        shell("/bin/busybox cat > /run/mark")
    }
    fn get(&self) -> Vec<String> {
        shell("/bin/busybox cat /run/mark")
    }
    fn exit_7(&self) -> Vec<String> {
        shell("exit 7")
    }
    fn hang(&self) -> Vec<String> {
        shell("/bin/busybox sleep 60")
    }
    fn image(&self, name: &str) -> PathBuf {
        self.host.folder.join(name)
    }
    fn role_disk(&self) -> PathBuf {
        let path = self.host.folder.join("role.erofs");
        if path.exists() { path } else { self.host.role_disk() }
    }
    fn damaged_role_disk(&self) -> PathBuf {
        let path = self.host.folder.join("damaged.erofs");
        let bytes = std::fs::read(self.role_disk()).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        path
    }
    fn keep(&self, mut image: std::fs::File) -> PathBuf {
        let path = self.image("snapshot");
        std::io::copy(&mut image, &mut std::fs::File::create(&path).unwrap()).unwrap();
        path
    }
    fn damage_image(&self, path: &Path) {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }
}

#[test]
#[ignore = "needs a host"]
fn real_qemu_conforms() {
    inside("one", "real::real_qemu_conforms", |host| {
        conforms(&RealBed { host, libvirt: host.libvirt() });
    });
}

fn signal(pid: i32, signal: Signal) {
    kill(UnixPid::from_raw(pid), signal).expect("the process is there");
}

fn libvirtd() -> i32 {
    std::fs::read_to_string("/run/libvirtd.pid").unwrap().trim().parse().unwrap()
}

fn start_libvirtd() {
    let _ = std::fs::remove_file("/run/libvirtd.pid");
    let status =
        Command::new("libvirtd").args(["--daemon", "--pid-file", "/run/libvirtd.pid"]).status().unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "needs a host"]
fn a_death_is_reported_in_milliseconds_and_libvirtds_own_is_none_of_an_instances() {
    inside(
        "one",
        "real::a_death_is_reported_in_milliseconds_and_libvirtds_own_is_none_of_an_instances",
        |host| {
            let hv = host.libvirt();
            let (one, two) = (host.boot(&hv, 1), host.boot(&hv, 2));
            let (first, second) = (one.pid.expect("a process"), two.pid.expect("a process"));
            let events = hv.subscribe();
            signal(libvirtd(), Signal::SIGKILL);
            until("the loss is noticed", || matches!(hv.instances(), Err(ListError::List(_))));
            signal(first.0, Signal::SIGKILL);
            let killed = Instant::now();
            let (mut lost, mut died) = (false, None);
            while died.is_none() {
                match events.recv_timeout(LONG).expect("the death is told").kind {
                    EventKind::ConnectionLost => lost = true,
                    EventKind::Died { id, pid } => {
                        assert_eq!((id, pid), (one.id, first));
                        died = Some(killed.elapsed());
                    }
                    other => panic!("{other:?}"),
                }
            }
            let died = died.expect("just seen");
            eprintln!("figure: death told {died:?} after SIGKILL, with libvirtd down");
            assert!(lost && died < Duration::from_secs(2), "{died:?}");
            assert_eq!(process_of(one.id).unwrap(), None);
            assert_eq!(process_of(two.id).unwrap(), Some(second));
            let down = Instant::now();
            start_libvirtd();
            until("libvirt is back", || hv.instances().is_ok());
            eprintln!("figure: connected again {:?} after libvirtd's start", down.elapsed());
            assert_eq!(hv.liveness(one.id).unwrap(), Liveness::Gone);
            assert_eq!(hv.liveness(two.id).unwrap(), Liveness::Known(InstanceState::Running));
            assert_eq!(fact(&hv, two.id).unwrap().pid, Some(second));
            // A libvirtd that is back lists its instances before it has its channels to all of them again.
            until("the guest agent answers again", || hv.guest_ping(two.id, LONG).is_ok());
            let after: Vec<EventKind> = events.try_iter().map(|event| event.kind).collect();
            assert!(after.contains(&EventKind::ConnectionRegained), "{after:?}");
            assert!(!after.iter().any(|kind| matches!(kind, EventKind::Died { .. })), "{after:?}");
            // A polite signal looks like an orderly stop to libvirt; the process's death is told all the same.
            signal(second.0, Signal::SIGTERM);
            let mut seen = Vec::new();
            while !(seen.contains(&EventKind::Died { id: two.id, pid: second })
                && seen.contains(&EventKind::Lifecycle {
                    id: two.id,
                    change: Lifecycle::Stopped(StopCause::ShutDown),
                }))
            {
                seen.push(events.recv_timeout(LONG).unwrap_or_else(|_| panic!("{seen:?}")).kind);
            }
            hv.destroy(two.id).unwrap();
        },
    );
}

#[test]
#[ignore = "needs a host"]
fn a_process_that_libvirt_has_lost_is_seen_and_destroyed() {
    inside("one", "real::a_process_that_libvirt_has_lost_is_seen_and_destroyed", |host| {
        let hv = host.libvirt();
        let instance = host.boot(&hv, 1);
        // A libvirtd that forgot: its notes on running domains are gone when it starts again.
        signal(libvirtd(), Signal::SIGKILL);
        until("it is gone", || !Path::new(&format!("/proc/{}", libvirtd())).exists());
        std::fs::remove_file(format!("/run/libvirt/qemu/{}.xml", instance.name)).unwrap();
        start_libvirtd();
        until("libvirt is back", || hv.instances().is_ok());
        assert_eq!(
            hv.liveness(instance.id).unwrap(),
            Liveness::ProcessOnly(instance.pid.expect("a process"))
        );
        hv.destroy(instance.id).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(hv.liveness(instance.id).unwrap(), Liveness::Gone);
    });
}

#[test]
#[ignore = "needs a host"]
fn an_instance_is_destroyed_while_libvirtd_is_down_and_one_without_a_process_is_not_called_gone() {
    let name =
        "real::an_instance_is_destroyed_while_libvirtd_is_down_and_one_without_a_process_is_not_called_gone";
    inside("one", name, |host| {
        let hv = host.libvirt();
        let (one, two) = (host.boot(&hv, 1), host.boot(&hv, 2));
        signal(libvirtd(), Signal::SIGKILL);
        until("the loss is noticed", || matches!(hv.instances(), Err(ListError::List(_))));
        hv.destroy(one.id).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(process_of(one.id).unwrap(), None);
        assert_eq!(process_of(two.id).unwrap(), two.pid);
        // It is gone already, and only libvirt could say that nothing of it is about to come.
        let unknown = hv.destroy(one.id);
        assert!(matches!(unknown, Err(DestroyError::Destroy { .. })), "{unknown:?}");
        start_libvirtd();
        until("libvirt is back", || hv.instances().is_ok());
        hv.destroy(one.id).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(hv.liveness(one.id).unwrap(), Liveness::Gone);
        // One that hangs is as good as none.
        let start = Duration::from_secs(2);
        let hv = Libvirt::start(LibvirtConfig {
            deadlines: Deadlines { start, ..Deadlines::default() },
            ..LibvirtConfig::local()
        })
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
        signal(libvirtd(), Signal::SIGSTOP);
        hv.destroy(two.id).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(process_of(two.id).unwrap(), None);
        signal(libvirtd(), Signal::SIGCONT);
        until("libvirt answers again", || hv.instances().is_ok_and(|all| all.is_empty()));
    });
}

#[test]
#[ignore = "needs a host"]
fn nothing_managed_starts_behind_the_agents_back() {
    inside("one", "real::nothing_managed_starts_behind_the_agents_back", |host| {
        let hv = host.libvirt();
        let instance = host.boot(&hv, 1);
        let (ok, xml) = virsh(&["dumpxml", "--inactive", "u1"]);
        assert!(ok, "{xml}");
        let (description, image) = (host.folder.join("u1.xml"), host.folder.join("u1.save"));
        std::fs::write(&description, &xml).unwrap();
        hv.save_memory(instance.id, &image, LONG).unwrap_or_else(|error| panic!("{}", chain(&error)));
        hv.destroy(instance.id).unwrap();
        let (description, image) = (description.display().to_string(), image.display().to_string());
        let refused = |arguments: &[&str]| {
            let (ok, text) = virsh(arguments);
            assert!(!ok && text.contains("there is no permit"), "{arguments:?}: {text}");
        };
        refused(&["create", &description]);
        refused(&["restore", &image]);
        assert!(virsh(&["define", &description]).0);
        refused(&["start", "u1"]);
        assert!(virsh(&["autostart", "u1"]).0);
        let facts = hv.instances().unwrap();
        assert_eq!(
            facts.iter().map(|fact| (fact.id, fact.state)).collect::<Vec<_>>(),
            [(instance.id, InstanceState::Off)]
        );
        // The autostart of a libvirtd that starts anew is refused too. (A mark under /run tells libvirt that it has
        // run before in this boot, and then it starts nothing.)
        signal(libvirtd(), Signal::SIGKILL);
        until("it is gone", || !Path::new(&format!("/proc/{}", libvirtd())).exists());
        let _ = std::fs::remove_file("/run/libvirt/qemu/autostarted");
        start_libvirtd();
        until("libvirt is back", || hv.instances().is_ok());
        let log = "/var/log/libvirt/libvirtd.log";
        until("the autostart was refused", || {
            std::fs::read_to_string(log).is_ok_and(|text| text.contains("no permit"))
        });
        assert_eq!(process_of(instance.id).unwrap(), None);
        // Destroy ends the definition as well.
        hv.destroy(instance.id).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(hv.instances().unwrap(), Vec::new());
        assert!(!virsh(&["dominfo", "u1"]).0);
    });
}

#[test]
#[ignore = "needs a host"]
fn qemus_monitor_takes_an_open_file() {
    inside("one", "real::qemus_monitor_takes_an_open_file", |host| {
        use std::os::fd::AsFd;
        let hv = host.libvirt();
        let instance = host.boot(&hv, 1);
        let file = tempfile::tempfile().unwrap();
        let ask = |command: serde_json::Value, files: &[std::os::fd::BorrowedFd<'_>]| {
            hv.monitor_with_files(instance.id, &command, files)
                .unwrap_or_else(|error| panic!("{}", chain(&error)))
        };
        let status = ask(serde_json::json!({"execute": "query-status"}), &[]);
        assert_eq!(status["return"]["status"], "running");
        let taken = serde_json::json!({"execute": "getfd", "arguments": {"fdname": "one"}});
        assert!(ask(taken.clone(), &[file.as_fd()])["return"].is_object());
        let given_back = serde_json::json!({"execute": "closefd", "arguments": {"fdname": "one"}});
        assert!(ask(given_back, &[])["return"].is_object());
        let without = hv.monitor_with_files(instance.id, &taken, &[]);
        assert!(
            without.is_err() || without.is_ok_and(|answer| answer["error"].is_object()),
            "no file was passed"
        );
        hv.announce(instance.id).unwrap_or_else(|error| panic!("{}", chain(&error)));
        hv.destroy(instance.id).unwrap();
    });
}

#[test]
#[ignore = "needs a host"]
fn a_panic_and_a_wrong_address_are_reported() {
    inside("one", "real::a_panic_and_a_wrong_address_are_reported", |host| {
        for uri in ["foo:///system", "qemu:///sistem"] {
            let started = Libvirt::start(LibvirtConfig { uri: uri.to_owned(), ..LibvirtConfig::local() });
            assert!(matches!(started, Err(StartError::Uri { .. })), "{uri}");
        }
        let hv = host.libvirt();
        let instance = host.boot(&hv, 1);
        let stats = hv.stats().unwrap();
        let own = stats.iter().find(|stats| stats.id == instance.id).expect("it is counted");
        assert!(own.cpu_time.is_some_and(|time| time > Duration::ZERO), "{own:?}");
        assert_eq!(
            (own.memory_maximum_kib, own.interfaces.len()),
            (Some(MiB(192).bytes() >> 10), 1),
            "{own:?}"
        );
        let events = hv.subscribe();
        let crash = GuestCommand {
            argv: shell("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger"),
            stdin: Vec::new(),
            deadline: Duration::from_secs(5),
        };
        // The answer does not come: the guest is gone.
        let _ = hv.guest_exec(instance.id, &crash);
        while events.recv_timeout(LONG).expect("the panic is told").kind
            != (EventKind::Panicked { id: instance.id })
        {}
        until("its state says so", || state(&hv, instance.id) == Some(InstanceState::Crashed));
        hv.destroy(instance.id).unwrap();
    });
}

#[test]
#[ignore = "needs a host"]
fn a_libvirtd_that_hangs_holds_no_caller_longer_than_its_deadline() {
    inside("one", "real::a_libvirtd_that_hangs_holds_no_caller_longer_than_its_deadline", |_| {
        let second = Duration::from_secs(1);
        let hv = Libvirt::start(LibvirtConfig {
            deadlines: Deadlines { query: second, ..Deadlines::default() },
            ..LibvirtConfig::local()
        })
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let events = hv.subscribe();
        signal(libvirtd(), Signal::SIGSTOP);
        let begun = Instant::now();
        let late = hv.instances();
        assert!(matches!(late, Err(ListError::List(CallError::TimedOut { .. }))), "{late:?}");
        assert!(begun.elapsed() >= second && begun.elapsed() < 20 * second, "{:?}", begun.elapsed());
        while events.recv_timeout(LONG).expect("the loss is told").kind != EventKind::ConnectionLost {}
        eprintln!("figure: a hung libvirtd was found out after {:?}", begun.elapsed());
        assert!(matches!(hv.instances(), Err(ListError::List(CallError::Down { .. }))));
        signal(libvirtd(), Signal::SIGCONT);
        while events.recv_timeout(LONG).expect("the return is told").kind != EventKind::ConnectionRegained {}
        assert_eq!(hv.instances().unwrap(), Vec::new());
    });
}

fn target(bandwidth: Option<MiB>) -> MigrationTarget {
    MigrationTarget {
        uri: "qemu+tls://host2/system".to_owned(),
        tls: true,
        tls_name: None,
        data_uri: None,
        bandwidth,
    }
}

struct TwoHosts<'a> {
    host: &'a Host,
    here: &'a Libvirt,
    there: &'a Libvirt,
}

impl Pair for TwoHosts<'_> {
    fn here(&self) -> &dyn Hypervisor {
        self.here
    }
    fn there(&self) -> &dyn Hypervisor {
        self.there
    }
    fn target(&self) -> MigrationTarget {
        target(None)
    }
    fn permit_there(&self, id: InstanceId, epoch: Epoch) {
        self.host.permit(2, id, epoch);
    }
}

/// The other host's libvirt, as the first host reaches it.
fn other() -> Libvirt {
    let other = LibvirtConfig {
        uri: "qemu+tls://host2/system".to_owned(),
        pid_folder: None,
        accelerator: understudy_hypervisor::AcceleratorSetting::Fixed(
            understudy_hypervisor::Accelerator::Tcg,
        ),
        ..LibvirtConfig::local()
    };
    Libvirt::start(other).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

#[test]
#[ignore = "needs a host"]
fn an_instance_moves_over_tls_with_its_memory_and_arrives_paused() {
    inside("two", "real::an_instance_moves_over_tls_with_its_memory_and_arrives_paused", |host| {
        let (hv, there) = (host.libvirt(), other());
        let disk = host.role_disk();
        let instance = host.boot(&hv, 1);
        hv.attach_role_disk(instance.id, &disk).unwrap_or_else(|error| panic!("{}", chain(&error)));
        let put = GuestCommand {
            argv: shell("/bin/busybox cat > /run/mark"),
            stdin: b"kept".to_vec(),
            deadline: LONG,
        };
        assert_eq!(hv.guest_exec(instance.id, &put).unwrap().exit, 0);
        moves(&TwoHosts { host, here: &hv, there: &there }, instance.id);
        let get =
            GuestCommand { argv: shell("/bin/busybox cat /run/mark"), stdin: Vec::new(), deadline: LONG };
        assert_eq!(there.guest_exec(instance.id, &get).unwrap().stdout, b"kept");
        there.destroy(instance.id).unwrap();
    });
}

#[test]
#[ignore = "needs a host"]
fn a_migration_that_takes_too_long_is_cancelled_and_the_instance_runs_on() {
    inside("two", "real::a_migration_that_takes_too_long_is_cancelled_and_the_instance_runs_on", |host| {
        let (hv, there) = (host.libvirt(), other());
        let instance = host.boot(&hv, 1);
        host.permit(2, instance.id, Epoch(1));
        let begun = Instant::now();
        let stayed = hv.migrate(instance.id, &target(Some(MiB(1))), Duration::from_secs(3)).unwrap();
        eprintln!("figure: cancelled within {:?}", begun.elapsed());
        assert!(matches!(stayed, MigrationOutcome::StayedHere { .. }), "{stayed:?}");
        assert_eq!(state(&hv, instance.id), Some(InstanceState::Running));
        assert_eq!(state(&there, instance.id), None);
        // A destination that is cut off: the call ends, so it has stayed, and the instance runs on.
        let status = Command::new("ip").args(["link", "set", "eth0", "down"]).status().unwrap();
        assert!(status.success());
        let cut = hv.migrate(instance.id, &target(None), Duration::from_secs(3)).unwrap();
        let says = |why: &String| why.contains("the destination") && why.contains("does not answer");
        assert!(matches!(&cut, MigrationOutcome::StayedHere { why } if says(why)), "{cut:?}");
        assert_eq!(hv.liveness(instance.id).unwrap(), Liveness::Known(InstanceState::Running));
        hv.guest_ping(instance.id, LONG).unwrap_or_else(|error| panic!("{}", chain(&error)));
        hv.destroy(instance.id).unwrap();
    });
}
