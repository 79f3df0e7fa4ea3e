//! Files that are copied, replaced, removed, or no files at all.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use super::*;

struct Place {
    temporary: tempfile::TempDir,
    library: Library,
    watch: FolderWatch,
}

/// What is done to a file, and how that is called.
type Change<'a> = (&'a str, &'a dyn Fn(&Path));

/// A component, told from others by a section that means nothing.
fn component(mark: &str) -> Vec<u8> {
    let text = format!(
        r#"(component (@custom "mark" "{mark}") (instance $i)
            (export "understudy:policy/placement@0.1.0" (instance $i)))"#
    );
    wat::parse_str(text).unwrap()
}

impl Place {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let library = Library::open(&temporary.path().join("library")).unwrap();
        let dir = temporary.path().join("policies");
        fs::create_dir(&dir).unwrap();
        let watch = FolderWatch::new(&dir, MiB(1));
        Self { temporary, library, watch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temporary.path().join("policies").join(name)
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    fn look(&mut self) -> Option<Folder> {
        self.watch.look(&self.library)
    }

    /// Two looks at a folder that nobody changes.
    fn settled(&mut self) -> Folder {
        self.try_settled().expect("something new")
    }

    fn try_settled(&mut self) -> Option<Folder> {
        self.look().or_else(|| self.look())
    }
}

fn said(folder: &Folder) -> Vec<String> {
    use std::error::Error;
    folder
        .faults
        .iter()
        .map(|fault| format!("{fault}: {}", fault.source().map(ToString::to_string).unwrap_or_default()))
        .collect()
}

#[test]
fn new_changed_and_removed_files_are_reported_once_they_are_settled() {
    let mut place = Place::new();
    assert_eq!(place.settled().components, BTreeMap::new());
    place.put("a.wasm", component("1"));
    place.put(".b.wasm", component("2"));
    place.put("c.wasm.partial", component("3"));
    place.put("README.md", "no policy");
    assert!(place.look().is_none(), "at the first look it may be half a file");
    let folder = place.look().unwrap();
    assert_eq!(folder.components, BTreeMap::from([("a".to_owned(), Digest::of(&component("1")))]));
    assert!(folder.listed && folder.faults.is_empty() && folder.settings.is_none());
    assert!(place.try_settled().is_none(), "nothing is told twice");

    place.put("a.wasm", component("4"));
    place.put(SETTINGS_FILE, "[choice]");
    let folder = place.settled();
    assert_eq!(folder.components["a"], Digest::of(&component("4")));
    assert_eq!(folder.settings.as_deref(), Some("[choice]"));

    fs::rename(place.path("a.wasm"), place.path("d.wasm")).unwrap();
    let folder = place.settled();
    assert_eq!(folder.components.keys().collect::<Vec<_>>(), ["d"]);
    fs::remove_file(place.path("d.wasm")).unwrap();
    fs::remove_file(place.path(SETTINGS_FILE)).unwrap();
    let folder = place.settled();
    assert!(folder.components.is_empty() && folder.settings.is_none() && folder.listed);
}

#[test]
fn the_same_content_in_a_new_file_is_nothing_new() {
    let mut place = Place::new();
    place.put("a.wasm", component("1"));
    place.settled();
    place.put("new", component("1"));
    fs::rename(place.path("new"), place.path("a.wasm")).unwrap();
    assert!(place.try_settled().is_none());
}

#[test]
fn a_component_that_the_library_lost_is_read_again() {
    let mut place = Place::new();
    place.put("a.wasm", component("1"));
    let digest = place.settled().components["a"].clone();
    place.library.prune(&BTreeSet::new()).unwrap();
    assert!(place.look().is_none());
    assert!(place.library.has(&digest));
}

#[test]
fn a_bad_file_is_reported_and_its_name_stays_taken() {
    let mut place = Place::new();
    let good = component("1");
    place.put("a.wasm", &good);
    place.settled();
    place.put("a.wasm", &good[..good.len() - 5]);
    let folder = place.settled();
    assert!(folder.components.is_empty() && folder.names.contains("a"));
    assert_eq!(folder.faults[0].policy(), Some("a"));
    assert!(said(&folder)[0].contains("a.wasm is not used: is no whole WebAssembly component"), "{folder:?}");
    place.put("a.wasm", &good);
    assert!(place.settled().faults.is_empty());
}

#[test]
fn a_file_that_is_replaced_or_grows_while_it_is_read_is_not_reported_until_it_is_settled() {
    let (one, two) = (component("1"), component("22"));
    let meanwhile: [Change<'_>; 4] = [
        ("written over", &|path| fs::write(path, component("2")).unwrap()),
        ("longer", &|path| fs::write(path, component("22")).unwrap()),
        ("shorter", &|path| fs::write(path, "").unwrap()),
        ("replaced", &|path| {
            fs::write(path.with_extension("new"), component("22")).unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        }),
    ];
    for (what, change) in meanwhile {
        let mut place = Place::new();
        place.settled();
        place.put("a.wasm", &one);
        assert!(place.look().is_none());
        let mut reads = 0;
        let reported = place.watch.look_and(&place.library, &mut |path| {
            reads += 1;
            change(path);
        });
        assert_eq!(reads, 1, "{what}");
        // Replaced by name only, what was read is the whole of a file that lay there.
        if let Some(folder) = reported {
            assert_eq!((what, &folder.components["a"]), ("replaced", &Digest::of(&one)));
        }
        fs::write(place.path("a.wasm"), &two).unwrap();
        assert_eq!(place.settled().components["a"], Digest::of(&two), "{what}");
    }
}

#[test]
fn a_file_that_is_being_copied_is_never_told_by_half() {
    let mut place = Place::new();
    place.put("neighbour.wasm", component("n"));
    place.settled();
    let whole = component(&"x".repeat(5000));
    let path = place.path("slow.wasm");
    std::thread::scope(|scope| {
        let copy = scope.spawn(|| {
            use std::io::Write;
            let mut file = File::create(&path).unwrap();
            for part in whole.chunks(100) {
                file.write_all(part).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let give_up = Instant::now() + Duration::from_secs(30);
        let folder = loop {
            // Looks farther apart than writes, as they are in the daemon.
            std::thread::sleep(Duration::from_millis(50));
            if let Some(folder) = place.watch.look(&place.library)
                && folder.names.contains("slow")
            {
                break folder;
            }
            assert!(Instant::now() < give_up, "the copy was never told");
        };
        copy.join().unwrap();
        assert_eq!(folder.components["slow"], Digest::of(&whole), "{folder:?}");
    });
}

#[test]
fn a_file_that_never_settles_does_not_hold_up_the_others() {
    let mut place = Place::new();
    place.put("restless.wasm", component("1"));
    place.settled();
    place.put("calm.wasm", component("2"));
    let mut looks = 0;
    let folder = loop {
        looks += 1;
        assert!(looks <= PATIENCE_LOOKS + 2, "the calm file was held up");
        place.put("restless.wasm", component(&format!("r{looks}")));
        if let Some(folder) = place.look() {
            break folder;
        }
    };
    assert_eq!(folder.components["calm"], Digest::of(&component("2")));
    assert_eq!(folder.components["restless"], Digest::of(&component("1")), "known as it was");
}

#[test]
fn what_is_too_large_is_not_even_read() {
    let mut place = Place::new();
    File::create(place.path("huge.wasm")).unwrap().set_len(200 << 20).unwrap();
    File::create(place.path(SETTINGS_FILE)).unwrap().set_len(2 << 20).unwrap();
    let mut reads = 0;
    let mut look = || place.watch.look_and(&place.library, &mut |_| reads += 1);
    let folder = look().or_else(look).unwrap();
    let said = said(&folder);
    assert!(said[0].contains("huge.wasm is not used: is larger than 1 MiB"), "{said:?}");
    assert!(said[1].contains("policies.toml is not used: is larger than 1 MiB"), "{said:?}");
    assert_eq!((said.len(), reads), (2, 0));
}

#[test]
fn what_is_no_file_of_the_folder_is_refused_and_nothing_waits_for_it() {
    let mut place = Place::new();
    let outside = place.temporary.path().join("outside.wasm");
    fs::write(&outside, component("1")).unwrap();
    symlink(&outside, place.path("escape.wasm")).unwrap();
    symlink(place.path("gone"), place.path("dangling.wasm")).unwrap();
    symlink(place.path("loop.wasm"), place.path("loop.wasm")).unwrap();
    symlink("/dev/zero", place.path("zero.wasm")).unwrap();
    fs::create_dir(place.path("folder.wasm")).unwrap();
    nix::unistd::mkfifo(&place.path("pipe.wasm"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    place.put("Bad Name.wasm", component("1"));
    place.put("real.bin", component("2"));
    symlink(place.path("real.bin"), place.path("inside.wasm")).unwrap();
    place.put(SETTINGS_FILE, [0xff]);
    let folder = place.settled();
    let said = said(&folder);
    for part in [
        "Bad Name.wasm is not used: its name is not one",
        "escape.wasm is not used: leads out of the folder",
        "zero.wasm is not used: leads out of the folder",
        "dangling.wasm is not used: cannot be read",
        "loop.wasm is not used: cannot be read",
        "folder.wasm is not used: is no regular file",
        "pipe.wasm is not used: is no regular file",
        "policies.toml is not used: is no text in UTF-8",
    ] {
        assert!(said.iter().any(|s| s.contains(part)), "{part}: {said:#?}");
    }
    assert_eq!(said.len(), 8, "{said:#?}");
    assert_eq!(folder.components.keys().collect::<Vec<_>>(), ["inside"], "a link within the folder is fine");
}

#[test]
fn a_file_that_turns_into_a_pipe_holds_nothing_up() {
    let place = Place::new();
    place.put("a.wasm", component("1"));
    let dir = place.temporary.path().join("policies").canonicalize().unwrap();
    let stamp = stamp(&dir, &dir.join("a.wasm")).unwrap();
    fs::remove_file(place.path("a.wasm")).unwrap();
    nix::unistd::mkfifo(&place.path("a.wasm"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(read(&stamp, MiB(1), &mut |_| {}).unwrap(), None);
}

#[test]
fn a_folder_that_cannot_be_listed_is_no_empty_folder() {
    let mut place = Place::new();
    place.put("a.wasm", component("1"));
    place.settled();
    let (dir, aside) = (place.temporary.path().join("policies"), place.temporary.path().join("aside"));
    fs::rename(&dir, &aside).unwrap();
    let folder = place.settled();
    assert!(!folder.listed && folder.names.is_empty(), "{folder:?}");
    assert!(matches!(&folder.faults[..], [LoadFault::Folder { .. }]), "{folder:?}");
    assert!(place.try_settled().is_none());
    fs::rename(&aside, &dir).unwrap();
    assert_eq!(place.settled().components.len(), 1);
}
