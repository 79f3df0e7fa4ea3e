//! A restore image that is kept ready: whatever changes, it is what would be rebuilt, and what was changed in it is found.

#[path = "common/chain.rs"]
mod chain;
mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use chain::{Chain, id, node};
use common::{Owned, configuration, devices, end_of_section, fill, head, parse, record, section, start};
use proptest::prelude::*;
use understudy_checkpoint::pages::{
    ChainError, Changes, CompareError, Head, PageDigest, PageKey, ReadyError, ReadyImage, Receiver,
    SegmentWriter, UnreadableImage, compare, replay,
};
use understudy_checkpoint::stream::{Limits, Place, StreamError};
use understudy_checkpoint::{SaveImage, SaveImageError, SaveImageParser};

type Page = [u8; 4096];
const RAM: &str = "pc.ram";
const BIOS: &str = "pc.bios";
const BLOCKS: [(&str, u64); 3] = [(RAM, 20 * 4096), ("empty", 0), (BIOS, 3 * 4096)];
const PAGES: usize = 23;

/// What a guest is at one instant.
#[derive(Clone)]
struct Guest {
    memory: Vec<Page>,
    xml: String,
    devices: String,
}

impl Guest {
    fn new() -> Self {
        let mut guest =
            Self { memory: vec![[0; 4096]; PAGES], xml: "<domain/>".to_owned(), devices: device(1) };
        for page in [1, 2, 5, 20] {
            guest.memory[page] = noise(page as u8);
        }
        guest
    }

    fn stream(&self, blocks: &[(&str, u64)]) -> Vec<u8> {
        let places =
            blocks.iter().flat_map(|(name, bytes)| (0..*bytes).step_by(4096).map(move |at| (*name, at)));
        let records: Vec<_> =
            places.zip(&self.memory).map(|((name, at), page)| page_of(name, at, page)).collect();
        [head(), configuration(), start(blocks), section(2, &records), devices(&self.devices)].concat()
    }

    fn image(&self) -> Vec<u8> {
        self.image_of(&self.stream(&BLOCKS))
    }

    fn image_of(&self, stream: &[u8]) -> Vec<u8> {
        let (xml, cookie) = (self.xml.clone(), Some("<cookie/>".to_owned()));
        let header = SaveImage { xml, cookie, was_running: true, padding: 64 };
        [header.encode().expect("a header"), stream.to_vec()].concat()
    }
}

/// A description of devices, longer for larger numbers.
fn device(number: usize) -> String {
    format!(r#"{{"page_size": 4096, "devices": "{}"}}"#, "d".repeat(number))
}

fn page_of(block: &str, offset: u64, page: &Page) -> Vec<u8> {
    if *page == [0; 4096] {
        return fill(Some(block), offset, 0);
    }
    [record(offset, 0x08), vec![block.len() as u8], block.as_bytes().to_vec(), page.to_vec()].concat()
}

/// A page that does not compress, of which each seed has its own.
fn noise(seed: u8) -> Page {
    let mut page = [0; 4096];
    let mut state = u64::from(seed) + 1;
    for byte in &mut page {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    page
}

fn chain_of(guest: &Guest) -> Chain {
    let mut chain = Chain::default();
    chain.add(&guest.image());
    chain
}

struct Ready {
    _folder: tempfile::TempDir,
    path: PathBuf,
    image: Option<ReadyImage>,
}

impl Ready {
    fn of(chain: &Chain) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ready");
        let mut ready = Self { _folder: folder, path, image: None };
        ready.build(chain).expect("an image");
        ready.check(chain);
        ready
    }

    fn build(&mut self, chain: &Chain) -> Result<(), ReadyError> {
        let segment = |number: u32| Ok(&chain.segments[number as usize][..]);
        self.image = Some(ReadyImage::build(&self.path, &chain.receiver, segment)?);
        Ok(())
    }

    fn apply(&mut self, segment: &[u8]) -> Result<(), ReadyError> {
        self.image = Some(self.image.take().expect("it is built").apply(&mut &*segment)?);
        Ok(())
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).expect("a file")
    }

    /// It is the newest checkpoint.
    fn check(&self, chain: &Chain) {
        let (image, bytes) = (self.image.as_ref().expect("it is built"), self.bytes());
        assert!(state(&bytes) == state(&chain.rebuilt()), "it is not what is rebuilt");
        assert_eq!((Some(image.id()), image.bytes()), (chain.receiver.has(), bytes.len() as u64));
        compare(&mut &bytes[..], &chain.receiver).expect("the checkpoint");
    }
}

