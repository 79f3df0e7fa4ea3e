//! Migration streams: what is taken apart, what is put together, and what is refused by which name.

mod common;

use std::collections::BTreeMap;

use common::{
    BLOCKS, DESCRIPTION, LIMITS, MACHINE, Owned, RAM, at, background, be, begin, command, configuration,
    devices, end_of_section, examine, fill, footer, head, live, normal, parse, paused, record, section,
    seeds, start, subsection, write,
};
use proptest::prelude::*;
use understudy_checkpoint::stream::{
    Absent, Limits, Page, Parser, Skeleton, StreamError, StreamWriter, WriteError,
};

fn skeleton_of(bytes: &[u8]) -> Skeleton {
    parse(bytes, &[], LIMITS).1.expect("a stream")
}

fn refusal(bytes: &[u8]) -> StreamError {
    parse(bytes, &[], LIMITS).1.expect_err("no stream")
}

#[test]
fn a_stream_is_its_machine_its_blocks_its_pages_and_the_rest() {
    let (parsed, outcome) = parse(&paused(), &[], LIMITS);
    let skeleton = outcome.unwrap();
    assert_eq!((&*parsed.machine, skeleton.machine()), (MACHINE, MACHINE));
    let blocks: Vec<_> = parsed.blocks.iter().map(|block| (&*block.name, block.bytes)).collect();
    assert_eq!(blocks, BLOCKS);
    assert_eq!(parsed.blocks, skeleton.blocks());
    assert_eq!(skeleton.places(), 8);
    let places: Vec<_> = parsed.pages.iter().map(|(place, _)| *place).collect();
    let all = [at(0, 0), at(0, 1), at(0, 2), at(0, 3), at(0, 4), at(1, 0), at(1, 1), at(2, 0)];
    assert_eq!(places, all);
    assert_eq!(parsed.pages[1].1, Owned::Fill(0));
    assert!(matches!(&parsed.pages[3].1, Owned::Bytes(bytes) if bytes[9] == 4 && bytes[6] == 0x30));
    assert!(parsed.ram_ended);
    let rest = [command(11, &[]), section(3, &[]), devices(DESCRIPTION)].concat();
    let expected = [head(), configuration(), start(&BLOCKS), section(2, &[]), rest].concat();
    assert_eq!(skeleton.bytes(), expected);
}

#[test]
fn a_later_page_replaces_an_earlier_one() {
    let (parsed, _) = parse(&live(), &[], LIMITS);
    assert_eq!(parsed.pages.len(), 6);
    let last = parsed.last();
    assert!(matches!(&last[&at(0, 1)], Owned::Bytes(bytes) if bytes[9] == 9));
    assert_eq!(last[&at(1, 1)], Owned::Fill(0x5a));
}

#[test]
fn pages_that_came_once_in_order_in_one_part_are_written_byte_by_byte() {
    let bytes = background();
    let (parsed, outcome) = parse(&bytes, &[], LIMITS);
    assert_eq!(write(&outcome.unwrap(), Absent::Refuse, &parsed.last()).unwrap(), bytes);
}

#[test]
fn zero_pages_that_a_caller_does_not_keep_are_written_in_every_block() {
    let bytes = background();
    let (parsed, outcome) = parse(&bytes, &[], LIMITS);
    let mut pages = parsed.last();
    pages.retain(|_, page| *page != Owned::Fill(0));
    assert_eq!(pages.len(), 2);
    let written = write(&outcome.unwrap(), Absent::Zero, &pages).unwrap();
    let (again, outcome) = parse(&written, &[], LIMITS);
    assert!(again.last() == parsed.last() && outcome.is_ok());
}

#[test]
fn a_page_of_another_byte_is_written_whole() {
    let skeleton = skeleton_of(&live());
    let pages = BTreeMap::from([(at(1, 1), Owned::Fill(0x5a))]);
    let (parsed, _) = parse(&write(&skeleton, Absent::LeaveOut, &pages).unwrap(), &[], LIMITS);
    assert!(matches!(&parsed.pages[0].1, Owned::Bytes(bytes) if **bytes == [0x5a; 4096]));
}

