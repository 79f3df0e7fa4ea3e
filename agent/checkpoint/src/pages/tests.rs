//! Pages through trackers, segments, receivers and chains: what is missed, damaged or merged makes the same state, or none.

use std::collections::BTreeMap;

use proptest::prelude::*;
use understudy_core::model::ids::Epoch;
use understudy_core::model::records::CheckpointId;

use super::*;
use crate::Digest;
use crate::stream::{Block, BlockIndex, PAGE_BYTES as PAGE, Place};

type Page = [u8; PAGE];
/// Every page's bytes, in the pages' order.
type Memory = Vec<Page>;

fn blocks() -> Blocks {
    let block = |name: &str, pages: u64| Block { name: name.to_owned(), bytes: pages * PAGE as u64 };
    Blocks::new(vec![block("pc.ram", 20), block("empty", 0), block("pc.bios", 3)]).unwrap()
}

fn id(sequence: u64) -> CheckpointId {
    CheckpointId { epoch: Epoch(4), sequence }
}

fn head(base: Option<u64>, to: u64) -> Head {
    Head { node: "alice/exec-1".parse().unwrap(), id: id(to), base: base.map(id), blocks: blocks() }
}

/// A page that does not compress, of which each seed has its own.
fn noise(seed: u8) -> Page {
    let mut page = [0; PAGE];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut page);
    page
}

fn memory() -> Memory {
    vec![[0; PAGE]; 23]
}

/// What the sender does with an image.
fn image(tracker: &mut Tracker, memory: &Memory) -> (u32, Digest) {
    let number = tracker.begin();
    let keys: Vec<PageKey> = tracker.blocks().keys().collect();
    for (key, page) in keys.into_iter().zip(memory) {
        tracker.page(key, page).unwrap();
    }
    (number, tracker.root().unwrap())
}

fn segment(tracker: &Tracker, memory: &Memory, changes: Changes, head: &Head, rest: &[u8]) -> Vec<u8> {
    let mut writer = SegmentWriter::new(head);
    for (key, digest) in tracker.changes(changes) {
        let page = &memory[tracker.blocks().index(key).unwrap()];
        writer.page(key, digest, page).unwrap();
    }
    writer.state(rest).unwrap();
    let mut bytes = writer.take();
    bytes.extend(writer.end(tracker.root().unwrap()).unwrap());
    bytes
}

/// Takes a segment in, in pieces of this size.
fn receive(receiver: &mut Receiver, bytes: &[u8], piece: usize) -> Result<Received, String> {
    receiver.give_up();
    let mut reader = SegmentReader::default();
    let mut received = None;
    for piece in bytes.chunks(piece) {
        reader.push(piece);
        while let Some((_, frame)) = reader.frame().map_err(|error| error.to_string())? {
            received = receiver.take(frame).map_err(|error| error.to_string())?;
        }
    }
    reader.ends().map_err(|error| error.to_string())?;
    received.ok_or_else(|| "it has no end".to_owned())
}

/// What a restore reads, out of the segments that were taken in.
fn memory_of(receiver: &Receiver, segments: &[Vec<u8>]) -> Result<Memory, ChainError> {
    let mut pages = BTreeMap::new();
    read_back(receiver, |number| Ok(&segments[number as usize][..]), &mut pages)?;
    Ok(pages.into_values().collect())
}

#[test]
fn only_what_changed_travels_and_both_ends_have_the_same_state() {
    let (mut tracker, mut receiver) = (Tracker::new(blocks()), Receiver::default());
    let mut memory = memory();
    memory[3] = noise(3);
    memory[4] = noise(3);
    memory[5] = [7; PAGE];
    memory[22] = noise(22);
    let (first, root) = image(&mut tracker, &memory);
    let whole = segment(&tracker, &memory, Changes::Whole, &head(None, 1), b"devices");
    assert!(whole.len() < 3 * PAGE, "zero, equal and repeated pages cost nothing: {}", whole.len());
    let received = receive(&mut receiver, &whole, 1000).unwrap();
    assert_eq!((received.root, received.stored, received.segment), (root, 2, 0));
    assert_eq!(received.state, Digest::of(b"devices"));

    memory[3] = [0; PAGE];
    memory[10] = noise(10);
    let (_, root) = image(&mut tracker, &memory);
    let changed = segment(&tracker, &memory, Changes::Since(first), &head(Some(1), 2), b"more");
    let received = receive(&mut receiver, &changed, 7).unwrap();
    assert_eq!((received.root, received.stored, receiver.has()), (root, 1, Some(id(2))));
    assert_eq!(receiver.live(), [2, 1], "page 4 still needs what page 3 brought");
    assert_eq!(memory_of(&receiver, &[whole, changed]).unwrap(), memory);
}

