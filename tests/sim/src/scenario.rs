//! Owns the stories: a few lines say what happens when, and the log says what the cluster makes of it.
//!
//! Promises: a story reads the same every time; its expected log is written only when it is asked for by name. Must not
//! do: change the world by other means than the faults that the simulation has.
//!
//! A story's lines, in any order of time; `#` begins a comment:
//! ```text
//! hosts 3                       memory 2048 (MiB of each host, 6144 when not given)
//! at 0 terminal alice 2         (with so many execution nodes; asks for admission, except at 0)
//! at 12 kill alice/display      at 12 power-off WHERE [for 30]      at 12 freeze WHERE for 3
//! at 12 cut WHERE for 20        at 12 drain WHERE                   at 12 undrain WHERE
//! at 12 agent-crash WHERE for 2 at 12 full WHERE for 30 (its disk takes no images)
//! at 12 stall WHERE for 30 (in the middle of each image)
//! at 12 backups NODE 2          at 60 end
//! ```
//! where WHERE is a host, `leader`, `host-of NODE`, `backup-of NODE` (the first) or `target-of NODE` (of its live migration).

use std::path::{Path, PathBuf};

use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::units::MiB;

use crate::fault::Swarm;
use crate::world::World;

/// Where the stories lie.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scenarios");

/// Why a story could not be told, or was told otherwise.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// A file is not there or cannot be read or written.
    #[error("{path}: cannot be {verb}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        verb: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A line says nothing that a story may say.
    #[error("{path}:{line}: '{text}' is no line of a story: see the head of tests/sim/src/scenario.rs")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Its text.
        text: String,
    },
    /// A guarantee did not hold.
    #[error("{story}: {failure}")]
    Broken {
        /// The story.
        story: String,
        /// What did not hold.
        failure: String,
    },
    /// The log is another one.
    #[error(
        "{story}: the log differs from expected.log:\n{difference}\nif this is as it should be: cargo xtask golden --accept"
    )]
    Differs {
        /// The story.
        story: String,
        /// The lines that differ, `-` expected and `+` found.
        difference: String,
    },
}

#[derive(Debug, Clone)]
enum What {
    Terminal(String, u32),
    Kill(NodeId),
    PowerOff(Where, u64),
    Freeze(Where, u64),
    Cut(Where, u64),
    AgentCrash(Where, u64),
    Full(Where, u64),
    Stall(Where, u64),
    Backups(NodeId, u32),
    Drain(Where, bool),
    End,
}

#[derive(Debug, Clone)]
enum Where {
    Host(HostId),
    Leader,
    HostOf(NodeId),
    BackupOf(NodeId),
    TargetOf(NodeId),
}

#[derive(Debug, Default)]
struct Story {
    hosts: usize,
    memory: Option<u64>,
    happenings: Vec<(u64, What)>,
}

/// Tells every story and compares its log with what is expected; with `accept`, writes it instead.
///
/// # Errors
/// The first story that is told otherwise, cannot be read, or has no expected log.
pub fn golden(accept: bool) -> Result<Vec<String>, ScenarioError> {
    let folder = Path::new(FOLDER);
    let entries = std::fs::read_dir(folder).map_err(file(folder, "read"))?;
    let mut stories: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.is_dir())
        .collect();
    stories.sort();
    let mut reported = Vec::new();
    for path in stories {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let log = tell(&path.join("scenario.txt"), &name)?;
        check(&path.join("expected.log"), &name, &log, accept)?;
        reported.push(name);
    }
    Ok(reported)
}

fn file(path: &Path, verb: &'static str) -> impl FnOnce(std::io::Error) -> ScenarioError {
    let path = path.to_owned();
    move |source| ScenarioError::File { path, verb, source }
}