#[test]
fn pages_come_in_any_order_and_those_that_are_missing_twice_or_nowhere_are_not_written() {
    let skeleton = skeleton_of(&paused());
    let page = Page::Fill(0);
    let mut writer = StreamWriter::new(&skeleton, Absent::Refuse, Vec::new()).unwrap();
    for place in (0..5).rev() {
        writer.page(at(0, place), page).unwrap();
    }
    assert!(matches!(writer.page(at(0, 4), page), Err(WriteError::Twice { offset: 0x4000, .. })));
    for nowhere in [at(0, 5), at(3, 0), at(usize::MAX, 0)] {
        assert!(matches!(writer.page(nowhere, page), Err(WriteError::NoPlace { .. })));
    }
    let mut between = at(1, 0);
    between.offset += 1;
    assert!(matches!(writer.page(between, page), Err(WriteError::NoPlace { block: 1, offset: 1 })));
    writer.page(at(1, 0), page).unwrap();
    let missing = writer.finish().unwrap_err();
    assert!(matches!(missing, WriteError::Missing { block, offset: 0x1000 } if block == "pc.rom"));
}

#[test]
fn a_stream_that_ends_too_early_is_an_error_wherever_it_ends() {
    for bytes in seeds() {
        for length in 0..bytes.len() {
            let (_, outcome) = parse(&bytes[..length], &[], LIMITS);
            match outcome.unwrap_err() {
                StreamError::Truncated { at, .. } => assert!(at <= length as u64),
                StreamError::NoDescription { at } => assert_eq!(at, length as u64),
                // The state of the first device looks like an end, but for its JSON.
                StreamError::Description { at, .. } => assert_eq!(at + 1, length as u64),
                other => panic!("cut at {length}: {other}"),
            }
        }
        let longer = [bytes, vec![0]].concat();
        assert!(matches!(refusal(&longer), StreamError::NoDescription { .. }));
    }
}

#[test]
fn a_skeleton_has_no_pages() {
    let skeleton = skeleton_of(&paused());
    assert_eq!(Skeleton::from_bytes(skeleton.bytes(), LIMITS).unwrap(), skeleton);
    let error = Skeleton::from_bytes(&paused(), LIMITS).unwrap_err();
    assert!(matches!(error, StreamError::PageInSkeleton { .. }), "{error}");
}