#[test]
fn who_lacks_what_the_sender_believes_it_has_says_so_and_takes_the_whole() {
    let mut tracker = Tracker::new(blocks());
    let mut memory = memory();
    let (first, _) = image(&mut tracker, &memory);
    memory[1] = noise(1);
    image(&mut tracker, &memory);
    let changed = segment(&tracker, &memory, Changes::Since(first), &head(Some(1), 2), b"");
    let mut receiver = Receiver::default();
    let refused = receive(&mut receiver, &changed, 4096).unwrap_err();
    assert_eq!(refused, "it adds to checkpoint 4.1, this host has nothing: send the whole");
    // It calls itself the same and is not.
    let mut other = Tracker::new(blocks());
    let mut lies = memory.clone();
    lies[9] = noise(9);
    image(&mut other, &lies);
    receive(&mut receiver, &segment(&other, &lies, Changes::Whole, &head(None, 1), b""), 4096).unwrap();
    let refused = receive(&mut receiver, &changed, 4096).unwrap_err();
    assert!(refused.contains("do not make the state that was sent"), "{refused}");
    assert_eq!((receiver.has(), receiver.live()), (Some(id(1)), vec![2]), "it is as it was");
    let whole = segment(&tracker, &memory, Changes::Whole, &head(None, 2), b"");
    assert!(receive(&mut receiver, &whole, 4096).is_ok());
}

#[test]
fn an_image_that_lacks_a_page_has_no_digest() {
    let mut tracker = Tracker::new(blocks());
    tracker.begin();
    let keys: Vec<PageKey> = tracker.blocks().keys().collect();
    for key in &keys[1..] {
        tracker.page(*key, &[0; PAGE]).unwrap();
        tracker.page(*key, &noise(1)).unwrap();
    }
    assert_eq!((tracker.root(), tracker.missing()), (None, 1));
    assert_eq!(tracker.page(keys[0], &[0; PAGE]), Some(PageDigest::of(&[0; PAGE])));
    assert!(tracker.root().is_some());
    assert_eq!(tracker.page(PageKey { block: 1, page: 0 }, &[0; PAGE]), None, "that block is empty");
    tracker.begin();
    assert_eq!((tracker.root(), tracker.missing()), (None, 23), "the next has had none yet");
}

#[test]
fn a_page_and_its_place_are_the_same() {
    let place = |block, offset| Place { block: BlockIndex(block), offset };
    let key = PageKey { block: 2, page: 3 };
    assert_eq!((key.place(), PageKey::at(place(2, 3 * 4096))), (place(2, 12_288), Some(key)));
    for nowhere in [place(2, 4095), place(1 << 16, 0), place(0, 1 << 44)] {
        assert_eq!(PageKey::at(nowhere), None, "{nowhere:?}");
    }
}

#[test]
fn blocks_that_no_machine_has_are_refused_by_name() {
    let block = |name: &str, bytes| Block { name: name.to_owned(), bytes };
    let refused = |list: Vec<Block>| Blocks::new(list).unwrap_err().to_string();
    assert!(refused(vec![block("", 0)]).contains("1 to 255"));
    assert!(refused(vec![block("a", 0), block("a", 4096)]).contains("'a' is named twice"));
    assert!(refused(vec![block("a", 4097)]).contains("whole pages of 4096"));
    assert!(refused(vec![block("a", 1 << 45)]).contains("up to 16 TiB"));
    assert!(refused((0..1025).map(|n| block(&n.to_string(), 0)).collect()).contains("more than 1024"));
}

#[test]
fn a_frame_cannot_ask_for_more_memory_than_a_frame_may_have() {
    let mut reader = SegmentReader::default();
    reader.push(b"UNDSPG1\n\x02\xff\xff\xff\xff");
    let refused = reader.frame().unwrap_err().to_string();
    assert!(refused.contains("byte 8") && refused.contains("4294967295"), "{refused}");
    let mut reader = SegmentReader::default();
    reader.push(b"UNDERSTUDY");
    assert!(matches!(reader.frame(), Err(SegmentError::Magic)));
}

/// Changes of a few pages each: to zero, to one byte, to noise, to what another page is.
fn changes() -> impl Strategy<Value = Vec<Vec<(usize, u8)>>> {
    prop::collection::vec(prop::collection::vec((0..23_usize, 0..6_u8), 0..8), 1..6)
}

