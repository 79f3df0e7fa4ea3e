//! Owns the verbs about policies: what a running agent is asked, and what is done with files alone.
//!
//! Promises: `check`, `bench`, `replay` and `new` need no agent and no root. Must not do: judge a component itself.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use hyper::Method;
use serde_json::{Value, json};
use understudy_core::model::units::UnixMillis;
use understudy_policy::{
    BENCH_HOSTS, BenchRow, CheckReport, FUEL, Limits, Replayer, Settings, Wanted, bench, built_in, check,
};

use super::print::policies as print;
use crate::client::ask;
use crate::exit::{Exit, Failure, chain};
use crate::policy_manager::explain::Explained;
use crate::policy_manager::records;
use crate::policy_manager::replay::{recorded, replay};
use crate::policy_manager::status::PoliciesStatus;

/// Where a daemon keeps its records unless it is configured otherwise.
const RECORDS: &str = "/var/lib/understudy/policies";

/// What can be done with policies.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Who decides, who only looks on, who is suspended, and what is wrong with which file.
    List,
    /// Where a node's next member would go: each host with its verdict and the policy's reason.
    Explain {
        /// The node, such as alice/display.
        node: String,
    },
    /// Ask another policy the recorded questions, and print what it would have decided otherwise.
    Replay {
        /// The component.
        #[arg(long)]
        policy: PathBuf,
        /// How far back: a number with s, m, h or d. Everything by default.
        #[arg(long, value_parser = duration)]
        since: Option<Duration>,
        /// Where the records are.
        #[arg(long, default_value = RECORDS)]
        records: PathBuf,
        /// policies.toml with the parameters of the policy, for all questions. By default each is put with those that the
        /// policy of the file's name had at that time.
        #[arg(long)]
        settings: Option<PathBuf>,
    },
    /// Look at a component as loading would: imports, exports, trial questions, limits.
    Check {
        /// The component.
        file: PathBuf,
        /// policies.toml with its settings.
        #[arg(long)]
        settings: Option<PathBuf>,
    },
    /// Questions per second by number of hosts, against the built-in rule.
    Bench {
        /// The component.
        file: PathBuf,
        /// policies.toml with its settings.
        #[arg(long)]
        settings: Option<PathBuf>,
        /// How long each number of hosts is measured.
        #[arg(long, default_value = "1s", value_parser = duration)]
        time: Duration,
    },
    /// Write a new policy that builds, with its tests, into a folder of its name.
    New {
        /// Its name: small letters, digits and hyphens, such as my-policy.
        name: String,
    },
    /// Propose this host's policies folder as it is, where `list` says that it differs from what decides.
    Propose,
    /// Ask a suspended policy again, on every host.
    Restore {
        /// Its name.
        name: String,
    },
}

impl PolicyVerb {
    /// Does what was asked.
    ///
    /// # Errors
    /// With the exit code to end with.
    pub(crate) async fn run(self, socket: &Path, json: bool) -> Result<(), Failure> {
        match self {
            Self::List => {
                let status: PoliciesStatus = ask(socket, Method::GET, "/v1/policies", None).await?;
                show(json, json!(status), || print::list(&status));
            }
            Self::Explain { node } => {
                let path = format!("/v1/nodes/{node}/explain");
                if node.matches('/').count() != 1 {
                    return Err(Failure::new(Exit::Usage, format!("'{node}' is no node: use TERMINAL/NODE")));
                }
                let shown: Explained = ask(socket, Method::GET, &path, None).await?;
                show(json, json!(shown), || print::explained(&shown));
            }
            Self::Restore { name } => {
                ask::<Value>(socket, Method::POST, &format!("/v1/policies/{name}/restore"), None).await?;
            }
            Self::Propose => {
                ask::<Value>(socket, Method::POST, "/v1/policies", None).await?;
            }
            Self::Replay { policy, since, records, settings } => {
                replay_records(json, &policy, since, &records, settings.as_deref())?;
            }
            Self::Bench { file, settings, time } => bench_file(json, &file, settings.as_deref(), time)?,
            Self::New { name } => new_policy(&name)?,
            Self::Check { file, settings } => check_file(json, &file, settings.as_deref())?,
        }
        Ok(())
    }
}

fn show(json: bool, value: Value, text: impl FnOnce() -> String) {
    if json { println!("{value}") } else { print!("{}", text()) }
}

/// A number with `s`, `m`, `h` or `d`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time: use a number with s, m, h or d, such as 1h");
    let end = text.len().checked_sub(1).filter(|end| text.is_char_boundary(*end)).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(end);
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

fn settings(file: Option<&Path>) -> Result<Settings, Failure> {
    let Some(file) = file else { return Ok(Settings::without_file(Limits::default())) };
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::new(Exit::Config, format!("cannot read {}: {error}", file.display())))?;
    Settings::parse(file, &text, &Limits::default())
        .map_err(|fault| Failure::new(Exit::Config, fault.to_string()))
}