/// What follows the head and the configuration, and how it is refused: the offset in it, and the words of the message.
fn refusals() -> Vec<(Vec<u8>, usize, &'static str)> {
    let started = start(&BLOCKS);
    let len = started.len();
    let part = |records: Vec<u8>| [started.clone(), vec![2], be(RAM), records].concat();
    let list = |blocks: Vec<u8>| [begin(1, RAM, "ram", 4), record(8192, 4), blocks].concat();
    let entry = |name: &[u8], bytes: u64| {
        [vec![name.len() as u8], name.to_vec(), bytes.to_be_bytes().to_vec()].concat()
    };
    let capability =
        [subsection("configuration/capabilities", &be(1)), vec![10], b"mapped-ram".to_vec()].concat();
    let bits = |bits| subsection("configuration/target-page-bits", &be(bits));
    vec![
        (capability, 0, "capability 'mapped-ram', switch it off"),
        (bits(16), 0, "pages of 65536 bytes, only 4096"),
        (bits(99), 0, "pages of 0 bytes"),
        (subsection("configuration/other", &[]), 0, "the subsection 'configuration/other'"),
        ([started.clone(), subsection("a", &[])].concat(), len, "type 5 (SUBSECTION) does not belong"),
        (begin(1, 3, "dirty-bitmap", 1), 0, "the section 'dirty-bitmap' is sent in steps"),
        ([started.clone(), begin(1, 3, "vfio", 1)].concat(), len, "the section 'vfio' is sent in steps"),
        ([started.clone(), begin(1, 3, "ram", 4)].concat(), len, "type 1 (SECTION_START) does not belong"),
        (begin(4, 3, "virtio-mem-early", 1), 0, "'virtio-mem-early' of a device comes before RAM"),
        (begin(1, RAM, "ram", 3), 0, "version 3 of the section 'ram'"),
        ([vec![2], be(RAM)].concat(), 0, "type 2 (SECTION_PART) does not belong"),
        (vec![0], 0, "type 0 (EOF) does not belong"),
        (vec![6], 0, "type 6 (VMDESCRIPTION)"),
        (vec![9], 0, "type 9 (no known type)"),
        (
            [started.clone(), vec![3], be(8)].concat(),
            len,
            "SECTION_END of section 8, which is not that of RAM",
        ),
        ([started.clone(), section(3, &[]), vec![2], be(RAM)].concat(), len + 18, "type 2 (SECTION_PART)"),
        ([started.clone(), section(3, &[]), command(11, &[])].concat(), len + 18, "command 11"),
        (command(11, &[]), 0, "command 11 (switchover-start)"),
        (command(1, &[]), 0, "command 1 (open-return-path) is not for a file"),
        (command(2, &[0; 4]), 0, "command 2 (ping)"),
        ([started.clone(), command(3, &[0; 16])].concat(), len, "command 3 (postcopy-advise)"),
        ([started.clone(), command(9, &[])].concat(), len, "command 9 (enable-colo)"),
        ([started.clone(), command(11, &[0])].concat(), len, "command 11"),
        (command(99, &[]), 0, "command 99 (unknown)"),
        (part(record(0, 0x01)), len + 5, "the flag full"),
        (part(record(0, 0x40)), len + 5, "the flag xbzrle: migrate without"),
        (part(record(4096, 0x60)), len + 5, "the flag xbzrle"),
        (part(record(0, 0x80)), len + 5, "the flag hook (rdma)"),
        (part(record(0, 0x100)), len + 5, "the flag compress"),
        (part(record(0, 0x200)), len + 5, "the flag multifd-flush"),
        (part(record(0, 0x400)), len + 5, "of a bit that no release has"),
        (part(record(0, 0x0a)), len + 5, "the flags 0x00a does not belong"),
        (part(record(0, 0x04)), len + 5, "the flags 0x004"),
        (part(record(0, 0)), len + 5, "the flags 0x000"),
        (part(record(4096, 0x10)), len + 5, "the flags 0x010"),
        (part(fill(None, 0, 0)), len + 5, "it is the first"),
        (part(fill(Some("other"), 0, 0)), len + 5, "the RAM block 'other', which is not listed"),
        (
            part(normal(Some("pc.rom"), 8192, 1)),
            len + 5,
            "at 0x2000 of the RAM block 'pc.rom', which has 0x2000",
        ),
        (part([record(0, 0x10), footer(8)].concat()), len + 13, "no footer"),
        (part([record(0, 0x10), vec![4; 5]].concat()), len + 13, "no footer"),
        ([begin(1, RAM, "ram", 4), end_of_section()].concat(), 17, "lists no blocks"),
        ([begin(1, RAM, "ram", 4), record(0, 0x04)].concat(), 17, "lists no blocks"),
        ([begin(1, RAM, "ram", 4), fill(Some("a"), 0, 0)].concat(), 17, "the flags 0x002"),
        ([begin(1, RAM, "ram", 4), record(1 << 21, 0x04)].concat(), 17, "more than 1048576 bytes of RAM"),
        (list([entry(b"a", 4096), entry(b"a", 4096)].concat()), 35, "'a' is listed twice"),
        (list(entry(b"a", 12288)), 25, "the RAM block 'a' has 12288 bytes"),
        (list(entry(b"a", 100)), 25, "the RAM block 'a' has 100 bytes"),
        (list(entry(b"", 4096)), 25, "the name of a RAM block is empty"),
        (list(entry(b"\xff", 4096)), 25, "not UTF-8"),
        (list((0..17).flat_map(|at| entry(&[b'a' + at], 0)).collect()), 25 + 160, "more than 16 RAM blocks"),
        ([started, devices("{}")].concat(), len + 75, "missing field `page_size`"),
    ]
}

#[test]
fn what_is_not_known_is_refused_by_its_name_and_offset() {
    let before = [head(), configuration()].concat();
    for (bytes, at, expected) in refusals() {
        let error = refusal(&[before.clone(), bytes].concat()).to_string();
        let offset = format!("offset {}: ", before.len() + at);
        assert!(error.starts_with(&offset) && error.contains(expected), "{offset}{expected}: {error}");
    }
}