/// What libvirt and QEMU load: the header without its padding, the last of every place, the rest of the stream.
fn state(image: &[u8]) -> (SaveImage, BTreeMap<Place, Page>, Vec<u8>) {
    let mut stream = image;
    let header = SaveImageParser::default().next(&mut stream).expect("an image").expect("a header");
    let (parsed, outcome) = parse(stream, &[], Limits::default());
    let page = |page: Owned| match page {
        Owned::Fill(byte) => [byte; 4096],
        Owned::Bytes(bytes) => *bytes,
    };
    let pages = parsed.last().into_iter().map(|(place, of)| (place, page(of))).collect();
    (SaveImage { padding: 0, ..header }, pages, outcome.expect("a stream").bytes().to_vec())
}

#[test]
fn an_update_changes_only_the_pages_that_changed_and_adds_slots_behind_the_others() {
    let mut guest = Guest::new();
    let mut chain = chain_of(&guest);
    let mut ready = Ready::of(&chain);
    let before = ready.bytes();
    guest.memory[2] = noise(99);
    guest.memory[20] = [0; 4096];
    ready.apply(&chain.add(&guest.image())).unwrap();
    ready.check(&chain);
    let after = ready.bytes();
    assert_eq!(after.len(), before.len(), "a page that becomes zero keeps its slot");
    let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert!((4096..=2 * 4096).contains(&changed), "{changed} bytes");

    // Two slots more; of the bytes before them none changes.
    (guest.memory[0], guest.memory[21]) = (noise(7), [0xFF; 4096]);
    ready.apply(&chain.add(&guest.image())).unwrap();
    ready.check(&chain);
    let grown = ready.bytes();
    let slots = [RAM, BIOS].map(|name| 8 + 1 + name.len() + 4096).iter().sum::<usize>();
    assert_eq!(grown.len(), after.len() + slots);
    let rest = devices(&guest.devices).len() + end_of_section().len();
    assert_eq!(grown[..after.len() - rest], after[..after.len() - rest]);

    // All of them become zero and something else again in their slots.
    for page in [0, 21, 20] {
        guest.memory[page] = [0; 4096];
    }
    ready.apply(&chain.add(&guest.image())).unwrap();
    ready.check(&chain);
    guest.memory[20] = noise(3);
    guest.memory[21] = noise(3);
    ready.apply(&chain.add(&guest.image())).unwrap();
    ready.check(&chain);
    assert_eq!(ready.bytes().len(), grown.len());
    ready.build(&chain).unwrap();
    ready.check(&chain);
    assert!(ready.bytes().len() < grown.len(), "built anew it has no slots of zero");
}

#[test]
fn the_rest_grows_and_shrinks_within_the_padding() {
    let mut guest = Guest::new();
    let mut chain = chain_of(&guest);
    let mut ready = Ready::of(&chain);
    let first = ready.bytes().len();
    for (xml, devices) in [(30_000, 5000), (10, 1), (65_000, 0), (1, 70_000)] {
        (guest.xml, guest.devices) = ("x".repeat(xml), device(devices));
        ready.apply(&chain.add(&guest.image())).unwrap();
        ready.check(&chain);
        assert_eq!(ready.bytes().len(), first - 1 + devices, "the header has the length that it had");
    }
    guest.xml = "x".repeat(70_000);
    let grew = ready.apply(&chain.add(&guest.image())).unwrap_err();
    assert!(matches!(grew, ReadyError::HeaderGrew), "{grew}");
    ready.build(&chain).unwrap();
    ready.check(&chain);
}

