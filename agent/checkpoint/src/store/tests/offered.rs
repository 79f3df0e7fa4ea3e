//! What a host says that it has of a node.
use std::time::Duration;

use understudy_core::model::records::{Checkpoint, Kept};

use super::*;

fn offered(store: &ImageStore) -> Vec<CheckpointId> {
    store.kept(&node()).complete.iter().map(|copy| copy.id).collect()
}

/// Changes a byte of a file of the node's.
fn change(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_complete_is_offered_as_its_sender_described_it_also_after_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    assert_eq!(store.kept(&node()), Kept::default(), "nobody has heard of it");
    receive(&store, id(1, 1)).unwrap();
    add(&store, id(1, 2), Some(id(1, 1))).unwrap();
    let Description { taken, instance, pause_ms, .. } = description();
    let all = [id(1, 1), id(1, 2)].map(|id| Checkpoint { id, taken, instance, pause_ms });
    let expected = Kept { complete: all.to_vec(), ..Kept::default() };
    assert_eq!(store.kept(&node()), expected);
    drop(store);
    let store = ImageStore::open(folder.path()).unwrap();
    assert_eq!(store.kept(&node()), expected);
    // The disk is not looked at for it.
    std::fs::remove_dir_all(layout::node(folder.path(), &node())).unwrap();
    assert_eq!(store.kept(&node()), expected);
}

/// SAFE-3. One that has come since does not make good what lies here.
#[test]
fn what_was_found_damaged_and_what_adds_to_it_is_not_offered() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(1, 1)).unwrap();
    add(&store, id(1, 2), Some(id(1, 1))).unwrap();
    // Nothing shows yet; then it is found in what both consist of, by whoever reads one of them.
    change(&layout::segment(folder.path(), &node(), id(1, 1), None));
    assert_eq!(offered(&store), [id(1, 1), id(1, 2)]);
    store.verify(&node(), id(1, 2)).unwrap_err();
    assert_eq!(offered(&store), []);
    receive(&store, id(1, 3)).unwrap();
    assert_eq!((store.complete(&node()).len(), store.damaged().len()), (3, 0));
    assert_eq!(offered(&store), [id(1, 3)]);
    // Another damage does not make good the first one.
    add(&store, id(1, 4), Some(id(1, 3))).unwrap();
    change(&layout::segment(folder.path(), &node(), id(1, 4), Some(id(1, 3))));
    store.verify(&node(), id(1, 4)).unwrap_err();
    assert_eq!(offered(&store), [id(1, 3)]);
    // What is gone does not count against what comes in its place.
    store.drop_images(&node()).unwrap();
    receive(&store, id(1, 4)).unwrap();
    assert_eq!(offered(&store), [id(1, 4)]);
}

#[test]
fn what_has_no_manifest_that_can_be_read_is_not_offered_nor_is_what_adds_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(1, 1)).unwrap();
    for sequence in 2..=3 {
        add(&store, id(1, sequence), Some(id(1, sequence - 1))).unwrap();
    }
    drop(store);
    std::fs::write(layout::manifest(folder.path(), &node(), id(1, 2)), "none").unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    assert_eq!(offered(&store), [id(1, 1)]);
}

#[test]
fn one_that_is_on_its_way_is_told_until_it_is_complete_or_has_failed() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    let arriving = || store.kept(&node()).arriving;
    receive(&store, id(1, 1)).unwrap();
    assert!(!arriving());
    let other: NodeId = "bob/exec-1".parse().unwrap();
    let of_another = store.begin(&other, id(1, 1), &description()).unwrap();
    assert!(!arriving());
    let [first, second] =
        [2, 3].map(|sequence| store.begin(&node(), id(1, sequence), &description()).unwrap());
    assert!(arriving());
    drop((of_another, first));
    assert!(arriving(), "the second is");
    second.finish(description()).unwrap_err();
    assert!(!arriving());
    let mut whole = store.begin(&node(), id(1, 4), &description()).unwrap();
    whole.take(&segment(id(1, 4), None)).unwrap();
    assert!(arriving());
    whole.finish(description()).unwrap();
    assert!(!arriving() && offered(&store) == [id(1, 1), id(1, 4)]);
}

