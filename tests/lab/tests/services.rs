//! PID 1 of a host keeps its services as they are wanted. Need root.

mod common;

use std::time::Duration;

use understudy_lab::{Bind, Host, LabError, Ready, Restart, ServiceSpec, ServiceState, wait};

const LONG: Duration = Duration::from_secs(60);

/// Tells the supervisor what a service of `Type=notify` tells systemd, then goes on as `then` says.
fn notifying(then: &str) -> [String; 3] {
    let script = format!(
        "use Socket; socket(S, PF_UNIX, SOCK_DGRAM, 0) or die; \
         send(S, 'READY=1', 0, pack_sockaddr_un($ENV{{NOTIFY_SOCKET}})) or die; {then}"
    );
    ["perl".to_owned(), "-e".to_owned(), script]
}

fn sleeper(name: &str) -> ServiceSpec {
    ServiceSpec::new(name, ["sleep", "100000"]).restart(Restart::Always { delay_ms: 50 })
}

fn state(host: &Host, name: &str) -> ServiceState {
    host.service(name).status().expect("a status").state
}

#[test]
#[ignore = "needs a lab"]
fn a_killed_service_comes_back_and_a_stopped_one_stays_down() {
    let lab = common::bare("svc", 1);
    let host = lab.host(1);
    host.define_service(sleeper("a")).expect("define");
    let service = host.service("a");
    assert_eq!(state(host, "a"), ServiceState::Stopped);
    assert!(matches!(host.service("b").start(), Err(LabError::Refused { .. })));
    service.start().expect("start");
    let first = service.pid().expect("a status").expect("it runs");
    service.start().expect("start of what runs changes nothing");
    assert_eq!(service.pid().expect("a status"), Some(first));
    service.kill().expect("kill");
    wait::until_true("it runs again", LONG, || {
        service.pid().is_ok_and(|pid| pid.is_some_and(|pid| pid != first))
    })
    .expect("again");
    let status = service.status().expect("a status");
    assert_eq!((status.restarts, status.last_exit.as_deref()), (1, Some("signal SIGKILL")));
    service.stop().expect("stop");
    assert_eq!((state(host, "a"), service.pid().expect("a status")), (ServiceState::Stopped, None));
    service.restart().expect("restart of what is stopped starts it");
    assert_eq!(state(host, "a"), ServiceState::Ready);
    service.kill_and_hold().expect("kill and hold");
    assert_eq!(state(host, "a"), ServiceState::Stopped);
    // The file of services is on the disk: they all start at the next boot.
    host.reboot().expect("reboot");
    assert_eq!(state(host, "a"), ServiceState::Ready);
}

#[test]
#[ignore = "needs a lab"]
fn the_restart_policy_looks_at_how_a_service_ended() {
    let lab = common::bare("policy", 1);
    let host = lab.host(1);
    let delay_ms = 20;
    let table = [
        ("never", Restart::Never, "exit 1", false),
        ("good", Restart::OnFailure { delay_ms }, "exit 0", false),
        ("bad", Restart::OnFailure { delay_ms }, "exit 1", true),
        ("always", Restart::Always { delay_ms }, "exit 0", true),
    ];
    for (name, restart, script, again) in table {
        host.define_service(ServiceSpec::new(name, ["sh", "-c", script]).restart(restart)).expect("define");
        let service = host.service(name);
        service.start().expect("start");
        let what = format!("{name} settles");
        wait::until_true(&what, LONG, || {
            let status = service.status().expect("a status");
            if again { status.restarts >= 2 } else { status.state == ServiceState::Stopped }
        })
        .expect("settled");
        assert_eq!(service.status().expect("a status").restarts > 0, again, "{name}");
    }
}

#[test]
#[ignore = "needs a lab"]
fn readiness_is_what_the_service_says_and_a_silent_one_is_killed_by_its_watchdog() {
    let lab = common::bare("notify", 1);
    let host = lab.host(1);
    let silent = ServiceSpec::new("silent", ["sleep", "100000"]).ready(Ready::Notify);
    let mut watched = ServiceSpec::new("watched", notifying("sleep 100000")).ready(Ready::Notify);
    watched.watchdog_ms = Some(300);
    for spec in [silent, ServiceSpec::new("says", notifying("sleep 100000")).ready(Ready::Notify), watched] {
        let name = spec.name.clone();
        host.define_service(spec).expect("define");
        host.service(&name).start().expect("start");
    }
    host.service("says").wait_ready(LONG).expect("ready");
    assert_eq!(state(host, "silent"), ServiceState::Starting);
    wait::until_true("the watchdog bites", LONG, || {
        host.service("watched").status().is_ok_and(|s| s.restarts > 0)
    })
    .expect("killed");
    let last = host.service("watched").status().expect("a status").last_exit;
    assert_eq!(last.as_deref(), Some("signal SIGKILL"));
}

