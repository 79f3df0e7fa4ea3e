//! Power lost, operations failed and bytes changed at every place: a checkpoint is whole or not there.

mod chains;
mod offered;

use std::io;

use proptest::prelude::*;
use understudy_core::model::units::{MiB, UnixMillis};

use super::*;
use crate::files::weak_disk::{Fault, WeakDisk};
use crate::manifest::Damage;
use crate::pages::{Blocks, Head, PageDigest, PageKey, PageSink, SegmentWriter, read_back};
use crate::stream::{Block, PAGE_BYTES as PAGE};

const ROOT: &str = "/checkpoints";
const PAGES: u32 = 12;

type Page = [u8; PAGE];

fn node() -> NodeId {
    "alice/exec-1".parse().unwrap()
}

const fn id(epoch: u64, sequence: u64) -> CheckpointId {
    CheckpointId { epoch: Epoch(epoch), sequence }
}

/// Memory that no other checkpoint has: most of it is as in all of the epoch, some pages are its own.
fn memory(id: CheckpointId) -> Vec<Page> {
    let page = |of: String| {
        let mut page = [0; PAGE];
        blake3::Hasher::new().update(of.as_bytes()).finalize_xof().fill(&mut page);
        page
    };
    let own = |number: u32| number == 0 || u64::from(number) == 1 + id.sequence % u64::from(PAGES - 1);
    (0..PAGES)
        .map(|number| {
            page(if own(number) { format!("{number} {id}") } else { format!("{number} {}", id.epoch) })
        })
        .collect()
}

fn rest(id: CheckpointId) -> Vec<u8> {
    format!("devices of {id}").into_bytes()
}

/// What a sender sends of a checkpoint to a host that has another, or nothing.
fn segment(id: CheckpointId, base: Option<CheckpointId>) -> Vec<u8> {
    let blocks =
        Blocks::new(vec![Block { name: "pc.ram".to_owned(), bytes: u64::from(PAGES) * PAGE as u64 }]);
    let blocks = blocks.unwrap();
    let mut writer = SegmentWriter::new(&Head { node: node(), id, base, blocks: blocks.clone() });
    let (pages, before) = (memory(id), base.map(memory));
    for (number, page) in (0..).zip(&pages) {
        if before.as_ref().is_none_or(|before| before[number as usize] != *page) {
            writer.page(PageKey { block: 0, page: number }, PageDigest::of(page), page).unwrap();
        }
    }
    writer.state(&rest(id)).unwrap();
    let mut bytes = writer.take();
    bytes.extend(writer.end(blocks.root(pages.iter().map(|page| PageDigest::of(page)))).unwrap());
    bytes
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
    add(store, id, None)
}

fn add(store: &ImageStore, id: CheckpointId, base: Option<CheckpointId>) -> Result<Manifest, ReceiveError> {
    store.receive(&node(), id, &mut &segment(id, base)[..], description())
}

fn newest(store: &ImageStore) -> Option<CheckpointId> {
    store.newest_complete(&node()).unwrap().0.map(|manifest| manifest.id)
}

struct Memory(Vec<Page>);

impl PageSink for Memory {
    fn page(&mut self, key: PageKey, bytes: &Page) -> io::Result<()> {
        self.0[key.page as usize] = *bytes;
        Ok(())
    }
}

