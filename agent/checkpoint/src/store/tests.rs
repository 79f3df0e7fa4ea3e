//! Power lost, operations failed and bytes changed at every place: a checkpoint is whole or not there.
use std::io::Write as _;

use proptest::prelude::*;
use understudy_core::model::units::{MiB, UnixMillis};

use super::*;
use crate::files::weak_disk::{Fault, WeakDisk};

const ROOT: &str = "/checkpoints";

fn node() -> NodeId {
    "alice/exec-1".parse().unwrap()
}

const fn id(epoch: u64, sequence: u64) -> CheckpointId {
    CheckpointId { epoch: Epoch(epoch), sequence }
}

/// An image that no other checkpoint has, longer than its checked head.
fn image(id: CheckpointId) -> Vec<u8> {
    let text = format!("LibvirtQemudSave {id} ");
    let mut bytes = text.repeat(HEAD_BYTES / text.len() + 100).into_bytes();
    bytes.truncate(HEAD_BYTES + 1_000 + usize::try_from(id.sequence).unwrap());
    bytes
}

fn expected(bytes: &[u8]) -> Expected {
    Expected { bytes: bytes.len() as u64, digest: Digest::of(bytes) }
}

fn description() -> Description {
    Description {
        instance: "11111111-2222-4333-8444-000000000001".parse().unwrap(),
        taken: UnixMillis(1_700_000_000_000),
        pause_ms: 40,
        memory: MiB(128),
        domain: BTreeMap::from([("machine".to_owned(), "pc-q35-10.0".to_owned())]),
    }
}

fn receive(store: &ImageStore, id: CheckpointId) -> Result<Manifest, ReceiveError> {
    let bytes = image(id);
    store.receive(&node(), id, &mut &bytes[..], expected(&bytes), description())
}

fn newest(store: &ImageStore) -> Option<CheckpointId> {
    store.newest_complete(&node()).unwrap().0.map(|image| image.manifest.id)
}

/// What a host was told before its disk failed.
#[derive(Debug, Default)]
struct Acknowledged {
    newest: Option<CheckpointId>,
    epoch: Epoch,
    forgotten: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Receive(CheckpointId),
    Abort(CheckpointId),
    Saw(Epoch),
    Name(CheckpointId),
    DropImages,
    Forget,
}

/// Takes the steps, each as far as the disk lets it.
fn run(disk: &WeakDisk, steps: &[Step]) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    let Ok(store) = ImageStore::open_on(Path::new(ROOT), Box::new(disk.clone())) else { return acknowledged };
    for step in steps {
        match *step {
            Step::Receive(id) => {
                if receive(&store, id).is_ok() {
                    acknowledged.newest = Some(id);
                    acknowledged.epoch = acknowledged.epoch.max(id.epoch);
                }
            }
            Step::Abort(id) => {
                let Ok(mut incoming) = store.begin(&node(), id) else { continue };
                acknowledged.epoch = acknowledged.epoch.max(id.epoch);
                drop(incoming.write_all(&image(id)[..50_000]));
                incoming.abort();
            }
            Step::Saw(epoch) => {
                if store.saw_epoch(&node(), epoch).is_ok() {
                    acknowledged.epoch = acknowledged.epoch.max(epoch);
                }
            }
            Step::Name(id) => store.name(&node(), id),
            // From its beginning on nothing is promised but wholeness.
            Step::DropImages => {
                acknowledged.newest = None;
                drop(store.drop_images(&node()));
            }
            Step::Forget => {
                acknowledged = Acknowledged { forgotten: true, ..Acknowledged::default() };
                drop(store.forget(&node()));
            }
        }
    }
    acknowledged
}

fn script() -> Vec<Step> {
    vec![
        Step::Receive(id(1, 1)),
        Step::Receive(id(1, 2)),
        Step::Abort(id(1, 3)),
        Step::Receive(id(1, 3)),
        Step::Name(id(1, 3)),
        Step::Saw(Epoch(2)),
        Step::Receive(id(1, 4)),
        Step::Receive(id(2, 1)),
        Step::Receive(id(2, 2)),
        Step::DropImages,
        Step::Receive(id(2, 3)),
        Step::Forget,
        Step::Receive(id(1, 1)),
    ]
}

