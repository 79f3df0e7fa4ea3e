//! Checkpoints that add to each other: which are taken, and how many segments are kept.
use super::*;

/// The sender did not hear that one was complete, or this host was started anew: what is needed is on the disk.
#[test]
fn what_adds_to_any_kept_checkpoint_is_taken_and_what_adds_to_another_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(1, 1)).unwrap();
    add(&store, id(1, 2), Some(id(1, 1))).unwrap();
    add(&store, id(1, 3), Some(id(1, 1))).unwrap();
    drop(store);
    let store = ImageStore::open(folder.path()).unwrap();
    add(&store, id(1, 4), Some(id(1, 3))).unwrap();
    let refused = add(&store, id(1, 6), Some(id(1, 5))).unwrap_err();
    assert!(refused.lacks_base(), "{refused:?}");
    store.drop_images(&node()).unwrap();
    assert!(add(&store, id(1, 7), Some(id(1, 4))).unwrap_err().lacks_base());
    receive(&store, id(1, 7)).unwrap();
    for id in store.complete(&node()) {
        check_state(&store, id).unwrap();
    }
}

/// Whoever stands still on the way of a checkpoint keeps nobody's next one.
#[test]
fn a_checkpoint_that_breaks_off_or_is_overtaken_keeps_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(1, 1)).unwrap();
    let mut stands = store.begin(&node(), id(1, 2), &description()).unwrap();
    let bytes = segment(id(1, 2), Some(id(1, 1)));
    stands.take(&bytes[..bytes.len() - 10]).unwrap();
    add(&store, id(1, 3), Some(id(1, 1))).unwrap();
    stands.take(&bytes[bytes.len() - 10..]).unwrap();
    let refused = stands.finish(description()).unwrap_err();
    assert!(matches!(refused, ReceiveError::Begin(BeginError::NotNewer { .. })), "{refused:?}");
    add(&store, id(1, 4), Some(id(1, 3))).unwrap();
    check_state(&store, id(1, 4)).unwrap();
}

#[test]
fn however_many_come_few_segments_are_kept_and_every_checkpoint_stays_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(1, 1)).unwrap();
    let (mut merged, mut most) = (0, 0);
    for sequence in 2..=60 {
        add(&store, id(1, sequence), Some(id(1, sequence - 1))).unwrap();
        merged += u32::from(store.compact(&node()).unwrap());
        let files = std::fs::read_dir(layout::node(folder.path(), &node())).unwrap().count();
        most = most.max(files);
        for id in [id(1, sequence - 1), id(1, sequence)] {
            check_state(&store, id).unwrap();
        }
    }
    // Each changes two of twelve pages: every third makes half of the whole.
    assert!((15..=30).contains(&merged) && most <= 2 * 6 + 1, "{merged} merges, {most} files");
    // One that takes nothing adds to the number alone.
    let same = |store: &ImageStore, next: u64| add(store, id(2, next), Some(id(2, next - 1)));
    receive(&store, id(2, 1)).unwrap();
    for next in 2..=40 {
        same(&store, next).unwrap();
        store.prune(&node()).unwrap();
    }
    assert!(store.compact(&node()).unwrap());
    drop(store);
    let store = ImageStore::open(folder.path()).unwrap();
    assert!(store.complete(&node()).len() <= 3, "{:?}", store.complete(&node()));
    check_state(&store, id(2, 40)).unwrap();
}

/// Whoever finds a damage has the sender send the whole: what is added to it would be lost with it.
#[test]
fn nothing_is_added_to_what_is_damaged_until_a_whole_one_has_come() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(1, 1)).unwrap();
    add(&store, id(1, 2), Some(id(1, 1))).unwrap();
    assert!(store.damaged().is_empty());
    let whole = layout::segment(folder.path(), &node(), id(1, 1), None);
    let mut bytes = std::fs::read(&whole).unwrap();
    bytes[5_000] ^= 1;
    std::fs::write(&whole, bytes).unwrap();
    // What is known of the pages says nothing of the disk.
    add(&store, id(1, 3), Some(id(1, 2))).unwrap();
    store.verify(&node(), id(1, 2)).unwrap_err();
    let [ImageError::Damaged(_, found, Damage::Content { segment, .. })] = &store.damaged()[..] else {
        panic!("{:?}", store.damaged())
    };
    assert_eq!((*found, segment.as_str()), (id(1, 2), "1.1.pages"));
    assert!(add(&store, id(1, 4), Some(id(1, 3))).unwrap_err().lacks_base());
    receive(&store, id(1, 4)).unwrap();
    assert!(store.damaged().is_empty());
    add(&store, id(1, 5), Some(id(1, 4))).unwrap();
    check_state(&store, id(1, 5)).unwrap();
    // A manifest that cannot be read is found when the store is opened.
    std::fs::write(layout::manifest(folder.path(), &node(), id(1, 4)), "none").unwrap();
    drop(store);
    let store = ImageStore::open(folder.path()).unwrap();
    assert!(
        matches!(&store.damaged()[..], [ImageError::Damaged(_, found, Damage::Manifest(_))] if *found == id(1, 4))
    );
    store.drop_images(&node()).unwrap();
    assert!(store.damaged().is_empty());
}

