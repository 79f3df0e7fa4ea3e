//! A ready image that was updated is loaded by a real QEMU: pages that got their slots late are where they belong.

#[path = "../common/chain.rs"]
mod chain;

use std::path::Path;

use serde_json::json;
use understudy_checkpoint::pages::{ReadyImage, compare};
use understudy_checkpoint::{SaveImage, SaveImageParser};

use self::chain::Chain;
use super::destination;
use super::machine::{Machine, prepare};

/// The stream that QEMU wrote with a header of libvirt's.
fn image(stream: &Path) -> Vec<u8> {
    let stream = std::fs::read(stream).expect("qemu has written it");
    let header = SaveImage { xml: "<domain/>".to_owned(), cookie: None, was_running: true, padding: 0 };
    [header.encode().expect("a header"), stream].concat()
}

#[test]
#[ignore = "needs root, qemu-system-x86_64"]
fn a_ready_image_that_was_updated_twice_is_the_guest_as_it_was_last() {
    for machine in ["pc", "q35"] {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let at = |name: &str| folder.path().join(name);
        // Before it has run it has not written to its 129 pages.
        let mut source = Machine::counting(folder.path(), &["-machine", machine, "-S"]);
        source.save(&at("saved"));
        let mut chain = Chain::default();
        chain.add(&image(&at("saved")));
        let segment = |number: u32| Ok(&chain.segments[number as usize][..]);
        let mut ready = ReadyImage::build(&at("ready"), &chain.receiver, segment).unwrap();
        let built = ready.bytes();
        for least in [1000, 2000] {
            source.qmp("cont", json!({}));
            source.await_count_above(least);
            source.qmp("stop", json!({}));
            source.save(&at("saved"));
            let segment = chain.add(&image(&at("saved")));
            ready = ready.apply(&mut &segment[..]).unwrap();
        }
        let (count, memory) = (source.consistent_count(), source.all_memory());
        println!(
            "QEMU {}, {machine}: saved at {count}, {built} then {} bytes",
            source.version(),
            ready.bytes()
        );
        drop(source);
        assert!(ready.bytes() > built + 129 * 4096, "the pages that it wrote to got slots");

        let ready = std::fs::read(at("ready")).unwrap();
        compare(&mut &ready[..], &chain.receiver).unwrap();
        let mut stream = &ready[..];
        SaveImageParser::default().next(&mut stream).unwrap().expect("a header");
        std::fs::write(at("stream"), stream).unwrap();
        let mut restored = destination(folder.path(), &at("stream"), machine);
        assert_eq!(restored.consistent_count(), count);
        assert!(restored.all_memory() == memory, "memory is as it was");
        restored.qmp("cont", json!({}));
        restored.await_count_above(count + 1000);
    }
}