fn check(path: &Path, story: &str, log: &str, accept: bool) -> Result<(), ScenarioError> {
    if accept {
        return std::fs::write(path, log).map_err(file(path, "written"));
    }
    let expected = std::fs::read_to_string(path).map_err(file(path, "read"))?;
    if expected == log {
        return Ok(());
    }
    let gone = expected.lines().filter(|line| !log.lines().any(|other| other == *line));
    let new = log.lines().filter(|line| !expected.lines().any(|other| other == *line));
    let lines = gone.map(|line| format!("- {line}")).chain(new.map(|line| format!("+ {line}")));
    let difference = lines.collect::<Vec<_>>().join("\n");
    Err(ScenarioError::Differs { story: story.to_owned(), difference })
}

fn tell(path: &Path, story: &str) -> Result<String, ScenarioError> {
    let text = std::fs::read_to_string(path).map_err(file(path, "read"))?;
    let mut plot = read(path, &text)?;
    plot.happenings.sort_by_key(|(at, _)| *at);
    let mut world = World::new(1, plot.hosts, Swarm::default(), None);
    if let Some(memory) = plot.memory {
        for machine in world.machines.values_mut() {
            machine.memory = MiB(memory);
        }
    }
    for (at, what) in plot.happenings {
        while world.now < at {
            world.step();
        }
        world.happens(what);
    }
    world.check_all_reported();
    let lacking = world.lacking();
    world.note(if lacking.is_empty() {
        "at rest".to_owned()
    } else {
        format!("lacking: {}", lacking.join(", "))
    });
    let reports: Vec<String> = world.reports();
    for line in reports.into_iter().filter(|line| line.contains(" reports of ")) {
        world.note(line);
    }
    match world.failure {
        Some(failure) => Err(ScenarioError::Broken { story: story.to_owned(), failure }),
        None => Ok(world.log.join("\n") + "\n"),
    }
}

fn read(path: &Path, text: &str) -> Result<Story, ScenarioError> {
    let mut story = Story { hosts: 3, ..Story::default() };
    for (index, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let understood = match words.as_slice() {
            [] => Some(()),
            ["hosts", count] => count.parse().ok().map(|count| story.hosts = count),
            ["memory", mib] => mib.parse().ok().map(|mib| story.memory = Some(mib)),
            ["at", at, what @ ..] => {
                milliseconds(at).zip(happening(what)).map(|happening| story.happenings.push(happening))
            }
            _ => None,
        };
        understood.ok_or_else(|| ScenarioError::Line {
            path: path.to_owned(),
            line: index + 1,
            text: line.to_owned(),
        })?;
    }
    Ok(story)
}

/// Seconds with up to three decimals.
fn milliseconds(text: &str) -> Option<u64> {
    let (seconds, rest) = text.split_once('.').unwrap_or((text, ""));
    let millis = format!("{rest:0<3}");
    (millis.len() == 3).then_some(())?;
    Some(seconds.parse::<u64>().ok()? * 1_000 + millis.parse::<u64>().ok()?)
}

fn happening(words: &[&str]) -> Option<What> {
    const FOREVER: u64 = u64::MAX / 2;
    let (words, time) = match words {
        [words @ .., "for", time] => (words, milliseconds(time)?),
        words => (words, FOREVER),
    };
    match words {
        ["terminal", name, executions] => Some(What::Terminal((*name).to_owned(), executions.parse().ok()?)),
        ["kill", node] => Some(What::Kill(node.parse().ok()?)),
        ["power-off", rest @ ..] => Some(What::PowerOff(place(rest)?, time)),
        ["freeze", rest @ ..] => Some(What::Freeze(place(rest)?, time)),
        ["cut", rest @ ..] => Some(What::Cut(place(rest)?, time)),
        ["agent-crash", rest @ ..] => Some(What::AgentCrash(place(rest)?, time)),
        ["full", rest @ ..] => Some(What::Full(place(rest)?, time)),
        ["stall", rest @ ..] => Some(What::Stall(place(rest)?, time)),
        ["backups", node, count] => Some(What::Backups(node.parse().ok()?, count.parse().ok()?)),
        ["drain", rest @ ..] => Some(What::Drain(place(rest)?, true)),
        ["undrain", rest @ ..] => Some(What::Drain(place(rest)?, false)),
        ["end"] => Some(What::End),
        _ => None,
    }
}