/// Every promise, on a disk as a restarted agent finds it.
fn check(disk: &WeakDisk, acknowledged: &Acknowledged, context: &str) {
    let store = ImageStore::open_on(Path::new(ROOT), Box::new(disk.clone())).unwrap();
    let (found, damaged) = store.newest_complete(&node()).unwrap();
    assert!(damaged.is_empty(), "{context}: {damaged:?}");
    let newest = found.as_ref().map(|image| image.manifest.id);
    assert!(newest >= acknowledged.newest, "{context}: {newest:?} after {acknowledged:?}");
    for id in store.complete(&node()) {
        let found = store.image(&node(), id).unwrap_or_else(|error| panic!("{context}: {error}"));
        store.verify(&found).unwrap();
        let mut bytes = Vec::new();
        disk.open(&found.path).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, image(id), "{context}");
        assert_eq!(found.manifest.description, description(), "{context}");
    }
    assert!(store.seen_epoch(&node()) >= acknowledged.epoch, "{context}");
    if acknowledged.epoch > Epoch(1) && !acknowledged.forgotten {
        let old = store.begin(&node(), id(1, 99)).map(drop);
        assert!(matches!(old, Err(BeginError::OldEpoch { .. })), "{context}: {old:?}");
    }
    for path in disk.paths() {
        let inside = path.parent().and_then(Path::file_name);
        assert!(inside != Some("incoming".as_ref()), "{context}: {} is left over", path.display());
        if let Some(id) = layout::id_of(&path, IMAGE) {
            assert!(store.complete(&node()).contains(&id), "{context}: {} is left over", path.display());
        }
    }
    // And it goes on.
    let next = id(store.seen_epoch(&node()).0.max(1), 1_000);
    receive(&store, next).unwrap();
    assert_eq!(self::newest(&store), Some(next), "{context}");
}

/// How many operations the script takes on a healthy disk.
fn steps_of(script: &[Step]) -> usize {
    let disk = WeakDisk::new(Path::new(ROOT));
    let acknowledged = run(&disk, script);
    assert_eq!(acknowledged.newest, Some(id(1, 1)), "the script runs to its end");
    disk.steps()
}

#[test]
fn power_lost_between_any_two_operations_leaves_no_half_checkpoint_and_loses_no_whole_one() {
    let script = script();
    let steps = steps_of(&script);
    assert!(steps > 100, "{steps}");
    for step in 0..=steps {
        let disk = WeakDisk::new(Path::new(ROOT));
        disk.fail_at(step, Fault::PowerLost);
        let acknowledged = run(&disk, &script);
        for seed in 0..12 {
            check(
                &disk.after_power_loss(seed),
                &acknowledged,
                &format!("power lost at step {step}, outcome {seed}"),
            );
        }
    }
}

