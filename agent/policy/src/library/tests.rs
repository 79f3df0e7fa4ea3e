//! A library that others could write to is not used, and what lies in it wrongly is not run.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// The smallest component that answers nothing, and one that answers `placement` in name only.
const HOLLOW: &str =
    r#"(component (instance $i) (export "understudy:policy/placement@0.1.0" (instance $i)))"#;

struct Place {
    _temporary: tempfile::TempDir,
    dir: PathBuf,
}

impl Place {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("state/policies");
        Self { _temporary: temporary, dir }
    }

    fn open(&self) -> Library {
        Library::open(&self.dir).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<String> = entries.collect();
        files.sort();
        files
    }

    fn cached(&self) -> PathBuf {
        self.dir.join(self.files().into_iter().find(|name| name.ends_with(".cwasm")).unwrap())
    }
}

fn limit() -> MiB {
    MiB(1)
}

/// A library with one component, compiled and cached.
fn filled() -> (Place, Library, Digest) {
    let place = Place::new();
    let library = place.open();
    let digest = library.add(&wat::parse_str(HOLLOW).unwrap(), limit()).unwrap();
    assert!(library.prepare(&digest, limit()).unwrap().compiled.is_some());
    (place, library, digest)
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_component_is_found_again_by_its_digest() {
    let place = Place::new();
    let library = place.open();
    let digest = library.add(b"component", limit()).unwrap();
    assert!(library.has(&digest));
    assert_eq!(library.read(&digest, limit()).unwrap(), b"component");
    assert_eq!(library.add(b"component", limit()).unwrap(), digest);
    assert_eq!(place.files(), [format!("{digest}.wasm")]);
    let other = Digest::of(b"another");
    assert!(!library.has(&other));
    assert!(matches!(library.read(&other, limit()), Err(FileFault::Absent)));
    for path in [&place.dir, &library.path(&digest)] {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o077, 0, "{}", path.display());
    }
}

#[test]
fn what_is_too_large_or_not_what_its_digest_says_is_not_taken() {
    let place = Place::new();
    let library = place.open();
    let large = vec![0; (1 << 20) + 1];
    assert!(matches!(library.add(&large, limit()), Err(LibraryFault::Size { .. })));
    let digest = library.add(b"component", limit()).unwrap();
    fs::write(library.path(&digest), b"COMPONENT").unwrap();
    assert!(matches!(library.read(&digest, limit()), Err(FileFault::Altered)));
    fs::write(library.path(&digest), &large).unwrap();
    assert!(matches!(library.read(&digest, limit()), Err(FileFault::Size { .. })));
    assert!(matches!(library.prepare(&digest, limit()), Err(FileFault::Size { .. })));
    // A file of another size is written again.
    library.add(b"component", limit()).unwrap();
    assert_eq!(library.read(&digest, limit()).unwrap(), b"component");
}

#[test]
fn what_was_compiled_once_is_not_compiled_again() {
    let (place, library, digest) = filled();
    assert_eq!(place.files().len(), 2);
    assert!(library.prepare(&digest, limit()).unwrap().compiled.is_none());
    drop(library);
    assert!(place.open().prepare(&digest, limit()).unwrap().compiled.is_none(), "after a start");
}

#[test]
fn compiled_code_that_others_could_have_written_is_made_again() {
    let (place, library, digest) = filled();
    let cached = place.cached();
    let whole = fs::read(&cached).unwrap();
    let elsewhere = place.dir.parent().unwrap().join("elsewhere");
    let spoil: [(&str, &dyn Fn()); 6] = [
        ("rights of others", &|| mode(&cached, 0o640)),
        ("another's link", &|| {
            fs::rename(&cached, &elsewhere).unwrap();
            symlink(&elsewhere, &cached).unwrap();
        }),
        ("a second name", &|| fs::hard_link(&cached, &elsewhere).unwrap()),
        ("a half", &|| fs::write(&cached, &whole[..whole.len() / 2]).unwrap()),
        ("nothing", &|| fs::write(&cached, b"").unwrap()),
        ("a folder open to all", &|| mode(&place.dir, 0o755)),
    ];
    for (what, spoil) in spoil {
        spoil();
        assert!(library.prepare(&digest, limit()).unwrap().compiled.is_some(), "{what}");
        mode(&place.dir, 0o700);
        let _ = fs::remove_file(&elsewhere);
        assert!(library.prepare(&digest, limit()).unwrap().compiled.is_none(), "{what}: made again");
    }
}

#[test]
fn code_of_another_engine_is_not_run() {
    let (place, library, digest) = filled();
    let mut config = wasmtime::Config::new();
    config.epoch_interruption(false);
    let other = wasmtime::Engine::new(&config).unwrap();
    let native = other.precompile_component(&wat::parse_str(HOLLOW).unwrap()).unwrap();
    fs::write(place.cached(), native).unwrap();
    assert!(library.prepare(&digest, limit()).unwrap().compiled.is_some());
}

#[test]
fn a_folder_that_is_not_this_users_alone_is_no_library() {
    let place = Place::new();
    drop(place.open());
    mode(&place.dir, 0o770);
    let fault = Library::open(&place.dir).unwrap_err();
    assert!(
        matches!(fault, LibraryFault::Unsafe { .. }) && fault.to_string().contains("mode 770"),
        "{fault}"
    );
    mode(&place.dir, 0o700);
    let link = place.dir.with_file_name("link");
    symlink(&place.dir, &link).unwrap();
    assert!(matches!(Library::open(&link), Err(LibraryFault::Unsafe { .. })));
    let file = place.dir.with_file_name("file");
    fs::write(&file, "").unwrap();
    assert!(Library::open(&file).is_err());
}

#[test]
fn what_is_not_kept_goes_and_so_do_files_that_were_being_written() {
    let (place, library, digest) = filled();
    let kept = place.cached();
    let other = library.add(b"another", limit()).unwrap();
    for name in
        [format!("{digest}.0123456789abcdef.cwasm"), "17.3.partial".to_owned(), "notes.txt".to_owned()]
    {
        fs::write(place.dir.join(name), "").unwrap();
    }
    assert_eq!(library.prune(&BTreeSet::from([digest.clone()])).unwrap(), 2, "another, and another engine's");
    assert!(library.has(&digest) && !library.has(&other) && kept.exists());
    drop(library);
    drop(place.open());
    let files = place.files();
    assert!(files.iter().all(|name| !name.ends_with(".partial")), "{files:?}");
    assert!(files.contains(&"notes.txt".to_owned()), "what is not the library's stays");
}
