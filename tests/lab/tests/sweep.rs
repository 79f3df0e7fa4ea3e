//! Nothing of a lab outlives it, however its run ends. Need root.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use understudy_lab::{Lab, LabError, LabOptions, ProcessId, ServiceSpec, sweep, sweep_dead, wait};

const LONG: Duration = Duration::from_secs(60);

/// Starts `lab up` as a process of its own.
fn start(prefix: &str, args: &[&str]) -> Child {
    let mut command = Command::new(common::LAB);
    command.args(["--prefix", prefix, "up"]).args(args).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped()).spawn().expect("lab starts")
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).expect("fits")), signal).expect("the child is there");
}

fn records(prefix: &str) -> PathBuf {
    Path::new("/run/understudy-lab").join(prefix)
}

fn assert_clean(prefix: &str, after: &str) {
    let traces = common::traces(prefix);
    assert!(traces.is_empty(), "after {after}: {traces:#?}");
}

/// Whether a run has come this far.
type Reached = Box<dyn Fn(&str) -> bool>;

fn journal_lines(count: usize) -> Reached {
    Box::new(move |prefix| {
        fs::read_to_string(records(prefix).join("journal")).is_ok_and(|text| text.lines().count() >= count)
    })
}

fn record(name: &'static str) -> Reached {
    Box::new(move |prefix| records(prefix).join(name).exists())
}

fn in_cgroup(name: &'static str, count: usize) -> Reached {
    Box::new(move |prefix| {
        ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().any(|root| {
            let file = Path::new(root).join(format!("{prefix}-{name}")).join("cgroup.procs");
            fs::read_to_string(file).is_ok_and(|text| text.lines().count() >= count)
        })
    })
}

#[test]
#[ignore = "needs a lab"]
fn a_run_killed_at_any_point_is_swept_without_a_trace() {
    let prefix = common::prefix("killed");
    sweep(&prefix).expect("nothing stands in the way");
    let mut points: Vec<(String, Reached)> = Vec::new();
    // Owner, folder, switch, its process, one cgroup per host.
    for count in 1..=6 {
        points.push((format!("{count} lines of the journal"), journal_lines(count)));
    }
    for name in ["lab.json", "host1.sock", "host2.pid"] {
        points.push((format!("{name} was there"), record(name)));
    }
    for (name, count) in [("sw", 1), ("h1", 1), ("h1", 2), ("h2", 3)] {
        points.push((format!("{count} processes in {name}"), in_cgroup(name, count)));
    }
    for (point, reached) in points {
        let mut child = start(&prefix, &["2"]);
        wait::until_true(&point, LONG, || reached(&prefix)).expect("the run comes this far");
        signal(&child, Signal::SIGKILL);
        child.wait().expect("collected");
        let swept = sweep_dead(&prefix).unwrap_or_else(|error| panic!("after {point}: {}", error.chain()));
        assert_eq!(swept.len(), 1, "after {point}");
        // A helper that was on its way into a cgroup ends by itself when it finds none.
        wait::until_true(&point, LONG, || common::traces(&prefix).is_empty())
            .unwrap_or_else(|_| assert_clean(&prefix, &point));
    }
}

#[test]
#[ignore = "needs a lab"]
fn the_next_run_clears_away_what_a_killed_one_has_left() {
    let prefix = common::prefix("next");
    sweep(&prefix).expect("nothing stands in the way");
    let mut child = start(&prefix, &["1", "--no-etcd"]);
    wait::until_true("host 1 is up", LONG, || in_cgroup("h1", 2)(&prefix)).expect("up");
    signal(&child, Signal::SIGKILL);
    child.wait().expect("collected");
    let swept = sweep_dead(&common::prefix("nobody")).expect("swept");
    assert_eq!(swept, [], "a sweep of others leaves it alone");
    let old = fs::read_to_string(records(&prefix).join("host1.pid")).unwrap_or_default();
    let lab = common::bare("next", 1);
    assert_ne!(fs::read_to_string(records(&prefix).join("host1.pid")).expect("recorded"), old);
    let old: Option<ProcessId> = serde_json::from_str(&old).ok();
    assert!(!old.is_some_and(ProcessId::alive));
    drop(lab);
    assert_clean(&prefix, "the next run");
}

#[test]
#[ignore = "needs a lab"]
fn signals_tear_the_lab_down() {
    let prefix = common::prefix("signal");
    sweep(&prefix).expect("nothing stands in the way");
    let points: [(&str, Reached, Signal); 3] = [
        ("SIGINT at the start", journal_lines(1), Signal::SIGINT),
        ("SIGTERM while hosts come up", in_cgroup("h1", 1), Signal::SIGTERM),
        ("SIGINT when all is up", in_cgroup("h1", 3), Signal::SIGINT),
    ];
    for (point, reached, number) in points {
        let mut child = start(&prefix, &["1"]);
        wait::until_true(point, LONG, || reached(&prefix)).expect("the run comes this far");
        signal(&child, number);
        let status = wait::until(point, LONG, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        })
        .expect("it ends");
        assert_eq!(status.code(), Some(128 + number as i32), "{point}");
        assert_clean(&prefix, point);
    }
}