#[test]
fn an_operation_that_fails_once_costs_at_most_its_own_checkpoint() {
    let script = script();
    for step in 0..=steps_of(&script) {
        let disk = WeakDisk::new(Path::new(ROOT));
        disk.fail_at(step, Fault::Once);
        let acknowledged = run(&disk, &script);
        check(&disk.after_power_loss(1), &acknowledged, &format!("step {step} failed"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_order_of_steps_survives_any_loss_of_power(
        choices in prop::collection::vec((0_u8..12, 1_u64..4, 1_u64..6), 1..14),
        step in 0_usize..180,
        seed in any::<u64>(),
    ) {
        let script: Vec<Step> = choices.into_iter().map(|(kind, epoch, sequence)| match kind {
            0..7 => Step::Receive(id(epoch, sequence)),
            7 => Step::Abort(id(epoch, sequence)),
            8 => Step::Saw(Epoch(epoch)),
            9 => Step::Name(id(epoch, sequence)),
            10 => Step::DropImages,
            _ => Step::Forget,
        }).collect();
        let disk = WeakDisk::new(Path::new(ROOT));
        disk.fail_at(step, Fault::PowerLost);
        let acknowledged = run(&disk, &script);
        check(&disk.after_power_loss(seed), &acknowledged, &format!("{script:?}"));
    }
}

proptest! {
    // On a real disk, whose syncs cost time.
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_cut_or_changed_newest_is_reported_and_the_older_is_used(
        kind in 0_u8..4,
        at in 0_usize..HEAD_BYTES,
        bit in 0_u8..8,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(folder.path()).unwrap();
        receive(&store, id(1, 1)).unwrap();
        receive(&store, id(1, 2)).unwrap();
        let path = layout::file(folder.path(), &node(), id(1, 2), if kind < 2 { IMAGE } else { MANIFEST });
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at % bytes.len();
        match kind {
            0 | 2 => bytes.truncate(at),
            _ => bytes[at] ^= 1 << bit,
        }
        std::fs::write(&path, bytes).unwrap();
        let store = ImageStore::open(folder.path()).unwrap();
        let (found, damaged) = store.newest_complete(&node()).unwrap();
        let harmless = found.as_ref().is_some_and(|image| image.manifest.id == id(1, 2));
        if harmless {
            // Only white space of a manifest may change, or be cut at its end, without harm.
            prop_assert!(kind >= 2);
            let image = found.unwrap();
            prop_assert_eq!(&image.manifest.description, &description());
            store.verify(&image).unwrap();
        } else {
            prop_assert_eq!(found.unwrap().manifest.id, id(1, 1));
            prop_assert_eq!(damaged.len(), 1);
            // And the host goes on: the damaged one's name is not used again.
            receive(&store, id(1, 3)).unwrap();
            prop_assert_eq!(newest(&store), Some(id(1, 3)));
        }
    }
}

#[test]
fn what_arrives_changed_short_or_long_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    let bytes = image(id(1, 1));
    let mut changed = bytes.clone();
    changed[HEAD_BYTES + 10] ^= 1;
    let long: Vec<u8> = bytes.iter().copied().chain([0]).collect();
    for (name, arrived) in
        [("changed", &changed[..]), ("short", &bytes[1..]), ("long", &long), ("empty", &[])]
    {
        let outcome = store.receive(&node(), id(1, 1), &mut &arrived[..], expected(&bytes), description());
        let Err(ReceiveError::Finish(error)) = outcome else { panic!("{name}: {outcome:?}") };
        assert_eq!(matches!(error, FinishError::Digest { .. }), name == "changed", "{name}: {error}");
        assert_eq!(newest(&store), None, "{name}");
        assert_eq!(std::fs::read_dir(layout::incoming(folder.path())).unwrap().count(), 0, "{name}");
    }
    receive(&store, id(1, 1)).unwrap();
    assert_eq!(newest(&store), Some(id(1, 1)));
}

#[test]
fn a_change_beyond_the_head_is_found_by_verification() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(1, 1)).unwrap();
    let path = layout::file(folder.path(), &node(), id(1, 1), IMAGE);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[HEAD_BYTES + 10] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let image = store.image(&node(), id(1, 1)).unwrap();
    assert!(matches!(store.verify(&image), Err(ImageError::Damaged(_, _, Damage::Content))));
}

#[test]
fn older_epochs_and_repeated_checkpoints_are_refused_also_on_their_way_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(3, 7)).unwrap();
    for again in [id(3, 7), id(3, 1)] {
        let refused = store.begin(&node(), again);
        assert!(matches!(refused, Err(BeginError::NotNewer { newest, .. }) if newest == id(3, 7)));
    }
    let mut on_its_way = store.begin(&node(), id(3, 8)).unwrap();
    let mut overtaken = store.begin(&node(), id(5, 1)).unwrap();
    // A later beginning raised the epoch: what was on its way belongs to a primary that is none any more.
    on_its_way.write_all(&image(id(3, 8))).unwrap();
    let refused = on_its_way.finish(expected(&image(id(3, 8))), description());
    assert!(matches!(refused, Err(FinishError::OldEpoch { seen: Epoch(5), .. })), "{refused:?}");
    receive(&store, id(5, 2)).unwrap();
    overtaken.write_all(&image(id(5, 1))).unwrap();
    let refused = overtaken.finish(expected(&image(id(5, 1))), description());
    assert!(matches!(refused, Err(FinishError::NotNewer { .. })), "{refused:?}");
    store.drop_images(&node()).unwrap();
    drop(store);
    let store = ImageStore::open(folder.path()).unwrap();
    assert_eq!((store.seen_epoch(&node()), newest(&store)), (Epoch(5), None));
    assert!(matches!(store.begin(&node(), id(4, 1)), Err(BeginError::OldEpoch { .. })));
    store.forget(&node()).unwrap();
    assert!(store.nodes().is_empty());
    receive(&store, id(1, 1)).unwrap();
}

