//! What the guard acknowledges, refuses and survives.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::support::{BINARY, Folder, Guard, LIMIT, MS, Qemu, after, refusal, uuid, wait_for};
use nix::sys::signal::Signal;
use understudy_guard::{CAPACITY, Class, Client, ClientError, Refusal, Registration};

#[test]
fn registering_repeats_raises_and_never_goes_back() {
    let folder = Folder::new();
    let _guard = Guard::start(&folder);
    let mut client = folder.client();
    let (first, second) = (Qemu::start(), Qemu::start());
    client.register(&first.registration(1, 5)).unwrap();
    client.register(&first.registration(1, 5)).unwrap();
    client.register(&Registration { class: Class::SharedDisk, ..first.registration(1, 6) }).unwrap();
    assert_eq!(refusal(client.register(&first.registration(1, 5))), Refusal::OldEpoch);
    assert_eq!(refusal(client.register(&second.registration(1, 7))), Refusal::OtherProcess);
    let status = client.status().unwrap();
    assert_eq!(status.entries.len(), 1);
    let entry = status.entries[0];
    assert_eq!((entry.uuid, entry.epoch, entry.pid), (uuid(1), 6, first.pid()));
    assert_eq!((entry.class, entry.dying), (Class::SharedDisk, false));
    assert_eq!(refusal(client.forget(uuid(1), 5)), Refusal::OldEpoch);
    client.forget(uuid(1), 6).unwrap();
    client.forget(uuid(1), 6).unwrap();
    assert_eq!(client.status().unwrap().registered, 0);
    client.set_deadline(after(200 * MS, 1)).unwrap();
    wait_for("the deadline", || {
        let status = client.status().unwrap();
        status.now_ns > status.deadline.unwrap().boottime_ns
    });
    assert!(first.is_alive() && second.is_alive(), "what was forgotten is not killed");
}

#[test]
fn a_pidfd_must_be_of_the_live_process_it_claims() {
    let folder = Folder::new();
    let _guard = Guard::start(&folder);
    let mut client = folder.client();
    let (mut first, second) = (Qemu::start(), Qemu::start());
    let other_pid = Registration { pid: second.pid(), ..first.registration(1, 1) };
    assert_eq!(refusal(client.register(&other_pid)), Refusal::WrongPidfd);
    let null = fs::File::open("/dev/null").unwrap();
    let no_pidfd = Registration { pidfd: null.as_fd(), ..first.registration(1, 1) };
    let refused = refusal(client.register(&no_pidfd));
    assert!(matches!(refused, Refusal::WrongPidfd | Refusal::Dead), "{refused:?}");
    first.end();
    assert_eq!(refusal(client.register(&first.registration(1, 1))), Refusal::Dead);
    assert_eq!(client.status().unwrap().registered, 0);
}

#[test]
fn deadlines_and_leases_only_move_forward() {
    let folder = Folder::new();
    let guard = Guard::start(&folder);
    let mut client = folder.client();
    let minute = 60_000 * MS;
    client.set_deadline(after(minute, 5)).unwrap();
    let acknowledged = client.status().unwrap().deadline;
    assert_eq!(refusal(client.set_deadline(after(minute / 2, 5))), Refusal::Backwards);
    assert_eq!(refusal(client.set_deadline(after(2 * minute, 4))), Refusal::OldLease);
    assert_eq!(refusal(client.set_deadline(after(0, 6))), Refusal::PastDeadline);
    assert_eq!(refusal(client.set_deadline(after(60 * minute, 5))), Refusal::TooFar);
    assert_eq!(client.status().unwrap().deadline, acknowledged, "a refusal changes nothing");
    guard.crash();
    let _successor = Guard::start(&folder);
    let mut client = folder.client();
    assert_eq!(refusal(client.set_deadline(after(2 * minute, 4))), Refusal::OldLease);
    client.set_deadline(after(minute / 2, 6)).unwrap();
}

