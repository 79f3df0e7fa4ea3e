//! Owns `policies.toml`: who decides, in which mode, with which limits and parameters.
//!
//! Promises: all faults of a text are told at once, each with its key. Must not do: look whether a policy that is
//! named is there; that is known only where the components are.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use understudy_core::model::units::MiB;
use understudy_core::policy::Interface;

use crate::keys::{self, Faults, Section};
use crate::limits::Limits;
use crate::names::is_name;

/// A tick of the deadline's clock is 10 ms; a failover is not to wait longer than 10 s for a policy.
const DEADLINE_MS: RangeInclusive<u64> = 5..=10_000;
/// The smallest component has 64 KiB; a daemon is not to take a gibibyte for one question.
const MEMORY_MIB: RangeInclusive<u64> = 1..=1024;

/// What is done with a policy's answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// They decide.
    #[default]
    Decide,
    /// They are compared with those that decide.
    Shadow,
    /// It is not asked, and not even loaded.
    Off,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Decide, Self::Shadow, Self::Off];

    /// The word in `policies.toml`, status and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decide => "decide",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The settings of one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySettings {
    /// What is done with its answers.
    pub mode: Mode,
    /// What it may use.
    pub limits: Limits,
    /// Given to it with every question.
    pub parameters: BTreeMap<String, String>,
}

/// `policies.toml`, checked as far as it can be without the components.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Limits of policies without their own.
    pub defaults: Limits,
    /// Which policy decides, by name. Needed where several export the same interface.
    pub choice: BTreeMap<Interface, String>,
    /// The policies with settings of their own.
    pub policies: BTreeMap<String, PolicySettings>,
}

/// Everything that is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", faults.join("\n"))]
pub struct SettingsFault {
    /// One line for each, with file and key; at least one.
    pub faults: Vec<String>,
}

impl Settings {
    /// Settings without a file: whoever is the only one to answer a question decides.
    #[must_use]
    pub fn without_file(defaults: Limits) -> Self {
        Self { defaults, ..Self::default() }
    }

    /// Read a text; `file` is only named.
    ///
    /// # Errors
    /// With all that is wrong.
    pub fn parse(file: &Path, text: &str, defaults: &Limits) -> Result<Self, SettingsFault> {
        let mut faults = Faults::of(file);
        let settings = keys::file(text, &mut faults, |file| Self {
            defaults: *defaults,
            choice: file.section("choice", choice),
            policies: file.named_sections("policy", |name, keys| {
                if !is_name(name) {
                    keys.misnamed("is no policy's name: use a-z, 0-9, '-' and '_'");
                }
                policy(keys, defaults)
            }),
        });
        match settings {
            Some(settings) if faults.list.is_empty() => Ok(settings),
            _ => Err(SettingsFault { faults: faults.list }),
        }
    }

    /// The settings of the policy `name`.
    #[must_use]
    pub fn of(&self, name: &str) -> PolicySettings {
        self.policies.get(name).cloned().unwrap_or_else(|| PolicySettings {
            mode: Mode::default(),
            limits: self.defaults,
            parameters: BTreeMap::new(),
        })
    }
}

fn choice(keys: &mut Section<'_, '_, '_>) -> BTreeMap<Interface, String> {
    Interface::ALL
        .into_iter()
        .filter_map(|interface| Some((interface, keys.text(interface.as_str())?)))
        .collect()
}

fn policy(keys: &mut Section<'_, '_, '_>, defaults: &Limits) -> PolicySettings {
    let modes = Mode::ALL.map(|mode| (mode.as_str(), mode));
    let mut limits = *defaults;
    let mode = keys.word("mode", &modes).unwrap_or_default();
    if let Some(ms) = keys.number("deadline_ms", DEADLINE_MS) {
        limits.deadline = Duration::from_millis(ms);
    }
    if let Some(mib) = keys.number("memory_mib", MEMORY_MIB) {
        limits.memory = MiB(mib);
    }
    PolicySettings { mode, limits, parameters: keys.named_texts("parameters") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, SettingsFault> {
        Settings::parse(Path::new("policies.toml"), text, &Limits::default())
    }

    #[test]
    fn everything_that_can_be_set_is_read() {
        let settings = parse(
            "[choice]\nplacement = 'spread'\nbackup-count = 'count'\n\
             [policy.spread]\nmode = 'shadow'\ndeadline_ms = 50\nmemory_mib = 8\n\
             [policy.spread.parameters]\nroom-weight = '2'\n[policy.count]",
        )
        .unwrap();
        assert_eq!(settings.choice[&Interface::BackupCount], "count");
        let spread = settings.of("spread");
        assert_eq!(spread.mode, Mode::Shadow);
        assert_eq!((spread.limits.deadline, spread.limits.memory), (Duration::from_millis(50), MiB(8)));
        assert_eq!(spread.parameters["room-weight"], "2");
        assert_eq!(settings.of("count"), settings.of("never-heard-of"));
        assert_eq!(settings.of("count").limits, Limits::default());
        assert_eq!(parse("").unwrap(), Settings::without_file(Limits::default()));
    }

    #[test]
    fn all_faults_are_reported_at_once_with_file_and_key() {
        let fault = parse(
            "chioce = 1\nchoice.nothing = 'x'\nchoice.placement = 7\n\
             [policy]\nflat = 3\n[policy.Spread]\n[policy.a]\nmode = 'on'\ndeadline_ms = 4\nmemory_mib = 1025\n\
             speed = 1\n[policy.a.parameters]\nweight = 2\n[policy.b]\ndeadline_ms = '5'\nparameters = []\n",
        )
        .unwrap_err();
        let text = fault.to_string();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "policies.toml: chioce: is unknown: use [choice], [policy] (line 1)",
                "policies.toml: choice.nothing: is unknown: use placement, backup-count (line 2)",
                "policies.toml: choice.placement: is not text but integer (line 3)",
                "policies.toml: policy.Spread: is no policy's name: use a-z, 0-9, '-' and '_'",
                "policies.toml: policy.a.deadline_ms: 4 is out of range: use 5 to 10000 (line 9)",
                "policies.toml: policy.a.memory_mib: 1025 is out of range: use 1 to 1024 (line 10)",
                "policies.toml: policy.a.mode: 'on' is not one of decide, shadow, off (line 8)",
                "policies.toml: policy.a.parameters.weight: is not text but integer (line 13)",
                "policies.toml: policy.a.speed: is unknown: use mode, deadline_ms, memory_mib, parameters (line 11)",
                "policies.toml: policy.b.deadline_ms: is not a whole number but string: use 5 to 10000 (line 15)",
                "policies.toml: policy.b.parameters: is not a table but array (line 16)",
                "policies.toml: policy.flat: is not a table but integer (line 5)",
            ]
        );
    }

    #[test]
    fn a_text_that_is_no_toml_is_reported_with_its_line() {
        let fault = parse("[choice]\nplacement = \n").unwrap_err().to_string();
        assert!(fault.starts_with("policies.toml: line 2 is no TOML: "), "{fault}");
    }
}
