//! Owns `policies.toml`: who decides, in which mode, with which limits and parameters.
//!
//! Promises: all faults of a text are told at once, each with its key. Must not do: look whether a policy that is
//! named is there; that is known only where the components are.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};
use understudy_core::policy::Interface;
use understudy_core::units::MiB;

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

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFault {
    /// Where, with dots between the tables; empty for the text as a whole.
    pub key: String,
    /// What, and what to write instead.
    pub message: String,
}

/// Everything that is wrong with a text, one line for each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SettingsFault {
    /// The file, as the operator knows it.
    pub file: PathBuf,
    /// At least one.
    pub faults: Vec<KeyFault>,
}

impl fmt::Display for SettingsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, KeyFault { key, message }) in self.faults.iter().enumerate() {
            let (line, colon) = (if at > 0 { "\n" } else { "" }, if key.is_empty() { "" } else { ": " });
            write!(f, "{line}{}: {key}{colon}{message}", self.file.display())?;
        }
        Ok(())
    }
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
        let mut reader = Reader { faults: Vec::new() };
        let settings = match text.parse::<Table>() {
            Ok(table) => reader.settings(&table, defaults),
            Err(error) => {
                let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
                reader.fault("", format!("line {line} is no TOML: {}", error.message().trim()));
                Self::default()
            }
        };
        if reader.faults.is_empty() {
            Ok(settings)
        } else {
            Err(SettingsFault { file: file.to_owned(), faults: reader.faults })
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

struct Reader {
    faults: Vec<KeyFault>,
}

impl Reader {
    fn fault(&mut self, key: &str, message: impl Into<String>) {
        self.faults.push(KeyFault { key: key.to_owned(), message: message.into() });
    }

    fn settings(&mut self, table: &Table, defaults: &Limits) -> Settings {
        let mut settings = Settings::without_file(*defaults);
        for (key, value) in table {
            match key.as_str() {
                "choice" => settings.choice = self.choice(value),
                "policy" => {
                    for (name, value) in self.table("policy", value) {
                        let path = format!("policy.{name}");
                        if !is_name(name) {
                            self.fault(&path, "is no policy's name: use a-z, 0-9, '-' and '_'");
                        }
                        let policy = self.policy(&path, value, defaults);
                        settings.policies.insert(name.clone(), policy);
                    }
                }
                _ => self.fault(key, "is unknown: use [choice] and [policy.NAME]"),
            }
        }
        settings
    }

    fn choice(&mut self, value: &Value) -> BTreeMap<Interface, String> {
        let mut choice = BTreeMap::new();
        for (key, value) in self.table("choice", value) {
            let path = format!("choice.{key}");
            match Interface::ALL.into_iter().find(|known| known.as_str() == key) {
                Some(interface) => {
                    if let Some(name) = self.text(&path, value) {
                        choice.insert(interface, name);
                    }
                }
                None => self.fault(&path, "is no interface: use placement or backup-count"),
            }
        }
        choice
    }

    fn policy(&mut self, path: &str, value: &Value, defaults: &Limits) -> PolicySettings {
        let mut policy =
            PolicySettings { mode: Mode::default(), limits: *defaults, parameters: BTreeMap::new() };
        for (key, value) in self.table(path, value) {
            let path = format!("{path}.{key}");
            match key.as_str() {
                "mode" => {
                    let known = |text: &str| Mode::ALL.into_iter().find(|mode| mode.as_str() == text);
                    match value.as_str().and_then(known) {
                        Some(mode) => policy.mode = mode,
                        None => self.fault(&path, "is no mode: use \"decide\", \"shadow\" or \"off\""),
                    }
                }
                "deadline_ms" => {
                    if let Some(ms) = self.number(&path, value, DEADLINE_MS) {
                        policy.limits.deadline = Duration::from_millis(ms);
                    }
                }
                "memory_mib" => {
                    if let Some(mib) = self.number(&path, value, MEMORY_MIB) {
                        policy.limits.memory = MiB(mib);
                    }
                }
                "parameters" => {
                    for (key, value) in self.table(&path, value) {
                        if let Some(text) = self.text(&format!("{path}.{key}"), value) {
                            policy.parameters.insert(key.clone(), text);
                        }
                    }
                }
                _ => self.fault(&path, "is unknown: use mode, deadline_ms, memory_mib and parameters"),
            }
        }
        policy
    }

    fn table<'a>(
        &mut self,
        path: &str,
        value: &'a Value,
    ) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        let table = value.as_table();
        if table.is_none() {
            self.fault(path, format!("is not a table but {}", value.type_str()));
        }
        table.into_iter().flatten()
    }

    fn text(&mut self, path: &str, value: &Value) -> Option<String> {
        let text = value.as_str();
        if text.is_none() {
            self.fault(path, format!("is not text but {}: write \"{value}\"", value.type_str()));
        }
        text.map(str::to_owned)
    }

    fn number(&mut self, path: &str, value: &Value, range: RangeInclusive<u64>) -> Option<u64> {
        let number = value.as_integer().and_then(|n| u64::try_from(n).ok()).filter(|n| range.contains(n));
        if number.is_none() {
            let (from, to) = range.into_inner();
            self.fault(path, format!("is no whole number from {from} to {to}"));
        }
        number
    }
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
    fn all_faults_are_told_at_once_with_file_and_key() {
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
                "policies.toml: chioce: is unknown: use [choice] and [policy.NAME]",
                "policies.toml: choice.nothing: is no interface: use placement or backup-count",
                "policies.toml: choice.placement: is not text but integer: write \"7\"",
                "policies.toml: policy.Spread: is no policy's name: use a-z, 0-9, '-' and '_'",
                "policies.toml: policy.a.deadline_ms: is no whole number from 5 to 10000",
                "policies.toml: policy.a.memory_mib: is no whole number from 1 to 1024",
                "policies.toml: policy.a.mode: is no mode: use \"decide\", \"shadow\" or \"off\"",
                "policies.toml: policy.a.parameters.weight: is not text but integer: write \"2\"",
                "policies.toml: policy.a.speed: is unknown: use mode, deadline_ms, memory_mib and parameters",
                "policies.toml: policy.b.deadline_ms: is no whole number from 5 to 10000",
                "policies.toml: policy.b.parameters: is not a table but array",
                "policies.toml: policy.flat: is not a table but integer",
            ]
        );
    }

    #[test]
    fn a_text_that_is_no_toml_is_told_with_its_line() {
        let fault = parse("[choice]\nplacement = \n").unwrap_err().to_string();
        assert!(fault.starts_with("policies.toml: line 2 is no TOML: "), "{fault}");
    }
}