#[test]
#[ignore = "needs a lab"]
fn a_service_waits_for_the_one_before_it_and_its_log_is_on_the_disk() {
    let lab = common::bare("order", 1);
    let host = lab.host(1);
    // The first one says that it is ready only after it has left its mark.
    let mark = "select(undef, undef, undef, 0.3); open(F, '>', '/run/mark') or die; close F;";
    let say = notifying("sleep 100000");
    let first = [say[0].clone(), say[1].clone(), format!("{mark} {}", say[2])];
    host.define_service(ServiceSpec::new("first", first).ready(Ready::Notify)).expect("define");
    let second = ServiceSpec::new("second", ["sh", "-c", "ls /run/mark; exec sleep 100000"]);
    host.define_service(second).expect("define");
    host.reboot().expect("reboot");
    let log = host.on_disk("/var/log/second.log").expect("on the disk");
    wait::until_true("the second one has looked", LONG, || {
        std::fs::read_to_string(&log).is_ok_and(|text| !text.is_empty())
    })
    .expect("looked");
    assert_eq!(std::fs::read_to_string(&log).expect("read"), "/run/mark\n");
}

#[test]
#[ignore = "needs a lab"]
fn orphans_are_reaped_and_helpers_die_with_their_service() {
    let lab = common::bare("orphans", 1);
    let host = lab.host(1);
    host.define_service(ServiceSpec::new("parent", ["sh", "-c", "sleep 77777 & wait"])).expect("define");
    host.service("parent").start().expect("start");
    let helpers = || host.exec(["pgrep", "-f", "^sleep 77777"]).expect("pgrep").text();
    wait::until_true("the helper runs", LONG, || !helpers().is_empty()).expect("runs");
    host.service("parent").kill_and_hold().expect("kill");
    wait::until_true("the helper is gone", LONG, || helpers().is_empty()).expect("gone");
    // A daemon forks twice: PID 1 becomes its parent and collects it.
    host.run(["sh", "-c", "(sleep 0.2 >/dev/null 2>&1 &)"]).expect("started");
    wait::until("no zombie is left", LONG, || {
        let list = host.run(["ps", "-eo", "stat,args"]).map_err(|error| error.chain())?;
        if list.contains("sleep") || list.lines().any(|l| l.starts_with('Z')) { Err(list) } else { Ok(()) }
    })
    .expect("reaped");
}

#[test]
#[ignore = "needs a lab"]
fn a_bound_folder_is_there_at_once_and_after_a_reboot_and_may_be_read_only() {
    let lab = common::bare("bind", 1);
    let host = lab.host(1);
    let folder = lab.dir().join("images");
    std::fs::create_dir(&folder).expect("create");
    std::fs::write(folder.join("role"), "bytes").expect("write");
    let target = "/var/lib/understudy/images";
    let bind = |source: &std::path::Path, target: &str| {
        host.bind(Bind { source: source.to_path_buf(), target: target.into(), read_only: true })
    };
    bind(&folder, target).expect("bind a folder");
    bind(&folder.join("role"), "/var/lib/understudy/roles/role").expect("bind a file");
    for _ in 0..2 {
        assert_eq!(host.run(["cat", "/var/lib/understudy/images/role"]).expect("cat"), "bytes");
        assert_eq!(host.run(["cat", "/var/lib/understudy/roles/role"]).expect("cat"), "bytes");
        let denied = host.exec(["touch", "/var/lib/understudy/images/new"]).expect("touch");
        assert!(denied.errors().contains("Read-only"), "{}", denied.errors());
        host.reboot().expect("reboot");
    }
    assert!(matches!(bind(std::path::Path::new("/run/x"), "/x"), Err(LabError::BadOption(_))));
}