/// A leader decides by what was said: nothing that begins to come afterwards may make it untrue.
#[test]
fn what_was_said_of_a_dead_primarys_checkpoints_stays_true() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(1, 1)).unwrap();
    let on_its_way = store.begin(&node(), id(1, 2), &description()).unwrap();
    let hour = Duration::from_secs(3_600);
    let of = (description().instance, Epoch(1));
    let said = store.close(&node(), of, hour);
    assert_eq!((said.complete.len(), said.arriving), (1, true));
    let refused = store.begin(&node(), id(1, 3), &description()).err().unwrap();
    assert!(matches!(&refused, ReceiveError::Begin(BeginError::Closed { .. })), "{refused:?}");
    drop(on_its_way);
    assert!(!store.kept(&node()).arriving, "what was refused never was on its way");
    // Another life, a later epoch, another node.
    let another =
        Description { instance: "11111111-2222-4333-8444-000000000002".parse().unwrap(), ..description() };
    assert!(store.begin(&node(), id(1, 3), &another).is_ok());
    assert!(store.begin(&node(), id(2, 1), &description()).is_ok());
    assert!(store.begin(&"bob/exec-1".parse().unwrap(), id(1, 1), &description()).is_ok());
    // It is not for ever, where the primary lives after all.
    let _ = store.close(&node(), (of.0, Epoch(9)), Duration::ZERO);
    assert!(store.begin(&node(), id(2, 2), &description()).is_ok());
}

/// An error of the disk is no word on what lies there, at the start no more than later.
#[test]
fn what_cannot_be_read_is_said_to_be_and_is_looked_at_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(1, 1)).unwrap();
    drop(store);
    let (manifest, aside) = (layout::manifest(folder.path(), &node(), id(1, 1)), folder.path().join("aside"));
    std::fs::rename(&manifest, &aside).unwrap();
    std::fs::create_dir(&manifest).unwrap();
    let (store, faults) = ImageStore::open_as_it_is(folder.path());
    assert_eq!((faults.len(), store.kept(&node())), (1, Kept { unsure: true, ..Kept::default() }));
    store.look_again(&node()).unwrap_err();
    assert!(store.kept(&node()).unsure);
    std::fs::remove_dir(&manifest).unwrap();
    std::fs::rename(&aside, &manifest).unwrap();
    store.look_again(&node()).unwrap();
    let kept = store.kept(&node());
    assert_eq!((kept.unsure, kept.complete.len()), (false, 1));
    store.verify(&node(), id(1, 1)).unwrap();
    // Of a node that was never here too nothing is known where not even their names can be read.
    let nodes = layout::nodes(folder.path());
    std::fs::rename(&nodes, &aside).unwrap();
    std::fs::write(&nodes, "no folder").unwrap();
    let (store, _) = ImageStore::open_as_it_is(folder.path());
    assert!(store.kept(&node()).unsure);
    std::fs::remove_file(&nodes).unwrap();
    std::fs::rename(&aside, &nodes).unwrap();
    let other = "bob/exec-1".parse().unwrap();
    for node in [&node(), &other] {
        store.look_again(node).unwrap();
        assert!(!store.kept(node).unsure);
    }
    assert_eq!((offered(&store), store.kept(&other)), (vec![id(1, 1)], Kept::default()));
}

/// A node was deleted and made anew under the same name while this host was away.
#[test]
fn what_is_of_another_instance_is_no_bound_and_goes_with_the_first_of_this_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(7, 9)).unwrap();
    let instance = "11111111-2222-4333-8444-000000000002".parse().unwrap();
    let another = Description { instance, ..description() };
    for sequence in [1, 2] {
        let segment = segment(id(1, sequence), None);
        store.receive(&node(), id(1, sequence), &mut &segment[..], another.clone()).unwrap();
    }
    assert_eq!((offered(&store), store.seen_epoch(&node())), (vec![id(1, 1), id(1, 2)], Epoch(1)));
    let segment = segment(id(1, 2), None);
    let again = store.receive(&node(), id(1, 2), &mut &segment[..], another).unwrap_err();
    assert!(matches!(again, ReceiveError::Begin(BeginError::NotNewer { .. })), "{again:?}");
    drop(store);
    let store = ImageStore::open(folder.path()).unwrap();
    assert_eq!((offered(&store), store.seen_epoch(&node())), (vec![id(1, 1), id(1, 2)], Epoch(1)));
}

/// Whoever asks is in the way of a failover.
#[test]
fn what_is_said_does_not_wait_for_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(1, 1)).unwrap();
    let writing = store.shared.lock();
    let asking = store.clone();
    let asked =
        std::thread::spawn(move || asking.close(&node(), (description().instance, Epoch(1)), Duration::ZERO));
    assert_eq!(asked.join().unwrap().complete.len(), 1);
    drop(writing);
}