fn written(memory: &mut Memory, changes: &[(usize, u8)]) {
    for (page, kind) in changes {
        memory[*page] = match kind {
            0 => [0; PAGE],
            1 => [0xFF; PAGE],
            seed => noise(*seed),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// Some images come to nothing, some receivers miss some: each has what the sender had when it says so.
    #[test]
    fn whatever_is_missed_a_receiver_has_what_was_sent_or_refuses(
        history in changes(),
        fate in prop::collection::vec(0..4_u8, 6),
        piece in 1..5000_usize,
    ) {
        let (mut tracker, mut receiver) = (Tracker::new(blocks()), Receiver::default());
        let (mut memory, mut segments) = (memory(), Vec::new());
        let mut has = None;
        for (step, (changes, fate)) in (1..).zip(history.iter().zip(&fate)) {
            written(&mut memory, changes);
            let (number, root) = image(&mut tracker, &memory);
            // Nothing of it is sent.
            if *fate == 0 {
                continue;
            }
            let what = has.map_or(Changes::Whole, |(_, number)| Changes::Since(number));
            let bytes = segment(&tracker, &memory, what, &head(has.map(|(base, _)| base), step), &[*fate; 3]);
            // It breaks off.
            if *fate == 1 {
                prop_assert!(receive(&mut receiver, &bytes[..bytes.len() - 1], piece).is_err());
                continue;
            }
            let received = receive(&mut receiver, &bytes, piece).unwrap();
            prop_assert_eq!(received.root, root);
            segments.push(bytes);
            has = Some((step, number));
            prop_assert_eq!(&memory_of(&receiver, &segments).unwrap(), &memory);
        }
    }

    #[test]
    fn a_changed_byte_anywhere_is_found(at in any::<prop::sample::Index>(), bit in 0..8_u8, changes in changes()) {
        let mut tracker = Tracker::new(blocks());
        let mut memory = memory();
        changes.iter().for_each(|changes| written(&mut memory, changes));
        image(&mut tracker, &memory);
        let mut bytes = segment(&tracker, &memory, Changes::Whole, &head(None, 1), b"devices");
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let mut receiver = Receiver::default();
        prop_assert!(receive(&mut receiver, &bytes, 1 << 20).is_err());
        prop_assert_eq!(receiver.has(), None);
    }

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 1..6_u8) {
        let mut reader = SegmentReader::default();
        reader.push(b"UNDSPG1\n");
        reader.push(&bytes);
        while let Ok(Some(_)) = reader.frame() {}
        // The same with a digest that is right, so that what lies behind it is looked at.
        let _ = segment::decode(&segment::framed(kind, &bytes), 0);
    }
}

impl PageSink for BTreeMap<PageKey, Page> {
    fn page(&mut self, key: PageKey, bytes: &Page) -> std::io::Result<()> {
        assert!(self.insert(key, *bytes).is_none(), "{key:?} came twice");
        Ok(())
    }
}

/// All states of a history, with the segment that each added.
fn chain(history: &[Vec<(usize, u8)>]) -> (Vec<Memory>, Vec<Vec<u8>>) {
    let mut tracker = Tracker::new(blocks());
    let (mut memory, mut states, mut segments) = (memory(), Vec::new(), Vec::new());
    for (step, changes) in (1..).zip(history) {
        written(&mut memory, changes);
        let (number, _) = image(&mut tracker, &memory);
        let (what, base) = match step {
            1 => (Changes::Whole, None),
            _ => (Changes::Since(number - 1), Some(step - 1)),
        };
        segments.push(segment(&tracker, &memory, what, &head(base, step), &step.to_le_bytes()));
        states.push(memory.clone());
    }
    (states, segments)
}

fn restored(segments: &[Vec<u8>]) -> Result<(Memory, Vec<u8>), ChainError> {
    let mut receiver = Receiver::default();
    for segment in segments {
        replay(&mut receiver, &mut &segment[..])?;
    }
    Ok((memory_of(&receiver, segments)?, receiver.rest().to_vec()))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_merge_of_any_part_of_a_chain_makes_the_same_state(history in changes(), from in 0..5_usize, to in 1..6_usize) {
        let (states, segments) = chain(&history);
        let to = to.min(segments.len());
        let from = from.min(to - 1);
        let mut merged = Vec::new();
        let of = merge(to - from, |number| Ok(&segments[from + number][..]), &mut merged).unwrap();
        prop_assert_eq!((of.base, of.id), ((from > 0).then(|| id(from as u64)), id(to as u64)));
        let fewer = [&segments[..from], &[merged], &segments[to..]].concat();
        for chain in [&segments, &fewer] {
            let (memory, rest) = restored(chain).unwrap();
            prop_assert_eq!((&memory, rest), (states.last().unwrap(), (segments.len() as u64).to_le_bytes().to_vec()));
        }
    }

    /// Changed after it was taken in: the page is found before it is given out.
    #[test]
    fn what_was_changed_since_it_came_is_never_given_out(history in changes(), at in any::<prop::sample::Index>()) {
        let (states, segments) = chain(&history);
        let mut receiver = Receiver::default();
        for segment in &segments {
            replay(&mut receiver, &mut &segment[..]).unwrap();
        }
        let mut damaged = segments.clone();
        let of = at.index(damaged.len());
        let byte = at.index(damaged[of].len());
        damaged[of][byte] ^= 4;
        if let Ok(memory) = memory_of(&receiver, &damaged) {
            prop_assert_eq!(&memory, states.last().unwrap());
        }
    }
}

#[test]
fn segments_that_do_not_follow_on_each_other_are_not_merged() {
    let (_, segments) = chain(&[vec![(1, 3)], vec![(2, 4)], vec![(3, 5)]]);
    let refused = |numbers: &[usize]| {
        merge(numbers.len(), |number| Ok(&segments[numbers[number]][..]), &mut Vec::new()).unwrap_err()
    };
    assert!(refused(&[0, 2]).to_string().contains("does not add to the one before it"));
    assert!(refused(&[]).to_string().contains("there is none"));
    let short = &segments[1][..segments[1].len() - 5];
    let broken = merge(1, |_| Ok(short), &mut Vec::new()).unwrap_err();
    assert!(matches!(broken, ChainError::Segment(SegmentError::Short { .. })), "{broken}");
}