/// Segments are not taken from under whoever reads them, and whoever brings the next one does not wait for that.
#[test]
fn what_is_read_stays_until_it_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(1, 1)).unwrap();
    let own = store.shared.node(&node());
    let read = own.read();
    for sequence in 2..=5 {
        receive(&store, id(1, sequence)).unwrap();
    }
    assert_eq!(store.complete(&node()).len(), 5);
    drop(read);
    receive(&store, id(1, 6)).unwrap();
    assert_eq!(store.complete(&node()).len(), 2);
}

/// A manifest that cannot be read for a moment may add to anything that is older.
#[test]
fn what_a_manifest_that_cannot_be_read_may_add_to_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(1, 1)).unwrap();
    for sequence in 2..=4 {
        add(&store, id(1, sequence), Some(id(1, sequence - 1))).unwrap();
    }
    drop(store);
    let (manifest, aside) = (layout::manifest(folder.path(), &node(), id(1, 2)), folder.path().join("aside"));
    std::fs::rename(&manifest, &aside).unwrap();
    std::fs::create_dir(&manifest).unwrap();
    let (store, faults) = ImageStore::open_as_it_is(folder.path());
    assert!(matches!(faults.as_slice(), [StoreError::Read(path, _)] if *path == manifest), "{faults:?}");
    assert_eq!(store.prune(&node()).unwrap(), 0);
    assert!(!store.compact(&node()).unwrap());
    std::fs::remove_dir(&manifest).unwrap();
    std::fs::rename(&aside, &manifest).unwrap();
    add(&store, id(1, 5), Some(id(1, 4))).unwrap();
    for sequence in 1..=5 {
        check_state(&store, id(1, sequence)).unwrap();
    }
}

/// Where segments cannot be made fewer, a chain does not grow without end.
#[test]
fn a_chain_that_is_too_long_is_not_added_to() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(1, 1)).unwrap();
    let refused = (2..200).find(|sequence| {
        let added = add(&store, id(1, *sequence), Some(id(1, sequence - 1)));
        added.is_err_and(|error| error.lacks_base())
    });
    assert_eq!(refused, Some(index::CHAIN_MAX as u64 + 2));
    receive(&store, id(1, 100)).unwrap();
    add(&store, id(1, 101), Some(id(1, 100))).unwrap();
}

#[test]
fn a_segment_of_a_larger_guest_than_was_announced_is_refused_before_it_takes_memory() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    let blocks = Blocks::new(vec![Block { name: "pc.ram".to_owned(), bytes: 1 << 40 }]).unwrap();
    let root = blocks.root(std::iter::empty());
    let mut writer = SegmentWriter::new(&Head { node: node(), id: id(1, 1), base: None, blocks });
    let mut bytes = writer.take();
    bytes.extend(writer.end(root).unwrap());
    let refused = store.receive(&node(), id(1, 1), &mut &bytes[..], description()).unwrap_err();
    assert!(!refused.lacks_base() && format!("{refused:?}").contains("TooLarge"), "{refused:?}");
    // More pages than the guest has, again and again.
    let pages = segment(id(1, 2), None);
    let refused = store.receive(&node(), id(1, 2), &mut &endless(&pages)[..], description()).unwrap_err();
    assert!(format!("{refused:?}").contains("TooLarge"), "{refused:?}");
}

/// The frame with the pages again and again.
fn endless(segment: &[u8]) -> Vec<u8> {
    let length = |at: usize| 21 + u32::from_le_bytes(segment[at + 1..at + 5].try_into().unwrap()) as usize;
    let head_ends = 8 + length(8);
    let frame = &segment[head_ends..head_ends + length(head_ends)];
    [&segment[..head_ends], &frame.repeat(500)].concat()
}