/// S17: what a lease left cannot run on under the next one, whoever restarts in between.
#[test]
fn a_newer_lease_closes_the_one_before_for_good_and_waits_until_nothing_of_it_is_left() {
    let folder = Folder::new();
    let guard = Guard::start(&folder);
    let mut client = folder.client();
    let mut qemu = Qemu::start();
    let far = |lease| after(60_000 * MS, lease);
    client.set_deadline(far(5)).unwrap();
    client.register(&Registration { lease: 5, ..qemu.registration(1, 1) }).unwrap();
    assert_eq!(refusal(client.set_deadline(far(6))), Refusal::Closing);
    assert_eq!(qemu.signal(), Some(nix::sys::signal::Signal::SIGKILL as i32));
    let late = Qemu::start();
    assert_eq!(
        refusal(client.register(&Registration { lease: 5, ..late.registration(2, 1) })),
        Refusal::Expired
    );
    assert_eq!(refusal(client.set_deadline(far(5))), Refusal::Expired);
    guard.crash();
    let _successor = Guard::start(&folder);
    let mut client = folder.client();
    assert_eq!(refusal(client.set_deadline(far(5))), Refusal::Expired, "its successor knows too");
    wait_for("the next lease", || client.set_deadline(far(6)).is_ok());
    client.register(&Registration { lease: 6, ..late.registration(2, 1) }).unwrap();
    assert!(late.is_alive());
}

#[test]
fn a_job_of_another_lease_brings_nothing_to_life() {
    let folder = Folder::new();
    let _guard = Guard::start(&folder);
    let mut client = folder.client();
    let qemu = Qemu::start();
    let of = |lease| Registration { lease, ..qemu.registration(1, 1) };
    client.set_deadline(after(60_000 * MS, 5)).unwrap();
    assert_eq!(refusal(client.register(&of(4))), Refusal::OldLease);
    assert_eq!(refusal(client.register(&of(6))), Refusal::NewLease);
    assert_eq!(client.status().unwrap().registered, 0);
    client.register(&of(5)).unwrap();
}

#[test]
fn a_dead_process_leaves_the_table_by_itself() {
    let folder = Folder::new();
    let _guard = Guard::start(&folder);
    let mut client = folder.client();
    let mut qemu = Qemu::start();
    client.register(&qemu.registration(1, 1)).unwrap();
    qemu.end();
    wait_for("an empty table", || client.status().unwrap().registered == 0);
    assert_eq!(client.status().unwrap().kills, 0);
    // Its place, and its instance, are free for the next process.
    let next = Qemu::start();
    client.register(&next.registration(1, 1)).unwrap();
}

#[test]
fn a_full_table_refuses_and_empties_at_once() {
    let folder = Folder::new();
    let _guard = Guard::start(&folder);
    let mut client = folder.client();
    let mut qemu = Qemu::start();
    let capacity = u16::try_from(CAPACITY).unwrap();
    for number in 0..capacity {
        client.register(&qemu.registration(number, 1)).unwrap();
    }
    assert_eq!(refusal(client.register(&qemu.registration(capacity, 1))), Refusal::Full);
    let status = client.status().unwrap();
    assert_eq!((status.registered, status.entries.len()), (status.capacity, CAPACITY));
    client.set_deadline(after(100 * MS, 1)).unwrap();
    assert!(qemu.died_within(LIMIT).is_some());
    assert_eq!(qemu.signal(), Some(Signal::SIGKILL as i32));
    wait_for("an empty table", || client.status().unwrap().registered == 0);
}

#[test]
fn an_orderly_stop_leaves_primaries_running_and_the_table_to_a_successor() {
    let folder = Folder::new();
    let guard = Guard::start(&folder);
    let qemu = Qemu::start();
    let mut client = folder.client();
    client.register(&qemu.registration(1, 1)).unwrap();
    let deadline = after(300_000 * MS, 1);
    client.set_deadline(deadline).unwrap();
    guard.signal(Signal::SIGHUP);
    assert!(client.hello().is_ok(), "a hang-up is no reason to end");
    assert_eq!(guard.stop().code(), Some(0));
    assert!(matches!(client.hello(), Err(ClientError::Closed)));
    assert!(matches!(Client::connect(&folder.socket(), LIMIT), Err(ClientError::Connect(..))));
    assert!(qemu.is_alive());
    let successor = Guard::start(&folder);
    let status = folder.client().status().unwrap();
    assert_eq!((status.registered, status.deadline), (1, Some(deadline)));
    successor.signal(Signal::SIGTERM);
    successor.expect_notice("STOPPING=1");
}