#[test]
fn what_does_not_add_to_the_image_is_refused_and_the_image_is_built_anew() {
    let mut guest = Guest::new();
    let mut chain = chain_of(&guest);
    let mut ready = Ready::of(&chain);
    let whole = ready.apply(&chain.segments[0]).unwrap_err();
    assert!(matches!(whole, ReadyError::Whole), "{whole}");
    ready.build(&chain).unwrap();
    guest.memory[3] = noise(3);
    chain.add(&guest.image());
    guest.memory[4] = noise(4);
    let later = chain.add(&guest.image());
    let refused = ready.apply(&later).unwrap_err();
    assert_eq!(refused.to_string(), "the checkpoint adds to 2.2, the image has 2.1: build it anew");
    ready.build(&chain).unwrap();
    ready.check(&chain);

    // The same segments, another machine.
    let other = String::from_utf8_lossy(&configuration()).replace("10.0", "10.1").into_bytes();
    let stream = guest.stream(&BLOCKS);
    let machine = [head(), other, stream[head().len() + configuration().len()..].to_vec()].concat();
    let refused = ready.apply(&chain.add(&guest.image_of(&machine))).unwrap_err();
    assert!(matches!(refused, ReadyError::OtherMachine), "{refused}");
    let partial = compare(&mut &ready.bytes()[..], &chain.receiver).unwrap_err();
    assert!(
        matches!(partial, CompareError::Image(UnreadableImage::Header(SaveImageError::Partial))),
        "libvirt refuses an image that is between two checkpoints: {partial}"
    );
    ready.build(&chain).unwrap();
    ready.check(&chain);
}

#[test]
fn a_segment_that_is_damaged_or_cut_off_leaves_no_image() {
    let mut guest = Guest::new();
    let mut chain = chain_of(&guest);
    let mut ready = Ready::of(&chain);
    guest.memory[3] = noise(3);
    let segment = chain.add(&guest.image());
    let at_head = segment.windows(4).position(|bytes| bytes == b"node").unwrap();
    for at in [at_head, segment.len() / 2, segment.len() - 1] {
        let mut damaged = segment.clone();
        damaged[at] ^= 1;
        for bytes in [&damaged[..], &segment[..at]] {
            let refused = ready.apply(bytes).unwrap_err();
            assert!(matches!(refused, ReadyError::Chain(_)), "{refused}");
            assert!(compare(&mut &ready.bytes()[..], &chain.receiver).is_err());
            let first = |number: u32| Ok(&chain.segments[number as usize][..]);
            let mut behind = Receiver::default();
            replay(&mut behind, &mut &chain.segments[0][..]).unwrap();
            ready.image = Some(ReadyImage::build(&ready.path, &behind, first).unwrap());
        }
    }
    let frames = frames(&segment);
    let but_state: Vec<_> = frames.iter().copied().filter(|frame| frame[0] != 3).collect();
    for wrong in [[&segment[..8], &but_state.concat()].concat(), [&segment, frames[0]].concat()] {
        let mut behind = Ready::of(&chain_of(&Guest::new()));
        let refused = behind.apply(&wrong).unwrap_err();
        assert!(matches!(refused, ReadyError::Chain(ChainError::Ingest(_))), "{refused}");
    }
    ready.apply(&segment).unwrap();
    ready.check(&chain);
    assert!(matches!(
        ReadyImage::build(&ready.path, &Receiver::default(), |_| Ok(&b""[..])),
        Err(ReadyError::Nothing)
    ));
}

/// The frames of a segment.
fn frames(segment: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut frames) = (&segment[8..], Vec::new());
    while !rest.is_empty() {
        let length = u32::from_le_bytes([rest[1], rest[2], rest[3], rest[4]]) as usize;
        let (frame, behind) = rest.split_at(21 + length);
        frames.push(frame);
        rest = behind;
    }
    frames
}