/// What a restore reads is what was sent.
fn check_state(store: &ImageStore, id: CheckpointId) -> Result<(), ImageError> {
    let (receiver, chain) = store.replayed(&node(), id)?;
    let mut read = Memory(vec![[0; PAGE]; PAGES as usize]);
    read_back(&receiver, |number| store.segment(&node(), &chain[number as usize]), &mut read).unwrap();
    assert!(read.0 == memory(id) && receiver.rest() == rest(id), "{id}");
    Ok(())
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
    Compact,
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
                let mut received = add(&store, id, acknowledged.newest);
                if received.as_ref().is_err_and(ReceiveError::lacks_base) {
                    received = receive(&store, id);
                }
                if received.is_ok() {
                    acknowledged.newest = Some(id);
                    acknowledged.epoch = acknowledged.epoch.max(id.epoch);
                }
            }
            Step::Abort(id) => {
                let Ok(mut incoming) = store.begin(&node(), id, &description()) else { continue };
                acknowledged.epoch = acknowledged.epoch.max(id.epoch);
                drop(incoming.take(&segment(id, None)[..5_000]));
            }
            Step::Saw(epoch) => {
                if store.saw_epoch(&node(), epoch).is_ok() {
                    acknowledged.epoch = acknowledged.epoch.max(epoch);
                }
            }
            Step::Name(id) => store.name(&node(), Some(id)),
            Step::Compact => drop(store.compact(&node())),
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
        Step::Receive(id(1, 5)),
        Step::Name(id(1, 5)),
        Step::Receive(id(1, 6)),
        Step::Compact,
        Step::Receive(id(1, 7)),
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
    let newest = found.as_ref().map(|manifest| manifest.id);
    assert!(newest >= acknowledged.newest, "{context}: {newest:?} after {acknowledged:?}");
    for id in store.complete(&node()) {
        let found = store.checkpoint(&node(), id).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        check_state(&store, id).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        assert_eq!(found.description, description(), "{context}");
    }
    assert!(store.seen_epoch(&node()) >= acknowledged.epoch, "{context}");
    if acknowledged.epoch > Epoch(1) && !acknowledged.forgotten {
        let old = store.begin(&node(), id(1, 99), &description()).map(drop);
        assert!(matches!(old, Err(ReceiveError::Begin(BeginError::OldEpoch { .. }))), "{context}: {old:?}");
    }
    for path in disk.paths() {
        let inside = path.parent().and_then(Path::file_name);
        assert!(inside != Some("incoming".as_ref()), "{context}: {} is left over", path.display());
        if let Some((id, base)) = layout::segment_of(&path) {
            let found = store.checkpoint(&node(), id);
            assert!(
                found.is_ok_and(|found| found.base == base),
                "{context}: {} is left over",
                path.display()
            );
        }
    }
    // And it goes on.
    let next = id(store.seen_epoch(&node()).0.max(1), 1_000);
    add(&store, next, newest).unwrap();
    assert_eq!(self::newest(&store), Some(next), "{context}");
    check_state(&store, next).unwrap();
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
        choices in prop::collection::vec((0_u8..13, 1_u64..4, 1_u64..6), 1..14),
        step in 0_usize..180,
        seed in any::<u64>(),
    ) {
        let script: Vec<Step> = choices.into_iter().map(|(kind, epoch, sequence)| match kind {
            0..7 => Step::Receive(id(epoch, sequence)),
            7 => Step::Abort(id(epoch, sequence)),
            8 => Step::Saw(Epoch(epoch)),
            9 => Step::Name(id(epoch, sequence)),
            10 => Step::DropImages,
            11 => Step::Compact,
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
        at in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(folder.path()).unwrap();
        receive(&store, id(1, 1)).unwrap();
        add(&store, id(1, 2), Some(id(1, 1))).unwrap();
        let path = match kind {
            0 | 1 => layout::segment(folder.path(), &node(), id(1, 2), Some(id(1, 1))),
            _ => layout::manifest(folder.path(), &node(), id(1, 2)),
        };
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        match kind {
            0 | 2 => bytes.truncate(at),
            _ => bytes[at] ^= 1 << bit,
        }
        std::fs::write(&path, bytes).unwrap();
        let store = ImageStore::open(folder.path()).unwrap();
        let (found, damaged) = store.newest_complete(&node()).unwrap();
        let found = found.unwrap();
        if found.id == id(1, 2) {
            // A look does not read segments. And only white space of a manifest may change, or be cut, without harm.
            prop_assert_eq!(&found.description, &description());
            prop_assert!(kind != 0 && damaged.is_empty());
            match check_state(&store, id(1, 2)) {
                Ok(()) => prop_assert!(kind >= 2),
                Err(ImageError::Damaged(_, _, Damage::Content { segment, .. })) => {
                    prop_assert!(kind == 1 && segment == "1.2+1.1.pages");
                }
                Err(error) => prop_assert!(false, "{error:?}"),
            }
        } else {
            prop_assert_eq!((found.id, damaged.len()), (id(1, 1), 1));
        }
        check_state(&store, id(1, 1)).unwrap();
        // And the host goes on: the damaged one's name is not used again, and what adds to it is refused.
        let damaged = check_state(&store, id(1, 2)).is_err();
        let added = add(&store, id(1, 3), Some(id(1, 2)));
        prop_assert_eq!(added.as_ref().is_err_and(ReceiveError::lacks_base), damaged, "{:?}", added);
        if damaged {
            receive(&store, id(1, 3)).unwrap();
        }
        prop_assert_eq!(newest(&store), Some(id(1, 3)));
        check_state(&store, id(1, 3)).unwrap();
    }
}

#[test]
fn what_arrives_changed_short_or_long_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    let bytes = segment(id(1, 1), None);
    let mut changed = bytes.clone();
    changed[1_000] ^= 1;
    let long: Vec<u8> = bytes.iter().copied().chain([0]).collect();
    let other = segment(id(1, 2), None);
    for (name, arrived) in [
        ("changed", &changed[..]),
        ("short", &bytes[..bytes.len() - 1]),
        ("without an end", &bytes[..bytes.len() - 170]),
        ("long", &long),
        ("empty", &[]),
        ("another", &other),
    ] {
        let error = store.receive(&node(), id(1, 1), &mut &arrived[..], description()).unwrap_err();
        let is_other = matches!(error, ReceiveError::Other { .. });
        assert!(is_other == (name == "another") && !error.lacks_base(), "{name}: {error:?}");
        assert_eq!(newest(&store), None, "{name}");
        assert_eq!(std::fs::read_dir(layout::incoming(folder.path())).unwrap().count(), 0, "{name}");
    }
    receive(&store, id(1, 1)).unwrap();
    assert_eq!(newest(&store), Some(id(1, 1)));
}