fn place(words: &[&str]) -> Option<Where> {
    match words {
        ["leader"] => Some(Where::Leader),
        ["host-of", node] => Some(Where::HostOf(node.parse().ok()?)),
        ["backup-of", node] => Some(Where::BackupOf(node.parse().ok()?)),
        ["target-of", node] => Some(Where::TargetOf(node.parse().ok()?)),
        [host] => Some(Where::Host(host.parse().ok()?)),
        _ => None,
    }
}

impl World {
    fn find(&self, place: &Where) -> Option<HostId> {
        match place {
            Where::Host(host) => self.machines.contains_key(host).then(|| host.clone()),
            Where::Leader => self
                .machines
                .iter()
                .find(|(_, machine)| machine.agent.as_ref().is_some_and(|agent| agent.leads()))
                .map(|(host, _)| host.clone()),
            Where::HostOf(node) => Some(self.record(node)?.primary.as_ref()?.host.clone()),
            Where::BackupOf(node) => Some(self.record(node)?.backups.first()?.host.clone()),
            Where::TargetOf(node) => Some(self.record(node)?.migration.as_ref()?.to.clone()),
        }
    }

    fn happens(&mut self, what: What) {
        let now = self.now;
        let place = match &what {
            What::PowerOff(place, _)
            | What::Freeze(place, _)
            | What::Cut(place, _)
            | What::AgentCrash(place, _)
            | What::Full(place, _)
            | What::Stall(place, _)
            | What::Drain(place, _) => self.find(place),
            What::Terminal(..) | What::Kill(_) | What::Backups(..) | What::End => None,
        };
        match (what, place) {
            (What::Terminal(name, executions), _) => {
                if now == 0 {
                    self.add_terminal(&name, executions);
                } else {
                    self.ask_for_terminal(&name, executions);
                }
            }
            (What::Kill(node), _) => {
                let primary = self.record(&node).and_then(|record| record.primary.clone());
                if let Some((host, instance)) =
                    primary.and_then(|primary| Some((primary.host, primary.instance?)))
                {
                    self.kill(&host, instance);
                }
            }
            (What::PowerOff(_, time), Some(host)) => self.cut_power(&host, now.saturating_add(time)),
            (What::Freeze(_, time), Some(host)) => {
                self.freeze(&host, now.saturating_add(time));
                self.note(format!("{host} stands still"));
            }
            (What::Cut(_, time), Some(host)) => {
                self.machine_mut(&host).cut_until = now.saturating_add(time);
                self.note(format!("{host} is cut off from the store"));
            }
            (What::AgentCrash(_, time), Some(host)) => self.crash_agent(&host, now.saturating_add(time)),
            (What::Full(_, time), Some(host)) => self.fill_disk(&host, now.saturating_add(time)),
            (What::Stall(_, time), Some(host)) => self.stall_images(&host, now.saturating_add(time)),
            (What::Backups(node, count), _) => self.wants_backups(node, count.into()),
            (What::Drain(_, drain), Some(host)) => self.drain(&host, drain),
            (What::End, _) => {}
            (_, None) => self.fail("the story names a place that does not exist at that time".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_says_nothing_is_named() {
        for text in ["at", "at x end", "at 1 dance", "at 1.2345 end", "hosts many", "at 1 kill alice"] {
            let error = read(Path::new("story"), text).expect_err(text);
            assert!(error.to_string().starts_with("story:1: "), "{error}");
        }
        assert_eq!(milliseconds("12.5"), Some(12_500));
        assert_eq!(milliseconds("3"), Some(3_000));
    }

    #[test]
    fn a_missing_expected_log_fails_and_is_not_written() {
        let path = std::env::temp_dir().join("understudy-no-such-story").join("expected.log");
        let error = check(&path, "story", "log", false).expect_err("there is no such file");
        assert!(matches!(error, ScenarioError::File { verb: "read", .. }), "{error}");
        assert!(!path.exists());
    }
}
