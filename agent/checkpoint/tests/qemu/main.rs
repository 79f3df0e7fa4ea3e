//! Streams of a real QEMU, taken apart, put together and loaded again: memory, registers and ROMs are as they were.

mod machine;
mod ready;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use machine::{Machine, RAM_BYTES, prepare};
use serde_json::json;
use understudy_checkpoint::stream::{
    Absent, Event, Limits, PAGE_BYTES, Page, Parser, Place, Skeleton, StreamError, StreamWriter,
};

/// What a store keeps of a VM: pages by their places, none that is zero.
struct Kept {
    skeleton: Skeleton,
    pages: BTreeMap<Place, Box<[u8; PAGE_BYTES]>>,
    /// How many pages came, zero ones included.
    came: u64,
}

fn parse(stream: &Path) -> Result<Kept, StreamError> {
    let mut file = std::fs::File::open(stream).expect("qemu has written it");
    let mut parser = Parser::new(Limits::default());
    let (mut pages, mut came) = (BTreeMap::new(), 0);
    // No multiple of anything, so that pages are cut as a pipe cuts them.
    let mut buffer = vec![0; 100_003];
    loop {
        let length = file.read(&mut buffer).expect("a file can be read");
        if length == 0 {
            let skeleton = parser.finish()?;
            return Ok(Kept { skeleton, pages, came });
        }
        let mut rest = &buffer[..length];
        while let Some(event) = parser.next(&mut rest)? {
            if let Event::Page(place, page) = event {
                came += 1;
                match page {
                    Page::Bytes(bytes) if *bytes != [0; PAGE_BYTES] => {
                        pages.insert(place, Box::new(*bytes));
                    }
                    Page::Bytes(_) | Page::Fill(0) => drop(pages.remove(&place)),
                    Page::Fill(byte) => panic!("QEMU sent a page of {byte}"),
                }
            }
        }
    }
}

/// Parses a stream of a whole VM and writes another from what a store would keep.
fn rebuild(stream: &Path, to: &Path) -> Kept {
    let kept = parse(stream).unwrap_or_else(|error| panic!("{}: {error}", stream.display()));
    let all = kept.skeleton.places();
    assert_eq!(kept.came, all, "each page comes once from a VM that is paused or write-protected");
    let skeleton =
        Skeleton::from_bytes(kept.skeleton.bytes(), Limits::default()).expect("it was written here");
    let file = std::io::BufWriter::new(std::fs::File::create(to).expect("the disk takes a file"));
    let mut writer = StreamWriter::new(&skeleton, Absent::Zero, file).expect("the disk takes bytes");
    for (place, page) in &kept.pages {
        writer.page(*place, Page::Bytes(page)).expect("places are in order");
    }
    drop(writer.finish().expect("the disk takes bytes").into_inner().expect("the disk takes bytes"));
    let again = parse(to).expect("what is written is a stream");
    assert_eq!((&again.skeleton, &again.pages, again.came), (&skeleton, &kept.pages, all));
    kept
}

/// Another firmware than the source's: what the guest runs comes out of the stream.
fn destination(folder: &Path, stream: &Path, machine: &str) -> Machine {
    let bios = folder.join("empty").display().to_string();
    Machine::incoming(folder, stream, &["-nodefaults", "-machine", machine, "-bios", &bios])
}

#[test]
#[ignore = "needs root, qemu-system-x86_64"]
fn a_paused_guest_is_saved_and_goes_on_from_the_rebuilt_stream() {
    for machine in ["pc", "q35", "pc-i440fx-7.2"] {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let (saved, rebuilt) = (folder.path().join("saved"), folder.path().join("rebuilt"));
        let mut source = Machine::counting(folder.path(), &["-machine", machine]);
        source.await_count_above(1000);
        source.qmp("stop", json!({}));
        source.save(&saved);
        let (count, memory) = (source.consistent_count(), source.all_memory());
        println!("QEMU {}, {machine}: saved at {count}", source.version());
        drop(source);
        let kept = rebuild(&saved, &rebuilt);
        assert!(kept.skeleton.machine().starts_with("pc-"), "{}", kept.skeleton.machine());
        // 1333 of the pattern, 129 of the guest, the firmware and tables.
        assert!((1400..2000).contains(&kept.pages.len()), "{} pages", kept.pages.len());

        let mut restored = destination(folder.path(), &rebuilt, machine);
        assert_eq!(restored.status(), "paused");
        assert_eq!(restored.consistent_count(), count);
        assert!(restored.all_memory() == memory, "memory is as it was");
        restored.qmp("cont", json!({}));
        restored.await_count_above(count + 1000);
    }
}