/// Pages of a running guest come twice, and what a segment stored once it names again, also when nobody has it any more.
#[test]
fn pages_that_come_again_in_one_segment_are_what_they_were_last() {
    let mut guest = Guest::new();
    let mut chain = chain_of(&guest);
    let mut ready = Ready::of(&chain);
    let blocks = chain.receiver.blocks().unwrap().clone();
    let head = Head { node: node(), id: id(2), base: Some(id(1)), blocks };
    let mut writer = SegmentWriter::new(&head);
    let mut put = |page: u32, bytes: Page| {
        guest.memory[page as usize] = bytes;
        writer.page(PageKey { block: 0, page }, PageDigest::of(&bytes), &bytes).unwrap();
    };
    // More pages than a frame has, so that what follows names what came in another one.
    for seed in 100..240 {
        put(7, noise(seed));
    }
    put(1, noise(100));
    put(8, noise(101));
    put(1, noise(102));
    put(9, noise(100));
    put(10, noise(101));
    put(8, [0; 4096]);
    put(8, noise(239));
    put(11, noise(101));
    let tracker = chain.tracker.as_mut().unwrap();
    tracker.begin();
    let keys: Vec<PageKey> = tracker.blocks().keys().collect();
    for (key, page) in keys.into_iter().zip(&guest.memory) {
        tracker.page(key, page).unwrap();
    }
    assert_eq!(tracker.changes(Changes::Since(1)).count(), 6);
    writer.state(chain.receiver.rest()).unwrap();
    let root = tracker.root().unwrap();
    let segment = [writer.take(), writer.end(root).unwrap()].concat();
    chain.take(segment.clone());
    ready.apply(&segment).unwrap();
    ready.check(&chain);
}

#[test]
fn what_differs_from_the_checkpoint_is_said() {
    let guest = Guest::new();
    let chain = chain_of(&guest);
    let differs = |other: &Guest| compare(&mut &other.image()[..], &chain.receiver).unwrap_err();
    compare(&mut &guest.image()[..], &chain.receiver).unwrap();
    let mut other = guest.clone();
    (other.memory[4], other.memory[22]) = (noise(0), noise(0));
    let CompareError::Pages { wrong: 2, first: PageKey { block: 0, page: 4 } } = differs(&other) else {
        panic!("{}", differs(&other));
    };
    assert!(matches!(differs(&Guest { xml: "<other/>".to_owned(), ..guest.clone() }), CompareError::Header));
    assert!(matches!(differs(&Guest { devices: device(2), ..guest.clone() }), CompareError::Devices));
    let of_stream = |stream: &[u8]| compare(&mut &guest.image_of(stream)[..], &chain.receiver).unwrap_err();
    let fewer = guest.stream(&[(RAM, 20 * 4096), (BIOS, 3 * 4096)]);
    assert!(matches!(of_stream(&fewer), CompareError::Blocks));
    // One page is missing; one comes in the short form of a byte that QEMU does not take.
    let mut stream = guest.stream(&BLOCKS);
    let zero = fill(Some(RAM), 0, 0);
    let at = stream.windows(zero.len()).position(|bytes| bytes == zero).unwrap();
    stream[at + zero.len() - 1] = 5;
    assert!(matches!(of_stream(&stream), CompareError::Place(_)));
    stream.drain(at..at + zero.len());
    assert!(matches!(of_stream(&stream), CompareError::Pages { wrong: 1, .. }));
    // Of two at one place the later one counts.
    let twice = |pages: [Page; 2]| {
        let record = |page: &Page| page_of(RAM, 0, page);
        let pages = pages.iter().flat_map(record).collect::<Vec<u8>>();
        [&stream[..at], &pages, &stream[at..]].concat()
    };
    assert!(matches!(of_stream(&twice([[0; 4096], noise(1)])), CompareError::Pages { wrong: 1, .. }));
    let right = guest.image_of(&twice([noise(1), [0; 4096]]));
    compare(&mut &right[..], &chain.receiver).unwrap();
    assert!(matches!(compare(&mut &guest.image()[..], &Receiver::default()), Err(CompareError::Nothing)));
    let cut = compare(&mut &guest.image()[..5000], &chain.receiver).unwrap_err();
    assert!(
        matches!(cut, CompareError::Image(UnreadableImage::Stream(StreamError::Truncated { .. }))),
        "{cut}"
    );
}

/// Where in an image a changed byte is looked for: every place but the inside of padding and of pages, of which some.
fn places(image: &[u8]) -> Vec<usize> {
    let plain = |at: usize| {
        let around = &image[at.saturating_sub(40)..(at + 40).min(image.len())];
        around.iter().all(|byte| *byte == around[0])
    };
    (0..image.len()).filter(|at| !plain(*at) || at % 997 == 0).collect()
}

