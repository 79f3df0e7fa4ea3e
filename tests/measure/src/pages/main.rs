//! Owns the figures of the page store: what a backup's host does with a checkpoint that changed a part of a guest's memory,
//! beside a plain copy of all of it.
//!
//! Promises: the guest's memory is as compressible as was measured of real ones (a quarter of each page's bytes are
//! random); the copy and the store are on the same disk and both durable, the restore image and the copy that is read are on
//! the same tmpfs; each run changes other pages. Must not judge.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use understudy_checkpoint::pages::{Tracker, Wanted, capture};
use understudy_checkpoint::stream::{
    Absent, BlockIndex, Limits, PAGE_BYTES, Page, Place, Skeleton, StreamWriter,
};
use understudy_checkpoint::{Description, ImageStore, ReadyImages, SaveImage};
use understudy_core::model::ids::{Epoch, NodeId};
use understudy_core::model::records::CheckpointId;
use understudy_core::model::units::{MiB, UnixMillis};

const MEMORY: MiB = MiB(1024);
/// One page in so many changes from one checkpoint to the next.
const CHANGED_ONE_IN: u64 = 20;

/// A figure for each run, in seconds.
#[derive(Debug, Default, Serialize)]
struct Figures {
    memory_mib: u64,
    segment_bytes: Vec<u64>,
    /// The image is taken apart on the primary's host.
    capture_s: Vec<f64>,
    /// The segment is received and durable, and the restore image is ready.
    ingest_s: Vec<f64>,
    /// All of the image is copied, and durable.
    copy_s: Vec<f64>,
    /// The restore image is compared with its digests.
    compare_s: Vec<f64>,
    /// The restore image is read.
    read_s: Vec<f64>,
    /// A copy of the image that lies beside it is read.
    read_copy_s: Vec<f64>,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |what: &str| arguments.next().with_context(|| format!("{what} is missing"));
    let runs: u64 = argument("the number of runs")?.parse()?;
    let (disk, memory) =
        (PathBuf::from(argument("a folder on a disk")?), PathBuf::from(argument("a folder on a tmpfs")?));
    println!("{}", serde_json::to_string(&measure(runs, &disk, &memory)?)?);
    Ok(())
}

fn measure(runs: u64, disk: &Path, memory: &Path) -> Result<Figures> {
    let node: NodeId = "alice/exec-1".parse()?;
    let store = ImageStore::open(&disk.join("store"))?;
    let ready = ReadyImages::open(store.clone(), &memory.join("ready"), 2 * MEMORY.bytes())?;
    let skeleton = Skeleton::from_bytes(&stream_without_pages(), Limits::default())?;
    let mut figures = Figures { memory_mib: MEMORY.0, ..Figures::default() };
    let (mut tracker, mut base) = (None::<Tracker>, None);
    let (copy, beside) = (disk.join("copy"), memory.join("copy"));
    for run in 0..=runs {
        let id = CheckpointId { epoch: Epoch(1), sequence: run + 1 };
        let image = image(&skeleton, run)?;
        let mut segment = Vec::new();
        let begun = Instant::now();
        let captured =
            capture(&mut &image[..], &mut tracker, (&node, id), &mut [Wanted { base, out: &mut segment }])?;
        let captured_in = begun.elapsed();
        base = Some((id, captured.image));
        let begun = Instant::now();
        store.receive(&node, id, &mut &segment[..], description(&node)?)?;
        ready.refresh(&node)?;
        let ingested_in = begun.elapsed();
        store.compact(&node)?;
        // The first has all of it to do, as a new backup has.
        if run == 0 {
            continue;
        }
        figures.segment_bytes.push(segment.len() as u64);
        figures.capture_s.push(captured_in.as_secs_f64());
        figures.ingest_s.push(ingested_in.as_secs_f64());
        let begun = Instant::now();
        let mut file = File::create(&copy)?;
        file.write_all(&image)?;
        file.sync_all()?;
        figures.copy_s.push(begun.elapsed().as_secs_f64());
        // Read where the restore image is.
        std::fs::write(&beside, &image)?;
        figures.read_copy_s.push(read(&beside)?);
        std::fs::remove_file(&beside)?;
        let restore = ready.take(&node, id)?;
        ensure!(restore.was_ready(), "the image of {id} was not ready");
        figures.read_s.push(read(restore.path())?);
        let begun = Instant::now();
        ready.compare(&restore)?;
        figures.compare_s.push(begun.elapsed().as_secs_f64());
        drop(restore);
        ready.refresh(&node)?;
    }
    Ok(figures)
}

