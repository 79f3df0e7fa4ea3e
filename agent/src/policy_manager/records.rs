//! Owns the records of decisions: their form, the file that they are appended to, and how they are read again.
//!
//! Promises: the files together stay within their limit, the oldest records go first; a record holds the whole question,
//! so that another policy can be asked it, and behind the line of the set that was asked; each file begins with such a
//! line; a line that cannot be read is counted and passed over. Must not do: delay a decision (the recorder's thread
//! writes).
//!
//! `RECORDS.md` beside this file documents the form for readers outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use understudy_core::model::units::{MiB, UnixMillis};
use understudy_core::policy::{
    BackupCountAnswer, BackupCountQuestion, CountVerdict, Interface, PlacementAnswer, PlacementQuestion,
    PlacementVerdict,
};
use understudy_policy::{PolicyInfo, PolicySet};

/// The form that is written. Readers pass over others.
pub const VERSION: u32 = 1;
/// The newest part; older ones have `.1`, `.2`… behind it.
pub const FILE: &str = "decisions.jsonl";
/// Parts that are kept: the oldest goes when the newest is full, so that at least 7/8 of the limit are there.
const PARTS: u32 = 8;

/// One question and all that came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// [`VERSION`].
    pub v: u32,
    /// When it was asked.
    pub at: UnixMillis,
    /// Generation of the set that was asked; 0 where there was none.
    pub generation: u64,
    /// Term of the leadership; none for the admission of a terminal.
    pub term: Option<u64>,
    /// The question by its interface.
    pub matter: Matter,
}

/// The set that was asked the questions of the lines behind, up to the next such line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLine {
    /// [`VERSION`].
    pub v: u32,
    /// When the first of them was asked.
    pub at: UnixMillis,
    /// Its generation; 0 where there was none.
    pub generation: u64,
    /// Its policies by name. Empty where it was not ready on this host, so that nobody was asked.
    pub set: BTreeMap<String, RecordedPolicy>,
}

/// A policy of a set, with all but the question that its answers depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedPolicy {
    /// BLAKE3 of its component, in hex.
    pub digest: String,
    /// `decide`, `shadow` or `off`.
    pub mode: String,
    /// What it was chosen to decide.
    pub decides: BTreeSet<Interface>,
    /// The longest that one question could take, in milliseconds.
    pub deadline_ms: u64,
    /// Memory of one question.
    pub memory: MiB,
    /// What it was told with every question.
    pub parameters: BTreeMap<String, String>,
}

impl SetLine {
    /// The line of a set.
    #[must_use]
    pub fn of(at: UnixMillis, generation: u64, set: &PolicySet) -> Self {
        let recorded = |info: &PolicyInfo| RecordedPolicy {
            digest: info.digest.to_string(),
            mode: info.mode.to_string(),
            decides: info.decides.clone(),
            deadline_ms: u64::try_from(info.limits.deadline.as_millis()).unwrap_or(u64::MAX),
            memory: info.limits.memory,
            parameters: info.parameters.clone(),
        };
        let set = set.policies().map(|info| (info.name.clone(), recorded(info))).collect();
        Self { v: VERSION, at, generation, set }
    }
}

/// A question by its interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Matter {
    /// Where a member goes.
    Placement(Asking<PlacementQuestion, PlacementAnswer, PlacementVerdict>),
    /// How many members a node should have.
    BackupCount(Asking<BackupCountQuestion, BackupCountAnswer, CountVerdict>),
}

/// A question, who answered it and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asking<Q, A, V> {
    /// All that the answer may depend on, but for the parameters, which are in the set's line.
    pub question: Q,
    /// What came of asking the policy that decides.
    pub decided: Said<A>,
    /// What core made of it; none where the plan came to need no answer.
    pub made: Option<V>,
    /// What the shadow policies said.
    pub shadows: Vec<Shadow<A>>,
}

/// What a policy said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Said<A> {
    /// Who; none where no policy decides this.
    pub policy: Option<PolicyId>,
    /// How long it took, in microseconds; 0 where nobody was asked.
    pub took_us: u64,
    /// Its answer, unchecked.
    pub answer: Option<A>,
    /// Why there is none.
    pub fault: Option<Fault>,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyId {
    /// Its name.
    pub name: String,
    /// BLAKE3 of its component, in hex.
    pub digest: String,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// In one word: `deadline`, `memory`, `trap`, `too-large`, `error`, `unavailable`, `busy`, `held-off`,
    /// `set-suspended`.
    pub kind: String,
    /// For people.
    pub message: String,
}

/// What a shadow policy said, and whether it would have decided otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shadow<A> {
    /// What it said.
    pub said: Said<A>,
    /// Whether another host would have come first, or another number of backups.
    pub differs: bool,
}

