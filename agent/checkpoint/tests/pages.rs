//! A save image taken apart into segments, and made again out of them.

mod common;

use std::io::{self, Read};

use common::{
    BLOCKS, DESCRIPTION, LIMITS, Owned, background, configuration, devices, fill, head, live, normal, parse,
    paused, section, start,
};
use understudy_checkpoint::SaveImage;
use understudy_checkpoint::pages::{
    CaptureError, Captured, Receiver, Tracker, Wanted, capture, header_of, rebuild, replay,
};
use understudy_checkpoint::stream::Place;
use understudy_core::model::ids::{Epoch, NodeId};
use understudy_core::model::records::CheckpointId;

fn image(stream: &[u8]) -> Vec<u8> {
    let header = SaveImage {
        xml: "<domain/>".to_owned(),
        cookie: Some("<cookie/>".to_owned()),
        was_running: true,
        padding: 64,
    };
    [header.encode().expect("a header"), stream.to_vec()].concat()
}

/// Gives its bytes in small pieces.
struct Slowly<'a>(&'a [u8]);

impl Read for Slowly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(777);
        self.0.read(&mut buffer[..count])
    }
}

fn node() -> NodeId {
    "alice/exec-1".parse().expect("a node")
}

const fn id(sequence: u64) -> CheckpointId {
    CheckpointId { epoch: Epoch(2), sequence }
}

/// One segment for each base.
fn take(
    image: &[u8],
    tracker: &mut Option<Tracker>,
    sequence: u64,
    bases: &[Option<(CheckpointId, u32)>],
) -> Result<(Captured, Vec<Vec<u8>>), CaptureError> {
    let mut outs = vec![Vec::new(); bases.len()];
    let mut wanted: Vec<Wanted<'_>> =
        bases.iter().zip(&mut outs).map(|(base, out)| Wanted { base: *base, out }).collect();
    let captured = capture(&mut Slowly(image), tracker, (&node(), id(sequence)), &mut wanted)?;
    Ok((captured, outs))
}

fn remade(segments: &[Vec<u8>]) -> (Receiver, Vec<u8>) {
    let mut receiver = Receiver::default();
    for segment in segments {
        replay(&mut receiver, &mut &segment[..]).expect("a segment");
    }
    let mut out = Vec::new();
    rebuild(&receiver, |number| Ok(&segments[number as usize][..]), &mut out).expect("an image");
    (receiver, out)
}

/// The last of every place, and the machine's other state.
fn state(image: &[u8]) -> (Vec<(Place, Owned)>, Vec<u8>) {
    let header = image.len() - stream_of(image).len();
    let (parsed, outcome) = parse(stream_of(image), &[], LIMITS);
    let rest = [&image[..header], outcome.expect("a stream").bytes()].concat();
    let whole = |page: Owned| match page {
        Owned::Fill(byte) => Owned::Bytes(Box::new([byte; 4096])),
        bytes @ Owned::Bytes(_) => bytes,
    };
    (parsed.last().into_iter().map(|(place, page)| (place, whole(page))).collect(), rest)
}

fn stream_of(image: &[u8]) -> &[u8] {
    let at = image.windows(4).position(|bytes| bytes == b"QEVM").expect("a stream");
    &image[at..]
}

#[test]
fn an_image_is_made_again_as_it_was_whatever_its_receivers_had() {
    let images = [paused(), background()].map(|stream| image(&stream));
    let mut tracker = None;
    let (first, whole) = take(&images[0], &mut tracker, 1, &[None]).unwrap();
    assert!(first.anew && state(&remade(&whole).1) == state(&images[0]));
    let (second, later) = take(&images[1], &mut tracker, 2, &[None, Some((id(1), first.image))]).unwrap();
    assert!(!second.anew && second.root != first.root);
    let [anew, changed] = later.try_into().unwrap();
    for segments in [vec![anew], vec![whole[0].clone(), changed]] {
        let (receiver, remade) = remade(&segments);
        assert!(state(&remade) == state(&images[1]));
        assert_eq!(
            (receiver.has(), header_of(&receiver).unwrap().xml),
            (Some(id(2)), "<domain/>".to_owned())
        );
    }
    // Who is one behind gets what has changed since, of both images.
    let (third, later) = take(&images[0], &mut tracker, 3, &[Some((id(1), first.image))]).unwrap();
    assert_eq!(third.root, first.root);
    assert!(state(&remade(&[whole[0].clone(), later[0].clone()]).1) == state(&images[0]));
}

#[test]
fn a_guest_with_other_blocks_goes_as_a_whole_to_everybody() {
    let mut tracker = None;
    let (first, _) = take(&image(&paused()), &mut tracker, 1, &[]).unwrap();
    let grown = [("pc.ram", 2 * 4096)];
    let pages = [normal(Some("pc.ram"), 0, 1), fill(None, 4096, 0)];
    let stream = [head(), configuration(), start(&grown), section(2, &pages), devices(DESCRIPTION)].concat();
    let other = image(&stream);
    let (second, segments) = take(&other, &mut tracker, 2, &[Some((id(1), first.image))]).unwrap();
    assert!(second.anew && state(&remade(&segments).1) == state(&other));
}

#[test]
fn what_is_no_whole_image_makes_no_segment() {
    let whole = image(&paused());
    for length in [0, 50, 200, whole.len() - 1] {
        let cut = take(&whole[..length], &mut None, 1, &[None]).unwrap_err();
        assert!(matches!(cut, CaptureError::Image(_)), "{length}: {cut}");
    }
    // One that leaves pages out, as QEMU does with memory that it sends on another way.
    let lacks = section(2, &[normal(Some(BLOCKS[0].0), 0, 1)]);
    let stream = [head(), configuration(), start(&BLOCKS), lacks, devices(DESCRIPTION)].concat();
    let lacks = take(&image(&stream), &mut None, 1, &[None]).unwrap_err();
    assert!(matches!(lacks, CaptureError::Incomplete(7)), "{lacks}");
    // The page of a running guest that came again counts as it came last.
    let mut tracker = None;
    let (_, segments) = take(&image(&live_whole()), &mut tracker, 1, &[None]).unwrap();
    assert!(state(&remade(&segments).1) == state(&image(&live_whole())));
}

/// The stream of a running guest, with the pages that it lacks first.
fn live_whole() -> Vec<u8> {
    let all = BLOCKS
        .iter()
        .flat_map(|(name, bytes)| (0..*bytes).step_by(4096).map(move |offset| fill(Some(name), offset, 0)));
    let first = section(2, &all.collect::<Vec<_>>());
    let live = live();
    let at = live
        .windows(5)
        .position(|bytes| bytes == [&[2][..], &common::be(common::RAM)].concat())
        .expect("a PART");
    [&live[..at], &first, &live[at..]].concat()
}