#[test]
fn a_second_guard_does_not_start() {
    let folder = Folder::new();
    let _guard = Guard::start(&folder);
    let mut second = Guard::spawn(&folder, &[]);
    assert_eq!(second.child.wait().unwrap().code(), Some(1));
    assert!(folder.client().hello().is_ok(), "the first still answers on its socket");
}

#[test]
fn the_watchdog_is_fed_and_closed_for_good_only_when_nothing_runs() {
    let folder = Folder::new();
    let device = folder.0.join("watchdog");
    fs::write(&device, "").unwrap();
    let arguments = ["--watchdog".as_ref(), device.as_path()];
    let fed = || !fs::read(&device).unwrap().is_empty();
    let last = || fs::read(&device).unwrap().last().copied();
    let qemu = Qemu::start();

    let guard = Guard::spawn(&folder, &arguments);
    guard.expect_notice("READY=1");
    folder.client().register(&qemu.registration(1, 1)).unwrap();
    wait_for("a beat", fed);
    assert!(guard.stop().success());
    assert_eq!(last(), Some(0), "a primary runs: the device goes on");

    fs::write(&device, "").unwrap();
    let guard = Guard::spawn(&folder, &arguments);
    guard.expect_notice("READY=1");
    wait_for("a beat", fed);
    folder.client().forget(uuid(1), 1).unwrap();
    assert!(guard.stop().success());
    assert_eq!(last(), Some(b'V'), "nothing runs: the magic close");

    let missing = ["--watchdog".as_ref(), "/nonexistent/watchdog".as_ref()];
    let guard = Guard::spawn(&folder, &missing);
    guard.expect_notice("READY=1");
}

#[test]
fn a_hung_guard_costs_a_call_its_time_and_no_later_call_its_answer() {
    let folder = Folder::new();
    let guard = Guard::start(&folder);
    let mut client = Client::connect(&folder.socket(), Duration::from_millis(200)).unwrap();
    guard.signal(Signal::SIGSTOP);
    assert!(matches!(client.status(), Err(ClientError::TimedOut(_))));
    assert!(matches!(client.hello(), Err(ClientError::TimedOut(_))));
    guard.signal(Signal::SIGCONT);
    let qemu = Qemu::start();
    wait_for("an answer", || client.register(&qemu.registration(1, 1)).is_ok());
    assert_eq!(client.status().unwrap().entries[0].uuid, uuid(1));
}

#[test]
fn connections_are_limited_and_a_closed_one_makes_room() {
    let folder = Folder::new();
    let _guard = Guard::start(&folder);
    let mut open: Vec<Client> = (0..32).map(|_| folder.client()).collect();
    assert_eq!(refusal(Client::connect(&folder.socket(), LIMIT)), Refusal::Busy);
    open.pop();
    wait_for("room", || Client::connect(&folder.socket(), LIMIT).is_ok());
    assert!(open.iter_mut().all(|client| client.hello().is_ok()));
}

#[test]
#[ignore = "needs root"]
fn only_root_is_answered() {
    let folder = Folder::new();
    let _guard = Guard::start(&folder);
    let mode = fs::metadata(folder.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Even where the file's mode would let others in.
    fs::set_permissions(folder.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o755)).unwrap();
    let binary = folder.0.join("guard");
    fs::copy(BINARY, &binary).unwrap();
    let status = |uid: u32| {
        let mut command = Command::new(&binary);
        command.arg("status").arg("--socket").arg(folder.socket()).uid(uid).gid(uid);
        command.output().unwrap()
    };
    let nobody = status(65_534);
    assert_eq!(nobody.status.code(), Some(1));
    let text = String::from_utf8(nobody.stderr).unwrap();
    assert!(text.contains("only root may talk to the guard"), "{text}");
    let root = status(0);
    assert!(root.status.success());
    assert!(String::from_utf8(root.stdout).unwrap().contains("0 of 1024 entries"));
}

#[test]
fn wrong_usage_is_distinguished_from_failure() {
    for arguments in [&["fly"][..], &["run", "--socket"], &["run", "--tabel", "x"], &[]] {
        let output = Command::new(BINARY).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("usage:"));
    }
    let folder = Folder::new();
    let output = Command::new(BINARY).arg("status").arg("--socket").arg(folder.socket()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("is understudy-guard running?"));
}