/// What is newer than the named one may be named by a write that is on its way (SAFE-3).
#[test]
fn two_generations_are_kept_and_the_named_one_and_what_is_newer() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    for sequence in 1..=4 {
        receive(&store, id(1, sequence)).unwrap();
    }
    assert_eq!(store.complete(&node()), [1, 2, 3, 4].map(|sequence| id(1, sequence)), "any may be named");
    store.name(&node(), id(1, 3));
    assert_eq!(store.prune(&node()).unwrap(), 2);
    for sequence in 5..=7 {
        receive(&store, id(1, sequence)).unwrap();
    }
    assert_eq!(store.complete(&node()), [3, 4, 5, 6, 7].map(|sequence| id(1, sequence)));
    store.name(&node(), id(1, 5));
    store.prune(&node()).unwrap();
    assert_eq!(store.complete(&node()), [5, 6, 7].map(|sequence| id(1, sequence)));
    for sequence in 8..=14 {
        receive(&store, id(1, sequence)).unwrap();
    }
    assert_eq!(store.complete(&node()).len(), NEWER + 1, "not without a bound");
    store.name(&node(), id(1, 7));
    store.name(&node(), id(1, 14));
    store.prune(&node()).unwrap();
    assert_eq!(store.complete(&node()), [id(1, 13), id(1, 14)]);
    drop(store);
    let store = ImageStore::open(folder.path()).unwrap();
    store.drop_images(&node()).unwrap();
    for sequence in [3, 6, 7] {
        receive(&store, id(2, sequence)).unwrap();
    }
    drop(store);
    // Which one is named is not known yet: nothing that was found goes.
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(2, 8)).unwrap();
    assert_eq!(store.complete(&node()), [id(2, 3), id(2, 6), id(2, 7), id(2, 8)]);
    store.name(&node(), id(2, 8));
    assert_eq!(store.prune(&node()).unwrap(), 2);
    assert_eq!(store.complete(&node()), [id(2, 7), id(2, 8)]);
    let files = std::fs::read_dir(layout::node(folder.path(), &node())).unwrap().count();
    assert_eq!(files, 5, "two images, two manifests, one epoch");
}

#[test]
fn scratch_files_go_with_their_owner_or_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    let scratch = store.scratch();
    std::fs::write(scratch.path(), "passing").unwrap();
    let path = scratch.path().to_owned();
    drop(scratch);
    assert!(!path.exists());
    let kept = store.scratch();
    std::fs::write(kept.path(), "passing").unwrap();
    let path = kept.path().to_owned();
    std::mem::forget(kept);
    ImageStore::open(folder.path()).unwrap();
    assert!(!path.exists());
}

#[test]
fn an_unreadable_epoch_is_an_error_and_not_epoch_zero() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(3, 7)).unwrap();
    let path = layout::node(folder.path(), &node()).join(EPOCH);
    std::fs::write(&path, "three").unwrap();
    assert!(matches!(ImageStore::open(folder.path()), Err(StoreError::Epoch(file)) if file == path));
    // It costs this node new copies, and nobody anything else.
    let (store, faults) = ImageStore::open_as_it_is(folder.path());
    assert!(matches!(faults.as_slice(), [StoreError::Epoch(file)] if *file == path), "{faults:?}");
    assert_eq!(newest(&store), Some(id(3, 7)));
    assert!(store.image(&node(), id(3, 7)).is_ok());
    let refused = store.begin(&node(), id(4, 1)).err();
    assert!(
        matches!(&refused, Some(BeginError::Store(StoreError::Epoch(file))) if *file == path),
        "{refused:?}"
    );
    let other: NodeId = "bob/exec-1".parse().unwrap();
    assert!(store.begin(&other, id(1, 1)).is_ok());
    // Removed with its checkpoints, as its text says: it begins anew.
    store.forget(&node()).unwrap();
    assert!(store.begin(&node(), id(4, 1)).is_ok());
}

/// A file in the folder's place: as with a disk that is mounted read-only, nothing can be made there.
#[test]
fn a_folder_that_cannot_be_made_is_open_and_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("checkpoints");
    std::fs::write(&root, "").unwrap();
    assert!(ImageStore::open(&root).is_err());
    let (store, faults) = ImageStore::open_as_it_is(&root);
    assert!(!faults.is_empty());
    assert_eq!(newest(&store), None);
    assert!(store.begin(&node(), id(1, 1)).is_err());
}
