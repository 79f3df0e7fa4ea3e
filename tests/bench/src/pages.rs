//! Owns the rows of the page store: a checkpoint that changed a part of a guest's memory, beside a plain copy of all of it.
//!
//! Promises: what is timed is optimised code, in a program of its own; store and copy are on the disk of the build folder,
//! restore image and the copy that is read on a tmpfs. Must not judge what has no floor: that is stated.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::RUNS;
use crate::row::Row;

/// The benchmark's name.
pub const NAME: &str = "page-store";
/// Received and ready, of a copy of the whole.
const INGEST_MAX: f64 = 0.3;
/// The restore image is read, of a plain file that is.
const READ_MAX: f64 = 1.2;
/// Always a tmpfs on Linux.
const TMPFS: &str = "/dev/shm";

/// What is measured.
#[derive(Debug, Clone)]
pub struct Subjects {
    /// The folder of `measure-pages`, built for release.
    pub binaries: PathBuf,
    /// A folder on a disk.
    pub scratch: PathBuf,
}

/// A figure for each run, in seconds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Figures {
    memory_mib: u64,
    segment_bytes: Vec<u64>,
    capture_s: Vec<f64>,
    ingest_s: Vec<f64>,
    copy_s: Vec<f64>,
    compare_s: Vec<f64>,
    read_s: Vec<f64>,
    read_copy_s: Vec<f64>,
}

impl Figures {
    fn rows(&self) -> [Row; 5] {
        let row = |what: &str, figures: &[f64]| Row::stated(&format!("{NAME}-{what}"), "s", figures);
        #[expect(clippy::cast_precision_loss, reason = "shown in MiB")]
        let sent: Vec<f64> =
            self.segment_bytes.iter().map(|bytes| *bytes as f64 / f64::from(1 << 20)).collect();
        [
            row("ingest", &self.ingest_s).beside(&self.copy_s).at_most_of_floor(INGEST_MAX),
            row("read", &self.read_s).beside(&self.read_copy_s).at_most_of_floor(READ_MAX),
            row("capture", &self.capture_s),
            row("compare", &self.compare_s),
            Row::stated(&format!("{NAME}-sent"), "MiB", &sent),
        ]
    }
}

/// A folder that goes with whoever made it.
struct Folder(PathBuf);

impl Folder {
    fn make(path: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs it; `say` is told what goes on.
///
/// # Errors
/// When the program fails.
pub fn run(subjects: &Subjects, say: &dyn Fn(&str)) -> Result<Vec<Row>> {
    say(NAME);
    let own = format!("understudy-pages-{}", std::process::id());
    let disk = Folder::make(subjects.scratch.join(&own))?;
    let memory = Folder::make(Path::new(TMPFS).join(&own))?;
    let program = subjects.binaries.join("measure-pages");
    let said = Command::new(&program)
        .arg(RUNS.to_string())
        .args([&disk.0, &memory.0])
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr).trim());
    let figures: Figures = serde_json::from_slice(&said.stdout)
        .with_context(|| format!("read what {} said", program.display()))?;
    say(&format!("  a guest of {} MiB, of which one page in twenty changes", figures.memory_mib));
    Ok(figures.rows().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_held_against_a_copy_and_the_image_against_a_plain_file() {
        let figures = |ingest: f64, read: f64| Figures {
            memory_mib: 1024,
            segment_bytes: vec![3 << 20],
            capture_s: vec![0.5],
            ingest_s: vec![ingest],
            copy_s: vec![1.0],
            compare_s: vec![0.5],
            read_s: vec![read],
            read_copy_s: vec![0.1],
        };
        let holds = |ingest, read| {
            let [ingested, read, capture, compare, sent] = figures(ingest, read).rows();
            assert_eq!((capture.holds, compare.holds, sent.holds, sent.median), (None, None, None, 3.0));
            (ingested.holds, read.holds)
        };
        assert_eq!(holds(0.3, 0.12), (Some(true), Some(true)));
        assert_eq!(holds(0.31, 0.121), (Some(false), Some(false)));
    }
}