#[test]
fn older_epochs_and_repeated_checkpoints_are_refused_also_on_their_way_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    receive(&store, id(3, 7)).unwrap();
    for again in [id(3, 7), id(3, 1)] {
        let refused = store.begin(&node(), again, &description());
        let refused = refused.err();
        assert!(
            matches!(&refused, Some(ReceiveError::Begin(BeginError::NotNewer { newest, .. })) if *newest == id(3, 7)),
            "{refused:?}"
        );
    }
    let mut on_its_way = store.begin(&node(), id(3, 8), &description()).unwrap();
    let mut overtaken = store.begin(&node(), id(5, 1), &description()).unwrap();
    // A later beginning raised the epoch: what was on its way belongs to a primary that is none any more.
    on_its_way.take(&segment(id(3, 8), None)).unwrap();
    let refused = on_its_way.finish(description());
    let is_old = matches!(refused, Err(ReceiveError::Begin(BeginError::OldEpoch { seen: Epoch(5), .. })));
    assert!(is_old, "{refused:?}");
    receive(&store, id(5, 2)).unwrap();
    overtaken.take(&segment(id(5, 1), None)).unwrap();
    let refused = overtaken.finish(description());
    assert!(matches!(refused, Err(ReceiveError::Begin(BeginError::NotNewer { .. }))), "{refused:?}");
    store.drop_images(&node()).unwrap();
    drop(store);
    let store = ImageStore::open(folder.path()).unwrap();
    assert_eq!((store.seen_epoch(&node()), newest(&store)), (Epoch(5), None));
    let refused = store.begin(&node(), id(4, 1), &description()).err();
    assert!(matches!(refused, Some(ReceiveError::Begin(BeginError::OldEpoch { .. }))), "{refused:?}");
    store.forget(&node()).unwrap();
    assert!(store.nodes().is_empty());
    receive(&store, id(1, 1)).unwrap();
}

#[test]
fn two_generations_are_kept_and_the_one_that_is_being_restored() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    let complete =
        |store: &ImageStore| -> Vec<u64> { store.complete(&node()).iter().map(|id| id.sequence).collect() };
    for sequence in 1..=4 {
        receive(&store, id(1, sequence)).unwrap();
    }
    assert_eq!(complete(&store), [3, 4]);
    store.name(&node(), Some(id(1, 3)));
    for sequence in 5..=7 {
        receive(&store, id(1, sequence)).unwrap();
    }
    assert_eq!((complete(&store), store.wanted(&node())), (vec![3, 6, 7], Some(id(1, 3))));
    store.name(&node(), Some(id(1, 6)));
    assert_eq!((store.prune(&node()).unwrap(), complete(&store)), (1, vec![6, 7]));
    store.name(&node(), None);
    receive(&store, id(1, 8)).unwrap();
    assert_eq!((complete(&store), store.wanted(&node())), (vec![7, 8], Some(id(1, 8))));
    // What is not here is asked for by nobody.
    store.name(&node(), Some(id(1, 6)));
    assert_eq!(store.wanted(&node()), Some(id(1, 8)));
    drop(store);
    // Nothing is being restored until somebody says so.
    let store = ImageStore::open(folder.path()).unwrap();
    assert_eq!(store.wanted(&node()), Some(id(1, 8)));
    receive(&store, id(1, 9)).unwrap();
    assert_eq!(complete(&store), [8, 9]);
    let files = std::fs::read_dir(layout::node(folder.path(), &node())).unwrap().count();
    assert_eq!(files, 5, "two segments, two manifests, one epoch");
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
    assert!(store.checkpoint(&node(), id(3, 7)).is_ok());
    let refused = store.begin(&node(), id(4, 1), &description()).err();
    assert!(
        matches!(&refused, Some(ReceiveError::Begin(BeginError::Store(StoreError::Epoch(file)))) if *file == path),
        "{refused:?}"
    );
    let other: NodeId = "bob/exec-1".parse().unwrap();
    assert!(store.begin(&other, id(1, 1), &description()).is_ok());
    // Removed with its checkpoints, as its text says: it begins anew.
    store.forget(&node()).unwrap();
    assert!(store.begin(&node(), id(4, 1), &description()).is_ok());
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
    assert!(store.begin(&node(), id(1, 1), &description()).is_err());
}