#[test]
#[ignore = "needs a lab"]
fn a_second_run_of_the_same_lab_is_refused_and_names_the_first() {
    let lab = common::bare("twice", 1);
    let prefix = common::prefix("twice");
    let second = start(&prefix, &["1"]).wait_with_output().expect("it ends");
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success());
    assert!(words.contains(&format!("process {}", std::process::id())), "{words}");
    assert!(matches!(sweep(&prefix), Err(LabError::Busy { .. })));
    // The first one has not noticed.
    lab.host(1).run(["true"]).expect("it stands");
    let other = common::bare("twice2", 1);
    other.host(1).run(["true"]).expect("a lab of another name stands beside it");
}

#[test]
#[ignore = "needs a lab"]
fn a_kept_lab_is_found_again_spared_by_the_general_sweep_and_taken_down_by_name() {
    let (lab, prefix) = (common::bare("kept", 1), common::prefix("kept"));
    lab.keep().expect("kept");
    assert_eq!(sweep_dead(&prefix).expect("swept"), []);
    let refused = Lab::up(LabOptions { replace_kept: false, ..common::options("kept", 1) });
    assert!(matches!(refused, Err(LabError::Kept { .. })));
    let found = Lab::attach(&prefix, Some(Path::new(common::LAB))).expect("it stands");
    found.host(1).reboot().expect("and works");
    drop(found);
    let found = Lab::attach(&prefix, Some(Path::new(common::LAB))).expect("it still stands");
    found.down().expect("taken down");
    assert_clean(&prefix, "taking it down by name");
    assert!(matches!(Lab::attach(&prefix, None), Err(LabError::None { .. })));
    // Nothing of a kept lab holds the pipes of the one who raised it.
    let (done, raised) = std::sync::mpsc::channel();
    let up = start(&prefix, &["1", "--keep", "--no-etcd"]);
    std::thread::spawn(move || done.send(up.wait_with_output()));
    let raised = raised.recv_timeout(LONG);
    sweep(&prefix).expect("taken down");
    assert!(raised.expect("the pipes are closed").expect("collected").status.success());
}

#[test]
#[ignore = "needs a lab"]
fn only_what_is_the_labs_own_is_touched() {
    let prefix = common::prefix("foreign");
    sweep(&prefix).expect("nothing stands in the way");
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("thesis"), "years of work").expect("write");
    let mut bystander = Command::new("sleep").arg("1000").spawn().expect("sleep");
    let id = ProcessId::of(i32::try_from(bystander.id()).expect("fits")).expect("it runs");
    // A journal as a killed run leaves it, after the process id went to somebody else.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("read");
    let owner = ProcessId { start: id.start + 1, ..id };
    let run = serde_json::json!({ "run": { "owner": owner, "boot": boot.trim() } });
    let dir = serde_json::json!({ "dir": { "path": folder.path() } });
    let process = serde_json::json!({ "process": { "id": owner } });
    fs::create_dir_all(records(&prefix)).expect("create");
    let journal = records(&prefix).join("journal");
    fs::write(&journal, format!("{run}\n{dir}\n{process}\n")).expect("write");
    sweep(&prefix).expect("swept");
    assert!(!records(&prefix).exists());
    assert!(folder.path().join("thesis").exists());
    assert!(bystander.try_wait().expect("asked").is_none());
    // And a lab does not move into a folder that is somebody's.
    let dir = Some(folder.path().to_path_buf());
    let refused = Lab::up(LabOptions { dir, ..common::options("foreign", 1) });
    assert!(matches!(refused, Err(LabError::ForeignDir(_))));
    assert!(folder.path().join("thesis").exists());
    assert_clean(&prefix, "a refused folder");
    bystander.kill().expect("its own end");
    bystander.wait().expect("collected");
}

#[test]
#[ignore = "needs a lab"]
fn a_lab_that_cannot_be_raised_says_why_and_leaves_nothing() {
    let options = LabOptions { helper: Some("/bin/true".into()), ..common::options("fails", 1) };
    let error = Lab::up(options).expect_err("true holds no switch");
    assert!(error.to_string().contains("init_if_asked"), "{error}");
    assert_clean(&common::prefix("fails"), "a helper that does not help");
    // One that came further leaves what its hosts have said, where that was asked for.
    let folder = tempfile::tempdir().expect("a folder");
    let options = LabOptions { logs: Some(folder.path().to_path_buf()), ..common::options("fails", 1) };
    let lab = Lab::up(options).expect("up");
    lab.host(1).define_service(ServiceSpec::new("s", ["echo", "last words"])).expect("define");
    lab.host(1).service("s").start().expect("start");
    let log = lab.host(1).on_disk("/var/log/s.log").expect("on the disk");
    wait::until_true("it speaks", LONG, || fs::read_to_string(&log).is_ok_and(|t| !t.is_empty()))
        .expect("spoken");
    drop(lab);
    let saved = fs::read_to_string(folder.path().join("host1/log/s.log")).expect("saved");
    assert!(saved.starts_with("last words\n"), "{saved}");
    assert_clean(&common::prefix("fails"), "its end");
    assert!(matches!(
        Lab::up(LabOptions { helper: None, ..common::options("fails", 1) }),
        Err(LabError::NoHelper)
    ));
}
