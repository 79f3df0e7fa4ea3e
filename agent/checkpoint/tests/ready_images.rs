//! The images that are kept ready of the checkpoints that lie here: the one that is asked for or none, within a budget.

#[path = "common/chain.rs"]
mod chain;
mod common;

use std::fs;
use std::path::Path;

use chain::{Chain, id, node};
use common::{BLOCKS, DESCRIPTION, configuration, devices, fill, head, normal, section, start};
use understudy_checkpoint::{Damage, Description, ImageError, ImageStore, ReadyImages, SaveImage};
use understudy_core::model::ids::NodeId;
use understudy_core::model::records::CheckpointId;
use understudy_core::model::units::{MiB, UnixMillis};

/// The image of a guest, one page of which each has for itself.
fn image(number: u8) -> Vec<u8> {
    let [ram, rom, table] = BLOCKS.map(|(name, _)| name);
    let mut pages = vec![normal(Some(ram), 0, number), normal(None, 4096, 1)];
    pages.extend((2..5).map(|page| fill(None, page * 4096, 0)));
    pages.extend([normal(Some(rom), 0, 2), normal(None, 4096, 3), normal(Some(table), 0, 4)]);
    let stream =
        [head(), configuration(), start(&BLOCKS), section(2, &pages), section(3, &[]), devices(DESCRIPTION)];
    let header = SaveImage { xml: "<domain/>".to_owned(), cookie: None, was_running: true, padding: 64 };
    [header.encode().expect("a header"), stream.concat()].concat()
}

fn description() -> Description {
    Description {
        instance: "11111111-2222-4333-8444-000000000001".parse().expect("an instance"),
        taken: UnixMillis(1),
        pause_ms: 1,
        memory: MiB(1),
        domain: Default::default(),
    }
}

struct Rig {
    _folder: tempfile::TempDir,
    store: ImageStore,
    ready: ReadyImages,
    sender: Chain,
}

impl Rig {
    fn new(budget: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = ImageStore::open(&folder.path().join("store")).expect("a store");
        let ready = ReadyImages::open(store.clone(), &folder.path().join("ready"), budget).expect("ready");
        Self { _folder: folder, store, ready, sender: Chain::default() }
    }

    fn folder(&self) -> &Path {
        self._folder.path()
    }

    fn files(&self) -> usize {
        fs::read_dir(self.folder().join("ready")).expect("a folder").count()
    }

    /// The next checkpoint comes.
    fn receive(&mut self) -> CheckpointId {
        let of = id(self.sender.segments.len() as u64 + 1);
        let segment = self.sender.add(&image(u8::try_from(of.sequence).expect("few")));
        self.store.receive(&node(), of, &mut &segment[..], description()).expect("a checkpoint");
        of
    }

    /// What is restored of a checkpoint is what it is.
    fn restores(&self, id: CheckpointId) -> bool {
        let image = self.ready.take(&node(), id).expect("an image");
        self.ready.compare(&image).expect("it is right");
        let bytes = fs::read(image.path()).expect("a file");
        let page = [&(0_u64.to_be_bytes())[..], &[u8::try_from(id.sequence).expect("few"); 4088]].concat();
        assert!(bytes.windows(page.len()).any(|window| window == page), "{id}");
        image.was_ready()
    }
}

#[test]
fn the_newest_is_ready_and_an_older_one_is_made_when_it_is_asked_for() {
    let mut rig = Rig::new(1 << 20);
    let first = rig.receive();
    rig.ready.refresh(&node()).expect("ready");
    for _ in 0..3 {
        rig.receive();
        rig.ready.refresh(&node()).expect("ready");
    }
    let newest = id(4);
    assert!(rig.restores(newest), "it was ready");
    assert_eq!(rig.files(), 0, "the file went with the restore");
    assert!(!rig.restores(newest) && !rig.restores(first), "they are made");
    // Several came since: all of them are in the next.
    rig.ready.refresh(&node()).expect("ready");
    rig.receive();
    rig.receive();
    rig.ready.refresh(&node()).expect("ready");
    assert!(rig.restores(id(6)));
    // Another that is asked for costs the one that is ready nothing.
    rig.ready.refresh(&node()).expect("ready");
    assert!(!rig.restores(id(5)) && rig.files() == 1);
    // What was not used is ready again.
    let unused = rig.ready.take(&node(), id(6)).expect("an image");
    assert!(unused.was_ready());
    rig.ready.give_back(unused);
    assert!(rig.restores(id(6)));
    rig.ready.refresh(&node()).expect("ready");
    rig.store.drop_images(&node()).expect("dropped");
    rig.ready.refresh(&node()).expect("nothing");
    assert_eq!(rig.files(), 0);
    let unknown = rig.ready.take(&node(), id(6)).expect_err("it is gone");
    assert!(matches!(unknown, ImageError::Unknown(..)), "{unknown}");
}