fn check_file(json: bool, file: &Path, settings_file: Option<&Path>) -> Result<(), Failure> {
    let settings = settings(settings_file)?;
    let report = check(file, &settings).map_err(|error| Failure::new(Exit::Failed, chain(&error)))?;
    show(json, checked(&report), || print::checked(&report));
    match &report.fault {
        None => Ok(()),
        Some(fault) => Err(Failure::new(Exit::Refused, format!("{}: {}", file.display(), chain(fault)))),
    }
}

fn checked(report: &CheckReport) -> Value {
    let trials = report.trials.iter().map(|trial| {
        json!({
            "interface": trial.interface,
            "fault": trial.outcome.as_ref().err().map(|fault| chain(fault)),
            "took_us": u64::try_from(trial.took.as_micros()).unwrap_or(u64::MAX),
            "memory_bytes": trial.memory,
        })
    });
    json!({
        "file": report.file,
        "bytes": report.bytes,
        "digest": report.digest.as_ref().map(ToString::to_string),
        "imports": report.imports,
        "exports": report.exports,
        "answers": report.answers,
        "compiled_ms": report.compiled.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        "trials": trials.collect::<Vec<_>>(),
        "deadline_ms": u64::try_from(report.limits.deadline.as_millis()).unwrap_or(u64::MAX),
        "memory_mib": report.limits.memory,
        "fault": report.fault.as_ref().map(|fault| chain(fault)),
    })
}

fn bench_file(json: bool, file: &Path, settings_file: Option<&Path>, time: Duration) -> Result<(), Failure> {
    let settings = settings(settings_file)?;
    let refused = |text: String| Failure::new(Exit::Refused, format!("{}: {text}", file.display()));
    let name = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let bytes = std::fs::read(file).map_err(|error| refused(format!("cannot be read: {error}")))?;
    let rows = bench(&bytes, &settings.of(name), (&BENCH_HOSTS, Wanted::Few), time, &built_in)
        .map_err(|error| refused(chain(&error)))?;
    let micros = |took: Duration| took.as_secs_f64() * 1e6;
    let value = |row: &BenchRow| {
        json!({
            "hosts": row.hosts,
            "questions": row.questions,
            "policy_us": micros(row.policy),
            "built_in_us": micros(row.native),
            "columns_us": micros(row.columns),
            "ratio": row.ratio(),
            "per_second": row.per_second(),
        })
    };
    show(json, rows.iter().map(value).collect(), || print::benched(&rows));
    Ok(())
}

/// The files that every new policy begins as.
#[path = "../../../policies/template/skeleton.rs"]
#[expect(unreachable_pub, reason = "a module of the template, which others include too")]
mod skeleton;

fn new_policy(name: &str) -> Result<(), Failure> {
    let files = skeleton::files(name).ok_or_else(|| {
        let text = format!(
            "'{name}' is no name for a policy: use small letters, digits and hyphens, a letter first"
        );
        Failure::new(Exit::Usage, text)
    })?;
    let folder = Path::new(name);
    // Also an empty folder may be somebody's.
    if folder.symlink_metadata().is_ok() {
        let text = format!("{name} exists already: use another name, or remove it");
        return Err(Failure::new(Exit::Refused, text));
    }
    for (path, text) in files {
        let path = folder.join(path);
        let written =
            path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, text));
        written.map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()))
        })?;
    }
    println!("{name}/src/lib.rs is the policy, {name}/README.md says how to build and use it");
    Ok(())
}

fn replay_records(
    json: bool,
    policy: &Path,
    since: Option<Duration>,
    dir: &Path,
    settings_file: Option<&Path>,
) -> Result<(), Failure> {
    let settings = settings(settings_file)?;
    let name = policy.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let own = settings.of(name);
    let refused = |text: String| Failure::new(Exit::Refused, format!("{}: {text}", policy.display()));
    let bytes = std::fs::read(policy).map_err(|error| refused(format!("cannot be read: {error}")))?;
    let from = since.map_or(UnixMillis(0), |since| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(u64::try_from(now.saturating_sub(since).as_millis()).unwrap_or(u64::MAX))
    });
    let history = records::read(dir, from).map_err(|error| {
        let exit = if error.kind() == ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        let text = format!("cannot read records in {}: {error}: see --records", dir.display());
        Failure::new(exit, text)
    })?;
    let as_recorded = settings_file.is_none();
    let oldest = history.sets.iter().find_map(|set| recorded(set.as_deref(), name));
    let (parameters, limits) = oldest.filter(|_| as_recorded).unwrap_or((own.parameters, own.limits));
    let mut replayer =
        Replayer::new(name, &bytes, &parameters, limits, FUEL).map_err(|error| refused(chain(&error)))?;
    let replayed = replay(&history, &mut replayer, as_recorded).map_err(|error| refused(chain(&error)))?;
    show(json, json!(replayed), || print::replayed(&replayed));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        for (text, seconds) in [("1h", 3_600), ("90s", 90), ("2d", 172_800), ("0m", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "h", "1", "1w", "-1h", "1é", "99999999999999999999h", "99999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