/// The file that is appended to.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    part: u64,
    file: Option<(File, u64)>,
    /// The set of the next lines.
    set: Option<SetLine>,
}

impl Log {
    /// A log in `dir`, of which all parts together take up to `limit`.
    #[must_use]
    pub fn new(dir: &Path, limit: MiB) -> Self {
        Self { path: dir.join(FILE), part: limit.bytes() / u64::from(PARTS), file: None, set: None }
    }

    /// Appends a decision of `set`, behind the line of that set where another stands last.
    ///
    /// # Errors
    /// When it cannot be written, or is longer than a part may be. The next one is tried anew.
    pub fn append(&mut self, set: &SetLine, decision: &Decision) -> std::io::Result<()> {
        let is_other =
            self.set.as_ref().is_none_or(|last| (last.generation, &last.set) != (set.generation, &set.set));
        let (head, line) = (text(set)?, text(decision)?);
        let both = (head.len() + line.len()) as u64;
        if both > self.part {
            let text = format!("a record of {both} bytes does not fit: raise policies.records_mib");
            return Err(std::io::Error::new(ErrorKind::FileTooLarge, text));
        }
        let (mut file, mut written) = match self.file.take() {
            Some(open) => open,
            None => self.open()?,
        };
        if written + both > self.part {
            self.rotate()?;
            (file, written) = self.open()?;
        }
        // What fails halfway is begun with its set again.
        self.set = None;
        if is_other || written == 0 {
            file.write_all(&head)?;
            written += head.len() as u64;
        }
        file.write_all(&line)?;
        self.set = Some(set.clone());
        self.file = Some((file, written + line.len() as u64));
        Ok(())
    }

    fn open(&self) -> std::io::Result<(File, u64)> {
        let whole = ends_whole(&self.path);
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        if !whole {
            // What an earlier agent did not finish must not spoil the next line.
            file.write_all(b"\n")?;
        }
        let written = file.metadata()?.len();
        Ok((file, written))
    }

    fn rotate(&self) -> std::io::Result<()> {
        for part in (0..PARTS - 1).rev() {
            match std::fs::rename(part_path(&self.path, part), part_path(&self.path, part + 1)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

fn text(line: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(line).map_err(std::io::Error::other)?;
    text.push(b'\n');
    Ok(text)
}

fn ends_whole(path: &Path) -> bool {
    use std::io::{Read, Seek, SeekFrom};
    let mut last = [0];
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)
    });
    read.is_err() || last == *b"\n"
}

fn part_path(newest: &Path, part: u32) -> PathBuf {
    let mut name = newest.as_os_str().to_owned();
    if part > 0 {
        name.push(format!(".{part}"));
    }
    name.into()
}

/// What was read.
#[derive(Debug, Default)]
pub struct History {
    /// The decisions, oldest first.
    pub decisions: Vec<Decision>,
    /// The set of each decision, at the same place; none where an older agent wrote no line of it.
    pub sets: Vec<Option<Arc<SetLine>>>,
    /// Lines that could not be read: cut short, or written by another version.
    pub unreadable: usize,
}

impl History {
    fn take(&mut self, line: &[u8], since: UnixMillis, set: &mut Option<Arc<SetLine>>) {
        match serde_json::from_slice::<Decision>(line) {
            Ok(decision) if decision.v == VERSION => {
                if decision.at >= since {
                    self.sets.push(set.clone().filter(|set| set.generation == decision.generation));
                    self.decisions.push(decision);
                }
            }
            Ok(_) => self.unreadable += 1,
            Err(_) => match serde_json::from_slice::<SetLine>(line) {
                Ok(line) if line.v == VERSION => *set = Some(Arc::new(line)),
                Ok(_) | Err(_) => self.unreadable += 1,
            },
        }
    }
}

/// Reads the records in `dir` from `since` on, oldest first.
///
/// # Errors
/// When there are none, or a file cannot be read.
pub fn read(dir: &Path, since: UnixMillis) -> std::io::Result<History> {
    let newest = dir.join(FILE);
    let mut history = History::default();
    let (mut found, mut set) = (false, None);
    for part in (0..PARTS).rev() {
        let file = match File::open(part_path(&newest, part)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        found = true;
        for line in BufReader::new(file).split(b'\n') {
            history.take(&line?, since, &mut set);
        }
    }
    if found { Ok(history) } else { Err(std::io::Error::new(ErrorKind::NotFound, "there are no records")) }
}

#[cfg(test)]
mod tests {
    use understudy_core::policy::{BuiltIn, ClusterRow};

    use super::*;

    fn decision(at: u64) -> Decision {
        let question = BackupCountQuestion {
            node: "alice/display".parse().unwrap(),
            protected: false,
            terminal_labels: Default::default(),
            environment_labels: Default::default(),
            backups: 0,
            deficit: 0,
            cluster: ClusterRow::default(),
        };
        let fault = Fault { kind: "trap".to_owned(), message: "x".repeat(200) };
        let decided = Said { policy: None, took_us: 3, answer: None, fault: Some(fault) };
        let made = Some(CountVerdict { backups: 1, built_in: Some(BuiltIn::NoAnswer) });
        let matter = Matter::BackupCount(Asking { question, decided, made, shadows: Vec::new() });
        Decision { v: VERSION, at: UnixMillis(at), generation: 4, term: Some(2), matter }
    }

    fn set(generation: u64, weight: &str) -> SetLine {
        let policy = RecordedPolicy {
            digest: "d".repeat(64),
            mode: "decide".to_owned(),
            decides: [Interface::Placement].into(),
            deadline_ms: 500,
            memory: MiB(64),
            parameters: [("weight".to_owned(), weight.to_owned())].into(),
        };
        SetLine { v: VERSION, at: UnixMillis(0), generation, set: [("spread".to_owned(), policy)].into() }
    }

    #[test]
    fn each_decision_stands_behind_its_set_and_each_file_begins_with_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(dir.path(), MiB(1));
        let weight = |at: u64| (at / 1_000).to_string();
        for at in 0..4_000 {
            // Another moment makes it no other set.
            let line = SetLine { at: UnixMillis(at), ..set(4, &weight(at)) };
            log.append(&line, &decision(at)).unwrap();
        }
        let history = read(dir.path(), UnixMillis(3_500)).unwrap();
        assert_eq!((history.decisions.len(), history.sets.len(), history.unreadable), (500, 500, 0));
        let history = read(dir.path(), UnixMillis(0)).unwrap();
        for (decision, line) in history.decisions.iter().zip(&history.sets) {
            let parameters = &line.as_ref().unwrap().set["spread"].parameters;
            assert_eq!(parameters["weight"], weight(decision.at.0));
        }
        let mut heads = 0;
        for entry in dir.path().read_dir().unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            assert!(text.lines().next().unwrap().contains("\"set\""), "a file can be read alone");
            heads += text.lines().filter(|line| line.contains("\"set\"")).count();
        }
        assert!(heads <= PARTS as usize + 3, "{heads} lines of sets");
    }