#[test]
fn a_changed_byte_is_found_unless_it_changes_nothing_that_is_loaded() {
    let mut guest = Guest::new();
    // Pages of one byte each, so that what is not pages is easily told from them.
    for (page, byte) in [(1, 0x11), (2, 0x22), (5, 0x55), (20, 0x77)] {
        guest.memory[page] = [byte; 4096];
    }
    let mut chain = chain_of(&guest);
    let mut ready = Ready::of(&chain);
    guest.memory[9] = [0x99; 4096];
    guest.memory[2] = [0; 4096];
    ready.apply(&chain.add(&guest.image())).unwrap();
    let (image, loaded) = (ready.bytes(), state(&ready.bytes()));
    let early = fill(None, 9 * 4096, 0);
    let early = image.windows(early.len()).position(|bytes| bytes == early).unwrap();
    let mut harmless = 0;
    for at in places(&image) {
        for bit in 0..8 {
            let mut changed = image.clone();
            changed[at] ^= 1 << bit;
            if compare(&mut &changed[..], &chain.receiver).is_ok() {
                assert!((early..early + 8).contains(&at), "byte {at}, bit {bit}");
                assert!(state(&changed) == loaded, "byte {at}, bit {bit}");
                harmless += 1;
            }
        }
    }
    // The early zero of page 9 becomes one of page 1, 8, 11 or 13, each of which has a record of its own.
    assert_eq!(harmless, 4);
    for bytes in [&image[..image.len() - 1], &[&image[..], &[0]].concat()] {
        assert!(compare(&mut &*bytes, &chain.receiver).is_err());
    }
}

#[test]
fn the_file_is_its_owners_and_a_new_one_takes_the_place_of_an_old_one() {
    let chain = chain_of(&Guest::new());
    let mut ready = Ready::of(&chain);
    let mode = || std::fs::metadata(&ready.path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    std::fs::set_permissions(&ready.path, PermissionsExt::from_mode(0o644)).unwrap();
    let (old, before) = (std::fs::File::open(&ready.path).unwrap(), ready.bytes());
    ready.build(&chain).unwrap();
    assert_eq!(std::fs::metadata(&ready.path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut still = vec![0; before.len()];
    old.read_exact_at(&mut still, 0).unwrap();
    assert!(still == before, "who reads the old one reads on");
    let nowhere =
        ReadyImage::build(&ready.path.join("below"), &chain.receiver, |_| Ok(&b""[..])).unwrap_err();
    assert!(matches!(nowhere, ReadyError::File(_)), "{nowhere}");
    let damaged = ReadyImage::build(&ready.path, &chain.receiver, |_| Ok(&b""[..])).unwrap_err();
    assert!(matches!(damaged, ReadyError::Chain(ChainError::Segment(_))), "{damaged}");
    assert!(compare(&mut &ready.bytes()[..], &chain.receiver).is_err());
}

/// What a guest does until the next image: pages become zero, one byte, noise or what another is; its rest changes.
type Step = (Vec<(usize, u8)>, usize, usize);

fn history() -> impl Strategy<Value = Vec<Step>> {
    let pages = prop::collection::vec((0..PAGES, 0..7_u8), 0..8);
    prop::collection::vec((pages, 1..200_usize, 0..300_usize), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_image_is_what_would_be_rebuilt(history in history(), built in 0..4_usize) {
        let mut guest = Guest::new();
        let mut chain = chain_of(&guest);
        let mut ready = None;
        for (number, (pages, xml, devices)) in history.into_iter().enumerate() {
            for (page, kind) in pages {
                guest.memory[page] = match kind {
                    0 | 1 => [0; 4096],
                    2 => [0xFF; 4096],
                    seed => noise(seed),
                };
            }
            (guest.xml, guest.devices) = ("x".repeat(xml), device(devices));
            let segment = chain.add(&guest.image());
            match &mut ready {
                // Built of one segment or of several.
                None if number == built => ready = Some(Ready::of(&chain)),
                None => {}
                Some(ready) => {
                    ready.apply(&segment).unwrap();
                    ready.check(&chain);
                }
            }
        }
    }
}