#[test]
fn what_does_not_begin_as_a_stream_is_refused() {
    let other = |bytes: &[u8]| refusal(bytes).to_string();
    assert!(
        other(b"LibvirtQemudSave").contains("offset 0: begins with 0x4c696276 instead of 0x5145564d (QEVM)")
    );
    assert!(other(b"QEVM\0\0\0\x02").contains("offset 4: version 2"));
    let long = [head(), vec![7], be(256)].concat();
    for (bytes, expected) in [
        ([head(), vec![1]].concat(), "offset 8: the section SECTION_START instead of CONFIGURATION"),
        (long, "offset 8: the name of a machine type is empty, longer than 255 bytes"),
        ([head(), vec![7], be(0)].concat(), "the name of a machine type"),
    ] {
        assert!(other(&bytes).contains(expected), "{}", other(&bytes));
    }
}

#[test]
fn the_end_of_a_stream_is_its_description() {
    let before = [head(), configuration(), start(&BLOCKS)].concat();
    let ended = |tail: Vec<u8>| refusal(&[before.clone(), tail].concat()).to_string();
    assert!(ended(vec![0]).contains("suppress-vmdesc"));
    assert!(ended(devices("[1]")).contains("does not end with a description"));
    assert!(ended(devices("{\"page_size\": 4096")).contains("not what QEMU writes: EOF while parsing"));
    assert!(ended(devices("{\"page_size\": 8192}")).contains("pages of 8192 bytes"));
}

#[test]
fn device_state_has_a_limit() {
    let bytes = paused();
    let kept = skeleton_of(&bytes).bytes().len();
    let limits = |skeleton_bytes| Limits { skeleton_bytes, ..LIMITS };
    assert!(parse(&bytes, &[], limits(kept)).1.is_ok());
    for below in 0..kept {
        let (whole, in_pieces) = (parse(&bytes, &[], limits(below)).1, parse(&bytes, &[11], limits(below)).1);
        assert_eq!(whole, in_pieces);
        assert!(matches!(whole, Err(StreamError::TooLarge { limit, .. }) if limit == below as u64));
    }
}

#[test]
fn a_parser_shows_no_guest_memory() {
    let skeleton = skeleton_of(&paused());
    let shown = format!("{:?} {skeleton:?}", Parser::new(LIMITS));
    assert!(shown.len() < 400 && shown.contains("pc.ram"), "{shown}");
}

#[test]
fn the_seeds_hold() {
    for seed in seeds() {
        assert_eq!(examine(&seed), Ok(()));
        assert_eq!(parse(&seed, &[1], LIMITS), parse(&seed, &[], LIMITS));
    }
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1usize..20, 4000usize..4200, 1usize..30_000], 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn pieces_change_nothing(seed in 0usize..3, pieces in pieces()) {
        let bytes = &seeds()[seed];
        prop_assert_eq!(parse(bytes, &pieces, LIMITS), parse(bytes, &[], LIMITS));
    }

    #[test]
    fn any_pages_come_back(
        pages in prop::collection::btree_map((0usize..3, 0u64..5), (any::<u8>(), any::<bool>()), 0..8),
        pieces in pieces(),
    ) {
        let skeleton = skeleton_of(&paused());
        let inside = |place: &(usize, u64)| place.1 < BLOCKS[place.0].1 / 4096;
        let page = |(byte, is_whole)| if is_whole { Owned::Bytes(Box::new([byte; 4096])) } else { Owned::Fill(0) };
        let pages: BTreeMap<_, _> = pages
            .into_iter()
            .filter(|(place, _)| inside(place))
            .map(|(place, what)| (at(place.0, place.1), page(what)))
            .collect();
        let written = write(&skeleton, Absent::LeaveOut, &pages).unwrap();
        let (parsed, outcome) = parse(&written, &pieces, LIMITS);
        prop_assert_eq!(outcome.unwrap(), skeleton);
        prop_assert_eq!(parsed.last(), pages);
    }

    #[test]
    fn a_mutant_is_a_stream_or_an_error(
        seed in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..5),
    ) {
        let mut bytes = seeds()[seed].clone();
        for (at, byte, kind) in changes {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                _ => drop(bytes.splice(at..bytes.len().min(at + usize::from(byte)), [byte; 3])),
            }
        }
        prop_assert_eq!(examine(&bytes), Ok(()));
    }
}
