//! Restores of checkpoints that lie here: over the double of the hypervisor and the real store of checkpoints.

use understudy_checkpoint::Description;
use understudy_checkpoint::pages::{Wanted, capture};
use understudy_core::host::Outcome;
use understudy_core::model::records::{CheckpointId, HostFacts};

use super::*;
use crate::runtime::effects::domain;

const EPOCH: Epoch = Epoch(2);

fn node() -> NodeId {
    "alice/exec-1".parse().unwrap()
}

fn id(sequence: u64) -> CheckpointId {
    CheckpointId { epoch: Epoch(1), sequence }
}

/// A checkpoint of an instance that is no more, and its image, ready.
fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.runs_unknown(instance(1));
    receive(&rig, 1);
    rig.runtime.parts.ready_images.refresh(&node()).unwrap();
    rig.hypervisor.destroy(instance(1)).unwrap();
    rig
}

/// A whole checkpoint of what runs comes here.
fn receive(rig: &Rig, sequence: u64) {
    let image = rig.runtime.parts.scratch.join("image");
    rig.hypervisor.save_memory(instance(1), &image, LIMIT).unwrap();
    let mut segment = Vec::new();
    let wanted = &mut [Wanted { base: None, out: &mut segment }];
    let mut file = std::fs::File::open(&image).unwrap();
    capture(&mut file, &mut None, (&node(), id(sequence)), wanted).unwrap();
    std::fs::remove_file(&image).unwrap();
    let description = Description {
        instance: instance(1),
        taken: now().wall,
        pause_ms: 1,
        memory: MEMORY,
        domain: Default::default(),
    };
    let images = &rig.runtime.parts.images;
    images.receive(&node(), id(sequence), &mut &segment[..], description).unwrap();
}

fn restore(rig: &Rig) -> Outcome {
    domain::restore(&rig.runtime.parts, &node(), instance(1), (EPOCH, id(1)), "desktop")
}

/// The only file of the images that are kept ready.
fn ready(rig: &Rig) -> Option<std::path::PathBuf> {
    let folder = rig.runtime.parts.scratch.join("ready");
    std::fs::read_dir(folder).unwrap().next().map(|file| file.unwrap().path())
}

#[test]
fn the_image_that_is_ready_is_restored_and_goes() {
    let rig = rig();
    assert!(matches!(restore(&rig), Outcome::Loaded { .. }));
    assert_eq!(ready(&rig), None);
}

/// S5, S6: what is wrong with the file that is kept ready is no damage of the checkpoint, whoever finds it first.
#[test]
fn an_image_that_was_changed_never_runs_and_is_made_anew_of_the_checkpoint() {
    for change in [
        |bytes: &mut Vec<u8>| bytes[0] ^= 1,
        |bytes: &mut Vec<u8>| {
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
        },
    ] {
        let rig = rig();
        let path = ready(&rig).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let outcome = restore(&rig);
        assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
        assert_eq!(rig.hypervisor.instances().unwrap(), [], "nothing of the try is left");
        assert!(matches!(restore(&rig), Outcome::Loaded { .. }));
    }
}

#[test]
fn an_image_that_libvirtd_was_not_asked_for_is_ready_for_the_next_try() {
    let rig = rig();
    rig.hypervisor.set_libvirt_up(false);
    assert!(matches!(restore(&rig), Outcome::Failed(_)));
    assert!(ready(&rig).is_some());
    rig.hypervisor.set_libvirt_up(true);
    assert!(matches!(restore(&rig), Outcome::Loaded { .. }));
}

/// The checkpoint itself is damaged, and no image is ready: that is said of the checkpoint.
#[test]
fn a_damaged_checkpoint_is_told_and_not_restored() {
    let rig = rig();
    rig.runtime.parts.ready_images.forget(&node());
    let folder = rig.runtime.parts.scratch.join("checkpoints/nodes/alice.exec-1");
    let path = folder.join("1.1.pages");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let outcome = restore(&rig);
    assert!(matches!(outcome, Outcome::Damaged(_)), "{outcome:?}");
    assert_eq!(rig.runtime.parts.images.damaged().len(), 1);
    assert_eq!(rig.hypervisor.instances().unwrap(), []);
}

/// The leader chose the older one, and newer ones still came here before anybody heard of it.
#[tokio::test]
async fn what_is_being_restored_is_kept_and_made_ready_until_it_is_ready() {
    let mut rig = Rig::new();
    rig.runs_unknown(instance(1));
    receive(&rig, 1);
    receive(&rig, 2);
    let ready = |rig: &Rig, wanted| {
        let (images, ready_images) = (&rig.runtime.parts.images, &rig.runtime.parts.ready_images);
        ready_images.refresh(&node()).unwrap();
        let image = ready_images.take(&node(), images.wanted(&node()).unwrap()).unwrap();
        assert_eq!((image.manifest.id, image.was_ready()), (id(wanted), true));
        ready_images.give_back(image);
    };
    ready(&rig, 2);
    let mut record = record(Some(instance(1)));
    (record.spec.protected, record.epoch, record.incarnation) = (true, EPOCH, EPOCH);
    record.primary.as_mut().unwrap().origin = Origin::Restored(id(1));
    rig.write(&Key::Node(node()), encode(&record));
    ready(&rig, 1);
    receive(&rig, 3);
    receive(&rig, 4);
    assert_eq!(rig.runtime.parts.images.complete(&node()), [id(1), id(3), id(4)]);
    // As long as it is not ready, whatever else changes.
    rig.write(&Key::Node(node()), encode(&record));
    ready(&rig, 1);
    rig.knows(instance(1), Phase::Ready, Some(node()));
    let mut facts = HostFacts { lease: 1, ..rig.runtime.facts() };
    facts.instances.get_mut(&instance(1)).unwrap().epoch = EPOCH;
    rig.write(&Key::Facts(me()), encode(&facts));
    ready(&rig, 4);
    receive(&rig, 5);
    assert_eq!(rig.runtime.parts.images.complete(&node()), [id(4), id(5)]);
}
