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
    let mut stands = store.begin(&node(), id(1, 2)).unwrap();
    let bytes = segment(id(1, 2), Some(id(1, 1)));
    stands.take(&bytes[..bytes.len() - 10]).unwrap();
    add(&store, id(1, 3), Some(id(1, 1))).unwrap();
    stands.take(&bytes[bytes.len() - 10..]).unwrap();
    let refused = stands.finish(description()).unwrap_err();
    assert!(refused.lacks_base(), "{refused:?}");
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
        store.name(&node(), id(1, sequence));
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
        store.name(&node(), id(2, next));
        store.prune(&node()).unwrap();
    }
    assert!(store.compact(&node()).unwrap());
    drop(store);
    let store = ImageStore::open(folder.path()).unwrap();
    assert!(store.complete(&node()).len() <= 3, "{:?}", store.complete(&node()));
    check_state(&store, id(2, 40)).unwrap();
}
