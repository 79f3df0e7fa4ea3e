//! A `/proc` made of files: which processes are asked, and whose each of them is.

use std::path::PathBuf;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::*;

/// Long enough for a thread to read a file on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const KTHREAD: u32 = PF_KTHREAD | 0x40;

/// A host whose `/proc` is made of files.
struct Host {
    folder: TempDir,
    look: Look,
}

/// One of its processes.
#[derive(Clone, Copy)]
struct Made {
    pid: i32,
    name: &'static str,
    state: char,
    flags: u32,
    threads: u32,
    start: u64,
    pending: u64,
}

const QEMU: Made =
    Made { pid: 7, name: "qemu-system-x86", state: 'S', flags: 0, threads: 3, start: 100, pending: 0 };

fn id(last: u8) -> InstanceId {
    format!("11111111-2222-4333-8444-7777777777{last:02x}").parse().unwrap()
}

fn command(id: InstanceId) -> String {
    format!("qemu\0-name\0guest\0-uuid\0{id}\0-m\0")
}

impl Host {
    fn new(each: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (root, notes) = (folder.path().join("proc"), folder.path().join("notes"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::create_dir_all(&notes).unwrap();
        let look = Look::new(root, notes, each);
        Self { folder, look }
    }

    fn folder_of(&self, pid: i32) -> PathBuf {
        self.look.root.join(pid.to_string())
    }

    /// Writes what the kernel shows of a process.
    fn put(&self, made: Made, command: &str) {
        let folder = self.folder_of(made.pid);
        std::fs::create_dir_all(folder.join("task").join(made.pid.to_string())).unwrap();
        std::fs::write(folder.join("comm"), format!("{}\n", made.name)).unwrap();
        std::fs::write(folder.join("cmdline"), command).unwrap();
        let Made { pid, name, state, flags, threads, start, pending } = made;
        let stat = format!(
            "{pid} ({name}) {state} 1 1 1 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 {threads} 0 {start} 0 0 \
             18446744073709551615 0 0 0 0 0 {pending} 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
        );
        std::fs::write(folder.join("stat"), stat).unwrap();
    }

    /// A process whose command line blocks whoever reads it, until that is released.
    fn block(&self, made: Made) -> impl FnOnce() + use<> {
        self.put(made, "");
        let file = self.folder_of(made.pid).join("cmdline");
        std::fs::remove_file(&file).unwrap();
        mkfifo(&file, Mode::from_bits_truncate(0o600)).unwrap();
        // A reader that waits for a writer is let go by one.
        move || {
            drop(std::fs::File::options().read(true).write(true).open(&file).unwrap());
            std::fs::remove_file(file).unwrap();
        }
    }

    fn note(&self, name: &str, pid: i32, id: InstanceId) {
        std::fs::write(self.look.notes.join(format!("{name}.pid")), format!("{pid}\n")).unwrap();
        let state = format!(
            "<domstatus state='running' pid='{pid}'><vcpus/><domain type='kvm' id='1'>\n  <name>{name}</name>\n  \
             <uuid>{id}</uuid>\n</domain></domstatus>"
        );
        std::fs::write(self.look.notes.join(format!("{name}.xml")), state).unwrap();
    }

    fn of(&self, id: InstanceId) -> Option<i32> {
        self.look.read().unwrap().of(id).unwrap().map(|pid| pid.0)
    }
}

#[test]
fn a_uuid_is_read_only_after_its_option() {
    assert_eq!(carried(command(id(4)).as_bytes()), Some(id(4)));
    for other in [&format!("qemu\0{}\0", id(4)), "qemu\0-uuid\0nonsense\0", "qemu\0-uuid"] {
        assert_eq!(carried(other.as_bytes()), None, "{other}");
    }
}

#[test]
fn only_what_has_the_name_of_qemu_is_asked_for_its_uuid() {
    let host = Host::new(PATIENCE);
    host.put(Made { name: "sh", ..QEMU }, &command(id(1)));
    assert_eq!(host.of(id(1)), None);
    host.put(Made { name: "guest-7", ..QEMU }, &command(id(1)));
    std::os::unix::fs::symlink("/usr/bin/qemu-system-x86_64", host.folder_of(7).join("exe")).unwrap();
    assert_eq!(host.of(id(1)), Some(7), "named otherwise, and the program is qemu");
    host.put(Made { pid: 8, name: "kvm", ..QEMU }, &command(id(2)));
    assert_eq!(host.of(id(2)), Some(8));
    assert_eq!(host.of(id(3)), None);
}

#[test]
fn kvms_own_kernel_threads_and_what_has_wholly_ended_are_nobodys() {
    let host = Host::new(PATIENCE);
    host.put(Made { name: "kvm-pit/7", flags: KTHREAD, threads: 1, ..QEMU }, "");
    host.put(Made { pid: 8, state: 'Z', threads: 1, ..QEMU }, "");
    host.note("ended", 8, id(2));
    assert_eq!(host.look.read().unwrap(), Processes::default());
    assert_eq!((host.of(id(1)), host.of(id(2))), (None, None));
}

#[test]
fn a_qemu_without_a_memory_counts_for_the_instance_that_it_was_and_for_no_other() {
    let host = Host::new(PATIENCE);
    host.put(QEMU, &command(id(1)));
    assert_eq!(host.of(id(1)), Some(7));
    let dying = Made { state: 'Z', flags: PF_EXITING, ..QEMU };
    host.put(dying, "");
    assert_eq!(host.of(id(1)), Some(7));
    assert_eq!(host.look.carried_by(Pid(7)).unwrap(), Some(id(1)), "a handle on it can be had");
    assert_eq!(host.of(id(2)), None);
    host.put(Made { start: 101, ..dying }, "");
    assert_eq!(host.of(id(1)), None, "the number was given anew");
    assert_eq!(host.look.carried_by(Pid(7)).unwrap(), None);
}

#[test]
fn a_qemu_without_a_memory_that_was_never_seen_counts_where_libvirt_notes_it() {
    let host = Host::new(PATIENCE);
    host.put(Made { state: 'Z', flags: PF_EXITING, ..QEMU }, "");
    assert_eq!(host.of(id(1)), None);
    host.note("another", 8, id(2));
    host.note("own", 7, id(1));
    assert_eq!((host.of(id(1)), host.of(id(2))), (Some(7), None));
    assert_eq!(host.look.carried_or_noted(Pid(7)).unwrap(), Some(id(1)));
    assert_eq!(host.look.carried_by(Pid(7)).unwrap(), None, "a note is too little to kill by");
}

#[test]
fn a_thread_that_lives_on_tells_the_uuid_of_its_process() {
    let host = Host::new(PATIENCE);
    host.put(Made { state: 'Z', flags: PF_EXITING, ..QEMU }, "");
    let thread = host.folder_of(7).join("task/9");
    std::fs::create_dir(&thread).unwrap();
    std::fs::write(thread.join("cmdline"), command(id(1))).unwrap();
    assert_eq!((host.of(id(1)), host.of(id(2))), (Some(7), None));
}

#[test]
fn a_process_that_blocks_its_readers_is_waited_for_once_and_hides_no_other() {
    let each = Duration::from_millis(200);
    let host = Host::new(each);
    host.put(Made { pid: 8, ..QEMU }, &command(id(2)));
    assert_eq!(host.of(id(2)), Some(8));
    let release = host.block(QEMU);
    host.put(Made { pid: 9, ..QEMU }, &command(id(3)));
    let first = host.look.read().unwrap();
    assert_eq!(first.of(id(2)).unwrap(), Some(Pid(8)));
    assert_eq!(first.of(id(3)).unwrap(), Some(Pid(9)));
    assert_eq!(first.unclear, [Pid(7)]);
    // It may be an instance that nobody has seen: of that one it cannot be said that it is gone.
    assert_eq!(first.of(id(1)).unwrap_err().kind(), io::ErrorKind::TimedOut);
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(host.look.read().unwrap().unclear, [Pid(7)]);
    }
    assert!(began.elapsed() < 5 * each, "waited for again: {:?}", began.elapsed());
    host.note("own", 7, id(1));
    assert_eq!((host.of(id(1)), host.of(id(4))), (Some(7), None), "libvirt notes whose it is");
    release();
    host.put(QEMU, &command(id(1)));
    let until = Instant::now() + PATIENCE;
    while host.look.carried_by(Pid(7)).unwrap() != Some(id(1)) {
        assert!(Instant::now() < until, "never asked again");
        std::thread::yield_now();
    }
}

#[test]
fn a_process_that_blocks_its_readers_and_can_run_no_guest_keeps_nobody_from_being_gone() {
    let host = Host::new(Duration::from_millis(50));
    let killed = host.block(Made { pending: KILLED, ..QEMU });
    let exiting = host.block(Made { pid: 8, flags: PF_EXITING, ..QEMU });
    let until = Instant::now() + PATIENCE;
    // Until its reader has come so far, it may be alive.
    while host.look.read().unwrap() != Processes::default() {
        assert!(Instant::now() < until, "{:?}", host.look.read());
        std::thread::yield_now();
    }
    killed();
    exiting();
}

#[test]
fn a_process_that_blocks_its_readers_counts_for_the_instance_that_it_was() {
    let host = Host::new(Duration::from_millis(50));
    host.put(QEMU, &command(id(1)));
    assert_eq!(host.of(id(1)), Some(7));
    // Its number is all that is known: not even that it is still the same.
    let release = host.block(Made { start: 101, ..QEMU });
    assert_eq!((host.of(id(1)), host.of(id(2))), (Some(7), None));
    release();
}

#[test]
fn what_is_gone_is_forgotten() {
    let host = Host::new(PATIENCE);
    host.put(QEMU, &command(id(1)));
    assert_eq!(host.of(id(1)), Some(7));
    std::fs::rename(host.folder_of(7), host.folder.path().join("gone")).unwrap();
    assert_eq!(host.of(id(1)), None);
    assert!(host.look.memory().known.is_empty());
}

#[test]
fn what_cannot_be_read_for_want_of_anything_else_is_no_answer() {
    let host = Host::new(PATIENCE);
    host.put(QEMU, &command(id(1)));
    std::fs::write(host.folder_of(7).join("stat"), "7 (qemu) S nonsense").unwrap();
    assert!(host.look.read().is_err());
}
