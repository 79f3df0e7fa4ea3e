//! The guest images and the `us` contract (config/guest/README.md), in plain QEMU without libvirt or agent: what the
//! agent stands on, shown alone.
//!
//! Images come from `UNDERSTUDY_GUEST_IMAGES`, or are built (nothing is, when the recipe is unchanged). Pictures of
//! the screen are kept in `UNDERSTUDY_PICTURES` when that names a folder.

#[path = "guest/machine.rs"]
mod machine;
#[path = "guest/screen.rs"]
mod screen;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use machine::{Machine, Segment, Spec, eventually, host};
use screen::Frame;

const NODE: &str = "alice-e1";
const APPLICATIONS: &str = "counter\t484x184+40+60\tCounter\tcounter\n\
                            clock\t200x200+600+60\tClock\tclock\n\
                            editor\t520x320+120+330\tEditor\teditor\n";
const EXEC: &str = "10.77.1.31";

/// Where a window's content is: x, y, width, height.
type Place = [usize; 4];

fn placed() -> BTreeMap<String, Place> {
    let places =
        [("counter", [40, 60, 484, 184]), ("clock", [600, 60, 200, 200]), ("editor", [120, 330, 520, 320])];
    places.map(|(app, place)| (app.to_owned(), place)).into()
}

/// The recipe's answer: the folder of the images.
fn built() -> PathBuf {
    host(concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/guest/build"), &[]).into()
}

fn images() -> PathBuf {
    std::env::var_os("UNDERSTUDY_GUEST_IMAGES").map_or_else(built, PathBuf::from)
}

/// A display, ready for windows.
fn display(machine: &Machine, address: &str) {
    machine.us("deploy", "");
    machine.us(&format!("net {address}/24"), "");
    machine.us("display start 1280x800", "");
    machine.us("health display", "");
}

/// The windows of [`NODE`] at one epoch, by application.
fn windows(display: &Machine, epoch: u64) -> BTreeMap<String, Place> {
    let lines = display.us("display windows", "");
    let window = |line: &str| {
        let fields: Vec<_> = line.split(' ').collect();
        let [node, app, of_epoch, numbers @ ..] = fields.as_slice() else {
            panic!("a window's line: {line}")
        };
        assert_eq!((*node, *of_epoch), (NODE, epoch.to_string().as_str()), "{lines}");
        let numbers: Vec<usize> = numbers.iter().map(|number| number.parse().expect("numbers")).collect();
        ((*app).to_owned(), numbers.try_into().expect("x, y, width, height"))
    };
    lines.lines().map(window).collect()
}

/// The windows that the screen's window manager has, whoever opened them: a line each.
fn all_windows(display: &Machine) -> Vec<String> {
    let ended = display.run(&["/bin/sh", "-c", "DISPLAY=:0 chroot /env wmctrl -lpG"], "");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    ended.stdout.lines().map(str::to_owned).collect()
}

/// Sends the windows and waits until exactly these are there.
fn send(
    exec: &Machine,
    display: &Machine,
    address: &str,
    epoch: u64,
    moved: &str,
    want: &BTreeMap<String, Place>,
) {
    let started = Instant::now();
    exec.us(&format!("exec send {NODE} {epoch} secret {address}:5500"), moved);
    eventually("windows at their places", || {
        let seen = windows(display, epoch);
        if seen == *want { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    eprintln!("{:>6.2} s  send -> windows visible", started.elapsed().as_secs_f64());
    eventually("no window but these", || {
        let all = all_windows(display);
        if all.len() == want.len() { Ok(()) } else { Err(format!("{all:#?}")) }
    });
}

fn above(now: u64, before: u64) -> Result<(), String> {
    if now > before { Ok(()) } else { Err(format!("{now} after {before}")) }
}

fn counter(segment: &Segment, path: &str) -> Result<String, String> {
    segment.http(&format!("{EXEC}:8080"), path)
}

fn count(segment: &Segment) -> u64 {
    let number = eventually("counter answers", || counter(segment, "/counter"));
    number.parse().expect("the counter serves a plain number")
}

/// Looks at the screen until every window shows something: a text or hands on a ground, not one colour.
fn see(segment: &Segment, address: &str, places: &BTreeMap<String, Place>, picture: &str) {
    let frame = eventually("every window painted", || {
        let screen = segment.connect(&format!("{address}:5900"));
        let frame = screen.and_then(Frame::take).map_err(|error| error.to_string())?;
        let painted = |&[x, y, width, height]: &Place| {
            let colours = frame.colours(x + 2, y + 2, width - 4, height - 4);
            colours.len() > 1 && colours.iter().any(|colour| *colour != [0, 0, 0])
        };
        let bare: Vec<_> =
            places.iter().filter(|(_, place)| !painted(place)).map(|(app, _)| app.as_str()).collect();
        if bare.is_empty() { Ok(frame) } else { Err(format!("not painted: {}", bare.join(", "))) }
    });
    if let Some(folder) = std::env::var_os("UNDERSTUDY_PICTURES") {
        frame.save(&PathBuf::from(folder).join(picture));
    }
}

/// Boots the images through everything that happens to a terminal's windows.
#[test]
#[ignore = "needs a guest"]
fn windows_outlive_their_display_and_a_restored_memory_shows_them_once() {
    let images = images();
    let (role, folder, segment) =
        (images.join("role.erofs"), tempfile::tempdir().expect("a temporary folder"), Segment::new());
    let started = Instant::now();
    let spec = |name, number, role| Spec { name, number, role, memory: None };
    let exec = Machine::start(&segment, &images, folder.path(), spec("e1", 31, Some(role.as_path())));
    exec.agent();
    eprintln!("{:>6.2} s  boot -> agent ready", started.elapsed().as_secs_f64());
    start_applications(&segment, &exec);

    let first = Machine::start(&segment, &images, folder.path(), spec("d1", 41, None));
    first.agent();
    first.plug_role_disk(&role);
    display(&first, "10.77.1.41");
    first.us(&format!("display admit {NODE} 1 secret"), "");
    send(&exec, &first, "10.77.1.41", 1, "", &placed());
    send(&exec, &first, "10.77.1.41", 1, "", &placed());
    see(&segment, "10.77.1.41", &placed(), "guest-1-sent.png");
    older_and_unknown_senders_are_refused(&exec, &first);
    send(&exec, &first, "10.77.1.41", 2, "", &placed());

    // The terminal's user moves a window; then its display dies.
    let drag = "DISPLAY=:0 chroot /env wmctrl -r Counter -e 0,300,420,-1,-1";
    assert_eq!(first.run(&["/bin/sh", "-c", drag], "").code, 0);
    let moved = eventually("window moved", || {
        let seen = windows(&first, 2);
        if seen["counter"] == placed()["counter"] { Err(format!("{seen:?}")) } else { Ok(seen) }
    });
    first.kill();
    let second = Machine::start(&segment, &images, folder.path(), spec("d2", 42, Some(role.as_path())));
    display(&second, "10.77.1.42");
    second.us(&format!("display admit {NODE} 3 secret"), "");
    let lines = moved.iter().map(|(app, [x, y, w, h])| format!("{app}\t{w}x{h}+{x}+{y}\n"));
    send(&exec, &second, "10.77.1.42", 3, &lines.collect::<String>(), &moved);
    see(&segment, "10.77.1.42", &moved, "guest-2-second-display.png");

    restored_memory_goes_on(&segment, &images, folder.path(), exec, &second, &moved);
}

fn start_applications(segment: &Segment, exec: &Machine) {
    for words in ["deploy", "deploy"] {
        exec.us(words, "");
    }
    for _ in 0..2 {
        exec.us(&format!("net {EXEC}/24"), "");
    }
    exec.us(&format!("exec start {NODE}"), APPLICATIONS);
    exec.us("health exec", "");
    let process = eventually("counter tells its process", || counter(segment, "/start"));
    let before = count(segment);
    exec.us(&format!("exec start {NODE}"), APPLICATIONS);
    assert_eq!(counter(segment, "/start"), Ok(process), "a second start leaves what runs");
    eventually("counter goes on", || above(count(segment), before));
}

fn older_and_unknown_senders_are_refused(exec: &Machine, display: &Machine) {
    let code = |words: &str| {
        let ended = exec.us_ended(words, "");
        assert!(ended.code == 0 || ended.stderr.starts_with("us: "), "a reason on stderr: {}", ended.stderr);
        ended.code
    };
    assert_eq!(code(&format!("exec send {NODE} 1 guess 10.77.1.41:5500")), 3, "wrong token");
    assert_eq!(code(&format!("exec send {NODE} 1 secret 10.77.1.99:5500")), 4, "nobody there");
    assert_eq!(
        code(&format!("exec send {NODE} 0 secret 10.77.1.41:5500")),
        3,
        "older than this guest has sent"
    );
    assert_eq!(code("exec send other 1 secret 10.77.1.41:5500"), 1, "another node's guest");
    display.us(&format!("display admit {NODE} 2 secret"), "");
    eventually("windows of the older epoch closed", || {
        let all = all_windows(display);
        if all.is_empty() { Ok(()) } else { Err(format!("{all:#?}")) }
    });
    assert_eq!(
        display.us_ended(&format!("display admit {NODE} 1 secret"), "").code,
        3,
        "older than admitted"
    );
    assert_eq!(
        code(&format!("exec send {NODE} 1 secret 10.77.1.41:5500")),
        3,
        "older than the display admits"
    );
}

fn restored_memory_goes_on(
    segment: &Segment,
    images: &Path,
    folder: &Path,
    exec: Machine,
    display: &Machine,
    places: &BTreeMap<String, Place>,
) {
    let process = counter(segment, "/start");
    let (memory, role) = (folder.join("memory"), images.join("role.erofs"));
    let before = count(segment);
    exec.save(&memory);
    exec.kill();
    let spec = Spec { name: "e1", number: 31, role: Some(&role), memory: Some(&memory) };
    let restored = Machine::start(segment, images, folder, spec);
    restored.await_loaded();
    // The order of the design: the intake drops the older epoch, the guest goes on, clock, address, windows.
    display.us(&format!("display admit {NODE} 4 secret"), "");
    let started = Instant::now();
    restored.qmp("cont", serde_json::json!({}));
    let after = count(segment);
    eprintln!("{:>6.2} s  cont -> counter answers ({before} -> {after})", started.elapsed().as_secs_f64());
    assert!(after >= before, "the counter went back: {before} -> {after}");
    assert_eq!(counter(segment, "/start"), process, "another process counts");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
    restored.agent().set_time(now()).expect("the clock is set");
    let clock: u64 =
        restored.run(&["/bin/date", "+%s"], "").stdout.trim().parse().expect("date prints a number");
    let now = now().as_secs();
    assert!(now.abs_diff(clock) < 30, "guest's clock {clock}, host's {now}");
    restored.us(&format!("net {EXEC}/24"), "");
    send(&restored, display, "10.77.1.42", 4, "", places);
    restored.us("health exec", "");
    see(segment, "10.77.1.42", places, "guest-3-restored.png");
    eventually("counter goes on", || above(count(segment), after));
    assert_eq!(counter(segment, "/starts").map(|starts| starts.lines().count()), Ok(1));
}

#[test]
#[ignore = "needs a guest"]
fn a_missing_or_damaged_role_disk_is_a_clear_error_and_a_good_one_mends_it() {
    let images = images();
    let (role, folder, segment) =
        (images.join("role.erofs"), tempfile::tempdir().expect("a temporary folder"), Segment::new());
    let machine = Machine::start(
        &segment,
        &images,
        folder.path(),
        Spec { name: "x1", number: 51, role: None, memory: None },
    );
    let refused = |says: &str| {
        let ended = machine.us_ended("deploy", "");
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        assert!(ended.stderr.starts_with("us: role disk") && ended.stderr.contains(says), "{}", ended.stderr);
    };
    refused("missing: no virtio disk with serial understudy-role");
    for early in ["display start 1280x800", "health display"] {
        let ended = machine.us_ended(early, "");
        assert!(ended.code == 1 && ended.stderr.contains("us deploy"), "{}", ended.stderr);
    }
    assert_eq!(machine.us_ended("dance", "").code, 2);

    let whole = std::fs::read(&role).expect("the role disk can be read");
    let foreign = vec![0x55; 1 << 20];
    let cut = &whole[..whole.len() / 2 / 4096 * 4096];
    let mut scribbled = whole.clone();
    scribbled[1024 + 16..1024 + 64].fill(0xA5);
    for (bytes, says) in
        [(foreign.as_slice(), "no erofs superblock"), (cut, "bytes; copy"), (scribbled.as_slice(), "damaged")]
    {
        let damaged = folder.path().join("damaged.erofs");
        std::fs::write(&damaged, bytes).expect("the temporary folder has room");
        machine.plug_role_disk(&damaged);
        refused(says);
        machine.unplug_role_disk();
    }
    machine.plug_role_disk(&role);
    machine.us("deploy", "");
}

#[test]
#[ignore = "needs a guest"]
fn an_unchanged_recipe_has_the_same_key_and_builds_nothing() {
    let images = built();
    let written =
        |file: &str| std::fs::metadata(images.join(file)).and_then(|data| data.modified()).expect(file);
    let before = ["vmlinuz", "initrd.img", "role.erofs", "SHA256SUMS"].map(written);
    let started = Instant::now();
    assert_eq!(built(), images);
    assert!(started.elapsed() < Duration::from_mins(1), "a look at the key took {:?}", started.elapsed());
    assert_eq!(["vmlinuz", "initrd.img", "role.erofs", "SHA256SUMS"].map(written), before);
}