#[test]
#[ignore = "needs root, qemu-system-x86_64"]
fn a_background_snapshot_of_a_running_guest_is_of_one_instant_when_rebuilt() {
    for machine in ["pc", "q35"] {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let (saved, rebuilt) = (folder.path().join("saved"), folder.path().join("rebuilt"));
        let mut source = Machine::counting(folder.path(), &["-machine", machine]);
        source.await_count_above(1000);
        source.capability("background-snapshot", true).expect("this kernel write-protects memory");
        let before = source.count();
        source.save(&saved);
        assert_eq!(source.status(), "running");
        let after = source.count();
        source.await_count_above(after);
        drop(source);
        rebuild(&saved, &rebuilt);

        let mut restored = destination(folder.path(), &rebuilt, machine);
        let count = restored.consistent_count();
        println!("QEMU {}, {machine}: from {before} to {after}, restored {count}", restored.version());
        assert!((before..=after).contains(&count), "{count} of {before} to {after}");
        restored.qmp("cont", json!({}));
        restored.await_count_above(count + 1000);
    }
}

#[test]
#[ignore = "needs root, qemu-system-x86_64"]
fn a_machine_with_many_devices_is_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    let (saved, rebuilt) = (folder.path().join("saved"), folder.path().join("rebuilt"));
    let more: Vec<&str> = "-machine q35 -vga std -nic none -device qemu-xhci -device virtio-rng-pci \
         -device virtio-serial-pci -device virtio-balloon-pci,free-page-reporting=on"
        .split_whitespace()
        .collect();
    let mut source = Machine::start(folder.path(), "source", &more);
    machine::eventually("the firmware runs", || (source.all_memory()[..4096] != [0; 4096]).then_some(()));
    source.qmp("stop", json!({}));
    source.save(&saved);
    let memory = source.all_memory();
    drop(source);
    let kept = rebuild(&saved, &rebuilt);
    let blocks: Vec<_> = kept.skeleton.blocks().iter().map(|block| &*block.name).collect();
    assert!(blocks.iter().any(|name| name.contains("vga.vram")), "{blocks:?}");
    let mut restored = Machine::incoming(folder.path(), &rebuilt, &more);
    assert!(restored.all_memory() == memory, "memory is as it was");
    restored.qmp("cont", json!({}));
    assert_eq!(restored.status(), "running");
}

#[test]
#[ignore = "needs root, qemu-system-x86_64"]
fn what_changes_the_format_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let saved = folder.path().join("saved");
    let cases = [
        ("x-ignore-shared", false, "the capability 'x-ignore-shared'"),
        ("dirty-bitmaps", false, "(postcopy-advise)"),
        ("compress", false, "the flag compress"),
        ("mapped-ram", true, "the capability 'mapped-ram'"),
    ];
    let backend = format!(
        "memory-backend-file,id=ram,share=on,size={RAM_BYTES},mem-path={}/ram",
        folder.path().display()
    );
    let mut source =
        Machine::counting(folder.path(), &["-machine", "pc,memory-backend=ram", "-object", &backend]);
    source.await_count_above(1000);
    source.qmp("stop", json!({}));
    for (capability, seekable, expected) in cases {
        if !source.knows(capability) {
            println!("QEMU {} has no {capability}", source.version());
            continue;
        }
        // A VM that was migrated and not resumed is not migrated again.
        source.qmp("cont", json!({}));
        source.qmp("stop", json!({}));
        source.capability(capability, true).unwrap_or_else(|error| panic!("{capability}: {error}"));
        if seekable {
            source.migrate(&format!("file:{}", saved.display()));
        } else {
            source.save(&saved);
        }
        source.capability(capability, false).unwrap_or_else(|error| panic!("{capability}: {error}"));
        let error = parse(&saved).err().unwrap_or_else(|| panic!("{capability} is not seen")).to_string();
        println!("QEMU {}, {capability}: {error}", source.version());
        assert!(error.contains(expected), "{capability}: {error}");
    }
    source.qmp("cont", json!({}));
    source.save(&saved);
    parse(&saved).expect("without any of them it is a stream");
}