/// The leader may choose an older one, such as where the newest is damaged.
#[test]
fn the_one_that_is_being_restored_is_ready_and_else_the_newest() {
    let mut rig = Rig::new(1 << 20);
    let first = rig.receive();
    rig.store.name(&node(), Some(first));
    rig.receive();
    rig.ready.refresh(&node()).expect("ready");
    assert!(rig.restores(first));
    rig.ready.refresh(&node()).expect("ready");
    rig.store.name(&node(), None);
    rig.ready.refresh(&node()).expect("ready");
    assert!(rig.restores(id(2)));
}

/// A node of the same name that begins anew: its image is not that of the one before.
#[test]
fn an_image_that_is_ahead_of_what_lies_here_is_built_anew() {
    let mut rig = Rig::new(1 << 20);
    for _ in 0..3 {
        rig.receive();
    }
    rig.ready.refresh(&node()).expect("ready");
    rig.store.forget(&node()).expect("forgotten");
    rig.sender = Chain::default();
    let first = rig.receive();
    rig.ready.refresh(&node()).expect("ready");
    assert!(rig.restores(first));
}

#[test]
fn what_the_budget_leaves_out_is_told_and_made_when_it_is_needed() {
    let mut rig = Rig::new(1 << 20);
    rig.receive();
    rig.ready.refresh(&node()).expect("ready");
    let bytes = fs::read_dir(rig.folder().join("ready"))
        .and_then(|mut files| files.next().expect("a file")?.metadata())
        .expect("a file")
        .len();
    assert!(rig.ready.left_out().is_empty());
    let mut small = Rig::new(bytes - 1);
    small.receive();
    for _ in 0..2 {
        small.ready.refresh(&node()).expect("no room");
        assert_eq!((small.files(), small.ready.left_out()), (0, [node()].into()));
    }
    assert!(!small.restores(id(1)));
    small.ready.forget(&node());
    assert!(small.ready.left_out().is_empty());
    // Two nodes, and room for one.
    let mut two = Rig::new(bytes * 3 / 2);
    two.receive();
    two.ready.refresh(&node()).expect("ready");
    let other: NodeId = "bob/exec-1".parse().expect("a node");
    two.sender = Chain::default();
    let image = image(1);
    let mut segment = Vec::new();
    let wanted = &mut [understudy_checkpoint::pages::Wanted { base: None, out: &mut segment }];
    understudy_checkpoint::pages::capture(&mut &image[..], &mut None, (&other, id(1)), wanted)
        .expect("an image");
    two.store.receive(&other, id(1), &mut &segment[..], description()).expect("a checkpoint");
    two.ready.refresh(&other).expect("no room");
    assert_eq!((two.files(), two.ready.left_out()), (1, [other.clone()].into()));
    // The first is restored: there is room.
    assert!(two.restores(id(1)));
    two.ready.refresh(&other).expect("ready");
    assert!(two.ready.left_out().is_empty() && two.files() == 1);
}

#[test]
fn an_image_that_was_changed_is_found_before_a_guest_runs_and_the_next_is_made_anew() {
    let mut rig = Rig::new(1 << 20);
    let first = rig.receive();
    rig.ready.refresh(&node()).expect("ready");
    let image = rig.ready.take(&node(), first).expect("an image");
    let mut bytes = fs::read(image.path()).expect("a file");
    let last = bytes.len() - DESCRIPTION.len() - 2_000;
    bytes[last] ^= 1;
    fs::write(image.path(), bytes).expect("a file");
    let found = rig.ready.compare(&image).expect_err("it was changed");
    assert!(matches!(&found, ImageError::Damaged(_, _, Damage::Image(_))), "{found:?}");
    drop(image);
    assert!(!rig.restores(first), "the checkpoint itself is whole");
    // A file that another hand changed between two checkpoints is found too.
    rig.ready.refresh(&node()).expect("ready");
    for file in fs::read_dir(rig.folder().join("ready")).expect("a folder") {
        fs::write(file.expect("a file").path(), "nothing").expect("a file");
    }
    let second = rig.receive();
    rig.ready.refresh(&node()).expect("written over what is there");
    let image = rig.ready.take(&node(), second).expect("an image");
    rig.ready.compare(&image).expect_err("it is none");
}

#[test]
fn what_an_earlier_agent_left_is_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ready, store) = (folder.path().join("ready"), folder.path().join("store"));
    fs::create_dir(&ready).expect("a folder");
    fs::write(ready.join("7"), "left").expect("a file");
    let store = ImageStore::open(&store).expect("a store");
    ReadyImages::open(store, &ready, 1 << 20).expect("ready");
    assert_eq!(fs::read_dir(&ready).expect("a folder").count(), 0);
}