/// Seconds that a file takes to be read.
fn read(path: &Path) -> Result<f64> {
    let (mut file, mut buffer) = (File::open(path)?, vec![0; 1 << 20]);
    let begun = Instant::now();
    while file.read(&mut buffer)? > 0 {}
    Ok(begun.elapsed().as_secs_f64())
}

fn description(node: &NodeId) -> Result<Description> {
    Ok(Description {
        instance: "11111111-2222-4333-8444-000000000001"
            .parse()
            .with_context(|| format!("an instance of {node}"))?,
        taken: UnixMillis(0),
        pause_ms: 0,
        memory: MEMORY,
        domain: Default::default(),
    })
}

/// The image of the guest after so many checkpoints.
fn image(skeleton: &Skeleton, run: u64) -> Result<Vec<u8>> {
    let header = SaveImage {
        xml: "<domain/>".to_owned(),
        cookie: None,
        was_running: true,
        padding: SaveImage::PADDING,
    };
    let mut image = header.encode()?;
    let mut writer = StreamWriter::new(skeleton, Absent::Refuse, &mut image)?;
    let mut bytes = [0; PAGE_BYTES];
    for page in 0..MEMORY.bytes() / PAGE_BYTES as u64 {
        // The newest of the checkpoints that changed it.
        let changed = (0..=run).rev().find(|run| *run == 0 || (page * 7 + run * 3) % CHANGED_ONE_IN == 0);
        fill(&mut bytes, page, changed.unwrap_or(0));
        writer.page(Place { block: BlockIndex(0), offset: page * PAGE_BYTES as u64 }, Page::Bytes(&bytes))?;
    }
    writer.finish()?;
    Ok(image)
}

/// A quarter random, the rest as regular as a program's structures.
fn fill(bytes: &mut [u8; PAGE_BYTES], page: u64, generation: u64) {
    let mut state = ((page << 20) | generation).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let (words, _) = bytes.as_chunks_mut::<8>();
    for (at, word) in (0_u64..).zip(words) {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let value = if at % 4 == 0 { state } else { (page << 12) | (at % 16) };
        *word = value.to_le_bytes();
    }
}

/// The shortest stream with one block of RAM of the guest's size.
fn stream_without_pages() -> Vec<u8> {
    let (machine, description) =
        (b"pc-q35-10.0", br#"{"configuration": {}, "page_size": 4096, "devices": []}"#);
    let section = 2_u32.to_be_bytes();
    let number = |number: usize| u32::try_from(number).unwrap_or_default().to_be_bytes();
    let end_of_section = [&0x10_u64.to_be_bytes()[..], b"\x7e", &section].concat();
    [
        &b"QEVM\0\0\0\x03\x07"[..],
        &number(machine.len()),
        machine,
        b"\x01",
        &section,
        b"\x03ram\0\0\0\0\0\0\0\x04",
        &(MEMORY.bytes() | 0x04).to_be_bytes(),
        b"\x06pc.ram",
        &MEMORY.bytes().to_be_bytes(),
        &end_of_section,
        b"\x02",
        &section,
        &end_of_section,
        b"\0\x06",
        &number(description.len()),
        description,
    ]
    .concat()
}
