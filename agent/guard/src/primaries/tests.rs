//! The kill path takes nothing from the allocator.
#![expect(unsafe_code, reason = "a counting allocator is the one way to see an allocation")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::process::{Child, Command};

use nix::sys::epoll::EpollCreateFlags;

use super::*;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; the counter is a const-initialised thread local, which
// needs no allocation itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Processes to kill, ended and reaped with the test whatever its outcome.
struct Sleepers(Vec<Child>);

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

#[test]
fn the_kill_path_does_not_allocate() {
    let path = std::env::temp_dir().join(format!("understudy-guard-kill-{}", std::process::id()));
    let (table, _) = Table::open(&path, [1, 2], 16).unwrap();
    std::fs::remove_file(&path).unwrap();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let mut primaries = Primaries::new(table, 16, 0);
    let mut sleepers = Sleepers(Vec::new());
    for number in 0..16 {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = child.id();
        sleepers.0.push(child);
        let wanted = Wanted { uuid: [number; 16], epoch: 1, lease: 1, pid, class: Class::RamOnly };
        primaries.register(&epoll, &wanted, Some(sys::pidfd_open(pid).unwrap()), 0).unwrap();
    }
    let extra = Wanted { uuid: [99; 16], epoch: 1, lease: 1, pid: sleepers.0[0].id(), class: Class::RamOnly };
    let pidfd = sys::pidfd_open(extra.pid).unwrap();
    assert_eq!(primaries.register(&epoll, &extra, Some(pidfd), 0), Err(Refusal::Full));
    primaries.set_deadline(Deadline { boottime_ns: 1_000, lease: 1 }, 0).unwrap();

    let before = ALLOCATIONS.get();
    primaries.enforce(999);
    assert!(
        primaries.entries().all(|entry| !entry.dying),
        "a nanosecond before the deadline nothing is killed"
    );
    primaries.enforce(1_000);
    assert_eq!(ALLOCATIONS.get(), before, "allocations in the kill path");

    assert!(primaries.entries().all(|entry| entry.dying));
    assert_eq!(primaries.table().kills(), 16);
    for child in &mut sleepers.0 {
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
    let slots = 0..16;
    for slot in slots {
        primaries.ended(&epoll, slot, 2_000);
    }
    assert_eq!(primaries.registered(), 0);
    assert_eq!(primaries.table().fired().unwrap().gone_ns, Some(2_000));
}