    #[test]
    fn a_decision_of_another_generation_than_the_line_before_has_no_set() {
        let dir = tempfile::tempdir().unwrap();
        let older = text(&decision(1)).unwrap();
        let line = SetLine { generation: 3, ..set(3, "1") };
        std::fs::write(dir.path().join(FILE), [&text(&line).unwrap()[..], &older[..]].concat()).unwrap();
        assert_eq!(read(dir.path(), UnixMillis(0)).unwrap().sets, [None]);
    }

    #[test]
    fn records_read_back_oldest_first_from_when_was_asked() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(dir.path(), MiB(1));
        for at in 0..20 {
            log.append(&set(4, "1"), &decision(at)).unwrap();
        }
        let history = read(dir.path(), UnixMillis(15)).unwrap();
        assert_eq!(history.decisions, (15..20).map(decision).collect::<Vec<_>>());
        assert_eq!(history.unreadable, 0);
    }

    #[test]
    fn all_parts_together_stay_within_the_limit_and_the_newest_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(dir.path(), MiB(1));
        for at in 0..6_000 {
            log.append(&set(4, "1"), &decision(at)).unwrap();
        }
        let sizes: Vec<u64> =
            dir.path().read_dir().unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(sizes.len(), PARTS as usize);
        assert!(sizes.iter().sum::<u64>() <= MiB(1).bytes(), "{sizes:?}");
        let history = read(dir.path(), UnixMillis(0)).unwrap();
        let kept: Vec<u64> = history.decisions.iter().map(|decision| decision.at.0).collect();
        assert_eq!(kept, (6_000 - kept.len() as u64..6_000).collect::<Vec<_>>());
        assert!(kept.len() > 1_000, "{}", kept.len());
    }

    #[test]
    fn a_line_that_was_cut_short_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        Log::new(dir.path(), MiB(1)).append(&set(4, "1"), &decision(1)).unwrap();
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], &whole[..whole.len() / 2]].concat()).unwrap();
        Log::new(dir.path(), MiB(1)).append(&set(4, "1"), &decision(2)).unwrap();
        let history = read(dir.path(), UnixMillis(0)).unwrap();
        assert_eq!(history.decisions, [decision(1), decision(2)]);
        assert_eq!(history.unreadable, 1);
        assert!(read(&dir.path().join("none"), UnixMillis(0)).is_err());
    }
}
